//! Which worker the calling thread is, and whether it waits: what lets calls nest.

use std::cell::{Cell, OnceCell};
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use super::birth::see_to;
use super::group::Group;
use super::hooks;
use super::pool::Pool;
use super::registry::Registry;
use crate::error::{Error, Result};
use crate::guard::NetnsCheck;
use crate::home;
use crate::sync;
use crate::sys;

/// The worker that the calling thread is.
pub(crate) struct Current {
    pub(crate) registry: Arc<Registry>,
    pub(crate) group: Arc<Group>,
    /// Where the thread belongs, unless no job can take it elsewhere.
    netns_check: Option<Rc<NetnsCheck>>,
}

impl Current {
    /// Whether the thread is in its namespace: a job of a guard that lets it may
    /// have moved it, and not be over.
    #[inline]
    pub(crate) fn is_in_place(&self) -> bool {
        (self.netns_check.as_ref()).is_none_or(|check| check.is_in_place())
    }
}

/// How a worker's job waits just now, as far as its group knows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    No,
    /// Inside [`blocking`].
    Blocked,
    /// It has polled handles that were not ready, and some of them are not yet.
    Polled,
}

sync::local! {
    /// The [key](Pool::key) of the executor whose worker the calling thread is or
    /// was, or 0. Still there when thread-locals have been destroyed.
    static WORKER_OF: Cell<u64> = Cell::new(0);
    /// Whether the calling thread is a worker that its group counts.
    /// Cheaper to ask than `CURRENT`.
    static SERVES: Cell<bool> = Cell::new(false);
    static CURRENT: OnceCell<Current> = OnceCell::new();
    static WAITS: Cell<Waits> = Cell::new(Waits::No);
    /// Of the wait that [`Waits::Polled`] stands for: its number, which no other wait
    /// has, and how many handles it is for.
    static POLLED: Cell<(u64, usize)> = Cell::new((0, 0));
    /// The address by which the waker is known of the future that the calling thread
    /// polls for the executor, or 0.
    static POLLING: Cell<usize> = Cell::new(0);
}

/// Makes the calling thread a worker of `group`, with the check of its namespace if a job can
/// take it elsewhere.
pub(crate) fn begin(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    netns_check: Option<Rc<NetnsCheck>>,
) {
    WORKER_OF.with(|it| it.set(registry.pool().key));
    CURRENT.with(|current| {
        let worker = Current {
            registry: Arc::clone(registry),
            group: Arc::clone(group),
            netns_check,
        };
        assert!(current.set(worker).is_ok(), "a thread is one worker");
    });
    SERVES.with(|it| it.set(true));
}

/// Makes the calling thread one of an executor's that is in no group: it must not wait for
/// its own end.
pub(crate) fn begin_apart(registry: &Registry) {
    WORKER_OF.with(|it| it.set(registry.pool().key));
}

/// Notes that the calling thread's group does not count it any more.
pub(crate) fn left() {
    SERVES.with(|it| it.set(false));
}

/// Calls `f` with the worker that the calling thread is, if it is one and has not left
/// its group.
#[inline]
pub(crate) fn with_current<R>(f: impl FnOnce(Option<&Current>) -> R) -> R {
    if !SERVES.with(Cell::get) {
        return f(None);
    }
    let mut f = Some(f);
    let mut call = |current: Option<&Current>| (f.take().expect("called once"))(current);
    // Gone when the destructor of another thread-local calls: by then the thread has
    // left its group.
    match CURRENT.try_with(|current| call(current.get())) {
        Ok(result) => result,
        Err(_) => call(None),
    }
}

/// Whether the calling thread is a worker, of whatever executor.
#[inline]
pub(crate) fn is_worker() -> bool {
    WORKER_OF.with(Cell::get) != 0
}

/// Whether the calling thread is a worker of this executor, be it one whose
/// thread-locals are being destroyed.
pub(crate) fn is_worker_of(pool: &Pool) -> bool {
    WORKER_OF.with(Cell::get) == pool.key
}

/// Whether other jobs wait for the worker that the calling thread is: time for a job
/// that can be put off to end.
pub(crate) fn is_wanted() -> bool {
    with_current(|current| current.is_some_and(|current| !current.group.queue.is_empty()))
}

/// Says why the calling thread must not wait for what another thread does, if it
/// must not.
///
/// # Errors
///
/// In a copy of a process that used the library: `ESRCH`. On a thread that all others
/// depend on, the home thread or the watch's, and in a start hook: `EDEADLK`.
#[inline]
pub(crate) fn check_may_wait() -> Result<()> {
    if sys::fork::is_copy() {
        return Err(in_a_copy());
    }
    if hooks::is_in_start_hook() {
        return Err(in_start_hook());
    }
    home::check_may_wait()
        .map_err(|cause| Error::kernel("cannot wait on a thread that serves all others", cause))
}

