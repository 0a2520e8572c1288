//! Whether several callers are under way at the same time: a hint, which orders nothing.
//!
//! A lane carries one call at a time, and its caller and worker sleep and wake each other
//! in turn. That is the fastest way for callers that come one at a time. Where they do not,
//! the others use the queue meanwhile, the worker goes to and fro between the two, and
//! each of them waits for the others' wake-ups. So while callers keep meeting each other,
//! all of them use the queue, which the worker empties without a sleep.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

/// What one meeting counts for, against calls that meet no other.
const MEETING: u32 = 4;
/// So much makes a crowd.
const CROWD: u32 = 4 * MEETING;
/// More is not remembered: a crowd is over after so many calls that meet no other.
const MOST: u32 = 4 * CROWD;

/// See the module. Callers change it without regard to each other; what is lost by that
/// does not matter.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    score: AtomicU32,
    /// Callers that wait for jobs of theirs in the queue.
    waiting: AtomicU32,
}

/// A caller that waits for its job in the queue, until it is dropped.
pub(crate) struct Present<'a>(&'a Crowd);

impl Crowd {
    /// Whether callers are to use the queue, and no lane.
    #[inline]
    pub(crate) fn is_there(&self) -> bool {
        !cfg!(netns_without = "crowd") && self.score.load(Relaxed) >= CROWD
    }

    /// A call has met no other.
    #[inline]
    pub(crate) fn alone(&self) {
        let score = self.score.load(Relaxed);
        if score > 0 {
            self.score.store(score - 1, Relaxed);
        }
    }

    /// A call has met another.
    pub(crate) fn met(&self) {
        let score = self.score.load(Relaxed);
        if score < MOST {
            self.score.store(score + MEETING, Relaxed);
        }
    }

    /// Notes that the calling thread is about to wait for a job in the queue.
    pub(crate) fn wait(&self) -> Present<'_> {
        if self.waiting.fetch_add(1, Relaxed) > 0 {
            self.met();
        } else {
            self.alone();
        }
        Present(self)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_that_keep_meeting_are_a_crowd_until_they_do_not() {
        let crowd = Crowd::default();
        crowd.met();
        assert!(!crowd.is_there(), "once is no crowd");
        let first = crowd.wait();
        for _ in 0..100 {
            drop(crowd.wait());
        }
        assert!(crowd.is_there());
        drop(first);
        let calls = (1..).find(|_| {
            drop(crowd.wait());
            !crowd.is_there()
        });
        assert!(calls.is_some_and(|calls| calls <= MOST));
    }

    #[test]
    fn meeting_now_and_then_is_no_crowd() {
        let crowd = Crowd::default();
        for call in 0..1_000 {
            match call % 8 {
                0 => crowd.met(),
                _ => crowd.alone(),
            }
            assert!(!crowd.is_there());
        }
    }
}
