//! The queue of one namespace: bounded, so that senders wait when it is full.
//!
//! A sender that finds no room says that it waits, fences, and tries once more; a
//! worker takes a job, fences, and looks whether a sender waits. At least one of
//! them sees the other.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;
use std::time::Duration;

use super::wakers::{Ticket, Wakers};
use crate::handoff::job::JobRef;
use crate::handoff::pace;
use crate::sync::{
    self, AtomicU32, Condvar, Mutex, Ordering, Receiver, Sender, TrySendError, fence,
};
use crate::sys;

/// See the module.
pub(crate) struct Queue {
    sender: Sender<Queued>,
    receiver: Receiver<Queued>,
    /// When it was last empty, or a job was taken, on the clock of [`Clock`].
    moved: AtomicU64,
    clock: Clock,
    /// Senders that wait for room.
    waiting: AtomicU32,
    room: Condvar,
    room_lock: Mutex<()>,
    /// Tasks that wait for room; `waiting` counts them too.
    tasks: Wakers,
}

struct Queued {
    job: JobRef,
    since: u64,
}

/// Tells how long jobs wait: in nanoseconds, of some starting point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// As of the last tick of the kernel's timer: enough to tell that a wait is long, and
    /// several times faster to read.
    Coarse,
    Fine,
}

impl Clock {
    fn now(self) -> u64 {
        if cfg!(loom) {
            return 0;
        }
        sys::time::monotonic(self == Clock::Coarse)
    }

    fn since(self, then: u64) -> Duration {
        Duration::from_nanos(self.now().saturating_sub(then))
    }
}

impl Queue {
    pub(crate) fn new(depth: usize, clock: Clock) -> Queue {
        let (sender, receiver) = sync::bounded(depth);
        Queue {
            sender,
            receiver,
            moved: AtomicU64::new(0),
            clock,
            waiting: AtomicU32::new(0),
            room: Condvar::new(),
            room_lock: Mutex::new(()),
            tasks: Wakers::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.receiver.len()
    }

    /// Puts a job in, if there is room.
    pub(crate) fn try_push(&self, job: JobRef) -> Result<(), JobRef> {
        let since = self.clock.now();
        if self.is_empty() {
            self.moved.store(since, Relaxed);
        }
        let queued = Queued { job, since };
        self.sender.try_send(queued).map_err(|error| match error {
            TrySendError::Full(queued) | TrySendError::Disconnected(queued) => queued.job,
        })
    }

    /// For how long no job has been taken although there was one.
    pub(crate) fn stands_still_for(&self) -> Duration {
        match self.is_empty() {
            true => Duration::ZERO,
            false => self.clock.since(self.moved.load(Relaxed)),
        }
    }

    /// Puts a job in, and waits for room.
    pub(crate) fn push(&self, mut job: JobRef) {
        if pace::spin_by_turns(|| !self.sender.is_full()) {
            match self.try_push(job) {
                Ok(()) => return,
                Err(back) => job = back,
            }
        }
        let mut guard = self.room_lock.lock();
        loop {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            // See the module: the other half is in `take`.
            fence(Ordering::SeqCst);
            let pushed = self.try_push(job);
            match pushed {
                Ok(()) => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    return;
                }
                Err(back) => job = back,
            }
            self.room.wait(&mut guard);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes a job, and tells a sender that there is room.
    pub(crate) fn take(&self) -> Option<JobRef> {
        self.take_timed().map(|(job, _waited)| job)
    }

    /// As [`take`](Queue::take), and says how long the job has waited.
    pub(crate) fn take_timed(&self) -> Option<(JobRef, Duration)> {
        let Queued { job, since } = self.receiver.try_recv().ok()?;
        self.moved.store(self.clock.now(), Relaxed);
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            drop(self.room_lock.lock());
            self.room.notify_one();
            self.wake_task();
        }
        Some((job, self.clock.since(since)))
    }

    /// Registers a task that found no room. It has to try once more after that.
    pub(crate) fn wait_for_room(&self, ticket: &Ticket, waker: &Waker) {
        if self.tasks.register(ticket, waker) {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
        // See the module: the other half is in `take`.
        fence(Ordering::SeqCst);
    }

    /// Notes that a task waits no more. One that was woken, and did not use the room that
    /// there was, passes it on.
    pub(crate) fn wait_no_more(&self, ticket: &Ticket, used: bool) {
        if self.tasks.remove(ticket) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        } else if !used {
            self.wake_task();
        }
    }

    fn wake_task(&self) {
        if self.tasks.wake_one() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes all there is.
    pub(crate) fn take_all(&self) -> Vec<JobRef> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Whether a sender that waited for room is about to wake up, with the queue empty
    /// now.
    pub(crate) fn expects_jobs(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}
