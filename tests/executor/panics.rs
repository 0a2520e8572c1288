//! Panics: in jobs, and while what belongs to a job is dropped.

use std::panic::panic_any;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use netns_exec::{Executor, Netns};
use netns_exec_tests::{Gate, Held, eventually, fresh, here, panic_of};

use super::with_workers;

/// Panics when it is dropped, with a payload that does so too.
struct Bomb(u32);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 > 0 {
            panic_any(Bomb(self.0 - 1));
        }
    }
}

/// The worker is the same thread as before, in its place, and works.
fn check(executor: &Executor, netns: &Netns, worker: thread::ThreadId) {
    let now = executor.run(netns, || (here(), thread::current().id()));
    assert_eq!(now.unwrap(), (netns.id(), worker));
    assert_eq!(executor.stats().workers, 1);
}

fn set_up() -> (Executor, Netns, thread::ThreadId) {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let worker = executor.run(&netns, || thread::current().id()).unwrap();
    (executor, netns, worker)
}

#[test]
fn run_resumes_a_panic_with_its_payload_and_the_worker_goes_on() {
    let (executor, netns, worker) = set_up();
    for number in 0..50_u64 {
        let payload = panic_of(|| executor.run(&netns, || panic_any(number)));
        assert_eq!(payload.downcast_ref(), Some(&number));
    }
    check(&executor, &netns, worker);
    let stats = executor.stats();
    assert_eq!((stats.done, stats.panicked), (52, 50));
}

#[test]
fn run_resumes_a_panic_of_a_job_that_went_through_the_queue() {
    let (executor, netns, worker) = set_up();
    let held = Held::new(&executor, &netns);
    thread::scope(|scope| {
        let caller = scope.spawn(|| panic_of(|| executor.run(&netns, || panic_any("queued"))));
        eventually("the call is queued", || executor.stats().queued == 1);
        held.open();
        let payload = caller.join().unwrap();
        assert_eq!(payload.downcast_ref(), Some(&"queued"));
    });
    held.end();
    check(&executor, &netns, worker);
}

#[test]
fn panic_of_a_large_closure_arrives() {
    let (executor, netns, worker) = set_up();
    let large = [1_u8; 4096];
    let payload = panic_of(|| executor.run(&netns, || panic_any(large)));
    assert_eq!(payload.downcast_ref(), Some(&large));
    check(&executor, &netns, worker);
}

#[test]
fn pinned_resumes_a_panic_too() {
    let (executor, netns, worker) = set_up();
    let pinned = executor.pin(&netns).unwrap();
    let payload = panic_of(|| pinned.run(|| panic!("pinned")));
    assert_eq!(payload.downcast_ref(), Some(&"pinned"));
    check(&executor, &netns, worker);
}

#[test]
fn join_returns_an_error_that_holds_the_payload() {
    let (executor, netns, worker) = set_up();
    let handle = executor.spawn(&netns, || panic_any(vec![1, 2, 3])).unwrap();
    let error = handle.join().unwrap_err();
    assert!(error.is_panic() && !error.is_cancelled());
    let payload = error.into_panic().unwrap();
    assert_eq!(payload.downcast_ref(), Some(&vec![1, 2, 3]));

    let handle = executor.spawn(&netns, || panic!("told")).unwrap();
    let error = handle.join_timeout(Duration::MAX).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "job panicked: told");
    let handle = executor.spawn(&netns, || panic!("awaited")).unwrap();
    let error = pollster::block_on(handle).unwrap_err();
    assert_eq!(error.to_string(), "job panicked: awaited");
    check(&executor, &netns, worker);
}

#[test]
fn inline_panic_unwinds_through_the_outer_job() {
    let (executor, netns, worker) = set_up();
    let payload = panic_of(|| {
        executor.run(&netns, || {
            let caught = panic_of(|| executor.run(&netns, || panic!("inner")));
            assert_eq!(caught.downcast_ref(), Some(&"inner"));
            executor.run(&netns, || panic!("outer")).unwrap();
        })
    });
    assert_eq!(payload.downcast_ref(), Some(&"outer"));
    check(&executor, &netns, worker);
}

