//! Calls that get no worker: nothing is kept of the namespace that they were for. Its number
//! never comes back, so that no later call would take out what one has left.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use netns_exec::{Executor, NetnsId, Pinned, TrySpawnError};
use netns_exec_tests::{Held, fresh, here};

/// A pin of a namespace that is gone.
fn pin_of_what_is_gone(executor: &Executor) -> Pinned {
    let netns = fresh();
    let pinned = executor.pin(&netns).unwrap();
    executor.retire(&netns).unwrap();
    pinned
}

/// For which namespaces the executor keeps something.
fn kept(executor: &Executor) -> Vec<NetnsId> {
    let stats = executor.stats();
    stats.per_netns.into_iter().map(|one| one.id).collect()
}

#[track_caller]
fn assert_none_kept(executor: &Executor) {
    assert_eq!(kept(executor), []);
}

fn with_one_worker() -> Executor {
    Executor::builder().max_workers(1).build().unwrap()
}

/// Polls `future` once, which is not over then, and drops it.
#[track_caller]
fn assert_waits(future: impl Future) {
    let polled = pin!(future).poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending());
}

#[test]
fn pin_keeps_nothing_of_a_namespace_that_is_gone() {
    let executor = Executor::new().unwrap();
    let pinned = pin_of_what_is_gone(&executor);
    assert!(pinned.run(here).unwrap_err().is_not_found());
    assert_none_kept(&executor);
    assert!(pinned.spawn(here).unwrap_err().is_not_found());
    assert_none_kept(&executor);
    let failed = pinned.try_spawn(here);
    assert!(matches!(failed, Err(TrySpawnError::Failed(..))));
    assert_none_kept(&executor);
    let failed = pollster::block_on(pinned.spawn_async(here));
    assert!(failed.unwrap_err().is_not_found());
    assert_none_kept(&executor);
    let failed = pinned.spawn_future(async { 7 }).join();
    assert!(failed.unwrap_err().is_not_found());
    assert_none_kept(&executor);
    let failed = pinned.spawn_local(|| async { 7 }).join();
    assert!(failed.unwrap_err().is_not_found());
    assert_none_kept(&executor);
}

#[test]
fn call_that_finds_no_room_keeps_nothing_of_its_namespace() {
    let executor = with_one_worker();
    let (busy, netns) = (fresh(), fresh());
    let held = Held::new(&executor, &busy);
    for _ in 0..3 {
        let full = executor.try_spawn(&netns, here);
        assert!(matches!(full, Err(TrySpawnError::Full(_))));
        assert_eq!(kept(&executor), [busy.id()]);
    }
    held.end();
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
}

#[test]
fn future_that_is_dropped_while_it_waits_for_room_keeps_nothing_of_its_namespace() {
    let executor = with_one_worker();
    let (busy, netns) = (fresh(), fresh());
    let held = Held::new(&executor, &busy);
    assert_waits(executor.spawn_async(&netns, here));
    assert_eq!(kept(&executor), [busy.id()]);
    assert_waits(executor.pin_async(&netns));
    assert_eq!(kept(&executor), [busy.id()]);
    held.end();
    let spawned = pollster::block_on(executor.spawn_async(&netns, here));
    assert_eq!(spawned.unwrap().join().unwrap(), netns.id());
}
