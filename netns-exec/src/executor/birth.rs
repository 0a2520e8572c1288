//! How a worker comes to be: what a group has decided is carried out here.
//!
//! The home thread creates the worker's thread and runs no code of a user's. The
//! thread that needs the worker waits for it, and when it cannot be had, tells the
//! owners of the jobs that no other worker will come to.

use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::group::{Group, Member, Role, Start, Todo};
use super::registry::Registry;
use crate::error::{Error, Kind, Result};
use crate::handoff::job::JobRef;
use crate::handoff::outcome::{discard, quietly};
use crate::home::Home;
use crate::sync::{Condvar, Mutex, thread};

/// Does what a group has decided that has a worker: the calling thread, for one.
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
pub(crate) fn carry_out(registry: &Arc<Registry>, group: &Arc<Group>, todo: Todo) -> Vec<JobRef> {
    carry_out_and(registry, group, todo, tell_owners)
}

/// As [`carry_out`], with the way to tell the owners of jobs that there will be no
/// worker for them.
fn carry_out_and(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    mut todo: Todo,
    tell: fn(Vec<JobRef>, &Error),
) -> Vec<JobRef> {
    let mut tried = false;
    loop {
        let start = match todo {
            Todo::Nothing => return Vec::new(),
            Todo::Reship(jobs) => return jobs,
            Todo::Start(start) => start,
        };
        let netns = start.netns.clone();
        let Err(error) = self::start(registry, group, start) else {
            return Vec::new();
        };
        if !mem::replace(&mut tried, true)
            && make_room(registry, &error)
            && let Some(again) = group.begin_again(netns)
        {
            todo = Todo::Start(again);
            continue;
        }
        tell(group.orphans(), &error);
        registry.bury(group);
        return Vec::new();
    }
}

/// Gives jobs up. Wakes those that await them, and drops what no handle is left for.
fn tell_owners(jobs: Vec<JobRef>, error: &Error) {
    for job in jobs {
        job.abort(error.duplicate());
    }
}

/// As [`tell_owners`], for a thread that a job has left where no other job's waker
/// may run: on one of its own, as long as there is one to be had.
fn tell_owners_elsewhere(jobs: Vec<JobRef>, error: &Error) {
    if jobs.is_empty() || cfg!(loom) {
        return tell_owners(jobs, error);
    }
    let jobs = Arc::new(Mutex::new(jobs));
    let theirs = (Arc::clone(&jobs), error.duplicate());
    let told = Home::get().and_then(|home| {
        home.run_hook("netns-orphans", move || {
            let (jobs, error) = theirs;
            let jobs = mem::take(&mut *jobs.lock());
            tell_owners(jobs, &error);
        })
    });
    if told.is_err() {
        let jobs = mem::take(&mut *jobs.lock());
        tell_owners(jobs, error);
    }
}

/// Has idle workers end when `error` says that something has run out that they hold;
/// tells whether one has.
pub(crate) fn make_room(registry: &Registry, error: &Error) -> bool {
    const AT_ONCE: usize = 8;
    const LIMIT: Duration = Duration::from_secs(1);
    const BECOMES_IDLE: Duration = Duration::from_millis(20);
    let has_run_out = matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM | libc::ENOSPC)
    );
    if !has_run_out || cfg!(loom) {
        return false;
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
    let (is_needed, number) = (start.is_needed, start.number);
    let notice = Arc::new(Notice::default());
    let birth = Arc::new(Birth {
        role: start.role,
        is_needed,
        registry: Arc::clone(registry),
        group: Arc::clone(group),
        notice: Arc::clone(&notice),
        is_over: AtomicBool::new(false),
    });
    match Home::get() {
        Ok(home) => home.post(Box::new(move || birth.begin(start))),
        Err(error) => birth.end(Err(error)),
    }
    if !is_needed {
        return Ok(());
    }
    notice.wait().inspect_err(|error| {
        // Told by the thread that asked: the home thread runs no subscriber.
        quietly(|| {
            tracing::warn!(
                netns = %group.label(),
                netns_id = %group.id(),
                worker = number,
                error = %error,
                "worker could not start"
            );
        });
    })
}

/// A worker that is being born. One that is lost on its way, by whatever fault, counts
/// as one that failed: its group and the thread that waits for it are told.
struct Birth {
    role: Role,
    is_needed: bool,
    registry: Arc<Registry>,
    group: Arc<Group>,
    notice: Arc<Notice>,
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
        // A stack of an absurd size makes it panic.
        let spawned = catch_unwind(AssertUnwindSafe(|| {
            (pool.threads).spawn(number, group.id(), group.serial(), spawn)
        }));
        let cause = match spawned {
            Ok(Ok(())) => return,
            Ok(Err(cause)) => cause,
            Err(panic) => {
                discard(panic);
                io::Error::from_raw_os_error(libc::ENOMEM)
            }
        };
        self.end(Err(Error::start_thread(group.label(), cause)));
    }

    /// Tells the group how it went, and then the thread that needs the worker.
    fn end(&self, how: Result<Arc<Member>>) {
        self.is_over.store(true, Ordering::Relaxed);
        match how {
            Ok(member) => {
                self.group.started(member, self.is_needed);
                self.notice.tell(Ok(()));
            }
            Err(error) => {
                (self.group).start_failed(self.role, self.is_needed, error.duplicate());
                // The thread that needed it may try once more, and buries it itself.
                if !self.is_needed {
                    self.registry.bury(&self.group);
                }
                self.notice.tell(Err(error));
            }
        }
    }
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
struct Notice {
    told: Mutex<Option<Result<()>>>,
    changed: Condvar,
}

impl Notice {
    fn tell(&self, how: Result<()>) {
        *self.told.lock() = Some(how);
        self.changed.notify_one();
    }

    fn wait(&self) -> Result<()> {
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
            registry: Arc::clone(&registry),
            group: Arc::clone(&group),
            notice: Arc::clone(&notice),
            is_over: AtomicBool::new(false),
        });
        assert!(notice.wait().unwrap_err().to_string().contains("lost"));
        assert!(!group.retire(), "no worker is on its way");
        assert_eq!(registry.stats().workers, 0);
    }
}
