//! A pinned thread's life: enter, guard, serve, leave.
//!
//! A *lane worker* owns one of its group's lanes for as long as it lives; there
//! are as many as [`Builder::workers_per_netns`](crate::Builder) says. A *spare*
//! has no lane: it serves the queue while lane workers are blocked in calls of
//! their own, see [`blocking`](super::current::blocking), so that no nesting of calls
//! can deadlock. A spare takes over a lane that has lost its worker.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::birth::{see_to, see_to_last};
use super::current;
use super::group::{Group, Leaving, Member, Role, Start};
use super::pool::Pool;
use super::registry::{Registry, Report};
use crate::error::{Error, Kind, Result};
use crate::guard::ThreadGuard;
use crate::handoff::job::JobRef;
use crate::handoff::lane::Serving;
use crate::handoff::outcome::{Counters, Door, discard};
use crate::handoff::pace::{self, Credit};
use crate::home::roster;
use crate::netns::{Netns, watch};

/// A worker that slept for so long is idle, and sees to itself: no caller waits for
/// its CPU any more. Longer than any timer tick: a timer before the next tick has to
/// be set in the hardware, at each park, and that takes longer than the rest.
const UPKEEP_AFTER: Duration = Duration::from_millis(20);

/// What a worker's thread runs.
pub(crate) fn main(registry: &Arc<Registry>, group: &Arc<Group>, start: Start, report: Report) {
    let Start {
        number,
        role,
        netns,
        ..
    } = start;
    let guard = match catch_unwind(AssertUnwindSafe(|| enter(&netns, registry.pool()))) {
        Ok(Ok(guard)) => guard,
        Ok(Err(error)) => return report(Err(error)),
        Err(panic) => {
            // Only a fault of this library gets here.
            discard(panic);
            let what = "panic while a worker was set up";
            return report(Err(Error::new(Kind::Panic, what)));
        }
    };
    // The group has a handle of its own, for as long as it has workers.
    drop(netns);
    current::begin(registry, group, guard.netns_check());
    let counters = Arc::new(Counters::default());
    let member = Arc::new(Member {
        number,
        counters: Arc::clone(&counters),
    });
    let mut worker = Worker {
        registry,
        group,
        member: &member,
        role,
        door: Door::new(guard, counters),
    };
    let lane = match role {
        Role::Lane(index) => Some(worker.open(index)),
        Role::Spare => None,
    };
    report(Ok(Arc::clone(&member)));
    worker.serve_until_the_end(lane);
}

/// Brings the calling thread, new and at home, to where it will stay.
fn enter(netns: &Netns, pool: &Pool) -> Result<ThreadGuard> {
    let registration = roster::sign_in(netns.id());
    netns.enter()?;
    pool.policy.install(registration)
}

/// What a round of serving ended with.
enum Round {
    Leaves(Leaving),
    /// The spare has this lane from now on.
    HasLane(usize),
}

struct Worker<'a> {
    registry: &'a Arc<Registry>,
    group: &'a Arc<Group>,
    member: &'a Member,
    role: Role,
    door: Door,
}

