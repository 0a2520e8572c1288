//! Futures that any worker of their namespace polls.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use netns_exec::{Executor, Guard, Netns, NetnsId};
use netns_exec_tests::{
    Alone, GUARDS, Gate, Held, TempNetns, alone, eventually, fresh, here, panic_text, tid, within,
};
use nix::sched::{CloneFlags, setns};
use pollster::block_on;

use super::{with_idle, with_queue, with_workers};

/// Where a future was, each time that it was polled, and when it was dropped.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<(Vec<NetnsId>, Vec<NetnsId>)>>);

impl Places {
    pub(super) fn polls(&self) -> Vec<NetnsId> {
        self.0.lock().unwrap().0.clone()
    }

    pub(super) fn drops(&self) -> Vec<NetnsId> {
        self.0.lock().unwrap().1.clone()
    }
}

/// Is pending until it is told, and writes down where it is. Not `Unpin`, as most.
pub(super) struct Traveller {
    pub(super) places: Places,
    pub(super) shared: Arc<Signal>,
    _pinned: std::marker::PhantomPinned,
}

/// What a [`Traveller`] waits for.
#[derive(Default)]
pub(super) struct Signal {
    done: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Signal {
    pub(super) fn wake(&self) {
        let waker = self.waker.lock().unwrap().clone();
        waker.expect("polled before").wake();
    }

    pub(super) fn waker(&self) -> Option<Waker> {
        self.waker.lock().unwrap().clone()
    }

    pub(super) fn finish(&self) {
        self.done.store(true, Ordering::SeqCst);
        let waker = self.waker.lock().unwrap().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn wait_until_polled(&self) {
        eventually("the future is polled", || self.waker().is_some());
    }
}

impl Traveller {
    pub(super) fn new() -> (Traveller, Places, Arc<Signal>) {
        let (places, shared) = (Places::default(), Arc::<Signal>::default());
        let traveller = Traveller {
            places: places.clone(),
            shared: Arc::clone(&shared),
            _pinned: std::marker::PhantomPinned,
        };
        (traveller, places, shared)
    }
}

impl Future for Traveller {
    type Output = u32;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u32> {
        self.places.0.lock().unwrap().0.push(here());
        // First the waker, then the look.
        *self.shared.waker.lock().unwrap() = Some(cx.waker().clone());
        match self.shared.done.load(Ordering::SeqCst) {
            true => Poll::Ready(7),
            false => Poll::Pending,
        }
    }
}

impl Drop for Traveller {
    fn drop(&mut self) {
        self.places.0.lock().unwrap().1.push(here());
    }
}

/// Gives its turn up once.
pub(super) async fn turn() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What a job or a poll panicked with.
pub(super) fn text_of(error: netns_exec::Error) -> String {
    panic_text(|| std::panic::resume_unwind(error.into_panic().expect("a panic")))
}

#[test]
fn every_poll_and_the_drop_are_in_the_namespace() {
    for guard in GUARDS {
        let executor = Executor::builder().guard(guard).build().unwrap();
        let netns = fresh();
        let (future, places, signal) = Traveller::new();
        let handle = executor.spawn_future(&netns, future);
        for polls in 1..20 {
            eventually("it is polled", || places.polls().len() >= polls);
            signal.wait_until_polled();
            signal.wake();
        }
        signal.finish();
        assert_eq!(block_on(handle).unwrap(), 7);
        assert!(places.polls().iter().all(|id| *id == netns.id()));
        assert_eq!(places.drops(), [netns.id()], "{guard:?}");
        let stats = executor.stats();
        assert_eq!((stats.futures, stats.done, stats.running), (0, 1, 0));
    }
}

#[test]
fn spawning_does_not_wait_for_the_first_worker_and_errors_come_from_the_handle() {
    let executor = Executor::builder().max_workers(1).build().unwrap();
    let (busy, netns) = (fresh(), fresh());
    let held = Held::new(&executor, &busy);
    // There is no room for its worker, which is waited for elsewhere.
    let handles: Vec<_> = (0..20)
        .map(|number| executor.spawn_future(&netns, async move { (here(), number) }))
        .collect();
    assert!(handles.iter().all(|handle| !handle.is_finished()));
    held.end();
    for (number, handle) in handles.into_iter().enumerate() {
        assert_eq!(handle.join().unwrap(), (netns.id(), number));
    }

    let executor = Executor::new().unwrap();
    let other = executor.clone();
    executor.shutdown(None).unwrap();
    let (future, places, _signal) = Traveller::new();
    let error = other.spawn_future(&netns, future).join().unwrap_err();
    assert!(error.is_shut_down(), "{error}");
    assert_eq!(places.drops(), [here()], "it was never anywhere else");
}

#[test]
fn panic_of_a_poll_is_the_handles_and_the_worker_goes_on() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let worker = executor.run(&netns, tid).unwrap();
    let (kept, places, _signal) = Traveller::new();
    let handle = executor.spawn_future(&netns, async move {
        let _kept = kept;
        turn().await;
        panic!("after {} poll", 1);
    });
    let error = handle.join().unwrap_err();
    assert!(error.is_panic(), "{error}");
    assert_eq!(text_of(error), "after 1 poll");
    assert_eq!(places.drops(), [netns.id()]);
    assert_eq!(executor.run(&netns, tid).unwrap(), worker);
    let stats = executor.stats();
    assert_eq!((stats.panicked, stats.futures), (1, 0));
}

#[test]
fn cancelled_future_is_dropped_in_its_namespace() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let (future, places, signal) = Traveller::new();
    let handle = executor.spawn_future(&netns, future);
    signal.wait_until_polled();
    assert!(handle.cancel() && !handle.cancel());
    assert!(handle.join().unwrap_err().is_cancelled());
    eventually("it is dropped", || executor.stats().futures == 0);
    assert_eq!(places.drops(), [netns.id()]);
    // Before its first poll, too.
    let held = Held::new(&executor, &netns);
    let (future, places, _signal) = Traveller::new();
    let handle = executor.spawn_future(&netns, future);
    assert!(handle.cancel());
    held.end();
    eventually("it is dropped", || places.drops() == [netns.id()]);
    assert!(places.polls().is_empty());
}

