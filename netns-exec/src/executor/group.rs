//! The workers of one namespace: their lanes, their queue, their coming and going.
//!
//! Jobs reach a worker through its lane (a `run` that finds it free) or through
//! the queue they share. `runnable` counts the workers that are not blocked in a
//! call of their own; whoever puts jobs in the queue and then finds `runnable`
//! at 0 sees to it that somebody serves them ([`Group::rescue`]), and so does a
//! worker that is about to block or to leave. Each side changes its half first,
//! fences, and then looks at the other's, so at least one of them notices.
//!
//! | event                    | under the lock                                        |
//! |--------------------------|-------------------------------------------------------|
//! | first job                | register, start a lane worker, wait for it or its error |
//! | all busy, lanes closed   | start another lane worker, do not wait                |
//! | all blocked, jobs queued | wake or start a spare                                 |
//! | idle, told, spoiled      | close the lane, look at the queue once more, leave    |
//! | last worker left         | let go of the namespace; the group is never used again |

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::registry::{Registry, Shared};
use super::stats::NetnsStats;
use super::submit::{Patience, Target};
use crate::error::{Error, Result};
use crate::executor::worker;
use crate::executor::worker::{Birth, Leaving, Record};
use crate::handoff::job::JobRef;
use crate::handoff::lane::{Claim, Lane, Serving};
use crate::handoff::pace;
use crate::handoff::placement::{Cpu, CpuHint};
use crate::home::Home;
use crate::netns::watch;
use crate::netns::{Netns, NetnsId};
use crate::sync::{
    self, AtomicBool, AtomicU32, Condvar, Mutex, Ordering, Receiver, Sender, TrySendError, fence,
    thread,
};

/// What a worker serves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    Lane(usize),
    Spare,
}

/// See the module.
pub(crate) struct Group {
    id: NetnsId,
    /// Tells the groups of one namespace apart, which come one after the other.
    serial: u64,
    label: Box<str>,
    lanes: Box<[Lane]>,
    sender: Sender<JobRef>,
    receiver: Receiver<JobRef>,
    /// Workers, born or being born, that are not blocked in a call of their own.
    runnable: AtomicU32,
    /// `state.live.len()`, for those who only want to know that it is not 0.
    alive: AtomicU32,
    /// Set once: no worker stays when it has nothing to do.
    retiring: AtomicBool,
    /// Set once: the deletion watch has been asked.
    watch_asked: std::sync::atomic::AtomicBool,
    /// How many workers are asked to make room for another namespace's.
    evictions: AtomicU32,
    pins: AtomicU32,
    /// When a worker last had nothing to do, on the executor's own clock.
    idle_since: AtomicU64,
    /// Senders that wait for room in the queue.
    waiting: AtomicU32,
    /// Where the last of them was.
    waiting_on: CpuHint,
    room: Condvar,
    room_lock: Mutex<()>,
    state: Mutex<State>,
    /// A worker was born, could not be born, or left.
    changed: Condvar,
    /// A parked spare was given a ticket, or shall leave.
    spare_wanted: Condvar,
}

struct State {
    /// What new workers enter; here only while there are workers.
    netns: Option<Netns>,
    /// Retires the group when its namespace loses its last name. Made and dropped
    /// outside the locks: it has some of its own.
    watched: Option<watch::Subscription>,
    live: Vec<Arc<Record>>,
    /// Which lanes have a worker, born or being born.
    taken: Vec<bool>,
    starting: usize,
    spares_parked: usize,
    /// Parked spares that were called and have not woken yet.
    tickets: usize,
    /// No worker and never one again: callers look the namespace up anew.
    dead: bool,
    failures: u64,
    last_failure: Option<Error>,
    /// What workers that left have done.
    done: u64,
    panicked: u64,
}

/// The group has died; look its namespace up again.
pub(crate) struct Dead;

