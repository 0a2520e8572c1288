//! Threads at home for what the thread at hand must not do itself: async code that must
//! not block has chores done here, and threads that run no user code (the home thread,
//! the watch's, a worker outside of its door) leave wakers and what is to be dropped.
//!
//! They start when there is something to do and end when there has been nothing for a
//! while. Wakers have a thread of their own, which no chore keeps busy, and so has what
//! is told to the log: a subscriber may wait for what it likes.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Home, Request, check_may_wait};
use crate::payload::quietly;
use crate::sys;

/// Threads of one kind, and what they have to do.
struct Aside {
    name: &'static str,
    most_threads: usize,
    pending: Mutex<Pending>,
    work: Condvar,
    /// Held while a thread is started, by a thread that waits for the home thread, which
    /// therefore never takes it.
    starting: Mutex<()>,
}

struct Pending {
    queue: VecDeque<Request>,
    threads: usize,
    idle: usize,
    /// Who relies on a thread that is there, see [`Lease`].
    leases: usize,
}

impl Aside {
    const fn new(name: &'static str, most_threads: usize) -> Aside {
        Aside {
            name,
            most_threads,
            pending: Mutex::new(Pending {
                queue: VecDeque::new(),
                threads: 0,
                idle: 0,
                leases: 0,
            }),
            work: Condvar::new(),
            starting: Mutex::new(()),
        }
    }
}

/// What may take a while. As many threads as the kernel makes namespaces at once, in some
/// measure.
static CHORES: Aside = Aside::new("netns-aside", 4);

/// Wakers, and values that are dropped: short, and user code.
static WAKES: Aside = Aside::new("netns-wake", 1);

/// Subscribers of tracing's.
static LOG: Aside = Aside::new("netns-log", 1);

/// How much may wait for the log: one that is told nothing any more must not fill memory.
const MOST_UNTOLD: usize = 256;

/// How long a thread stays that has nothing to do.
const STAYS: Duration = Duration::from_secs(5);

const STACK: usize = 256 * 1024;

/// What a thread at home does meanwhile, as a future. It is done whether or not the
/// future is kept; nothing is done by polling it.
pub(crate) struct Errand<T> {
    shared: Arc<Mutex<Progress<T>>>,
}

enum Progress<T> {
    /// And this is to be called at the end.
    UnderWay(Option<Waker>),
    Done(thread::Result<T>),
    Taken,
}

impl<T: Send + 'static> Errand<T> {
    fn new(chore: impl FnOnce() -> T + Send + 'static) -> (Errand<T>, Request) {
        let shared = Arc::new(Mutex::new(Progress::UnderWay(None)));
        let errand = Errand {
            shared: Arc::clone(&shared),
        };
        let request = Box::new(move || {
            let result = catch_unwind(AssertUnwindSafe(chore));
            let before = mem::replace(&mut *shared.lock(), Progress::Done(result));
            if let Progress::UnderWay(Some(waker)) = before {
                waker.wake();
            }
        });
        (errand, request)
    }
}

impl<T> Future for Errand<T> {
    type Output = io::Result<T>;

    /// # Panics
    ///
    /// With the panic of the chore, and when polled again after it was ready.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        check_original()?;
        let waker = cx.waker().clone();
        let mut progress = self.shared.lock();
        let before = match &mut *progress {
            Progress::UnderWay(before) => before.replace(waker),
            over => {
                let over = mem::replace(over, Progress::Taken);
                drop(progress);
                return match over {
                    Progress::Done(Ok(value)) => Poll::Ready(Ok(value)),
                    Progress::Done(Err(panic)) => resume_unwind(panic),
                    _ => panic!("polled again after it was ready"),
                };
            }
        };
        drop(progress);
        drop(before);
        Poll::Pending
    }
}

/// Has `chore` done soon; it must come to an end by itself, since there are only few
/// threads for all chores.
///
/// # Errors
///
/// `EAGAIN` without a thread to do it. The chore is dropped then, by the caller.
pub(crate) fn errand<T: Send + 'static>(
    chore: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Errand<T>> {
    check_original()?;
    let (errand, request) = Errand::new(chore);
    CHORES.post(request).map(|()| errand)
}

/// As [`errand`], on a thread of its own: for what may take as long as a user's jobs.
pub(crate) fn errand_apart<T: Send + 'static>(
    name: &str,
    chore: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Errand<T>> {
    check_original()?;
    let (errand, request) = Errand::new(chore);
    let home = Home::get().map_err(io::Error::from)?;
    home.spawn_thread(name.to_owned(), Some(STACK), move || quietly(request))?;
    Ok(errand)
}