#[test]
fn result_that_no_handle_takes_is_dropped_on_the_worker() {
    struct Result(mpsc::Sender<NetnsId>);
    impl Drop for Result {
        fn drop(&mut self) {
            self.0.send(here()).unwrap();
        }
    }
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let (dropped, drops) = mpsc::channel();
    // A handle that is dropped after the result is there drops it where it is.
    let held = Held::new(&executor, &netns);
    drop(executor.spawn_future(&netns, async move {
        turn().await;
        Result(dropped)
    }));
    held.end();
    assert_eq!(drops.recv().unwrap(), netns.id());
}

#[test]
fn waker_works_a_thousand_times_and_after_all_is_over() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let (future, places, signal) = Traveller::new();
    let handle = executor.spawn_future(&netns, future);
    signal.wait_until_polled();
    let waker = signal.waker().unwrap();
    let held = Held::new(&executor, &netns);
    for _ in 0..1000 {
        waker.wake_by_ref();
    }
    let before = places.polls().len();
    held.end();
    eventually("it is polled", || places.polls().len() > before);
    signal.finish();
    assert_eq!(handle.join().unwrap(), 7);
    // The first of them may find by its end that the signal has come.
    let polls = places.polls().len() - before;
    assert!(polls <= 2, "a thousand wake-ups are one poll, not {polls}");
    executor.shutdown(None).unwrap();
    for _ in 0..1000 {
        waker.wake_by_ref();
    }
    drop(signal);
    waker.wake();
    assert_eq!(places.polls().len(), before + polls);
    assert_eq!(places.drops(), [netns.id()]);
}

