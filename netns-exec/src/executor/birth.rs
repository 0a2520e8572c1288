//! How a worker comes to be: what a group has decided is carried out here.
//!
//! The home thread creates the worker's thread and runs no code of a user's. The
//! thread that needs the worker waits for it, and when it cannot be had, tells the
//! owners of the jobs that no other worker will come to.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::group::{Group, Member, Role, Start, Todo};
use super::pool::Pool;
use super::registry::Registry;
use super::spare;
use crate::error::{Error, Kind, Result};
use crate::handoff::job::JobRef;
use crate::home::Home;
use crate::home::aside::Lease;
use crate::netns::{Netns, NetnsId};
use crate::payload::{discard, quietly};
use crate::sync::{Condvar, Mutex, thread};

/// Does what a group has decided that has a worker: the calling thread, for one.
#[inline]
pub(crate) fn see_to(registry: &Arc<Registry>, group: &Arc<Group>, todo: Todo) {
    let orphans = carry_out_and(registry, group, todo, tell_owners);
    debug_assert!(orphans.is_empty(), "a group with a worker is not dead");
}

/// As [`see_to`], on a worker that has left, and may run no code of a user's if it `is_spoiled`.
pub(crate) fn see_to_last(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    todo: Todo,
    is_spoiled: bool,
) {
    let tell = match is_spoiled {
        true => tell_owners_elsewhere,
        false => tell_owners,
    };
    let orphans = carry_out_and(registry, group, todo, tell);
    debug_assert!(orphans.is_empty(), "nothing was pushed to a dead group");
}

/// Does what a group has decided. Returns jobs that are to be shipped elsewhere.
#[must_use]
#[inline]
pub(crate) fn carry_out(registry: &Arc<Registry>, group: &Arc<Group>, todo: Todo) -> Vec<JobRef> {
    carry_out_and(registry, group, todo, tell_owners)
}

/// As [`carry_out`], with the way to tell the owners of jobs and futures that there will
/// be no worker for them.
#[inline]
fn carry_out_and(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    todo: Todo,
    tell: Tell,
) -> Vec<JobRef> {
    match todo {
        Todo::Nothing => Vec::new(),
        Todo::Reship(jobs) => jobs,
        Todo::Start(start) => {
            start_and_settle(registry, group, start, tell);
            Vec::new()
        }
    }
}

#[cold]
fn start_and_settle(registry: &Arc<Registry>, group: &Arc<Group>, start: Start, tell: Tell) {
    // Not kept: once the worker serves, its jobs may end, and their owner may rely on the
    // namespace's end, before this thread goes on.
    let netns = start.netns.downgrade();
    let how = self::start(registry, group, start);
    settle_and(registry, group, || netns.reopen().ok().flatten(), how, tell);
}

/// Does what is to be done when a birth that jobs relied on has ended: where it failed,
/// it is tried once more if there may be room now, and then the jobs are given up that
/// no other worker will come to. `netns` gives a handle for that.
pub(crate) fn settle(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    netns: impl FnOnce() -> Option<Netns>,
    how: Result<()>,
) {
    settle_and(registry, group, netns, how, tell_owners);
}

fn settle_and(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    netns: impl FnOnce() -> Option<Netns>,
    how: Result<()>,
    tell: Tell,
) {
    let Err(mut error) = how else {
        return;
    };
    if make_room(registry, &error)
        && let Some(netns) = netns()
        && let Some(again) = group.begin_again(netns)
    {
        match start(registry, group, again) {
            Ok(()) => return,
            Err(failed_too) => error = failed_too,
        }
    }
    tell(group, &error);
    registry.bury(group);
}

type Tell = fn(&Arc<Group>, &Error);

/// Gives up the jobs and futures of a group that no worker will come to. Wakes those that
/// await them, and drops what no handle is left for.
fn tell_owners(group: &Arc<Group>, error: &Error) {
    for job in group.orphans() {
        job.abort(error.duplicate());
    }
    group.fail_futures(error);
}

/// As [`tell_owners`], for a thread that a job has left where no other job's waker
/// may run: on one of its own, as long as there is one to be had.
fn tell_owners_elsewhere(group: &Arc<Group>, error: &Error) {
    if cfg!(loom) || !group.has_orphans() {
        return tell_owners(group, error);
    }
    let theirs = (Arc::clone(group), error.duplicate());
    let told = Home::reach().and_then(|home| {
        home.run_hook("netns-orphans", move || {
            let (group, error) = theirs;
            tell_owners(&group, &error);
        })
    });
    if told.is_err() {
        tell_owners(group, error);
    }
}

