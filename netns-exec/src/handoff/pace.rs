//! When to spin, which is all that is decided by guess.
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
//! A thread that waits for a job's latch or for room in a queue is often one of many, and
//! gives the CPU to the others between looks ([`spin_by_turns`]); for a latch that may be
//! set at once it spins first ([`spin_then_by_turns`]). Where busy threads share the CPU the
//! kernel gives them a slice for that, milliseconds long; a thread that loses several so
//! sleeps instead, and tries turns again after a multiple of what they took.

use std::cell::Cell;
use std::hint;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use super::first_look::FirstLook;
use crate::home::Home;
use crate::sync;
use crate::sys::time::monotonic;

/// Calls that follow each other within this are back to back.
const QUICK: Duration = Duration::from_micros(20);

/// How long a thread spins at most: longer than [`QUICK`], so that a worker which spun in
/// vain is seen to have been called late.
pub(crate) const SPIN: Duration = Duration::from_micros(50);

/// How long a caller spins for a worker that it has just woken on another CPU, which may
/// have been asleep as well.
pub(crate) const ARRIVAL: Duration = Duration::from_micros(SPIN.as_micros() as u64 * 10);

/// A turn that is as long was the slice of a busy thread, which waits for nothing.
const SLICE: Duration = Duration::from_millis(1);

/// What is longer says nothing of busy threads: the process was stopped, or its machine.
const LONG_SLICE: Duration = Duration::from_millis(100);

/// So many make a habit.
const STREAK: u16 = 8;

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
    /// Parked calls in succession that came quickly.
    quick: u16,
    /// How many are asked for before spinning is tried.
    needed: u16,
    /// Spinning pays; 0 when it does not.
    credit: u16,
    first_look: FirstLook,
}

impl Pace {
    pub(crate) const fn new() -> Pace {
        Pace {
            quick: 0,
            needed: STREAK,
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
        self.quick = self.quick.saturating_add(1);
        if self.credit == 0 && self.quick >= self.needed {
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
                    self.needed = STREAK;
                }
            }
        } else {
            self.credit /= 2;
            if self.credit == 0 {
                self.needed = self.needed.saturating_mul(2).min(STREAK << 7);
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

/// Whether a way to wait pays on a thread: not while it has not lately.
struct Credit(Cell<i16>);

impl Credit {
    const fn new() -> Credit {
        Credit(Cell::new(STREAK as i16))
    }

    /// Says no for a while after it has not paid. What did not pay may pay again.
    fn may_try(&self) -> bool {
        let credit = self.0.get();
        if credit < 0 {
            self.0.set(credit + 1);
        }
        credit >= 0
    }

    fn note(&self, paid: bool) {
        self.0.set(match (paid, self.0.get() / 2) {
            (true, _) => STREAK as i16,
            (false, 0) => -(STREAK as i16) * 8,
            (false, half) => half,
        });
    }
}

/// Whether a thread gives its turn of the CPU away to wait.
struct Turns {
    credit: Credit,
    /// Turns that took a slice, less those that have paid since.
    slices: Cell<u32>,
    /// Until when the thread gives none, in nanoseconds of the coarse clock; 0 for no rest.
    rests_until: Cell<u64>,
}

impl Turns {
    const fn new() -> Turns {
        Turns {
            credit: Credit::new(),
            slices: Cell::new(0),
            rests_until: Cell::new(0),
        }
    }

    fn may_try(&self) -> bool {
        if self.rests_until.get() != 0 {
            if monotonic(true) < self.rests_until.get() {
                return false;
            }
            self.rests_until.set(0);
        }
        self.credit.may_try()
    }

    /// Notes whether it paid, and how long the last turn of others was. A few that took a
    /// slice may be chance; after more there are none for a multiple of that, and so ever
    /// fewer.
    fn note(&self, paid: bool, turn: Duration) {
        /// How many are left out of account.
        const CHANCE: u32 = 2;
        /// Of the multiple: as a power of two.
        const MOST: u32 = 4;

        self.credit.note(paid);
        let slices = self.slices.get();
        if turn < SLICE {
            if paid && slices > 0 {
                self.slices.set(slices - 1);
            }
            return;
        }
        self.slices.set((slices + 1).min(MOST));
        if slices >= CHANCE && !cfg!(netns_without = "rests") {
            let lost = turn.min(LONG_SLICE).as_nanos() as u64;
            let rest = lost << self.slices.get();
            self.rests_until.set(monotonic(true) + rest);
        }
    }
}

/// Looks with ever longer pauses, for about a microsecond; then as [`spin_by_turns`]. For
/// what may be there before others had their turn.
pub(crate) fn spin_then_by_turns(mut found: impl FnMut() -> bool) -> bool {
    /// Each twice as long as the one before.
    const PAUSES: u32 = 6;

    sync::local! {
        static SPINS: Credit = Credit::new();
    }
    if found() {
        return true;
    }
    if cfg!(loom) || !may_spin() {
        return false;
    }
    if !cfg!(netns_without = "spin_first") && SPINS.try_with(Credit::may_try).unwrap_or(false) {
        let seen = (0..PAUSES).any(|nth| {
            (0..1 << nth).for_each(|_| hint::spin_loop());
            found()
        });
        let _ = SPINS.try_with(|spins| spins.note(seen));
        if seen {
            return true;
        }
    }
    spin_by_turns(found)
}

/// Looks between turns of other threads, which are those that are waited for, or wait
/// for the same.
pub(crate) fn spin_by_turns(mut found: impl FnMut() -> bool) -> bool {
    sync::local! {
        static TURNS: Turns = Turns::new();
    }
    if found() {
        return true;
    }
    if cfg!(any(loom, netns_without = "turns"))
        || !may_spin()
        || !TURNS.try_with(Turns::may_try).unwrap_or(false)
    {
        return false;
    }
    let mut before = Instant::now();
    let mut turn = Duration::ZERO;
    let mut seen = false;
    for _ in 0..STREAK * 2 {
        thread::yield_now();
        seen = found();
        let now = Instant::now();
        turn = now.duration_since(before);
        // A turn as long as that is none.
        if seen || turn > SPIN * 4 {
            break;
        }
        before = now;
    }
    let _ = TURNS.try_with(|turns| turns.note(seen, turn));
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_that_take_slices_become_seldom() {
        let turns = Turns::new();
        // How many times `counts` the rest is that follows a turn of `lost`.
        let check_rest = |lost, counts: Duration, times| {
            let rest = counts.as_nanos() as u64 * times;
            let before = monotonic(true);
            turns.note(true, lost);
            let until = turns.rests_until.get();
            assert!((before + rest..=monotonic(true) + rest).contains(&until));
        };
        for _ in 0..2 {
            (0..2).for_each(|_| turns.note(true, SLICE));
            assert!(turns.may_try());
            (0..2).for_each(|_| turns.note(true, Duration::ZERO));
        }
        (0..2).for_each(|_| turns.note(true, SLICE));
        check_rest(SLICE * 3, SLICE * 3, 8);
        check_rest(SLICE * 2, SLICE * 2, 16);
        (0..100).for_each(|_| turns.note(false, SLICE));
        check_rest(Duration::from_secs(3600), LONG_SLICE, 16);
        assert!(!turns.may_try());
    }

    #[test]
    fn turns_are_tried_again_after_a_rest() {
        let turns = Turns::new();
        (0..3).for_each(|_| turns.note(true, SLICE));
        assert_ne!(turns.rests_until.get(), 0);
        while !turns.may_try() {
            thread::sleep(SLICE);
        }
        assert_eq!(turns.rests_until.get(), 0);
    }

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
