//! When to spin and where to wake: what callers and workers learn from calls.
//!
//! Nothing here is needed for a call to be right; all of it is about how long it
//! takes. Three questions are answered, each from what the last calls were like.
//!
//! **Does a worker that has run out of work look for more before it parks?** Only
//! while that pays: [`Credit`] grows with each call that came while it was looking,
//! or soon after it had parked, and shrinks with each time it looked for nothing.
//! Calls that are far apart cost no CPU time in between.
//!
//! A worker on its caller's own CPU does not look: the caller could not call. When
//! calls come in quick succession it steps aside to another CPU first. (Left to
//! themselves the two stay together, as the kernel wakes each beside the other, and
//! a hot call takes 40 to 200 times as long as it need: measured.)
//!
//! **Does a caller look for its result before it sleeps?** The same credit, by
//! the same rule. Never when the worker last ran on the caller's own CPU: one of
//! the two has to leave it.
//!
//! Whoever waits for a job's latch or for room in a queue does as callers do, with
//! a credit of its thread's own ([`look_if_it_pays`]).
//!
//! **How is a parked worker woken?** [`Wakes`] measures the three ways and takes
//! the fastest, apart for each order of magnitude of the time the worker has slept
//! (a CPU that has idled for longer takes longer to come back):
//!
//! | way      | what                                              | pays when                |
//! |----------|---------------------------------------------------|--------------------------|
//! | `Sleep`  | wake it, and sleep                                | the caller slept as well: CPUs are free and near |
//! | `Spin`   | wake it, and look for the result for a while      | its CPU wakes up quickly, and jobs are short |
//! | `Follow` | bring it to the caller's CPU first, and sleep     | its own CPU is deep asleep, or busy with something else |
//!
//! A followed worker takes its own CPUs back before it touches the job, so nothing
//! that a job starts inherits the detour.

use std::cell::Cell;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::sync;

/// How long anybody looks for something before sleeping. Longer than it takes to
/// wake a thread on another CPU, 40 microseconds on a virtual machine whose idle
/// CPUs halt: of two that sleep by turns neither would ever see the other awake.
pub(crate) const LOOK: Duration = Duration::from_micros(60);

/// Looks between two readings of the clock.
const LOOKS: u32 = 64;

/// Looks until `found` says yes or the time is over; tells which.
#[inline]
pub(crate) fn look(mut found: impl FnMut() -> bool) -> bool {
    if cfg!(loom) {
        // A model gains nothing from trying the same again.
        return found();
    }
    for _ in 0..LOOKS {
        if found() {
            return true;
        }
        std::hint::spin_loop();
    }
    let end = Instant::now() + LOOK;
    while Instant::now() < end {
        for _ in 0..LOOKS {
            if found() {
                return true;
            }
            std::hint::spin_loop();
        }
    }
    false
}

/// With one CPU whoever looks keeps the other from working.
pub(crate) fn may_look() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1))
}

/// Looks, if that has paid on this thread lately.
pub(crate) fn look_if_it_pays(found: impl FnMut() -> bool) -> bool {
    sync::local! {
        static CREDIT: Cell<Credit> = Cell::new(Credit::new());
    }
    let mut credit = CREDIT.with(Cell::get);
    let mut seen = false;
    if may_look() && credit.allows() {
        seen = look(found);
        if seen {
            credit.gain();
        } else {
            credit.lose();
        }
    }
    CREDIT.with(|it| it.set(credit));
    seen
}

/// Whether looking has paid lately.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Credit {
    level: u8,
    /// How often it was refused since the level is 0.
    refused: u8,
}

impl Credit {
    const MAX: u8 = 8;
    /// Without credit one look in so many is allowed all the same.
    const PROBE: u8 = 64;

    pub(crate) const fn new() -> Credit {
        Credit {
            level: 1,
            refused: 0,
        }
    }

    #[inline]
    pub(crate) fn allows(&mut self) -> bool {
        if self.level > 0 {
            return true;
        }
        self.refused += 1;
        let probe = self.refused == Credit::PROBE;
        if probe {
            self.refused = 0;
        }
        probe
    }

    /// Whether it pays again and again.
    #[inline]
    pub(crate) fn is_high(self) -> bool {
        self.level >= Credit::MAX / 2
    }

    /// It paid, or would have.
    #[inline]
    pub(crate) fn gain(&mut self) {
        if self.level < Credit::MAX {
            self.level += 1;
        }
    }

    /// It did not. One miss after many hits changes nothing; four in a row do.
    pub(crate) fn lose(&mut self) {
        self.level /= 2;
    }
}

/// A way to wake a parked worker, see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Sleep,
    Spin,
    Follow,
}

const WAYS: [Way; 3] = [Way::Sleep, Way::Spin, Way::Follow];