#[cold]
fn in_start_hook() -> Error {
    Error::kernel(
        "cannot use an executor in a worker's start hook: calls wait for this worker",
        std::io::Error::from_raw_os_error(libc::EDEADLK),
    )
    .hint("do it in a job, or before the executor is built")
}

#[cold]
fn in_a_copy() -> Error {
    Error::kernel(
        "cannot wait for a worker: this process was forked after netns-exec was first used, \
         and fork(2) copies only the thread that calls it",
        std::io::Error::from_raw_os_error(libc::ESRCH),
    )
    .hint("fork first, or exec in the child")
}

/// Surrounds whatever makes a thread wait for a job.
///
/// On a worker, its group learns that it has one thread less to serve its queue
/// and gets a spare when it needs one. On any other thread it just calls `wait`.
#[inline]
pub(crate) fn blocking<R>(wait: impl FnOnce() -> R) -> R {
    // One wait can be part of another (for room in a queue, as part of a call; for a
    // job, beside a handle that is awaited): the thread counts once.
    if !SERVES.with(Cell::get) || WAITS.with(Cell::get) != Waits::No {
        return wait();
    }
    let _until_the_end = begin_wait(Waits::Blocked).then_some(Waiting);
    wait()
}

/// Ends a wait when it is dropped, be it by a panic.
struct Waiting;

impl Drop for Waiting {
    fn drop(&mut self) {
        end_wait();
    }
}

/// Calls `f`, which polls a future for the executor with the waker at this address.
pub(crate) fn polling(waker: usize, f: impl FnOnce()) {
    struct Before(usize);
    impl Drop for Before {
        fn drop(&mut self) {
            POLLING.with(|it| it.set(self.0));
        }
    }
    let _before = Before(POLLING.with(|it| it.replace(waker)));
    f();
}

/// Whether `waker` is that of the future that the calling thread polls for the executor:
/// then what is not ready keeps no worker waiting.
pub(crate) fn is_polling(waker: &Waker) -> bool {
    waker.data().addr() == POLLING.with(Cell::get)
}

/// What a handle that was polled remembers of it: the number of the wait that it is part
/// of, or 0.
pub(crate) struct Polled<'a>(pub(crate) &'a mut u64);

impl Polled<'_> {
    /// Notes that the handle was not ready: the calling thread's job will wait for it,
    /// in a way that the executor does not see.
    pub(crate) fn in_vain(self) {
        static WAITS_SO_FAR: AtomicU64 = AtomicU64::new(0);
        let (wait, handles) = POLLED.with(Cell::get);
        let how = WAITS.with(Cell::get);
        if how == Waits::Polled {
            if *self.0 != wait {
                *self.0 = wait;
                POLLED.with(|it| it.set((wait, handles + 1)));
            }
        } else if how == Waits::No && SERVES.with(Cell::get) {
            *self.0 = WAITS_SO_FAR.fetch_add(1, Ordering::Relaxed) + 1;
            POLLED.with(|it| it.set((*self.0, 1)));
            begin_wait(Waits::Polled);
        }
    }

    /// Notes that the job does not wait for the handle any more. It may for others.
    #[inline]
    pub(crate) fn no_more(self) {
        if *self.0 != 0 {
            self.was_part_of_a_wait();
        }
    }

    fn was_part_of_a_wait(self) {
        let (wait, handles) = POLLED.with(Cell::get);
        // A wait that is over, or another thread's, is none of ours.
        if mem::take(self.0) != wait || WAITS.with(Cell::get) != Waits::Polled {
            return;
        }
        POLLED.with(|it| it.set((wait, handles - 1)));
        if handles == 1 {
            end_wait();
        }
    }
}

/// Notes that the calling thread's job is over, and waits for no handle that it has
/// polled.
#[inline]
pub(crate) fn came_back() {
    if WAITS.with(Cell::get) == Waits::Polled {
        end_wait();
    }
}

fn begin_wait(how: Waits) -> bool {
    with_current(|current| {
        let Some(current) = current else {
            return false;
        };
        // Before the group is told: a birth that it wants is waited for here.
        WAITS.with(|it| it.set(how));
        let todo = current.group.worker_blocks();
        see_to(&current.registry, &current.group, todo);
        true
    })
}

fn end_wait() {
    WAITS.with(|it| it.set(Waits::No));
    with_current(|current| {
        if let Some(current) = current {
            current.group.worker_goes_on();
        }
    });
}
