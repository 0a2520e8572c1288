//! What the handles of one executor share: the groups of all namespaces in use,
//! the threads, the room that is left for more.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::builder::Config;
use super::group::Group;
use super::stats::Stats;
use super::submit::{Patience, Target};
use crate::error::{Error, Kind, Result};
use crate::guard::Policy;
use crate::handoff::pace;
use crate::netns::NetnsId;
use crate::sync::{Condvar, Mutex, RwLock, thread};
use crate::{executor::worker, sys};

/// Keyed by the id, which is never reused. Only groups that may still get a
/// worker are here.
pub(crate) type Registry = HashMap<NetnsId, Arc<Group>>;

pub(crate) struct Shared {
    /// Tells executors apart, in the caches of threads.
    pub(crate) key: u64,
    pub(crate) config: Config,
    pub(crate) policy: Policy,
    /// With one CPU whoever spins keeps the other from running.
    pub(crate) may_spin: bool,
    pub(crate) registry: RwLock<Registry>,
    /// Groups that are out of the registry and still have workers. Locked last.
    leaving: Mutex<Vec<Arc<Group>>>,
    /// The serial number of the next group. Changes under the registry's lock.
    next_group: AtomicU64,
    pub(crate) capacity: Capacity,
    pub(crate) threads: Threads,
    closing: AtomicBool,
    abandoned: AtomicBool,
    worker_numbers: AtomicU64,
    ticks: AtomicU64,
    /// What groups that died have done.
    done: AtomicU64,
    panicked: AtomicU64,
}

impl Shared {
    pub(crate) fn new(config: Config, policy: Policy) -> Shared {
        static KEYS: AtomicU64 = AtomicU64::new(1);
        Shared {
            key: KEYS.fetch_add(1, Ordering::Relaxed),
            capacity: Capacity::new(config.max_workers),
            config,
            policy,
            may_spin: pace::may_spin(),
            registry: RwLock::new(Registry::default()),
            leaving: Mutex::new(Vec::new()),
            next_group: AtomicU64::new(0),
            threads: Threads::default(),
            closing: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            worker_numbers: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            done: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
        }
    }

    /// Finds the group of a namespace, or makes one without workers.
    pub(crate) fn group(&self, netns: &impl Target) -> Result<Arc<Group>> {
        let id = netns.id();
        if let Some(group) = self.registry.read().get(&id) {
            return Ok(Arc::clone(group));
        }
        let mut registry = self.registry.write();
        // Under the lock: `close` sets it under the lock too, so that no group
        // comes after the ones it sees.
        self.check_open()?;
        let group = registry.entry(id).or_insert_with(|| {
            let config = &self.config;
            Arc::new(Group::new(
                netns,
                self.next_group.fetch_add(1, Ordering::Relaxed),
                config.workers_per_netns,
                config.queue_depth,
            ))
        });
        Ok(Arc::clone(group))
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(Error::new(
                Kind::ShutDown,
                "the executor has been shut down",
            ));
        }
        Ok(())
    }

    /// Takes a namespace's group out, so that new calls start afresh, and has
    /// its workers leave.
    pub(crate) fn retire(&self, id: NetnsId) -> Retired {
        let (group, end) = {
            let mut registry = self.registry.write();
            let group = registry.remove(&id);
            self.leaving.lock().extend(group.clone());
            (group, self.next_group.load(Ordering::Relaxed))
        };
        if let Some(group) = group {
            self.have_leave(&group);
        }
        let leaving = self.leaving.lock();
        let groups = leaving.iter().filter(|group| group.id() == id).cloned();
        Retired {
            groups: groups.collect(),
            end,
        }
    }

    fn have_leave(&self, group: &Group) {
        if !group.retire() {
            self.forget_leaving(group);
        }
    }

    /// The last worker of `group` has left.
    pub(crate) fn forget_leaving(&self, group: &Group) {
        (self.leaving.lock()).retain(|leaving| !std::ptr::eq(&**leaving, group));
    }

    /// Takes no more jobs, and has every worker leave when it has done those it has.
    /// Returns all groups that have workers.
    pub(crate) fn close(&self) -> Vec<Arc<Group>> {
        let groups: Vec<_> = {
            let mut registry = self.registry.write();
            self.closing.store(true, Ordering::Relaxed);
            let groups: Vec<_> = registry.drain().map(|(_, group)| group).collect();
            self.leaving.lock().extend(groups.iter().cloned());
            groups
        };
        for group in &groups {
            self.have_leave(group);
        }
        self.capacity.somebody_is_idle();
        self.leaving.lock().clone()
    }

    /// What is queued from now on is given up instead of run.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    pub(crate) fn next_worker_number(&self) -> u64 {
        self.worker_numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The executor's own clock, which moves when a worker becomes idle.
    pub(crate) fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn add_totals(&self, done: u64, panicked: u64) {
        self.done.fetch_add(done, Ordering::Relaxed);
        self.panicked.fetch_add(panicked, Ordering::Relaxed);
    }

    /// Reserves room for one worker under `max_workers`, and waits for it: the
    /// least recently used idle worker is asked to leave.
    pub(crate) fn wait_for_capacity(&self, patience: Patience) -> Result<()> {
        if worker::is_worker() {
            // Whoever waits for the job of this thread may hold the room it needs.
            self.capacity.reserve_anyway();
            return Ok(());
        }
        loop {
            let epoch = self.capacity.epoch();
            self.check_open()?;
            if self.capacity.try_reserve() {
                return Ok(());
            }
            let mut idle: Vec<_> = self.registry.read().values().cloned().collect();
            idle.sort_by_key(|group| group.idle_since());
            idle.iter().any(|group| group.evict_one());
            if patience == Patience::None {
                return Err(Error::new(
                    Kind::Full,
                    "cannot start a worker: the limit of workers is reached",
                ));
            }
            self.capacity.wait_for_change(epoch);
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        // Locked all the time: a group that dies moves its figures to the totals.
        let registry = self.registry.read();
        let per_netns = registry.values().map(|group| group.stats()).collect();
        let leaving = self.leaving.lock().clone();
        let leaving: Vec<_> = leaving.iter().map(|group| group.stats()).collect();
        let mut stats = Stats {
            done: self.done.load(Ordering::Relaxed),
            panicked: self.panicked.load(Ordering::Relaxed),
            per_netns,
            ..Stats::default()
        };
        stats.add_up(&leaving);
        stats
    }
}

