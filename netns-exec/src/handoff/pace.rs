//! When to spin, which is decided by guess.
//!
//! Nothing here is needed for a call to be right; all of it is about how long it
//! takes. While calls come back to back on two CPUs neither side need sleep: then a
//! caller spins for its result, and a worker for the next call, [`SPIN`] at the most.
//! Otherwise both sleep at once, and the CPU goes from one to the other, see
//! [`bell`](crate::bell).
//!
//! A lane finds out which it is by its own calls ([`Pace`]): after [`STREAK`] of them
//! that came [`QUICK`]ly upon each other the caller wakes the worker on another CPU,
//! once, and spins. They go on while that pays. Where it does not (both are
//! bound to one CPU, the others are busy) it is tried ever more seldom.
//!
//! When a thread that spins looks for the first time it finds out by trying, see
//! [`first_look`](super::first_look).
//!
//! A thread that waits as one of many does so [by turns](super::turns).

use std::hint;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use super::first_look::FirstLook;
use crate::home::Home;

/// Calls that follow each other within this are back to back.
const QUICK: Duration = Duration::from_micros(20);

/// How long a thread spins at most: longer than [`QUICK`], so that a worker which spun in
/// vain is seen to have been called late.
pub(crate) const SPIN: Duration = Duration::from_micros(50);

/// How long a caller spins for a worker that it has just woken on another CPU, which may
/// have been asleep as well.
pub(crate) const ARRIVAL: Duration = Duration::from_micros(SPIN.as_micros() as u64 * 10);

/// So many make a habit.
pub(super) const STREAK: u16 = 8;

/// Looks until `found` says yes or `patience` is over; tells whether it did, or since
/// when it did not.
#[inline]
pub(crate) fn spin(patience: Duration, mut found: impl FnMut() -> bool) -> Result<(), Instant> {
    /// Looks between two readings of the clock.
    const LOOKS: u32 = 64;

    let mut probe = || {
        // Without the pause a hot call takes longer: a spinner takes the line away
        // from the thread that is writing it.
        (0..LOOKS).any(|_| {
            let seen = found();
            if !seen {
                hint::spin_loop();
            }
            seen
        })
    };
    if cfg!(loom) {
        // A model gains nothing from trying the same again.
        return if found() { Ok(()) } else { Err(Instant::now()) };
    }
    if probe() {
        return Ok(());
    }
    let start = Instant::now();
    loop {
        if probe() {
            return Ok(());
        }
        if start.elapsed() >= patience {
            return Err(start);
        }
    }
}

/// As [`spin`], with the first look in time.
#[inline]
pub(crate) fn spin_in_time(
    first_look: &mut FirstLook,
    patience: Duration,
    found: impl FnMut() -> bool,
) -> Result<(), Instant> {
    first_look.hold_off();
    let spun = spin(patience, found);
    match spun {
        Ok(()) => first_look.came(),
        Err(_) => first_look.came_late(),
    }
    spun
}

/// What the calls of a lane have been like; belongs to the caller whose turn it is.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Parked calls in succession that came quickly, [`STREAK`] at the most.
    quick: u16,
    /// How many more are to come quickly before spinning is tried again. Not in succession:
    /// where calls come in bursts it would never be tried again after a bad moment.
    owed: u16,
    /// What is owed after the next try that comes to nothing.
    price: u16,
    /// Spinning pays; 0 when it does not.
    credit: u16,
    first_look: FirstLook,
}

impl Pace {
    pub(crate) const fn new() -> Pace {
        Pace {
            quick: 0,
            owed: 0,
            price: STREAK * 2,
            credit: 0,
            first_look: FirstLook::of_caller(),
        }
    }

    /// Whether to spin for the result of a worker that is awake.
    #[inline]
    pub(crate) fn is_hot(&self) -> bool {
        self.credit > 0
    }

