//! The threads of this process that serve a namespace, by tid.
//!
//! Whoever looks at `/proc/self/task` (the audit, and [`Guard::Detect`] after a
//! job) needs to know which threads are in a foreign namespace because this
//! library put them there. A thread signs in before it enters its namespace and
//! out when it is done; between that and the moment the kernel lets go of it
//! there is an instant in which it looks like a stray, so those who look ask
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
    seats: BTreeMap::new(),
    strays: BTreeMap::new(),
});

struct Roster {
    seats: BTreeMap<u32, Arc<Seat>>,
    /// Threads that some job was already blamed for, and when they started: each
    /// is reported once, and another one that gets its number is another one.
    strays: BTreeMap<u32, u64>,
}

#[derive(Debug)]
struct Seat {
    /// `None` for a visitor, which may see several.
    netns: Option<NetnsId>,
    /// One of [`FREE`], [`BUSY`] and [`SUSPECT`].
    state: AtomicU8,
}

/// No job is running.
const FREE: u8 = 0;
/// A job is running, and a thread that turns up may be its doing.
const BUSY: u8 = 1;
/// Busy, and somebody saw a thread that may be this job's: it must look for
/// itself before it is free.
const SUSPECT: u8 = 2;

/// A thread's entry in the roster, taken back when dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    tid: u32,
    seat: Arc<Seat>,
}

/// Signs the calling thread in as a worker of `netns`.
///
/// To be called before it enters, so that nobody sees it inside unregistered.
pub(crate) fn enter(netns: NetnsId) -> Registration {
    register(Some(netns))
}

/// Signs the calling thread in as one that enters some namespace for a moment
/// on this library's behalf.
pub(crate) fn visit() -> Registration {
    register(None)
}

fn register(netns: Option<NetnsId>) -> Registration {
    let tid = sys::thread::tid();
    let seat = Arc::new(Seat {
        netns,
        state: AtomicU8::new(FREE),
    });
    ROSTER.lock().seats.insert(tid, Arc::clone(&seat));
    Registration { tid, seat }
}

/// Tells whether `tid` is a thread that this library put where it is.
pub(crate) fn is_worker(tid: u32) -> bool {
    ROSTER.lock().seats.contains_key(&tid)
}

/// Returns the namespace that the worker `tid` serves; `None` when it is no
/// worker, or only visiting.
pub(crate) fn netns_of(tid: u32) -> Option<NetnsId> {
    ROSTER.lock().seats.get(&tid).and_then(|seat| seat.netns)
}

/// Keeps of `alive`, all the threads there are, those that are no workers.
pub(crate) fn unknown(alive: &[u32]) -> Vec<u32> {
    let roster = ROSTER.lock();
    (alive.iter().copied())
        .filter(|tid| !roster.seats.contains_key(tid))
        .collect()
}

/// Tells whether some job was already blamed for the thread that got this
/// number at this time.
pub(crate) fn is_reported(tid: u32, started: u64) -> bool {
    ROSTER.lock().strays.get(&tid) == Some(&started)
}

/// Blames the calling job for those of `threads`, with the times they started,
/// that no job was blamed for yet, and returns them. `alive` is what forgets the
/// dead.
pub(crate) fn claim(threads: &[(u32, u64)], alive: &[u32]) -> Vec<u32> {
    let mut roster = ROSTER.lock();
    roster.strays.retain(|tid, _| alive.contains(tid));
    (threads.iter().copied())
        .filter(|&(tid, started)| roster.strays.insert(tid, started) != Some(started))
        .map(|(tid, _)| tid)
        .collect()
}

impl Registration {
    /// Says that a job begins.
    pub(crate) fn job_begins(&self) {
        self.seat.state.store(BUSY, Ordering::SeqCst);
    }

    /// Says that the job is over; `false` when somebody saw a thread that may
    /// be its doing, which is then to be looked for, and this asked again.
    pub(crate) fn job_ends(&self) -> bool {
        let ended =
            (self.seat.state).compare_exchange(BUSY, FREE, Ordering::SeqCst, Ordering::SeqCst);
        match ended {
            Ok(_) | Err(FREE) => true,
            Err(_) => {
                self.seat.state.store(BUSY, Ordering::SeqCst);
                false
            }
        }
    }

    /// Leaves the blame for an unknown thread to the jobs that are running in
    /// the same namespace; `false` when there are none.
    pub(crate) fn suspect_others(&self) -> bool {
        let mut any = false;
        for (&tid, seat) in &ROSTER.lock().seats {
            if tid == self.tid || seat.netns != self.seat.netns {
                continue;
            }
            let busy =
                (seat.state).compare_exchange(BUSY, SUSPECT, Ordering::SeqCst, Ordering::SeqCst);
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
        if (roster.seats.get(&self.tid)).is_some_and(|seat| Arc::ptr_eq(seat, &self.seat)) {
            roster.seats.remove(&self.tid);
        }
    }
}
