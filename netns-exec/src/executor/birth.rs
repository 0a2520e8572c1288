//! How a worker comes to be: what a group has decided is carried out here.
//!
//! The home thread creates the worker's thread and runs no code of a user's. The
//! thread that needs the worker waits for it, and when it cannot be had, tells the
//! owners of the jobs that no other worker will come to.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::{Group, Member, Role, Start, Todo};
use super::pool::Pool;
use super::registry::Registry;
use super::spare;
use crate::error::{Error, Result};
use crate::handoff::job::JobRef;
use crate::handoff::outcome::{discard, quietly};
use crate::home::Home;
use crate::home::aside::Lease;
use crate::netns::{Netns, NetnsId};
use crate::sync::{Condvar, Mutex, thread};

/// Does what a group has decided. Returns jobs that are to be shipped elsewhere.
#[must_use]
pub(crate) fn carry_out(registry: &Arc<Registry>, group: &Arc<Group>, todo: Todo) -> Vec<JobRef> {
    match todo {
        Todo::Nothing => Vec::new(),
        Todo::Reship(jobs) => jobs,
        Todo::Start(start) => {
            let netns = start.netns.clone();
            let how = self::start(registry, group, start);
            settle(registry, group, netns, how);
            Vec::new()
        }
    }
}

/// Does what is to be done when a birth that jobs relied on has ended: where it failed,
/// it is tried once more if there may be room now, and then the jobs are given up that
/// no other worker will come to.
pub(crate) fn settle(registry: &Arc<Registry>, group: &Arc<Group>, netns: Netns, how: Result<()>) {
    let Err(mut error) = how else {
        return;
    };
    if make_room(registry, &error)
        && let Some(again) = group.begin_again(netns)
    {
        match start(registry, group, again) {
            Ok(()) => return,
            Err(failed_too) => error = failed_too,
        }
    }
    for job in group.orphans() {
        job.abort(error.duplicate());
    }
    group.fail_futures(&error);
    registry.bury(group);
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
    while registry.evict(AT_ONCE) == 0 {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(BECOMES_IDLE / 20);
    }
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
    let birth = Birth {
        number: start.number,
        role: start.role,
        is_needed: start.is_needed,
        registry: Arc::clone(registry),
        group: Arc::clone(group),
        asker,
    };
    match Home::get() {
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

/// A worker that is being born.
#[derive(Clone)]
struct Birth {
    number: u64,
    role: Role,
    is_needed: bool,
    registry: Arc<Registry>,
    group: Arc<Group>,
    asker: Asker,
}

impl Birth {
    /// Creates the thread. Runs on the home thread.
    #[expect(
        clippy::disallowed_methods,
        reason = "every worker is made here, on the home thread"
    )]
    fn begin(self, start: Start) {
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
        let birth = self.clone();
        let spawn = || {
            let (registry, group) = (Arc::clone(&registry), Arc::clone(&group));
            builder.spawn(move || {
                let report = Box::new(|how| birth.end(how));
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
    fn end(self, how: Result<Arc<Member>>) {
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
                    Asker::Left(lease) => lease.run(move || self.give_up(&error)),
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

impl Birth {
    /// Does what the thread that asked would, where that has not waited.
    fn give_up(self, error: &Error) {
        tell_of_failure(&self.group, self.number, error);
        for job in self.group.orphans() {
            job.abort(error.duplicate());
        }
        self.group.fail_futures(error);
        self.registry.bury(&self.group);
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
