//! What is awaited where its other form blocks: no thread of a runtime is kept, nothing is
//! lost by giving up, and no runtime is needed.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{Executor, JoinHandle, Netns, NetnsId, in_netns};
use netns_exec_tests::late::{current_thread, never_blocks, open_later, slow_to_start};
use netns_exec_tests::{
    Alone, Gate, Held, Over, TempName, alone, eventually, fresh, here, threads_named, tid, within,
};

use super::{with_births_at, with_queue, with_workers};

#[test]
fn measure_finds_what_blocks() {
    let found = std::panic::catch_unwind(|| {
        let prepare = || (slow_to_start(), fresh());
        never_blocks("spawn", prepare, |(executor, netns)| async move {
            executor.spawn(&netns, || ()).unwrap().await.unwrap();
        });
    });
    assert!(found.is_err(), "spawn waits for a birth");
}

#[test]
fn birth_keeps_no_runtime_waiting() {
    let prepare = || (slow_to_start(), fresh());
    never_blocks("spawn_async", prepare, |(executor, netns)| async move {
        let id = executor.spawn_async(&netns, here).await.unwrap().await;
        assert_eq!(id.unwrap(), netns.id());
    });
    never_blocks("pin_async", prepare, |(executor, netns)| async move {
        let pinned = executor.pin_async(&netns).await.unwrap();
        let id = pinned.spawn_async(here).await.unwrap().await;
        assert_eq!(id.unwrap(), netns.id());
    });
}

#[test]
fn full_queue_keeps_no_runtime_waiting() {
    let prepare = || (with_queue(1), fresh());
    never_blocks("spawn_async", prepare, |(executor, netns)| async move {
        let gate = Gate::new();
        let pass = gate.pass();
        let held = executor.spawn_async(&netns, move || pass.stop()).await;
        open_later(gate);
        let mut handles = Vec::new();
        for n in 0..20 {
            handles.push(executor.spawn_async(&netns, move || n).await.unwrap());
        }
        for (n, handle) in handles.into_iter().enumerate() {
            assert_eq!(handle.await.unwrap(), n);
        }
        held.unwrap().await.unwrap();
    });
}

#[test]
fn limit_of_workers_keeps_no_runtime_waiting() {
    let prepare = || {
        let executor = Executor::builder().max_workers(1).build().unwrap();
        (executor, fresh(), fresh())
    };
    never_blocks(
        "spawn_async",
        prepare,
        |(executor, busy, netns)| async move {
            let gate = Gate::new();
            let pass = gate.pass();
            let held = executor.spawn_async(&busy, move || pass.stop()).await;
            open_later(gate);
            let id = executor.spawn_async(&netns, here).await.unwrap().await;
            assert_eq!(id.unwrap(), netns.id());
            held.unwrap().await.unwrap();
        },
    );
}

#[test]
fn end_keeps_no_runtime_waiting() {
    type End = fn(Executor, Netns) -> Pin<Box<dyn Future<Output = ()>>>;
    let ends: [(&str, End); 5] = [
        ("drop", |executor, _| Box::pin(async { drop(executor) })),
        ("shutdown_background", |executor, _| {
            Box::pin(async { executor.shutdown_background() })
        }),
        ("shutdown_async", |executor, _| {
            Box::pin(async { executor.shutdown_async(None).await.unwrap() })
        }),
        ("shutdown_async with a limit", |executor, _| {
            Box::pin(async {
                let limit = Some(Duration::from_millis(20));
                let error = executor.shutdown_async(limit).await.unwrap_err();
                assert!(error.is_timed_out(), "{error}");
            })
        }),
        ("retire_async", |executor, netns| {
            Box::pin(async move { executor.retire_async(&netns).await.unwrap() })
        }),
    ];
    for (what, end) in ends {
        let prepare = || (Executor::new().unwrap(), fresh());
        never_blocks(what, prepare, |(executor, netns)| async move {
            let gate = Gate::new();
            let pass = gate.pass();
            let job = executor.spawn_async(&netns, move || pass.stop()).await;
            open_later(gate);
            end(executor, netns).await;
            job.unwrap().await.unwrap();
        });
    }
}

