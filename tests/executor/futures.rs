//! Handles as futures, on a hand-made waker and on real runtimes.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use netns_exec::Executor;
use netns_exec_tests::{Gate, Held, eventually, fresh, here, panic_of, within};

use super::with_workers;

/// Counts its wake-ups.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Counter {
    fn new() -> (Arc<Counter>, Waker) {
        let counter = Arc::new(Counter::default());
        (Arc::clone(&counter), Waker::from(counter))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

#[test]
fn pending_handle_is_woken_once_and_then_ready() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let gate = Gate::new();
    let pass = gate.pass();
    let mut handle = pin!(
        executor
            .spawn(&netns, move || {
                pass.stop();
                here()
            })
            .unwrap()
    );
    let (counter, waker) = Counter::new();
    let mut cx = Context::from_waker(&waker);
    for _ in 0..10 {
        assert!(handle.as_mut().poll(&mut cx).is_pending());
    }
    gate.wait_for(1);
    assert_eq!(counter.count(), 0, "not before the job is over");
    gate.open();
    eventually("the waker was called", || counter.count() == 1);
    match handle.as_mut().poll(&mut cx) {
        Poll::Ready(result) => assert_eq!(result.unwrap(), netns.id()),
        Poll::Pending => panic!("woken, and not ready"),
    }
    executor.shutdown(None).unwrap();
    assert_eq!(counter.count(), 1);
}

#[test]
fn only_the_last_waker_is_woken_and_none_is_kept() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let gate = Gate::new();
    let pass = gate.pass();
    let mut handle = pin!(executor.spawn(&netns, move || pass.stop()).unwrap());
    let wakers: Vec<_> = (0..5).map(|_| Counter::new()).collect();
    for (_, waker) in &wakers {
        assert!(
            handle
                .as_mut()
                .poll(&mut Context::from_waker(waker))
                .is_pending()
        );
    }
    gate.open();
    let (last, _) = wakers.last().unwrap();
    eventually("the last waker was called", || last.count() == 1);
    assert!(wakers[..4].iter().all(|(counter, _)| counter.count() == 0));
    for (counter, _) in &wakers {
        // One is ours, the other its waker's.
        eventually("the waker was let go", || Arc::strong_count(counter) == 2);
    }
}

#[test]
fn handle_of_a_job_that_is_over_is_ready_without_a_wake_up() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let mut handle = pin!(executor.spawn(&netns, || 7).unwrap());
    eventually("the job is over", || handle.is_finished());
    let (counter, waker) = Counter::new();
    match handle.as_mut().poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(result) => assert_eq!(result.unwrap(), 7),
        Poll::Pending => panic!("finished, and not ready"),
    }
    assert_eq!(counter.count(), 0);
    let mut cx = Context::from_waker(&waker);
    // As every future, it panics when it is polled after it was ready.
    let _again = panic_of(|| handle.as_mut().poll(&mut cx).is_ready());
}

#[test]
fn cancelling_wakes_and_the_next_poll_says_so() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let held = Held::new(&executor, &netns);
    let mut handle = pin!(executor.spawn(&netns, || ()).unwrap());
    let (counter, waker) = Counter::new();
    let mut cx = Context::from_waker(&waker);
    assert!(handle.as_mut().poll(&mut cx).is_pending());
    assert!(handle.cancel());
    assert_eq!(counter.count(), 1);
    match handle.as_mut().poll(&mut cx) {
        Poll::Ready(result) => assert!(result.unwrap_err().is_cancelled()),
        Poll::Pending => panic!("cancelled, and not ready"),
    }
    held.end();
    executor.shutdown(None).unwrap();
    assert_eq!(counter.count(), 1);
}

#[test]
fn polled_first_the_handle_can_be_joined_like_any_other() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let gate = Gate::new();
    let pass = gate.pass();
    let mut handle = executor.spawn(&netns, move || {
        pass.stop();
        8
    });
    let handle_ref = handle.as_mut().unwrap();
    let (counter, waker) = Counter::new();
    let polled = std::pin::Pin::new(handle_ref).poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    gate.open();
    assert_eq!(handle.unwrap().join().unwrap(), 8);
    eventually("the waker was called all the same", || counter.count() == 1);
}

#[test]
fn block_on_without_a_runtime() {
    let executor = Executor::new().unwrap();
    let (a, b) = (fresh(), fresh());
    let ids = pollster::block_on(async {
        let (one, two) = (executor.spawn(&a, here)?, executor.spawn(&b, here)?);
        Ok::<_, netns_exec::Error>([two.await?, one.await?])
    });
    assert_eq!(ids.unwrap(), [b.id(), a.id()]);
    for number in 0..2000 {
        let handle = executor.spawn(&a, move || number).unwrap();
        assert_eq!(pollster::block_on(handle).unwrap(), number);
    }
}

fn tokio() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(4).enable_time().build().unwrap()
}

#[test]
fn tokio_awaits_thousands_and_its_threads_stay_where_they_are() {
    let home = here();
    within("tokio awaits", move || {
        let executor = Executor::new().unwrap();
        let spaces: Vec<_> = (0..4).map(|_| fresh()).collect();
        tokio().block_on(async {
            let tasks: Vec<_> = (0..2000)
                .map(|n| {
                    let (executor, netns) = (executor.clone(), spaces[n % 4].clone());
                    tokio::spawn(async move {
                        let id = executor.spawn(&netns, here).unwrap().await.unwrap();
                        assert_eq!(id, netns.id());
                        assert_eq!(here(), home);
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn tokio_select_gives_up_on_a_job_which_runs_all_the_same() {
    within("tokio select", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let gate = Gate::new();
        let pass = gate.pass();
        let ran = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&ran);
        tokio().block_on(async {
            let handle = executor.spawn(&netns, move || {
                pass.stop();
                count.fetch_add(1, Ordering::SeqCst);
            });
            tokio::select! {
                _ = handle.unwrap() => panic!("the gate is closed"),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            // Kept, it can be asked again afterwards.
            let mut queued = executor.spawn(&netns, || 3).unwrap();
            let early = tokio::time::timeout(Duration::from_millis(10), &mut queued).await;
            assert!(early.is_err());
            gate.open();
            assert_eq!(queued.await.unwrap(), 3);
        });
        assert_eq!(ran.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn tokio_select_then_cancel_stops_a_job_that_has_not_started() {
    within("tokio select and cancel", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let held = Held::new(&executor, &netns);
        tokio().block_on(async {
            let mut queued = executor
                .spawn(&netns, || unreachable!("cancelled"))
                .unwrap();
            tokio::select! {
                _ = &mut queued => panic!("it is behind another job"),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            assert!(queued.cancel());
            assert!(queued.await.unwrap_err().is_cancelled());
            held.open();
            held.job.await.unwrap();
        });
    });
}

#[test]
fn waking_is_not_lost_however_the_job_and_the_poll_meet() {
    within("polls race with jobs", || {
        let executor = with_workers(2);
        let netns = fresh();
        tokio().block_on(async {
            for round in 0..3000_usize {
                let handle = executor.spawn(&netns, move || {
                    for _ in 0..round % 50 {
                        std::hint::spin_loop();
                    }
                    round
                });
                assert_eq!(handle.unwrap().await.unwrap(), round);
            }
        });
    });
}
