//! The queue of one namespace: bounded, so that senders wait when it is full.
//!
//! A sender that finds no room says that it waits, fences, and tries once more; a
//! worker takes a job, fences, and looks whether a sender waits. At least one of
//! them sees the other.

use std::task::Waker;

use super::wakers::{Ticket, Wakers};
use crate::handoff::job::JobRef;
use crate::handoff::pace;
use crate::handoff::placement::{Cpu, CpuHint};
use crate::sync::{
    self, AtomicU32, Condvar, Mutex, Ordering, Receiver, Sender, TrySendError, fence,
};

/// See the module.
pub(crate) struct Queue {
    sender: Sender<JobRef>,
    receiver: Receiver<JobRef>,
    /// Senders that wait for room.
    waiting: AtomicU32,
    /// Where the last of them was.
    waiting_on: CpuHint,
    room: Condvar,
    room_lock: Mutex<()>,
    /// Tasks that wait for room; `waiting` counts them too.
    tasks: Wakers,
}

impl Queue {
    pub(crate) fn new(depth: usize) -> Queue {
        let (sender, receiver) = sync::bounded(depth);
        Queue {
            sender,
            receiver,
            waiting: AtomicU32::new(0),
            waiting_on: CpuHint::new(),
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
        self.sender.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
    }

    /// Puts a job in, and waits for room.
    pub(crate) fn push(&self, mut job: JobRef) {
        if pace::spin_if_it_pays(|| !self.sender.is_full()) {
            match self.try_push(job) {
                Ok(()) => return,
                Err(back) => job = back,
            }
        }
        let mut guard = self.room_lock.lock();
        loop {
            self.waiting_on.set(Cpu::here(), false);
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
        let job = self.receiver.try_recv().ok()?;
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            drop(self.room_lock.lock());
            self.room.notify_one();
            self.wake_task();
        }
        Some(job)
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

    /// Whether a sender that waited for room is about to wake up on another CPU,
    /// with the queue empty now.
    pub(crate) fn expects_jobs(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 && !self.waiting_on.get().is(Cpu::here())
    }
}
