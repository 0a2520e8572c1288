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
use std::thread;
use std::time::{Duration, Instant};

use super::birth::{see_to, see_to_last};
use super::current;
use super::event::Event;
use super::group::{Group, Leaving, Member, Role, Start};
use super::lost;
use super::registry::{Registry, Report};
use crate::bell::ear::Punctual;
use crate::bell::refusals::Place;
use crate::error::{Error, Kind, Result};
use crate::guard::ThreadGuard;
use crate::handoff::first_look::FirstLook;
use crate::handoff::job::{JobKind, JobRef};
use crate::handoff::lane::Serving;
use crate::handoff::outcome::{Counters, Door};
use crate::handoff::{pace, turns};
use crate::home::roster;
use crate::netns::{Netns, watch};
use crate::payload::discard;
use crate::sys;
use crate::sys::stack::Stack;

/// A worker that slept for so long is idle, and sees to itself: no caller waits for
/// its CPU any more. Longer than any timer tick: a timer before the next tick has to
/// be set in the hardware, at each park, and that takes longer than the rest.
const UPKEEP_AFTER: Duration = Duration::from_millis(20);

/// From here on a second more or less does not matter to the idle time.
const LONG_TIMEOUT: Duration = Duration::from_secs(5);

/// What a worker's thread runs.
pub(crate) fn main(registry: &Arc<Registry>, group: &Arc<Group>, start: Start, report: Report) {
    let Start {
        number,
        role,
        netns,
        ..
    } = start;
    let guard = match enter_or_say_why(&netns, registry) {
        Ok(guard) => guard,
        Err(error) => return report(Err(error)),
    };
    let stops_in = registry.hooks.netns_to_stop_in(&netns);
    // The group has a handle of its own, for as long as it has workers.
    drop(netns);
    current::begin(registry, group, guard.netns_check());
    let counters = Arc::new(Counters::default());
    let member = Arc::new(Member {
        number,
        is_rung: guard
            .listened()
            .is_some_and(|listened| listened.bell().rings()),
        thread: thread::current().id(),
        counters: Arc::clone(&counters),
    });
    let _watched = lost::watch_worker(&guard, registry, group, &member);
    let mut worker = Worker {
        registry,
        group,
        member: &member,
        role,
        door: Door::new(guard, counters),
        stops_in,
        is_new: true,
    };
    let lane = match role {
        Role::Lane(index) => Some(worker.open(index)),
        Role::Spare => None,
    };
    report(Ok(Arc::clone(&member)));
    worker.serve_until_the_end(lane);
}

/// Brings the calling thread, new and at home, to where it will stay, and does not panic.
pub(crate) fn enter_or_say_why(netns: &Netns, registry: &Registry) -> Result<ThreadGuard> {
    catch_unwind(AssertUnwindSafe(|| enter(netns, registry))).unwrap_or_else(|panic| {
        // Only a fault of this library gets here.
        discard(panic);
        Err(Error::new(Kind::Panic, "panic while a worker was set up"))
    })
}

/// Brings the calling thread, new and at home, to where it will stay.
fn enter(netns: &Netns, registry: &Registry) -> Result<ThreadGuard> {
    let registration = roster::sign_in(netns.id());
    netns.enter()?;
    // Before the guard, which takes the privilege away and the state of the thread for
    // what it is to stay.
    let pool = registry.pool();
    let view = pool.config.view.as_ref();
    view.map_or(Ok(()), |view| view.put_on_worker(netns))?;
    registry.hooks.run_start(netns)?;
    let mut guard = pool.policy.install(registration)?;
    if view.is_some() {
        (guard.keep_place())
            .map_err(|cause| Error::kernel("cannot tell where a worker is", cause))?;
    }
    if let Some(listened) = guard.listened() {
        listened.bell().belong_to(Place {
            netns: netns.id(),
            label: netns.label().into(),
            total: Arc::clone(&pool.refused),
        });
    }
    Ok(guard)
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
    /// What the stop hooks are told of, if there are any.
    stops_in: Option<Netns>,
    /// It has not seen to itself yet, so that nothing may watch its namespace.
    is_new: bool,
}

