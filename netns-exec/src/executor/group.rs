//! The workers of one namespace: their lanes, their queue, their coming and going.
//!
//! Jobs reach a worker through its lane (a `run` that finds it free) or through
//! the queue they share. `runnable` counts the workers that are not blocked in a
//! call of their own. The sender that puts jobs in the queue and then finds
//! `runnable` at 0 sees to it that they are served, and so does a worker that is
//! about to block or to leave. Each side changes its half first, fences, and then
//! looks at the other's, so at least one of them notices.
//!
//! | event                    | under the lock                                        |
//! |--------------------------|-------------------------------------------------------|
//! | first job                | register, start a lane worker, wait for it or its error |
//! | all busy, lanes closed   | start another lane worker, do not wait                |
//! | all blocked, jobs queued | wake a spare, or start one and wait for it            |
//! | idle, told, spoiled      | close the lane, look at the queue once more, leave    |
//! | last worker left         | let go of the namespace; the group is never used again |
//!
//! A group only decides: what is to be done comes back as a [`Todo`], and is done
//! without its lock, by the thread that asked. So the thread that needs a worker is
//! the one that waits for its birth, and that tells the owners of jobs when there
//! will be none.

mod births;
mod exits;
mod futures;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

pub(crate) use self::births::First;
pub(in crate::executor) use self::exits::Remains;
pub(crate) use self::futures::Admitted;
use self::futures::Futures;
use super::crowd::Crowd;
use super::pool::Pool;
use super::queue::Queue;
use super::stats::NetnsStats;
use super::wakers::Wakers;
use crate::error::Error;
use crate::handoff::job::JobRef;
use crate::handoff::lane::{Claim, Lane};
use crate::handoff::outcome::Counters;
use crate::netns::watch::Subscription;
use crate::netns::{Netns, NetnsId};
use crate::payload::quietly;
use crate::sync::{AtomicBool, AtomicU32, Condvar, Mutex, Ordering, fence};

/// After so long without a job taken from the queue the log is told.
pub(crate) const IS_STUCK: Duration = Duration::from_secs(5);

/// What a worker serves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    Lane(usize),
    Spare,
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

/// What a group knows of one of its workers.
pub(crate) struct Member {
    pub(crate) number: u64,
    /// Woken by its bell, and not by futex.
    pub(crate) is_rung: bool,
    pub(crate) thread: ThreadId,
    pub(crate) counters: Arc<Counters>,
}

/// A worker that is to be started. Room for it has been reserved, and the group
/// counts it as being born.
#[must_use]
pub(crate) struct Start {
    pub(crate) number: u64,
    pub(crate) role: Role,
    pub(crate) netns: Netns,
    /// Jobs rely on it: the thread that starts it waits until it is there, and when it
    /// cannot be, gives the jobs up that have no other worker.
    pub(crate) is_needed: bool,
    /// `netns` is a handle of the thread that asks. Otherwise it is the group's, whose
    /// descriptor all threads share.
    pub(crate) is_first: bool,
}

/// What a group has decided and its caller does, without the group's lock.
#[must_use]
pub(crate) enum Todo {
    Nothing,
    Start(Start),
    /// Ship these elsewhere: the group died before they were served.
    Reship(Vec<JobRef>),
}

/// See the module.
pub(crate) struct Group {
    pool: Arc<Pool>,
    id: NetnsId,
    /// Tells the groups of one namespace apart, which come one after the other.
    serial: u64,
    label: Box<str>,
    /// Serves futures that are bound to a thread, and nothing else: with one worker, and
    /// no spare.
    is_local: bool,
    lanes: Box<[Lane]>,
    pub(super) crowd: Crowd,
    pub(super) queue: Queue,
    futures: Futures,
    runnable: Runnable,
    /// `state.live.len()`, for threads that only want to know that it is not 0.
    alive: AtomicU32,
    /// Set once: no worker stays when it has nothing to do.
    retiring: AtomicBool,
    /// Set once: the deletion watch has been asked.
    watch_asked: std::sync::atomic::AtomicBool,
    /// `state.asked.len()`, for workers that only want to know that it is not 0.
    asked: AtomicU32,
    pins: AtomicU32,
    /// Set once: its namespace had no user any more, and its workers were all that kept it.
    unused: AtomicBool,
    /// When a worker last had nothing to do, on the executor's own clock.
    idle_since: AtomicU64,
    state: Mutex<State>,
    /// A worker was born, could not be born, or left.
    changed: Condvar,
    /// Tasks that wait for the same. They register before they look at the state, and
    /// are woken under its lock.
    tasks: Wakers,
    /// A parked spare has been called, or shall leave.
    spare_wanted: Condvar,
}

