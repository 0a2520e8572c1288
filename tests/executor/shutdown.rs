//! The end of an executor: by its last handle, or by `shutdown`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{Executor, TrySpawnError};
use netns_exec_tests::{Alone, Gate, Held, alone, eventually, fresh, here, within};

use super::{with_queue, with_workers};

/// Sends a message when it is dropped.
struct Bell(mpsc::Sender<&'static str>, &'static str);

impl Drop for Bell {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

#[test]
fn shutdown_drains_and_joins() {
    // A child that another test starts has all our descriptors until it executes
    // its program, and so keeps namespaces alive.
    alone!(Alone::AsIs);
    let netns = fresh();
    let count = Arc::new(AtomicU32::new(0));
    let executor = with_queue(1000);
    let clone = executor.clone();
    let held = Held::new(&executor, &netns);
    for _ in 0..500 {
        let count = Arc::clone(&count);
        drop(executor.spawn(&netns, move || count.fetch_add(1, Ordering::SeqCst)));
    }
    drop(clone);
    assert_eq!(count.load(Ordering::SeqCst), 0, "not the last");
    held.open();
    executor.shutdown(None).unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 500);
    let weak = netns.downgrade();
    drop(netns);
    assert_eq!(weak.upgrade(), None, "the workers' threads are gone");
}

#[test]
fn dropping_the_last_handle_waits_for_nothing_and_runs_what_was_accepted() {
    let netns = fresh();
    let executor = with_queue(1000);
    let held = Held::new(&executor, &netns);
    let handles: Vec<_> = (0..500)
        .map(|n| executor.spawn(&netns, move || n).unwrap())
        .collect();
    // Would wait for ever: the gate is closed.
    drop(executor);
    assert!(!held.job.is_finished());
    held.end();
    for (n, handle) in handles.into_iter().enumerate() {
        assert_eq!(handle.join().unwrap(), n);
    }
    let weak = netns.downgrade();
    drop(netns);
    eventually("the worker has left", || weak.upgrade().is_none());
}

#[test]
fn background_shutdown_holds_for_all_handles_and_waits_for_nothing() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let held = Held::new(&executor, &netns);
    let queued = executor.spawn(&netns, || 4).unwrap();
    executor.clone().shutdown_background();
    assert!(executor.run(&netns, || ()).unwrap_err().is_shut_down());
    held.end();
    assert_eq!(queued.join().unwrap(), 4);
    executor.shutdown(None).unwrap();
}

/// The room for a worker that a job asks for is not what it waits for, so that it is not
/// there that it is told.
#[test]
fn job_whose_executor_ends_meanwhile_gets_no_new_worker() {
    let (executor, netns, other) = (Executor::new().unwrap(), fresh(), fresh());
    let refused = executor.run(&netns, || {
        executor.clone().shutdown_background();
        executor.run(&other, || ())
    });
    let error = refused.unwrap().unwrap_err();
    assert!(error.is_shut_down(), "{error}");
}

#[test]
fn pinned_is_a_handle_too() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let pinned = executor.pin(&netns).unwrap();
    drop(executor);
    assert_eq!(pinned.run(here).unwrap(), netns.id());
}

#[test]
fn handles_are_good_after_the_executor_is_gone() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let handle = executor.spawn(&netns, || 5).unwrap();
    executor.shutdown(None).unwrap();
    assert!(handle.is_finished());
    assert_eq!(handle.join().unwrap(), 5);
}

#[test]
fn dropped_inside_one_of_its_jobs_it_runs_what_was_accepted() {
    within("an executor dropped inside its job", || {
        let netns = fresh();
        let executor = Executor::new().unwrap();
        let (sender, receiver) = mpsc::channel();
        let gate = Gate::new();
        let (pass, last) = (gate.pass(), executor.clone());
        let first = executor.spawn(&netns, move || {
            pass.stop();
            drop(last);
            7
        });
        gate.wait_for(1);
        let queued = executor.spawn(&netns, || 8).unwrap();
        let bell = Bell(sender, "rung");
        drop(executor.spawn(&netns, move || drop(bell)));
        drop(executor);
        gate.open();
        // Run or reported as cancelled: never left without an answer.
        assert_eq!(first.unwrap().join().unwrap(), 7);
        match queued.join() {
            Ok(value) => assert_eq!(value, 8),
            Err(error) => assert!(error.is_cancelled(), "{error}"),
        }
        assert_eq!(receiver.recv(), Ok("rung"));
        let weak = netns.downgrade();
        drop(netns);
        eventually("the worker has left", || weak.upgrade().is_none());
    });
}

