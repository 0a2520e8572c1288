//! The queue of one namespace: bounded, so that senders wait when it is full.
//!
//! A sender that finds no room says that it waits, fences, and tries once more; a
//! worker takes a job, fences, and looks whether a sender waits. At least one of
//! them sees the other.

use crate::handoff::job::JobRef;
use crate::handoff::pace;
use crate::sync::{
    self, AtomicU32, Condvar, Mutex, Ordering, Receiver, Sender, TrySendError, fence,
};

/// See the module.
pub(crate) struct Queue {
    sender: Sender<JobRef>,
    receiver: Receiver<JobRef>,
    /// Senders that wait for room.
    waiting: AtomicU32,
    room: Condvar,
    room_lock: Mutex<()>,
}

impl Queue {
    pub(crate) fn new(depth: usize) -> Queue {
        let (sender, receiver) = sync::bounded(depth);
        Queue {
            sender,
            receiver,
            waiting: AtomicU32::new(0),
            room: Condvar::new(),
            room_lock: Mutex::new(()),
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
        let job = self.receiver.try_recv().ok()?;
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            drop(self.room_lock.lock());
            self.room.notify_one();
        }
        Some(job)
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