#[test]
fn wakers_keep_no_namespace_and_no_worker() {
    // A child that another test starts has all our descriptors until it executes
    // its program, and so keeps namespaces alive.
    alone!(Alone::AsIs);
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let (future, _places, signal) = Traveller::new();
    drop(executor.spawn_future(&netns, future));
    signal.wait_until_polled();
    let waker = signal.waker().unwrap();
    executor.retire(&netns).unwrap();
    let weak = netns.downgrade();
    drop(netns);
    assert!(weak.upgrade().is_none(), "nothing but the waker is left");
    waker.wake();
    assert_eq!(executor.stats().workers, 0);
}

#[test]
fn ten_thousand_futures_share_one_worker() {
    within("ten thousand futures", || {
        let executor = with_idle(None);
        let netns = fresh();
        let workers = Arc::new(Mutex::new(Vec::new()));
        let (sender, _) = tokio::sync::broadcast::channel::<()>(1);
        let handles: Vec<_> = (0..10_000_usize)
            .map(|number| {
                let (mut told, workers) = (sender.subscribe(), Arc::clone(&workers));
                executor.spawn_future(&netns, async move {
                    told.recv().await.unwrap();
                    turn().await;
                    workers.lock().unwrap().push(tid());
                    assert_eq!(here(), Netns::current().unwrap().id());
                    number
                })
            })
            .collect();
        assert_eq!(executor.stats().futures, 10_000);
        sender.send(()).unwrap();
        for (number, handle) in handles.into_iter().enumerate() {
            assert_eq!(handle.join().unwrap(), number);
        }
        let mut workers = workers.lock().unwrap().clone();
        workers.dedup();
        assert_eq!(workers, [executor.run(&netns, tid).unwrap()]);
        assert_eq!(executor.stats().futures, 0);
    });
}

#[test]
fn storm_of_wakers_loses_none() {
    within("a wake storm", || {
        let executor = with_workers(2);
        let netns = fresh();
        for _ in 0..20 {
            let count = Arc::new(AtomicUsize::new(0));
            let waker = Arc::new(Mutex::new(None::<Waker>));
            let (counted, stored) = (Arc::clone(&count), Arc::clone(&waker));
            let handle = executor.spawn_future(
                &netns,
                poll_fn(move |cx| {
                    *stored.lock().unwrap() = Some(cx.waker().clone());
                    match counted.load(Ordering::Relaxed) {
                        8_000 => Poll::Ready(here()),
                        _ => Poll::Pending,
                    }
                }),
            );
            eventually("polled", || waker.lock().unwrap().is_some());
            let waker = waker.lock().unwrap().clone().unwrap();
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for _ in 0..1000 {
                            count.fetch_add(1, Ordering::Relaxed);
                            waker.wake_by_ref();
                        }
                    });
                }
            });
            assert_eq!(handle.join().unwrap(), netns.id());
        }
    });
}

#[test]
fn future_that_wakes_itself_for_ever_starves_neither_jobs_nor_other_futures() {
    within("a selfish future", || {
        let executor = with_idle(Some(Duration::from_millis(1)));
        let netns = fresh();
        let polls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&polls);
        let selfish = executor.spawn_future(
            &netns,
            poll_fn(move |cx| {
                count.fetch_add(1, Ordering::Relaxed);
                cx.waker().wake_by_ref();
                Poll::<()>::Pending
            }),
        );
        eventually("it goes round", || polls.load(Ordering::Relaxed) > 1000);
        for _ in 0..100 {
            assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
            assert_eq!(
                executor.spawn(&netns, here).unwrap().join().unwrap(),
                netns.id()
            );
            let other = executor.spawn_future(&netns, async {
                turn().await;
                here()
            });
            assert_eq!(other.join().unwrap(), netns.id());
        }
        // And neither does it outlive its namespace's workers.
        executor.retire(&netns).unwrap();
        assert!(selfish.join().unwrap_err().is_cancelled());
        assert_eq!(executor.stats().workers, 0);
    });
}