/// How many workers are not blocked in a call of their own, those included that are
/// being born because jobs rely on them. Ordered by the fences of its users.
struct Runnable(AtomicU32);

impl Runnable {
    #[inline]
    fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn remove(&self) {
        let before = self.0.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0, "a worker that was never counted");
    }
}

struct State {
    /// What new workers enter; here only while there are workers.
    netns: Option<Netns>,
    /// Whether that was known then to have lost its name: such a group idles as where there
    /// never was one. Others may note it before this group's watch begins.
    came_late: bool,
    /// Retires the group when its namespace loses its last name. Made and dropped
    /// outside the locks: it has some of its own.
    watched: Option<Subscription>,
    live: Vec<Arc<Member>>,
    /// Which lanes have a worker, born or being born: its number.
    taken: Vec<Option<u64>>,
    /// The threads of those that are born, or 0.
    threads: Vec<u32>,
    starting: usize,
    /// By number: callers that want a worker to make room for another namespace's. At
    /// most as many as there are workers. The first one to leave is the first one's.
    asked: VecDeque<u64>,
    next_ask: u64,
    spares_parked: usize,
    /// Parked spares that were called and have not woken yet.
    called: usize,
    /// No worker and never one again: callers look the namespace up anew.
    dead: bool,
    /// It has died, and what it held is being dropped.
    has_remains: bool,
    /// No future is admitted any more.
    is_closed: bool,
    /// A thread seeks the first worker, for the futures that are there.
    is_sought: bool,
    /// Threads that do, or tell futures that there is none: the group does not die
    /// meanwhile.
    searches: u32,
    failures: u64,
    last_failure: Option<Error>,
    /// What workers that left have done.
    done: u64,
    panicked: u64,
}

impl State {
    fn has_workers(&self) -> bool {
        !self.live.is_empty() || self.starting > 0
    }

    /// Whether nothing of the group holds the namespace any more, but for the threads of
    /// workers that have left it.
    fn is_empty(&self) -> bool {
        !self.has_workers() && self.searches == 0 && !self.has_remains
    }
}

impl Group {
    pub(crate) fn new(
        pool: &Arc<Pool>,
        id: NetnsId,
        label: &str,
        serial: u64,
        is_local: bool,
    ) -> Group {
        let lanes = if is_local {
            1
        } else {
            pool.config.workers_per_netns
        };
        Group {
            pool: Arc::clone(pool),
            id,
            serial,
            label: label.into(),
            is_local,
            lanes: (0..lanes).map(|_| Lane::new()).collect(),
            crowd: Crowd::default(),
            queue: Queue::new(pool.config.queue_depth, pool.config.clock),
            futures: Futures::default(),
            runnable: Runnable(AtomicU32::new(0)),
            alive: AtomicU32::new(0),
            retiring: AtomicBool::new(false),
            watch_asked: false.into(),
            asked: AtomicU32::new(0),
            pins: AtomicU32::new(0),
            unused: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
            state: Mutex::new(State {
                netns: None,
                came_late: false,
                watched: None,
                live: Vec::new(),
                taken: vec![None; lanes],
                threads: vec![0; lanes],
                starting: 0,
                asked: VecDeque::new(),
                next_ask: 0,
                spares_parked: 0,
                called: 0,
                dead: false,
                has_remains: false,
                is_closed: false,
                is_sought: false,
                searches: 0,
                failures: 0,
                last_failure: None,
                done: 0,
                panicked: 0,
            }),
            changed: Condvar::new(),
            tasks: Wakers::default(),
            spare_wanted: Condvar::new(),
        }
    }

    pub(crate) fn id(&self) -> NetnsId {
        self.id
    }

    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(crate) fn lane(&self, index: usize) -> &Lane {
        &self.lanes[index]
    }

    // What callers do.

