//! The policies that keep a job from moving its thread or leaving threads
//! behind.
//!
//! A [`Policy`] is made once for an executor, and tried: what it promises has
//! been seen to work on this kernel, with these privileges, before the first
//! worker exists. Each worker then installs its own [`ThreadGuard`], on its own
//! thread once it has entered its namespace, and asks it after every job.
//!
//! How each is kept is a [`Mechanism`], one a file: [`seal`] (with its [`filter`]
//! and [`bell`](crate::bell), which counts what it refuses), [`keep_admin`], [`detect`],
//! [`off`], and with the feature `births-at-home` its own. Another one takes a file, a variant of [`Guard`], and its line in
//! `mechanisms!` below.

#[cfg(feature = "births-at-home")]
mod births_at_home;
mod check;
mod detect;
mod filter;
mod keep_admin;
mod off;
mod seal;

use std::ffi::CString;
use std::io;
use std::rc::Rc;

pub(crate) use check::NetnsCheck;

use crate::bell::ear::Listened;
use crate::error::{Error, LeftThread, Result};
use crate::home::roster::Registration;
use crate::refused::Refused;
use crate::sys;
use crate::sys::view::Place;

/// Keeps a job from moving its thread to another namespace and from leaving
/// threads behind in its own.
///
/// Both are how a program ends up with threads in the wrong network namespace.
/// setns(2) moves a thread, and whatever runs on that thread next is in a place
/// it knows nothing of. clone(2) gives a new thread the namespace of the thread
/// that made it, so a pool that is started lazily (rayon's, a tokio runtime,
/// the resolver of an HTTP client) and happens to be first touched in a job
/// has its threads in the job's namespace from then on, for all code that uses it.
///
/// Under every policy a worker that is found outside its namespace is retired
/// at once, nothing else ever runs on it, and the job's caller is told
/// ([`Error::is_escaped`](crate::Error::is_escaped)). A policy that cannot be
/// kept on this kernel or with these privileges is an error when the executor
/// is built; none is ever weakened in silence.
///
/// | | `Seal` | `KeepAdmin` | `Detect` | `Off` |
/// |---|---|---|---|---|
/// | a job moves its thread | refused: `EPERM` | refused: `EPERM`, or found after the job | found after the job | found after the job |
/// | a job creates threads | refused: `EPERM` | refused: `EPERM` | allowed; found when one is left | allowed |
/// | a job takes files (`CLONE_FILES`) or a working directory (`CLONE_FS`) of its own | refused: `EPERM` | refused: `EPERM` | found after the job | files: found after the job |
/// | `CAP_SYS_ADMIN` in a job | gone | kept | kept | kept |
/// | cost of each job | nothing | a look into `/proc` | some nanoseconds, or a look into `/proc` | a look into `/proc`, and kcmp(2) |
/// | descriptors for each worker | 1, see [`NetnsStats::rung`](crate::NetnsStats::rung) | 3 | 2 | 2 |
///
/// With the feature `births-at-home` there is one more, `BirthsAtHome`: as `Seal`, but that
/// the home thread creates the threads that a job asks libc for.
///
/// No policy is a sandbox. They stop accidents, in code that means no harm, and
/// reach no further than the kernel's view of one thread; a job shares its
/// memory with the whole process and can always ask another thread to act.
///
/// # What a job leaves on its thread
///
/// The next job finds the thread as the one before has left it. What does harm is
/// refused, put back, or ends the worker with the same verdict as a change of
/// namespace; the rest is left alone:
///
/// | | `Seal` | `Detect` | `Off` |
/// |---|---|---|---|
/// | signal mask, name | put back when the worker idles | the same | the same |
/// | descriptor table by unshare(2) | refused | seen after the job | seen after the job |
/// | descriptor table by close_range(2) with `CLOSE_RANGE_UNSHARE` | refused | seen after the job or, where perf events serve, when the worker idles | seen after the job |
/// | working directory and umask by unshare(2) | refused | seen after the job | seen when the worker idles |
/// | mount, UTS, IPC, cgroup, PID or time namespace | refused | seen after the job or, without perf events, when the worker idles | seen when the worker idles |
/// | capabilities | not looked at | as by close_range(2) | seen when the worker idles |
/// | user and group, by the system call for one thread | not looked at | seen when the worker idles | seen when the worker idles |
/// | nice value, scheduling policy, CPUs, timer slack, keyrings, securebits, thread-locals | not looked at | the same | the same |
/// | what belongs to the process (working directory, umask, limits, environment) | not looked at | the same | the same |
/// | working directory and umask, with a [`View`](crate::View) | seen when the worker idles | the same | the same |
///
/// A worker idles when it has had nothing to do for 20 milliseconds; one that is then
/// found unfit is retired with a line in the log. Where there is no kcmp(2) (a kernel
/// without `CONFIG_KCMP`, a container that refuses it) descriptor tables and working
/// directories are seen by no guard but refused by `Seal` all the same.
///
/// # Children
///
/// A child process has its own threads and its own namespace to be in, so every
/// policy lets jobs create children. One that a job starts by itself
/// (`std::process::Command`) is born in the job's namespace. What it inherits
/// from a sealed thread is said at [`Seal`](Guard::Seal).
///
/// # Examples
///
/// ```
/// use std::thread;
/// use netns_exec::{Executor, Guard, Netns};
///
/// // The default: a job that asks for a thread gets an error.
/// let executor = Executor::builder().guard(Guard::Seal).build()?;
/// let started = executor.run(&Netns::current()?, || thread::Builder::new().spawn(|| ()).is_ok())?;
/// assert!(!started);
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Guard {
    /// Refuses both: a job cannot move its thread and cannot create threads.
    ///
    /// Once it is in its namespace, the worker gives up two things for good:
    ///
    /// - The capability `CAP_SYS_ADMIN`, for itself only. setns(2) and
    ///   unshare(2) fail with `EPERM`, and so does all else that asks for it,
    ///   mount(2) above all. Other capabilities stay: what needs
    ///   `CAP_NET_ADMIN` or `CAP_NET_RAW` (links, addresses, routes, rules, raw
    ///   sockets) works as before. A new user namespace is no way out: the
    ///   kernel wants a process with one thread for that (`EINVAL`).
    /// - Creating threads. A seccomp filter answers clone(2) with `EPERM` when
    ///   a thread is asked for, and clone3(2) and io_uring_setup(2), whose
    ///   arguments it cannot see, with `ENOSYS`, upon which libc falls back to
    ///   clone(2) and users of io_uring to something else.
    ///   [`std::thread::Builder::spawn`] returns an error, and
    ///   [`std::thread::spawn`] panics. unshare(2) and close_range(2) for a
    ///   descriptor table or a working directory of the thread's own are `EPERM` too.
    ///
    /// Jobs cost nothing more than without: there is nothing to check after
    /// them. The filter adds some nanoseconds to each system call of a worker.
    ///
    /// # When a job panics over it
    ///
    /// Its panic is what its caller gets, from `run` and from
    /// [`join`](crate::JoinHandle::join), as with any other. Where the guard refused the
    /// job a thread, or a change of its namespaces or files, that stands beside it: in
    /// the log, and as [`Error::is_refused`](crate::Error::is_refused), with the cure in
    /// the error's text. This is counted, not guessed from what the panic says: one
    /// thread of the library, `netns-guard`, answers what the filter refuses (seccomp
    /// user notification) while there are sealed workers. Where no listener can be had
    /// (a container runtime has put one on the process, no descriptor is free) the
    /// filter refuses the same by itself, and nothing is claimed; the `Debug` of an
    /// executor tells which (`mechanism`).
    ///
    /// # How a refusal is heard
    ///
    /// At the moment at which it happens, also where the job never ends: it is in
    /// [`Stats::refused`](crate::Stats::refused) before the job sees the error, and in the log
    /// (`tracing`, a warning, `refused by the guard`, with `netns`, `netns_id`, `what` and the
    /// `cure`) soon after. That is told by a thread at home, `netns-log`, which is there when
    /// there is something to tell: not by the job's thread, which waits for the answer, so a
    /// subscriber may wait, panic or use executors. It is told **once for each job**, of the
    /// first thing that the job was refused, and not again at its end. A subscriber that falls
    /// behind by 256 jobs misses the next ones; their number comes with the line
    /// after (`left_out`). A process that ends right after the refusal, be it by the abort that
    /// it leads to, may end before the log is told.
    ///
    /// # Pools
    ///
    /// A pool that is first touched in a sealed job fails to start, and some
    /// remember that for ever (rayon's global one does). Start it at home
    /// before, see `Builder::prewarm`; handing work to threads that exist is
    /// no problem, but remember that it then runs at home.
    ///
    /// # Async code
    ///
    /// A runtime that a job builds (tokio's `current_thread` works) gets no thread either:
    /// its `spawn_blocking`, and with it `tokio::fs` and the look-up of names, fails, and
    /// prewarming another runtime does not help. A job calls what blocks itself, which
    /// is what a worker is for. A runtime outside is no better: a `spawn_blocking` that is
    /// asked for in a job may be refused its thread, stays in the runtime's queue, and runs
    /// *at home* later; and a handle to a runtime inside, given out of the job, runs what
    /// others ask for in the wrong place, or theirs at home. What belongs in a namespace is
    /// sent there as a job, or as a future of its own.
    ///
    /// # What fails, and how
    ///
    /// Most fail at once: rayon and tokio panic, POSIX aio and getaddrinfo_a(3) fail
    /// with `EPERM`, a timer with `SIGEV_THREAD` with `EAGAIN`, and each later one of the
    /// process too, unless one was made at home before. **smol's pool does not**
    /// (`blocking::unblock`, and with it `async-fs`, `smol::fs`, `Unblock`): whatever
    /// the error, it logs that a thread could not be started and leaves the task for a
    /// thread that will never come, so that a job which waits for it waits for ever, on a
    /// busy CPU. **async-io aborts the process** (`block_on`, and with it smol's timers and
    /// sockets), since it panics in a drop. Starting them before is no cure for the first, whose
    /// threads end after half a second. Do such work outside of the job, or call the blocking
    /// function itself, which is what a worker is for; or have threads created at home (feature
    /// `births-at-home`), or choose `Detect`. `docs/crates.md` in the repository has a table,
    /// with versions.
    ///
    /// # Privileges
    ///
    /// None are needed beyond those to enter the namespace. With
    /// `CAP_SYS_ADMIN`, which that takes, the filter is installed as it is. A
    /// worker without (it can serve only the namespace it was born in) has to
    /// set `PR_SET_NO_NEW_PRIVS` first, for itself and so for the children that
    /// jobs start: set-user-ID programs such as `sudo` then run without their
    /// privilege.
    ///
    /// # Children of sealed threads
    ///
    /// fork, `posix_spawn` and [`std::process::Command`] work. The filter is
    /// inherited, but only refuses calls made by code that lies where the code
    /// of *this* process lay when the worker was started, so a child that
    /// executes another program creates its threads undisturbed: its libc is
    /// elsewhere. That rests on address space randomisation. Where it is off (in
    /// a debugger, under `setarch -R`) a child's libc may be loaded at the very same
    /// address; and the same is true of two static executables without PIE. The calls
    /// of such a child, and those of one that forks and does not exec, are told from
    /// the worker's and go on as if there were no filter, for as long as this process
    /// has sealed workers, and fail after that (`ENOSYS`), or wait for ever in a copy of this
    /// process that fork(2) made and that outlives it, for it has a copy of the listener. Where refusals are not
    /// counted they are not told apart, and such children are refused like a worker.
    ///
    /// A child that runs as uid 0 has `CAP_SYS_ADMIN` again once it executes a
    /// program. One that has its capabilities from the ambient set lacks it.
    ///
    /// Children made with the library's own `CommandExt::spawn_in` come from
    /// the home thread and inherit none of this.
    ///
    /// # What it does not catch
    ///
    /// A thread that is made without libc's help by code outside the
    /// executable, such as an assembly stub in a shared library, or anywhere in
    /// an executable that is linked with shared libraries but not
    /// position-independent; a system call through the 32-bit entry of a 64-bit
    /// kernel; a process that shares this one's memory (`CLONE_VM` without
    /// `CLONE_THREAD`). A job that ends its thread by the bare exit(2) has ended with an
    /// error that [is escaped](crate::Error::is_escaped) once its children have ended too, which have the
    /// thread's filter; where no listener can be had its owner waits for ever. And a job can
    /// keep its namespace alive by letting a socket out.
    ///
    /// # A process that confines itself
    ///
    /// seccomp(2) with `SECCOMP_FILTER_FLAG_TSYNC`, which puts a filter on all threads,
    /// fails while a sealed worker lives: its filters are not those of the thread that
    /// calls. Confine the process first, which workers then inherit, or
    /// [`retire`](crate::Executor::retire) the workers of all namespaces before.
    #[default]
    Seal,
    /// Refuses both as [`Seal`](Guard::Seal) does, and leaves jobs `CAP_SYS_ADMIN`: for those
    /// that need it for something else, such as bpf(2) with `BPF_PROG_GET_NEXT_ID`
    /// (aya, bpfman, libbpf), perf events, or mounts in a mount namespace that a
    /// [start hook](crate::Builder::on_worker_start) gave them.
    ///
    /// Where `Seal` takes the capability away, so that setns(2) and unshare(2) fail whatever
    /// code calls them, here the filter refuses these calls with `EPERM` to libc's functions, to
    /// syscall(2) and to the executable's own code, as it does with threads. What gets past
    /// that is found after the job, as with [`Off`](Guard::Off): each job costs a look at
    /// the thread's place, about half a microsecond. All else that is said of `Seal` holds.
    ///
    /// # What it does not catch
    ///
    /// Beside what `Seal` does not: setns(2) and unshare(2) called without libc's help by
    /// code in a shared library, and back again before the job is over. And it is a
    /// privilege: a job can mount and unmount what the whole process sees, load programs
    /// into the kernel, trace (ptrace(2)) a thread at home and have it do anything; its
    /// children have the capability too, and may go where they want.
    KeepAdmin,
    /// Creates no thread in a job's namespace, and refuses none: those that a job asks for
    /// are created at home. With the cargo feature `births-at-home`.
    ///
    /// All that is said of [`Seal`](Guard::Seal) holds, but that `pthread_create` works on a
    /// worker, and with it [`std::thread::spawn`], rayon, tokio's `spawn_blocking`, smol's
    /// `unblock` and the threads of C libraries. The *home thread* creates
    /// the thread, a worker's birth apart, while the job waits for it, some tens of
    /// microseconds. So the thread is **not in the job's namespace**: it is at home, as if
    /// main had started it, and may live as long as it likes. Nothing is left
    /// behind, no pool is broken for the rest of the process, and no `prewarm` is needed.
    /// The errno of a thread that cannot be had is what `pthread_create` says at home.
    ///
    /// # What it means for a pool
    ///
    /// What runs on such a thread is at home: **the sockets that it makes are home's**, and
    /// so are the names that it looks up and the `/proc/thread-self/net` that it reads. A
    /// `par_iter` in a job computes at home, which is no difference until it opens
    /// something; a `TcpStream::connect("name:80")` of tokio's looks the name up at home and
    /// then connects in the namespace. Descriptors that were made in the job stay the
    /// namespace's on any thread. Code that must be in the namespace on every thread that it
    /// uses is what this guard gets wrong in silence: there [`Seal`](Guard::Seal), which
    /// remains the default, says so, and [`Executor::broadcast`](crate::Executor::broadcast)
    /// or [`workers_per_netns`](crate::Builder::workers_per_netns) have threads there.
    ///
    /// A thread at home may submit to the namespace like any other. A job that waits for a
    /// thread that does so holds the worker that is to serve it: let it wait in
    /// [`blocking`](crate::blocking).
    ///
    /// # What the thread inherits
    ///
    /// From the home thread, and so what the main thread had when the library was first
    /// used: CPUs, priority, capabilities, filters. The signal mask is the main thread's,
    /// as for any thread of the process, and not a worker's, which blocks all; where the job
    /// has set a mask of its own, as libraries do that want their thread to have it, that, and
    /// where the attributes have one, theirs. The attributes are passed on. Its name, until it
    /// has one, is the main thread's.
    ///
    /// # Where it works
    ///
    /// In dynamic executables: the feature defines `pthread_create` in the executable, in
    /// front of libc's, which it calls. On threads that are not workers under this guard it
    /// does nothing but that. [`Builder::build`](crate::Builder::build) tries it, and fails
    /// ([`is_invalid_input`](crate::Error::is_invalid_input)) where that definition is not
    /// what the process uses: in a static executable, where it is left out, in a
    /// plugin, or behind another library that defines it. A program that defines
    /// `pthread_create` itself (some builds of jemalloc, AddressSanitizer) cannot have the
    /// feature, and of two versions of this library in a program one can. Threads that a
    /// [start hook](crate::Builder::on_worker_start) starts are not a job's: they are born in
    /// the namespace.
    ///
    /// # What it does not catch
    ///
    /// Threads that libc makes for itself: timers with `SIGEV_THREAD`, POSIX aio,
    /// getaddrinfo_a(3); and whatever calls clone(2) itself. These are refused as with `Seal`.
    /// In a child that a job makes by fork(2) without exec, threads are the child's own.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Guard, Netns};
    ///
    /// let executor = Executor::builder().guard(Guard::BirthsAtHome).build()?;
    /// let (job, home) = executor.run(&Netns::open("blue")?, || {
    ///     let thread = std::thread::spawn(Netns::current);
    ///     (Netns::current(), thread.join().expect("no panic"))
    /// })?;
    /// assert_ne!(job?.id(), home?.id());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    #[cfg(feature = "births-at-home")]
    BirthsAtHome,
    /// Allows both, and reports what has happened when the job is over.
    ///
    /// Threads that end before their job are fine ([`std::thread::scope`]); those
    /// that are still alive in a namespace that is not home are reported to the
    /// job's caller with their ids and names
    /// ([`Error::is_left_threads`](crate::Error::is_left_threads)). The worker
    /// is then retired. The threads cannot be made to go away: this tells what to
    /// fix. A thread that is just ending gets a moment to do so, and each
    /// thread is reported once.
    ///
    /// Where the kernel allows it, a perf event on the worker records each
    /// thread the job creates and each change of its namespaces, and a job that
    /// did neither costs some nanoseconds; the event makes every context switch
    /// of a worker slower by some 0.7 microseconds. Elsewhere
    /// (`kernel.perf_event_paranoid` above 2, a container that refuses
    /// perf_event_open(2)) the worker looks through all threads of the process
    /// in `/proc` after each job: a tenth of a millisecond when there are ten,
    /// six milliseconds when there are a thousand.
    /// `CAP_PERFMON` in the first user namespace is needed for the record of
    /// namespaces; without it a look at the thread's own entry in `/proc`
    /// replaces it. None of this changes what is found.
    ///
    /// A worker of the home namespace leaves no threads behind: home is where
    /// they belong. Nor are threads that the kernel made for a worker's io_uring
    /// (`iou-wrk-`) left behind: they end with the worker.
    ///
    /// # What it does not catch
    ///
    /// The threads that a job's threads created are found by looking through
    /// the process, where it cannot be seen whose they are. When several workers
    /// serve one namespace, the last of the jobs that overlap is told; and a
    /// thread that other code moved into the namespace by itself may be blamed
    /// on a job. Without the perf event this goes for all threads.
    Detect,
    /// Neither refuses nor looks for threads; only the worker's own place and its
    /// descriptor table are checked after each job.
    ///
    /// For those who know what their jobs do, and must create threads that
    /// outlive them in the namespace. The check is one readlink(2) of a kept
    /// descriptor and one kcmp(2): about a microsecond, or eight times a getppid(2).
    Off,
}

