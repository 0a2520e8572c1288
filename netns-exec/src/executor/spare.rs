//! What holds descriptors ahead of use, and gives them up: when the process runs out of
//! them, and when the namespace that they keep alive is let go.
//!
//! The executor knows of it by this list alone. What is on it closes descriptors and
//! does nothing else: it is told on the deletion watch's thread, too.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::netns::NetnsId;

/// Why spare descriptors are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GiveUp {
    /// The process has none left.
    RunOut,
    /// Workers of the namespace end, and are not to be outlived.
    Retired,
}

/// Holds descriptors that can be had again.
pub(crate) trait Spare: Send + Sync {
    /// Closes them; tells how many there were. Runs no user code and waits for nothing.
    fn give_up(&self, why: GiveUp) -> usize;
}

struct Entry {
    /// The [key](super::pool::Pool::key) of the executor that it belongs to.
    executor: u64,
    netns: NetnsId,
    spare: Weak<dyn Spare>,
}

static SPARES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// Has `spare` told when an executor retires a namespace, and when descriptors run out.
pub(crate) fn enlist(executor: u64, netns: NetnsId, spare: Weak<dyn Spare>) {
    let mut spares = SPARES.lock();
    spares.retain(|entry| entry.spare.strong_count() > 0);
    spares.push(Entry {
        executor,
        netns,
        spare,
    });
}

/// Gives up what an executor has to spare in one namespace, or in all.
pub(crate) fn retire(executor: u64, netns: Option<NetnsId>) {
    let concerned = |entry: &Entry| {
        entry.executor == executor && netns.is_none_or(|netns| entry.netns == netns)
    };
    for spare in find(concerned) {
        spare.give_up(GiveUp::Retired);
    }
}

/// How many descriptors have been given up because there were none left.
static GIVEN_UP: Mutex<u64> = Mutex::new(0);

/// To be asked before what may fail for want of a descriptor.
pub(crate) fn given_up() -> u64 {
    *GIVEN_UP.lock()
}

/// Gives up all there is, since the process has run out of descriptors; tells whether
/// any was given up since there were `before`, be it for another thread.
pub(crate) fn run_out(before: u64) -> bool {
    // Locked, so that what another thread is about to give up counts as well.
    let mut given_up = GIVEN_UP.lock();
    for spare in find(|_| true) {
        *given_up += spare.give_up(GiveUp::RunOut) as u64;
    }
    *given_up != before
}

/// Out of the list's lock: closing takes time.
fn find(which: impl Fn(&Entry) -> bool) -> Vec<Arc<dyn Spare>> {
    let spares = SPARES.lock();
    let found = spares.iter().filter(|entry| which(entry));
    found.filter_map(|entry| entry.spare.upgrade()).collect()
}