#[test]
fn woken_futures_need_no_room_in_the_queue() {
    within("a queue that is full", || {
        let executor = with_queue(1);
        let netns = fresh();
        let (future, places, signal) = Traveller::new();
        let handle = executor.spawn_future(&netns, future);
        signal.wait_until_polled();
        let held = Held::new(&executor, &netns);
        let queued = executor.spawn(&netns, || ()).unwrap();
        assert!(executor.try_spawn(&netns, || ()).is_err(), "full");
        // On this thread, which would never come back.
        signal.finish();
        let more = executor.spawn_future(&netns, async { 1 });
        held.end();
        queued.join().unwrap();
        assert_eq!((handle.join().unwrap(), more.join().unwrap()), (7, 1));
        assert_eq!(places.drops(), [netns.id()]);
    });
}

#[test]
fn idle_worker_stays_as_long_as_there_are_futures() {
    let executor = with_idle(Some(Duration::ZERO));
    let netns = fresh();
    let (future, _places, signal) = Traveller::new();
    let handle = executor.spawn_future(&netns, future);
    signal.wait_until_polled();
    let worker = executor.run(&netns, tid).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(executor.run(&netns, tid).unwrap(), worker);
    signal.finish();
    assert_eq!(handle.join().unwrap(), 7);
    eventually("the worker has left", || executor.stats().workers == 0);
}

#[test]
fn future_is_polled_while_the_worker_is_blocked_in_a_job_that_waits_for_it() {
    within("a job that waits for futures", || {
        let executor = with_idle(Some(Duration::ZERO));
        let netns = fresh();
        for _ in 0..50 {
            let (future, _places, signal) = Traveller::new();
            let handle = executor.spawn_future(&netns, future);
            signal.wait_until_polled();
            let gate = Gate::new();
            let pass = gate.pass();
            let job = executor.spawn(&netns, move || {
                pass.stop();
                handle.join().unwrap()
            });
            gate.wait_for(1);
            gate.open();
            // Its worker, the only one, may be blocked by now.
            signal.finish();
            assert_eq!(job.unwrap().join().unwrap(), 7);
        }
    });
}

#[test]
fn futures_wait_for_jobs_and_other_futures_of_their_only_worker() {
    within("futures that await", || {
        let executor = Executor::new().unwrap();
        let (netns, other) = (fresh(), fresh());
        let (inner, far) = (executor.clone(), other.clone());
        let near = netns.clone();
        let handle = executor.spawn_future(&netns, async move {
            let mut sum = 0;
            for number in 0..200 {
                sum += inner.spawn(&near, move || number).unwrap().await.unwrap();
                sum += inner
                    .spawn_future(&near, async move { number })
                    .await
                    .unwrap();
                assert_eq!(
                    inner.spawn_future(&far, async { here() }).await.unwrap(),
                    far.id()
                );
                // A poll that blocks, on a waker of its own, is stood in for as a job is.
                sum += block_on(inner.spawn(&near, move || number).unwrap()).unwrap();
                sum += inner.run(&near, move || number).unwrap();
            }
            sum
        });
        assert_eq!(handle.join().unwrap(), 4 * 199 * 100);
    });
}

#[test]
fn retired_namespace_drops_its_futures_before_its_workers_leave() {
    within("retirement", || {
        for workers in [1, 3] {
            let executor = with_workers(workers);
            let netns = fresh();
            let all: Vec<_> = (0..100).map(|_| Traveller::new()).collect();
            let mut handles = Vec::new();
            let mut places = Vec::new();
            for (future, place, _signal) in all {
                handles.push(executor.spawn_future(&netns, future));
                places.push(place);
            }
            // Until then they would be given up before they have a worker.
            executor.run(&netns, || ()).unwrap();
            executor.retire(&netns).unwrap();
            assert_eq!(executor.stats().workers, 0);
            for handle in handles {
                assert!(handle.is_finished());
                assert!(handle.join().unwrap_err().is_cancelled());
            }
            assert!(places.iter().all(|place| place.drops() == [netns.id()]));
            // And starts anew.
            assert_eq!(
                executor
                    .spawn_future(&netns, async { here() })
                    .join()
                    .unwrap(),
                netns.id()
            );
        }
    });
}

