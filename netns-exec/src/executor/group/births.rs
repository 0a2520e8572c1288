//! How the workers of a group come, as far as the group decides it.

use std::sync::Arc;

use super::{Group, Member, Role, Start, State};
use crate::error::{Error, Result};
use crate::handoff::job::JobRef;
use crate::netns::Netns;
use crate::sync::Ordering;

/// How a caller comes to the first worker of a group.
#[must_use]
pub(crate) enum First {
    /// It is there.
    Served,
    /// It is being born: wait for it.
    Coming,
    /// Reserve room, and begin.
    Wanted,
    /// The group has died: look its namespace up again.
    Dead,
}

impl Group {
    /// How the caller comes to a worker, when there is none yet.
    pub(crate) fn first(&self) -> First {
        let state = self.state.lock();
        if !state.live.is_empty() {
            First::Served
        } else if state.dead || (self.is_retiring() && state.starting == 0) {
            First::Dead
        } else if state.starting > 0 {
            First::Coming
        } else {
            First::Wanted
        }
    }

    /// Begins the birth of the first worker, for which room has been reserved. The
    /// handle comes back, and the room is given back, when that is not
    /// [`First::Wanted`] any more.
    pub(crate) fn begin_first(&self, netns: Netns) -> Result<Start, Netns> {
        let mut state = self.state.lock();
        if state.dead || self.is_retiring() || state.has_workers() {
            drop(state);
            self.pool.capacity.release();
            return Err(netns);
        }
        state.came_late = netns.lost_name();
        state.netns = Some(netns);
        Ok(self.begin_with(&mut state, Role::Lane(0)))
    }

    /// Begins, once more, the birth of a worker that jobs in the queue rely on: what it
    /// failed for may be there now. `None` when that is not so any more.
    pub(crate) fn begin_again(&self, netns: Netns) -> Option<Start> {
        let mut state = self.state.lock();
        if state.dead || self.runnable.count() > 0 || self.queue.is_empty() {
            return None;
        }
        // Let go of with the failure, when there was no other worker.
        state.netns.get_or_insert(netns);
        self.pool.capacity.reserve_anyway();
        // It takes a lane that has no worker with its first job.
        Some(self.begin_with(&mut state, Role::Spare))
    }

    /// Waits for the end of a birth that another thread has begun.
    pub(crate) fn wait_first(&self) -> Result<()> {
        let mut state = self.state.lock();
        let failures = state.failures;
        while state.live.is_empty() && state.starting > 0 && state.failures == failures {
            self.changed.wait(&mut state);
        }
        if state.live.is_empty() && state.failures != failures {
            let failure = state.last_failure.as_ref();
            return Err(failure.expect("counted with its error").duplicate());
        }
        Ok(())
    }

    /// How many births have failed so far.
    pub(crate) fn failures(&self) -> u64 {
        self.state.lock().failures
    }

    /// Why there is no worker, when a birth has failed since there were `failures`.
    pub(crate) fn failure_since(&self, failures: u64) -> Option<Error> {
        let state = self.state.lock();
        (state.live.is_empty() && state.failures != failures)
            .then(|| (state.last_failure.as_ref()).expect("counted with its error"))
            .map(Error::duplicate)
    }

    /// Begins a birth with the handle of the thread that asks for it.
    fn begin_with(&self, state: &mut State, role: Role) -> Start {
        Start {
            is_first: true,
            ..self.begin_start(state, role, true)
        }
    }

    pub(super) fn begin_start(&self, state: &mut State, role: Role, is_needed: bool) -> Start {
        let number = self.pool.next_worker_number();
        state.starting += 1;
        if let Role::Lane(index) = role {
            state.taken[index] = Some(number);
        }
        if is_needed {
            self.runnable.add();
        }
        Start {
            number,
            role,
            netns: (state.netns.clone()).expect("here while there are workers"),
            is_needed,
            is_first: false,
        }
    }

    /// Called by a new worker when it has entered and its lane is open.
    pub(crate) fn started(&self, member: Arc<Member>, is_needed: bool) {
        let mut state = self.state.lock();
        if !is_needed {
            self.runnable.add();
        }
        state.starting -= 1;
        state.live.push(member);
        self.alive.fetch_add(1, Ordering::Relaxed);
        self.note_change();
        drop(state);
        self.pool.capacity.note_change();
    }

    /// Notes that a worker could not be born. The thread that started it then asks
    /// for the [`orphans`](Group::orphans), if it was needed.
    pub(crate) fn start_failed(&self, role: Role, is_needed: bool, error: Error) {
        let mut state = self.state.lock();
        if let Role::Lane(index) = role {
            state.taken[index] = None;
        }
        if is_needed {
            self.runnable.remove();
        }
        state.starting -= 1;
        state.failures += 1;
        state.last_failure = Some(error);
        if !state.has_workers() {
            state.netns = None;
        }
        self.pool.capacity.release();
        self.note_change();
    }

    /// Whether there are jobs or futures that no worker will come to.
    pub(crate) fn has_orphans(&self) -> bool {
        let _state = self.state.lock();
        self.runnable.count() == 0 && (!self.queue.is_empty() || self.futures.len() > 0)
    }

    /// Takes the jobs that no worker will come to, because none is runnable and none
    /// could be born.
    #[must_use]
    pub(crate) fn orphans(&self) -> Vec<JobRef> {
        let _state = self.state.lock();
        if self.runnable.count() > 0 {
            return Vec::new();
        }
        self.queue.take_all()
    }
}
