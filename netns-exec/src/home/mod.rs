//! The home thread: one per process, in the namespace of the main thread.
//!
//! It creates every other thread of this library, so that a worker inherits
//! nothing from the thread that asks for it: not the network namespace
//! (clone(2) copies the caller's), not the signal mask, not a seccomp filter or
//! a dropped capability. For jobs whose thread gave a privilege up it also does
//! what needs that privilege.
//!
//! It starts with the first call that needs it and stays until the process
//! ends: children that asked for a signal at their parent's death
//! (`PR_SET_PDEATHSIG`) have it as their parent. Nothing that runs on it may
//! wait for a job.

pub(crate) mod roster;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::thread;

use nix::sys::stat::fstat;
use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::sys;

type Request = Box<dyn FnOnce() + Send>;

pub(crate) struct Home {
    /// The process that started it: fork(2) copies only the calling thread, so
    /// in a child there is no thread to serve the queue.
    pid: u32,
    queue: Mutex<VecDeque<Request>>,
    ready: Condvar,
}

thread_local! {
    static IS_HOME: Cell<bool> = const { Cell::new(false) };
}

impl Home {
    /// Finds the home thread, or starts it.
    pub(crate) fn get() -> Result<&'static Home> {
        static HOME: OnceLock<&'static Home> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());

        let home = match HOME.get() {
            Some(home) => home,
            None => {
                let _one_at_a_time = STARTING.lock();
                match HOME.get() {
                    Some(home) => home,
                    None => {
                        let home = Home::start()?;
                        HOME.get_or_init(|| home)
                    }
                }
            }
        };
        if home.pid != std::process::id() {
            return Err(Error::kernel(
                "cannot reach the home thread: this process was forked after netns-exec was first used",
                io::Error::from_raw_os_error(libc::ESRCH),
            )
            .hint("fork first, or exec in the child"));
        }
        Ok(home)
    }

    #[expect(clippy::disallowed_methods, reason = "makes the home thread")]
    fn start() -> Result<&'static Home> {
        let home: &'static Home = Box::leak(Box::new(Home {
            pid: std::process::id(),
            queue: Mutex::new(VecDeque::new()),
            ready: Condvar::new(),
        }));
        let failed = |cause: io::Error| Error::kernel("cannot start the home thread", cause);

        // Blocked before the thread exists, so that no signal is ever delivered to it.
        let mask = sys::thread::block_signals().map_err(failed)?;
        let (born, birth) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("netns-home".to_owned())
            .spawn(move || {
                let at_home = go_home();
                let stays = at_home.is_ok();
                born.send(at_home).expect("`start` waits for this");
                if stays {
                    home.serve();
                }
            });
        let restored = sys::thread::restore_signals(&mask);
        thread.map_err(failed)?;
        birth.recv().expect("the home thread reports its birth")?;
        restored.map_err(failed)?;
        Ok(home)
    }

    fn serve(&self) -> ! {
        IS_HOME.set(true);
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
            let _ = catch_unwind(AssertUnwindSafe(request));
        }
    }

    /// Runs `f` on the home thread and returns what it returned; a panic in `f`
    /// goes on in the caller. Called on the home thread, it calls `f`.
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
    #[expect(clippy::disallowed_methods, reason = "on the home thread")]
    pub(crate) fn spawn_thread(
        &self,
        name: String,
        stack_size: usize,
        f: impl FnOnce() + Send + 'static,
    ) -> io::Result<thread::JoinHandle<()>> {
        self.call(move || {
            thread::Builder::new()
                .name(name)
                .stack_size(stack_size)
                .spawn(f)
        })
    }

    /// Runs `f` on a thread of its own that starts at home and ends with `f`,
    /// and returns what it returned: for what must be done inside a namespace
    /// (`f` enters it) before any worker serves it.
    pub(crate) fn visit<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        const STACK: usize = 128 * 1024;
        let (reply, answer) = sync_channel(1);
        let thread = self.spawn_thread("netns-visit".to_owned(), STACK, move || {
            // The guard and the audit must not take this thread, in some
            // namespace, for one that a job left there.
            let _registration = roster::sign_in_visitor();
            let _ = reply.send(f());
        })?;
        // Joined, so that the thread's reference to the namespace is gone too.
        match thread.join() {
            Ok(()) => Ok(answer
                .recv()
                .expect("a visit that did not panic has replied")),
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Makes the calling thread the home thread: in the main thread's namespace,
/// on the main thread's CPUs.
fn go_home() -> Result<()> {
    let failed = |cause: io::Error| {
        Error::kernel(
            "cannot move the home thread to the network namespace of the process's main thread",
            cause,
        )
    };
    let main = sys::netns::of_main_thread().map_err(failed)?;
    let here = sys::netns::of_this_thread().map_err(failed)?;
    // Both are open, so the inode numbers cannot have been reused.
    let key = |fd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    let same = key(&main).and_then(|main| Ok(main == key(&here)?));
    if !same.map_err(|errno| failed(errno.into()))? {
        sys::netns::enter(&main).map_err(|cause| {
            failed(cause).hint(
                "the first use of netns-exec came from a thread in another namespace; \
                 use it first from a thread at home, or with CAP_SYS_ADMIN",
            )
        })?;
    }
    // A pinned caller must not decide where workers run. Not worth failing over.
    let _ = sys::thread::adopt_affinity_of_main();
    Ok(())
}