#[test]
fn futures_keep_no_runtime_waiting_for_a_birth() {
    let prepare = || (slow_to_start(), fresh());
    never_blocks("spawn_future", prepare, |(executor, netns)| async move {
        let id = executor.spawn_future(&netns, async { here() }).await;
        assert_eq!(id.unwrap(), netns.id());
    });
    never_blocks("spawn_local", prepare, |(executor, netns)| async move {
        let id = executor.spawn_local(&netns, || async { here() }).await;
        assert_eq!(id.unwrap(), netns.id());
    });
    never_blocks("#[in_netns]", prepare, |(executor, netns)| async move {
        assert_eq!(place(executor, netns.clone()).await, netns.id());
    });
    never_blocks("of a pin", prepare, |(executor, netns)| async move {
        let pinned = executor.pin_async(&netns).await.unwrap();
        // Its next one is another group's.
        executor.retire_async(&netns).await.unwrap();
        let id = pinned.spawn_future(async { here() }).await;
        assert_eq!(id.unwrap(), netns.id());
    });
}

#[in_netns(ns = netns, executor = executor)]
async fn place(executor: Executor, netns: Netns) -> NetnsId {
    here()
}

#[test]
fn futures_keep_no_runtime_waiting_for_a_busy_worker() {
    let prepare = || {
        let builder = Executor::builder().queue_depth(1).max_workers(1);
        let (executor, netns) = (builder.build().unwrap(), fresh());
        let held = Held::new(&executor, &netns);
        (executor, netns, held)
    };
    never_blocks("spawn_future", prepare, |prepared| async move {
        let (executor, netns, Held { job, gate }) = prepared;
        open_later(gate);
        let (wakes, woken) = tokio::sync::oneshot::channel();
        let waits = executor.spawn_future(&netns, woken);
        let futures = (0..100).map(|n| executor.spawn_future(&netns, async move { n }));
        let futures: Vec<_> = futures.collect();
        // By the runtime's thread.
        wakes.send(()).unwrap();
        for (n, future) in futures.into_iter().enumerate() {
            assert_eq!(future.await.unwrap(), n);
        }
        waits.await.unwrap().unwrap();
        job.await.unwrap();
    });
    never_blocks("without room", prepare, |prepared| async move {
        let (executor, _busy, Held { job, gate }) = prepared;
        let netns = Netns::new_async().await.unwrap();
        open_later(gate);
        let local = executor.spawn_local(&netns, || async { here() });
        assert_eq!(local.await.unwrap(), netns.id());
        job.await.unwrap();
    });
}

/// A future whose poll goes on until it is let go.
fn held_in_a_poll(executor: &Executor, netns: &Netns) -> (JoinHandle<()>, Gate) {
    let gate = Gate::new();
    let pass = gate.pass();
    let future = executor.spawn_future(netns, async move {
        pass.stop();
        std::future::pending().await
    });
    gate.wait_for(1);
    (future, gate)
}

#[test]
fn end_of_a_future_keeps_no_runtime_waiting() {
    type End = fn(JoinHandle<()>, Executor, Netns) -> Pin<Box<dyn Future<Output = ()>>>;
    let ends: [(&str, End); 6] = [
        ("drop", |future, _, _| Box::pin(async { drop(future) })),
        ("abort_on_drop", |future, _, _| {
            Box::pin(async { drop(future.abort_on_drop()) })
        }),
        ("cancel", |future, _, _| {
            Box::pin(async move {
                assert!(future.cancel());
                assert!(future.await.unwrap_err().is_cancelled());
            })
        }),
        ("retire_async", |_, executor, netns| {
            Box::pin(async move { executor.retire_async(&netns).await.unwrap() })
        }),
        ("shutdown_async", |_, executor, _| {
            Box::pin(async { executor.shutdown_async(None).await.unwrap() })
        }),
        ("drop of the executor", |_, executor, _| {
            Box::pin(async { drop(executor) })
        }),
    ];
    for (what, end) in ends {
        let prepare = || {
            let (executor, netns) = (Executor::new().unwrap(), fresh());
            let (future, gate) = held_in_a_poll(&executor, &netns);
            (executor, netns, future, gate)
        };
        never_blocks(what, prepare, |prepared| async move {
            let (executor, netns, future, gate) = prepared;
            open_later(gate);
            end(future, executor, netns).await;
        });
    }
}

#[test]
fn namespaces_keep_no_runtime_waiting() {
    never_blocks("namespaces", TempName::new, |name| async move {
        let netns = Netns::new_async().await.unwrap();
        netns.set_loopback_up_async().await.unwrap();
        let named = Netns::create_async(&*name).await.unwrap();
        assert_ne!(named, netns);
        Netns::delete_async(&*name).await.unwrap();
    });
}

