//! Many jobs handed over at once.

use std::panic::panic_any;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use netns_exec::{Executor, JoinHandle, Netns};
use netns_exec_tests::{Gate, Held, eventually, fresh, here, panic_of, within};

use super::with_queue;

fn join_all<T>(handles: Vec<JoinHandle<T>>) -> Vec<T> {
    let join = |handle: JoinHandle<T>| handle.join().unwrap();
    handles.into_iter().map(join).collect()
}

/// Jobs that write their numbers down, in the order in which they run.
fn note(log: &Arc<Mutex<Vec<u32>>>, n: u32) -> impl FnOnce() -> u32 + Send + 'static {
    let log = Arc::clone(log);
    move || {
        log.lock().unwrap().push(n);
        n
    }
}

// order

#[test]
fn batch_runs_in_order_and_its_handles_are_in_order() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let pinned = executor.pin(&netns).unwrap();
    for size in [1, 2, 3, 64, 65, 1000] {
        let log = Arc::new(Mutex::new(Vec::new()));
        let jobs = (0..size).map(|n| note(&log, n));
        let handles = executor.spawn_batch(&netns, jobs).unwrap();
        assert!(join_all(handles).into_iter().eq(0..size));
        let jobs = (0..size).map(|n| note(&log, n));
        let handles = pinned.spawn_batch(jobs).unwrap();
        assert!(join_all(handles).into_iter().eq(0..size));
        let log = log.lock().unwrap();
        assert!(log.iter().copied().eq((0..size).chain(0..size)));
    }
    assert_eq!(executor.stats().workers, 1);
}

#[test]
fn batches_and_single_jobs_of_one_caller_run_in_order() {
    let executor = with_queue(5);
    let netns = fresh();
    let log = Arc::new(Mutex::new(Vec::new()));
    for round in 0..100 {
        let first = round * 10;
        let batch = (first..first + 9).map(|n| note(&log, n));
        drop(executor.spawn_batch(&netns, batch).unwrap());
        drop(executor.spawn(&netns, note(&log, first + 9)).unwrap());
    }
    executor.shutdown(None).unwrap();
    assert!(log.lock().unwrap().iter().copied().eq(0..1000));
}

#[test]
fn jobs_of_a_batch_run_in_its_namespace() {
    let executor = Executor::new().unwrap();
    let spaces = [fresh(), fresh(), fresh()];
    for netns in spaces.iter().cycle().take(30) {
        let handles = executor.spawn_batch(netns, [here; 3]).unwrap();
        assert_eq!(join_all(handles), [netns.id(); 3]);
    }
}

#[test]
fn jobs_of_different_types_are_boxed() {
    let executor = Executor::new().unwrap();
    let (text, number) = (String::from("text"), [7_u64; 100]);
    let jobs: Vec<Box<dyn FnOnce() -> usize + Send>> =
        vec![Box::new(move || text.len()), Box::new(move || number.len())];
    let handles = executor.spawn_batch(&fresh(), jobs).unwrap();
    assert_eq!(join_all(handles), [4, 100]);
}

// size

#[test]
fn batch_larger_than_the_queue_wakes_its_worker_and_gets_through() {
    within("batches larger than their queue", || {
        for depth in [1, 2, 7] {
            let executor = with_queue(depth);
            let netns = fresh();
            // The first starts the worker. Now and then the others find it asleep.
            for round in 0..100 {
                let jobs = (0..40).map(|n| move || n);
                let handles = executor.spawn_batch(&netns, jobs).unwrap();
                assert!(join_all(handles).into_iter().eq(0..40));
                if round % 10 == 0 {
                    thread::sleep(Duration::from_millis(2));
                }
            }
        }
    });
}