    /// Takes the lane of a free worker, of one that is awake if there is a choice; none
    /// while callers crowd.
    #[inline]
    pub(crate) fn claim(&self) -> Option<Claim<'_>> {
        if self.crowd.is_there() {
            return None;
        }
        let claim = match &*self.lanes {
            [lane] => lane.claim(),
            lanes => {
                let awake = lanes.iter().filter(|lane| lane.is_awake_and_free());
                (awake.chain(lanes)).find_map(Lane::claim)
            }
        };
        if claim.is_some() {
            self.crowd.alone();
        } else if self.lanes.iter().any(Lane::is_owned) {
            self.crowd.met();
        }
        claim
    }

    /// Whether there is a worker just now. It may leave before a job is pushed:
    /// [`notify`](Group::notify) sees to that.
    #[inline]
    pub(crate) fn is_served(&self) -> bool {
        self.alive.load(Ordering::Relaxed) > 0
    }

    /// Sees to it that what was just pushed, be it many jobs, is served.
    #[inline]
    pub(crate) fn notify(&self) -> Todo {
        // Between the push and all that follows; the other halves are in
        // `Serving::begin_park`, `worker_blocks` and `leave`.
        fence(Ordering::SeqCst);
        if self.runnable.count() == 0 {
            return self.rescue();
        }
        self.call_worker()
    }

    /// Has a worker look at the queue, of those that are not blocked.
    #[inline]
    fn call_worker(&self) -> Todo {
        // One that is awake and free looks before it parks.
        if self.lanes.iter().any(Lane::is_awake_and_free) {
            return Todo::Nothing;
        }
        if !self.lanes.iter().any(Lane::wake) && self.lanes.len() > 1 {
            return self.grow();
        }
        Todo::Nothing
    }

    /// Tells the log, once each time, when no job has been taken for long: by the sender of
    /// one more, since the worker that is kept says nothing.
    #[inline]
    pub(crate) fn tell_if_stuck(&self) {
        if let Some(stands_still) = self.queue.newly_stands_still_for(IS_STUCK) {
            self.tell_that_it_is_stuck(stands_still);
        }
    }

    #[cold]
    fn tell_that_it_is_stuck(&self, stands_still: Duration) {
        quietly(|| {
            tracing::warn!(
                netns = %self.label,
                netns_id = %self.id,
                queued = self.queue.len(),
                for_ms = stands_still.as_millis(),
                "calls wait behind a job that does not end: start what never ends with \
                 `Executor::thread`, or see `workers_per_netns`"
            );
        });
    }

    /// Whether more than one worker may serve it at a time.
    #[inline]
    pub(crate) fn may_have_several(&self) -> bool {
        self.lanes.len() > 1
    }

    /// Called by a worker that turns to a job: the sender of another one may have
    /// relied on this worker, which now will not come back for a while.
    pub(crate) fn cover_queue(&self) -> Todo {
        // Between the claim of this worker's lane and the look at the queue; the
        // other half is in `notify`.
        fence(Ordering::SeqCst);
        if self.queue.is_empty() {
            return Todo::Nothing;
        }
        self.notify()
    }

    /// Starts another worker if there is a lane without one. No job relies on it.
    fn grow(&self) -> Todo {
        if !self.lanes.iter().any(Lane::is_closed) {
            return Todo::Nothing;
        }
        self.grow_locked(&mut self.state.lock())
    }

    fn grow_locked(&self, state: &mut State) -> Todo {
        let free = state.taken.iter().position(Option::is_none);
        match free {
            Some(index)
                if !state.live.is_empty()
                    && state.starting == 0
                    && !self.queue.is_empty()
                    && self.pool.capacity.try_reserve() =>
            {
                Todo::Start(self.begin_start(state, Role::Lane(index), false))
            }
            _ => Todo::Nothing,
        }
    }

    /// Finds a worker for the queue when none is runnable.
    fn rescue(&self) -> Todo {
        let mut state = self.state.lock();
        if self.runnable.count() > 0 || self.queue.is_empty() {
            return Todo::Nothing;
        }
        if !state.has_workers() {
            return Todo::Reship(self.queue.take_jobs());
        }
        if state.spares_parked > state.called {
            self.call_spare(&mut state);
            return Todo::Nothing;
        }
        if self.is_local {
            // What is bound to a thread waits for it.
            return Todo::Nothing;
        }
        // Not held back by `max_workers`: the callers of the blocked workers may be
        // the very ones that wait for this job.
        self.pool.capacity.reserve_anyway();
        Todo::Start(self.begin_start(&mut state, Role::Spare, true))
    }

    // What workers do.

    /// Says that a worker is about to wait for a job elsewhere.
    pub(crate) fn worker_blocks(&self) -> Todo {
        self.runnable.remove();
        // Between saying so and looking; the other half is in `notify`.
        fence(Ordering::SeqCst);
        if self.runnable.count() == 0 && !self.queue.is_empty() {
            return self.rescue();
        }
        Todo::Nothing
    }

    pub(crate) fn worker_goes_on(&self) {
        self.runnable.add();
    }

    pub(crate) fn has_enough_workers(&self) -> bool {
        self.runnable.count() as usize > self.lanes.len()
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Relaxed) > 0
    }

    #[inline]
    pub(crate) fn is_retiring(&self) -> bool {
        self.retiring.load(Ordering::Relaxed)
    }

    /// Takes a lane that has lost its worker, for a spare that serves under load:
    /// callers would go through the queue until the load pauses.
    pub(crate) fn take_vacant_lane(&self, member: &Member) -> Option<usize> {
        if !self.lanes.iter().any(Lane::is_closed) {
            return None;
        }
        let mut state = self.state.lock();
        let index = state.taken.iter().position(Option::is_none)?;
        state.taken[index] = Some(member.number);
        Some(index)
    }

    /// Notes which thread has a lane, until it leaves.
    pub(crate) fn note_thread(&self, lane: usize, tid: u32) {
        self.state.lock().threads[lane] = tid;
    }

    /// The thread of a worker that a pin holds, if there is one just now.
    pub(crate) fn thread(&self) -> Option<u32> {
        let state = self.state.lock();
        state.threads.iter().copied().find(|tid| *tid != 0)
    }

    /// Asked once in a group's life, before a worker parks: what the deletion watch
    /// is to be told, if it has not been; and whether the namespace was known to have lost
    /// its name when the group got its first worker.
    pub(crate) fn unwatched(&self) -> Option<(Netns, bool)> {
        if self.watch_asked.load(Ordering::Relaxed)
            || self.watch_asked.swap(true, Ordering::Relaxed)
        {
            return None;
        }
        let state = self.state.lock();
        state.netns.clone().map(|netns| (netns, state.came_late))
    }

    /// Keeps the subscription to the deletion watch; gives it back, to be dropped,
    /// when the group has died meanwhile.
    pub(crate) fn keep_watched(&self, subscription: Subscription) -> Option<Subscription> {
        let mut state = self.state.lock();
        if state.dead {
            return Some(subscription);
        }
        state.watched.replace(subscription)
    }

    /// Notes that a worker has nothing to do, for `max_workers`.
    pub(crate) fn note_idle(&self) {
        self.idle_since.store(self.pool.tick(), Ordering::Relaxed);
        self.pool.capacity.note_change();
    }

    /// Parks a spare that has nothing to do; says why when it is to leave instead.
    pub(crate) fn park_spare(&self, timeout: Option<Duration>) -> Option<Leaving> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.state.lock();
        self.runnable.remove();
        // Between saying so and looking; the other half is in `notify`.
        fence(Ordering::SeqCst);
        if !self.queue.is_empty() && self.runnable.count() == 0 {
            self.runnable.add();
            return None;
        }
        state.spares_parked += 1;
        self.note_idle();
        let why = loop {
            if state.called > 0 {
                // The thread that called it has counted it as runnable.
                state.called -= 1;
                state.spares_parked -= 1;
                return None;
            }
            if self.wants_leave(Role::Spare) {
                break Leaving::Told;
            }
            match deadline {
                None => self.spare_wanted.wait(&mut state),
                Some(deadline) => {
                    let waited = self.spare_wanted.wait_until(&mut state, deadline);
                    if waited.timed_out() && state.called == 0 {
                        break Leaving::Idle;
                    }
                }
            }
        };
        state.spares_parked -= 1;
        self.runnable.add();
        Some(why)
    }

    /// Tells those that wait for a birth or for the end. The caller has the lock.
    fn note_change(&self) {
        self.changed.notify_all();
        self.tasks.wake_all();
    }

    pub(crate) fn tasks(&self) -> &Wakers {
        &self.tasks
    }

    pub(crate) fn idle_since(&self) -> u64 {
        self.idle_since.load(Ordering::Relaxed)
    }

    pub(crate) fn stats(&self) -> NetnsStats {
        let state = self.state.lock();
        let counters = || state.live.iter().map(|member| &member.counters);
        NetnsStats {
            id: self.id,
            label: self.label.clone(),
            workers: state.live.len(),
            rung: (state.live.iter().filter(|member| member.is_rung)).count(),
            queued: self.queue.len(),
            running: counters().filter(|counters| counters.is_running()).count(),
            futures: self.futures.len(),
            done: state.done + counters().map(|counters| counters.done()).sum::<u64>(),
            panicked: state.panicked + counters().map(|counters| counters.panicked()).sum::<u64>(),
        }
    }
}
