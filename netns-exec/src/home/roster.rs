//! The threads of this process that serve a namespace, by tid.
//!
//! The readers of `/proc/self/task` (the audit, and [`Guard::Detect`] after a
//! job) need to know which threads are in a foreign namespace because this
//! library put them there. A thread signs in before it enters its namespace and
//! out when it is done. It is still there then: the destructors of thread-locals,
//! which are the user's code, may take any time. So its entry stays until the kernel
//! is about to let go of the thread; after that there is an instant in which it looks
//! like a stray, so both readers ask twice (see `guard::detect`).
//!
//! Those who look from outside, another copy of the library in this process among
//! them, read the same from tables that are published ([`sys::published`]).
//!
//! [`sys::published`]: crate::sys::published
//! [`Guard::Detect`]: crate::Guard::Detect

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::published::Role;
use crate::netns::id::NetnsId;
use crate::sys;
use crate::sys::published;

static ROSTER: Mutex<Roster> = Mutex::new(Roster {
    entries: BTreeMap::new(),
    leaving: VecDeque::new(),
    reported: BTreeMap::new(),
    published: BTreeMap::new(),
    tables: Vec::new(),
    free: Vec::new(),
});

struct Roster {
    entries: BTreeMap<u32, Arc<Entry>>,
    /// Those of the entries whose threads have signed out, and may have ended.
    leaving: VecDeque<Arc<Entry>>,
    /// Threads that some job was already blamed for, and when they started: each
    /// is reported once, and another one that gets its number is another one.
    reported: BTreeMap<u32, u64>,
    /// What is published of the entries.
    published: BTreeMap<u32, &'static published::Slot>,
    /// Where. More than one when the first is full.
    tables: Vec<&'static published::Table>,
    /// Slots of the tables that no thread has any more.
    free: Vec<&'static published::Slot>,
}

#[derive(Debug)]
struct Entry {
    tid: u32,
    /// `None` for a visitor, which may see several.
    netns: Option<NetnsId>,
    role: Role,
    /// When the thread started, in clock ticks; 0 when that could not be told.
    started: u64,
    /// One of [`FREE`], [`BUSY`] and [`SUSPECT`].
    state: AtomicU8,
    /// Set when it signs out: when it started, which tells it from another thread
    /// that gets its number.
    left: OnceLock<u64>,
}

impl Entry {
    /// Whether the thread is still there.
    fn holds(&self) -> bool {
        let Some(&started) = self.left.get() else {
            return true;
        };
        match sys::task::alive_since(self.tid) {
            Ok(now) => now == Some(started),
            // No descriptor to look with, for instance.
            Err(_) => true,
        }
    }
}

impl Roster {
    fn get(&self, tid: u32) -> Option<&Arc<Entry>> {
        self.entries.get(&tid).filter(|entry| entry.holds())
    }

    /// Forgets threads that have ended: two for each that signs in or out, so that
    /// they do not pile up, and a thousand that leave together do not each look at
    /// the others.
    fn forget_some(&mut self) {
        for _ in 0..2.min(self.leaving.len()) {
            let Some(entry) = self.leaving.pop_front() else {
                return;
            };
            if entry.holds() {
                self.leaving.push_back(entry);
            } else {
                self.remove(&entry);
            }
        }
    }

    fn remove(&mut self, entry: &Arc<Entry>) {
        // The number may be another thread's by now.
        if (self.entries.get(&entry.tid)).is_some_and(|other| Arc::ptr_eq(other, entry)) {
            self.entries.remove(&entry.tid);
            if let Some(slot) = self.published.remove(&entry.tid) {
                slot.clear();
                self.free.push(slot);
            }
        }
    }

    fn insert(&mut self, entry: &Arc<Entry>) {
        self.entries.insert(entry.tid, Arc::clone(entry));
        // A model's threads are all one.
        if cfg!(loom) {
            return;
        }
        if let Some(slot) = self.published.get(&entry.tid) {
            slot.set(entry.role, entry.tid, entry.started);
        }
        if self.published.len() == self.entries.len() {
            return;
        }
        // Others too, for which there was no table before: it may have taken a
        // descriptor that was not to be had.
        let unpublished: Vec<_> = (self.entries.values())
            .filter(|entry| !self.published.contains_key(&entry.tid))
            .cloned()
            .collect();
        for entry in unpublished {
            let Some(slot) = self.slot() else {
                return;
            };
            slot.set(entry.role, entry.tid, entry.started);
            self.published.insert(entry.tid, slot);
        }
    }