#[test]
fn dropped_by_what_a_job_captured_or_returned_it_does_not_deadlock() {
    within("an executor dropped on its worker", || {
        let netns = fresh();
        for _ in 0..20 {
            // With the closure of a job, with its result, with a cancelled one.
            let executor = Executor::new().unwrap();
            let last = executor.clone();
            let (sender, receiver) = mpsc::channel();
            let bell = Bell(sender, "over");
            drop(executor.spawn(&netns, move || {
                let _bell = bell;
                last
            }));
            drop(executor);
            assert_eq!(receiver.recv(), Ok("over"));

            let executor = Executor::new().unwrap();
            let held = Held::new(&executor, &netns);
            let last = executor.clone();
            let queued = executor.spawn(&netns, move || drop(last)).unwrap();
            drop(executor);
            assert!(queued.cancel());
            assert!(queued.join().unwrap_err().is_cancelled());
            held.open();
        }
        let weak = netns.downgrade();
        drop(netns);
        eventually("all workers have left", || weak.upgrade().is_none());
    });
}

#[test]
fn dropped_inside_a_nested_job_it_does_not_deadlock() {
    within("an executor dropped inside a nested job", || {
        let (a, b) = (fresh(), fresh());
        let executor = Executor::new().unwrap();
        let last = executor.clone();
        let (aa, bb) = (a.clone(), b.clone());
        let handle = executor.spawn(&a, move || {
            let inner = last.clone();
            let (to_drop, again) = (last.clone(), last.clone());
            drop(last);
            let id = inner.run(&bb, move || {
                drop(to_drop);
                again.run(&aa, here).unwrap()
            });
            drop(inner);
            id.unwrap()
        });
        drop(executor);
        // The rest of the executor may be closed before the nested calls begin:
        // then they are refused, and the job panics over that.
        match handle.unwrap().join() {
            Ok(id) => assert_eq!(id, a.id()),
            Err(error) => panic!("handles were left, so nothing was closed: {error}"),
        }
    });
}

#[test]
fn handle_dropped_unjoined_lets_its_job_run() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let (sender, receiver) = mpsc::channel();
    for _ in 0..3 {
        let sender = sender.clone();
        drop(executor.spawn(&netns, move || sender.send(here()).unwrap()));
        assert_eq!(receiver.recv(), Ok(netns.id()));
    }
}

