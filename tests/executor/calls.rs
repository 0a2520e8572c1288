//! The executor's calls: run, spawn, try_spawn, pin, retire, stats.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use netns_exec::{Executor, JoinHandle, Netns, Pinned, TrySpawnError};
use netns_exec_tests::{
    Gate, Held, TempNetns, eventually, fresh, here, netns_cookie_of, netns_link_of_this_thread,
    require_root, sleeps_soundly, within,
};

use super::{with_idle, with_queue};

#[test]
fn handles_may_go_where_they_are_needed() {
    fn check<T: Send + Sync>() {}
    check::<Executor>();
    check::<Pinned>();
    check::<JoinHandle<Vec<u8>>>();
    fn only_send<T: Send>() {}
    only_send::<JoinHandle<std::cell::Cell<u8>>>();
    fn unpin<T: Unpin>() {}
    unpin::<JoinHandle<std::marker::PhantomPinned>>();
}

// run

#[test]
fn run_borrows_from_the_callers_stack() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let mut seen = Vec::new();
    let text = String::from("text");
    let length = executor
        .run(&netns, || {
            seen.push(here());
            text.len()
        })
        .unwrap();
    assert_eq!((seen, length), (vec![netns.id()], 4));
    let part: &str = executor.run(&netns, || &text[1..]).unwrap();
    assert_eq!(part, "ext");
}

#[test]
fn run_moves_the_job_and_never_the_caller() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let (link, thread) = (netns_link_of_this_thread(), thread::current().id());
    let there = executor
        .run(&netns, || {
            (netns_link_of_this_thread(), thread::current().id())
        })
        .unwrap();
    assert_ne!(there.0, link);
    assert_ne!(there.1, thread);
    assert_eq!(netns_link_of_this_thread(), link);
}

#[test]
fn sockets_of_a_job_belong_to_its_namespace() {
    let executor = Executor::new().unwrap();
    let spaces = [fresh(), fresh(), fresh()];
    let mut port = 0;
    let mut listeners = Vec::new();
    for netns in &spaces {
        netns.set_loopback_up().unwrap();
        let address = (Ipv4Addr::LOCALHOST, port);
        let listener = executor.run(netns, || TcpListener::bind(address)).unwrap();
        let listener = listener.expect("the same port is free in each namespace");
        port = listener.local_addr().unwrap().port();
        assert_eq!(netns_cookie_of(listener.as_fd()), netns.id().as_u64());
        listeners.push(listener);
    }
}

#[test]
fn closures_and_results_of_any_size_and_alignment_pass() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(align(128))]
    struct Aligned(u8);

    let executor = Executor::new().unwrap();
    let netns = fresh();
    executor.run(&netns, || ()).unwrap();
    let large = [7_u64; 500];
    assert_eq!(executor.run(&netns, move || large).unwrap(), large);
    let small = executor.run(&netns, move || large.iter().sum::<u64>());
    assert_eq!(small.unwrap(), 3500);
    assert_eq!(executor.run(&netns, || [1_u8; 4096]).unwrap(), [1; 4096]);
    let aligned = Aligned(3);
    let (moved, at) = executor
        .run(&netns, move || (aligned, (&raw const aligned).addr() % 128))
        .unwrap();
    assert_eq!((moved, at), (Aligned(3), 0));
    for size in 0..80 {
        let bytes: Vec<u8> = (0..size).collect();
        assert_eq!(executor.run(&netns, || bytes.clone()).unwrap(), bytes);
    }
}

#[test]
fn spawned_closures_of_any_size_and_alignment_pass() {
    #[repr(align(128))]
    struct Aligned([u8; 1000]);

    let executor = Executor::new().unwrap();
    let netns = fresh();
    let value = Aligned([5; 1000]);
    let handle = executor.spawn(&netns, move || {
        assert_eq!((&raw const value).addr() % 128, 0);
        value
    });
    assert_eq!(handle.unwrap().join().unwrap().0, [5; 1000]);
}