impl Group {
    pub(crate) fn new(netns: &impl Target, serial: u64, lanes: usize, queue_depth: usize) -> Group {
        let (sender, receiver) = sync::bounded(queue_depth);
        Group {
            id: netns.id(),
            serial,
            label: netns.label().into(),
            lanes: (0..lanes).map(|_| Lane::new()).collect(),
            sender,
            receiver,
            runnable: AtomicU32::new(0),
            alive: AtomicU32::new(0),
            retiring: AtomicBool::new(false),
            watch_asked: false.into(),
            evictions: AtomicU32::new(0),
            pins: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
            waiting_on: CpuHint::new(),
            room: Condvar::new(),
            room_lock: Mutex::new(()),
            state: Mutex::new(State {
                netns: None,
                watched: None,
                live: Vec::new(),
                taken: vec![false; lanes],
                starting: 0,
                spares_parked: 0,
                tickets: 0,
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

    pub(crate) fn label(&self) -> &str {
        &self.label
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

    /// Sees to it that the group has a worker, and waits for the first one.
    ///
    /// Reserves room under `max_workers`, and fails when there is none and the
    /// caller does not want to wait for it.
    pub(crate) fn ensure_started(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        netns: &impl Target,
        patience: Patience,
    ) -> Result<Result<(), Dead>> {
        let mut state = self.state.lock();
        loop {
            if !state.live.is_empty() {
                return Ok(Ok(()));
            }
            if state.dead || (self.is_retiring() && state.starting == 0) {
                return Ok(Err(Dead));
            }
            let mut failures = state.failures;
            if state.starting == 0 {
                let netns = netns.netns()?;
                if !shared.capacity.try_reserve() {
                    drop(state);
                    shared.wait_for_capacity(patience)?;
                    state = self.state.lock();
                    if state.dead
                        || self.is_retiring()
                        || !state.live.is_empty()
                        || state.starting > 0
                    {
                        shared.capacity.release();
                        continue;
                    }
                }
                state.netns = Some(netns);
                failures = state.failures;
                self.begin_start(shared, &mut state, Role::Lane(0));
            }
            // Without a home thread it has failed already.
            if state.failures == failures {
                self.changed.wait(&mut state);
            }
            if state.failures != failures && state.live.is_empty() {
                let failure = state.last_failure.as_ref();
                return Err(failure.expect("counted with its error").duplicate());
            }
        }
    }

    /// Whether there is a worker just now. It may leave before a job is pushed:
    /// [`notify`](Group::notify) sees to that.
    pub(crate) fn is_served(&self) -> bool {
        self.alive.load(Ordering::Relaxed) > 0
    }

    /// Puts a job in the queue, if there is room.
    pub(crate) fn try_push(&self, job: JobRef) -> Result<(), JobRef> {
        self.sender.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
    }

    /// Puts a job in the queue, and waits for room when there is none.
    pub(crate) fn push(&self, job: JobRef) {
        let Err(mut job) = self.try_push(job) else {
            return;
        };
        worker::blocking(|| {
            if pace::spin_if_it_pays(|| !self.sender.is_full()) {
                match self.try_push(job) {
                    Ok(()) => return,
                    Err(back) => job = back,
                }
            }
            let mut guard = self.room_lock.lock();
            loop {
                self.waiting_on.set(Cpu::here(), false);
                self.waiting.fetch_add(1, Ordering::Relaxed);
                // The other half is in `take`: that one makes room, then looks
                // for us; we say that we wait, then look for room.
                fence(Ordering::SeqCst);
                let pushed = self.try_push(job);
                match pushed {
                    Ok(()) => {
                        self.waiting.fetch_sub(1, Ordering::Relaxed);
                        return;
                    }
                    Err(back) => job = back,
                }
                self.room.wait(&mut guard);
                self.waiting.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }

    /// Sees to it that what was just pushed, be it many jobs, is served. Returns
    /// jobs that this group will never run because it died: the caller ships them
    /// elsewhere.
    #[must_use]
    pub(crate) fn notify(self: &Arc<Self>, shared: &Arc<Shared>) -> Vec<JobRef> {
        // Between the push and all that follows; the other halves are in
        // `Serving::begin_park`, `worker_blocks` and `leave`.
        fence(Ordering::SeqCst);
        if self.runnable.load(Ordering::Relaxed) == 0 {
            return self.rescue(shared);
        }
        // A worker that is awake and free looks at the queue before it parks.
        if self.lanes.iter().any(Lane::is_awake_and_free) {
            return Vec::new();
        }
        if !self.lanes.iter().any(Lane::wake) && self.lanes.len() > 1 {
            self.grow(shared);
        }
        Vec::new()
    }

    /// Called by a worker that turns to a job: whoever sent another one meanwhile
    /// may have relied on this worker, which now will not come back for a while.
    pub(crate) fn pass_on(self: &Arc<Self>, shared: &Arc<Shared>) {
        if self.lanes.len() == 1 {
            return;
        }
        // Between the claim of this worker's lane and the look at the queue; the
        // other half is in `notify`.
        fence(Ordering::SeqCst);
        if self.has_queued() {
            let orphans = self.notify(shared);
            debug_assert!(orphans.is_empty(), "a group with a worker is not dead");
        }
    }

    /// Starts another worker if there is a lane without one, and does not wait.
    fn grow(self: &Arc<Self>, shared: &Arc<Shared>) {
        if !self.lanes.iter().any(Lane::is_closed) {
            return;
        }
        let mut state = self.state.lock();
        let free = state.taken.iter().position(|taken| !taken);
        if let Some(index) = free
            && !state.live.is_empty()
            && state.starting == 0
            && !self.receiver.is_empty()
            && shared.capacity.try_reserve()
        {
            self.begin_start(shared, &mut state, Role::Lane(index));
        }
    }

    /// Finds somebody to serve the queue when no worker is runnable.
    fn rescue(self: &Arc<Self>, shared: &Arc<Shared>) -> Vec<JobRef> {
        let mut state = self.state.lock();
        if self.runnable.load(Ordering::SeqCst) > 0 || self.receiver.is_empty() {
            return Vec::new();
        }
        if state.live.is_empty() && state.starting == 0 {
            return self.take_all();
        }
        if state.spares_parked > state.tickets {
            state.tickets += 1;
            self.runnable.fetch_add(1, Ordering::SeqCst);
            self.spare_wanted.notify_one();
        } else {
            // Not held back by `max_workers`: the callers of the blocked ones
            // may be the very ones that wait for this job.
            shared.capacity.reserve_anyway();
            self.begin_start(shared, &mut state, Role::Spare);
        }
        Vec::new()
    }

    // Birth.

    /// Has the home thread start a worker. Room for it has been reserved.
    fn begin_start(self: &Arc<Self>, shared: &Arc<Shared>, state: &mut State, role: Role) {
        state.starting += 1;
        if let Role::Lane(index) = role {
            state.taken[index] = true;
        }
        self.runnable.fetch_add(1, Ordering::SeqCst);
        let netns = (state.netns.clone()).expect("here while there are workers");
        let number = shared.next_worker_number();
        let name = shared.config.thread_name(&self.label, number);
        let birth = Birth {
            number,
            role,
            netns,
            shared: Arc::clone(shared),
            group: Arc::clone(self),
        };
        let home = match Home::get() {
            Ok(home) => home,
            Err(error) => {
                for job in self.start_failed_locked(shared, state, error.duplicate(), role) {
                    job.abort(error.duplicate());
                }
                return;
            }
        };
        home.post(Box::new(move || {
            let (shared, group) = (Arc::clone(&birth.shared), Arc::clone(&birth.group));
            let spawned = shared.threads.spawn(number, group.id, group.serial, || {
                thread::Builder::new()
                    .name(name)
                    .stack_size(shared.config.stack_size)
                    .spawn(move || birth.live())
            });
            if let Err(cause) = spawned {
                let error = Error::start_thread(group.label(), cause);
                tracing::warn!(
                    netns = %group.label,
                    netns_id = %group.id,
                    worker = number,
                    error = %error,
                    "worker could not start"
                );
                group.start_failed(&shared, role, error);
            }
        }));
    }

    /// Called by a new worker when it has entered and its lane is open.
    pub(crate) fn started(&self, record: Arc<Record>) {
        let mut state = self.state.lock();
        state.starting -= 1;
        state.live.push(record);
        self.alive.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Called by a new worker that could not enter or be guarded.
    pub(crate) fn start_failed(&self, shared: &Shared, role: Role, error: Error) {
        let orphans = {
            let mut state = self.state.lock();
            self.start_failed_locked(shared, &mut state, error.duplicate(), role)
        };
        // Not locked: this drops closures, which may use the executor.
        for job in orphans {
            job.abort(error.duplicate());
        }
    }

    /// Returns the jobs that nobody will run.
    #[must_use]
    fn start_failed_locked(
        &self,
        shared: &Shared,
        state: &mut State,
        error: Error,
        role: Role,
    ) -> Vec<JobRef> {
        if let Role::Lane(index) = role {
            state.taken[index] = false;
        }
        state.starting -= 1;
        state.failures += 1;
        shared.capacity.release();
        let orphans = match self.runnable.fetch_sub(1, Ordering::SeqCst) {
            // Nobody is left to serve what is queued, and nobody can be found.
            1 => self.take_all(),
            _ => Vec::new(),
        };
        state.last_failure = Some(error);
        if state.live.is_empty() && state.starting == 0 {
            state.netns = None;
        }
        self.changed.notify_all();
        orphans
    }

    // What workers do.

    pub(crate) fn has_queued(&self) -> bool {
        !self.receiver.is_empty()
    }

    /// Takes a job from the queue, and tells a sender that there is room.
    pub(crate) fn take(&self) -> Option<JobRef> {
        let job = self.receiver.try_recv().ok()?;
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            drop(self.room_lock.lock());
            self.room.notify_one();
        }
        Some(job)
    }

    /// Whether somebody who waited for room in the queue, which is empty now, is
    /// about to wake up on another CPU.
    pub(crate) fn expects_jobs(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 && !self.waiting_on.get().is(Cpu::here())
    }

    fn take_all(&self) -> Vec<JobRef> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Says that a worker is about to wait for a job elsewhere.
    pub(crate) fn worker_blocks(self: &Arc<Self>, shared: &Arc<Shared>) {
        self.runnable.fetch_sub(1, Ordering::Relaxed);
        // Between saying so and looking; the other half is in `notify`.
        fence(Ordering::SeqCst);
        if self.runnable.load(Ordering::Relaxed) == 0 && self.has_queued() {
            let orphans = self.rescue(shared);
            debug_assert!(orphans.is_empty(), "a group with a worker is not dead");
        }
    }

    pub(crate) fn worker_goes_on(&self) {
        self.runnable.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn has_enough_workers(&self) -> bool {
        self.runnable.load(Ordering::Relaxed) as usize > self.lanes.len()
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
        self.is_retiring() || (self.evictions.load(Ordering::Relaxed) > 0 && !held)
    }

    /// Has the group retired when its namespace loses its last name: from then on
    /// it would be kept alive by its idle workers alone.
    ///
    /// Called before a worker parks; only the first call does something.
    pub(crate) fn watch_for_deletion(&self, shared: &Arc<Shared>) {
        if cfg!(loom) {
            // Takes a thread of its own, and is told of by `retire` alone.
            return;
        }
        if self.watch_asked.load(Ordering::Relaxed)
            || self.watch_asked.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let Some(netns) = self.state.lock().netns.clone() else {
            return;
        };
        let (id, weak, named) = (self.id, Arc::downgrade(shared), netns.downgrade());
        let retire = move || {
            // Calls that still come have workers that idle, as in a namespace
            // that never had a name.
            named.note_lost_name();
            if let Some(shared) = weak.upgrade() {
                shared.retire(id);
            }
        };
        // A job that was quick to end may find its namespace deleted by now.
        let had_name = netns.had_name();
        let subscribed =
            (netns.inode()).and_then(|inode| watch::subscribe(inode, id, had_name, retire));
        match subscribed {
            Ok(subscription) => {
                let mut state = self.state.lock();
                if !state.dead {
                    state.watched = Some(subscription);
                }
            }
            Err(error) => tracing::warn!(
                netns = %self.label,
                netns_id = %id,
                error = %error,
                "deletion is not watched: an idle worker keeps the namespace until it times out"
            ),
        }
    }

    /// Notes that a worker has nothing to do, for `max_workers`.
    pub(crate) fn note_idle(&self, shared: &Shared) {
        if shared.capacity.is_limited() {
            self.idle_since.store(shared.tick(), Ordering::Relaxed);
            shared.capacity.somebody_is_idle();
        }
    }

    /// Takes the calling worker off the group; `false` when there is work for it
    /// after all, which a spoiled one leaves to others.
    pub(crate) fn leave(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        record: &Record,
        mut lane: Option<&mut Serving<'_>>,
        why: Leaving,
    ) -> bool {
        let spoiled = why == Leaving::Spoiled;
        // The registry's lock comes first, everywhere.
        let mut registry = shared.registry.write();
        let mut state = self.state.lock();
        if let Some(lane) = &mut lane {
            while !lane.close() {
                if !spoiled {
                    return false;
                }
                lane.refuse();
            }
        }
        self.runnable.fetch_sub(1, Ordering::Relaxed);
        // Between saying so and looking; the other half is in `notify`.
        fence(Ordering::SeqCst);
        if self.has_queued() && !spoiled {
            self.runnable.fetch_add(1, Ordering::SeqCst);
            if let Some(lane) = lane {
                lane.reopen();
            }
            return false;
        }
        state.live.retain(|live| live.number != record.number);
        self.alive.fetch_sub(1, Ordering::Relaxed);
        state.done += record.counters.done();
        state.panicked += record.counters.panicked();
        if let Role::Lane(index) = record.role {
            state.taken[index] = false;
        }
        let _ = (self.evictions).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |evictions| {
            evictions.checked_sub(1)
        });
        shared.capacity.release();
        if self.has_queued() {
            if self.runnable.load(Ordering::SeqCst) == 0 {
                shared.capacity.reserve_anyway();
                self.begin_start(shared, &mut state, record.role);
            } else {
                // The sender may have relied on us, and a sibling be asleep.
                self.lanes.iter().any(Lane::wake);
            }
        }
        let watched = self.die_if_empty(&mut state, &mut registry, shared);
        self.changed.notify_all();
        drop((state, registry));
        drop(watched);
        true
    }

    /// Parks a spare that has nothing to do; says so when it has left instead.
    pub(crate) fn park_spare(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        record: &Record,
        timeout: Option<Duration>,
    ) -> Option<Leaving> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.state.lock();
        self.runnable.fetch_sub(1, Ordering::Relaxed);
        // Between saying so and looking; the other half is in `notify`.
        fence(Ordering::SeqCst);
        if self.has_queued() && self.runnable.load(Ordering::Relaxed) == 0 {
            self.runnable.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        state.spares_parked += 1;
        self.note_idle(shared);
        let why = loop {
            if state.tickets > 0 {
                // Whoever gave the ticket has counted us as runnable.
                state.tickets -= 1;
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
                    if waited.timed_out() && state.tickets == 0 {
                        break Leaving::Idle;
                    }
                }
            }
        };
        state.spares_parked -= 1;
        self.runnable.fetch_add(1, Ordering::SeqCst);
        drop(state);
        self.leave(shared, record, None, why).then_some(why)
    }

    // Death.

    /// Lets go of the namespace and of the registry when no worker is left.
    ///
    /// Returns what is to be dropped outside the locks.
    #[must_use]
    fn die_if_empty(
        &self,
        state: &mut State,
        registry: &mut Registry,
        shared: &Shared,
    ) -> Option<watch::Subscription> {
        if state.dead || !state.live.is_empty() || state.starting > 0 {
            return None;
        }
        state.dead = true;
        // Whoever remembers this group sees that it must look again.
        self.retiring.store(true, Ordering::SeqCst);
        state.netns = None;
        shared.add_totals(state.done, state.panicked);
        if (registry.get(&self.id)).is_some_and(|group| std::ptr::eq(&**group, self)) {
            registry.remove(&self.id);
        }
        shared.forget_leaving(self);
        state.watched.take()
    }

    /// Buries a group whose first worker could not be started.
    pub(crate) fn bury(&self, shared: &Shared) {
        let mut registry = shared.registry.write();
        let mut state = self.state.lock();
        let watched = self.die_if_empty(&mut state, &mut registry, shared);
        drop((state, registry));
        drop(watched);
    }

    /// Has every worker leave as soon as it has nothing to do.
    ///
    /// Tells whether there is any; if not, there never will be.
    pub(crate) fn retire(&self) -> bool {
        self.retiring.store(true, Ordering::SeqCst);
        self.wake_all();
        // After the store: whoever starts the first worker looks at it, locked.
        let state = self.state.lock();
        !state.live.is_empty() || state.starting > 0
    }

    /// Asks for one worker to make room for another namespace's, if one idles
    /// and nobody insists on it.
    pub(crate) fn evict_one(&self) -> bool {
        {
            let state = self.state.lock();
            if state.spares_parked > state.tickets {
                self.evictions.fetch_add(1, Ordering::SeqCst);
                self.spare_wanted.notify_one();
                return true;
            }
        }
        if self.is_pinned() || !self.lanes.iter().any(Lane::is_parked) {
            return false;
        }
        self.evictions.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.lanes.iter().any(Lane::wake)
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
        while !state.live.is_empty() || state.starting > 0 {
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

    pub(crate) fn unpin(&self) {
        if self.pins.fetch_sub(1, Ordering::Relaxed) == 1 {
            // They sleep without a limit; now there is one.
            self.wake_all();
        }
    }

    pub(crate) fn stats(&self) -> NetnsStats {
        let state = self.state.lock();
        let live = &state.live;
        NetnsStats {
            id: self.id,
            label: self.label.clone(),
            workers: live.len(),
            queued: self.receiver.len(),
            running: live
                .iter()
                .filter(|record| record.counters.is_running())
                .count(),
            done: state.done
                + live
                    .iter()
                    .map(|record| record.counters.done())
                    .sum::<u64>(),
            panicked: state.panicked
                + live
                    .iter()
                    .map(|record| record.counters.panicked())
                    .sum::<u64>(),
        }
    }
}
