//! Tasks that wait for a change: for room in a queue, for a worker to be born, for the
//! last one to leave.
//!
//! The task registers, and then looks once more whether it has to wait; the thread that
//! changes something does that, and then looks whether a task is registered. The users
//! order both with a lock or with fences, so that at least one of them notices the other.
//!
//! A waker is a user's code: it is called on a thread for that, see [`aside`], and what
//! is dropped is dropped under no lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::home::aside::{self, Lease};

/// See the module.
#[derive(Default)]
pub(crate) struct Wakers {
    /// `waiting.len()`, for threads that only want to know whether it is 0.
    count: AtomicU32,
    /// By ticket: the task that came first is woken first, also when it was woken before
    /// and came too late.
    waiting: Mutex<BTreeMap<u64, Waker>>,
}

/// A task's place among those that wait.
pub(crate) struct Ticket {
    number: u64,
    _lease: Lease,
}

impl Ticket {
    pub(crate) fn new() -> Result<Ticket> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let lease = Lease::new().map_err(|cause| {
            Error::kernel("cannot start the thread that wakes tasks", cause)
                .hint("see ulimit -u and the pids cgroup's pids.max")
        })?;
        Ok(Ticket {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            _lease: lease,
        })
    }
}

impl Wakers {
    /// Whether any task waits.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Registers a task, or the waker that it has now; tells whether it was not there.
    pub(crate) fn register(&self, ticket: &Ticket, waker: &Waker) -> bool {
        let waker = waker.clone();
        let before = {
            let mut waiting = self.waiting.lock();
            let before = waiting.insert(ticket.number, waker);
            self.note(&waiting);
            before
        };
        before.is_none()
    }

    /// Takes a task off; `false` when it has been woken before, or never was there.
    pub(crate) fn remove(&self, ticket: &Ticket) -> bool {
        let waker = {
            let mut waiting = self.waiting.lock();
            let waker = waiting.remove(&ticket.number);
            self.note(&waiting);
            waker
        };
        waker.is_some()
    }

    /// Wakes the task that has waited longest; tells whether there was any.
    pub(crate) fn wake_one(&self) -> bool {
        if !self.any() {
            return false;
        }
        let first = {
            let mut waiting = self.waiting.lock();
            let first = waiting.pop_first();
            self.note(&waiting);
            first
        };
        let Some((_, waker)) = first else {
            return false;
        };
        aside::wake(waker);
        true
    }

    pub(crate) fn wake_all(&self) {
        while self.wake_one() {}
    }

    fn note(&self, waiting: &BTreeMap<u64, Waker>) {
        self.count.store(waiting.len() as u32, Ordering::Relaxed);
    }
}