#[test]
fn retirement_that_comes_before_the_first_worker_has_told_every_handle() {
    within("early retirement", || {
        for round in 0..100 {
            let executor = Executor::new().unwrap();
            let netns = fresh();
            let handles: Vec<_> = (0..10)
                .map(|_| executor.spawn_future(&netns, std::future::pending::<()>()))
                .collect();
            if round % 2 == 0 {
                executor.retire(&netns).unwrap();
            } else {
                executor.shutdown(None).unwrap();
            }
            assert!(handles.iter().all(|handle| handle.is_finished()), "{round}");
            for handle in handles {
                let error = handle.join().unwrap_err();
                assert!(error.is_cancelled() || error.is_shut_down(), "{error}");
            }
        }
    });
}

#[test]
fn deleted_namespace_ends_its_futures_although_it_never_idles() {
    within("deletion", || {
        let executor = Executor::new().unwrap();
        let netns = TempNetns::new();
        let (future, places, signal) = Traveller::new();
        let waits = executor.spawn_future(&netns, future);
        let ticks = executor.spawn_future(&netns, async {
            loop {
                turn().await;
            }
        });
        signal.wait_until_polled();
        let id = netns.id();
        netns.delete();
        assert!(waits.join().unwrap_err().is_cancelled());
        assert!(ticks.join().unwrap_err().is_cancelled());
        assert_eq!(places.drops(), [id]);
        eventually("the workers have left", || executor.stats().workers == 0);
    });
}

#[test]
fn dropped_executor_waits_for_no_future() {
    within("an executor's end", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let (future, places, signal) = Traveller::new();
        let handle = executor.spawn_future(&netns, future);
        signal.wait_until_polled();
        drop(executor);
        assert!(handle.join().unwrap_err().is_cancelled());
        assert_eq!(places.drops(), [netns.id()]);
        signal.wake();
    });
}

#[test]
fn shutdown_with_a_timeout_drops_futures_where_they_belong() {
    within("shutdown with a job in the way", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let (future, places, signal) = Traveller::new();
        let handle = executor.spawn_future(&netns, future);
        signal.wait_until_polled();
        let held = Held::new(&executor, &netns);
        let error = executor
            .shutdown(Some(Duration::from_millis(10)))
            .unwrap_err();
        assert!(error.is_timed_out());
        assert!(!handle.is_finished(), "the worker is at a job");
        held.end();
        assert!(handle.join().unwrap_err().is_cancelled());
        assert_eq!(places.drops(), [netns.id()]);
    });
}

#[test]
fn worker_that_a_poll_has_spoiled_leaves_the_others_to_a_successor() {
    within("a spoiled worker", || {
        let executor = Executor::builder().guard(Guard::Detect).build().unwrap();
        let netns = fresh();
        let others: Vec<_> = (0..10).map(|_| Traveller::new()).collect();
        let mut handles = Vec::new();
        let mut kept = Vec::new();
        for (future, places, signal) in others {
            handles.push(executor.spawn_future(&netns, future));
            signal.wait_until_polled();
            kept.push((places, signal));
        }
        let worker = executor.run(&netns, tid).unwrap();
        let home = std::fs::File::open("/proc/self/ns/net").unwrap();
        let (captured, places, _signal) = Traveller::new();
        let spoiler = executor.spawn_future(&netns, async move {
            let _captured = captured;
            turn().await;
            setns(&home, CloneFlags::CLONE_NEWNET).unwrap();
            turn().await;
        });
        assert!(spoiler.join().unwrap_err().is_escaped());
        eventually("it is dropped in place", || places.drops() == [netns.id()]);
        for (handle, (places, signal)) in handles.into_iter().zip(kept) {
            signal.finish();
            assert_eq!(handle.join().unwrap(), 7);
            assert_eq!(places.drops(), [netns.id()]);
            assert!(places.polls().iter().all(|id| *id == netns.id()));
        }
        assert_ne!(executor.run(&netns, tid).unwrap(), worker);
    });
}