/// What a namespace was served by until now.
pub(crate) struct Retired {
    /// Those that still have workers.
    pub(crate) groups: Vec<Arc<Group>>,
    /// Groups from this serial number on came later.
    pub(crate) end: u64,
}

/// How many workers there may be.
pub(crate) struct Capacity {
    max: Option<usize>,
    state: Mutex<CapacityState>,
    changed: Condvar,
}

#[derive(Default)]
struct CapacityState {
    workers: usize,
    /// Counts the moments at which a waiter might find room.
    epoch: u64,
}

impl Capacity {
    fn new(max: Option<usize>) -> Capacity {
        Capacity {
            max,
            state: Mutex::new(CapacityState::default()),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.max.is_some()
    }

    pub(crate) fn try_reserve(&self) -> bool {
        let mut state = self.state.lock();
        let room = self.max.is_none_or(|max| state.workers < max);
        if room {
            state.workers += 1;
        }
        room
    }

    pub(crate) fn reserve_anyway(&self) {
        self.state.lock().workers += 1;
    }

    pub(crate) fn release(&self) {
        self.state.lock().workers -= 1;
        self.somebody_is_idle();
    }

    pub(crate) fn somebody_is_idle(&self) {
        if self.is_limited() {
            self.state.lock().epoch += 1;
            self.changed.notify_all();
        }
    }

    fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    fn wait_for_change(&self, epoch: u64) {
        let mut state = self.state.lock();
        while state.epoch == epoch {
            self.changed.wait(&mut state);
        }
    }
}

/// The threads of the workers, until they are joined.
#[derive(Default)]
pub(crate) struct Threads {
    state: Mutex<ThreadsState>,
}

#[derive(Default)]
struct ThreadsState {
    /// By the worker's number, from birth until joined.
    /// In that order, so that a model does the same each time.
    handles: BTreeMap<u64, Thread>,
    /// Those that have nothing left to do but to end, with their thread ids.
    ended: Vec<(u64, u32)>,
}

struct Thread {
    netns: NetnsId,
    /// The serial number of its group.
    group: u64,
    handle: thread::JoinHandle<()>,
}

impl Threads {
    /// Starts a thread and keeps its handle. Locked meanwhile, so that the
    /// thread cannot have ended before its handle is here.
    pub(crate) fn spawn(
        &self,
        number: u64,
        netns: NetnsId,
        group: u64,
        spawn: impl FnOnce() -> io::Result<thread::JoinHandle<()>>,
    ) -> io::Result<()> {
        let mut state = self.state.lock();
        let thread = Thread {
            netns,
            group,
            handle: spawn()?,
        };
        state.handles.insert(number, thread);
        Ok(())
    }

    /// The calling thread is about to end.
    pub(crate) fn ended(&self, number: u64) {
        self.state.lock().ended.push((number, sys::thread::tid()));
    }

    /// Joins what has ended: a thread that nobody joins keeps its stack.
    pub(crate) fn reap(&self) {
        let joinable: Vec<_> = {
            let mut state = self.state.lock();
            let ended = std::mem::take(&mut state.ended);
            (ended.into_iter())
                .filter_map(|(number, tid)| Some((state.handles.remove(&number)?.handle, tid)))
                .collect()
        };
        for (handle, tid) in joinable {
            let _ = handle.join();
            sys::thread::wait_gone(tid);
        }
    }

    /// Waits until the threads of a namespace's groups before `end` are gone.
    pub(crate) fn join_retired(&self, netns: NetnsId, end: u64) {
        self.join(|thread| thread.netns == netns && thread.group < end);
    }

    /// Waits until all threads are gone.
    pub(crate) fn join_all(&self) {
        self.join(|_| true);
    }

    /// Waits until threads are gone, from the kernel's tables too: only then
    /// have they let go of their namespace.
    ///
    /// Only for threads that have left their group.
    fn join(&self, which: impl Fn(&Thread) -> bool) {
        let numbers: Vec<_> = {
            let state = self.state.lock();
            let all = state.handles.iter();
            all.filter(|(_, thread)| which(thread))
                .map(|(number, _)| *number)
                .collect()
        };
        for number in numbers {
            let thread = self.state.lock().handles.remove(&number);
            if let Some(thread) = thread {
                let _ = thread.handle.join();
            }
            let mut state = self.state.lock();
            let at = state.ended.iter().position(|(ended, _)| *ended == number);
            let ended = at.map(|at| state.ended.swap_remove(at));
            drop(state);
            if let Some((_, tid)) = ended {
                sys::thread::wait_gone(tid);
            }
        }
    }
}
