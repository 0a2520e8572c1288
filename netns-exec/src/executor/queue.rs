//! The queue of one namespace: bounded, so that senders wait when it is full.
//!
//! Beside the jobs there are the futures that have been woken, which were admitted before
//! and always have a place: their wakers never wait. Workers take from both by turns, so
//! that neither starves the other, and futures in the order in which they were woken.
//!
//! A sender that finds no room says that it waits, fences, and tries once more; a
//! worker takes a job, fences, and looks whether a sender waits. At least one of
//! them sees the other.
//!
//! A sender that is told of each place sleeps again after a job or two, and on a CPU that it
//! shares with the worker each of these is a change of threads. So it is patient: it is told
//! when half of the queue is free and no other sender that was told has yet to come back, and
//! looks by itself after [`PATIENCE`], as the worker may meanwhile have taken up a job that
//! lasts. After that it is told of each place.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::wakers::{Ticket, Wakers};
use crate::handoff::job::JobRef;
use crate::handoff::turns;
use crate::sync::{
    self, AtomicBool, AtomicU32, AtomicU64, Condvar, Mutex, MutexGuard, Ordering, Receiver, Sender,
    TrySendError, fence,
};
use crate::sys;

/// See the module.
pub(crate) struct Queue {
    sender: Sender<JobRef>,
    receiver: Receiver<JobRef>,
    /// When it was last empty, or a job was taken, on the clock of [`Clock`]; not to the
    /// millisecond, so that senders and workers seldom have to tell each other.
    moved: std::sync::atomic::AtomicU64,
    /// Whether a sender has found that it did not move, so that only then it is looked at
    /// more closely.
    stands: AtomicU8,
    clock: Clock,
    /// Those that wait for room: in units of [`STRICT`] and [`PATIENT`].
    waiting: AtomicU64,
    /// How many jobs there are when patient senders are told, at the most.
    low: usize,
    /// Whether a sender was told that is not back yet.
    is_sender_told: AtomicBool,
    room: Condvar,
    room_lock: Mutex<()>,
    /// Futures that are to be polled.
    ready: Mutex<VecDeque<JobRef>>,
    /// How many; changes under their lock, and is looked at without. Ordered by the fences
    /// of those that look, as the length of the channel is.
    ready_len: AtomicU32,
    /// Whose turn it is when there are both: a hint, which orders nothing.
    is_jobs_turn: std::sync::atomic::AtomicBool,
    /// Tasks that wait for room; `waiting` counts them too.
    tasks: Wakers,
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
}

/// In nanoseconds: what a queue that moves is not asked for again, and what does not matter
/// to how long one stands still.
const A_MOMENT: u64 = 1_000_000;
const A_WHILE: u64 = 100 * A_MOMENT;

/// How long a sender waits without being told of each place. Rarely over, and never shorter
/// than a tick of the kernel's timer: until then it costs nothing.
const PATIENCE: Duration = Duration::from_millis(5);

/// One that waits and is told of each place.
const STRICT: u64 = 1;
/// One that waits for [`PATIENCE`] at the most.
const PATIENT: u64 = 1 << 32;
/// How a sender waits first.
const FIRST_WAIT: u64 = if cfg!(netns_without = "patience") {
    STRICT
} else {
    PATIENT
};

/// How a queue stands, as far as senders have looked.
const MOVES: u8 = 0;
const STANDS: u8 = 1;
/// And that has been told.
const IS_TOLD: u8 = 2;

