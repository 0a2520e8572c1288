//! The groups of all namespaces in use, by namespace, and how groups leave.
//!
//! Order of the locks: the map, the list of those that leave, a group's own. None is
//! held while a thread is waited for or user code runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::group::{Group, Leaving, Member, Remains, Role, Start, Todo};
use super::hooks::Hooks;
use super::pool::{Pool, WaitsForRoom};
use super::spare;
use super::stats::{self, Stats};
use super::stop::StopFlag;
use crate::error::{Error, Kind, Result};
use crate::netns::NetnsId;
use crate::netns::users::{self, Unused};
use crate::sync::{Mutex, RwLock};

/// What the thread of a worker runs. It reports, once, how its birth went.
pub(crate) type WorkerMain = fn(&Arc<Registry>, &Arc<Group>, Start, Report);

/// Tells of a birth: the group's new member, or why there is none.
pub(crate) type Report = Box<dyn FnOnce(Result<Arc<Member>>) + Send>;

/// See the module.
pub(crate) struct Registry {
    pool: Arc<Pool>,
    /// What the thread of a worker runs.
    pub(super) worker_main: WorkerMain,
    /// Not the pool's, which threads hold by the group of their last call.
    pub(super) hooks: Hooks,
    /// Keyed by the id, which is never reused. Only groups that may still get a
    /// worker are here.
    groups: RwLock<HashMap<Key, Arc<Group>>>,
    /// Groups that are out of the map and still have workers.
    leaving: Mutex<Vec<Arc<Group>>>,
    /// The serial number of the next group, or thread beside the pool. Changes under the
    /// map's lock.
    next_group: AtomicU64,
    /// The threads beside the pool, by their numbers as workers.
    apart: Mutex<BTreeMap<u64, ToStop>>,
}

/// A thread beside the pool, which is told when it should end.
struct ToStop {
    netns: NetnsId,
    serial: u64,
    stop: Arc<StopFlag>,
}

/// A namespace, and whether the group is the one for futures that are bound to a thread.
type Key = (NetnsId, bool);

fn key_of(group: &Group) -> Key {
    (group.id(), group.is_local())
}

impl Registry {
    pub(crate) fn new(pool: Pool, worker_main: WorkerMain) -> Registry {
        Registry {
            worker_main,
            hooks: Hooks::default(),
            pool: Arc::new(pool),
            groups: RwLock::new(HashMap::new()),
            leaving: Mutex::new(Vec::new()),
            next_group: AtomicU64::new(0),
            apart: Mutex::new(BTreeMap::new()),
        }
    }

    pub(super) fn with_hooks(mut self, hooks: Hooks) -> Registry {
        self.hooks = hooks;
        self
    }

    #[inline]
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Finds the group of a namespace, or makes one without workers.
    pub(crate) fn group(&self, id: NetnsId, label: &str) -> Result<Arc<Group>> {
        self.group_of((id, false), label)
    }

    /// The same for futures that are bound to a thread.
    pub(crate) fn local_group(&self, id: NetnsId, label: &str) -> Result<Arc<Group>> {
        self.group_of((id, true), label)
    }

    fn group_of(&self, key: Key, label: &str) -> Result<Arc<Group>> {
        if let Some(group) = self.groups.read().get(&key) {
            return Ok(Arc::clone(group));
        }
        let mut groups = self.groups.write();
        // Under the lock: `close` sets it under the lock too, so that no group
        // comes after the ones it sees.
        self.pool.check_open()?;
        let group = groups.entry(key).or_insert_with(|| {
            let serial = self.next_group.fetch_add(1, Ordering::Relaxed);
            let (id, is_local) = key;
            Arc::new(Group::new(&self.pool, id, label, serial, is_local))
        });
        Ok(Arc::clone(group))
    }

    /// Takes a namespace's groups out, so that new calls start afresh, and has
    /// their workers leave.
    pub(crate) fn retire(&self, id: NetnsId) -> Retired {
        let (retired, end) = {
            let mut groups = self.groups.write();
            let retired = [false, true].map(|is_local| groups.remove(&(id, is_local)));
            self.leaving
                .lock()
                .extend(retired.iter().flatten().cloned());
            (retired, self.next_group.load(Ordering::Relaxed))
        };
        for group in retired.iter().flatten() {
            self.have_leave(group);
        }
        self.stop_apart(|apart| apart.netns == id && apart.serial < end);
        // After the workers are told: those make no more.
        spare::retire(self.pool.key, Some(id));
        let leaving = self.leaving.lock();
        let groups = leaving.iter().filter(|group| group.id() == id).cloned();
        Retired {
            groups: groups.collect(),
            end,
        }
    }

