//! Completion: set once, waited on by a thread or by a waker.
//!
//! One word of state. The setter sets `SET`; the waiter says so first.
//!
//! | bit       | set by   | meaning                                                    |
//! |-----------|----------|------------------------------------------------------------|
//! | `SET`     | setter   | done: what was written before is visible to who sees this  |
//! | `PARKED`  | waiter   | a thread sleeps on the word: wake it after setting `SET`, or a flag it waits for |
//! | `WAKER`   | waiter   | a waker is stored: the setter takes it after setting `SET` |
//! | from bit 3| owner    | the user's own flags, changed together with the above      |
//! | from bit 8| owner    | references to what the latch is in, if it counts them      |
//!
//! The waker's cell belongs to the waiting side while `WAKER` is clear. Set before `SET` it
//! gives the cell to the setter, for good; set after it, to none, and the waiting side keeps
//! it. Where a flag comes in place of `SET`, who clears `WAKER` has the cell.
#![allow(unsafe_code)]

use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::turns;
use crate::sync::{AtomicU32, Ordering, UnsafeCell, futex_wait, futex_wake};

const SET: u32 = 1;
const PARKED: u32 = 1 << 1;
const WAKER: u32 = 1 << 2;
/// The first bit that users of a latch may give a meaning of their own.
pub(crate) const FIRST_FLAG: u32 = 1 << 3;
/// One reference, as they are counted above the flags.
const REFERENCE: u32 = 1 << 8;
/// More than that is a mistake; far from where the count would end.
const MAX_REFERENCES: u32 = u32::MAX / REFERENCE / 2;

/// A latch that one thread waits on.
#[derive(Debug)]
pub(crate) struct Latch {
    state: AtomicU32,
}

impl Latch {
    pub(crate) fn new() -> Latch {
        Latch {
            state: AtomicU32::new(0),
        }
    }

    /// One that is in something which has so many references.
    fn with_references(references: u32) -> Latch {
        Latch {
            state: AtomicU32::new(references * REFERENCE),
        }
    }

    /// Counts one more reference.
    ///
    /// # Panics
    ///
    /// When there are millions of them.
    pub(crate) fn retain(&self) {
        // Relaxed: the caller has a reference, which made all else visible to it.
        let before = self.state.fetch_add(REFERENCE, Ordering::Relaxed);
        if before / REFERENCE >= MAX_REFERENCES {
            self.state.fetch_sub(REFERENCE, Ordering::Relaxed);
            panic!("too many handles of one job");
        }
    }

    /// Counts one reference less; tells whether it was the last.
    #[must_use]
    #[inline]
    pub(crate) fn release(&self) -> bool {
        // AcqRel: what was done through the others is visible to who frees it.
        self.state.fetch_sub(REFERENCE, Ordering::AcqRel) / REFERENCE == 1
    }