/// Whether something has run out that idle workers hold.
pub(crate) fn has_run_out(error: &Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM | libc::ENOSPC)
    )
}

/// Has idle workers end when `error` says that something has run out that they hold, or
/// descriptors closed that are held ahead of use; tells whether there is room now.
pub(crate) fn make_room(registry: &Registry, error: &Error) -> bool {
    const AT_ONCE: usize = 8;
    const LIMIT: Duration = Duration::from_secs(1);
    const BECOMES_IDLE: Duration = Duration::from_millis(20);
    if !has_run_out(error) || cfg!(loom) {
        return false;
    }
    let is_descriptors = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    if is_descriptors && spare::run_out(spare::given_up()) {
        return true;
    }
    let threads = &registry.pool().threads;
    let ends_before = threads.ends();
    // A worker that has just ended its job is not idle yet.
    let deadline = Instant::now() + BECOMES_IDLE;
    let _asked = loop {
        let asked = registry.ask(AT_ONCE);
        if !asked.is_empty() {
            break asked;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(BECOMES_IDLE / 20);
    };
    threads.wait_for_end(ends_before, LIMIT)
}

/// Has the home thread start a worker, and waits for it if it is needed.
pub(crate) fn start(registry: &Arc<Registry>, group: &Arc<Group>, start: Start) -> Result<()> {
    if !start.is_needed {
        begin(registry, group, start, Asker::None);
        return Ok(());
    }
    post(registry, group, start).wait()
}

/// Has the home thread start a worker that is needed, and leaves the wait for it to the
/// caller.
pub(crate) fn post(registry: &Arc<Registry>, group: &Arc<Group>, start: Start) -> Coming {
    let coming = Coming {
        group: Arc::clone(group),
        number: start.number,
        notice: Arc::new(Notice::default()),
    };
    let notice = Arc::clone(&coming.notice);
    begin(registry, group, start, Asker::Waits(notice));
    coming
}

/// Has the home thread start a worker that is needed, and does not wait for it. The thread
/// of the lease sees to the rest when there can be none.
pub(crate) fn start_aside(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    start: Start,
    lease: Lease,
) {
    begin(registry, group, start, Asker::Left(Arc::new(lease)));
}

fn begin(registry: &Arc<Registry>, group: &Arc<Group>, start: Start, asker: Asker) {
    let birth = Arc::new(Birth {
        number: start.number,
        role: start.role,
        is_needed: start.is_needed,
        registry: Arc::clone(registry),
        group: Arc::clone(group),
        asker,
        is_over: AtomicBool::new(false),
    });
    let home = match start.is_first {
        true => Home::get(),
        false => Home::reach(),
    };
    match home {
        Ok(home) => home.post(Box::new(move || birth.begin(start))),
        Err(error) => birth.end(Err(error)),
    }
}

/// A birth that has been asked for.
pub(crate) struct Coming {
    group: Arc<Group>,
    number: u64,
    notice: Arc<Notice>,
}

impl Coming {
    /// Waits until the worker is there, or cannot be.
    pub(crate) fn wait(self) -> Result<()> {
        // Told by the thread that asked: the home thread runs no subscriber.
        (self.notice.wait()).inspect_err(|error| tell_of_failure(&self.group, self.number, error))
    }

    pub(crate) fn group(&self) -> &Arc<Group> {
        &self.group
    }
}

fn tell_of_failure(group: &Group, worker: u64, error: &Error) {
    quietly(|| {
        tracing::warn!(
            netns = %group.label(),
            netns_id = %group.id(),
            worker,
            error = %error,
            "worker could not start"
        );
    });
}

/// The thread that asked for a worker.
#[derive(Clone)]
enum Asker {
    /// None relies on the worker.
    None,
    /// It waits, and sees to the rest when there can be none.
    Waits(Arc<Notice>),
    /// It has left that to the thread of the lease.
    Left(Arc<Lease>),
}

/// A worker that is being born. One that is lost on its way, by whatever fault, counts
/// as one that failed: its group and the thread that waits for it are told.
struct Birth {
    number: u64,
    role: Role,
    is_needed: bool,
    registry: Arc<Registry>,
    group: Arc<Group>,
    asker: Asker,
    /// It has been told how it went.
    is_over: AtomicBool,
}

impl Birth {
    /// Creates the thread. Runs on the home thread.
    #[expect(
        clippy::disallowed_methods,
        reason = "every worker is made here, on the home thread"
    )]
    fn begin(self: Arc<Self>, start: Start) {
        let (registry, group) = (Arc::clone(&self.registry), Arc::clone(&self.group));
        let pool = Arc::clone(registry.pool());
        let number = start.number;
        #[cfg(loom)]
        if pool.fails_birth() {
            let cause = io::Error::from_raw_os_error(libc::EAGAIN);
            return self.end(Err(Error::start_thread(group.label(), cause)));
        }
        let builder = thread::Builder::new()
            .name(pool.config.thread_name(group.label(), number))
            .stack_size(pool.config.stack_size);
        let birth = Arc::clone(&self);
        let spawn = || {
            let (registry, group) = (Arc::clone(&registry), Arc::clone(&group));
            builder.spawn(move || {
                let report = Box::new(move |how| birth.end(how));
                (registry.worker_main)(&registry, &group, start, report);
                registry.pool().threads.reap();
                registry.pool().threads.ended(number);
            })
        };
        if let Err(cause) = spawn_as(&pool, number, group.id(), group.serial(), spawn) {
            self.end(Err(Error::start_thread(group.label(), cause)));
        }
    }

    /// Tells the group how it went, and then the thread that needs the worker.
    fn end(&self, how: Result<Arc<Member>>) {
        self.is_over.store(true, Ordering::Relaxed);
        match how {
            Ok(member) => {
                self.group.started(member, self.is_needed);
                if let Asker::Waits(notice) = &self.asker {
                    notice.tell(Ok(()));
                }
            }
            Err(error) => {
                (self.group).start_failed(self.role, self.is_needed, error.duplicate());
                match self.asker.clone() {
                    Asker::None => self.registry.bury(&self.group),
                    // It may try once more, and buries the group itself.
                    Asker::Waits(notice) => notice.tell(Err(error)),
                    Asker::Left(lease) => {
                        let (registry, group) =
                            (Arc::clone(&self.registry), Arc::clone(&self.group));
                        let number = self.number;
                        lease.run(move || give_up(&registry, &group, number, &error));
                    }
                }
            }
        }
    }
}

