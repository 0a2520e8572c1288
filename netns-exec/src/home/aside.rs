//! Threads at home for what the thread at hand must not do itself: async code that must
//! not block has chores done here, and threads that run no user code (the home thread,
//! the watch's, a worker outside of its door) leave wakers and what is to be dropped.
//!
//! They start when there is something to do and end when there has been nothing for a
//! while. Wakers have a thread of their own, which no chore keeps busy.
#![allow(dead_code, reason = "what can be awaited is built on it next")]

use std::collections::VecDeque;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Home, Request, check_may_wait};
use crate::error::Error;

/// Threads of one kind, and what they have to do.
struct Aside {
    name: &'static str,
    most_threads: usize,
    state: Mutex<Pending>,
    work: Condvar,
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
            state: Mutex::new(Pending {
                queue: VecDeque::new(),
                threads: 0,
                idle: 0,
                leases: 0,
            }),
            work: Condvar::new(),
        }
    }
}

/// What may take a while. As many threads as the kernel makes namespaces at once, in some
/// measure.
static CHORES: Aside = Aside::new("netns-aside", 4);

/// Wakers, and values that are dropped: short, and user code.
static WAKES: Aside = Aside::new("netns-wake", 1);

/// How long a thread stays that has nothing to do.
const STAYS: Duration = Duration::from_secs(5);

/// Has `chore` done soon, on a thread at home; it must come to an end by itself.
///
/// # Errors
///
/// `EAGAIN` without a thread to do it. The chore is dropped then, by the caller.
pub(crate) fn post(chore: impl FnOnce() + Send + 'static) -> io::Result<()> {
    CHORES.post(Box::new(chore))
}

/// Keeps the thread that calls wakers, so that it is there when it is needed.
pub(crate) struct Lease(());

impl Lease {
    /// # Errors
    ///
    /// `EAGAIN` without a thread.
    pub(crate) fn new() -> io::Result<Lease> {
        WAKES.state.lock().leases += 1;
        let lease = Lease(());
        WAKES.start_first().map(|()| lease)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        WAKES.state.lock().leases -= 1;
    }
}

/// Has a waker called soon, for which there is a [`Lease`].
pub(crate) fn wake(waker: Waker) {
    let woken = WAKES.post(Box::new(move || waker.wake()));
    debug_assert!(woken.is_ok(), "a lease keeps the thread");
}

/// Drops what is a user's: on the calling thread, unless that is a worker, the home thread
/// or the watch's. Where no other thread can be had, it is leaked.
pub(crate) fn drop_user_value(value: impl Send + 'static, is_worker: bool) {
    if !is_worker && check_may_wait().is_ok() {
        return quietly(|| drop(value));
    }
    let value = ManuallyDrop::new(value);
    let _leaked = WAKES.post(Box::new(move || drop(ManuallyDrop::into_inner(value))));
}

impl Aside {
    fn post(&'static self, request: Request) -> io::Result<()> {
        let mut state = self.state.lock();
        state.queue.push_back(request);
        if state.idle > 0 || state.threads == self.most_threads {
            drop(state);
            self.work.notify_one();
            return Ok(());
        }
        let first = state.threads == 0;
        state.threads += 1;
        drop(state);
        match self.start() {
            Ok(()) => Ok(()),
            // The others come to it.
            Err(_) if !first => Ok(()),
            Err(error) => {
                let request = self.state.lock().queue.pop_back();
                drop(request);
                Err(error)
            }
        }
    }

    fn start_first(&'static self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.threads > 0 {
            return Ok(());
        }
        state.threads += 1;
        drop(state);
        self.start()
    }

    /// Starts a thread that has been counted.
    fn start(&'static self) -> io::Result<()> {
        const STACK: usize = 256 * 1024;
        let home = Home::get().map_err(Error::into);
        let started = home.and_then(|home| {
            let serve = move || self.serve();
            home.spawn_thread(self.name.to_owned(), Some(STACK), serve)
        });
        if started.is_err() {
            self.state.lock().threads -= 1;
        }
        started.map(drop)
    }

    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(request) = state.queue.pop_front() {
                drop(state);
                quietly(request);
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let waited = self.work.wait_for(&mut state, STAYS);
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() && state.leases == 0 {
                state.threads -= 1;
                return;
            }
        }
    }
}

/// Runs what may be a user's code: what it panics with is dropped.
fn quietly(f: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(f))
        && let Err(next) = catch_unwind(AssertUnwindSafe(|| drop(panic)))
    {
        // It might go on like that for ever.
        mem::forget(next);
    }
}