    /// Sets `flag` and counts one reference less; tells whether it was the last. `None`
    /// when the latch is set, and nothing has been changed.
    #[inline]
    pub(crate) fn release_unset(&self, flag: u32) -> Option<bool> {
        let before = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                (state & SET == 0).then_some((state | flag) - REFERENCE)
            });
        before.ok().map(|before| before / REFERENCE == 1)
    }

    /// Sets `flag`, which only the caller ever sets, and once; returns the state before.
    #[inline]
    pub(crate) fn start(&self, flag: u32) -> Before {
        // By an addition, whose first access to the line is the write.
        Before(self.state.fetch_add(flag, Ordering::AcqRel))
    }

    pub(crate) fn is_set(&self) -> bool {
        // Acquire: pairs with the Release in `set`, so that the outcome written
        // before it is visible.
        self.state.load(Ordering::Acquire) & SET != 0
    }

    /// The user's flags, with `Acquire`.
    pub(crate) fn flags(&self) -> u32 {
        self.state.load(Ordering::Acquire) & !(FIRST_FLAG - 1)
    }

    /// Sets `flag` unless the latch is set or one of the flags `barred` is there
    /// already; tells whether it did.
    pub(crate) fn try_flag(&self, flag: u32, barred: u32) -> bool {
        let barred = barred | SET;
        self.state
            // AcqRel: what the other side wrote before its flag is visible to
            // the loser, what we wrote before ours to the side that loses to us.
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                (state & barred == 0).then_some(state | flag)
            })
            .is_ok()
    }

    /// Sets the latch and wakes the thread that waits.
    ///
    /// # Safety
    ///
    /// `latch` points to a live latch; it may die as soon as the waiter has
    /// seen it set, which is why this takes a pointer and touches it once.
    pub(crate) unsafe fn set(latch: *const Latch) -> u32 {
        // SAFETY: live until the waiter sees SET, that is until this very write.
        let state = unsafe { &raw const (*latch).state };
        // SAFETY: as above. Release: the outcome is visible to who sees SET.
        // Acquire: the waker stored before WAKER is visible to us.
        let before = unsafe { (*state).fetch_or(SET, Ordering::AcqRel) };
        if before & PARKED != 0 {
            futex_wake(state);
        }
        before
    }

    /// As [`set`](Latch::set), for a latch that outlives the call.
    pub(crate) fn set_shared(&self) -> u32 {
        // SAFETY: borrowed for the whole call.
        unsafe { Latch::set(self) }
    }

    /// Blocks until the latch is set.
    pub(crate) fn wait(&self) {
        self.wait_until(0, None);
    }

    /// Blocks until the latch is set, one of `flags` is, or `deadline` has passed; tells
    /// whether it was one of the former. Who sets a flag has to [wake](WakerLatch::wake_for_flag).
    pub(crate) fn wait_until(&self, flags: u32, deadline: Option<Instant>) -> bool {
        let ready = SET | flags;
        if turns::spin_then_by_turns(|| self.state.load(Ordering::Acquire) & ready != 0) {
            return true;
        }
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if state & ready != 0 {
                return true;
            }
            let left = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return false,
                left => left,
            };
            // Relaxed would do for PARKED: the setter reads it with an RMW on the
            // same word. The failure load must acquire, it may see SET.
            if state & PARKED == 0 {
                match self.state.compare_exchange_weak(
                    state,
                    state | PARKED,
                    Ordering::Relaxed,
                    Ordering::Acquire,
                ) {
                    Ok(_) => state |= PARKED,
                    Err(now) => {
                        state = now;
                        continue;
                    }
                }
            }
            futex_wait(&self.state, state, left);
            state = self.state.load(Ordering::Acquire);
        }
    }
}

/// What a latch was like before its state was changed.
#[derive(Clone, Copy)]
pub(crate) struct Before(u32);

impl Before {
    pub(crate) fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    /// Whether there was one reference, and no waiter to be woken.
    pub(crate) fn is_sole(self) -> bool {
        self.0 / REFERENCE == 1 && !self.has(PARKED | WAKER)
    }
}

#[cfg(all(test, loom))]
impl Latch {
    /// Fails the model if another thread may still touch the latch: its memory
    /// is about to be used for something else.
    pub(crate) fn check_unused(&mut self) {
        self.state.with_mut(|_| ());
    }
}

/// A latch that a thread waits on or a future polls, one at a time.
#[derive(Debug)]
pub(crate) struct WakerLatch {
    latch: Latch,
    waker: UnsafeCell<Option<Waker>>,
}

// SAFETY: the protocol at the top of this file gives the cell one owner at a time.
unsafe impl Send for WakerLatch {}
// SAFETY: as above.
unsafe impl Sync for WakerLatch {}

impl std::ops::Deref for WakerLatch {
    type Target = Latch;

    fn deref(&self) -> &Latch {
        &self.latch
    }
}

impl WakerLatch {
    /// One that is in something which has so many references.
    pub(crate) fn new(references: u32) -> WakerLatch {
        WakerLatch {
            latch: Latch::with_references(references),
            waker: UnsafeCell::new(None),
        }
    }

    /// Sets the latch and wakes the thread that waits; returns the state before, and
    /// the waker that the caller is to wake: it is user code. Called once.
    #[inline]
    pub(crate) fn complete(&self) -> (Before, Option<Waker>) {
        let before = self.latch.set_shared();
        let waker = (before & WAKER != 0).then(|| self.take_waker());
        (Before(before), waker.flatten())
    }