    fn slot(&mut self) -> Option<&'static published::Slot> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if let Some(slot) = self.tables.last().and_then(|table| table.take()) {
            return Some(slot);
        }
        let table = published::Table::publish().ok()?;
        self.tables.push(table);
        table.take()
    }
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
    entry: Arc<Entry>,
}

/// Signs the calling thread in as a worker of `netns`.
///
/// To be called before it enters, so that no reader sees it inside unregistered.
pub(crate) fn sign_in(netns: NetnsId) -> Registration {
    register(Some(netns), Role::Worker(netns.as_u64()))
}

/// Signs the calling thread in as one that enters some namespace for a moment
/// on this library's behalf.
pub(crate) fn sign_in_visitor() -> Registration {
    register(None, Role::Own)
}

/// Signs the calling thread in as the home thread.
pub(crate) fn sign_in_home() -> Registration {
    register(None, Role::Home)
}

fn register(netns: Option<NetnsId>, role: Role) -> Registration {
    let tid = sys::thread::tid();
    let started = match cfg!(loom) {
        true => None,
        false => sys::task::alive_since(tid).ok().flatten(),
    };
    let entry = Arc::new(Entry {
        tid,
        netns,
        role,
        started: started.unwrap_or(0),
        state: AtomicU8::new(FREE),
        left: OnceLock::new(),
    });
    let mut roster = ROSTER.lock();
    roster.forget_some();
    roster.insert(&entry);
    drop(roster);
    Registration { entry }
}

/// Tells whether `tid` is a thread that this library put where it is.
#[cfg(test)]
pub(crate) fn contains(tid: u32) -> bool {
    ROSTER.lock().get(tid).is_some()
}

/// Tells what the thread `tid` signed in as.
pub(crate) fn role_of(tid: u32) -> Option<Role> {
    ROSTER.lock().get(tid).map(|entry| entry.role)
}

/// Finds the home thread.
pub(crate) fn home_thread() -> Option<u32> {
    let roster = ROSTER.lock();
    let mut entries = roster.entries.values();
    entries.find_map(|entry| (entry.role == Role::Home).then_some(entry.tid))
}

/// Returns the namespace that the worker `tid` serves; `None` when it is no
/// worker, or only visiting.
#[cfg(test)]
pub(crate) fn netns_of(tid: u32) -> Option<NetnsId> {
    ROSTER.lock().get(tid).and_then(|entry| entry.netns)
}

/// Keeps of `alive`, all the threads there are, those that are not signed in: strangers, and
/// those that have signed out, which [`is_leaving`] tells apart.
pub(crate) fn not_signed_in(alive: &[u32]) -> Vec<u32> {
    let roster = ROSTER.lock();
    let is_signed_in = |tid: &u32| {
        let entry = roster.entries.get(tid);
        entry.is_some_and(|entry| entry.left.get().is_none())
    };
    (alive.iter().copied())
        .filter(|tid| !is_signed_in(tid))
        .collect()
}

/// Tells whether the thread that got this number at this time has signed out, and is about
/// to end. Takes no descriptor: without one an entry whose thread has ended would stand for
/// the next thread that has its number.
pub(crate) fn is_leaving(tid: u32, started: u64) -> bool {
    let roster = ROSTER.lock();
    let entry = roster.entries.get(&tid);
    entry.is_some_and(|entry| entry.left.get() == Some(&started))
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
            if tid == self.entry.tid || entry.netns != self.entry.netns {
                continue;
            }
            let busy =
                (entry.state).compare_exchange(BUSY, SUSPECT, Ordering::SeqCst, Ordering::SeqCst);
            any |= matches!(busy, Ok(_) | Err(SUSPECT));
        }
        any
    }
}

#[cfg(test)]
impl Registration {
    /// Makes it as if the thread had never signed in.
    pub(crate) fn take_back(self) {
        ROSTER.lock().remove(&self.entry);
        std::mem::forget(self);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.entry.state.store(FREE, Ordering::SeqCst);
        // Dropped by another thread, it may outlive its own.
        let is_own = self.entry.tid == sys::thread::tid() && !cfg!(loom);
        let started = is_own.then(|| match self.entry.started {
            0 => sys::task::alive_since(self.entry.tid).ok().flatten(),
            // Not asked for again: there may be no descriptor for that now.
            started => Some(started),
        });
        let mut roster = ROSTER.lock();
        roster.forget_some();
        if let Some(started) = started.flatten()
            && self.entry.left.set(started).is_ok()
        {
            roster.leaving.push_back(Arc::clone(&self.entry));
        } else {
            roster.remove(&self.entry);
        }
    }
}