#[test]
fn time_limit_around_a_full_queue_holds() {
    within("a time limit", || {
        let (executor, netns) = (with_queue(1), fresh());
        let held = Held::new(&executor, &netns);
        let _queued = executor.spawn(&netns, || ()).unwrap();
        let begin = Instant::now();
        let late = current_thread().block_on(async {
            let call = async { executor.spawn_async(&netns, || 1).await?.await };
            tokio::time::timeout(Duration::from_millis(50), call).await
        });
        assert!(late.is_err());
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        held.end();
    });
}

/// A waker that counts, and may tell which thread has called it.
#[derive(Default)]
struct Woken {
    times: AtomicUsize,
    by: Mutex<Vec<i32>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.by.lock().unwrap().push(tid());
        self.times.fetch_add(1, Ordering::SeqCst);
    }
}

/// Polls once; the waker is told of later.
fn poll_once<F: Future>(future: Pin<&mut F>, woken: &Arc<Woken>) -> Poll<F::Output> {
    let waker = Waker::from(Arc::clone(woken));
    future.poll(&mut Context::from_waker(&waker))
}

/// Tells when it is dropped, and on which thread.
struct Bell(mpsc::Sender<i32>);

impl Drop for Bell {
    fn drop(&mut self) {
        let _ = self.0.send(tid());
    }
}

#[test]
fn given_up_half_way_it_leaves_nothing_and_its_closure_is_dropped_there() {
    let (executor, netns) = (with_queue(1), fresh());
    let held = Held::new(&executor, &netns);
    let queued = executor.spawn(&netns, || ()).unwrap();
    let (sender, receiver) = mpsc::channel();
    for polls in 0..3 {
        let bell = Bell(sender.clone());
        let job = move || {
            drop(bell);
            unreachable!("given up")
        };
        let woken = Arc::new(Woken::default());
        let mut future = Box::pin(executor.spawn_async::<_, ()>(&netns, job));
        for _ in 0..polls {
            assert!(poll_once(future.as_mut(), &woken).is_pending());
        }
        assert!(receiver.try_recv().is_err());
        drop(future);
        assert_eq!(receiver.try_recv(), Ok(tid()));
        // Its waker as well, but for a wake-up that is under way.
        eventually("the waker was let go", || Arc::strong_count(&woken) == 1);
    }
    held.end();
    queued.join().unwrap();
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
    executor.shutdown(None).unwrap();
}

#[test]
fn room_that_a_dropped_task_was_woken_for_goes_to_the_next() {
    let (executor, netns) = (with_queue(1), fresh());
    let held = Held::new(&executor, &netns);
    let _queued = executor.spawn(&netns, || ()).unwrap();
    let tasks: Vec<_> = (0..3).map(|_| Arc::new(Woken::default())).collect();
    let mut futures: Vec<_> = tasks
        .iter()
        .map(|woken| {
            let mut future = Box::pin(executor.spawn_async(&netns, here));
            assert!(poll_once(future.as_mut(), woken).is_pending());
            future
        })
        .collect();
    held.end();
    // The first in line, and by a thread that is no worker.
    eventually("the first is woken", || {
        tasks[0].times.load(Ordering::SeqCst) == 1
    });
    drop(futures.remove(0));
    eventually("the second is woken", || {
        tasks[1].times.load(Ordering::SeqCst) == 1
    });
    let second = futures.remove(0);
    let handle = pollster::block_on(second).unwrap();
    assert_eq!(handle.join().unwrap(), netns.id());
    eventually("the third is woken", || {
        tasks[2].times.load(Ordering::SeqCst) == 1
    });
    let handle = pollster::block_on(futures.remove(0)).unwrap();
    assert_eq!(handle.join().unwrap(), netns.id());
    let worker = executor.run(&netns, tid).unwrap();
    for task in &tasks {
        assert!(!task.by.lock().unwrap().contains(&worker));
    }
}

#[test]
fn many_wait_for_few_places_and_each_job_runs_once_without_a_runtime() {
    within("many tasks", || {
        let executor = Executor::builder()
            .queue_depth(2)
            .max_workers(2)
            .build()
            .unwrap();
        let spaces: Vec<_> = (0..4).map(|_| fresh()).collect();
        let ran = Arc::new(AtomicU32::new(0));
        thread::scope(|scope| {
            for n in 0..8 {
                let (executor, spaces, ran) = (&executor, &spaces, Arc::clone(&ran));
                scope.spawn(move || {
                    for round in 0..100 {
                        let netns = &spaces[(n + round) % 4];
                        let ran = Arc::clone(&ran);
                        let job = move || {
                            ran.fetch_add(1, Ordering::SeqCst);
                            here()
                        };
                        let handle = pollster::block_on(executor.spawn_async(netns, job));
                        assert_eq!(pollster::block_on(handle.unwrap()).unwrap(), netns.id());
                    }
                });
            }
        });
        assert_eq!(ran.load(Ordering::SeqCst), 800);
        assert_eq!(executor.stats().done, 800);
    });
}