    /// Whether to spin for the result of a worker that sleeps, and has had nothing to do
    /// for so long.
    pub(crate) fn is_hot_after(&mut self, idle: Duration) -> bool {
        self.first_look.came_late();
        if idle > QUICK {
            self.quick = 0;
            self.credit = 0;
            return false;
        }
        self.quick = (self.quick + 1).min(STREAK);
        self.owed = self.owed.saturating_sub(1);
        if self.credit == 0 && self.quick == STREAK && self.owed == 0 {
            self.quick = 0;
            self.credit = 1;
        }
        self.is_hot()
    }

    /// Spins for the result of a worker that is awake, see [`spin`], and learns what came
    /// of it.
    #[inline]
    pub(crate) fn spin(&mut self, found: impl FnMut() -> bool) {
        let spun = spin_in_time(&mut self.first_look, SPIN, found);
        self.note(spun.is_ok());
    }

    /// Learns what came of spinning. One miss after many hits changes nothing.
    #[inline]
    pub(crate) fn note(&mut self, paid: bool) {
        if paid {
            if self.credit < STREAK {
                self.credit += 1;
                if self.credit == STREAK {
                    self.price = STREAK * 2;
                }
            }
        } else {
            self.credit /= 2;
            if self.credit == 0 {
                self.owed = self.price;
                self.price = (self.price * 2).min(STREAK << 7);
            }
        }
    }
}

/// With one CPU the thread that spins keeps the other from working.
pub(crate) fn may_spin() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    let several = || thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    if cfg!(loom) {
        return *MAY.get_or_init(several);
    }
    // Asked on the home thread, which has the CPUs of the main thread: the first caller
    // may be bound to one, and the answer is remembered.
    let ask = || Home::get().is_ok_and(|home| home.call(several));
    *MAY.get_or_init(ask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_back_to_back_become_hot_and_stay_so_while_it_pays() {
        let mut pace = Pace::new();
        let tries = (0..100).position(|_| pace.is_hot_after(Duration::ZERO));
        assert_eq!(tries, Some(usize::from(STREAK) - 1));
        for _ in 0..100 {
            pace.note(true);
        }
        pace.note(false);
        assert!(pace.is_hot());
    }

    #[test]
    fn late_call_is_never_hot() {
        let mut pace = Pace::new();
        for _ in 0..STREAK {
            pace.is_hot_after(Duration::ZERO);
        }
        assert!(pace.is_hot());
        assert!(!pace.is_hot_after(SPIN) && !pace.is_hot());
        assert!(!(0..100).any(|_| pace.is_hot_after(SPIN)));
    }

    #[test]
    fn spinning_that_does_not_pay_becomes_rare() {
        let mut pace = Pace::new();
        let mut tries = 0;
        for _ in 0..100_000 {
            if pace.is_hot_after(Duration::ZERO) {
                tries += 1;
                pace.note(false);
            }
        }
        assert!((100..200).contains(&tries), "{tries}");
    }

    #[test]
    fn spinning_is_tried_again_where_calls_come_in_bursts() {
        let mut pace = Pace::new();
        // A bad moment, long enough for spinning to be rare.
        for _ in 0..10_000 {
            if pace.is_hot_after(Duration::ZERO) {
                pace.note(false);
            }
        }
        let burst = usize::from(STREAK) * 2;
        let tries = (0..1_000).filter(|_| {
            assert!(!pace.is_hot_after(SPIN));
            let tried = (0..burst).any(|_| pace.is_hot_after(Duration::ZERO));
            if tried {
                pace.note(false);
            }
            tried
        });
        // As often as where they come without a pause.
        let tries = tries.count();
        assert!((10..20).contains(&tries), "{tries}");
    }

    #[test]
    fn spinning_ends() {
        assert!(spin(SPIN, || true).is_ok());
        let mut looks = 0_u64;
        let began = spin(SPIN, || {
            looks += 1;
            false
        });
        assert!(began.is_err_and(|began| began.elapsed() >= SPIN) && looks > 64);
    }
}
