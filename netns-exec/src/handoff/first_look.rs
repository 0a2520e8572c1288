//! When a thread that spins looks for the first time, which it finds out by trying.
//!
//! A caller and its worker send one cache line to and fro. A look that comes while the
//! other side is at work there takes the line away from it, and it has to fetch it once
//! more; a look that comes too late is time lost. Which wait is best differs by CPU, by
//! where the two threads run, and by build. So each of the two takes the time of some
//! calls, and of as many with a wait that is a step longer or shorter, and keeps what was
//! faster. Where nothing is gained the wait gets shorter.
//!
//! What that gains is measured by `tools/ablation`, as is what `turns` and the executor's
//! `crowd` decide by guess.

use std::hint;
use std::time::{Duration, Instant};

/// Calls whose time is taken together.
const SAMPLE: u16 = 64;

/// The longest wait, in steps: some hundred nanoseconds.
const MOST: u16 = 32;

/// See the module.
#[derive(Debug)]
pub(crate) struct FirstLook {
    /// How long, in steps.
    wait: u16,
    /// By how much it is changed just now, to see what that does.
    trial: Option<Change>,
    /// What is tried next.
    next: Change,
    /// How many samples nothing is tried after a change that did not pay.
    pause: u8,
    /// How many of them are left.
    left: u8,
    /// Calls of this sample so far.
    calls: u16,
    /// When it began; calls that do not follow each other give none.
    began: Option<Instant>,
    /// What a sample took without a change.
    usual: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Longer,
    Shorter,
}

impl FirstLook {
    // Both try out what the other one pays for as well: seldom, and not in step.

    /// For a worker that has answered a call, and waits for the next.
    pub(crate) const fn of_worker() -> FirstLook {
        FirstLook::new(7)
    }

    /// For a caller that has posted a call, and waits for the answer.
    pub(crate) const fn of_caller() -> FirstLook {
        FirstLook::new(10)
    }

    const fn new(pause: u8) -> FirstLook {
        FirstLook {
            wait: 0,
            trial: None,
            next: Change::Longer,
            pause,
            left: 0,
            calls: 0,
            began: None,
            usual: Duration::ZERO,
        }
    }

    /// Waits for so long.
    #[inline]
    pub(super) fn hold_off(&self) {
        /// Of a loop that does nothing, a cycle each. A pause is too long on some CPUs.
        const STEP: u32 = 32;

        if cfg!(any(loom, netns_without = "first_look")) {
            return;
        }
        for _ in 0..u32::from(self.tried()) * STEP {
            hint::black_box(());
        }
    }

    /// What there was to wait for has come.
    #[inline]
    pub(super) fn came(&mut self) {
        self.calls += 1;
        if self.calls == SAMPLE {
            self.end_sample(Instant::now());
        }
    }

    /// It has not, or the last one not right after the one before: time that has passed says
    /// nothing.
    pub(super) fn came_late(&mut self) {
        self.calls = 0;
        self.began = None;
    }

    /// The wait with the change that is being tried.
    #[inline]
    fn tried(&self) -> u16 {
        match self.trial {
            None => self.wait,
            Some(Change::Longer) => self.wait + 1,
            Some(Change::Shorter) => self.wait - 1,
        }
    }

    fn end_sample(&mut self, now: Instant) {
        self.calls = 0;
        if let Some(began) = self.began.replace(now) {
            self.learn(now.duration_since(began));
        }
    }

    /// Learns what a sample took.
    fn learn(&mut self, took: Duration) {
        if self.left > 0 {
            self.left -= 1;
            return;
        }
        let pays = match self.trial {
            None => true,
            Some(Change::Longer) => took < self.usual - self.usual / 64,
            Some(Change::Shorter) => took <= self.usual,
        };
        if pays {
            self.wait = self.tried();
            self.usual = took;
            self.next = match self.wait {
                0 => Change::Longer,
                MOST => Change::Shorter,
                _ => self.next,
            };
            self.trial = Some(self.next);
        } else {
            self.trial = None;
            self.left = self.pause;
            self.next = match self.next {
                Change::Longer => Change::Shorter,
                Change::Shorter => Change::Longer,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has `first` learn from so many samples, which take what `nanos` says of the wait;
    /// returns the waits that it kept in the second half.
    fn waits(first: &mut FirstLook, samples: u32, mut nanos: impl FnMut(u16) -> u64) -> Vec<u16> {
        let mut waits = Vec::new();
        for _ in 0..samples {
            first.learn(Duration::from_nanos(nanos(first.tried())));
            waits.push(first.wait);
        }
        waits.split_off(waits.len() / 2)
    }

    fn valley(at: u16) -> impl Fn(u16) -> u64 {
        move |wait| 10_000 + 500 * u64::from(wait.abs_diff(at))
    }

    #[test]
    fn wait_goes_to_where_calls_are_fastest_and_follows_it() {
        for mut first in [FirstLook::of_worker(), FirstLook::of_caller()] {
            for at in [6, 20, 3, 0] {
                let waits = waits(&mut first, 1_000, valley(at));
                assert!(waits.iter().all(|wait| *wait == at), "{at}: {waits:?}");
            }
        }
    }

    #[test]
    fn wait_stays_near_there_when_times_vary() {
        let mut first = FirstLook::of_worker();
        let mut state = 1_u32;
        // Up to three steps' worth.
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u64::from(state >> 16) % 1_500
        };
        let waits = waits(&mut first, 10_000, |wait| valley(8)(wait) + noise());
        let near = waits.iter().filter(|wait| wait.abs_diff(8) <= 3).count();
        assert!(near > waits.len() * 9 / 10, "{near} of {}", waits.len());
    }

    #[test]
    fn wait_that_changes_nothing_becomes_none_and_no_wait_is_beyond_the_longest() {
        let mut first = FirstLook::of_worker();
        let far = waits(&mut first, 1_000, |wait| 20_000 - 400 * u64::from(wait));
        assert!(
            far.iter().all(|wait| (MOST - 1..=MOST).contains(wait)),
            "{far:?}"
        );
        let flat = waits(&mut first, 2_000, |_| 10_000);
        assert!(flat.iter().all(|wait| *wait == 0), "{flat:?}");
    }

    #[test]
    fn time_between_calls_that_do_not_follow_each_other_is_not_taken() {
        let mut first = FirstLook::of_caller();
        for call in 0..SAMPLE * 3 {
            match call == SAMPLE + 1 {
                true => first.came_late(),
                false => first.came(),
            }
        }
        // The second sample was given up, and the last one is not over.
        assert!(first.began.is_some() && first.usual == Duration::ZERO && first.trial.is_none());
    }
}
