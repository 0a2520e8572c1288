//! When to spin and where to wake: what callers and workers learn from calls.
//!
//! Nothing here is needed for a call to be right; all of it is about how long it
//! takes. Four questions are answered, each from what the last calls were like.
//!
//! **Does a worker that has run out of work spin before it parks? Does a
//! caller spin before it sleeps?** While that pays: [`Credit`] grows
//! with each time something was seen soon, or would have been, and shrinks with each
//! time nothing was, or late. Calls that are far apart cost no CPU time in between.
//! Two on one CPU do not spin for each other: one of them has to leave it.
//! How long they spin is measured: about as long as waking the other takes, which is
//! the best that can be done without knowing what comes.
//!
//! A thread that waits for a job's latch or for room in a queue is often one of many, and
//! gives the CPU to the others between spins ([`spin_if_it_pays`]). A worker that has
//! emptied a full queue waits for the sender that it has called.
//!
//! **How is a parked worker woken?** [`Wakes`] measures the three ways and takes
//! the fastest, apart for each order of magnitude of the time the worker has slept
//! (a CPU that has idled for longer takes longer to come back):
//!
//! | way      | what                                              | pays when                |
//! |----------|---------------------------------------------------|--------------------------|
//! | `Sleep`  | wake it, and sleep                                | the caller slept as well: CPUs are free and near |
//! | `Spin`   | wake it, and spin for the result for a while      | its CPU wakes up quickly, and jobs are short |
//! | `Beside` | have it wake up on the caller's CPU, and sleep    | its own CPU is deep asleep, or busy with something else |
//!
//! `Beside` moves the worker only when it parked elsewhere, or when the scheduler
//! has lately taken a worker that parked here to another CPU.
//!
//! **When do two that take turns on one CPU part?** When calls come back to back
//! and the last [`Parting`] has paid. The caller sends the worker away, and spins.
//!
//! # What was tried
//!
//! Medians on two virtual CPUs, one call with an empty closure. The first five
//! stayed; the others gave nothing, or took more than they gave.
//!
//! | what                                                     | from     | to      |
//! |----------------------------------------------------------|---------:|--------:|
//! | parked: no timeout shorter than a timer tick, because the timer of each park and wake-up is an exit to the hypervisor | 33 us | 13 us |
//! | `Beside` moves only who is elsewhere: two system calls less | 22 us | 13 us |
//! | back to back: the caller moves the sleeping or queued worker, instead of the running worker itself | 40 to 200 times a spin | 1.1 to 1.5 |
//! | patience as long as a wake-up, instead of 60 us: rounds that never left the one CPU, of 200, on a busy host | 100 | 10 |
//! | 8 callers, a socket each: turns of sched_yield(2) in place of spinning | 15 us | 8.5 us |
//! | spinning without a pause between loads, on either side or both | 1.19 of a spin | 1.40 |
//! | the job written last, next to the number that posts it    | 1.19     | 1.40    |
//! | the worker's CPU stored only when it has changed          | 1.40     | 1.57    |
//! | `done` by a store, a fence and a load in place of a swap  | 1.41     | 1.45    |
//! | lines of 128 bytes                                        | 1.22     | 1.20    |
//!
//! Not tried: to tell a caller that slept from one that computed. The thread's CPU
//! time says so, for a system call on each parked call, 4 to 6 % of it.

use std::cell::Cell;
use std::hint;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::home::Home;
use crate::sync;

/// Calls that follow each other within this come in quick succession.
pub(crate) const QUICK: Duration = Duration::from_micros(60);

/// How long a thread spins at most.
pub(crate) const LONGEST_SPIN: Duration = Duration::from_millis(1);

/// Looks between two readings of the clock.
const SPINS: u32 = 64;

/// What came of spinning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Quickly,
    Late,
    No,
}

/// Looks until `found` says yes or the time is over.
#[inline]
fn spin(patience: Duration, mut found: impl FnMut() -> bool) -> Seen {
    if cfg!(loom) {
        // A model gains nothing from trying the same again.
        return if found() { Seen::Quickly } else { Seen::No };
    }
    let mut probe = || {
        // Without the pause a hot call takes longer: a spinner takes the line away
        // from who is writing it.
        (0..SPINS).any(|_| {
            let seen = found();
            if !seen {
                hint::spin_loop();
            }
            seen
        })
    };
    if probe() {
        return Seen::Quickly;
    }
    let start = Instant::now();
    loop {
        let seen = probe();
        let passed = start.elapsed();
        if seen {
            return if passed < QUICK {
                Seen::Quickly
            } else {
                Seen::Late
            };
        }
        if passed >= patience {
            return Seen::No;
        }
    }
}

/// How often a thread spins that lets others run in between: 10 microseconds when
/// there are none.
const TURNS: u32 = 16;

/// Others that run for longer than this are no part of the matter.
const TURN: Duration = Duration::from_micros(200);