#[test]
fn pinned_namespace_takes_futures_and_follows_its_workers() {
    within("pinned", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let pinned = executor.pin(&netns).unwrap();
        assert_eq!(
            pinned.spawn_future(async { here() }).join().unwrap(),
            netns.id()
        );
        executor.retire(&netns).unwrap();
        assert_eq!(
            pinned.spawn_future(async { here() }).join().unwrap(),
            netns.id()
        );
        assert_eq!(
            pinned.spawn_local(|| async { here() }).join().unwrap(),
            netns.id()
        );
        executor.retire(&netns).unwrap();
        drop(netns);
        let error = pinned.spawn_future(async { here() }).join().unwrap_err();
        assert!(error.is_not_found(), "{error}");
    });
}

#[test]
fn hook_is_around_every_poll_and_every_drop_and_nowhere_else() {
    thread_local! {
        static DEPTH: std::cell::RefCell<Vec<&'static str>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    fn context() -> Vec<&'static str> {
        DEPTH.with(|it| it.borrow().clone())
    }
    /// Not `Send`, as a runtime's guard.
    struct Entered(std::marker::PhantomData<*const ()>);
    impl Drop for Entered {
        fn drop(&mut self) {
            DEPTH.with(|it| it.borrow_mut().pop());
        }
    }
    struct Tells(mpsc::Sender<Vec<&'static str>>);
    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.send(context()).unwrap();
        }
    }
    let executor = Executor::builder()
        .enter(|| {
            DEPTH.with(|it| it.borrow_mut().push("outer"));
            Entered(std::marker::PhantomData)
        })
        .around(|poll| {
            DEPTH.with(|it| it.borrow_mut().push("inner"));
            let _entered = Entered(std::marker::PhantomData);
            poll();
            poll();
        })
        // One that forgets to call.
        .around(|_poll| ())
        .build()
        .unwrap();
    let netns = fresh();
    let (dropped, drops) = mpsc::channel();
    let captured = Tells(dropped.clone());
    let handle = executor.spawn_future(&netns, async move {
        let _captured = captured;
        let first = context();
        turn().await;
        (first, context())
    });
    let inside = vec!["outer", "inner"];
    assert_eq!(handle.join().unwrap(), (inside.clone(), inside.clone()));
    assert_eq!(drops.recv().unwrap(), inside);
    let handle = executor.spawn_future(&netns, Box::pin(std::future::pending::<Tells>()));
    assert!(handle.cancel());
    assert!(executor.run(&netns, context).unwrap().is_empty());
    assert!(context().is_empty());

    let executor = Executor::builder()
        .enter(|| panic!("no runtime"))
        .build()
        .unwrap();
    let (future, places, _signal) = Traveller::new();
    let error = executor.spawn_future(&netns, future).join().unwrap_err();
    assert_eq!(text_of(error), "no runtime");
    assert_eq!(places.drops(), [netns.id()]);
}

#[test]
fn panic_of_a_futures_drop_ends_nothing() {
    struct Panics(Arc<AtomicUsize>);
    impl Drop for Panics {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
            panic!("in a drop");
        }
    }
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let worker = executor.run(&netns, tid).unwrap();
    let drops = Arc::new(AtomicUsize::new(0));
    let (future, _places, signal) = Traveller::new();
    let panics = Panics(Arc::clone(&drops));
    let handle = executor.spawn_future(&netns, async move {
        let _panics = panics;
        future.await
    });
    signal.wait_until_polled();
    assert!(handle.cancel());
    eventually("it is dropped", || executor.stats().futures == 0);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    assert_eq!(executor.run(&netns, tid).unwrap(), worker);
}
