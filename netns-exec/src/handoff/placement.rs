//! On which CPU a worker is, and how its callers move it to another.
//!
//! Two threads that hand work to each other are fastest on two CPUs while calls
//! come back to back, because then neither sleeps, and on one CPU otherwise,
//! because waking a CPU that idles takes longer than the call. The scheduler knows
//! neither; `pace` learns it, and here it is carried out.
//!
//! A caller moves a worker by the mask of CPUs that it may run on, which costs
//! nothing more while the worker is not running: it is woken where it may run, or
//! requeued there. (A thread that changes its own mask has to be stopped on one CPU
//! and started on the other: ten times as long, measured.) The worker takes its own
//! mask back before it touches the job, so nothing that a job starts inherits the
//! detour.
//!
//! All of this is hints: right most of the time, and no call depends on it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::pace;
use crate::sys::thread::{self, Cpus};

/// A CPU's number, as callers and workers tell each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpu(u32);

impl Cpu {
    /// No CPU's: not the same as itself even.
    const UNKNOWN: Cpu = Cpu(MOVED - 1);

    /// The calling thread's.
    #[inline]
    pub(crate) fn here() -> Cpu {
        thread::cpu().map_or(Cpu::UNKNOWN, Cpu)
    }

    #[inline]
    pub(crate) fn is(self, other: Cpu) -> bool {
        self == other && self != Cpu::UNKNOWN
    }
}

/// In [`CpuHint`]: the caller has moved the worker.
const MOVED: u32 = 1 << 31;

/// Where a thread ran when it last said so.
#[derive(Debug)]
pub(crate) struct CpuHint(AtomicU32);

impl CpuHint {
    pub(crate) const fn new() -> CpuHint {
        CpuHint(AtomicU32::new(Cpu::UNKNOWN.0))
    }

    #[inline]
    pub(crate) fn get(&self) -> Cpu {
        Cpu(self.0.load(Ordering::Relaxed) & !MOVED)
    }

    /// Stores the CPU, and whether the caller there has moved its worker.
    #[inline]
    pub(crate) fn set(&self, cpu: Cpu, moved: bool) {
        let moved = if moved { MOVED } else { 0 };
        self.0.store(cpu.0 | moved, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn has_moved(&self) -> bool {
        self.0.load(Ordering::Relaxed) & MOVED != 0
    }
}

/// What callers know of a lane's worker.
#[derive(Debug)]
pub(crate) struct Whereabouts {
    born: Instant,
    tid: AtomicU32,
    /// When it parked last, in nanoseconds since `born`.
    parked_at: AtomicU64,
    parked_on: CpuHint,
    /// Microseconds that a call took lately whose worker had to be woken on another
    /// CPU than its caller's.
    far: AtomicU32,
    /// Where a worker that has been moved may run by itself: a job may have changed
    /// that, as is its right.
    own: Mutex<Option<Cpus>>,
}

/// What is assumed before it is known, in microseconds.
const FAR: u32 = 100;

impl Whereabouts {
    pub(crate) fn new() -> Whereabouts {
        Whereabouts {
            born: Instant::now(),
            tid: AtomicU32::new(0),
            parked_at: AtomicU64::new(0),
            parked_on: CpuHint::new(),
            far: AtomicU32::new(FAR),
            own: Mutex::new(None),
        }
    }

    /// Says that the calling thread is the worker from now on.
    pub(crate) fn begin(&self) {
        self.tid.store(thread::tid(), Ordering::Relaxed);
    }

    /// Says that the worker is about to park.
    pub(crate) fn note_parking(&self, now: Instant) {
        self.parked_at.store(self.age(now), Ordering::Relaxed);
    }

    /// Says where the worker is about to sleep.
    pub(crate) fn note_cpu(&self) {
        self.parked_on.set(Cpu::here(), false);
    }

    /// For how long the worker has been parked.
    pub(crate) fn parked_for(&self, now: Instant) -> Duration {
        let parked_at = self.parked_at.load(Ordering::Relaxed);
        Duration::from_nanos(self.age(now).saturating_sub(parked_at))
    }

    pub(crate) fn is_parked_on(&self, cpu: Cpu) -> bool {
        self.parked_on.get().is(cpu)
    }

    /// Learns what it takes to wake the worker on another CPU.
    pub(crate) fn note_far(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX) / 4;
        let far = self.far.load(Ordering::Relaxed);
        (self.far).store((far - far / 4).saturating_add(took), Ordering::Relaxed);
    }

    /// How long it pays to spin for a caller or a worker on another CPU: twice as
    /// long as waking it takes. Of two that sleep by turns neither would ever see the
    /// other awake.
    #[inline]
    pub(crate) fn spin_budget(&self) -> Duration {
        let far = Duration::from_micros(self.far.load(Ordering::Relaxed).into());
        (far * 2).clamp(pace::QUICK, pace::LONGEST_SPIN)
    }

    /// Has the worker wake up on `cpu`; tells whether it will.
    ///
    /// For both moves: the caller has claimed the lane, so the worker is alive,
    /// the id its own, and no job under way; and the next call tells it that it
    /// has been moved.
    pub(crate) fn bring_to(&self, cpu: Cpu) -> bool {
        self.move_to(|own| own.only(cpu.0))
    }

    /// Has the worker go on anywhere but on `cpu`; tells whether it will.
    pub(crate) fn send_away_from(&self, cpu: Cpu) -> bool {
        self.move_to(|own| own.without(cpu.0))
    }

    fn move_to(&self, choose: impl FnOnce(&Cpus) -> Option<Cpus>) -> bool {
        let Ok(own) = thread::cpus_of(self.tid()) else {
            return false;
        };
        let moved = choose(&own).is_some_and(|cpus| thread::set_cpus_of(self.tid(), &cpus).is_ok());
        *self.own.lock() = moved.then_some(own);
        moved
    }

    /// Gives the calling thread, a worker that has been moved, its own CPUs back.
    pub(crate) fn go_back(&self) {
        if let Some(own) = self.own.lock().take() {
            // Fails when the machine has just lost them all; then any will do.
            let _ = thread::set_cpus_of(thread::SELF, &own);
        }
    }

    fn tid(&self) -> u32 {
        self.tid.load(Ordering::Relaxed)
    }

    fn age(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.born);
        u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)
    }
}