/// Has `spawn` create the thread of a worker, which is then one of the pool's.
pub(crate) fn spawn_as(
    pool: &Pool,
    number: u64,
    netns: NetnsId,
    serial: u64,
    spawn: impl FnOnce() -> io::Result<thread::JoinHandle<()>>,
) -> io::Result<()> {
    // A stack of an absurd size makes it panic.
    let spawned = catch_unwind(AssertUnwindSafe(|| {
        pool.threads.spawn(number, netns, serial, spawn)
    }));
    spawned.unwrap_or_else(|panic| {
        discard(panic);
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    })
}

/// Does what the thread that asked would, where that has not waited.
fn give_up(registry: &Registry, group: &Arc<Group>, worker: u64, error: &Error) {
    tell_of_failure(group, worker, error);
    tell_owners(group, error);
    registry.bury(group);
}

impl Drop for Birth {
    fn drop(&mut self) {
        if !*self.is_over.get_mut() {
            let lost = "the birth of a worker was lost on its way";
            self.end(Err(Error::new(Kind::Panic, lost)));
        }
    }
}

/// Tells the thread that started a worker how that went.
#[derive(Default)]
pub(crate) struct Notice {
    told: Mutex<Option<Result<()>>>,
    changed: Condvar,
}

impl Notice {
    pub(crate) fn tell(&self, how: Result<()>) {
        *self.told.lock() = Some(how);
        self.changed.notify_one();
    }

    pub(crate) fn wait(&self) -> Result<()> {
        let mut told = self.told.lock();
        loop {
            match told.take() {
                Some(how) => return how,
                None => self.changed.wait(&mut told),
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::executor::pool::{Config, Pool};
    use crate::executor::worker;
    use crate::guard::{Guard, Policy};
    use crate::netns::Netns;

    #[test]
    fn birth_that_is_lost_is_one_that_failed() {
        let policy = Policy::prepare(Guard::Off).unwrap();
        let pool = Pool::new(Config::default(), policy);
        let registry = Arc::new(Registry::new(pool, worker::main));
        let netns = Netns::current().unwrap();
        let group = registry.group(netns.id(), netns.label()).unwrap();
        registry.pool().capacity.reserve_anyway();
        let start = group.begin_first(netns).expect("it has no worker");
        let notice = Arc::new(Notice::default());
        // What a fault on the home thread does to what it was about to do.
        drop(Birth {
            role: start.role,
            is_needed: start.is_needed,
            number: start.number,
            registry: Arc::clone(&registry),
            group: Arc::clone(&group),
            asker: Asker::Waits(Arc::clone(&notice)),
            is_over: AtomicBool::new(false),
        });
        assert!(notice.wait().unwrap_err().to_string().contains("lost"));
        assert!(!group.retire(), "no worker is on its way");
        assert_eq!(registry.stats().workers, 0);
    }
}