#[test]
fn many_send_batches_into_one_short_queue_and_every_job_runs_once() {
    within("batches of many callers", || {
        let executor = with_queue(3);
        let netns = fresh();
        let sum = Arc::new(AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for size in 0..30 {
                        let jobs = (0..size).map(|_| {
                            let sum = Arc::clone(&sum);
                            move || sum.fetch_add(1, Ordering::Relaxed)
                        });
                        join_all(executor.spawn_batch(&netns, jobs).unwrap());
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 8 * 435);
        assert_eq!(executor.stats().done, 8 * 435);
    });
}

#[test]
fn batch_without_jobs_starts_no_worker_and_never_fails() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let none: [fn(); 0] = [];
    assert!(executor.spawn_batch(&netns, none).unwrap().is_empty());
    assert_eq!(executor.stats().workers, 0);
    let pinned = executor.pin(&netns).unwrap();
    executor.clone().shutdown(None).unwrap();
    assert!(executor.spawn_batch(&netns, none).unwrap().is_empty());
    assert!(pinned.spawn_batch(none).unwrap().is_empty());
    executor.scope(|scope| assert!(scope.spawn_batch(&netns, none).unwrap().is_empty()));
}

// the iterator

/// Counts how many of its clones are alive.
type Alive = Arc<()>;

fn keep(alive: &Alive) -> impl FnOnce() + Send + 'static {
    let alive = Arc::clone(alive);
    move || drop(alive)
}

#[test]
fn panic_of_the_iterator_comes_back_and_no_job_runs() {
    let executor = with_queue(2);
    let netns = fresh();
    let ran = Arc::new(AtomicU32::new(0));
    let jobs = || {
        (0..10).map(|n| {
            if n == 7 {
                panic_any("the iterator's");
            }
            let ran = Arc::clone(&ran);
            move || ran.fetch_add(1, Ordering::SeqCst)
        })
    };
    for _ in 0..3 {
        let payload = panic_of(|| executor.spawn_batch(&netns, jobs()));
        assert_eq!(payload.downcast_ref(), Some(&"the iterator's"));
        let payload =
            panic_of(|| executor.scope(|scope| scope.spawn_batch(&netns, jobs()).map(drop)));
        assert_eq!(payload.downcast_ref(), Some(&"the iterator's"));
        assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
    }
    executor.shutdown(None).unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 0);
    assert_eq!(Arc::strong_count(&ran), 1, "their closures are dropped");
}

#[test]
fn iterator_may_use_the_executor() {
    within("an iterator that uses the executor", || {
        let executor = with_queue(2);
        let netns = fresh();
        let jobs = (0..20).map(|n| {
            let same = executor.run(&netns, || n).unwrap();
            let spawned = executor.spawn(&netns, move || same).unwrap();
            let batch = executor.spawn_batch(&netns, [move || n; 5]).unwrap();
            assert_eq!(join_all(batch), [n; 5]);
            if n == 10 {
                executor.retire(&netns).unwrap();
            }
            move || spawned.join().unwrap()
        });
        let handles = executor.spawn_batch(&netns, jobs).unwrap();
        assert!(join_all(handles).into_iter().eq(0..20));
    });
}

#[test]
fn iterator_that_shuts_the_executor_down_gets_the_error() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    executor.run(&netns, || ()).unwrap();
    let alive = Alive::default();
    let jobs = (0..3).map(|_| {
        executor.clone().shutdown(None).unwrap();
        keep(&alive)
    });
    let error = executor.spawn_batch(&netns, jobs).unwrap_err();
    assert!(error.is_shut_down(), "{error}");
    assert_eq!(Arc::strong_count(&alive), 1);
}

// from a job

#[test]
fn job_sends_a_batch_to_its_own_namespace() {
    within("a batch from a job", || {
        for (workers, depth) in [(1, 1), (1, 64), (2, 4)] {
            let builder = Executor::builder().workers_per_netns(workers);
            let executor = builder.queue_depth(depth).build().unwrap();
            let netns = fresh();
            for _ in 0..20 {
                let seen = executor.run(&netns, || {
                    let handles = executor.spawn_batch(&netns, [here; 50]).unwrap();
                    join_all(handles)
                });
                assert_eq!(seen.unwrap(), [netns.id(); 50]);
            }
        }
    });
}

