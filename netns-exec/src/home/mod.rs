//! The home thread: one per process, in the namespace of the main thread.
//!
//! It creates every other thread of this library, so that a worker inherits
//! nothing from the thread that asks for it: not the network namespace
//! (clone(2) copies the caller's), not the signal mask, not a seccomp filter or
//! a dropped capability. For jobs whose thread gave a privilege up it also does
//! what needs that privilege.
//!
//! It starts with the first call that needs it and stays until the process
//! ends. No code of a user's runs on it, nor is any dropped there, and it never
//! waits: not for a job, not for a child, not for a thread that it has created.
//! What would is an error at once, see [`check_may_wait`].
//!
//! # What a thread inherits, and from where
//!
//! | attribute | home | worker | prewarm's | visitor, forker | child of `spawn_in` |
//! |---|---|---|---|---|---|
//! | network namespace | main's (1) | its own (2) | main's (3) | main's, or one it enters (2) | its own (2) |
//! | UTS, IPC, cgroup namespace | main's (1) | home's | main's (3) | home's | home's |
//! | mount namespace, pid and time namespace of children, descriptor table, cwd, umask | main's, or no start (1) | home's | home's | home's | home's (its own copy) |
//! | policy, nice value, CPUs, timer slack | main's (1) | home's | main's (3) | home's | home's |
//! | capabilities, NO_NEW_PRIVS | main's, or no start (1) | home's; what the seal takes | main's (3) | home's | home's |
//! | user, groups, seccomp filters, security label, cgroup | main's, or no start (1) | home's; what the seal adds | home's | home's | home's |
//! | signal mask | all but faults | all but faults (4) | main's (3) | all but faults | empty (5) |
//! | place in the roster | home | worker | visitor | visitor | none: a process of its own |
//!
//! 1. Set and checked by `sys::inherit::adopt_from_main` in [`Home::start`], which
//!    fails when there is something that it could not get; nothing is kept of a
//!    failed start. `tests/home/first_caller.rs`.
//! 2. Set by `Netns::enter` or, between fork(2) and execve(2), by `sys::process`,
//!    and checked by the same: the namespace's id is compared with the one asked
//!    for. `tests/home/descriptors.rs`.
//! 3. Set and checked by `adopt_from_main` when the thread starts, in
//!    [`Home::run_hook`]. `tests/home/prewarm.rs`.
//! 4. Set again by the guard before the worker parks. `tests/executor/signals.rs`.
//! 5. Set by `sys::process` in the child. `tests/process`.
//!
//! With a view, a worker and a child have a mount namespace, cwd and umask of their own,
//! copies of home's: `sys::view`. `tests/view`.
//!
//! What the kernel does not show of other threads is inherited from the thread that
//! started the home thread: I/O priority, NUMA policy, securebits, keyrings, the Landlock domain.

pub(crate) mod aside;
mod forkers;
pub(crate) mod published;
pub(crate) mod roster;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};
use std::thread;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::payload::quietly;
use crate::sys;
use crate::sys::inherit::{self, Difference};

type Request = Box<dyn FnOnce() + Send>;

pub(crate) struct Home {
    tid: u32,
    queue: Mutex<VecDeque<Request>>,
    ready: Condvar,
}

thread_local! {
    static IS_HOME: Cell<bool> = const { Cell::new(false) };
    static MAY_NOT_WAIT: Cell<bool> = const { Cell::new(false) };
}

/// Notes that others wait for the calling thread: from now on it may not.
pub(crate) fn forbid_waiting() {
    MAY_NOT_WAIT.set(true);
}

/// Says why the calling thread must not wait for another one, if it must not.
///
/// # Errors
///
/// `EDEADLK` on the threads that serve all others: the home thread and the watch's.
#[inline]
pub(crate) fn check_may_wait() -> io::Result<()> {
    match MAY_NOT_WAIT.get() {
        true => Err(io::Error::from_raw_os_error(libc::EDEADLK)),
        false => Ok(()),
    }
}

/// The home thread, once it is there.
static HOME: OnceLock<&'static Home> = OnceLock::new();

