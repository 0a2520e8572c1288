//! Futures: a wake-up is never lost, and the future has one owner at a time.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Poll, Waker};

use super::{check, returned};
use crate::error::{Error, Kind};
use crate::handoff::future::{Scheduler, Task, Unsent, draft};
use crate::handoff::handle::TaskHandle;
use crate::handoff::job::JobRef;
use crate::handoff::outcome::Door;
use crate::sync::{AtomicU32, Condvar, Mutex, Ordering, thread};

/// What workers take ready futures from, until there are none.
#[derive(Default)]
struct Ready {
    state: Mutex<(Vec<JobRef>, bool)>,
    changed: Condvar,
    /// How many schedulers have been told that their future is over.
    ended: AtomicUsize,
}

#[derive(Clone, Default)]
struct Row(Arc<Ready>);

impl Row {
    /// What a worker does: polls what is ready, until a future is over.
    fn serve(&self) {
        let mut state = self.0.state.lock();
        loop {
            if let Some(job) = state.0.pop() {
                drop(state);
                job.execute(&mut Door::here());
                state = self.0.state.lock();
            } else if state.1 {
                return;
            } else {
                self.0.changed.wait(&mut state);
            }
        }
    }

    fn worker(&self) -> thread::JoinHandle<()> {
        let row = self.clone();
        thread::spawn(move || row.serve())
    }

    fn ended(&self) -> usize {
        self.0.ended.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Scheduler for Row {
    fn schedule(&self, job: JobRef) {
        self.0.state.lock().0.push(job);
        self.0.changed.notify_one();
    }

    fn put_back(&self, job: JobRef) {
        self.schedule(job);
    }

    fn surround(&self, _waker: usize, f: &mut dyn FnMut()) {
        f();
    }

    fn is_served(&self) -> bool {
        true
    }

    fn depends_on_this_thread(&self) -> bool {
        false
    }

    fn over(&self) {
        (self.0.ended).fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0.state.lock().1 = true;
        self.0.changed.notify_all();
    }
}

/// Counts drops of the future.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        (self.0).fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// A future that has been polled once, and is ready when `news` have come.
struct Fixture {
    row: Row,
    news: Arc<[AtomicU32; 2]>,
    waker: Waker,
    task: Arc<dyn Task>,
    handle: TaskHandle<'static, u32>,
    drops: Arc<AtomicUsize>,
}

impl Fixture {
    fn new(news: u32) -> Fixture {
        let row = Row::default();
        let words = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let drops = Arc::new(AtomicUsize::new(0));
        let (sender, wakers) = std::sync::mpsc::channel();
        let mut sender = Some(sender);
        let (seen, dropped) = (Arc::clone(&words), Dropped(Arc::clone(&drops)));
        let future = poll_fn(move |cx| {
            let _dropped = &dropped;
            if let Some(sender) = sender.take() {
                sender.send(cx.waker().clone()).unwrap();
            }
            // Whatever order there is comes from the waking.
            let come = seen.iter().map(|word| word.load(Ordering::Relaxed)).sum();
            match u32::cmp(&come, &news) {
                std::cmp::Ordering::Less => Poll::Pending,
                _ => Poll::Ready(come),
            }
        });
        let Unsent { task, job, handle } = draft(future, || row.clone());
        job.execute(&mut Door::here());
        Fixture {
            row,
            news: words,
            waker: wakers.recv().unwrap(),
            task: task as Arc<dyn Task>,
            handle,
            drops,
        }
    }

    /// A thread that has news and wakes the future.
    fn sender(&self, word: usize) -> thread::JoinHandle<()> {
        let (news, waker) = (Arc::clone(&self.news), self.waker.clone());
        thread::spawn(move || {
            news[word].store(1, Ordering::Relaxed);
            waker.wake();
        })
    }

    fn drops(&self) -> usize {
        self.drops.load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[test]
fn news_of_every_waker_is_seen_by_a_poll() {
    check(3, || {
        let mut fixture = Fixture::new(2);
        let worker = fixture.row.worker();
        let other = fixture.sender(0);
        fixture.news[1].store(1, Ordering::Relaxed);
        fixture.waker.wake_by_ref();
        assert!(fixture.handle.wait_until(None));
        assert_eq!(returned(fixture.handle.take_outcome().unwrap()), 2);
        other.join().unwrap();
        worker.join().unwrap();
        assert_eq!((fixture.drops(), fixture.row.ended()), (1, 1));
    });
}

#[test]
fn two_workers_never_have_it_at_the_same_time() {
    check(2, || {
        let mut fixture = Fixture::new(2);
        let other = fixture.sender(0);
        let worker = fixture.row.worker();
        fixture.news[1].store(1, Ordering::Relaxed);
        fixture.waker.wake_by_ref();
        fixture.row.serve();
        assert!(fixture.handle.wait_until(None));
        assert_eq!(returned(fixture.handle.take_outcome().unwrap()), 2);
        other.join().unwrap();
        worker.join().unwrap();
        assert_eq!((fixture.drops(), fixture.row.ended()), (1, 1));
    });
}

#[test]
fn future_is_either_over_or_cancelled_and_dropped_once() {
    check(2, || {
        let mut fixture = Fixture::new(1);
        let worker = fixture.row.worker();
        let other = fixture.sender(0);
        let cancelled = fixture.handle.cancel();
        assert!(fixture.handle.wait_until(None));
        assert_eq!(fixture.handle.take_outcome().is_none(), cancelled);
        other.join().unwrap();
        worker.join().unwrap();
        assert_eq!((fixture.drops(), fixture.row.ended()), (1, 1));
    });
}

#[test]
fn closed_future_meets_its_waker() {
    check(2, || {
        let mut fixture = Fixture::new(1);
        let worker = fixture.row.worker();
        let other = fixture.sender(0);
        Arc::clone(&fixture.task).close();
        assert!(fixture.handle.wait_until(None));
        drop(fixture.handle.take_outcome().unwrap());
        other.join().unwrap();
        worker.join().unwrap();
        assert_eq!((fixture.drops(), fixture.row.ended()), (1, 1));
    });
}

#[test]
fn future_that_is_given_up_meets_its_waker() {
    check(2, || {
        let mut fixture = Fixture::new(2);
        let worker = fixture.row.worker();
        let other = fixture.sender(0);
        Arc::clone(&fixture.task).fail(Error::new(Kind::Cancelled, "gone"));
        assert!(fixture.handle.wait_until(None));
        drop(fixture.handle.take_outcome().unwrap());
        other.join().unwrap();
        worker.join().unwrap();
        assert_eq!((fixture.drops(), fixture.row.ended()), (1, 1));
    });
}
