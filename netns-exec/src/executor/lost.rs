//! Workers that are lost: their threads have ended without leaving.
//!
//! A job can end its thread by exit(2), which unwinds nothing and drops nothing, and a
//! filter of its own may have the kernel do so. The listener of the thread hears of it; then
//! another thread does what the worker owed: it takes the worker off its group and its
//! lane, tells the owner of the job that it was at, and starts a successor where there is
//! work. What was on the lost thread's stack is never dropped.

use std::sync::Arc;

use super::birth;
use super::group::{Group, Leaving, Member, Role, Todo};
use super::registry::Registry;
use crate::bell::{Bell, Ended};
use crate::guard::ThreadGuard;
use crate::handoff::job;
use crate::handoff::outcome::{Counters, thread_ended};

/// While this is there the end of its thread is noticed.
pub(super) struct Watched(Option<Arc<Bell>>);

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(bell) = &self.0 {
            bell.when_lost(None);
        }
    }
}

/// Has `take_over` called, elsewhere, if the calling thread ends before the result is dropped.
fn watch(
    guard: &ThreadGuard,
    registry: &Arc<Registry>,
    take_over: impl FnOnce(&Arc<Registry>, &Ended) + Send + 'static,
) -> Watched {
    let bell = guard.listened().map(|listened| Arc::clone(listened.bell()));
    if let Some(bell) = &bell {
        let registry = Arc::downgrade(registry);
        bell.when_lost(Some(Box::new(move |thread| {
            if let Some(registry) = registry.upgrade() {
                take_over(&registry, thread);
            }
        })));
    }
    Watched(bell)
}

/// For a worker of `group`.
pub(super) fn watch_worker(
    guard: &ThreadGuard,
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    member: &Arc<Member>,
) -> Watched {
    let (group, member) = (Arc::downgrade(group), Arc::clone(member));
    watch(guard, registry, move |registry, worker| {
        if let Some(group) = group.upgrade() {
            take_over(registry, &group, &member, worker);
        }
    })
}

/// Does what is left to be done of what a worker owes.
fn take_over(registry: &Arc<Registry>, group: &Arc<Group>, member: &Member, worker: &Ended) {
    // First: once it has left its group it may be joined.
    registry.pool().threads.lost(member.number);
    let mut todo = Todo::Nothing;
    // It may have left, and ended in what is the user's and comes after that.
    if let Some(role) = group.role_of(member) {
        let call = match role {
            Role::Lane(index) => group.lane(index).close_lost(worker),
            Role::Spare => None,
        };
        let had_begun = member.counters.is_running();
        todo = (registry.leave(group, member, role, Leaving::Spoiled)).unwrap_or(Todo::Nothing);
        // From here on who is told finds the worker gone.
        if let Some(call) = call {
            call.tell(had_begun);
        }
        job::lose(&member.counters, worker);
        for task in group.bound_futures() {
            task.lose(member.thread, &thread_ended());
        }
    }
    for orphan in birth::carry_out(registry, group, todo) {
        orphan.abort(thread_ended());
    }
}

/// For a thread that is the executor's `number` and has one job.
pub(super) fn watch_apart(
    guard: &ThreadGuard,
    registry: &Arc<Registry>,
    number: u64,
    counters: &Arc<Counters>,
) -> Watched {
    let counters = Arc::clone(counters);
    watch(guard, registry, move |registry, thread| {
        let pool = registry.pool();
        pool.threads.lost(number);
        registry.remove_apart(number);
        pool.add_totals(counters.done(), counters.panicked());
        job::lose(&counters, thread);
    })
}