/// Who starts it: one thread at a time. Not locked meanwhile, since a birth takes long.
static START: Mutex<Start> = Mutex::new(Start::Idle);
static START_OVER: Condvar = Condvar::new();

#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Idle,
    UnderWay,
}

/// Ends a start when it is dropped, be it by a panic.
struct UnderWay;

impl UnderWay {
    /// `None` when the home thread is there.
    fn begin() -> Option<UnderWay> {
        let mut start = START.lock();
        loop {
            if HOME.get().is_some() {
                return None;
            }
            if *start == Start::Idle {
                *start = Start::UnderWay;
                return Some(UnderWay);
            }
            START_OVER.wait(&mut start);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *START.lock() = Start::Idle;
        // All of them: where this one failed, each makes an attempt of its own.
        START_OVER.notify_all();
    }
}

impl Home {
    /// Finds the home thread, or starts it.
    ///
    /// # Errors
    ///
    /// When it cannot be started with what the main thread has (another caller may
    /// have more luck), in a copy of the process (`ESRCH`), and for a caller to which
    /// descriptors mean other files than to the home thread (`EBADF`).
    pub(crate) fn get() -> Result<&'static Home> {
        let home = match HOME.get() {
            Some(&home) => home,
            None => Home::get_or_start()?,
        };
        if sys::fork::is_copy() {
            return Err(in_a_copy());
        }
        if !cfg!(loom) && !inherit::shares_descriptors_with(home.tid) {
            return Err(Error::kernel(
                "cannot reach the home thread: this thread has a descriptor table of its own, \
                 so its descriptors mean nothing to other threads",
                io::Error::from_raw_os_error(libc::EBADF),
            )
            .hint("call from a thread that has not called unshare(CLONE_FILES)"));
        }
        Ok(home)
    }