/// How a guard is kept: what an executor has of it.
trait Mechanism: Sized {
    /// What each worker has of it.
    type OnThread: OnThread;

    /// Finds out how the guard can be kept on this kernel with the privileges of
    /// the home thread, by trying.
    fn prepare() -> Result<Self>;

    /// What keeps it, for people.
    fn describe(&self) -> &'static str;

    /// Puts the calling thread, a worker in its namespace, under the guard.
    fn install(&self) -> io::Result<Self::OnThread>;
}

/// A guard on one worker's thread, and called on that thread only.
trait OnThread {
    /// Learns that a job begins; `worker` is this thread's.
    #[inline]
    fn before_job(&mut self, worker: &Registration) {
        let _ = worker;
    }

    /// Looks at what the job has done to its thread.
    fn after_job(&mut self, worker: &Registration) -> ThreadState;

    /// Looks, when the worker has nothing to do, at what is too dear to look at after
    /// each job.
    fn when_idle(&mut self) -> ThreadState {
        ThreadState::Clean
    }

    /// What tells whether the thread is in its namespace; `None` when no job
    /// can take it out.
    fn netns_check(&self) -> Option<Rc<NetnsCheck>>;

    /// What was refused to the thread since the job began.
    fn refused(&self) -> Refused {
        Refused::default()
    }

