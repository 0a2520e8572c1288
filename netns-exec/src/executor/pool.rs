//! What all groups of one executor share: how it is configured, the room that is
//! left for workers, their threads, and what they have done.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::queue::Clock;
use super::wakers::Wakers;
use crate::error::{Error, Kind, Result};
use crate::guard::Policy;
use crate::handoff::pace;
use crate::netns::NetnsId;
use crate::payload::discard;
use crate::sync::{self, Condvar, Mutex, thread};
use crate::sys;
use crate::view::View;

/// What a [`Builder`](crate::Builder) was told.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) workers_per_netns: usize,
    pub(crate) max_workers: Option<usize>,
    pub(crate) queue_depth: usize,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) stack_size: usize,
    pub(crate) name_prefix: String,
    pub(crate) view: Option<View>,
    /// By which the queue's jobs are timed.
    pub(crate) clock: Clock,
    /// What the user wants around each poll of a future.
    pub(crate) around: Option<Around>,
}

/// A hook that is to call what it is given, which may be called again in vain.
#[derive(Clone)]
pub(crate) struct Around(Arc<Hook>);

type Hook = dyn Fn(&mut dyn FnMut()) + Send + Sync;

impl Around {
    pub(crate) fn new(f: impl Fn(&mut dyn FnMut()) + Send + Sync + 'static) -> Around {
        Around(Arc::new(f))
    }

    pub(crate) fn call(&self, f: &mut dyn FnMut()) {
        (self.0)(f);
        // Should it not have done so.
        f();
    }
}

impl fmt::Debug for Around {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Around(..)")
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            workers_per_netns: 1,
            max_workers: None,
            queue_depth: 96,
            idle_timeout: Some(Duration::from_secs(10)),
            stack_size: 2 << 20,
            name_prefix: "ns".to_owned(),
            view: None,
            clock: Clock::Coarse,
            around: None,
        }
    }
}

/// The kernel shows this many bytes of a thread's name.
const NAME_LEN: usize = 15;

impl Config {
    /// "ns:blue/0": the label is cut so that the number stays readable in ps(1).
    pub(crate) fn thread_name(&self, label: &str, number: u64) -> String {
        let end = format!("/{number}");
        let mut name: String = format!("{}:", self.name_prefix);
        for c in label.chars() {
            if name.len() + c.len_utf8() + end.len() > NAME_LEN {
                break;
            }
            name.push(if c.is_control() { '?' } else { c });
        }
        name + &end
    }
}

/// See the module.
pub(crate) struct Pool {
    /// Tells executors apart, in what threads remember. Never 0.
    pub(crate) key: u64,
    pub(crate) config: Config,
    pub(crate) policy: Policy,
    /// With one CPU the thread that spins keeps the other from running.
    pub(crate) may_spin: bool,
    pub(crate) capacity: Capacity,
    pub(crate) threads: Threads,
    /// Set once, under the registry's lock.
    closing: AtomicBool,
    abandoned: AtomicBool,
    worker_numbers: AtomicU64,
    ticks: AtomicU64,
    /// What groups that died have done.
    done: AtomicU64,
    panicked: AtomicU64,
    /// What the guard has refused.
    pub(crate) refused: Arc<AtomicU64>,
    /// In a model: how many births fail from now on.
    #[cfg(loom)]
    pub(crate) births_that_fail: AtomicU64,
}

impl Pool {
    pub(crate) fn new(config: Config, policy: Policy) -> Pool {
        static KEYS: AtomicU64 = AtomicU64::new(1);
        Pool {
            key: KEYS.fetch_add(1, Ordering::Relaxed),
            capacity: Capacity::new(config.max_workers),
            config,
            policy,
            may_spin: pace::may_spin(),
            threads: Threads::default(),
            closing: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            worker_numbers: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            done: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            refused: Arc::default(),
            #[cfg(loom)]
            births_that_fail: AtomicU64::new(0),
        }
    }

    /// In a model: whether the birth that begins now is one that fails.
    #[cfg(loom)]
    pub(crate) fn fails_birth(&self) -> bool {
        let left = &self.births_that_fail;
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        })
        .is_ok()
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

    /// Takes no more jobs.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// What is queued from now on is given up instead of run.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    #[inline]
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

    /// What groups that died have done: jobs that ended, and those that panicked.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let done = self.done.load(Ordering::Relaxed);
        (done, self.panicked.load(Ordering::Relaxed))
    }
}