#[test]
fn jobs_of_a_batch_send_batches() {
    fn spread(executor: &Executor, netns: &Netns, depth: u32) -> u32 {
        if depth == 0 {
            return 1;
        }
        let job = || {
            let (executor, netns) = (executor.clone(), netns.clone());
            move || spread(&executor, &netns, depth - 1)
        };
        let handles = executor.spawn_batch(netns, [job(), job(), job()]).unwrap();
        join_all(handles).into_iter().sum()
    }
    within("batches in batches", || {
        let executor = with_queue(2);
        assert_eq!(spread(&executor, &fresh(), 4), 81);
    });
}

// how single jobs end

#[test]
fn panic_of_a_job_concerns_no_other_of_its_batch() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let jobs = (0..9).map(|n| {
        move || {
            if n % 3 == 1 {
                panic_any(n);
            }
            n
        }
    });
    let handles = executor.spawn_batch(&netns, jobs).unwrap();
    for (n, handle) in (0..9).zip(handles) {
        match handle.join() {
            Ok(value) => assert_eq!(value, n),
            Err(error) => {
                assert_eq!(n % 3, 1, "{error}");
                assert_eq!(error.into_panic().unwrap().downcast_ref(), Some(&n));
            }
        }
    }
    let stats = executor.stats();
    assert_eq!((stats.workers, stats.done, stats.panicked), (1, 9, 3));
}

#[test]
fn cancelled_job_is_left_out_of_its_batch() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let held = Held::new(&executor, &netns);
    let log = Arc::new(Mutex::new(Vec::new()));
    let jobs = (0..5).map(|n| note(&log, n));
    let mut handles = executor.spawn_batch(&netns, jobs).unwrap();
    let cancelled = handles.remove(2);
    assert!(cancelled.cancel());
    held.end();
    assert_eq!(join_all(handles), [0, 1, 3, 4]);
    assert!(cancelled.join().unwrap_err().is_cancelled());
    assert_eq!(*log.lock().unwrap(), [0, 1, 3, 4]);
}

#[test]
fn batch_runs_whether_or_not_its_handles_are_kept() {
    let executor = Executor::new().unwrap();
    let (sender, receiver) = mpsc::channel();
    let jobs = (0..100).map(|n| {
        let sender = sender.clone();
        move || sender.send(n).unwrap()
    });
    drop(executor.spawn_batch(&fresh(), jobs).unwrap());
    drop(sender);
    assert!(receiver.iter().eq(0..100));
}

// several workers

#[test]
fn as_many_jobs_of_a_batch_as_workers_run_at_the_same_time() {
    within("jobs of a batch that wait for each other", || {
        for workers in [2, 3, 8] {
            let builder = Executor::builder().workers_per_netns(workers);
            let executor = builder.build().unwrap();
            let netns = fresh();
            for round in 0..50 {
                let all = Arc::new(Barrier::new(workers));
                let jobs = (0..workers).map(|_| {
                    let all = Arc::clone(&all);
                    move || all.wait().is_leader()
                });
                let handles = executor.spawn_batch(&netns, jobs).unwrap();
                let leaders = join_all(handles).into_iter().filter(|leader| *leader);
                assert_eq!(leaders.count(), 1);
                if round % 10 == 0 {
                    // Some rounds find them asleep.
                    thread::sleep(Duration::from_millis(2));
                }
            }
            assert_eq!(executor.stats().workers, workers);
        }
    });
}