/// What waking a worker took, by how long it had slept.
#[derive(Debug)]
pub(crate) struct Wakes {
    by_gap: [Record; GAPS],
}

/// Below 64 us, 256 us, 1 ms, 4 ms, and above.
const GAPS: usize = 5;

#[derive(Debug, Clone, Copy)]
struct Record {
    /// Nanoseconds of a call, for each way; 0 before the first.
    cost: [f32; WAYS.len()],
    calls: u32,
}

/// The first calls try each way this often.
const TRIES: u32 = 3;
/// Later on one call in so many tries another way than the best: rare enough to
/// stay out of the 99th percentile.
const EXPLORE: u32 = 256;

impl Wakes {
    pub(crate) const fn new() -> Wakes {
        let record = Record {
            cost: [0.0; WAYS.len()],
            calls: 0,
        };
        Wakes {
            by_gap: [record; GAPS],
        }
    }

    fn record(&mut self, slept: Duration) -> &mut Record {
        let us = u64::try_from(slept.as_micros()).unwrap_or(u64::MAX).max(1);
        let fours = us.ilog2() / 2;
        &mut self.by_gap[(fours.saturating_sub(2) as usize).min(GAPS - 1)]
    }

    /// Chooses how to wake a worker that has slept for so long.
    pub(crate) fn choose(&mut self, slept: Duration) -> Way {
        let record = self.record(slept);
        let call = record.calls;
        record.calls = call.wrapping_add(1);
        let ways = WAYS.len() as u32;
        if call < TRIES * ways {
            return WAYS[(call % ways) as usize];
        }
        if call.is_multiple_of(EXPLORE) {
            return WAYS[((call / EXPLORE) % ways) as usize];
        }
        WAYS[record.best()]
    }

    /// Learns what it took.
    pub(crate) fn learn(&mut self, slept: Duration, way: Way, took: Duration) {
        let record = self.record(slept);
        let best = record.best();
        let took = took.as_nanos() as f32;
        let cost = &mut record.cost[way as usize];
        if *cost == 0.0 {
            *cost = took;
        } else if way as usize == best {
            *cost += (took - *cost) / 8.0;
        } else {
            // Tried rarely, so each time counts; a quick one is taken at its word
            // and has to stand the test at once.
            *cost = took.min((*cost + took) / 2.0);
        }
    }
}

impl Record {
    fn best(&self) -> usize {
        let mut best = 0;
        for way in 1..self.cost.len() {
            if self.cost[way] < self.cost[best] {
                best = way;
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `wakes` for a while in a world where each way costs what it says.
    fn live(wakes: &mut Wakes, slept: Duration, cost_us: [u64; 3], calls: u32) -> [u32; 3] {
        let mut taken = [0; 3];
        for _ in 0..calls {
            let way = wakes.choose(slept);
            taken[way as usize] += 1;
            wakes.learn(slept, way, Duration::from_micros(cost_us[way as usize]));
        }
        taken
    }

    #[test]
    fn the_fastest_way_is_taken() {
        for best in 0..3 {
            let mut cost = [30; 3];
            cost[best] = 8;
            let taken = live(&mut Wakes::new(), Duration::from_millis(1), cost, 1000);
            assert!(taken[best] > 980, "{taken:?}");
        }
    }

    #[test]
    fn a_changed_world_is_noticed() {
        let slept = Duration::from_micros(100);
        let mut wakes = Wakes::new();
        live(&mut wakes, slept, [8, 20, 12], 1000);
        let taken = live(&mut wakes, slept, [40, 20, 12], 100);
        assert!(taken[Way::Follow as usize] > 80, "{taken:?}");
    }

    #[test]
    fn gaps_are_told_apart() {
        let mut wakes = Wakes::new();
        live(&mut wakes, Duration::from_micros(100), [8, 20, 30], 100);
        live(&mut wakes, Duration::from_millis(10), [40, 30, 8], 100);
        assert_eq!(wakes.choose(Duration::from_micros(100)), Way::Sleep);
        assert_eq!(wakes.choose(Duration::from_millis(10)), Way::Follow);
        assert_eq!(wakes.choose(Duration::from_secs(3600)), Way::Follow);
    }

    #[test]
    fn credit_is_lost_by_repeated_misses() {
        let mut credit = Credit::new();
        for _ in 0..100 {
            credit.gain();
        }
        credit.lose();
        assert!(credit.allows());
        for _ in 0..3 {
            credit.lose();
        }
        let allowed = (0..1280).filter(|_| credit.allows()).count();
        assert_eq!(allowed, 1280 / usize::from(Credit::PROBE));
        credit.gain();
        assert!(credit.allows());
    }

    #[test]
    fn looking_ends() {
        assert!(look(|| true));
        let mut looks = 0_u64;
        assert!(!look(|| {
            looks += 1;
            false
        }));
        assert!(looks > u64::from(LOOKS));
    }
}