/// No namespace has these for its id.
const NOT_WANTED: u64 = 0;
const SEVERAL: u64 = u64::MAX;

/// How many workers there may be.
pub(crate) struct Capacity {
    max: Option<usize>,
    state: Mutex<CapacityState>,
    changed: Condvar,
    /// Tasks that wait for a change. Registered before they look at the state.
    tasks: Wakers,
    /// The namespace that a caller wants a worker in who waits for room, and has found no
    /// idle worker that it could ask for its own; [`NOT_WANTED`], or [`SEVERAL`].
    /// Changes with the state's lock; a worker that looks is asked no more than to look
    /// again with it.
    wanted_in: AtomicU64,
}

#[derive(Default)]
struct CapacityState {
    workers: usize,
    /// Callers that wait for room.
    waiting: usize,
    /// Counts the moments at which a waiter might find room.
    epoch: u64,
}

impl Capacity {
    fn new(max: Option<usize>) -> Capacity {
        Capacity {
            max,
            state: Mutex::new(CapacityState::default()),
            changed: Condvar::new(),
            tasks: Wakers::default(),
            wanted_in: AtomicU64::new(NOT_WANTED),
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
        self.note_change();
    }

    /// Has those look again that wait for room: a worker has nothing to do, so that it
    /// could make room, or one has come, so that there is less to wait for.
    pub(crate) fn note_change(&self) {
        if self.is_limited() {
            self.state.lock().epoch += 1;
            self.changed.notify_all();
            self.tasks.wake_all();
        }
    }

    pub(crate) fn tasks(&self) -> &Wakers {
        &self.tasks
    }

    /// Has the first worker go that has nothing to do, be it for a moment, and serves
    /// another namespace.
    pub(crate) fn want_room_of_others(&self, netns: NetnsId) {
        let _state = self.state.lock();
        let wanted_in = match self.wanted_in.load(Ordering::Relaxed) {
            NOT_WANTED => netns.as_u64(),
            before if before == netns.as_u64() => before,
            _ => SEVERAL,
        };
        self.wanted_in.store(wanted_in, Ordering::Relaxed);
    }

    /// Whether some caller wants the room of a worker of `netns`.
    #[inline]
    pub(crate) fn wants_room_of(&self, netns: NetnsId) -> bool {
        let wanted_in = self.wanted_in.load(Ordering::Relaxed);
        wanted_in != NOT_WANTED && wanted_in != netns.as_u64()
    }

    /// Tells a worker whose room [is wanted](Capacity::wants_room_of) whether it still
    /// is. Then it goes, and no other one has to.
    pub(crate) fn give_way(&self, netns: NetnsId) -> bool {
        let _state = self.state.lock();
        let wanted = self.wants_room_of(netns);
        if wanted {
            self.wanted_in.store(NOT_WANTED, Ordering::Relaxed);
        }
        wanted
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    pub(crate) fn wait_for_change(&self, epoch: u64) {
        let mut state = self.state.lock();
        while state.epoch == epoch {
            self.changed.wait(&mut state);
        }
    }
}

/// A caller that waits for room, until this is dropped.
pub(crate) struct WaitsForRoom(Arc<Pool>);

impl WaitsForRoom {
    pub(crate) fn begin(pool: &Arc<Pool>) -> WaitsForRoom {
        pool.capacity.state.lock().waiting += 1;
        WaitsForRoom(Arc::clone(pool))
    }
}

impl Drop for WaitsForRoom {
    fn drop(&mut self) {
        let capacity = &self.0.capacity;
        let mut state = capacity.state.lock();
        state.waiting -= 1;
        if state.waiting == 0 {
            capacity.wanted_in.store(NOT_WANTED, Ordering::Relaxed);
        }
    }
}

/// The threads of the workers, until they are joined.
#[derive(Default)]
pub(crate) struct Threads {
    state: Mutex<ThreadsState>,
    /// A thread has nothing left to do but to end, or has been joined.
    changed: Condvar,
    /// Tasks that wait for that. They register before they look at the state.
    tasks: Wakers,
}

#[derive(Default)]
struct ThreadsState {
    /// By the worker's number, from birth until joined.
    /// In that order, so that a model does the same each time.
    threads: BTreeMap<u64, Thread>,
    /// How many threads have come to their end.
    ends: u64,
}

struct Thread {
    netns: NetnsId,
    /// The serial number of its group.
    group: u64,
    /// Its id, once it has nothing left to do but to end.
    ended: Option<u32>,
    /// Taken by the thread that joins it. The entry stays until that is done, so
    /// that others who wait for the same thread go on waiting.
    handle: Option<thread::JoinHandle<()>>,
}

impl Thread {
    /// In `ended`: it was gone before that was known.
    const GONE: u32 = 0;

    fn is_lost(&self) -> bool {
        self.ended == Some(Thread::GONE)
    }
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
            ended: None,
            handle: Some(spawn()?),
        };
        state.threads.insert(number, thread);
        Ok(())
    }

