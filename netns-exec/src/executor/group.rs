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

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::pool::Pool;
use super::queue::Queue;
use super::stats::NetnsStats;
use crate::error::{Error, Result};
use crate::handoff::job::JobRef;
use crate::handoff::lane::{Claim, Lane, Serving};
use crate::handoff::outcome::Counters;
use crate::netns::watch::Subscription;
use crate::netns::{Netns, NetnsId};
use crate::sync::{AtomicBool, AtomicU32, Condvar, Mutex, Ordering, fence};

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
}

/// What a group has decided and its caller does, without the group's lock.
#[must_use]
pub(crate) enum Todo {
    Nothing,
    Start(Start),
    /// Ship these elsewhere: the group died before they were served.
    Reship(Vec<JobRef>),
}

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

/// See the module.
pub(crate) struct Group {
    pool: Arc<Pool>,
    id: NetnsId,
    /// Tells the groups of one namespace apart, which come one after the other.
    serial: u64,
    label: Box<str>,
    lanes: Box<[Lane]>,
    pub(super) queue: Queue,
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
    /// A parked spare has been called, or shall leave.
    spare_wanted: Condvar,
}

/// How many workers are not blocked in a call of their own, those included that are
/// being born because jobs rely on them. Ordered by the fences of its users.
struct Runnable(AtomicU32);

impl Runnable {
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
    /// Retires the group when its namespace loses its last name. Made and dropped
    /// outside the locks: it has some of its own.
    watched: Option<Subscription>,
    live: Vec<Arc<Member>>,
    /// Which lanes have a worker, born or being born.
    taken: Vec<bool>,
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
}

impl Group {
    pub(crate) fn new(pool: &Arc<Pool>, id: NetnsId, label: &str, serial: u64) -> Group {
        let lanes = pool.config.workers_per_netns;
        Group {
            pool: Arc::clone(pool),
            id,
            serial,
            label: label.into(),
            lanes: (0..lanes).map(|_| Lane::new()).collect(),
            queue: Queue::new(pool.config.queue_depth),
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
                watched: None,
                live: Vec::new(),
                taken: vec![false; lanes],
                starting: 0,
                asked: VecDeque::new(),
                next_ask: 0,
                spares_parked: 0,
                called: 0,
                dead: false,
                failures: 0,
                last_failure: None,
                done: 0,
                panicked: 0,
            }),
            changed: Condvar::new(),
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