impl Queue {
    pub(crate) fn new(depth: usize, clock: Clock) -> Queue {
        let (sender, receiver) = sync::bounded(depth);
        Queue {
            sender,
            receiver,
            moved: 0.into(),
            stands: AtomicU8::new(MOVES),
            clock,
            waiting: AtomicU64::new(0),
            low: depth / 2,
            is_sender_told: AtomicBool::new(false),
            room: Condvar::new(),
            room_lock: Mutex::new(()),
            ready: Mutex::new(VecDeque::new()),
            ready_len: AtomicU32::new(0),
            is_jobs_turn: false.into(),
            tasks: Wakers::default(),
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.receiver.is_empty() && self.ready_len.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.receiver.len() + self.ready_len.load(Ordering::Relaxed) as usize
    }

    /// Puts a job in, if there is room.
    #[inline]
    pub(crate) fn try_push(&self, job: JobRef) -> Result<(), JobRef> {
        job.set_since(self.note_push());
        (self.sender.try_send(job)).map_err(|error| match error {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
    }

    /// Notes that something is about to be pushed; returns the time.
    #[inline]
    fn note_push(&self) -> u64 {
        let now = self.clock.now();
        if self.has_not_moved_for(now) >= A_WHILE {
            self.look_closer(now);
        }
        now
    }

    #[cold]
    fn look_closer(&self, now: u64) {
        // Whether it is empty is in lines that workers write.
        if self.is_empty() {
            self.note_moved(now);
        } else if self.stands.load(Relaxed) == MOVES {
            self.stands.store(STANDS, Relaxed);
        }
    }

    fn has_not_moved_for(&self, now: u64) -> u64 {
        now.saturating_sub(self.moved.load(Relaxed))
    }

    #[cold]
    fn note_moved(&self, now: u64) {
        self.moved.store(now, Relaxed);
        if self.stands.load(Relaxed) != MOVES {
            self.stands.store(MOVES, Relaxed);
        }
    }

    /// Notes that a job has been taken; returns how long it waited.
    #[inline]
    fn note_taken(&self, job: &JobRef) -> Duration {
        let now = self.clock.now();
        if self.has_not_moved_for(now) >= A_MOMENT {
            self.note_moved(now);
        }
        Duration::from_nanos(now.saturating_sub(job.since()))
    }

    /// For how long no job has been taken although there was one, if that is `patience` or
    /// more, and this has not been answered since a job was taken last. As of the last push.
    #[inline]
    pub(crate) fn newly_stands_still_for(&self, patience: Duration) -> Option<Duration> {
        match self.stands.load(Relaxed) {
            STANDS => self.stands_still_for(patience),
            _ => None,
        }
    }

    #[cold]
    fn stands_still_for(&self, patience: Duration) -> Option<Duration> {
        let still = Duration::from_nanos(self.has_not_moved_for(self.clock.now()));
        let is_new = still >= patience
            && !self.is_empty()
            && (self.stands)
                .compare_exchange(STANDS, IS_TOLD, Relaxed, Relaxed)
                .is_ok();
        is_new.then_some(still)
    }

    /// Puts a job in, and waits for room.
    pub(crate) fn push(&self, mut job: JobRef) {
        let mut how = FIRST_WAIT;
        loop {
            if turns::spin_by_turns(|| !self.sender.is_full()) {
                match self.try_push(job) {
                    Ok(()) => return,
                    Err(back) => job = back,
                }
            }
            let mut guard = self.room_lock.lock();
            self.waiting.fetch_add(how, Ordering::Relaxed);
            // See the module: the other half is in `take`.
            fence(Ordering::SeqCst);
            let pushed = self.try_push(job);
            let waits = how;
            if pushed.is_err() {
                how = self.wait_told(&mut guard, how);
            }
            self.waiting.fetch_sub(waits, Ordering::Relaxed);
            drop(guard);
            match pushed {
                Ok(()) => return,
                Err(back) => job = back,
            }
        }
    }

    /// Waits until there may be room; returns how to wait next.
    fn wait_told(&self, guard: &mut MutexGuard<'_, ()>, how: u64) -> u64 {
        let mut next = FIRST_WAIT;
        if how == STRICT {
            self.room.wait(guard);
        } else if (self.room.wait_until(guard, Instant::now() + PATIENCE)).timed_out() {
            next = STRICT;
        }
        self.is_sender_told.store(false, Ordering::Relaxed);
        next
    }

    /// Puts a future in that is to be polled. There is always room.
    pub(crate) fn push_ready(&self, job: JobRef) {
        job.set_since(self.note_push());
        let mut ready = self.ready.lock();
        ready.push_back(job);
        self.ready_len.fetch_add(1, Ordering::Relaxed);
    }

    fn take_ready(&self) -> Option<(JobRef, Duration)> {
        let job = {
            let mut ready = self.ready.lock();
            let job = ready.pop_front()?;
            self.ready_len.fetch_sub(1, Ordering::Relaxed);
            job
        };
        let waited = self.note_taken(&job);
        Some((job, waited))
    }

    /// Takes a job, or a future that is to be polled.
    #[inline]
    pub(crate) fn take(&self) -> Option<JobRef> {
        self.take_timed().map(|(job, _waited)| job)
    }

    /// As [`take`](Queue::take), and says how long it has waited.
    #[inline]
    pub(crate) fn take_timed(&self) -> Option<(JobRef, Duration)> {
        if self.ready_len.load(Ordering::Relaxed) == 0 {
            return self.take_job();
        }
        self.take_by_turns()
    }

    fn take_by_turns(&self) -> Option<(JobRef, Duration)> {
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
    #[inline]
    fn take_job(&self) -> Option<(JobRef, Duration)> {
        let job = self.receiver.try_recv().ok()?;
        let waited = self.note_taken(&job);
        fence(Ordering::SeqCst);
        let waiting = self.waiting.load(Ordering::Relaxed);
        if waiting > 0 {
            self.tell_of_room(waiting);
        }
        Some((job, waited))
    }

    fn tell_of_room(&self, waiting: u64) {
        let all_patient = waiting.is_multiple_of(PATIENT);
        if all_patient
            && (self.is_sender_told.load(Ordering::Relaxed) || self.receiver.len() > self.low)
        {
            return;
        }
        let guard = self.room_lock.lock();
        // A sender that no longer waits would never take it back.
        let tells_patient = self.waiting.load(Ordering::Relaxed) >= PATIENT;
        self.is_sender_told.store(tells_patient, Ordering::Relaxed);
        drop(guard);
        self.room.notify_one();
        self.wake_task();
    }

    /// Takes all jobs, and leaves the futures.
    pub(crate) fn take_jobs(&self) -> Vec<JobRef> {
        std::iter::from_fn(|| self.take_job().map(|(job, _waited)| job)).collect()
    }

    /// Takes all futures, and leaves the jobs.
    pub(crate) fn take_futures(&self) -> Vec<JobRef> {
        std::iter::from_fn(|| self.take_ready().map(|(job, _waited)| job)).collect()
    }

    /// Registers a task that found no room. It has to try once more after that.
    pub(crate) fn wait_for_room(&self, ticket: &Ticket, waker: &Waker) {
        if self.tasks.register(ticket, waker) {
            self.waiting.fetch_add(STRICT, Ordering::Relaxed);
        }
        // See the module: the other half is in `take`.
        fence(Ordering::SeqCst);
    }

    /// Notes that a task waits no more. One that was woken, and did not use the room that
    /// there was, passes it on.
    pub(crate) fn wait_no_more(&self, ticket: &Ticket, used: bool) {
        if self.tasks.remove(ticket) {
            self.waiting.fetch_sub(STRICT, Ordering::Relaxed);
        } else if !used {
            self.wake_task();
        }
    }

    fn wake_task(&self) {
        if self.tasks.wake_one() {
            self.waiting.fetch_sub(STRICT, Ordering::Relaxed);
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