    /// What hears of the thread's traps, by which it can be woken.
    fn listened(&self) -> Option<&Listened> {
        None
    }

    /// What this thread's guard has to do without, if anything: for the log.
    fn lack(&self) -> Option<&'static str> {
        None
    }
}

/// Writes out the choice between the mechanisms, so that no job pays for a call
/// through a pointer.
macro_rules! mechanisms {
    ($($(#[$when:meta])* $guard:ident => $mechanism:ty,)*) => {
        enum Prepared {
            $($(#[$when])* $guard($mechanism),)*
        }

        impl Prepared {
            fn new(guard: Guard) -> Result<Prepared> {
                Ok(match guard {
                    $($(#[$when])* Guard::$guard => Prepared::$guard(Mechanism::prepare()?),)*
                })
            }

            fn describe(&self) -> &'static str {
                match self {
                    $($(#[$when])* Prepared::$guard(mechanism) => mechanism.describe(),)*
                }
            }

            fn install(&self) -> io::Result<Installed> {
                Ok(match self {
                    $($(#[$when])* Prepared::$guard(mechanism) => Installed::$guard(mechanism.install()?),)*
                })
            }
        }

        enum Installed {
            $($(#[$when])* $guard(<$mechanism as Mechanism>::OnThread),)*
        }

        impl OnThread for Installed {
            #[inline]
            fn before_job(&mut self, worker: &Registration) {
                match self {
                    $($(#[$when])* Installed::$guard(guard) => guard.before_job(worker),)*
                }
            }

            #[inline]
            fn after_job(&mut self, worker: &Registration) -> ThreadState {
                match self {
                    $($(#[$when])* Installed::$guard(guard) => guard.after_job(worker),)*
                }
            }

            fn when_idle(&mut self) -> ThreadState {
                match self {
                    $($(#[$when])* Installed::$guard(guard) => guard.when_idle(),)*
                }
            }

            fn netns_check(&self) -> Option<Rc<NetnsCheck>> {
                match self {
                    $($(#[$when])* Installed::$guard(guard) => guard.netns_check(),)*
                }
            }

            fn listened(&self) -> Option<&Listened> {
                match self {
                    $($(#[$when])* Installed::$guard(guard) => guard.listened(),)*
                }
            }

            #[inline]
            fn refused(&self) -> Refused {
                match self {
                    $($(#[$when])* Installed::$guard(guard) => guard.refused(),)*
                }
            }

            fn lack(&self) -> Option<&'static str> {
                match self {
                    $($(#[$when])* Installed::$guard(guard) => guard.lack(),)*
                }
            }
        }
    };
}

mechanisms! {
    Seal => seal::Seal,
    KeepAdmin => keep_admin::KeepAdmin,
    #[cfg(feature = "births-at-home")]
    BirthsAtHome => births_at_home::BirthsAtHome,
    Detect => detect::Detect,
    Off => off::Off,
}

/// A guard that is known to work here.
pub(crate) struct Policy {
    guard: Guard,
    prepared: Prepared,
}

impl Policy {
    /// Finds out how `guard` can be kept on this kernel with the privileges of
    /// the home thread, by trying.
    ///
    /// # Errors
    ///
    /// Fails, and says what is missing, when it cannot.
    pub(crate) fn prepare(guard: Guard) -> Result<Policy> {
        let prepared = Prepared::new(guard)?;
        Ok(Policy { guard, prepared })
    }

    pub(crate) fn guard(&self) -> Guard {
        self.guard
    }

    /// What keeps it, for people.
    pub(crate) fn mechanism(&self) -> &'static str {
        self.prepared.describe()
    }

    /// Puts the calling thread under the guard, which has entered the namespace
    /// that it is registered for.
    pub(crate) fn install(&self, registration: Registration) -> Result<ThreadGuard> {
        let installed = self.prepared.install().map_err(|cause| {
            Error::kernel(
                format!("cannot put guard {:?} around a worker", self.guard),
                cause,
            )
        })?;
        Ok(ThreadGuard {
            installed,
            name: sys::thread::name().unwrap_or_default(),
            place: None,
            registration,
        })
    }
}

/// The guard on one worker's thread; lives there.
pub(crate) struct ThreadGuard {
    installed: Installed,
    /// What the thread was called when it was born.
    name: CString,
    /// Where it was, if it has a working directory of its own.
    place: Option<Place>,
    registration: Registration,
}

/// What was found when a job was over. All but `Clean` end the worker.
#[derive(Debug)]
pub(crate) enum ThreadState {
    Clean,
    /// The thread is not where it belongs.
    Escaped,
    /// It is, but has something that the process has not: what.
    Altered(&'static str),
    /// Threads of the job are alive in the namespace.
    LeftThreads(Vec<LeftThread>),
    /// `/proc` could not be read, so nothing is known.
    Unknown(io::Error),
}

impl ThreadGuard {
    /// Says that a job begins.
    #[inline]
    pub(crate) fn before_job(&mut self) {
        self.installed.before_job(&self.registration);
    }

    /// Looks at what the job has done to its thread.
    #[inline]
    pub(crate) fn after_job(&mut self) -> ThreadState {
        self.installed.after_job(&self.registration)
    }

    /// What tells whether the thread is in its namespace, if a job could take
    /// it out.
    pub(crate) fn netns_check(&self) -> Option<Rc<NetnsCheck>> {
        self.installed.netns_check()
    }

    /// Has the calling thread, which shares its working directory with no other, stay
    /// where it is.
    pub(crate) fn keep_place(&mut self) -> io::Result<()> {
        self.place = Some(Place::of_this_thread()?);
        Ok(())
    }

    /// Puts right, before the worker sleeps, what a job may have changed.
    ///
    /// A job that unblocked signals would make its worker the one that runs
    /// the process's handlers, in the wrong namespace. What cannot be put right ends
    /// the worker.
    pub(crate) fn before_park(&mut self) -> ThreadState {
        sys::thread::set_name(&self.name);
        if let Err(error) = sys::thread::block_signals() {
            return ThreadState::Unknown(error);
        }
        if let Some(place) = &self.place
            && Place::of_this_thread().ok().as_ref() != Some(place)
        {
            return ThreadState::Altered("another working directory or umask");
        }
        self.installed.when_idle()
    }

    /// What hears of the thread's traps, by which it can be woken.
    pub(crate) fn listened(&self) -> Option<&Listened> {
        self.installed.listened()
    }

    /// What this guard refused since the job began.
    #[inline]
    pub(crate) fn refused(&self) -> Refused {
        self.installed.refused()
    }

    /// What this guard has to do without, if anything: for the worker to tell the log,
    /// once it serves.
    pub(crate) fn lack(&self) -> Option<&'static str> {
        self.installed.lack()
    }
}

#[cfg(test)]
mod tests;
