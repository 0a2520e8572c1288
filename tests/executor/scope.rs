//! Jobs that borrow, in parallel.

use std::panic::panic_any;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, mpsc};

use netns_exec::{Executor, Netns, Scope, ScopedJoinHandle};
use netns_exec_tests::{Gate, eventually, fresh, here, panic_of, within};

use super::with_queue;

#[test]
fn jobs_borrow_and_give_back_borrows() {
    let executor = Executor::new().unwrap();
    let (a, b) = (fresh(), fresh());
    let text = String::from("some text");
    let mut left = vec![1, 2];
    let mut right = vec![3];
    let words = executor.scope(|scope| {
        scope.spawn(&a, || left.push(30)).unwrap();
        scope.spawn(&b, || right.push(40)).unwrap();
        let one = scope.spawn(&a, || &text[..4]).unwrap();
        let two = scope.spawn(&b, || &text[5..]).unwrap();
        [one.join().unwrap(), two.join().unwrap()]
    });
    assert_eq!(words, ["some", "text"]);
    assert_eq!((left, right), (vec![1, 2, 30], vec![3, 40]));
}

#[test]
fn jobs_of_a_scope_run_in_parallel() {
    within("jobs that wait for each other", || {
        let executor = Executor::new().unwrap();
        let spaces = [fresh(), fresh(), fresh(), fresh()];
        let all = Barrier::new(spaces.len());
        let ids = executor.scope(|scope| {
            let job = |_: &Netns| {
                all.wait();
                here()
            };
            let spawn = |netns| scope.spawn(netns, move || job(netns)).unwrap();
            let handles: Vec<_> = spaces.iter().map(spawn).collect();
            let ids = handles.into_iter().map(|handle| handle.join().unwrap());
            ids.collect::<Vec<_>>()
        });
        assert!(ids.into_iter().eq(spaces.iter().map(Netns::id)));
    });
}

#[test]
fn scope_returns_when_every_job_is_over_joined_or_not() {
    let executor = with_queue(4);
    let spaces = [fresh(), fresh()];
    for _ in 0..50 {
        let over = AtomicU32::new(0);
        executor.scope(|scope| {
            for n in 0..20 {
                let job = || over.fetch_add(1, Ordering::Relaxed);
                drop(scope.spawn(&spaces[n % 2], job).unwrap());
            }
        });
        assert_eq!(over.load(Ordering::Relaxed), 20);
    }
    executor.scope(|_| ());
}

#[test]
fn scope_waits_for_jobs_whose_handles_were_forgotten() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let over = AtomicU32::new(0);
    executor.scope(|scope| {
        let job = || over.fetch_add(1, Ordering::Relaxed);
        std::mem::forget(scope.spawn(&netns, job).unwrap());
    });
    assert_eq!(over.load(Ordering::Relaxed), 1);
}

#[test]
fn unjoined_panic_ends_the_scope_with_one_after_all_jobs_are_over() {
    let executor = Executor::new().unwrap();
    let (a, b) = (fresh(), fresh());
    let gate = Gate::new();
    let over = AtomicU32::new(0);
    std::thread::scope(|threads| {
        let scope = threads.spawn(|| {
            panic_of(|| {
                let pass = gate.pass();
                executor.scope(|scope| {
                    drop(scope.spawn(&a, || panic!("no caller sees this")).unwrap());
                    let job = || {
                        pass.stop();
                        over.fetch_add(1, Ordering::Relaxed);
                    };
                    let handle = scope.spawn(&b, job).unwrap();
                    drop(handle);
                    gate.wait_for(1);
                    scope.spawn(&a, || ()).unwrap().join().unwrap();
                })
            })
        });
        gate.wait_for(1);
        assert!(!scope.is_finished());
        gate.open();
        let payload = scope.join().unwrap();
        assert_eq!(payload.downcast_ref(), Some(&"a scoped job panicked"));
    });
    assert_eq!(over.load(Ordering::Relaxed), 1);
    assert_eq!(executor.run(&a, here).unwrap(), a.id());
}

#[test]
fn panic_counts_whether_the_job_ended_before_or_after_its_handle() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let _ended_before = panic_of(|| {
        executor.scope(|scope| {
            let handle = scope.spawn(&netns, || panic!("first")).unwrap();
            eventually("the job is over", || handle.is_finished());
        });
    });
    let gate = Gate::new();
    let _ended_after = panic_of(|| {
        executor.scope(|scope| {
            let pass = gate.pass();
            drop(scope.spawn(&netns, move || {
                pass.stop();
                panic!("second")
            }));
            gate.open();
        });
    });
}