#[test]
fn half_of_many_tasks_given_up_takes_no_place_from_the_rest() {
    within("half given up", || {
        let executor = with_queue(1);
        let netns = fresh();
        let ran = Arc::new(AtomicU32::new(0));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_time()
            .build()
            .unwrap();
        let kept = runtime.block_on(async {
            let tasks: Vec<_> = (0..400_u64)
                .map(|n| {
                    let (executor, netns) = (executor.clone(), netns.clone());
                    let ran = Arc::clone(&ran);
                    tokio::spawn(async move {
                        let job = move || ran.fetch_add(1, Ordering::SeqCst);
                        let call = async { executor.spawn_async(&netns, job).await?.await };
                        match n % 2 {
                            0 => call.await.map(|_| 1).unwrap(),
                            _ => {
                                let limit = Duration::from_micros(n * 7);
                                match tokio::time::timeout(limit, call).await {
                                    Ok(done) => done.map(|_| 1).unwrap(),
                                    Err(_) => 0,
                                }
                            }
                        }
                    })
                })
                .collect();
            let mut kept = 0;
            for task in tasks {
                kept += task.await.unwrap();
            }
            kept
        });
        assert!(kept >= 200, "{kept}");
        executor.clone().shutdown(None).unwrap();
        assert!(ran.load(Ordering::SeqCst) >= kept);
    });
}

#[test]
fn failing_birth_is_the_error_of_all_that_wait_for_it() {
    let gate = Gate::new();
    let pass = Mutex::new(Some(gate.pass()));
    let builder = Executor::builder().on_worker_start(move |_| {
        let pass = pass.lock().unwrap().take();
        match pass {
            Some(pass) => {
                pass.stop();
                Err(io::Error::from_raw_os_error(nix::libc::ENOTTY))
            }
            None => Ok(()),
        }
    });
    let (executor, netns) = (builder.build().unwrap(), fresh());
    let woken = Arc::new(Woken::default());
    let mut futures: Vec<_> = (0..3)
        .map(|_| Box::pin(executor.spawn_async(&netns, here)))
        .collect();
    for future in &mut futures {
        assert!(poll_once(future.as_mut(), &woken).is_pending());
    }
    gate.wait_for(1);
    gate.open();
    for future in futures {
        let error = pollster::block_on(future).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOTTY), "{error}");
    }
    let handle = pollster::block_on(executor.spawn_async(&netns, here));
    assert_eq!(handle.unwrap().join().unwrap(), netns.id());
}

#[test]
fn birth_goes_on_without_the_task_that_asked_for_it() {
    let gate = Gate::new();
    let (executor, netns) = (with_births_at(&gate), fresh());
    let woken = Arc::new(Woken::default());
    let mut future = Box::pin(executor.spawn_async(&netns, || ()));
    assert!(poll_once(future.as_mut(), &woken).is_pending());
    gate.wait_for(1);
    drop(future);
    gate.open();
    eventually("the worker is there", || executor.stats().workers == 1);
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
    assert_eq!(gate.arrived(), 1, "and it is that one");
}

#[test]
fn shut_down_meanwhile_each_waiting_task_is_told() {
    within("tasks at shutdown", || {
        for _ in 0..20 {
            let (executor, netns) = (with_queue(1), fresh());
            let held = Held::new(&executor, &netns);
            let queued = executor.spawn(&netns, || ()).unwrap();
            let woken = Arc::new(Woken::default());
            let mut futures: Vec<_> = (0..4)
                .map(|_| Box::pin(executor.spawn_async(&netns, || 3)))
                .collect();
            for future in &mut futures {
                assert!(poll_once(future.as_mut(), &woken).is_pending());
            }
            let clone = executor.clone();
            let closer = thread::spawn(move || clone.shutdown(None));
            held.end();
            queued.join().unwrap();
            for future in futures {
                let answer = pollster::block_on(async { future.await?.await });
                match answer {
                    Ok(value) => assert_eq!(value, 3),
                    Err(error) => assert!(error.is_shut_down(), "{error}"),
                }
            }
            closer.join().unwrap().unwrap();
            let late = pollster::block_on(executor.spawn_async(&netns, || ()));
            assert!(late.unwrap_err().is_shut_down());
            let late = pollster::block_on(executor.pin_async(&netns));
            assert!(late.unwrap_err().is_shut_down());
        }
    });
}