#[test]
fn result_of_a_job_is_dropped_once_by_the_caller() {
    struct Counted<'a>(&'a AtomicU32);
    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let (captured, returned) = (AtomicU32::new(0), AtomicU32::new(0));
    let capture = Counted(&captured);
    let result = executor
        .run(&netns, || {
            drop(capture);
            Counted(&returned)
        })
        .unwrap();
    assert_eq!(captured.load(Ordering::SeqCst), 1);
    assert_eq!(returned.load(Ordering::SeqCst), 0);
    drop(result);
    assert_eq!(returned.load(Ordering::SeqCst), 1);
}

#[test]
fn one_worker_serves_a_namespace_for_as_long_as_it_is_needed() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let first = executor.run(&netns, || thread::current().id()).unwrap();
    for _ in 0..100 {
        assert_eq!(
            executor.run(&netns, || thread::current().id()).unwrap(),
            first
        );
        let spawned = executor.spawn(&netns, || thread::current().id()).unwrap();
        assert_eq!(spawned.join().unwrap(), first);
    }
    assert_eq!(executor.stats().workers, 1);
}

#[test]
fn home_namespace_is_served_by_workers_too() {
    require_root();
    let executor = Executor::new().unwrap();
    let home = Netns::home().unwrap();
    let there = executor.run(&home, || (here(), thread::current().id()));
    let (id, thread) = there.unwrap();
    assert_eq!(id, home.id());
    assert_ne!(thread, thread::current().id());
}

#[test]
fn global_executor_is_one_for_all() {
    let netns = fresh();
    let thread = || thread::current().id();
    let by_function = netns_exec::run(&netns, thread).unwrap();
    let by_global = Executor::global().run(&netns, thread).unwrap();
    let by_spawn = netns_exec::spawn(&netns, thread).unwrap().join().unwrap();
    assert_eq!(by_function, by_global);
    assert_eq!(by_function, by_spawn);
    assert_eq!(netns_exec::run(&netns, here).unwrap(), netns.id());
    Executor::global().retire(&netns).unwrap();
}

// spawn

#[test]
fn spawned_jobs_of_one_caller_run_in_order() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let (sender, receiver) = mpsc::channel();
    for number in 0..1000 {
        let sender = sender.clone();
        let handle = executor.spawn(&netns, move || sender.send(number).unwrap());
        drop(handle.unwrap());
    }
    drop(sender);
    assert!(receiver.iter().eq(0..1000));
}

#[test]
fn spawn_returns_before_the_job_ends() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let gate = Gate::new();
    let pass = gate.pass();
    let handle = executor.spawn(&netns, move || pass.stop()).unwrap();
    gate.wait_for(1);
    assert!(!handle.is_finished());
    let handle = handle.join_timeout(Duration::from_millis(20)).unwrap_err();
    let handle = handle.join_timeout(Duration::ZERO).unwrap_err();
    gate.open();
    handle.join_timeout(Duration::MAX).unwrap().unwrap();
}

#[test]
fn is_finished_turns_true_and_join_then_does_not_wait() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let handle = executor.spawn(&netns, || 5).unwrap();
    eventually("the job is finished", || handle.is_finished());
    assert!(!handle.cancel(), "too late");
    assert_eq!(handle.join_timeout(Duration::ZERO).unwrap().unwrap(), 5);
}

#[test]
fn cancelled_job_never_runs_and_tells_its_handle_at_once() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let held = Held::new(&executor, &netns);
    let ran = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&ran);
    let queued = executor.spawn(&netns, move || count.fetch_add(1, Ordering::SeqCst));
    let queued = queued.unwrap();

    assert!(!held.job.cancel(), "it has started");
    assert!(!queued.is_finished());
    assert!(queued.cancel());
    assert!(!queued.cancel(), "only once");
    assert!(queued.is_finished());
    let error = queued.join().unwrap_err();
    assert!(error.is_cancelled() && !error.is_panic(), "{error}");
    held.end();
    executor.shutdown(None).unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 0);
    assert_eq!(Arc::strong_count(&ran), 1, "its closure has been dropped");
}