    /// Notes a thread beside the pool that is about to start; returns its serial number.
    pub(crate) fn add_apart(
        &self,
        number: u64,
        netns: NetnsId,
        stop: &Arc<StopFlag>,
    ) -> Result<u64> {
        // Under the lock, as in `group`: whatever ends the executor, or retires the
        // namespace, from now on finds it.
        let _groups = self.groups.write();
        self.pool.check_open()?;
        let serial = self.next_group.fetch_add(1, Ordering::Relaxed);
        let stop = Arc::clone(stop);
        let apart = ToStop {
            netns,
            serial,
            stop,
        };
        self.apart.lock().insert(number, apart);
        Ok(serial)
    }

    pub(crate) fn remove_apart(&self, number: u64) {
        let gone = self.apart.lock().remove(&number);
        drop(gone);
    }

    fn stop_apart(&self, which: impl Fn(&ToStop) -> bool) {
        let stops: Vec<_> = {
            let apart = self.apart.lock();
            let told = apart.values().filter(|apart| which(apart));
            told.map(|apart| Arc::clone(&apart.stop)).collect()
        };
        for stop in stops {
            stop.set();
        }
    }

    /// Has the workers of a namespace leave that no user has a handle to, if there is no
    /// other way back to it and no pin holds them: they would be what keeps it alive.
    pub(crate) fn let_go(&self, unused: Unused) {
        for is_local in [false, true] {
            let group = self.groups.read().get(&(unused.id, is_local)).cloned();
            if let Some(group) = group
                && (unused.unnamed || group.has_lost_name())
                && group.note_unused()
            {
                self.retire_group(&group);
            }
        }
    }

    /// Lets go of a group's pin. The last one may have been what still held the workers.
    pub(crate) fn unpin(&self, group: &Arc<Group>) {
        let is_unused = group.unpin();
        self.unpinned(group, is_unused);
    }

    /// A future of a group's is over, which has held the workers as a pin does.
    pub(crate) fn future_over(&self, group: &Arc<Group>, number: usize) {
        let is_unused = group.future_over(number);
        self.unpinned(group, is_unused);
    }

    fn unpinned(&self, group: &Arc<Group>, is_unused: bool) {
        if is_unused && !users::has_users(group.id()) {
            self.retire_group(group);
        }
    }

    /// Has the workers of a group leave, unless another thread has seen to that.
    fn retire_group(&self, group: &Arc<Group>) {
        {
            let mut groups = self.groups.write();
            match groups.get(&key_of(group)) {
                Some(current) if Arc::ptr_eq(current, group) => groups.remove(&key_of(group)),
                _ => return,
            };
            self.leaving.lock().push(Arc::clone(group));
        }
        self.have_leave(group);
    }

    fn have_leave(&self, group: &Arc<Group>) {
        if !group.retire() {
            // Its last worker may be about to do so: the group stays counted until then.
            self.bury(group);
        }
    }

    fn forget_leaving(&self, group: &Group) {
        (self.leaving.lock()).retain(|leaving| !std::ptr::eq(&**leaving, group));
    }

    /// Takes no more jobs, and has every worker leave when it has done those it has.
    /// Returns all groups that have workers.
    pub(crate) fn close(&self) -> Vec<Arc<Group>> {
        let groups: Vec<_> = {
            let mut groups = self.groups.write();
            self.pool.close();
            let groups: Vec<_> = groups.drain().map(|(_, group)| group).collect();
            self.leaving.lock().extend(groups.iter().cloned());
            groups
        };
        for group in &groups {
            self.have_leave(group);
        }
        self.stop_apart(|_| true);
        spare::retire(self.pool.key, None);
        self.pool.capacity.note_change();
        self.leaving.lock().clone()
    }

    /// Reserves room for one worker of `netns` under `max_workers`: waits until the least
    /// recently used idle worker has left, when there is none; or fails at once, when
    /// the caller does not want to wait. A call made by a job takes room that is not
    /// there: the caller of that job may hold the room it needs.
    ///
    /// `false`, and nothing is reserved, once the worker is not `wanted` any more:
    /// another call has started it meanwhile, perhaps without room.
    pub(crate) fn reserve(
        &self,
        netns: NetnsId,
        room: Room,
        wanted: impl Fn() -> bool,
    ) -> Result<bool> {
        if room == Room::Anyway {
            self.pool.capacity.reserve_anyway();
            return Ok(true);
        }
        let capacity = &self.pool.capacity;
        let mut waiting = None;
        loop {
            let epoch = capacity.epoch();
            self.pool.check_open()?;
            if !wanted() {
                return Ok(false);
            }
            if capacity.try_reserve() {
                return Ok(true);
            }
            if room == Room::Now {
                if self.reserve_or_ask() {
                    return Ok(true);
                }
                return Err(Error::new(
                    Kind::Full,
                    "cannot start a worker: the limit of workers is reached",
                ));
            }
            self.wait_for_room(netns, &mut waiting);
            capacity.wait_for_change(epoch);
        }
    }

    /// Reserves room for one worker if there is any.
    pub(crate) fn try_reserve(&self) -> Result<bool> {
        self.pool.check_open()?;
        Ok(self.pool.capacity.try_reserve())
    }