impl<'a> Worker<'a> {
    /// Opens a lane, busy as yet.
    fn open(&self, index: usize) -> Serving<'a> {
        self.group.note_thread(index, sys::thread::tid());
        let bell = self.door.listened().map(|listened| {
            let bell = listened.bell();
            let group = Arc::downgrade(self.group);
            bell.set_unpark(Some(Box::new(move || {
                (group.upgrade()).is_some_and(|group| group.lane(index).unpark_trapped())
            })));
            Arc::clone(bell)
        });
        (self.group.lane(index).open(bell)).expect("a lane has one worker at a time")
    }

    /// Serves, and leaves the group in order, whatever happens.
    fn serve_until_the_end(&mut self, mut lane: Option<Serving<'a>>) {
        let span = self.span();
        // The subscriber is user code here as well.
        let in_span = (span.as_ref()).and_then(|span| self.door.report(|| span.enter()));
        let is_spare = lane.is_none();
        // A subscriber may ship its line through this very namespace: the lane is
        // busy, so that callers use the queue, and others serve it meanwhile.
        let is_rung = self.member.is_rung;
        self.door
            .report(|| tracing::debug!(is_spare, is_rung, "worker started"));
        if let Some(lack) = self.door.guards_lack() {
            self.door.report(|| tracing::debug!("{lack}"));
        }
        let (netns, label) = (self.group.id(), self.group.label());
        let hooks = &self.registry.hooks;
        hooks.tell(&Event::WorkerStarted { netns, label }, &mut self.door);
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
        if let Some(netns) = self.stops_in.take() {
            self.registry.hooks.run_stop(&netns, &mut self.door);
        }
        let (done, panicked) = (self.member.counters.done(), self.member.counters.panicked());
        let retired = Event::WorkerRetired {
            netns,
            label,
            idle: why == Leaving::Idle,
            unfit: why == Leaving::Spoiled,
            done,
        };
        hooks.tell(&retired, &mut self.door);
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
        // What the last job was of the queue that it has just emptied.
        let mut emptied = None;
        let mut idle = Idle::default();
        let mut first_look = FirstLook::of_worker();
        loop {
            current::came_back();
            if self.door.is_spoiled() {
                return self.leave_spoiled(Some(lane));
            }
            if lane.has_call() {
                self.cover_queue();
                self.observed(Duration::ZERO, |worker| {
                    lane.serve(&mut worker.door);
                    if worker.registry.hooks.observe() {
                        // Its caller does not wait for observers as well.
                        lane.tell();
                    }
                    true
                });
                idle = Idle::default();
            } else if lane.is_called() || !self.group.queue.is_empty() {
                if lane.begin_busy() {
                    let last = self.serve_queue();
                    if last.is_some() {
                        lane.expect_caller(false);
                        emptied = last;
                        idle = Idle::default();
                    }
                    if self.door.is_spoiled() {
                        continue;
                    }
                    lane.end_busy();
                } else {
                    lane.await_post();
                }
            } else if may_spin && !self.wants_leave() && lane.expects_call() {
                // A caller that comes at once.
                emptied = None;
                let spun = pace::spin_in_time(&mut first_look, pace::SPIN, || self.has_work(lane));
                idle.since = spun.err().or(idle.since);
            } else if may_spin
                && emptied.is_some()
                && !self.wants_leave()
                && self.group.queue.expects_jobs()
            {
                // Senders that flood the queue, and would sleep by turns with this worker.
                emptied = None;
                let spun = pace::spin(pace::SPIN, || self.has_work(lane));
                idle.since = spun.err().or(idle.since);
            } else if let Some(last) = emptied.take()
                && !self.wants_leave()
                && self.finds_more_after(last, lane)
            {
                // Served in the next round.
            } else if let Some(why) = self.park(lane, &mut idle) {
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

    /// Waits for a moment for more jobs like the last one of the queue; tells whether there
    /// is work.
    fn finds_more_after(&self, last: JobKind, lane: &Serving<'_>) -> bool {
        let found = || self.has_work(lane);
        match last {
            // Its caller is about to see that it is over, and may have another one.
            JobKind::Call => turns::spin_then_by_turns(found),
            // A sender that floods the queue from this very CPU goes on meanwhile.
            JobKind::Task | JobKind::Poll => turns::spin_by_turns(found),
        }
    }

    /// Runs the jobs of the queue until there is none, or the thread is spoiled; tells
    /// what the last one was.
    fn serve_queue(&mut self) -> Option<JobKind> {
        let mut last = None;
        while !self.door.is_spoiled()
            && let Some((job, waited)) = self.group.queue.take_timed()
        {
            last = Some(job.kind());
            self.cover_queue();
            self.observed(waited, |worker| worker.run(job));
        }
        last
    }

    /// Sleeps until there may be work; says so when the worker has left instead.
    fn park(&mut self, lane: &mut Serving<'a>, idle: &mut Idle) -> Option<Leaving> {
        let since = *idle.since.get_or_insert_with(Instant::now);
        if !lane.begin_park(since) {
            lane.await_post();
            return None;
        }
        if !self.group.queue.is_empty() {
            lane.stay_awake();
            return None;
        }
        if self.wants_leave() {
            lane.stay_awake();
            return self.leave_lane(lane, Leaving::Told);
        }
        // Once: being woken for nothing is no use of it.
        if !mem::replace(&mut idle.is_noted, true) {
            self.group.note_idle();
        }
        // What an idle worker does is not done yet: on a CPU that both share, the
        // caller would wait for it.
        let timeout = self.idle_timeout();
        let limit = if idle.has_seen_to_itself {
            timeout
        } else {
            Some(UPKEEP_AFTER)
        };
        if lane.is_trapped()
            && let Some(listened) = self.door.listened()
        {
            let is_short = timeout.is_some_and(|timeout| timeout < LONG_TIMEOUT);
            // The caller is told only when the worker sleeps.
            let mind = match is_short || self.is_new || idle.has_seen_to_itself {
                true => Punctual::Yes,
                false => Punctual::No,
            };
            listened.set_alarm(limit, mind);
        }
        if lane.sleep(limit) {
            return None;
        }
        if !mem::replace(&mut idle.has_seen_to_itself, true) {
            // Who sends much to the queue would have done so by now.
            lane.expect_caller(true);
            return (!self.upkeep()).then(|| self.leave_spoiled(Some(lane)));
        }
        // Pinned meanwhile? Then the next round sleeps without a limit.
        self.idle_timeout()?;
        self.leave_lane(lane, Leaving::Idle)
    }

    /// What an idle worker does for itself; `false` when its thread is unfit.
    fn upkeep(&mut self) -> bool {
        self.is_new = false;
        if !self.door.before_park() {
            return false;
        }
        self.watch_for_deletion();
        self.tell_news();
        // A subscriber may have polled a handle.
        current::came_back();
        // One job that needed much would otherwise keep it from the system for ever.
        if let Ok(stack) = Stack::of_this_thread() {
            stack.trim();
        }
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
        let Some((netns, came_late)) = self.group.unwatched() else {
            return;
        };
        let group = self.group;
        let (id, weak) = (group.id(), Arc::downgrade(self.registry));
        let retire = move || {
            // Calls that still come have workers that idle, as in a namespace
            // that never had a name.
            if let Some(registry) = weak.upgrade() {
                registry.retire(id);
            }
        };
        // A job that was quick to end may find its namespace deleted by now.
        let had_name = !came_late && netns.had_name();
        let subscribed = watch::on_lost_name(&netns, had_name, retire);
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
            while let Some((job, waited)) = self.group.queue.take_timed() {
                self.cover_queue();
                self.observed(waited, |worker| worker.run(job));
                if self.door.is_spoiled() {
                    return Round::Leaves(self.leave_spoiled(None));
                }
                if let Some(index) = self.group.take_vacant_lane(self.member) {
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

    /// Has `run` run a job, which has waited for so long, and tells those of it who want to
    /// know; of a future that waits again, as `run` says then, they are not told.
    #[inline]
    fn observed(&mut self, queued: Duration, run: impl FnOnce(&mut Self) -> bool) {
        if !self.registry.hooks.observe() {
            run(self);
            return;
        }
        let panicked = self.member.counters.panicked();
        self.door.take_refusals();
        let began = Instant::now();
        if !run(self) {
            return;
        }
        let ran = began.elapsed();
        let refused = self.door.take_refusals();
        let event = Event::JobEnded {
            netns: self.group.id(),
            label: self.group.label(),
            queued,
            ran,
            panicked: self.member.counters.panicked() > panicked,
            refused,
        };
        self.registry.hooks.tell(&event, &mut self.door);
    }

    /// Tells whether the job has ended: a future may wait again.
    #[inline]
    fn run(&mut self, job: JobRef) -> bool {
        let (is_future, done) = (job.kind() == JobKind::Poll, self.member.counters.done());
        // A future is closed by now, and dropped by its poll.
        if self.group.pool().is_abandoned() && !is_future {
            self.door.run("drop of a cancelled job", || {
                job.abort(Error::new(
                    Kind::Cancelled,
                    "job cancelled: the executor shut down before it started",
                ));
            });
        } else {
            job.execute(&mut self.door);
        }
        if is_future {
            // Futures that are woken all the time leave it no time to idle.
            self.watch_for_deletion();
        }
        current::came_back();
        !is_future || self.member.counters.done() > done
    }

    #[inline]
    fn cover_queue(&self) {
        if self.group.may_have_several() {
            self.have_queue_covered();
        }
    }

    fn have_queue_covered(&self) {
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
    fn leave_spoiled(&mut self, lane: Option<&mut Serving<'a>>) -> Leaving {
        let why = Leaving::Spoiled;
        for task in self.group.bound_futures() {
            task.end_here(&mut self.door);
        }
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

/// How a worker idles.
#[derive(Default)]
struct Idle {
    since: Option<Instant>,
    /// The group knows.
    is_noted: bool,
    /// It has done what an idle worker does.
    has_seen_to_itself: bool,
}
