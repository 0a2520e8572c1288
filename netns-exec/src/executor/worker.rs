//! A pinned thread's life: enter, guard, serve, leave.
//!
//! A *lane worker* owns one of its group's lanes for as long as it lives; there
//! are as many as [`Builder::workers_per_netns`](crate::Builder) says. A *spare*
//! has no lane: it serves the queue while lane workers are blocked in calls of
//! their own, see [`blocking`], so that no nesting of calls can deadlock.

use std::cell::{Cell, OnceCell};
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind};
use crate::executor::{Group, Role, Shared};
use crate::guard::{NetnsCheck, ThreadGuard, ThreadState};
use crate::handoff::job::JobRef;
use crate::handoff::lane::Serving;
use crate::handoff::outcome::{After, Counters, Site};
use crate::handoff::pace::{self, Credit};
use crate::home::roster;
use crate::netns::Netns;
use crate::sync;

/// A worker that slept for so long is idle, and sees to itself: nobody waits for
/// its CPU any more. Longer than any timer tick: a timer before the next tick has to
/// be set in the hardware, at each park, and that takes longer than the rest.
const SETTLE: Duration = Duration::from_millis(20);

/// What a group knows of one of its workers.
pub(crate) struct Record {
    pub(crate) number: u64,
    pub(crate) role: Role,
    pub(crate) counters: Arc<Counters>,
}

/// The worker that the calling thread is.
pub(crate) struct Current {
    pub(crate) shared: Arc<Shared>,
    pub(crate) group: Arc<Group>,
    /// `None` when no job can take the thread out of its namespace.
    netns_check: Option<Rc<NetnsCheck>>,
}

impl Current {
    /// Whether the thread is in its namespace: a job of a guard that lets it may
    /// have moved it, and not be over.
    #[inline]
    pub(crate) fn is_in_place(&self) -> bool {
        (self.netns_check.as_ref()).is_none_or(|check| check.is_in_place())
    }
}

sync::local! {
    /// Cheaper to ask than `CURRENT`, and enough for all but workers.
    static IS_WORKER: Cell<bool> = Cell::new(false);
    static CURRENT: OnceCell<Current> = OnceCell::new();
    /// Whether the calling thread is inside [`blocking`].
    static WAITS: Cell<bool> = Cell::new(false);
}

/// Calls `f` with the worker that the calling thread is, if it is one.
#[inline]
pub(crate) fn with_current<R>(f: impl FnOnce(Option<&Current>) -> R) -> R {
    if !IS_WORKER.with(Cell::get) {
        return f(None);
    }
    CURRENT.with(|current| f(current.get()))
}

/// Whether the calling thread is a worker, of whatever executor.
#[inline]
pub(crate) fn is_worker() -> bool {
    IS_WORKER.with(Cell::get)
}

/// Surrounds whatever makes a thread wait for a job.
///
/// On a worker, its group learns that it has one thread less to serve its queue
/// and gets a spare when it needs one. On any other thread it just calls `wait`.
#[inline]
pub(crate) fn blocking<R>(wait: impl FnOnce() -> R) -> R {
    // One wait can be part of another (for room in a queue, as part of a call):
    // the thread counts once.
    if !IS_WORKER.with(Cell::get) || WAITS.with(Cell::get) {
        return wait();
    }
    with_current(|current| match current {
        Some(current) => {
            WAITS.with(|it| it.set(true));
            current.group.worker_blocks(&current.shared);
            let result = wait();
            current.group.worker_goes_on();
            WAITS.with(|it| it.set(false));
            result
        }
        None => wait(),
    })
}

/// Everything a new worker needs to know, put together by its group.
pub(crate) struct Birth {
    pub(crate) number: u64,
    pub(crate) role: Role,
    pub(crate) netns: Netns,
    pub(crate) shared: Arc<Shared>,
    pub(crate) group: Arc<Group>,
}

impl Birth {
    /// The main function of a worker's thread.
    pub(crate) fn live(self) {
        let Birth {
            number,
            role,
            netns,
            shared,
            group,
        } = self;
        let span = tracing::info_span!(
            parent: None,
            "netns_worker",
            netns = %netns.label(),
            netns_id = %netns.id(),
            worker = number,
        );
        let _in_span = span.enter();
        let guard = match settle(&netns, &shared) {
            Ok(guard) => guard,
            Err(error) => {
                tracing::warn!(error = %error, "worker could not start");
                group.start_failed(&shared, role, error);
                shared.threads.ended(number);
                return;
            }
        };
        // The group has a handle of its own, for as long as it has workers.
        drop(netns);
        let counters = Arc::new(Counters::default());
        let record = Arc::new(Record {
            number,
            role,
            counters: Arc::clone(&counters),
        });
        IS_WORKER.with(|it| it.set(true));
        CURRENT.with(|current| {
            let _ = current.set(Current {
                shared: Arc::clone(&shared),
                group: Arc::clone(&group),
                netns_check: guard.netns_check(),
            });
        });
        let mut worker = Worker {
            shared: &shared,
            group: &group,
            record: &record,
            site: Site { guard, counters },
        };
        let why = match role {
            Role::Lane(index) => {
                let lane = (group.lane(index).open()).expect("a lane has one worker at a time");
                group.started(Arc::clone(&record));
                tracing::debug!("worker started");
                worker.serve_lane(lane)
            }
            Role::Spare => {
                group.started(Arc::clone(&record));
                tracing::debug!("spare worker started");
                worker.serve_as_spare()
            }
        };
        match why {
            Leaving::Spoiled => tracing::warn!(
                done = record.counters.done(),
                panicked = record.counters.panicked(),
                "worker retired: a job left its thread where nothing else may run"
            ),
            Leaving::Idle | Leaving::Told => tracing::debug!(
                done = record.counters.done(),
                panicked = record.counters.panicked(),
                idle = matches!(why, Leaving::Idle),
                "worker retired"
            ),
        }
        shared.threads.reap();
        shared.threads.ended(number);
    }
}