#[test]
fn joined_panic_is_the_joiners() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let payload = executor.scope(|scope| {
        let handle = scope.spawn(&netns, || panic_any(17_u8)).unwrap();
        handle.join().unwrap_err().into_panic().unwrap()
    });
    assert_eq!(payload.downcast_ref(), Some(&17_u8));
}

#[test]
fn panic_in_the_closure_comes_first_and_waits_for_the_jobs() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let gate = Gate::new();
    let over = AtomicU32::new(0);
    let pass = gate.pass();
    let payload = panic_of(|| {
        executor.scope(|scope| {
            let job = || {
                pass.stop();
                over.fetch_add(1, Ordering::Relaxed);
                panic!("of the job");
            };
            drop(scope.spawn(&netns, job).unwrap());
            gate.open();
            panic_any("of the closure")
        })
    });
    assert_eq!(payload.downcast_ref(), Some(&"of the closure"));
    assert_eq!(over.load(Ordering::Relaxed), 1);
}

#[test]
fn error_in_the_closure_is_returned_after_the_jobs_are_over() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let over = AtomicU32::new(0);
    let result: Result<(), &str> = executor.scope(|scope| {
        scope
            .spawn(&netns, || over.fetch_add(1, Ordering::Relaxed))
            .unwrap();
        Err("early")?;
        scope
            .spawn(&netns, || unreachable!("never spawned"))
            .unwrap();
        Ok(())
    });
    assert_eq!(result, Err("early"));
    assert_eq!(over.load(Ordering::Relaxed), 1);
}

#[test]
fn jobs_spawn_on_their_scope() {
    within("jobs spawn on their scope", || {
        let executor = with_queue(1);
        let spaces = [fresh(), fresh()];
        let seen = Mutex::new(Vec::new());
        fn grow<'s>(
            scope: &'s Scope<'s, '_>,
            spaces: &'s [Netns; 2],
            seen: &'s Mutex<Vec<u32>>,
            depth: u32,
        ) {
            let job = move || {
                assert_eq!(here(), spaces[depth as usize % 2].id());
                seen.lock().unwrap().push(depth);
                if depth > 0 {
                    grow(scope, spaces, seen, depth - 1);
                    grow(scope, spaces, seen, depth - 1);
                }
            };
            drop(scope.spawn(&spaces[depth as usize % 2], job).unwrap());
        }
        executor.scope(|scope| grow(scope, &spaces, &seen, 6));
        assert_eq!(seen.into_inner().unwrap().len(), (1 << 7) - 1);
    });
}

#[test]
fn job_joins_a_handle_of_its_scope() {
    within("a job joins another job of its scope", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let sum = executor.scope(|scope| {
            let inner = scope.spawn(&netns, || 20).unwrap();
            let outer = scope.spawn(&netns, move || inner.join().unwrap() + 1);
            let nested = scope.spawn(&netns, || scope.spawn(&netns, || 100).unwrap().join());
            outer.unwrap().join().unwrap() + nested.unwrap().join().unwrap().unwrap()
        });
        assert_eq!(sum, 121);
    });
}

#[test]
fn cancelled_job_of_a_scope_never_runs() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let gate = Gate::new();
    let ran = AtomicU32::new(0);
    executor.scope(|scope| {
        let pass = gate.pass();
        drop(scope.spawn(&netns, move || pass.stop()).unwrap());
        gate.wait_for(1);
        let queued: ScopedJoinHandle<'_, u32> = scope
            .spawn(&netns, || ran.fetch_add(1, Ordering::Relaxed))
            .unwrap();
        assert!(!queued.is_finished());
        assert!(queued.cancel());
        assert!(queued.is_finished());
        assert!(queued.join().unwrap_err().is_cancelled());
        gate.open();
    });
    assert_eq!(ran.load(Ordering::Relaxed), 0);
}

#[test]
fn scope_on_an_executor_that_was_shut_down_fails_at_spawn() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    executor.clone().shutdown(None).unwrap();
    executor.scope(|scope| {
        assert!(scope.spawn(&netns, || ()).unwrap_err().is_shut_down());
    });
}

#[test]
fn what_jobs_wrote_is_visible_when_the_scope_ends() {
    let executor = Executor::new().unwrap();
    let spaces = [fresh(), fresh(), fresh()];
    let (sender, receiver) = mpsc::channel();
    for round in 0..200 {
        let mut cells = [0; 3];
        executor.scope(|scope| {
            for (cell, netns) in cells.iter_mut().zip(&spaces) {
                scope.spawn(netns, move || *cell = round).unwrap();
            }
        });
        sender.send(cells).unwrap();
        assert_eq!(receiver.recv().unwrap(), [round; 3]);
    }
}
