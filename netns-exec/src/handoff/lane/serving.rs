//! The worker's side of a lane: serve, park, leave.
#![allow(unsafe_code)]

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ASLEEP, BUSY, CALL, CLOSED, Call, FLAGS, Lane, PARKED, REFUSED, TRAPPED, Trip};
use crate::bell::{Bell, Unpark};
use crate::handoff::job::AbortOnUnwind;
use crate::handoff::outcome::Door;
use crate::sync::{Ordering, fence, futex_wait, futex_wake, yield_now};

/// The worker's side of a lane.
pub(crate) struct Serving<'a> {
    lane: &'a Lane,
    bell: Option<Arc<Bell>>,
    /// The number of the last call that was served.
    served: u32,
    /// The last caller sleeps, and has not been woken yet.
    is_awaited: bool,
    /// The next to come is a call, as far as can be told: the last was one, and no job of
    /// the queue, or there has been none for long.
    expects_caller: bool,
    /// Its caller spun for the result, and will be back.
    is_hot: bool,
    /// The worker parks in its trap.
    trapped: bool,
    /// It has been woken for the queue, and is busy.
    is_called: bool,
    /// While the lane is closed: how the ear wakes the worker.
    unpark: Option<Unpark>,
}

impl<'a> Serving<'a> {
    /// Of the calling thread, whose bell is `bell`; the lane was opened at the call `served`.
    pub(super) fn new(lane: &'a Lane, bell: Option<Arc<Bell>>, served: u32) -> Serving<'a> {
        Serving {
            lane,
            bell,
            served,
            is_awaited: false,
            expects_caller: false,
            is_hot: false,
            trapped: false,
            is_called: false,
            unpark: None,
        }
    }
}

impl Serving<'_> {
    /// Whether a call waits.
    #[inline]
    pub(crate) fn has_call(&self) -> bool {
        self.lane.trip.0.posted.load(Ordering::Relaxed) == self.served.wrapping_add(CALL)
    }

    /// Runs the call that waits, if any.
    #[inline]
    pub(crate) fn serve(&mut self, door: &mut Door) {
        let number = self.served.wrapping_add(CALL);
        let Trip { posted, room, .. } = &self.lane.trip.0;
        // Acquire: the job is visible to us.
        if posted.load(Ordering::Acquire) != number {
            return;
        }
        // The caller waits for this thread, whatever happens.
        let stay = AbortOnUnwind;
        let how = room.with_mut(|room| {
            // SAFETY: posted: the caller leaves it to us.
            let request = unsafe { &*room };
            // SAFETY: what was put there begins with its call.
            let call: Call = unsafe { request.take() };
            // SAFETY: it is the one that was put with this closure.
            unsafe { call(room, door) }
        });
        mem::forget(stay);
        self.done(number | how);
    }

    /// Waits for the job of a caller that has claimed the lane.
    ///
    /// It follows within a few instructions, unless the caller was interrupted:
    /// with a single CPU it is this thread that keeps it from going on.
    pub(crate) fn await_post(&self) {
        while !self.has_call() {
            yield_now();
        }
    }

    /// Whether the next call may come as soon as the last ones did; says so once for
    /// each.
    #[inline]
    pub(crate) fn expects_call(&mut self) -> bool {
        mem::take(&mut self.is_hot)
    }

    /// Gives a call that came too late back to its caller.
    pub(crate) fn refuse(&mut self) {
        let number = self.served.wrapping_add(CALL);
        self.await_post();
        self.done(number | REFUSED);
        self.tell();
    }

    fn done(&mut self, word: u32) {
        self.served = word & !FLAGS;
        self.expects_caller = true;
        let done = &self.lane.trip.0.done;
        // Release: the result is visible to the caller. Acquire: whether the bell
        // serves. An RMW to learn of ASLEEP.
        let before = done.swap(word, Ordering::AcqRel);
        self.is_hot = before & ASLEEP == 0;
        if !self.is_hot {
            match &self.bell {
                Some(bell) if bell.is_listened_to() => self.is_awaited = true,
                _ => futex_wake(done),
            }
        }
    }

    /// Wakes the last caller if it still sleeps: there is more to do before the worker
    /// parks, which would do so as well.
    pub(crate) fn tell(&mut self) {
        if !mem::take(&mut self.is_awaited) {
            return;
        }
        if let Some(bell) = &self.bell {
            bell.tell();
            self.wake_if_broken();
        }
    }

    /// A caller that cannot use the bell sleeps on the word.
    fn wake_if_broken(&self) {
        if self.bell.as_ref().is_some_and(|bell| bell.is_broken()) {
            futex_wake(&self.lane.trip.0.done);
        }
    }

    /// Closes the lane to callers while the worker runs jobs of the queue;
    /// `false` when a call came first.
    pub(crate) fn begin_busy(&mut self) -> bool {
        self.tell();
        mem::take(&mut self.is_called) || self.set_flag(BUSY)
    }