#[test]
fn awaited_in_a_job_for_its_own_namespace_it_does_not_deadlock() {
    within("awaiting in a job", || {
        let (executor, netns) = (with_queue(1), fresh());
        let (inner, own) = (executor.clone(), netns.clone());
        let sums = executor.run(&netns, move || {
            pollster::block_on(async {
                let mut handles = Vec::new();
                for n in 0..20 {
                    handles.push(inner.spawn_async(&own, move || n).await.unwrap());
                }
                let mut sum = 0;
                for handle in handles {
                    sum += handle.await.unwrap();
                }
                sum
            })
        });
        assert_eq!(sums.unwrap(), 190);
    });
}

#[test]
fn retired_meanwhile_the_job_runs_on_a_new_worker() {
    within("spawn_async beside retire", || {
        let executor = with_workers(1);
        let netns = fresh();
        let over = Over::default();
        thread::scope(|scope| {
            let _over = over.comes_with_drop();
            scope.spawn(|| {
                while !over.has_come() {
                    pollster::block_on(executor.retire_async(&netns)).unwrap();
                }
            });
            let pinned = executor.pin(&netns).unwrap();
            for n in 0..300 {
                let one = pollster::block_on(executor.spawn_async(&netns, move || n));
                assert_eq!(one.unwrap().join().unwrap(), n);
                let one = pollster::block_on(pinned.spawn_async(move || n));
                assert_eq!(one.unwrap().join().unwrap(), n);
            }
        });
    });
}

#[test]
fn retire_async_ends_the_last_reference() {
    // A child that another test starts has all our descriptors until it executes
    // its program, and so keeps namespaces alive.
    alone!(Alone::AsIs);
    let executor = Executor::new().unwrap();
    let netns = fresh();
    executor.run(&netns, || ()).unwrap();
    pollster::block_on(executor.retire_async(&netns)).unwrap();
    let weak = netns.downgrade();
    drop(netns);
    assert_eq!(weak.upgrade(), None, "the workers' threads are gone");
}

#[test]
fn retire_async_begins_with_the_call_and_goes_on_without_its_future() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let held = Held::new(&executor, &netns);
    let before = executor.spawn(&netns, tid).unwrap();
    drop(executor.retire_async(&netns));
    let after = executor.run(&netns, tid).unwrap();
    held.end();
    assert_ne!(before.join().unwrap(), after);
}

#[test]
fn in_a_job_the_end_is_not_waited_for() {
    within("the end in a job", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let (inner, own) = (executor.clone(), netns.clone());
        executor
            .run(&netns, move || {
                pollster::block_on(inner.retire_async(&own)).unwrap();
                pollster::block_on(inner.shutdown_async(None)).unwrap();
            })
            .unwrap();
        assert!(executor.run(&netns, || ()).unwrap_err().is_shut_down());
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn shutdown_async_runs_what_was_accepted_and_joins() {
    alone!(Alone::AsIs);
    let (executor, netns) = (with_queue(100), fresh());
    let held = Held::new(&executor, &netns);
    let handles: Vec<_> = (0..50)
        .map(|n| executor.spawn(&netns, move || n).unwrap())
        .collect();
    let end = executor.shutdown_async(None);
    held.end();
    pollster::block_on(end).unwrap();
    for (n, handle) in handles.into_iter().enumerate() {
        assert!(handle.is_finished());
        assert_eq!(handle.join().unwrap(), n);
    }
    let weak = netns.downgrade();
    drop(netns);
    assert_eq!(weak.upgrade(), None, "the workers' threads are gone");
}

#[test]
fn helper_threads_are_at_home_and_end_when_there_is_nothing_to_do() {
    alone!(Alone::AsIs);
    let helpers = || threads_named("netns-wake") + threads_named("netns-aside");
    let executor = Executor::new().unwrap();
    let netns = pollster::block_on(Netns::new_async()).unwrap();
    let handle = pollster::block_on(executor.spawn_async(&netns, here)).unwrap();
    assert_eq!(pollster::block_on(handle).unwrap(), netns.id());
    assert!(helpers() > 0, "the measure finds them");
    assert_eq!(executor.audit().unwrap().strays().count(), 0);
    executor.shutdown(None).unwrap();
    eventually("they have ended", || helpers() == 0);
}