    /// Takes the lane of a free worker, of one that is awake if there is a choice.
    #[inline]
    pub(crate) fn claim(&self) -> Option<Claim<'_>> {
        if let [lane] = &*self.lanes {
            return lane.claim();
        }
        let awake = self.lanes.iter().filter(|lane| lane.is_awake_and_free());
        (awake.chain(&self.lanes)).find_map(Lane::claim)
    }

    /// Whether there is a worker just now. It may leave before a job is pushed:
    /// [`notify`](Group::notify) sees to that.
    pub(crate) fn is_served(&self) -> bool {
        self.alive.load(Ordering::Relaxed) > 0
    }

    /// Sees to it that what was just pushed, be it many jobs, is served.
    pub(crate) fn notify(&self) -> Todo {
        // Between the push and all that follows; the other halves are in
        // `Serving::begin_park`, `worker_blocks` and `leave`.
        fence(Ordering::SeqCst);
        if self.runnable.count() == 0 {
            return self.rescue();
        }
        // A worker that is awake and free looks at the queue before it parks.
        if self.lanes.iter().any(Lane::is_awake_and_free) {
            return Todo::Nothing;
        }
        if !self.lanes.iter().any(Lane::wake) && self.lanes.len() > 1 {
            return self.grow();
        }
        Todo::Nothing
    }

    /// Called by a worker that turns to a job: the sender of another one may have
    /// relied on this worker, which now will not come back for a while.
    pub(crate) fn cover_queue(&self) -> Todo {
        if self.lanes.len() == 1 {
            return Todo::Nothing;
        }
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
        let free = state.taken.iter().position(|taken| !taken);
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
            return Todo::Reship(self.queue.take_all());
        }
        if state.spares_parked > state.called {
            state.called += 1;
            self.runnable.add();
            self.spare_wanted.notify_one();
            return Todo::Nothing;
        }
        // Not held back by `max_workers`: the callers of the blocked workers may be
        // the very ones that wait for this job.
        self.pool.capacity.reserve_anyway();
        Todo::Start(self.begin_start(&mut state, Role::Spare, true))
    }

    // Birth.

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

    /// Begins the birth of the first worker, for which room has been reserved;
    /// `None`, and the room is given back, when that is not [`First::Wanted`] any
    /// more.
    pub(crate) fn begin_first(&self, netns: Netns) -> Option<Start> {
        let mut state = self.state.lock();
        if state.dead || self.is_retiring() || state.has_workers() {
            drop(state);
            self.pool.capacity.release();
            return None;
        }
        state.netns = Some(netns);
        Some(self.begin_start(&mut state, Role::Lane(0), true))
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
        Some(self.begin_start(&mut state, Role::Spare, true))
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

    fn begin_start(&self, state: &mut State, role: Role, is_needed: bool) -> Start {
        state.starting += 1;
        if let Role::Lane(index) = role {
            state.taken[index] = true;
        }
        if is_needed {
            self.runnable.add();
        }
        Start {
            number: self.pool.next_worker_number(),
            role,
            netns: (state.netns.clone()).expect("here while there are workers"),
            is_needed,
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
        self.changed.notify_all();
        drop(state);
        self.pool.capacity.note_change();
    }

    /// Notes that a worker could not be born. The thread that started it then asks
    /// for the [`orphans`](Group::orphans), if it was needed.
    pub(crate) fn start_failed(&self, role: Role, is_needed: bool, error: Error) {
        let mut state = self.state.lock();
        if let Role::Lane(index) = role {
            state.taken[index] = false;
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
        self.changed.notify_all();
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

    pub(crate) fn is_retiring(&self) -> bool {
        self.retiring.load(Ordering::Relaxed)
    }

    /// Whether a worker with nothing to do should not wait for more.
    pub(crate) fn wants_leave(&self, role: Role) -> bool {
        // A pin holds the lanes' workers and not those that stood in for them.
        let held = matches!(role, Role::Lane(_)) && self.is_pinned();
        let asked = || self.asked.load(Ordering::Relaxed) > 0 || self.pool.capacity.wants_any();
        self.is_retiring() || (!held && asked())
    }

    /// Takes a lane that has lost its worker, for a spare that serves under load:
    /// callers would go through the queue until the load pauses.
    pub(crate) fn take_vacant_lane(&self) -> Option<usize> {
        if !self.lanes.iter().any(Lane::is_closed) {
            return None;
        }
        let mut state = self.state.lock();
        let index = state.taken.iter().position(|taken| !taken)?;
        state.taken[index] = true;
        Some(index)
    }

    /// Asked once in a group's life, before a worker parks: what the deletion watch
    /// is to be told, if it has not been.
    pub(crate) fn unwatched(&self) -> Option<Netns> {
        if self.watch_asked.load(Ordering::Relaxed)
            || self.watch_asked.swap(true, Ordering::Relaxed)
        {
            return None;
        }
        self.state.lock().netns.clone()
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

    /// Closes the lane of a worker that is about to [`leave`](Group::leave); `false`
    /// when a call came first, which a spoiled worker gives back to its caller.
    ///
    /// No lock is held: the caller has claimed the lane, and may have to be given a
    /// CPU before it goes on.
    pub(crate) fn close_lane(&self, lane: &mut Serving<'_>, why: Leaving) -> bool {
        while !lane.close() {
            if why != Leaving::Spoiled {
                return false;
            }
            lane.refuse();
        }
        true
    }

    /// Takes the calling worker, whose lane is closed, off the group; `None` when
    /// there is work for it after all, which a spoiled one leaves to others.
    pub(super) fn leave(&self, member: &Member, role: Role, why: Leaving) -> Option<Todo> {
        let spoiled = why == Leaving::Spoiled;
        let mut state = self.state.lock();
        self.runnable.remove();
        // Between saying so and looking; the other half is in `notify`.
        fence(Ordering::SeqCst);
        if !spoiled && (!self.queue.is_empty() || !self.is_still_told(&state, why)) {
            self.runnable.add();
            return None;
        }
        state.live.retain(|live| live.number != member.number);
        self.alive.fetch_sub(1, Ordering::Relaxed);
        state.done += member.counters.done();
        state.panicked += member.counters.panicked();
        if let Role::Lane(index) = role {
            state.taken[index] = false;
        }
        state.asked.pop_front();
        self.note_asked(&state);
        self.pool.capacity.release();
        let mut todo = Todo::Nothing;
        if !self.queue.is_empty() {
            if self.runnable.count() == 0 {
                self.pool.capacity.reserve_anyway();
                todo = Todo::Start(self.begin_start(&mut state, role, true));
            } else if !self.lanes.iter().any(Lane::wake) {
                // The sender may have relied on us, and no sibling was asleep.
                todo = self.grow_locked(&mut state);
            }
        }
        self.changed.notify_all();
        Some(todo)
    }

    /// Whether a worker that leaves because it was told to is still to: it may have been
    /// another one's turn.
    fn is_still_told(&self, state: &State, why: Leaving) -> bool {
        why != Leaving::Told
            || self.is_retiring()
            || !state.asked.is_empty()
            || self.pool.capacity.give_way()
    }

    fn note_asked(&self, state: &State) {
        let asked = state.asked.len().try_into().unwrap_or(u32::MAX);
        self.asked.store(asked, Ordering::Relaxed);
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

    // Death.

    /// Lets go of the namespace when no worker is left, once; tells whether it did,
    /// with what is to be dropped outside the locks.
    #[must_use]
    pub(super) fn die_if_empty(&self) -> Option<Remains> {
        let mut state = self.state.lock();
        if state.dead || state.has_workers() {
            return None;
        }
        state.dead = true;
        // A thread that remembers this group sees that it must look again.
        self.retiring.store(true, Ordering::SeqCst);
        // Moved: the group is among those that leave for a moment longer.
        let (done, panicked) = (mem::take(&mut state.done), mem::take(&mut state.panicked));
        self.pool.add_totals(done, panicked);
        Some(Remains {
            _netns: state.netns.take(),
            _watched: state.watched.take(),
        })
    }

    /// Has every worker leave as soon as it has nothing to do.
    ///
    /// Tells whether there is any; if not, there never will be.
    pub(crate) fn retire(&self) -> bool {
        self.retiring.store(true, Ordering::SeqCst);
        self.wake_all();
        // After the store: a caller that starts the first worker looks at it, locked.
        self.state.lock().has_workers()
    }

    /// Asks one worker to make room for another namespace's, if one idles and no pin
    /// holds it; returns the number by which that can be [taken back](Group::take_back).
    pub(super) fn ask_one(&self) -> Option<u64> {
        let number = {
            let mut state = self.state.lock();
            if !self.idles(&state) || state.asked.len() >= state.live.len() {
                return None;
            }
            let number = state.next_ask;
            state.next_ask += 1;
            state.asked.push_back(number);
            self.note_asked(&state);
            if state.spares_parked > state.called {
                self.spare_wanted.notify_one();
                return Some(number);
            }
            number
        };
        fence(Ordering::SeqCst);
        // One that is awake looks before it parks.
        self.lanes.iter().any(Lane::wake);
        Some(number)
    }

    /// Whether there is a worker that could make room at this moment.
    fn idles(&self, state: &State) -> bool {
        let idles = |lane: &Lane| lane.is_parked() || lane.is_awake_and_free();
        state.spares_parked > state.called || (!self.is_pinned() && self.lanes.iter().any(idles))
    }

    /// Whether a worker has yet to leave for the caller that got this number, and there
    /// is one that will soon.
    pub(super) fn will_hear(&self, number: u64) -> bool {
        let state = self.state.lock();
        state.asked.contains(&number) && self.idles(&state)
    }

    /// Asks no more for what [`ask_one`](Group::ask_one) has; nothing when a worker has left for it.
    pub(super) fn take_back(&self, number: u64) {
        let mut state = self.state.lock();
        state.asked.retain(|asked| *asked != number);
        self.note_asked(&state);
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn idle_since(&self) -> u64 {
        self.idle_since.load(Ordering::Relaxed)
    }

    /// Has every worker look around.
    fn wake_all(&self) {
        fence(Ordering::SeqCst);
        for lane in &self.lanes {
            lane.wake();
        }
        // Locked, so that a spare either sees the change or is waiting.
        let _state = self.state.lock();
        self.spare_wanted.notify_all();
    }

    /// Waits until no worker is left; `false` when `deadline` came first.
    pub(crate) fn wait_empty(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        while state.has_workers() {
            match deadline {
                None => self.changed.wait(&mut state),
                Some(deadline) => {
                    if self.changed.wait_until(&mut state, deadline).timed_out() {
                        return false;
                    }
                }
            }
        }
        true
    }

    pub(crate) fn pin(&self) {
        self.pins.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells whether its workers are held no more by anything that it knows of.
    pub(crate) fn unpin(&self) -> bool {
        if self.pins.fetch_sub(1, Ordering::SeqCst) > 1 {
            return false;
        }
        // They sleep without a limit; now there is one.
        self.wake_all();
        // The other half is in `note_unused`.
        self.unused.load(Ordering::SeqCst)
    }

    /// Notes that no user has a handle to the namespace; tells whether no pin holds the
    /// workers either.
    pub(super) fn note_unused(&self) -> bool {
        self.unused.store(true, Ordering::SeqCst);
        self.pins.load(Ordering::SeqCst) == 0
    }

    /// Whether the deletion watch has seen the namespace lose its last name, and the
    /// workers are those of later calls.
    pub(super) fn has_lost_name(&self) -> bool {
        let state = self.state.lock();
        state.netns.as_ref().is_some_and(Netns::lost_name)
    }

    pub(crate) fn stats(&self) -> NetnsStats {
        let state = self.state.lock();
        let counters = || state.live.iter().map(|member| &member.counters);
        NetnsStats {
            id: self.id,
            label: self.label.clone(),
            workers: state.live.len(),
            queued: self.queue.len(),
            running: counters().filter(|counters| counters.is_running()).count(),
            done: state.done + counters().map(|counters| counters.done()).sum::<u64>(),
            panicked: state.panicked + counters().map(|counters| counters.panicked()).sum::<u64>(),
        }
    }
}

/// What a dead group has left. Dropping it takes locks of the deletion watch.
pub(super) struct Remains {
    _netns: Option<Netns>,
    _watched: Option<Subscription>,
}