#[test]
fn many_race_to_cancel_and_every_job_runs_once_or_not_at_all() {
    let executor = with_queue(4);
    let netns = fresh();
    let ran = Arc::new(AtomicU32::new(0));
    let mut not_cancelled = 0;
    for _ in 0..5000 {
        let count = Arc::clone(&ran);
        let handle = executor.spawn(&netns, move || count.fetch_add(1, Ordering::SeqCst));
        let handle = handle.unwrap();
        let cancelled = handle.cancel();
        match handle.join() {
            Ok(_) => assert!(!cancelled),
            Err(error) => assert!(cancelled && error.is_cancelled(), "{error}"),
        }
        not_cancelled += u32::from(!cancelled);
    }
    executor.shutdown(None).unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), not_cancelled);
}

#[test]
fn handle_says_how_it_stands_when_printed() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let handle = executor.spawn(&netns, || ()).unwrap();
    eventually("the job is finished", || handle.is_finished());
    assert_eq!(format!("{handle:?}"), "JoinHandle { finished: true, .. }");
    assert!(format!("{executor:?}").contains("done: 1"), "{executor:?}");
    handle.join().unwrap();
}

// full queues

#[test]
fn full_queue_gives_the_closure_back() {
    let executor = with_queue(2);
    let netns = fresh();
    let held = Held::new(&executor, &netns);
    let queued = [executor.spawn(&netns, || 1), executor.spawn(&netns, || 2)];
    assert_eq!(executor.stats().queued, 2);

    let precious = Box::new(42);
    let refused = executor.try_spawn(&netns, move || *precious);
    let error = refused.unwrap_err();
    assert!(error.to_string().contains("queue is full"), "{error}");
    assert_eq!(format!("{error:?}"), "Full(..)");
    let TrySpawnError::Full(f) = error else {
        panic!("{error:?}");
    };
    assert_eq!(f(), 42, "the closure came back whole");
    let error = executor.try_spawn(&netns, || 3).unwrap_err();
    assert_eq!(error.into_closure()(), 3);
    let error = executor.try_spawn(&netns, || 3).unwrap_err().into_error();
    assert!(error.to_string().contains("queue is full"), "{error}");

    held.end();
    let [one, two] = queued.map(|handle| handle.unwrap().join().unwrap());
    assert_eq!((one, two), (1, 2));
    assert_eq!(executor.try_spawn(&netns, || 3).unwrap().join().unwrap(), 3);
}

#[test]
fn spawn_waits_for_room_in_the_queue() {
    let executor = with_queue(1);
    let netns = fresh();
    let held = Held::new(&executor, &netns);
    let queued = executor.spawn(&netns, || ()).unwrap();
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for number in 0..4 {
            let (executor, netns, sender) = (&executor, &netns, sender.clone());
            scope.spawn(move || {
                let handle = executor.spawn(netns, move || number).unwrap();
                sender.send(()).unwrap();
                assert_eq!(handle.join().unwrap(), number);
            });
        }
        let early = receiver.recv_timeout(Duration::from_millis(50));
        assert!(
            early.is_err(),
            "the queue has room for one, and one is there"
        );
        held.open();
    });
    held.end();
    queued.join().unwrap();
    assert_eq!(executor.stats().done, 6);
}

#[test]
fn sender_has_the_room_that_there_is_beside_a_job_that_waits_for_it() {
    const DEPTH: usize = 16;
    let executor = with_queue(DEPTH);
    let netns = fresh();
    let held = Held::new(&executor, &netns);
    let (sent, is_sent) = mpsc::channel();
    let (own_tid, tid) = mpsc::channel();
    drop(executor.spawn(&netns, || ()).unwrap());
    let limit = Duration::from_secs(10);
    let waits = (executor.spawn(&netns, move || is_sent.recv_timeout(limit))).unwrap();
    for _ in 2..DEPTH {
        drop(executor.spawn(&netns, || ()).unwrap());
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            own_tid.send(nix::unistd::gettid().as_raw()).unwrap();
            drop(executor.spawn(&netns, || ()).unwrap());
            sent.send(()).unwrap();
        });
        let tid = tid.recv().unwrap();
        eventually("the sender waits for room", || sleeps_soundly(tid));
        held.open();
    });
    held.end();
    let told = waits.join().unwrap();
    assert!(told.is_ok(), "of two places the sender got none: {told:?}");
}