/// Brings the calling thread, new and at home, to where it will stay.
fn settle(netns: &Netns, shared: &Shared) -> Result<ThreadGuard, Error> {
    let registration = roster::sign_in(netns.id());
    netns.enter()?;
    shared.policy.install(registration)
}

/// Why a worker ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Nothing to do for as long as the executor allows.
    Idle,
    /// Its namespace is retired, or the executor shuts down.
    Told,
    /// The guard found its thread unfit for another job.
    Spoiled,
}

/// Whether the worker of `lane` should look for work before it parks.
#[inline]
fn may_spin(lane: &Serving<'_>, credit: &mut Credit) -> bool {
    !lane.is_beside_caller() && credit.allows()
}

struct Worker<'a> {
    shared: &'a Arc<Shared>,
    group: &'a Arc<Group>,
    record: &'a Record,
    site: Site,
}

impl Worker<'_> {
    fn serve_lane(&mut self, mut lane: Serving<'_>) -> Leaving {
        let mut credit = Credit::new();
        // Whether it has just emptied the queue.
        let mut emptied = false;
        loop {
            if lane.has_call() {
                self.group.pass_on(self.shared);
                if lane
                    .serve(&mut self.site)
                    .is_some_and(|after| after.spoiled)
                {
                    return self.leave_spoiled(Some(&mut lane));
                }
                if lane.was_sent_away() {
                    credit = Credit::full();
                }
            } else if self.group.has_queued() {
                if lane.begin_busy() {
                    while let Some(job) = self.group.take() {
                        self.group.pass_on(self.shared);
                        if self.run(job).spoiled {
                            return self.leave_spoiled(Some(&mut lane));
                        }
                    }
                    lane.end_busy();
                    emptied = true;
                } else {
                    lane.await_post();
                }
            } else if mem::take(&mut emptied) && self.shared.may_spin && self.group.expects_jobs() {
                // Whoever floods the queue and this worker would sleep by turns.
                Credit::full().spin(pace::LONGEST_SPIN, || self.has_work(&lane));
            } else if self.shared.may_spin && may_spin(&lane, &mut credit) {
                credit.spin(lane.spin_budget(), || self.has_work(&lane));
            } else if let Some(why) = self.park(&mut lane, &mut credit) {
                return why;
            }
        }
    }

    #[inline]
    fn has_work(&self, lane: &Serving<'_>) -> bool {
        lane.has_call() || self.group.has_queued()
    }

    /// Sleeps until there may be work; says so when the worker has left instead.
    fn park(&mut self, lane: &mut Serving<'_>, credit: &mut Credit) -> Option<Leaving> {
        let parked = Instant::now();
        if !lane.begin_park(parked) {
            lane.await_post();
            return None;
        }
        if self.group.has_queued() {
            lane.stay_awake();
            return None;
        }
        if self.group.wants_leave(self.record.role) {
            return self.leave(lane, Leaving::Told);
        }
        self.group.note_idle(self.shared);
        // What an idle worker does is not done yet: on a CPU that both share, the
        // caller would wait for it.
        if lane.sleep(Some(SETTLE)) {
            if parked.elapsed() < pace::QUICK {
                credit.gain();
            }
            return None;
        }
        if !matches!(self.site.guard.before_park(), ThreadState::Clean) {
            return Some(self.leave_spoiled(Some(lane)));
        }
        self.group.watch_for_deletion(self.shared);
        if lane.sleep(self.idle_timeout()) {
            return None;
        }
        // Pinned meanwhile? Then the next round sleeps without a limit.
        if self.idle_timeout().is_none() {
            lane.stay_awake();
            return None;
        }
        self.leave(lane, Leaving::Idle)
    }

    fn leave(&mut self, lane: &mut Serving<'_>, why: Leaving) -> Option<Leaving> {
        (self.group.leave(self.shared, self.record, Some(lane), why)).then_some(why)
    }

    fn idle_timeout(&self) -> Option<Duration> {
        if self.group.is_pinned() {
            None
        } else {
            self.shared.config.idle_timeout
        }
    }

    fn serve_as_spare(&mut self) -> Leaving {
        loop {
            while let Some(job) = self.group.take() {
                self.group.pass_on(self.shared);
                if self.run(job).spoiled {
                    return self.leave_spoiled(None);
                }
                if self.group.has_enough_workers() {
                    break;
                }
            }
            if !matches!(self.site.guard.before_park(), ThreadState::Clean) {
                return self.leave_spoiled(None);
            }
            let timeout = self.shared.config.idle_timeout;
            if let Some(why) = self.group.park_spare(self.shared, self.record, timeout) {
                return why;
            }
        }
    }

    fn run(&mut self, job: JobRef) -> After {
        if self.shared.is_abandoned() {
            job.abort(Error::new(
                Kind::Cancelled,
                "job cancelled: the executor shut down before it started",
            ));
            return After::default();
        }
        job.execute(&mut self.site)
    }

    fn leave_spoiled(&mut self, lane: Option<&mut Serving<'_>>) -> Leaving {
        let why = Leaving::Spoiled;
        let left = self.group.leave(self.shared, self.record, lane, why);
        assert!(left, "a spoiled worker always leaves");
        why
    }
}