    /// Wakes the thread that waits, or a stored waker, because of one of the user's flags.
    /// The waiting side may be polling meanwhile, on another thread: who clears `WAKER` has
    /// the cell.
    ///
    /// The caller just set a flag with [`Latch::try_flag`] that keeps the other
    /// side from ever calling [`complete`](WakerLatch::complete), and that `poll` and
    /// `wait_until` are told of.
    pub(crate) fn wake_for_flag(&self) {
        let state = &self.latch.state;
        // A waiter that has not said PARKED yet finds the flag.
        let now = state.load(Ordering::Relaxed);
        if now & PARKED != 0 {
            futex_wake(state);
        }
        // AcqRel: the waker is visible to us, and the cell's end to who polls.
        if now & WAKER != 0
            && state.fetch_and(!WAKER, Ordering::AcqRel) & WAKER != 0
            && let Some(waker) = self.take_waker()
        {
            waker.wake();
        }
    }

    fn take_waker(&self) -> Option<Waker> {
        // SAFETY: `complete` runs once and found WAKER, so the waiting side has
        // given the cell up; all others have cleared WAKER, found it clear, or set it when
        // `complete` had run.
        (self.waker).with_mut(|cell| unsafe { (*cell).take() })
    }

    /// Ready when the latch is set or one of `flags` is; stores the waker if not.
    ///
    /// Called by one thread at a time: the future that owns the waiting side.
    pub(crate) fn poll(&self, flags: u32, cx: &mut Context<'_>) -> Poll<()> {
        let ready = SET | flags;
        let state = &self.latch.state;
        let mut now = state.load(Ordering::Acquire);
        if now & ready != 0 {
            return Poll::Ready(());
        }
        if now & WAKER != 0 {
            // Take the cell back before touching it; lost when SET came first.
            now = state.fetch_and(!WAKER, Ordering::AcqRel);
            if now & ready != 0 {
                if now & (SET | WAKER) == WAKER {
                    drop(self.take_waker());
                }
                return Poll::Ready(());
            }
        }
        self.waker.with_mut(|cell| {
            // SAFETY: WAKER and SET were clear, so the cell is ours.
            let cell = unsafe { &mut *cell };
            if !(cell.as_ref()).is_some_and(|waker| waker.will_wake(cx.waker())) {
                // One after the other: both are user code, and leave nothing when they panic.
                drop(cell.take());
                *cell = Some(cx.waker().clone());
            }
        });
        // Release: the waker is visible to the setter that finds WAKER.
        let before = state.fetch_or(WAKER, Ordering::AcqRel);
        if before & ready == 0 {
            return Poll::Pending;
        }
        // What was stored too late is not woken, and ours to drop: unless who has set a flag
        // was still to look.
        if before & SET != 0 || state.fetch_and(!WAKER, Ordering::AcqRel) & WAKER != 0 {
            drop(self.take_waker());
        }
        Poll::Ready(())
    }
}

#[cfg(all(test, loom))]
impl WakerLatch {
    /// As that of a latch.
    pub(crate) fn check_unused(&mut self) {
        self.latch.check_unused();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn waiter_sleeps_until_the_latch_is_set() {
        let latch = Latch::new();
        assert!(!latch.wait_until(0, Some(Instant::now() + Duration::from_millis(2))));
        thread::scope(|scope| {
            scope.spawn(|| latch.set_shared());
            latch.wait();
        });
        assert!(latch.is_set() && latch.wait_until(0, Some(Instant::now())));
    }

    #[test]
    fn flags_bar_each_other_and_a_set_latch_bars_all() {
        const A: u32 = FIRST_FLAG;
        const B: u32 = FIRST_FLAG << 1;
        let latch = Latch::new();
        assert!(latch.try_flag(A, B) && !latch.try_flag(B, A));
        assert_eq!(latch.flags(), A);
        latch.set_shared();
        assert!(!latch.try_flag(B, 0));
    }

    #[test]
    fn setter_gets_the_last_waker() {
        let latch = Arc::new(WakerLatch::new(1));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(latch.poll(0, &mut cx).is_pending() && latch.poll(0, &mut cx).is_pending());
        let setter = Arc::clone(&latch);
        let (_, waker) = thread::spawn(move || setter.complete()).join().unwrap();
        assert!(waker.is_some());
        assert!(latch.poll(0, &mut cx).is_ready());
    }
}