    /// As [`get`](Home::get), also for a caller that has a descriptor table of its own:
    /// for what needs no descriptor of the caller's.
    pub(crate) fn reach() -> Result<&'static Home> {
        Home::started().map_or_else(Home::get, Ok)
    }

    /// The home thread if there is one, also for a caller that has a descriptor table of
    /// its own: for what needs no descriptor of the caller's.
    pub(crate) fn started() -> Option<&'static Home> {
        HOME.get().copied().filter(|_| !sys::fork::is_copy())
    }

    #[cold]
    fn get_or_start() -> Result<&'static Home> {
        // First: what a copy finds of the rest may be in the middle of a change.
        sys::fork::arm().map_err(|errno| {
            Error::kernel("cannot have copies of this process told apart", errno)
                .hint("needs MADV_WIPEONFORK, Linux 4.14")
        })?;
        if sys::fork::is_copy() {
            return Err(in_a_copy());
        }
        if let Some(_under_way) = UnderWay::begin() {
            let home = Home::start()?;
            return Ok(HOME.get_or_init(|| home));
        }
        Ok(HOME.get().expect("there when no start is needed"))
    }

    #[expect(clippy::disallowed_methods, reason = "makes the home thread")]
    fn start() -> Result<&'static Home> {
        let failed = |cause: io::Error| {
            let error = Error::kernel("cannot start the home thread", cause);
            match error.raw_os_error() {
                Some(libc::EINVAL) => error.hint(
                    "a thread that differs from the process's main thread in the pid or time \
                     namespace of children (unshare(2)) can create no thread",
                ),
                _ => error,
            }
        };

        // Blocked before the thread exists, so that no signal is ever delivered to it.
        let mask = sys::thread::block_signals().map_err(failed)?;
        let (born, birth) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("netns-home".to_owned())
            .spawn(move || {
                let at_home = inherit::adopt_from_main().map_err(unlike_main);
                // It is at home, also when the main thread moves later.
                let _registration = roster::sign_in_home();
                let home = at_home.map(|()| -> &'static Home {
                    Box::leak(Box::new(Home {
                        tid: sys::thread::tid(),
                        queue: Mutex::new(VecDeque::new()),
                        ready: Condvar::new(),
                    }))
                });
                let stays = home.as_ref().ok().copied();
                born.send(home).expect("`start` waits for this");
                if let Some(home) = stays {
                    home.serve();
                }
            });
        let restored = sys::thread::restore_signals(&mask);
        thread.map_err(failed)?;
        let home = birth.recv().expect("the home thread reports its birth")?;
        restored.map_err(failed)?;
        Ok(home)
    }

    fn serve(&self) -> ! {
        IS_HOME.set(true);
        forbid_waiting();
        loop {
            let request = {
                let mut queue = self.queue.lock();
                loop {
                    match queue.pop_front() {
                        Some(request) => break request,
                        None => self.ready.wait(&mut queue),
                    }
                }
            };
            // `call` catches the closure's own panics; what is left is a panic
            // while the reply is dropped.
            quietly(request);
        }
    }

    /// Runs `f` on the home thread and returns what it returned; a panic in `f`
    /// goes on in the caller. Called on the home thread, it calls `f`.
    ///
    /// `f` is this library's own, and neither runs nor drops what is a user's.
    pub(crate) fn call<T, F>(&self, f: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        if IS_HOME.get() {
            return f();
        }
        let (reply, answer) = sync_channel(1);
        self.post(Box::new(move || {
            let _ = reply.send(catch_unwind(AssertUnwindSafe(f)));
        }));
        match answer.recv().expect("the home thread answers every call") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Queues `request` for the home thread, and does not wait for it.
    pub(crate) fn post(&self, request: Request) {
        if cfg!(loom) {
            // To a model it does not matter which thread does it.
            return request();
        }
        self.queue.lock().push_back(request);
        self.ready.notify_one();
    }

    /// Starts a thread that is a child of the home thread: in the home
    /// namespace, with every signal blocked but those that its own faults raise.
    ///
    /// When there can be none, `f` is dropped by the caller.
    pub(crate) fn spawn_thread(
        &self,
        name: String,
        stack_size: Option<usize>,
        f: impl FnOnce() + Send + 'static,
    ) -> io::Result<thread::JoinHandle<()>> {
        (self.try_spawn_thread(name, stack_size, f)).map_err(|(error, _unused)| error)
    }

    /// As [`spawn_thread`](Home::spawn_thread), and gives `f` back when there can be none.
    #[expect(clippy::disallowed_methods, reason = "on the home thread")]
    pub(super) fn try_spawn_thread<F: FnOnce() + Send + 'static>(
        &self,
        name: String,
        stack_size: Option<usize>,
        f: F,
    ) -> std::result::Result<thread::JoinHandle<()>, (io::Error, F)> {
        let f = Arc::new(Mutex::new(Some(f)));
        let theirs = Arc::clone(&f);
        let spawned = self.call(move || {
            let mut builder = thread::Builder::new().name(name);
            if let Some(bytes) = stack_size {
                builder = builder.stack_size(bytes);
            }
            builder.spawn(move || {
                // The guard and the audit must not take this thread, in some
                // namespace, for one that a job left there.
                let _registration = roster::sign_in_visitor();
                let f = theirs.lock().take();
                f.expect("taken by this thread alone")();
            })
        });
        spawned.map_err(|error| {
            let unused = f.lock().take();
            (error, unused.expect("there is no thread to take it"))
        })
    }

    /// Runs `f` on a thread of its own that starts at home and ends with `f`,
    /// and returns what it returned: for what must be done inside a namespace
    /// (`f` enters it) before any worker serves it.
    ///
    /// # Errors
    ///
    /// `EAGAIN` without a thread to do it, `EDEADLK` where the caller must not wait.
    pub(crate) fn visit<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        const STACK: usize = 128 * 1024;
        self.run_apart("netns-visit", Some(STACK), f)
    }

    /// Runs what a user gave us to run outside of any job, on a thread of its own that
    /// is as one of the process's: at home, with the main thread's signal mask and
    /// whatever else it has now. A panic in `f` goes on in the caller, who waits.
    pub(crate) fn run_hook<T: Send + 'static>(
        &self,
        name: &'static str,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let failed = move |cause| Error::kernel(format!("cannot start the thread `{name}`"), cause);
        let ran = self.run_apart(name, None, move || {
            inherit::adopt_from_main().map_err(|difference| {
                let attempt = format!("cannot give the thread `{name}` {}", difference.attribute);
                Error::kernel(attempt, difference.cause)
                    .hint("the main thread has it, and the home thread does not")
            })?;
            inherit::adopt_mask_of_main().map_err(failed)?;
            Ok(f())
        });
        ran.map_err(failed)?
    }

    fn run_apart<T: Send + 'static>(
        &self,
        name: &str,
        stack_size: Option<usize>,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        check_may_wait()?;
        let (reply, answer) = sync_channel(1);
        let thread = self.spawn_thread(name.to_owned(), stack_size, move || {
            let _ = reply.send(f());
        })?;
        // Joined, so that the thread's reference to the namespace is gone too.
        match thread.join() {
            Ok(()) => Ok(answer
                .recv()
                .expect("a thread that did not panic has replied")),
            Err(panic) => resume_unwind(panic),
        }
    }
}

