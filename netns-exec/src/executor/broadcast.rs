//! One closure in many namespaces at once.
//!
//! The caller hands a job to each namespace and sleeps until the last one is over.
//! It waits for none of them before: a namespace whose queue is full gets its job last,
//! and workers that have to be born are asked for ahead, some at a time, with the job
//! in their queue already.

use std::collections::VecDeque;
use std::sync::Arc;

use super::birth::{self, Coming};
use super::current;
use super::group::{First, Group};
use super::owner::Executor;
use super::registry::{Registry, Room};
use super::submit::{ensure_served, room_for_this_thread};
use crate::error::{Error, Result};
use crate::handoff;
use crate::handoff::job::JobRef;
use crate::netns::Netns;

/// How many workers a caller has born at the same time: the home thread makes one after
/// the other, and what each does then, in parallel, takes no longer than a few of these.
const BIRTHS_AT_ONCE: usize = 8;

pub(crate) fn broadcast<T: Send>(
    executor: &Executor,
    spaces: &[Netns],
    f: impl Fn(&Netns) -> T + Sync,
) -> Vec<Result<T>> {
    if let Err(error) = current::check_may_wait() {
        return spaces.iter().map(|_| Err(error.duplicate())).collect();
    }
    let registry = executor.registry();
    let outcomes = handoff::broadcast::broadcast(
        spaces,
        &f,
        |jobs| Sender::new(registry).send_all(jobs),
        |all_over| {
            if !all_over.is_set() {
                current::blocking(|| all_over.wait());
            }
        },
    );
    let results = outcomes.into_iter();
    results
        .map(|outcome| outcome.into_join_result(|_| None))
        .collect()
}

/// Hands jobs to namespaces.
struct Sender<'a> {
    registry: &'a Arc<Registry>,
    room: Room,
    /// Births that were asked for, oldest first.
    births: VecDeque<(Coming, &'a Netns)>,
    /// Jobs for queues that were full.
    late: Vec<(Arc<Group>, &'a Netns, JobRef)>,
}

impl<'a> Sender<'a> {
    fn new(registry: &'a Arc<Registry>) -> Self {
        Sender {
            registry,
            room: room_for_this_thread(Room::Awaited),
            births: VecDeque::new(),
            late: Vec::new(),
        }
    }

    fn send_all(mut self, jobs: &mut dyn Iterator<Item = (&'a Netns, JobRef)>) {
        for (netns, job) in jobs {
            self.send(netns, job);
        }
        while self.settle_one() {}
        for (group, netns, job) in self.late {
            current::blocking(|| group.queue.push(job));
            ensure_served(self.registry, netns, &group, Room::Awaited);
        }
    }

    fn send(&mut self, netns: &'a Netns, job: JobRef) {
        loop {
            let group = match self.registry.group(netns.id(), netns.label()) {
                Ok(group) => group,
                Err(error) => return job.abort(error),
            };
            if group.is_served() {
                return self.push(group, netns, job);
            }
            match group.first() {
                // A birth that fails gives up what it finds in the queue, and what comes
                // after that is for its sender to see to.
                First::Served | First::Coming => return self.push(group, netns, job),
                First::Dead => {}
                First::Wanted => match self.begin(&group, netns) {
                    Ok(Some(start)) => {
                        // Before the worker is there: it need not be woken for it.
                        if let Err(job) = group.queue.try_push(job) {
                            self.late.push((Arc::clone(&group), netns, job));
                        }
                        let coming = birth::post(self.registry, &group, start);
                        return self.births.push_back((coming, netns));
                    }
                    Ok(None) => {}
                    Err(error) => return job.abort(error),
                },
            }
        }
    }

    fn push(&mut self, group: Arc<Group>, netns: &'a Netns, job: JobRef) {
        match group.queue.try_push(job) {
            Ok(()) => ensure_served(self.registry, netns, &group, Room::Awaited),
            Err(job) => self.late.push((group, netns, job)),
        }
    }

    /// Begins the birth of a group's first worker; `None` when it is not wanted any
    /// more.
    fn begin(
        &mut self,
        group: &Group,
        netns: &Netns,
    ) -> Result<Option<super::group::Start>, Error> {
        if self.births.len() >= BIRTHS_AT_ONCE {
            self.settle_one();
        }
        let wanted = || matches!(group.first(), First::Wanted);
        if !self.registry.reserve(netns.id(), self.room, wanted)? {
            return Ok(None);
        }
        Ok(group.begin_first(netns.kept()).ok())
    }

    /// Waits for the end of the oldest birth; `false` when there is none.
    fn settle_one(&mut self) -> bool {
        let Some((coming, netns)) = self.births.pop_front() else {
            return false;
        };
        let group = Arc::clone(coming.group());
        let how = coming.wait();
        birth::settle(self.registry, &group, || Some(netns.kept()), how);
        true
    }
}
