//! Moments in which nothing is under way: what is there then is there for good.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::audit;
use serde::Serialize;

use super::arena::{Arena, PATIENCE};
use super::faults::open_files;
use crate::sys;

/// What a process has.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Figures {
    /// Memory of its own, in bytes, as the kernel counts it: also what the allocator keeps.
    pub(super) memory: i64,
    /// Of that, what is allocated. As a figure it only has a meaning beside another one.
    pub(super) heap: Option<i64>,
    pub(super) descriptors: i64,
    pub(super) threads: i64,
}

impl Figures {
    /// What there is now, after the allocator has given back what it only keeps.
    fn read() -> Option<Figures> {
        sys::trim_heap();
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<i64>().ok()
        };
        Some(Figures {
            memory: field("RssAnon:")? * 1024,
            heap: sys::heap_in_use().map(i64::from),
            descriptors: i64::try_from(open_files()?).ok()?,
            threads: field("Threads:")?,
        })
    }

    /// The least of several looks, since what is about to go takes its time.
    pub(super) fn settled() -> Option<Figures> {
        let mut least = Figures::read()?;
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(50));
            let now = Figures::read()?;
            least.memory = least.memory.min(now.memory);
            least.heap = least.heap.min(now.heap);
            least.descriptors = least.descriptors.min(now.descriptors);
            least.threads = least.threads.min(now.threads);
        }
        Some(least)
    }

    /// The same, after some seconds more if it is more than before: threads at home that have
    /// nothing to do stay for a while.
    pub(super) fn settled_since(before: Option<Figures>) -> Option<Figures> {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let now = Figures::settled()?;
            let more = before.is_some_and(|before| {
                let more = now.since(before);
                more.descriptors > 0 || more.threads > 0
            });
            if !more || Instant::now() > deadline {
                return Some(now);
            }
        }
    }

    pub(super) fn since(self, before: Figures) -> Figures {
        Figures {
            memory: self.memory - before.memory,
            // The figures are rounds of 32 bits.
            heap: (self.heap.zip(before.heap))
                .map(|(now, before)| i64::from((now - before) as i32)),
            descriptors: self.descriptors - before.descriptors,
            threads: self.threads - before.threads,
        }
    }
}

impl Arena {
    /// Notes a violation when something does not come about.
    pub(super) fn eventually(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE / 2;
        while !holds() {
            if Instant::now() > deadline {
                self.tally
                    .violation(format_args!("it does not come about that {what}"));
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Has all threads stop between two steps, lets go of what they hold, and looks at what
    /// is left, or what is left once that is no more than `before`. `None` when one of them
    /// does not stop.
    pub(super) fn rest(&self, before: Option<Figures>) -> Option<Figures> {
        self.paused.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + PATIENCE;
        let alone = loop {
            match self.at_work.try_write() {
                Ok(alone) => break alone,
                Err(std::sync::TryLockError::Poisoned(alone)) => break alone.into_inner(),
                Err(std::sync::TryLockError::WouldBlock) if Instant::now() > deadline => {
                    self.note_stuck();
                    return None;
                }
                Err(std::sync::TryLockError::WouldBlock) => {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        };
        for held in &self.held {
            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
            held.let_go(self);
        }
        self.eventually("idle workers leave", || {
            let idle = |executor: &&netns_exec::Executor| {
                let stats = executor.stats();
                (stats.workers, stats.threads, stats.queued, stats.running) == (0, 0, 0, 0)
            };
            self.executors().iter().all(idle)
        });
        self.eventually("every closure was dropped", || {
            self.tally.alive.load(Ordering::Relaxed) == 0
        });
        self.eventually("no thread is out of place", || {
            audit::Process::this().is_ok_and(|process| process.strays().count() == 0)
        });
        self.eventually("deleted namespaces are gone", || self.forget_gone() == 0);
        (self.tally).check(self.ports.leased().is_empty(), || {
            "a lease that was dropped is held".to_owned()
        });
        // One that could not be made for lack of descriptors would count as shrinkage.
        self.make_places();
        let figures = Figures::settled_since(before);
        (self.tally).check(figures.is_some(), || "/proc/self cannot be read".to_owned());
        drop(alone);
        self.paused.store(false, Ordering::SeqCst);
        figures
    }

    /// Forgets which deleted namespaces are gone, and tells how many are not.
    pub(super) fn forget_gone(&self) -> usize {
        let mut deleted = self.deleted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = deleted.len();
        deleted.retain(|weak| weak.upgrade().is_some());
        let gone = (before - deleted.len()) as u64;
        self.endings.1.fetch_add(gone, Ordering::SeqCst);
        deleted.len()
    }

    /// Notes which steps have no end.
    pub(super) fn note_stuck(&self) {
        for pulse in &self.pulses {
            let step = pulse.step.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((name, began)) = *step
                && began.elapsed() > PATIENCE / 2
            {
                let long = began.elapsed().as_secs();
                self.tally
                    .violation(format_args!("`{name}` has no end after {long} s"));
            }
        }
    }

    /// Whether a step takes longer than anything can.
    pub(super) fn is_stuck(&self) -> bool {
        self.pulses.iter().any(|pulse| {
            let step = pulse.step.lock().unwrap_or_else(PoisonError::into_inner);
            step.is_some_and(|(_, began)| began.elapsed() > 2 * PATIENCE)
        })
    }
}