#[test]
fn slow_job_of_a_batch_does_not_hold_up_the_others() {
    within("jobs of a batch beside a slow one", || {
        for depth in [2, 64] {
            let builder = Executor::builder().workers_per_netns(2);
            let executor = builder.queue_depth(depth).build().unwrap();
            let netns = fresh();
            for slow in (0..10).cycle().take(100) {
                let gate = Gate::new();
                let jobs = (0..10).map(|n| {
                    let pass = gate.pass();
                    move || {
                        if n == slow {
                            pass.stop();
                        }
                    }
                });
                let mut handles = executor.spawn_batch(&netns, jobs).unwrap();
                let slow = handles.remove(slow);
                join_all(handles);
                gate.open();
                slow.join().unwrap();
            }
        }
    });
}

// retire, shutdown

/// Hands over a batch of 20 from another thread, through a queue for 2 whose
/// worker is held up; returns when it waits for room.
fn stuck_batch(
    executor: &Executor,
    netns: &Netns,
    log: &Arc<Mutex<Vec<u32>>>,
) -> (Held, thread::JoinHandle<Vec<JoinHandle<u32>>>) {
    let held = Held::new(executor, netns);
    let jobs: Vec<_> = (0..20).map(|n| note(log, n)).collect();
    let (executor, netns) = (executor.clone(), netns.clone());
    let stats = executor.clone();
    let sender = thread::spawn(move || executor.spawn_batch(&netns, jobs).unwrap());
    eventually("the queue is full", || stats.stats().queued == 2);
    (held, sender)
}

#[test]
fn batch_that_meets_retirement_runs_in_order_nonetheless() {
    within("retire in the middle of a batch", || {
        for _ in 0..20 {
            let executor = with_queue(2);
            let netns = fresh();
            let log = Arc::new(Mutex::new(Vec::new()));
            let (held, sender) = stuck_batch(&executor, &netns, &log);
            let retire = thread::spawn({
                let (executor, netns) = (executor.clone(), netns.clone());
                move || executor.retire(&netns).unwrap()
            });
            eventually("it is retiring", || executor.stats().per_netns.is_empty());
            held.open();
            assert!(join_all(sender.join().unwrap()).into_iter().eq(0..20));
            retire.join().unwrap();
            assert!(log.lock().unwrap().iter().copied().eq(0..20));
        }
    });
}

#[test]
fn batches_race_with_retirement_and_every_job_runs_once() {
    within("retire of a namespace that gets batches", || {
        for depth in [1, 64] {
            let executor = with_queue(depth);
            let netns = fresh();
            let pinned = executor.pin(&netns).unwrap();
            let count = Arc::new(AtomicU32::new(0));
            thread::scope(|scope| {
                let sender = scope.spawn(|| {
                    for round in 0..200 {
                        let jobs = (0..10).map(|_| {
                            let count = Arc::clone(&count);
                            move || count.fetch_add(1, Ordering::Relaxed)
                        });
                        let handles = match round % 2 {
                            0 => executor.spawn_batch(&netns, jobs),
                            _ => pinned.spawn_batch(jobs),
                        };
                        join_all(handles.unwrap());
                    }
                });
                while !sender.is_finished() {
                    executor.retire(&netns).unwrap();
                }
            });
            assert_eq!(count.load(Ordering::Relaxed), 2000);
        }
    });
}

#[test]
fn batch_that_meets_shutdown_runs_or_says_why_not() {
    within("shutdown in the middle of a batch", || {
        for _ in 0..20 {
            let executor = with_queue(2);
            let netns = fresh();
            let log = Arc::new(Mutex::new(Vec::new()));
            let (held, sender) = stuck_batch(&executor, &netns, &log);
            let closer = thread::spawn(move || executor.shutdown(None).unwrap());
            held.open();
            let mut ran = Vec::new();
            for handle in sender.join().unwrap() {
                match handle.join() {
                    Ok(n) => ran.push(n),
                    Err(error) => assert!(error.is_shut_down(), "{error}"),
                }
            }
            closer.join().unwrap();
            assert!(ran.starts_with(&[0, 1]), "these had been accepted");
            assert_eq!(ran, *log.lock().unwrap());
        }
    });
}