/// Has `f` run soon, on a thread of its own: for a thread that waits for nothing. Without
/// one to be had a thread for chores comes to it, once there is one.
pub(crate) fn apart(name: &'static str, f: impl FnOnce() + Send + 'static) {
    let Some(home) = Home::started() else {
        return;
    };
    home.post(Box::new(move || {
        if let Err((_, f)) = home.try_spawn_thread(name.to_owned(), Some(STACK), || quietly(f)) {
            CHORES.queue(Box::new(f));
        }
    }));
}

/// Before any lock: a copy of the process may find it taken, by a thread that is not there.
fn check_original() -> io::Result<()> {
    match sys::fork::is_copy() {
        true => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        false => Ok(()),
    }
}

/// Keeps the thread that calls wakers, so that it is there when it is needed.
pub(crate) struct Lease(());

impl Lease {
    /// # Errors
    ///
    /// `EAGAIN` without a thread.
    pub(crate) fn new() -> io::Result<Lease> {
        check_original()?;
        WAKES.pending.lock().leases += 1;
        let lease = Lease(());
        let is_there = || WAKES.pending.lock().threads > 0;
        match is_there() {
            true => Ok(lease),
            false => WAKES.start_unless(is_there).map(|()| lease),
        }
    }

    /// Has `f` run on the thread soon.
    pub(crate) fn run(&self, f: impl FnOnce() + Send + 'static) {
        WAKES.queue(Box::new(f));
    }

    /// Drops what is a user's: on the calling thread, unless that is a worker, the home
    /// thread or the watch's, which run no code of a user's just so.
    pub(crate) fn drop_user_value(&self, value: impl Send + 'static, is_worker: bool) {
        match !is_worker && check_may_wait().is_ok() {
            true => quietly(|| drop(value)),
            false => self.run(|| drop(value)),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A copy of the process may find the lock taken, by a thread that is not there.
        if !sys::fork::is_copy() {
            WAKES.pending.lock().leases -= 1;
        }
    }
}

/// Has a waker called soon, for which there is a [`Lease`].
pub(crate) fn wake(waker: Waker) {
    WAKES.queue(Box::new(move || waker.wake()));
}

/// Has `f`, which tells the log of something, run soon. Waits for nothing, also not for
/// the thread, which the home thread starts meanwhile; without one to be had `f` is run
/// with the next that is told.
///
/// `false` when too much waits already: `f` is dropped.
pub(crate) fn tell_log(f: impl FnOnce() + Send + 'static) -> bool {
    let Some(home) = Home::started() else {
        return false;
    };
    let mut pending = LOG.pending.lock();
    if pending.queue.len() >= MOST_UNTOLD {
        return false;
    }
    pending.queue.push_back(Box::new(f));
    let is_there = pending.threads > 0;
    // Counted before it can count itself out.
    pending.threads = 1;
    drop(pending);
    if is_there {
        LOG.work.notify_one();
        return true;
    }
    home.post(Box::new(move || {
        let serve = || LOG.serve();
        // With a whole stack, as other threads that log have.
        if home.spawn_thread(LOG.name.to_owned(), None, serve).is_err() {
            LOG.pending.lock().threads = 0;
        }
    }));
    true
}

impl Aside {
    fn post(&'static self, request: Request) -> io::Result<()> {
        let has_one_free = || {
            let pending = self.pending.lock();
            pending.idle > pending.queue.len() || pending.threads == self.most_threads
        };
        if !has_one_free() {
            let started = self.start_unless(has_one_free);
            // The others come to it, if there are any.
            if started.is_err() && self.pending.lock().threads == 0 {
                return started;
            }
        }
        self.queue(request);
        Ok(())
    }

    /// For what there is a thread for.
    fn queue(&self, request: Request) {
        self.pending.lock().queue.push_back(request);
        self.work.notify_one();
    }

    /// Starts a thread, unless that is not needed once the caller's turn has come.
    fn start_unless(&'static self, needless: impl Fn() -> bool) -> io::Result<()> {
        let _one_at_a_time = self.starting.lock();
        if needless() {
            return Ok(());
        }
        // Counted before it can count itself out.
        self.pending.lock().threads += 1;
        let started = Home::get().map_err(io::Error::from).and_then(|home| {
            let serve = move || self.serve();
            home.spawn_thread(self.name.to_owned(), Some(STACK), serve)
        });
        if started.is_err() {
            self.pending.lock().threads -= 1;
        }
        started.map(drop)
    }

    fn serve(&self) {
        let mut pending = self.pending.lock();
        loop {
            if let Some(request) = pending.queue.pop_front() {
                drop(pending);
                quietly(request);
                pending = self.pending.lock();
                continue;
            }
            pending.idle += 1;
            let waited = self.work.wait_for(&mut pending, STAYS);
            pending.idle -= 1;
            if waited.timed_out() && pending.queue.is_empty() && pending.leases == 0 {
                pending.threads -= 1;
                return;
            }
        }
    }
}