#[test]
fn many_callers_on_a_short_queue_all_get_through() {
    let executor = with_queue(1);
    let netns = fresh();
    let sum = AtomicU32::new(0);
    thread::scope(|scope| {
        for number in 0..16 {
            let (executor, netns, sum) = (&executor, &netns, &sum);
            scope.spawn(move || {
                for _ in 0..200 {
                    if number % 2 == 0 {
                        executor
                            .run(netns, || sum.fetch_add(1, Ordering::Relaxed))
                            .unwrap();
                    } else {
                        let handle = executor.spawn(netns, || 1).unwrap();
                        sum.fetch_add(handle.join().unwrap(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(sum.load(Ordering::Relaxed), 16 * 200);
    assert_eq!(executor.stats().done, 16 * 200);
}

#[test]
fn try_spawn_does_not_wait_for_room_under_max_workers() {
    let executor = Executor::builder().max_workers(1).build().unwrap();
    let (busy, other) = (fresh(), fresh());
    let held = Held::new(&executor, &busy);
    let (executor, refused) = within("try_spawn at the limit of workers", move || {
        let refused = executor.try_spawn(&other, || 7).map(|_| ());
        (executor, refused)
    });
    let error = refused.unwrap_err();
    assert!(matches!(error, TrySpawnError::Full(_)), "{error:?}");
    assert_eq!(error.into_closure()(), 7);
    held.end();
    drop(executor);
}

// pin

#[test]
fn pinned_does_all_that_an_executor_does() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let pinned = executor.pin(&netns).unwrap();
    assert_eq!(pinned.id(), netns.id());
    let mut seen = Vec::new();
    pinned.run(|| seen.push(here())).unwrap();
    seen.push(pinned.spawn(here).unwrap().join().unwrap());
    seen.push(pinned.try_spawn(here).unwrap().join().unwrap());
    seen.push(executor.run(&netns, || pinned.run(here).unwrap()).unwrap());
    assert_eq!(seen, [netns.id(); 4]);
    assert_eq!(executor.stats().workers, 1);
}

#[test]
fn pinned_workers_outstay_the_idle_timeout() {
    let executor = with_idle(Some(Duration::from_millis(1)));
    let (kept, other) = (fresh(), fresh());
    let pinned = executor.pin(&kept).unwrap();
    let first = pinned.run(|| thread::current().id()).unwrap();
    // Many times the timeout pass for others meanwhile.
    for _ in 0..5 {
        executor.run(&other, || ()).unwrap();
        eventually("the other worker has idled away", || {
            executor.stats().workers == 1
        });
    }
    assert_eq!(pinned.run(|| thread::current().id()).unwrap(), first);
    drop(pinned);
    eventually("nothing keeps it any more", || {
        executor.stats().workers == 0
    });
}

#[test]
fn clone_of_a_pin_keeps_the_workers_by_itself() {
    let executor = with_idle(Some(Duration::from_millis(1)));
    let (kept, other) = (fresh(), fresh());
    let mut pinned = executor.pin(&kept).unwrap();
    // The second time, what is cloned is what came after the first workers.
    for _ in 0..2 {
        let first = pinned.run(|| thread::current().id()).unwrap();
        let clone = pinned.clone();
        assert_eq!(clone.id(), kept.id());
        drop(pinned);
        for _ in 0..5 {
            executor.run(&other, || ()).unwrap();
            eventually("the other worker has idled away", || {
                executor.stats().workers == 1
            });
        }
        assert_eq!(clone.run(|| thread::current().id()).unwrap(), first);
        executor.retire(&kept).unwrap();
        assert_ne!(clone.run(|| thread::current().id()).unwrap(), first);
        pinned = clone;
    }
    drop(pinned);
    eventually("nothing keeps it any more", || {
        executor.stats().workers == 0
    });
}

#[test]
fn pinned_starts_anew_after_retire_while_the_namespace_exists() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let pinned = executor.pin(&netns).unwrap();
    let before = pinned.run(|| thread::current().id()).unwrap();
    for _ in 0..3 {
        executor.retire(&netns).unwrap();
        assert_eq!(executor.stats().workers, 0);
        assert_ne!(pinned.run(|| thread::current().id()).unwrap(), before);
        assert_eq!(pinned.spawn(here).unwrap().join().unwrap(), netns.id());
        assert_eq!(executor.stats().workers, 1);
    }
}

#[test]
fn pinned_reports_a_namespace_that_is_gone() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let pinned = executor.pin(&netns).unwrap();
    executor.retire(&netns).unwrap();
    drop(netns);
    let error = pinned.run(here).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(pinned.spawn(here).unwrap_err().is_not_found());
    match pinned.try_spawn(|| 9) {
        Err(TrySpawnError::Failed(error, f)) => {
            assert!(error.is_not_found(), "{error}");
            assert_eq!(f(), 9);
        }
        other => panic!("{other:?}"),
    }
}

// stats

#[test]
fn stats_say_what_is_done_and_what_is_under_way() {
    let executor = Executor::new().unwrap();
    let (a, b) = (TempNetns::new(), fresh());
    assert_eq!(executor.stats().per_netns.len(), 0);
    for _ in 0..10 {
        executor.run(&a, || ()).unwrap();
    }
    executor
        .spawn(&b, || panic!("counted"))
        .unwrap()
        .join()
        .unwrap_err();
    let held = Held::new(&executor, &a);
    let queued = [(); 3].map(|()| executor.spawn(&a, || ()).unwrap());

    let stats = executor.stats();
    assert_eq!((stats.workers, stats.running, stats.queued), (2, 1, 3));
    assert_eq!((stats.done, stats.panicked), (11, 1));
    let of = |netns: &Netns| {
        let found = stats.per_netns.iter().find(|one| one.id == netns.id());
        found.expect("it has a worker")
    };
    let (of_a, of_b) = (of(&a), of(&b));
    assert_eq!(&*of_a.label, a.name());
    assert_eq!((of_a.workers, of_a.running, of_a.queued), (1, 1, 3));
    assert_eq!((of_a.done, of_a.panicked), (10, 0));
    assert_eq!((of_b.workers, of_b.running, of_b.queued), (1, 0, 0));
    assert_eq!((of_b.done, of_b.panicked), (1, 1));

    held.end();
    for handle in queued {
        handle.join().unwrap();
    }
    executor.retire(&a).unwrap();
    let stats = executor.stats();
    assert_eq!((stats.workers, stats.running, stats.queued), (1, 0, 0));
    assert_eq!(
        (stats.done, stats.panicked),
        (15, 1),
        "retiring forgets nothing"
    );
    assert_eq!(stats.per_netns.len(), 1);
}

#[test]
fn job_is_counted_before_its_owner_is_told() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    for number in 1..=500 {
        executor.spawn(&netns, || ()).unwrap().join().unwrap();
        assert_eq!(executor.stats().done, number);
    }
}

// what a builder refuses and does

#[test]
fn builder_refuses_nonsense() {
    for builder in [
        Executor::builder().workers_per_netns(usize::MAX),
        Executor::builder().max_workers(0),
        Executor::builder().queue_depth(0),
        Executor::builder().name_prefix("a\0b"),
    ] {
        let error = builder.build().unwrap_err();
        assert!(error.is_invalid_input(), "{error}");
    }
}

#[test]
fn stack_size_is_what_was_asked_for() {
    fn use_stack(bytes: usize) -> u8 {
        let page = std::hint::black_box([1_u8; 4096]);
        match bytes {
            0..4096 => page[0],
            _ => use_stack(bytes - 4096).max(page[1]),
        }
    }
    let executor = Executor::builder().stack_size(32 << 20).build().unwrap();
    let netns = fresh();
    // The default of 2 MiB would overflow.
    assert_eq!(executor.run(&netns, || use_stack(8 << 20)).unwrap(), 1);
}

#[test]
fn prewarm_runs_once_at_home_and_may_start_threads() {
    require_root();
    let ran = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&ran);
    let executor = Executor::builder()
        .prewarm(move || {
            assert_eq!(here(), Netns::home().unwrap().id());
            thread::spawn(|| ()).join().unwrap();
            count.fetch_add(1, Ordering::SeqCst);
        })
        .build()
        .unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 1);
    executor.run(&fresh(), || ()).unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 1);
}