    /// The calling thread, the worker `number`, is about to end.
    pub(crate) fn ended(&self, number: u64) {
        self.note_end(number, sys::thread::tid());
    }

    /// The worker `number` has ended without a word, and is gone.
    pub(crate) fn lost(&self, number: u64) {
        self.note_end(number, Thread::GONE);
    }

    fn note_end(&self, number: u64, tid: u32) {
        let mut state = self.state.lock();
        if let Some(thread) = state.threads.get_mut(&number) {
            thread.ended = Some(tid);
        }
        state.ends += 1;
        self.changed.notify_all();
        self.tasks.wake_all();
    }

    pub(crate) fn tasks(&self) -> &Wakers {
        &self.tasks
    }

    /// Whether the threads of a namespace's groups before `end` have nothing left to do
    /// but to end.
    pub(crate) fn are_at_end(&self, netns: NetnsId, end: u64) -> bool {
        let state = self.state.lock();
        let mut retired =
            (state.threads.values()).filter(|thread| thread.netns == netns && thread.group < end);
        retired.all(|thread| thread.ended.is_some())
    }

    /// How many threads have come to their end so far.
    pub(crate) fn ends(&self) -> u64 {
        self.state.lock().ends
    }

    /// Waits until more than `before` threads have come to their end, and joins those
    /// that have; `false` when `limit` has passed first.
    pub(crate) fn wait_for_end(&self, before: u64, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        {
            let mut state = self.state.lock();
            while state.ends == before {
                if self.changed.wait_until(&mut state, deadline).timed_out() {
                    return false;
                }
            }
        }
        while self.join_one(|thread| thread.ended.is_some()) {}
        true
    }

    /// Waits until no thread has anything left to do but to end; `false` when `deadline`
    /// came first.
    pub(crate) fn wait_all_at_end(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        while (state.threads.values()).any(|thread| thread.ended.is_none()) {
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

    /// Whether every thread has been joined.
    #[cfg(all(test, loom))]
    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().threads.is_empty()
    }

    /// Joins the threads that the kernel has let go of already: one that is never
    /// joined keeps its stack. Waits for none.
    pub(crate) fn reap(&self) {
        while self.join_one(|thread| thread.ended.is_some_and(sys::thread::is_gone)) {}
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
        while self.join_one(&which) {}
        // Others may be joining some of them.
        let mut state = self.state.lock();
        while state.threads.values().any(&which) {
            self.changed.wait(&mut state);
        }
    }

    /// Joins one of the threads that no other thread is joining; tells whether
    /// there was one.
    fn join_one(&self, which: impl Fn(&Thread) -> bool) -> bool {
        let found = {
            let mut state = self.state.lock();
            let mut all = state.threads.iter_mut();
            all.find_map(|(number, thread)| match which(thread) {
                true => Some((*number, thread.handle.take()?, thread.is_lost())),
                false => None,
            })
        };
        let Some((number, handle, is_lost)) = found else {
            return false;
        };
        if is_lost {
            sync::join_lost(handle);
        // A worker's main function catches every panic, and says so itself. That of a thread
        // which a job has ended, unheard of, is none, and std panics over it here.
        } else if let Ok(Err(panic)) | Err(panic) = catch_unwind(AssertUnwindSafe(|| handle.join()))
        {
            discard(panic);
        }
        let ended = (self.state.lock().threads.get(&number)).and_then(|thread| thread.ended);
        if let Some(tid) = ended {
            sys::thread::wait_gone(tid);
        }
        self.state.lock().threads.remove(&number);
        self.changed.notify_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_name_keeps_prefix_and_number() {
        let config = Config::default();
        assert_eq!(config.thread_name("blue", 0), "ns:blue/0");
        assert_eq!(
            config.thread_name("a-very-long-label", 123),
            "ns:a-very-l/123"
        );
        assert_eq!(config.thread_name("grün\0", 7), "ns:grün?/7");
    }
}