/// As [`spin`], and lets others run in between: those whose CPU this is may be the
/// ones that are waited for, or wait for the same. `None` when others took long.
fn spin_by_turns(mut found: impl FnMut() -> bool) -> Option<bool> {
    let mut before = Instant::now();
    for _ in 0..TURNS {
        if found() {
            return Some(true);
        }
        if cfg!(loom) {
            break;
        }
        thread::yield_now();
        let now = Instant::now();
        if now.duration_since(before) > TURN {
            return None;
        }
        before = now;
    }
    Some(false)
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

/// Looks, if that has paid on this thread lately.
pub(crate) fn spin_if_it_pays(found: impl FnMut() -> bool) -> bool {
    sync::local! {
        static CREDIT: Cell<Credit> = Cell::new(Credit::full());
    }
    let mut credit = CREDIT.with(Cell::get);
    let seen = may_spin() && credit.allows() && credit.spin_by_turns(found);
    CREDIT.with(|it| it.set(credit));
    seen
}

/// Whether spinning has paid lately.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Credit {
    level: u8,
    /// How often it was refused since the level is 0.
    refused: u16,
}

impl Credit {
    const MAX: u8 = 8;
    /// Without credit one spin in so many is allowed all the same.
    const PROBE: u16 = 256;

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

    /// Spins until `found` says yes; for so long if spinning has paid again and
    /// again, and not long otherwise.
    #[inline]
    pub(crate) fn spin(&mut self, patience: Duration, found: impl FnMut() -> bool) -> bool {
        let proven = self.level >= Credit::MAX / 2;
        let patience = if proven { patience } else { QUICK };
        let seen = spin(patience, found);
        // What is seen late does not pay: it would keep a CPU spinning in between
        // calls that are far apart.
        self.grade(seen == Seen::Quickly);
        seen != Seen::No
    }

    /// As [`spin`](Credit::spin), and lets others run in between. It costs little
    /// when it is in vain, but much when others have the CPU for long.
    pub(crate) fn spin_by_turns(&mut self, found: impl FnMut() -> bool) -> bool {
        let seen = spin_by_turns(found);
        match seen {
            Some(true) => self.gain(),
            Some(false) => self.level = self.level.saturating_sub(1),
            None => self.lose(),
        }
        seen == Some(true)
    }

    /// Whether it has paid again and again.
    #[inline]
    pub(crate) fn is_full(self) -> bool {
        self.level == Credit::MAX
    }

    /// Its caller knows that it will pay.
    pub(crate) const fn full() -> Credit {
        Credit {
            level: Credit::MAX,
            refused: 0,
        }
    }

    /// It paid, or it did not.
    #[inline]
    pub(crate) fn grade(&mut self, paid: bool) {
        if paid {
            self.gain();
        } else {
            self.lose();
        }
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

/// When caller and worker part, who take turns on one CPU.
///
/// Waking another CPU takes as long as dozens of calls on one, and much longer when
/// it is busy with something else. So that is tried seldom when the calls that came
/// of it were few.
#[derive(Debug)]
pub(crate) struct Parting {
    /// Calls without a sleep on either side since the last parting.
    calls: u32,
    /// Occasions to let pass before the next one.
    left: u32,
    pause: u32,
}

impl Parting {
    /// As many calls make up for it.
    const WORTH: u32 = 64;
    const MAX_PAUSE: u32 = 1024;

    pub(crate) const fn new() -> Parting {
        Parting {
            calls: Parting::WORTH,
            left: 0,
            pause: 0,
        }
    }

    /// A call was made by two who are apart, and neither slept.
    #[inline]
    pub(crate) fn note_call(&mut self) {
        self.calls = self.calls.saturating_add(1);
    }

    /// Whether to part now: calls come in quick succession on one CPU.
    pub(crate) fn is_due(&mut self) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        self.pause = if self.calls < Parting::WORTH {
            (self.pause * 2 + 8).min(Parting::MAX_PAUSE)
        } else {
            0
        };
        self.left = self.pause;
        self.calls = 0;
        true
    }

    /// There is nowhere to go.
    pub(crate) fn failed(&mut self) {
        self.left = Parting::MAX_PAUSE;
    }
}

/// Whether something that costs nothing can be relied on: yes until it fails, then
/// not for a while, which doubles with each failure.
#[derive(Debug)]
pub(crate) struct Trust {
    failures: u8,
    /// Occasions to let pass before it is tried again.
    left: u16,
}

impl Trust {
    const MAX_FAILURES: u8 = 6;

    pub(crate) const fn new() -> Trust {
        Trust {
            failures: 0,
            left: 0,
        }
    }

    pub(crate) fn allows(&mut self) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        true
    }

    pub(crate) fn grade(&mut self, kept: bool) {
        if kept {
            *self = Trust::new();
        } else {
            self.failures = (self.failures + 1).min(Trust::MAX_FAILURES);
            self.left = 4 << self.failures;
        }
    }
}

/// A way to wake a parked worker, see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Sleep,
    Spin,
    Beside,
}

