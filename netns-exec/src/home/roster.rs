//! The threads of this process that serve a namespace, by tid.
//!
//! The readers of `/proc/self/task` (the audit, and [`Guard::Detect`] after a
//! job) need to know which threads are in a foreign namespace because this
//! library put them there. A thread signs in before it enters its namespace and
//! out when it is done; between that and the moment the kernel lets go of it
//! there is an instant in which it looks like a stray, so both readers ask
//! twice (see `guard::detect`).
//!
//! [`Guard::Detect`]: crate::Guard::Detect

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use crate::netns::id::NetnsId;
use crate::sys;

static ROSTER: Mutex<Roster> = Mutex::new(Roster {
    entries: BTreeMap::new(),
    reported: BTreeMap::new(),
});

struct Roster {
    entries: BTreeMap<u32, Arc<Entry>>,
    /// Threads that some job was already blamed for, and when they started: each
    /// is reported once, and another one that gets its number is another one.
    reported: BTreeMap<u32, u64>,
}

#[derive(Debug)]
struct Entry {
    /// `None` for a visitor, which may see several.
    netns: Option<NetnsId>,
    /// One of [`FREE`], [`BUSY`] and [`SUSPECT`].
    state: AtomicU8,
}

/// No job is running.
const FREE: u8 = 0;
/// A job is running, and a thread that turns up may be its doing.
const BUSY: u8 = 1;
/// Busy, and another worker saw a thread that may be this job's: this worker
/// must look for it before it is free.
const SUSPECT: u8 = 2;

/// A thread's entry in the roster, taken back when dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    tid: u32,
    entry: Arc<Entry>,
}

/// Signs the calling thread in as a worker of `netns`.
///
/// To be called before it enters, so that no reader sees it inside unregistered.
pub(crate) fn sign_in(netns: NetnsId) -> Registration {
    register(Some(netns))
}

/// Signs the calling thread in as one that enters some namespace for a moment
/// on this library's behalf.
pub(crate) fn sign_in_visitor() -> Registration {
    register(None)
}

fn register(netns: Option<NetnsId>) -> Registration {
    let tid = sys::thread::tid();
    let entry = Arc::new(Entry {
        netns,
        state: AtomicU8::new(FREE),
    });
    ROSTER.lock().entries.insert(tid, Arc::clone(&entry));
    Registration { tid, entry }
}

/// Tells whether `tid` is a thread that this library put where it is.
pub(crate) fn contains(tid: u32) -> bool {
    ROSTER.lock().entries.contains_key(&tid)
}

/// Returns the namespace that the worker `tid` serves; `None` when it is no
/// worker, or only visiting.
pub(crate) fn netns_of(tid: u32) -> Option<NetnsId> {
    ROSTER
        .lock()
        .entries
        .get(&tid)
        .and_then(|entry| entry.netns)
}

/// Keeps of `alive`, all the threads there are, those that are no workers.
pub(crate) fn unknown(alive: &[u32]) -> Vec<u32> {
    let roster = ROSTER.lock();
    (alive.iter().copied())
        .filter(|tid| !roster.entries.contains_key(tid))
        .collect()
}

/// Tells whether some job was already blamed for the thread that got this
/// number at this time.
pub(crate) fn is_reported(tid: u32, started: u64) -> bool {
    ROSTER.lock().reported.get(&tid) == Some(&started)
}

/// Blames the calling job for those of `threads`, with the times they started,
/// that no job was blamed for yet, and returns them. `alive` is what forgets the
/// dead.
pub(crate) fn blame(threads: &[(u32, u64)], alive: &[u32]) -> Vec<u32> {
    let mut roster = ROSTER.lock();
    roster.reported.retain(|tid, _| alive.contains(tid));
    (threads.iter().copied())
        .filter(|&(tid, started)| roster.reported.insert(tid, started) != Some(started))
        .map(|(tid, _)| tid)
        .collect()
}

impl Registration {
    /// Says that a job begins.
    pub(crate) fn job_begins(&self) {
        self.entry.state.store(BUSY, Ordering::SeqCst);
    }

    /// Says that the job is over; `false` when another worker saw a thread that
    /// may be its doing: look for that thread, and ask again.
    pub(crate) fn job_ends(&self) -> bool {
        let ended =
            (self.entry.state).compare_exchange(BUSY, FREE, Ordering::SeqCst, Ordering::SeqCst);
        match ended {
            Ok(_) | Err(FREE) => true,
            Err(_) => {
                self.entry.state.store(BUSY, Ordering::SeqCst);
                false
            }
        }
    }

    /// Leaves the blame for an unknown thread to the jobs that are running in
    /// the same namespace; `false` when there are none.
    pub(crate) fn suspect_others(&self) -> bool {
        let mut any = false;
        for (&tid, entry) in &ROSTER.lock().entries {
            if tid == self.tid || entry.netns != self.entry.netns {
                continue;
            }
            let busy =
                (entry.state).compare_exchange(BUSY, SUSPECT, Ordering::SeqCst, Ordering::SeqCst);
            any |= matches!(busy, Ok(_) | Err(SUSPECT));
        }
        any
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut roster = ROSTER.lock();
        // The number may be another thread's by now, when a registration
        // outlives its thread.
        if (roster.entries.get(&self.tid)).is_some_and(|entry| Arc::ptr_eq(entry, &self.entry)) {
            roster.entries.remove(&self.tid);
        }
    }
}
