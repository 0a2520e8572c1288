//! What is done at the moment at which the guard refuses a worker something.
//!
//! The thread that answers the refused call does it, before it answers. That is the ear or
//! a caller that waits, while the worker waits for the answer: it runs no user code and waits
//! for nothing. So it counts, for the guard that asks after the job and for the executor's
//! figures, and leaves it to [a thread at home](crate::home::aside) to tell the log: a
//! subscriber is user code, which may wait, or be refused something itself.
//!
//! The log is told once for each job, of the first thing that it was refused. Where too much
//! waits to be told already, it is not, and how often that was is said later.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::home::aside;
use crate::netns::id::NetnsId;
use crate::refused::Refused;

/// What one worker is refused. Relaxed throughout: the worker waits in its call while
/// others write.
#[derive(Default)]
pub(super) struct Refusals {
    /// Since the worker was born.
    threads: AtomicU32,
    moves: AtomicU32,
    /// The log has been told of the job that runs, or left alone.
    is_told: AtomicBool,
    place: OnceLock<Place>,
}

/// How many jobs the log was not told of since it was told last.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Where a worker is, and where its executor counts.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) netns: NetnsId,
    pub(crate) label: Arc<str>,
    /// What is refused to all workers of the executor.
    pub(crate) total: Arc<AtomicU64>,
}

impl Refusals {
    /// From now on the executor counts, and the log is told.
    pub(super) fn belong_to(&self, place: Place) {
        // Once a worker.
        let _ = self.place.set(place);
    }

    #[inline]
    pub(super) fn count(&self) -> Refused {
        Refused {
            threads: self.threads.load(Ordering::Relaxed),
            moves: self.moves.load(Ordering::Relaxed),
        }
    }

    /// Counts what is about to be refused, and has the log told of it.
    pub(super) fn note(&self, what: Refused) {
        self.threads.fetch_add(what.threads, Ordering::Relaxed);
        self.moves.fetch_add(what.moves, Ordering::Relaxed);
        let Some(place) = self.place.get() else {
            return;
        };
        place.total.fetch_add(what.total(), Ordering::Relaxed);
        if !self.is_told.load(Ordering::Relaxed) {
            self.is_told.store(true, Ordering::Relaxed);
            let place = place.clone();
            if !aside::tell_log(move || place.tell(what)) {
                LEFT_OUT.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The call was given up before the answer: it comes again if it is to. The log is
    /// not told once more then.
    pub(super) fn take_back(&self, what: Refused) {
        self.threads.fetch_sub(what.threads, Ordering::Relaxed);
        self.moves.fetch_sub(what.moves, Ordering::Relaxed);
        if let Some(place) = self.place.get() {
            place.total.fetch_sub(what.total(), Ordering::Relaxed);
        }
    }

    /// Has the log told of what is refused next: the job that it knows of has ended.
    pub(super) fn tell_anew(&self) {
        self.is_told.store(false, Ordering::Relaxed);
    }
}

impl Place {
    /// Tells the log that `what` was refused here.
    fn tell(&self, what: Refused) {
        let (netns, netns_id, cure) = (&self.label, self.netns, what.hint());
        let what = what.name();
        let left_out = LEFT_OUT.swap(0, Ordering::Relaxed);
        tracing::warn!(%netns, %netns_id, what, left_out, %cure, "refused by the guard");
    }
}