const WAYS: [Way; 3] = [Way::Sleep, Way::Spin, Way::Beside];

/// What waking a worker took, by how long it had slept.
#[derive(Debug)]
pub(crate) struct Wakes {
    by_gap: [Record; GAPS],
}

/// Below 64 us, 256 us, 1 ms, 4 ms, and above.
const GAPS: usize = 5;

#[derive(Clone, Copy, Debug)]
struct Record {
    tries: [Tries; WAYS.len()],
    calls: u32,
}

#[derive(Clone, Copy, Debug)]
struct Tries {
    /// Nanoseconds of a call; 0 before the first.
    cost: f32,
    /// The call that took this way last.
    last: u32,
}

/// The first calls try each way this often.
const FIRST: u32 = 3;
/// A way's cost is forgotten within so many calls, evenly: one that took twice as
/// long as the best is tried again after half of them, one that took ten times as
/// long rarely enough to stay out of the 99th percentile.
const FORGET: u32 = 256;

impl Wakes {
    pub(crate) const fn new() -> Wakes {
        let tries = Tries { cost: 0.0, last: 0 };
        let record = Record {
            tries: [tries; WAYS.len()],
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
        let ways = WAYS.len() as u32;
        if record.calls < FIRST * ways {
            return WAYS[(record.calls % ways) as usize];
        }
        WAYS[record.cheapest(|tries| {
            let age = record.calls.wrapping_sub(tries.last);
            tries.cost * (1.0 - age as f32 / FORGET as f32)
        })]
    }

    /// Learns what it took.
    pub(crate) fn learn(&mut self, slept: Duration, way: Way, took: Duration) {
        let record = self.record(slept);
        let best = record.cheapest(|tries| tries.cost);
        record.calls = record.calls.wrapping_add(1);
        let took = took.as_nanos() as f32;
        let Tries { cost, last } = &mut record.tries[way as usize];
        *last = record.calls;
        if *cost == 0.0 {
            *cost = took;
        } else if way as usize == best {
            // A stray one counts for twice the usual at most.
            *cost += (took.min(*cost * 2.0) - *cost) / 8.0;
        } else {
            // Tried rarely, so each time counts; a quick one is taken at its word
            // and has to stand the test at once.
            *cost = took.min((*cost + took) / 2.0);
        }
    }
}

impl Record {
    fn cheapest(&self, cost: impl Fn(&Tries) -> f32) -> usize {
        let mut best = 0;
        for way in 1..self.tries.len() {
            if cost(&self.tries[way]) < cost(&self.tries[best]) {
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
        assert!(taken[Way::Beside as usize] > 80, "{taken:?}");
    }

    #[test]
    fn gaps_are_told_apart() {
        let mut wakes = Wakes::new();
        live(&mut wakes, Duration::from_micros(100), [8, 20, 30], 100);
        live(&mut wakes, Duration::from_millis(10), [40, 30, 8], 100);
        assert_eq!(wakes.choose(Duration::from_micros(100)), Way::Sleep);
        assert_eq!(wakes.choose(Duration::from_millis(10)), Way::Beside);
        assert_eq!(wakes.choose(Duration::from_secs(3600)), Way::Beside);
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
        let allowed = (0..2560).filter(|_| credit.allows()).count();
        assert_eq!(allowed, 2560 / usize::from(Credit::PROBE));
        credit.gain();
        assert!(credit.allows());
    }

    #[test]
    fn broken_trust_is_tried_ever_more_seldom_and_mends_at_once() {
        let mut trust = Trust::new();
        let mut tries = 0;
        for _ in 0..1000 {
            if trust.allows() {
                tries += 1;
                trust.grade(false);
            }
        }
        assert!((6..12).contains(&tries), "{tries}");
        trust.grade(true);
        assert!((0..100).all(|_| trust.allows()));
    }

    #[test]
    fn parting_that_does_not_pay_becomes_rare() {
        let mut parting = Parting::new();
        let partings = (0..10_000).filter(|_| parting.is_due()).count();
        assert!((8..24).contains(&partings), "{partings}");
        for _ in 0..Parting::WORTH {
            parting.note_call();
        }
        while !parting.is_due() {}
        for _ in 0..10 {
            for _ in 0..Parting::WORTH {
                parting.note_call();
            }
            assert!(parting.is_due());
        }
    }

    #[test]
    fn what_is_seen_late_does_not_keep_a_thread_spinning() {
        let mut credit = Credit::full();
        for _ in 0..4 {
            let start = Instant::now();
            credit.spin(LONGEST_SPIN, || start.elapsed() > QUICK * 2);
        }
        assert!(!credit.allows());
    }

    #[test]
    fn spinning_ends() {
        assert_eq!(spin(QUICK, || true), Seen::Quickly);
        let mut looks = 0_u64;
        let never = || {
            looks += 1;
            false
        };
        assert_eq!(spin(QUICK, never), Seen::No);
        assert!(looks > u64::from(SPINS));
    }
}