#[test]
fn shutdown_runs_what_was_accepted_and_refuses_the_rest_through_all_handles() {
    let executor = Executor::new().unwrap();
    let (netns, other) = (fresh(), fresh());
    let clone = executor.clone();
    let pinned = executor.pin(&netns).unwrap();
    let handles: Vec<_> = (0..50)
        .map(|n| executor.spawn(&netns, move || n).unwrap())
        .collect();
    executor.shutdown(None).unwrap();
    for (n, handle) in handles.into_iter().enumerate() {
        assert_eq!(handle.join().unwrap(), n);
    }
    for netns in [&netns, &other] {
        assert!(clone.run(netns, || ()).unwrap_err().is_shut_down());
        assert!(clone.spawn(netns, || ()).unwrap_err().is_shut_down());
        assert!(clone.pin(netns).unwrap_err().is_shut_down());
        match clone.try_spawn(netns, || 4) {
            Err(TrySpawnError::Failed(error, f)) => {
                assert!(error.is_shut_down(), "{error}");
                assert_eq!(f(), 4);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(pinned.run(|| ()).unwrap_err().is_shut_down());
    assert!(pinned.spawn(|| ()).unwrap_err().is_shut_down());
    let stats = clone.stats();
    assert_eq!((stats.workers, stats.done), (0, 50));
    clone.clone().shutdown(None).unwrap();
    clone.shutdown(Some(Duration::ZERO)).unwrap();
}

#[test]
fn shutdown_with_a_limit_returns_in_time_and_cancels_what_has_not_started() {
    within("shutdown with a time limit", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let held = Held::new(&executor, &netns);
        let ran = Arc::new(AtomicU32::new(0));
        let queued: Vec<_> = (0..10)
            .map(|_| {
                let ran = Arc::clone(&ran);
                executor
                    .spawn(&netns, move || ran.fetch_add(1, Ordering::SeqCst))
                    .unwrap()
            })
            .collect();
        let begin = Instant::now();
        // The last handle: its drop must not wait either.
        let error = executor
            .shutdown(Some(Duration::from_millis(50)))
            .unwrap_err();
        assert!(error.is_timed_out(), "{error}");
        assert!(begin.elapsed() >= Duration::from_millis(50));
        assert!(!held.job.is_finished());
        held.open();
        held.end();
        for handle in queued {
            let error = handle.join().unwrap_err();
            assert!(error.is_cancelled(), "{error}");
        }
        assert_eq!(ran.load(Ordering::SeqCst), 0);
        let weak = netns.downgrade();
        drop(netns);
        eventually("the worker has left", || weak.upgrade().is_none());
    });
}

#[test]
fn run_that_waits_in_the_queue_is_cancelled_by_the_limit() {
    within("shutdown with a time limit", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let held = Held::new(&executor, &netns);
        thread::scope(|scope| {
            let clone = executor.clone();
            let netns = &netns;
            let caller = scope.spawn(move || clone.run(netns, || unreachable!("cancelled")));
            eventually("the call is queued", || executor.stats().queued == 1);
            executor.shutdown(Some(Duration::ZERO)).unwrap_err();
            held.open();
            let result: Result<(), _> = caller.join().unwrap();
            assert!(result.unwrap_err().is_cancelled());
        });
        held.end();
    });
}

#[test]
fn limit_holds_for_jobs_of_namespaces_retired_before() {
    within("shutdown after retire", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let held = Held::new(&executor, &netns);
        let retire = thread::spawn({
            let (executor, netns) = (executor.clone(), netns.clone());
            move || executor.retire(&netns)
        });
        eventually("retiring has begun", || {
            executor.stats().per_netns.is_empty()
        });
        let error = executor
            .shutdown(Some(Duration::from_millis(20)))
            .unwrap_err();
        assert!(error.is_timed_out(), "{error}");
        held.end();
        retire.join().unwrap().unwrap();
    });
}

#[test]
fn limit_holds_for_the_second_who_shuts_down() {
    within("two shut down", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let held = Held::new(&executor, &netns);
        let clone = executor.clone();
        let first = thread::spawn(move || clone.shutdown(None));
        eventually("closing has begun", || {
            executor.stats().per_netns.is_empty()
        });
        let error = executor
            .shutdown(Some(Duration::from_millis(20)))
            .unwrap_err();
        assert!(error.is_timed_out(), "{error}");
        held.end();
        first.join().unwrap().unwrap();
    });
}

#[test]
fn sender_that_waits_for_room_at_shutdown_gets_an_answer() {
    within("senders at shutdown", || {
        for _ in 0..30 {
            let executor = with_queue(1);
            let netns = fresh();
            let held = Held::new(&executor, &netns);
            let senders: Vec<_> = (0..4)
                .map(|_| {
                    let (executor, netns) = (executor.clone(), netns.clone());
                    thread::spawn(move || executor.spawn(&netns, || 3)?.join())
                })
                .collect();
            eventually("the queue is full", || executor.stats().queued == 1);
            let closer = thread::spawn(move || executor.shutdown(None));
            held.end();
            closer.join().unwrap().unwrap();
            for sender in senders {
                match sender.join().unwrap() {
                    Ok(value) => assert_eq!(value, 3),
                    Err(error) => assert!(error.is_shut_down(), "{error}"),
                }
            }
        }
    });
}

#[test]
fn many_executors_come_and_go_without_a_trace() {
    // A child that another test starts has all our descriptors until it executes
    // its program, and so keeps namespaces alive.
    alone!(Alone::AsIs);
    let netns = fresh();
    for _ in 0..50 {
        let executor = with_workers(2);
        let handles = [(); 4].map(|()| executor.spawn(&netns, here).unwrap());
        executor.shutdown(None).unwrap();
        for handle in handles {
            assert_eq!(handle.join().unwrap(), netns.id());
        }
    }
    let weak = netns.downgrade();
    drop(netns);
    assert_eq!(weak.upgrade(), None);
}