    /// Says whether the next to come is a call or for the queue.
    pub(crate) fn expect_caller(&mut self, is_call: bool) {
        self.expects_caller = is_call;
    }

    pub(crate) fn end_busy(&mut self) {
        self.lane.gate.0.word.fetch_and(!BUSY, Ordering::Relaxed);
    }

    /// Whether the worker has been woken to look at the queue.
    pub(crate) fn is_called(&self) -> bool {
        self.is_called
    }

    /// Says that the worker is about to sleep, which has had nothing to do since `idle`;
    /// `false` when a call came first.
    ///
    /// Then the worker looks at everything else once more, and calls
    /// [`sleep`](Serving::sleep) or [`stay_awake`](Serving::stay_awake).
    pub(crate) fn begin_park(&mut self, idle: Instant) -> bool {
        (self.lane.idle_since).store(self.lane.age(idle), Ordering::Relaxed);
        self.trapped = self.expects_caller && self.bell.as_ref().is_some_and(|bell| bell.rings());
        let parked = self.set_flag(if self.trapped {
            PARKED | TRAPPED
        } else {
            PARKED
        });
        // See the module: the other half is the sender's.
        fence(Ordering::SeqCst);
        parked
    }

    /// Whether the worker will sleep in its trap, where it cannot tell the time.
    pub(crate) fn is_trapped(&self) -> bool {
        self.trapped
    }

    /// Takes [`begin_park`](Serving::begin_park) back.
    pub(crate) fn stay_awake(&mut self) {
        let parked = PARKED | TRAPPED;
        let gate = self.lane.gate.0.word.fetch_and(!parked, Ordering::Relaxed);
        if mem::take(&mut self.trapped) && gate & PARKED == 0 {
            self.meet_waker();
            self.is_called = self.lane.gate.0.word.load(Ordering::Relaxed) & BUSY != 0;
        }
    }

    /// Goes into the trap.
    fn meet_waker(&mut self) {
        if let Some(bell) = &self.bell {
            bell.park();
        }
        if mem::take(&mut self.is_awaited) {
            self.wake_if_broken();
        }
    }

    /// Sleeps until a caller or sender has cleared `PARKED`; `false` when time was up
    /// first. Then, as when it is woken, the worker is not parked any more.
    pub(crate) fn sleep(&mut self, timeout: Option<Duration>) -> bool {
        while self.trapped {
            self.meet_waker();
            let gate = self.lane.gate.0.word.load(Ordering::Relaxed);
            if gate & PARKED == 0 {
                self.trapped = false;
                self.is_called = gate & BUSY != 0;
                let rang = self.bell.as_ref().is_some_and(|bell| bell.take_alarm());
                return !rang;
            }
            // Nothing answers any more: it sleeps on the gate.
            if (self.lane.gate.0.word)
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |gate| {
                    (gate & PARKED != 0).then_some(gate & !TRAPPED)
                })
                .is_ok()
            {
                self.trapped = false;
            }
        }
        // A trap wakes the caller; the gate does not.
        self.tell();
        loop {
            let gate = self.lane.gate.0.word.load(Ordering::Relaxed);
            if gate & PARKED == 0 {
                return true;
            }
            if !futex_wait(&self.lane.gate.0.word, gate, timeout) {
                let gate = self.lane.gate.0.word.fetch_and(!PARKED, Ordering::Relaxed);
                return gate & PARKED == 0;
            }
        }
    }

    /// Closes the lane for good; `false` when a call came first.
    pub(crate) fn close(&mut self) -> bool {
        self.tell();
        // Before the lane can be another worker's, which this bell must not unpark.
        self.unpark = self.bell.as_ref().and_then(|bell| bell.take_unpark());
        let closed = self.set_flag(CLOSED);
        if closed {
            // With its descriptor.
            *self.lane.bell.lock() = None;
        } else {
            self.give_unpark_back();
        }
        closed
    }

    fn give_unpark_back(&mut self) {
        if let Some(bell) = &self.bell {
            bell.set_unpark(self.unpark.take());
        }
    }

    /// Takes [`close`](Serving::close) back.
    pub(crate) fn reopen(&mut self) {
        self.lane.bell.lock().clone_from(&self.bell);
        self.give_unpark_back();
        self.lane.gate.0.word.fetch_and(!CLOSED, Ordering::Relaxed);
    }

    /// Sets `flag` in the gate unless a caller has claimed the lane since the last call
    /// was served.
    fn set_flag(&mut self, flag: u32) -> bool {
        // Release: what the worker did to the room comes before a claim by way
        // of a later worker.
        self.lane
            .gate
            .0
            .word
            .fetch_update(Ordering::Release, Ordering::Relaxed, |gate| {
                (gate & !FLAGS == self.served).then_some(gate | flag)
            })
            .is_ok()
    }
}
