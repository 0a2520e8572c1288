//! How a worker comes to be: what a group has decided is carried out here.
//!
//! The home thread creates the worker's thread and runs no code of a user's. The
//! thread that needs the worker waits for it, and when it cannot be had, tells the
//! owners of the jobs that no other worker will come to.

use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::{Group, Member, Role, Start, Todo};
use super::registry::Registry;
use crate::error::{Error, Result};
use crate::handoff::job::JobRef;
use crate::handoff::outcome::{discard, quietly};
use crate::home::Home;
use crate::sync::{Condvar, Mutex, thread};

/// Does what a group has decided. Returns jobs that are to be shipped elsewhere.
#[must_use]
pub(crate) fn carry_out(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    mut todo: Todo,
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
        for job in group.orphans() {
            job.abort(error.duplicate());
        }
        registry.bury(group);
        return Vec::new();
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
    }
    threads.wait_for_end(ends_before, LIMIT)
}

/// Has the home thread start a worker, and waits for it if it is needed.
pub(crate) fn start(registry: &Arc<Registry>, group: &Arc<Group>, start: Start) -> Result<()> {
    let (is_needed, number) = (start.is_needed, start.number);
    let notice = Arc::new(Notice::default());
    let birth = Birth {
        role: start.role,
        is_needed,
        registry: Arc::clone(registry),
        group: Arc::clone(group),
        notice: Arc::clone(&notice),
    };
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

/// A worker that is being born.
#[derive(Clone)]
struct Birth {
    role: Role,
    is_needed: bool,
    registry: Arc<Registry>,
    group: Arc<Group>,
    notice: Arc<Notice>,
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
    fn end(self, how: Result<Arc<Member>>) {
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