impl<'a> Worker<'a> {
    /// Opens a lane, busy as yet.
    fn open(&self, index: usize) -> Serving<'a> {
        (self.group.lane(index).open()).expect("a lane has one worker at a time")
    }

    /// Serves, and leaves the group in order, whatever happens.
    fn serve_until_the_end(&mut self, mut lane: Option<Serving<'a>>) {
        let span = self.span();
        // The subscriber is user code here as well.
        let in_span = (span.as_ref()).and_then(|span| self.door.report(|| span.enter()));
        let is_spare = lane.is_none();
        // A subscriber may ship its line through this very namespace: the lane is
        // busy, so that callers use the queue, and others serve it meanwhile.
        self.door
            .report(|| tracing::debug!(is_spare, "worker started"));
        if let Some(lack) = self.door.guards_lack() {
            self.door.report(|| tracing::debug!("{lack}"));
        }
        if let Some(lane) = &mut lane {
            lane.end_busy();
        }
        let served = catch_unwind(AssertUnwindSafe(|| self.serve(&mut lane)));
        let why = served.unwrap_or_else(|panic| {
            // Only a fault of this library gets here. Its callers are told, and
            // another worker takes over.
            discard(panic);
            self.leave_spoiled(lane.as_mut())
        });
        self.tell_news();
        let (done, panicked) = (self.member.counters.done(), self.member.counters.panicked());
        self.door.report(|| match why {
            Leaving::Spoiled => tracing::warn!(
                done,
                panicked,
                "worker retired: its thread was left where nothing else may run"
            ),
            Leaving::Idle | Leaving::Told => {
                let idle = why == Leaving::Idle;
                tracing::debug!(done, panicked, idle, "worker retired");
            }
        });
        self.door.report(|| drop(in_span));
        self.door.report(|| drop(span));
    }

    /// `None` when the subscriber panics.
    fn span(&mut self) -> Option<tracing::Span> {
        let (group, number) = (self.group, self.member.number);
        self.door.report(|| {
            tracing::info_span!(
                parent: None,
                "netns_worker",
                netns = %group.label(),
                netns_id = %group.id(),
                worker = number,
            )
        })
    }

    fn serve(&mut self, lane: &mut Option<Serving<'a>>) -> Leaving {
        loop {
            if let Some(lane) = lane {
                return self.serve_lane(lane);
            }
            match self.serve_as_spare() {
                Round::Leaves(why) => return why,
                Round::HasLane(index) => {
                    self.role = Role::Lane(index);
                    let lane = lane.insert(self.open(index));
                    lane.end_busy();
                }
            }
        }
    }

    fn serve_lane(&mut self, lane: &mut Serving<'a>) -> Leaving {
        let may_spin = self.group.pool().may_spin;
        let mut credit = Credit::new();
        // Whether it has just emptied the queue.
        let mut emptied = false;
        loop {
            current::came_back();
            if self.door.is_spoiled() {
                return self.leave_spoiled(Some(lane));
            }
            if lane.has_call() {
                self.cover_queue();
                lane.serve(&mut self.door);
                if lane.was_sent_away() {
                    credit = Credit::full();
                }
            } else if !self.group.queue.is_empty() {
                if lane.begin_busy() {
                    self.serve_queue();
                    if self.door.is_spoiled() {
                        continue;
                    }
                    lane.end_busy();
                    emptied = true;
                } else {
                    lane.await_post();
                }
            } else if mem::take(&mut emptied) && may_spin && self.group.queue.expects_jobs() {
                // A sender that floods the queue and this worker would sleep by turns.
                Credit::full().spin(pace::LONGEST_SPIN, || self.has_work(lane));
            } else if may_spin && !self.wants_leave() && may_spin_for(lane, &mut credit) {
                credit.spin(lane.spin_budget(), || self.has_work(lane));
            } else if let Some(why) = self.park(lane, &mut credit) {
                return why;
            }
        }
    }

    /// Whether it should not wait for more when it has nothing to do, be it for a
    /// moment: a worker that is called without a pause is asked for its room as well.
    #[inline]
    fn wants_leave(&self) -> bool {
        self.group.wants_leave(self.role)
    }

    #[inline]
    fn has_work(&self, lane: &Serving<'_>) -> bool {
        lane.has_call() || !self.group.queue.is_empty()
    }

    /// Runs the jobs of the queue until there is none, or the thread is spoiled.
    fn serve_queue(&mut self) {
        while !self.door.is_spoiled()
            && let Some(job) = self.group.queue.take()
        {
            self.cover_queue();
            self.run(job);
        }
    }

    /// Sleeps until there may be work; says so when the worker has left instead.
    fn park(&mut self, lane: &mut Serving<'a>, credit: &mut Credit) -> Option<Leaving> {
        let parked = Instant::now();
        if !lane.begin_park(parked) {
            lane.await_post();
            return None;
        }
        if !self.group.queue.is_empty() {
            lane.stay_awake();
            return None;
        }
        if self.wants_leave() {
            return self.leave_lane(lane, Leaving::Told);
        }
        self.group.note_idle();
        // What an idle worker does is not done yet: on a CPU that both share, the
        // caller would wait for it.
        if lane.sleep(Some(UPKEEP_AFTER)) {
            if parked.elapsed() < pace::QUICK {
                credit.gain();
            }
            return None;
        }
        if !self.upkeep() {
            return Some(self.leave_spoiled(Some(lane)));
        }
        if lane.sleep(self.idle_timeout()) {
            return None;
        }
        // Pinned meanwhile? Then the next round sleeps without a limit.
        if self.idle_timeout().is_none() {
            lane.stay_awake();
            return None;
        }
        self.leave_lane(lane, Leaving::Idle)
    }

    /// What an idle worker does for itself; `false` when its thread is unfit.
    fn upkeep(&mut self) -> bool {
        if !self.door.before_park() {
            return false;
        }
        self.watch_for_deletion();
        self.tell_news();
        // A subscriber may have polled a handle.
        current::came_back();
        !self.door.is_spoiled()
    }

    /// Has the log told what the watch's thread, which runs no user code, has to say.
    fn tell_news(&mut self) {
        for news in watch::take_news() {
            self.door.report(|| news.tell());
        }
    }

    /// Has the group retired when its namespace loses its last name: from then on
    /// it would be kept alive by its idle workers alone.
    fn watch_for_deletion(&mut self) {
        if cfg!(loom) {
            // Takes a thread of its own, and is told of by `retire` alone.
            return;
        }
        let Some(netns) = self.group.unwatched() else {
            return;
        };
        let group = self.group;
        let (id, weak, named) = (group.id(), Arc::downgrade(self.registry), netns.downgrade());
        let retire = move || {
            // Calls that still come have workers that idle, as in a namespace
            // that never had a name.
            named.note_lost_name();
            if let Some(registry) = weak.upgrade() {
                registry.retire(id);
            }
        };
        // A job that was quick to end may find its namespace deleted by now.
        let had_name = netns.had_name();
        let subscribed =
            (netns.inode()).and_then(|inode| watch::subscribe(inode, id, had_name, retire));
        drop(netns);
        match subscribed {
            Ok(subscription) => drop(group.keep_watched(subscription)),
            Err(error) => {
                self.door.report(|| {
                    tracing::warn!(
                        netns = %group.label(),
                        netns_id = %id,
                        error = %error,
                        "deletion is not watched: an idle worker keeps the namespace until it times out"
                    );
                });
            }
        }
    }

    fn idle_timeout(&self) -> Option<Duration> {
        if self.group.is_pinned() {
            None
        } else {
            self.group.pool().config.idle_timeout
        }
    }

    fn serve_as_spare(&mut self) -> Round {
        loop {
            current::came_back();
            while let Some(job) = self.group.queue.take() {
                self.cover_queue();
                self.run(job);
                if self.door.is_spoiled() {
                    return Round::Leaves(self.leave_spoiled(None));
                }
                if let Some(index) = self.group.take_vacant_lane() {
                    return Round::HasLane(index);
                }
                if self.group.has_enough_workers() {
                    break;
                }
            }
            if !self.door.before_park() {
                return Round::Leaves(self.leave_spoiled(None));
            }
            let timeout = self.group.pool().config.idle_timeout;
            if let Some(why) = self.group.park_spare(timeout)
                && self.leave(why)
            {
                return Round::Leaves(why);
            }
        }
    }

    fn run(&mut self, job: JobRef) {
        if self.group.pool().is_abandoned() {
            self.door.run("drop of a cancelled job", || {
                job.abort(Error::new(
                    Kind::Cancelled,
                    "job cancelled: the executor shut down before it started",
                ));
            });
        } else {
            job.execute(&mut self.door);
        }
        current::came_back();
    }

    fn cover_queue(&self) {
        see_to(self.registry, self.group, self.group.cover_queue());
    }

    // Death.

    fn leave_lane(&self, lane: &mut Serving<'a>, why: Leaving) -> Option<Leaving> {
        if !self.group.close_lane(lane, why) {
            return None;
        }
        if self.leave(why) {
            return Some(why);
        }
        lane.reopen();
        None
    }

    /// Leaves although jobs may wait: they go to others.
    fn leave_spoiled(&self, lane: Option<&mut Serving<'a>>) -> Leaving {
        let why = Leaving::Spoiled;
        let left = match lane {
            Some(lane) => self.leave_lane(lane, why).is_some(),
            None => self.leave(why),
        };
        assert!(left, "a spoiled worker always leaves");
        why
    }

    /// Leaves the group; `false` when there is work after all.
    fn leave(&self, why: Leaving) -> bool {
        match (self.registry).leave(self.group, self.member, self.role, why) {
            None => false,
            Some(todo) => {
                current::left();
                // The successor of a spoiled worker is waited for: it is this thread
                // that tells the owners of the jobs if there will be none.
                let is_spoiled = why == Leaving::Spoiled;
                see_to_last(self.registry, self.group, todo, is_spoiled);
                true
            }
        }
    }
}

/// Whether the worker of `lane` should spin before it parks.
#[inline]
fn may_spin_for(lane: &Serving<'_>, credit: &mut Credit) -> bool {
    !lane.is_beside_caller() && credit.allows()
}