#[test]
fn batch_that_is_given_up_by_a_shutdown_is_cancelled() {
    within("shutdown with a limit in the middle of a batch", || {
        let executor = with_queue(2);
        let netns = fresh();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (held, sender) = stuck_batch(&executor, &netns, &log);
        let error = executor.shutdown(Some(Duration::ZERO)).unwrap_err();
        assert!(error.is_timed_out(), "{error}");
        held.open();
        for handle in sender.join().unwrap() {
            let error = handle.join().unwrap_err();
            assert!(error.is_cancelled() || error.is_shut_down(), "{error}");
        }
        assert!(log.lock().unwrap().is_empty());
    });
}

#[test]
fn batch_that_cannot_be_served_fails_as_a_whole() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let pinned = executor.pin(&netns).unwrap();
    executor.retire(&netns).unwrap();
    let alive = Alive::default();
    let jobs = || [(); 5].map(|()| keep(&alive));

    executor.clone().shutdown(None).unwrap();
    let error = executor.spawn_batch(&netns, jobs()).unwrap_err();
    assert!(error.is_shut_down(), "{error}");
    let error = pinned.spawn_batch(jobs()).unwrap_err();
    assert!(error.is_shut_down(), "{error}");
    executor.scope(|scope| {
        let error = scope.spawn_batch(&netns, jobs()).unwrap_err();
        assert!(error.is_shut_down(), "{error}");
    });
    assert_eq!(Arc::strong_count(&alive), 1, "their closures are dropped");

    let executor = Executor::new().unwrap();
    let pinned = executor.pin(&netns).unwrap();
    executor.retire(&netns).unwrap();
    drop(netns);
    let error = pinned.spawn_batch(jobs()).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(Arc::strong_count(&alive), 1, "their closures are dropped");
}

// scope

#[test]
fn batch_of_a_scope_borrows_and_gives_back_borrows() {
    let executor = with_queue(2);
    let (a, b) = (fresh(), fresh());
    let text = String::from("some text to borrow");
    let mut lengths = [0; 4];
    let words: Vec<&str> = text.split(' ').collect();
    let firsts = executor.scope(|scope| {
        let pairs = lengths.iter_mut().zip(&words);
        let jobs = pairs.map(|(length, word)| || *length = word.len());
        drop(scope.spawn_batch(&a, jobs).unwrap());
        let jobs = words.iter().map(|word| || &word[..1]);
        let handles = scope.spawn_batch(&b, jobs).unwrap();
        let firsts = handles.into_iter().map(|handle| handle.join().unwrap());
        firsts.collect::<String>()
    });
    assert_eq!(firsts, "sttb");
    assert_eq!(lengths, [4, 4, 2, 6]);
}

#[test]
fn scope_waits_for_batches_whose_handles_were_forgotten() {
    let executor = with_queue(4);
    let netns = fresh();
    for _ in 0..50 {
        let over = AtomicU32::new(0);
        executor.scope(|scope| {
            let job = || over.fetch_add(1, Ordering::Relaxed);
            std::mem::forget(scope.spawn_batch(&netns, [job; 20]).unwrap());
        });
        assert_eq!(over.load(Ordering::Relaxed), 20);
    }
}

#[test]
fn unjoined_panic_in_a_batch_ends_its_scope_with_one() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let over = AtomicU32::new(0);
    let payload = panic_of(|| {
        executor.scope(|scope| {
            let over = &over;
            let jobs = (0..5).map(|n| {
                move || {
                    assert_ne!(n, 2);
                    over.fetch_add(1, Ordering::Relaxed);
                }
            });
            drop(scope.spawn_batch(&netns, jobs).unwrap());
        })
    });
    assert_eq!(payload.downcast_ref(), Some(&"a scoped job panicked"));
    assert_eq!(over.load(Ordering::Relaxed), 4);
}