#[test]
fn panic_crosses_namespaces_up_to_the_first_caller() {
    let (executor, a, worker) = set_up();
    let b = fresh();
    let payload = panic_of(|| {
        executor.run(&a, || {
            executor.run(&b, || executor.run(&a, || panic_any(7_u8)))
        })
    });
    assert_eq!(payload.downcast_ref(), Some(&7_u8));
    let after = executor.run(&a, || thread::current().id()).unwrap();
    assert_eq!(after, worker);
    assert_eq!(executor.run(&b, here).unwrap(), b.id());
}

#[test]
fn panic_while_a_captured_value_is_dropped_is_survived() {
    let (executor, netns, worker) = set_up();
    let bomb = Bomb(1);
    let payload = panic_of(|| executor.run(&netns, move || drop(bomb)));
    assert!(payload.is::<Bomb>());
    let bomb = Bomb(1);
    let error = executor.spawn(&netns, move || drop(bomb)).unwrap().join();
    assert!(error.unwrap_err().is_panic());
    check(&executor, &netns, worker);
}

#[test]
fn panic_while_an_unclaimed_result_is_dropped_is_survived() {
    let (executor, netns, worker) = set_up();
    // Dropped by the worker: no caller waits when the job ends.
    let gate = Gate::new();
    let pass = gate.pass();
    let handle = executor.spawn(&netns, move || {
        pass.stop();
        Bomb(4)
    });
    gate.wait_for(1);
    drop(handle.unwrap());
    gate.open();
    check(&executor, &netns, worker);
    // Dropped by the handle: our own destructors never panic.
    let handle = executor.spawn(&netns, || Bomb(4)).unwrap();
    eventually("the job is finished", || handle.is_finished());
    drop(handle);
    check(&executor, &netns, worker);
}

#[test]
fn payload_that_panics_when_dropped_is_survived() {
    let (executor, netns, worker) = set_up();
    for _ in 0..20 {
        drop(executor.spawn(&netns, || panic_any(Bomb(3))).unwrap());
    }
    check(&executor, &netns, worker);
    let handle = executor.spawn(&netns, || panic_any(Bomb(3))).unwrap();
    eventually("the job is finished", || handle.is_finished());
    drop(handle);
    check(&executor, &netns, worker);
}

#[test]
fn panic_while_a_cancelled_closure_is_dropped_is_survived() {
    let (executor, netns, worker) = set_up();
    let held = Held::new(&executor, &netns);
    let bomb = Bomb(2);
    let queued = executor.spawn(&netns, move || drop(bomb)).unwrap();
    assert!(queued.cancel());
    assert!(queued.join().unwrap_err().is_cancelled());
    held.end();
    check(&executor, &netns, worker);
}

#[test]
fn closure_and_result_are_dropped_in_the_jobs_namespace_when_nobody_waits() {
    struct Witness(std::sync::mpsc::Sender<netns_exec::NetnsId>);
    impl Drop for Witness {
        fn drop(&mut self) {
            let _ = self.0.send(here());
        }
    }
    let (executor, netns, _) = set_up();
    let (sender, receiver) = std::sync::mpsc::channel();
    let gate = Gate::new();
    let pass = gate.pass();
    let witness = Witness(sender.clone());
    // The result of a job whose handle is gone.
    drop(executor.spawn(&netns, move || {
        pass.stop();
        witness
    }));
    gate.wait_for(1);
    // The closure of a job that was cancelled.
    let witness = Witness(sender);
    let cancelled = executor.spawn(&netns, move || drop(witness)).unwrap();
    assert!(cancelled.cancel());
    drop(cancelled);
    gate.open();
    let seen: Vec<_> = receiver.iter().collect();
    assert_eq!(seen, [netns.id(); 2]);
}

#[test]
fn panics_from_many_threads_reach_those_who_made_them() {
    let executor = with_workers(3);
    let netns = fresh();
    let shared = Arc::new(());
    thread::scope(|scope| {
        for number in 0..20_u32 {
            let (executor, netns, shared) = (&executor, &netns, &shared);
            scope.spawn(move || {
                for round in 0..50_u32 {
                    let mine = (number, round, Arc::clone(shared));
                    let payload = panic_of(|| executor.run(netns, || panic_any(mine)));
                    let (a, b, _) = payload.downcast_ref::<(u32, u32, Arc<()>)>().unwrap();
                    assert_eq!((*a, *b), (number, round));
                }
            });
        }
    });
    assert_eq!(Arc::strong_count(&shared), 1);
    assert_eq!(executor.stats().panicked, 1000);
}
