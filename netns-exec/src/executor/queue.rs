//! The queue of one namespace: bounded, so that senders wait when it is full.
//!
//! Beside the jobs there are the futures that have been woken, which were admitted before
//! and always have a place: their wakers never wait. Workers take from both by turns, so
//! that neither starves the other, and futures in the order in which they were woken.
//!
//! A sender that finds no room says that it waits, fences, and tries once more; a
//! worker takes a job, fences, and looks whether a sender waits. At least one of
//! them sees the other.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
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
    /// Futures that are to be polled.
    ready: Mutex<VecDeque<JobRef>>,
    /// How many; changes under their lock, and is looked at without. Ordered by the fences
    /// of those that look, as the length of the channel is.
    ready_len: AtomicU32,
    /// Whose turn it is when there are both: a hint, which orders nothing.
    is_jobs_turn: AtomicBool,
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
            ready: Mutex::new(VecDeque::new()),
            ready_len: AtomicU32::new(0),
            is_jobs_turn: AtomicBool::new(false),
            tasks: Wakers::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.receiver.is_empty() && self.ready_len.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.receiver.len() + self.ready_len.load(Ordering::Relaxed) as usize
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

    /// Puts a future in that is to be polled. There is always room.
    pub(crate) fn push_ready(&self, job: JobRef) {
        let mut ready = self.ready.lock();
        ready.push_back(job);
        self.ready_len.fetch_add(1, Ordering::Relaxed);
    }

    fn take_ready(&self) -> Option<JobRef> {
        let mut ready = self.ready.lock();
        let job = ready.pop_front()?;
        self.ready_len.fetch_sub(1, Ordering::Relaxed);
        Some(job)
    }

    /// Takes a job, or a future that is to be polled.
    #[inline]
    pub(crate) fn take(&self) -> Option<JobRef> {
        if self.ready_len.load(Ordering::Relaxed) == 0 {
            return self.take_job();
        }
        self.take_by_turns()
    }

    fn take_by_turns(&self) -> Option<JobRef> {
        use std::sync::atomic::Ordering::Relaxed;

        if self.is_jobs_turn.swap(false, Relaxed)
            && let Some(job) = self.take_job()
        {
            return Some(job);
        }
        match self.take_ready() {
            Some(job) => {
                self.is_jobs_turn.store(true, Relaxed);
                Some(job)
            }
            None => self.take_job(),
        }
    }

    /// Takes a job, and tells a sender that there is room.
    fn take_job(&self) -> Option<JobRef> {
        let job = self.receiver.try_recv().ok()?;
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            drop(self.room_lock.lock());
            self.room.notify_one();
            self.wake_task();
        }
        Some(job)
    }

    /// Takes all jobs, and leaves the futures.
    pub(crate) fn take_jobs(&self) -> Vec<JobRef> {
        std::iter::from_fn(|| self.take_job()).collect()
    }

    /// Takes all futures, and leaves the jobs.
    pub(crate) fn take_futures(&self) -> Vec<JobRef> {
        std::iter::from_fn(|| self.take_ready()).collect()
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