fn in_a_copy() -> Error {
    Error::kernel(
        "cannot reach the home thread: this process was forked after netns-exec was first used",
        io::Error::from_raw_os_error(libc::ESRCH),
    )
    .hint("fork first, or exec in the child")
}

/// Says what keeps the home thread from being as the main thread is.
fn unlike_main(difference: Difference) -> Error {
    let Difference { attribute, cause } = difference;
    if !sys::netns::is_proc_there() {
        return Error::kernel(
            "cannot find out what the process's main thread is like",
            cause,
        )
        .hint("/proc is not mounted, or is of another pid namespace");
    }
    if inherit::has_main_thread_ended() {
        return Error::kernel(
            "cannot start the home thread: it is to be as the process's main thread is, and \
             the main thread has ended",
            cause,
        )
        .hint("use netns-exec first before it ends: `Executor::new` will do");
    }
    if attribute == inherit::NETWORK_NAMESPACE {
        return Error::kernel(
            "cannot move the home thread to the network namespace of the process's main thread",
            cause,
        )
        .hint(
            "the first use of netns-exec came from a thread in another namespace; \
             use it first from a thread at home, or with CAP_SYS_ADMIN",
        );
    }
    Error::kernel(
        format!(
            "cannot start the home thread from a thread that differs from the process's main \
             thread in {attribute}"
        ),
        cause,
    )
    .hint(
        "a thread inherits it from the one that creates it, and workers must not depend on who \
         calls first: use netns-exec first from the main thread, or from one that is like it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_thread_that_would_wait_is_told_so() {
        let home = Home::get().expect("the home thread");
        let outcome = home.call(move || home.visit(|| ()));
        let errno = outcome.expect_err("it must not wait").raw_os_error();
        assert_eq!(errno, Some(libc::EDEADLK));
        // And goes on serving.
        home.visit(|| ()).expect("a visit");
    }

    /// So that no audit, and no guard, takes it for a thread that a job left there.
    #[test]
    fn visitor_and_forker_are_known_as_the_librarys_own() {
        let home = Home::get().expect("the home thread");
        let role = || roster::role_of(sys::thread::tid());
        assert_eq!(
            home.visit(role).expect("a visit"),
            Some(published::Role::Own)
        );
        assert_eq!(
            home.fork_by(role).expect("a forker"),
            Some(published::Role::Own)
        );
        assert_eq!(role(), None);
        assert_eq!(home.call(role), Some(published::Role::Home));
    }

    #[test]
    fn closure_without_a_thread_is_dropped_by_the_caller() {
        struct Told(std::sync::mpsc::Sender<u32>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.send(sys::thread::tid());
            }
        }
        let (tell, told) = std::sync::mpsc::channel();
        let captured = Told(tell);
        let home = Home::get().expect("the home thread");
        // More than there is of addresses.
        let absurd = Some(1 << 50);
        let spawned = home.spawn_thread("absurd".to_owned(), absurd, move || drop(captured));
        assert!(spawned.is_err());
        assert_eq!(told.recv(), Ok(sys::thread::tid()));
    }
}