    /// Asks for room for a worker of `netns`, for a caller that has found none and looks
    /// again when something has changed.
    pub(crate) fn wait_for_room(&self, netns: NetnsId, waiting: &mut Option<RoomWait>) {
        let waiting = waiting.get_or_insert_with(|| RoomWait {
            asked: Asked::default(),
            _waits: WaitsForRoom::begin(&self.pool),
        });
        // The worker that was asked may be gone, or have found something to do.
        if !waiting.asked.will_be_heard() {
            waiting.asked = self.ask(1);
            if waiting.asked.is_empty() {
                self.pool.capacity.want_room_of_others(netns);
            }
        }
    }

    /// Asks up to `count` idle workers to end, the least recently used first, for as
    /// long as what it returns is kept.
    pub(crate) fn ask(&self, count: usize) -> Asked {
        let mut idle: Vec<_> = self.groups.read().values().cloned().collect();
        idle.sort_by_key(|group| group.idle_since());
        let asked = idle.into_iter().filter_map(|group| {
            let number = group.ask_one()?;
            Some((group, number))
        });
        Asked(asked.take(count).collect())
    }

    /// Asks an idle worker to end, for a caller that does not wait for that and may
    /// try again; not one more as long as one is on its way, nor when that one has just
    /// left, whose room is then reserved.
    fn reserve_or_ask(&self) -> bool {
        let groups: Vec<_> = self.groups.read().values().cloned().collect();
        if groups.iter().any(|group| group.is_asked()) {
            return false;
        }
        // Its room is there before it is asked no more.
        if self.pool.capacity.try_reserve() {
            return true;
        }
        self.ask(1).stand();
        false
    }

    /// Takes the calling worker, whose lane is closed, off its group; `None` when
    /// there is work for it after all, which a spoiled one leaves to others.
    pub(crate) fn leave(
        &self,
        group: &Arc<Group>,
        member: &Member,
        role: Role,
        why: Leaving,
    ) -> Option<Todo> {
        let todo = group.leave(member, role, why)?;
        self.bury(group);
        Some(todo)
    }

    /// Takes a group out that has no worker left, and none on its way.
    pub(crate) fn bury(&self, group: &Arc<Group>) {
        self.bury_if(group, Group::die_if_empty);
    }

    /// Takes a group out that the calling thread has got no worker for, unless there is
    /// one, or another thread may get one: of a namespace that is gone no later call would.
    pub(crate) fn bury_unused(&self, group: &Arc<Group>) {
        self.bury_if(group, Group::die_if_unused);
    }

    /// The calling thread seeks no worker for futures of the group any longer; takes it
    /// out when it has none.
    pub(crate) fn end_search(&self, group: &Arc<Group>) {
        self.bury_if(group, Group::end_search);
    }

    fn bury_if(&self, group: &Arc<Group>, died: impl FnOnce(&Arc<Group>) -> Option<Remains>) {
        let remains = {
            let mut groups = self.groups.write();
            let remains = died(group);
            if remains.is_some()
                && (groups.get(&key_of(group))).is_some_and(|current| Arc::ptr_eq(current, group))
            {
                groups.remove(&key_of(group));
            }
            remains
        };
        if remains.is_some() {
            self.forget_leaving(group);
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        // Locked all the time: a group that dies moves its figures to the totals.
        let groups = self.groups.read();
        let mut per_netns: Vec<_> = groups.values().map(|group| group.stats()).collect();
        stats::merge(&mut per_netns);
        let leaving = self.leaving.lock().clone();
        let leaving: Vec<_> = leaving.iter().map(|group| group.stats()).collect();
        let (done, panicked) = self.pool.totals();
        let mut stats = Stats {
            done,
            panicked,
            per_netns,
            threads: self.apart.lock().len(),
            refused: self.pool.refused.load(Ordering::Relaxed),
            ..Stats::default()
        };
        stats.add_up(&leaving);
        stats
    }
}

/// A caller that waits for room, and the worker that it has asked to make some.
pub(crate) struct RoomWait {
    asked: Asked,
    _waits: WaitsForRoom,
}

/// Workers that were asked to end and may not have heard of it yet. Those that have not
/// when it is dropped stay.
#[derive(Default)]
pub(crate) struct Asked(Vec<(Arc<Group>, u64)>);

impl Asked {
    /// Goes on asking when nothing is kept of it.
    fn stand(mut self) {
        self.0.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any of them is to end and has nothing else to do just now.
    fn will_be_heard(&self) -> bool {
        (self.0.iter()).any(|(group, number)| group.will_hear(*number))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        for (group, number) in self.0.drain(..) {
            group.take_back(number);
        }
    }
}

/// Where the room for a worker comes from, when `max_workers` leaves none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// The caller waits for it.
    Awaited,
    /// It is there now, or the call fails.
    Now,
    /// It is taken all the same.
    Anyway,
}

/// What a namespace was served by until now.
pub(crate) struct Retired {
    /// Those that still have workers.
    pub(crate) groups: Vec<Arc<Group>>,
    /// Groups from this serial number on came later.
    pub(crate) end: u64,
}
