//! Futures that are not `Send`, and stay on one worker.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use netns_exec::{Executor, Guard, Netns};
use netns_exec_tests::{GUARDS, Held, eventually, fresh, here, tid, within};
use nix::sched::{CloneFlags, setns};
use pollster::block_on;

use super::pinned_futures::{Traveller, text_of, turn};
use super::{with_idle, with_workers};

/// Says on which thread it was dropped, and is not `Send`.
struct Tells(Rc<RefCell<Vec<i32>>>, mpsc::Sender<i32>);

impl Drop for Tells {
    fn drop(&mut self) {
        self.0.borrow_mut().push(tid());
        self.1.send(tid()).unwrap();
    }
}

#[test]
fn future_is_built_polled_and_dropped_on_one_worker() {
    within("local futures", || {
        for guard in GUARDS {
            let executor = Executor::builder().guard(guard).workers_per_netns(3);
            let executor = executor.build().unwrap();
            let netns = fresh();
            let handles: Vec<_> = (0..50)
                .map(|_| {
                    let (dropped, drops) = mpsc::channel();
                    let handle = executor.spawn_local(&netns, move || {
                        let built = tid();
                        let tells = Tells(Rc::default(), dropped);
                        async move {
                            let _tells = tells;
                            for _ in 0..20 {
                                assert_eq!(tid(), built);
                                turn().await;
                            }
                            (here(), built)
                        }
                    });
                    (handle, drops)
                })
                .collect();
            let mut workers = Vec::new();
            for (handle, drops) in handles {
                let (place, built) = block_on(handle).unwrap();
                assert_eq!(place, netns.id());
                assert_eq!(drops.recv().unwrap(), built);
                workers.push(built);
            }
            workers.dedup();
            assert_eq!(workers.len(), 1, "they share one");
            assert_eq!(executor.stats().per_netns.len(), 1);
        }
    });
}

#[test]
fn local_future_is_polled_while_jobs_keep_all_other_workers() {
    within("a job that waits for a local future", || {
        let executor = with_idle(Some(Duration::ZERO));
        let netns = fresh();
        let held = Held::new(&executor, &netns);
        assert_eq!(
            executor
                .spawn_local(&netns, || async { here() })
                .join()
                .unwrap(),
            netns.id()
        );
        held.end();
        let (inner, near) = (executor.clone(), netns.clone());
        let job = executor.run(&netns, move || {
            inner.spawn_local(&near, || async { 7 }).join()
        });
        assert_eq!(job.unwrap().unwrap(), 7);
        eventually("all have left", || executor.stats().workers == 0);
    });
}

#[test]
fn waiting_for_a_local_future_in_another_one_is_an_error() {
    within("a wait for itself", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let (inner, near) = (executor.clone(), netns.clone());
        let handle = executor.spawn_local(&netns, move || async move {
            let other = inner.spawn_local(&near, || async { Rc::new(1).as_ref() + 1 });
            let waited = other.join().unwrap_err();
            let awaited = inner.spawn_local(&near, || async { 3 }).await.unwrap();
            (waited.raw_os_error(), awaited)
        });
        assert_eq!(handle.join().unwrap(), (Some(nix::libc::EDEADLK), 3));
    });
}

#[test]
fn panics_of_the_maker_and_of_polls_are_the_handles() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let maker = executor.spawn_local(&netns, || -> std::future::Ready<()> { panic!("no future") });
    let error = maker.join().unwrap_err();
    assert_eq!(text_of(error), "no future");
    let poll = executor.spawn_local(&netns, || async {
        let _local = Rc::new(1);
        turn().await;
        panic!("half way");
    });
    let error = poll.join().unwrap_err();
    assert_eq!(text_of(error), "half way");
    assert_eq!(
        executor
            .spawn_local(&netns, || async { here() })
            .join()
            .unwrap(),
        netns.id()
    );
}

#[test]
fn woken_from_elsewhere_cancelled_and_retired_they_end_where_they_are() {
    within("ends of local futures", || {
        let executor = with_workers(2);
        let netns = fresh();
        let spawn = |executor: &Executor, netns: &Netns| {
            let (future, places, signal) = Traveller::new();
            let (dropped, drops) = mpsc::channel();
            let handle = executor.spawn_local(netns, move || {
                let tells = Tells(Rc::default(), dropped);
                async move {
                    let _tells = tells;
                    (future.await, tid())
                }
            });
            signal.wait_until_polled();
            (handle, places, signal, drops)
        };
        let (handle, places, signal, drops) = spawn(&executor, &netns);
        for _ in 0..100 {
            signal.wake();
        }
        signal.finish();
        let (seven, worker) = handle.join().unwrap();
        assert_eq!((seven, drops.recv().unwrap()), (7, worker));
        assert!(places.polls().iter().all(|id| *id == netns.id()));

        let (handle, _, signal, drops) = spawn(&executor, &netns);
        assert!(handle.cancel());
        assert_eq!(drops.recv().unwrap(), worker);
        signal.wake();

        let (handle, places, signal, drops) = spawn(&executor, &netns);
        executor.retire(&netns).unwrap();
        assert_eq!(executor.stats().workers, 0);
        assert_eq!(
            (drops.recv().unwrap(), places.drops()),
            (worker, vec![netns.id()])
        );
        assert!(handle.join().unwrap_err().is_cancelled());
        signal.wake();
    });
}

#[test]
fn ten_thousand_local_futures_share_one_worker() {
    within("ten thousand local futures", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let count = Arc::new(AtomicUsize::new(0));
        let (sender, _) = tokio::sync::broadcast::channel::<()>(1);
        let handles: Vec<_> = (0..10_000)
            .map(|_| {
                let (mut told, count) = (sender.subscribe(), Arc::clone(&count));
                executor.spawn_local(&netns, move || async move {
                    let local = Rc::new(count);
                    told.recv().await.unwrap();
                    local.fetch_add(1, Ordering::Relaxed);
                })
            })
            .collect();
        sender.send(()).unwrap();
        handles
            .into_iter()
            .for_each(|handle| handle.join().unwrap());
        assert_eq!(count.load(Ordering::Relaxed), 10_000);
    });
}

#[test]
fn spoiled_worker_drops_its_local_futures_itself_and_others_go_on() {
    within("a spoiled local worker", || {
        let executor = Executor::builder().guard(Guard::Detect).build().unwrap();
        let netns = fresh();
        let (dropped, drops) = mpsc::channel();
        let (future, _places, signal) = Traveller::new();
        let victim = executor.spawn_local(&netns, move || {
            let tells = Tells(Rc::default(), dropped);
            async move {
                let _tells = tells;
                future.await
            }
        });
        signal.wait_until_polled();
        let thread = Arc::new(Mutex::new(0));
        let its = Arc::clone(&thread);
        let home = std::fs::File::open("/proc/self/ns/net").unwrap();
        let spoiler = executor.spawn_local(&netns, move || async move {
            *its.lock().unwrap() = tid();
            setns(&home, CloneFlags::CLONE_NEWNET).unwrap();
        });
        assert!(spoiler.join().unwrap_err().is_escaped());
        assert!(victim.join().unwrap_err().is_cancelled());
        assert_eq!(drops.recv().unwrap(), *thread.lock().unwrap());
        signal.wake();
        let next = executor.spawn_local(&netns, || async { (here(), tid()) });
        let (place, next) = next.join().unwrap();
        assert_eq!(place, netns.id());
        assert_ne!(next, *thread.lock().unwrap());
        executor.shutdown(None).unwrap();
    });
}
