//! The executor: ships jobs to the workers of all namespaces in use.

mod abort;
mod apart;
mod asynchronous;
mod awaited;
pub(crate) mod birth;
mod broadcast;
mod builder;
mod crowd;
pub(crate) mod current;
mod event;
pub(crate) mod future;
mod futures;
mod group;
mod handle;
mod hooks;
mod lost;
#[cfg(feature = "metrics")]
mod metrics;
mod owner;
mod pinned;
mod pool;
pub(crate) mod queue;
mod registry;
mod scope;
pub(crate) mod spare;
mod stats;
mod stop;
pub(crate) mod submit;
mod wakers;
pub(crate) mod worker;

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

pub use abort::{AbortHandle, AbortOnDrop};
pub use apart::{Stop, ThreadHandle};
pub use builder::Builder;
pub use event::Event;
#[cfg(all(test, loom))]
pub(crate) use group::Group;
pub use handle::{JoinHandle, ScopedJoinHandle};
pub use owner::Executor;
pub use pinned::Pinned;
#[cfg(all(test, loom))]
pub(crate) use pool::Config;
#[cfg(all(test, loom))]
pub(crate) use pool::Pool;
#[cfg(all(test, loom))]
pub(crate) use registry::{Registry, Room};
pub use scope::Scope;
pub use stats::{NetnsStats, Stats};
pub use submit::TrySpawnError;

#[cfg(feature = "audit")]
use crate::audit;
use crate::error::{Error, Kind, Result};
use crate::guard::Guard;
use crate::netns::Netns;

static GLOBAL: OnceLock<Executor> = OnceLock::new();

impl Executor {
    /// Makes an executor with the defaults of [`Builder`]. Needs no privilege.
    ///
    /// # Errors
    ///
    /// See [`Builder::build`].
    ///
    /// # Examples
    ///
    /// ```
    /// let executor = netns_exec::Executor::new()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn new() -> Result<Executor> {
        Executor::builder().build()
    }

    /// Configures an executor.
    ///
    /// # Examples
    ///
    /// ```
    /// let executor = netns_exec::Executor::builder().workers_per_netns(4).build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Returns the executor that the whole process shares, with the defaults of
    /// [`Builder`] unless [`configure_global`](Executor::configure_global) was called first.
    /// It is made by the first call and never shut down.
    ///
    /// # Panics
    ///
    /// When it cannot be made, with the error's text. A program that wants to
    /// handle that calls [`Executor::new`] first.
    ///
    /// # Examples
    ///
    /// ```
    /// let stats = netns_exec::Executor::global().stats();
    /// assert_eq!(stats.queued, 0);
    /// ```
    pub fn global() -> &'static Executor {
        if let Some(executor) = GLOBAL.get() {
            return executor;
        }
        // Not while others wait for it: a subscriber is told of it, and may get here.
        match Executor::new() {
            Ok(executor) => GLOBAL.get_or_init(|| executor),
            Err(error) => panic!("cannot make the global executor: {error}"),
        }
    }

    /// Makes the executor that the whole process shares, as `builder` says: once, before
    /// anything uses [`global`](Executor::global), which `#[in_netns]` does too.
    ///
    /// For the program, not for a library: it decides for all of the process.
    ///
    /// # Errors
    ///
    /// [`is_already_exists`](crate::Error::is_already_exists) when the global executor has
    /// been made before, by a first use or by another call of this; what the builder says
    /// is then dropped. Otherwise as [`Builder::build`].
    ///
    /// # Panics
    ///
    /// As [`Builder::build`].
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Guard};
    ///
    /// Executor::configure_global(Executor::builder().guard(Guard::Detect))?;
    /// assert_eq!(Executor::global().guard(), Guard::Detect);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn configure_global(builder: Builder) -> Result<&'static Executor> {
        let exists = || {
            Error::new(
                Kind::Exists,
                "cannot configure the global executor: it has been made already",
            )
            .hint(
                "do it before the first use of `Executor::global`, `run`, `spawn` or `#[in_netns]`",
            )
        };
        if GLOBAL.get().is_some() {
            return Err(exists());
        }
        // Not while others wait for it, as in `global`.
        GLOBAL.set(builder.build()?).map_err(|_unused| exists())?;
        Ok(Executor::global())
    }

    /// Runs `f` on a worker of `netns` and waits for its result.
    ///
    /// `f` may borrow from the caller's stack, and nothing is allocated. Called
    /// on a worker of the same namespace and executor, `run` just calls `f`.
    ///
    /// # Blocking
    ///
    /// Blocks until `f` has ended, however long that takes: that is what lets it
    /// borrow. There is no way to give up early; use [`spawn`](Executor::spawn)
    /// for that. Calls may be nested to any depth, across namespaces and
    /// executors: a worker that waits for a job of its own is replaced meanwhile.
    /// What can deadlock is what deadlocks between any two threads: waiting in a
    /// job, through a channel or a lock of one's own, for something that only a
    /// later job of the same namespace would do. [`blocking`] is for that.
    ///
    /// # What a job inherits
    ///
    /// It runs on another thread: thread-locals are that thread's. All signals
    /// are blocked there, except for those that a fault of its own raises (such
    /// as SIGSEGV), and a [`Command`](std::process::Command) started there passes
    /// that mask on to the child, which then ignores SIGTERM;
    /// [`CommandExt::spawn_in`](crate::CommandExt::spawn_in) does not. A job that
    /// unblocks signals has them until its worker is idle. A child
    /// that asks to be killed with its parent (`PR_SET_PDEATHSIG`) dies when the
    /// worker ends, for instance because it was idle.
    ///
    /// # Errors
    ///
    /// * the namespace cannot be entered: the errno of setns(2),
    ///   [`is_permission_denied`](crate::Error::is_permission_denied) without
    ///   `CAP_SYS_ADMIN`; or its worker cannot be started: `EAGAIN` at a limit of
    ///   threads, `EMFILE` at the limit of open files. `f` has not run.
    /// * [`is_shut_down`](crate::Error::is_shut_down): the executor takes no more jobs.
    ///   `f` has not run.
    /// * [`is_escaped`](crate::Error::is_escaped), [`is_left_threads`](crate::Error::is_left_threads):
    ///   `f` did what the [`Guard`] forbids.
    ///
    /// # Panics
    ///
    /// With `f`'s panic. The worker goes on. If the guard refused `f` something, that
    /// and the cure are in the log.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// let mut names = Vec::new();
    /// executor.run(&blue, || names.push("eth0"))?;
    /// assert_eq!(names, ["eth0"]);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    ///
    /// What may not cross threads does not compile:
    ///
    /// ```compile_fail,E0277
    /// # use netns_exec::{Executor, Netns};
    /// # fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
    /// let counter = std::rc::Rc::new(1);
    /// executor.run(blue, || *counter + 1)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The same is true of results:
    ///
    /// ```compile_fail,E0277
    /// # use netns_exec::{Executor, Netns};
    /// # fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
    /// executor.run(blue, || std::rc::Rc::new(1))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The same with what may:
    ///
    /// ```
    /// # use netns_exec::{Executor, Netns};
    /// # fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
    /// let counter = std::sync::Arc::new(1);
    /// executor.run(blue, || *counter + 1)?;
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn run<T: Send>(&self, netns: &Netns, f: impl FnOnce() -> T + Send) -> Result<T> {
        submit::run(self.registry(), netns, f)
    }

    /// Ships `f` to a worker of `netns` and returns at once.
    ///
    /// The job runs whether or not the handle is kept. At most one allocation.
    ///
    /// # Blocking
    ///
    /// Blocks while the namespace's first worker starts, and while its queue is
    /// full.
    ///
    /// # Errors
    ///
    /// As [`run`](Executor::run), as far as they come before `f` starts; the
    /// others, and a panic, come from [`JoinHandle::join`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// let handle = executor.spawn(&blue, || 6 * 7)?;
    /// assert_eq!(handle.join()?, 42);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    ///
    /// A job that outlives the call cannot borrow from it:
    ///
    /// ```compile_fail,E0597
    /// # use netns_exec::{Executor, Netns};
    /// # fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
    /// let name = String::from("eth0");
    /// let name = &name;
    /// executor.spawn(blue, move || name.len())?.join()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It can take what it needs along:
    ///
    /// ```
    /// # use netns_exec::{Executor, Netns};
    /// # fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
    /// let name = String::from("eth0");
    /// executor.spawn(blue, move || name.len())?.join()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn<T: Send + 'static>(
        &self,
        netns: &Netns,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        submit::spawn(self.registry(), None, netns, f).map(JoinHandle::new)
    }

    /// Ships many jobs to the workers of `netns`, for one wake-up where
    /// [`spawn`](Executor::spawn) may need one for each.
    ///
    /// Returns their handles in the same order; one worker starts them in that
    /// order too. One allocation for each job, and one for the handles when
    /// `jobs` knows how many there are.
    ///
    /// No job starts before `jobs` has come to its end: it must not wait for one.
    /// It may use the executor.
    ///
    /// # Blocking
    ///
    /// As [`spawn`](Executor::spawn). A batch that is larger than the queue waits
    /// for room as often as it has to, while its first jobs run.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Executor::spawn): then no job runs, and their closures have
    /// been dropped. A batch without jobs starts no worker and never fails.
    ///
    /// Once the first job is accepted, all are. When the namespace is
    /// [retired](Executor::retire) meanwhile, new workers may run the rest; where
    /// that is impossible, as when the executor is shut down, the jobs concerned
    /// never run, and [`JoinHandle::join`] says why.
    ///
    /// # Panics
    ///
    /// With the panic of `jobs`; then no job runs. What a job's own panic does,
    /// and what cancelling one does, concerns no other of the batch.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// let handles = executor.spawn_batch(&blue, (1..=3).map(|n| move || n * n))?;
    /// let squares: Result<Vec<_>, _> = handles.into_iter().map(|handle| handle.join()).collect();
    /// assert_eq!(squares?, [1, 4, 9]);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    ///
    /// Jobs of different types are boxed:
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let (executor, blue) = (Executor::new()?, Netns::open("blue")?);
    /// let jobs: [Box<dyn FnOnce() -> usize + Send>; 2] =
    ///     [Box::new(|| 42), Box::new(|| "eth0".len())];
    /// drop(executor.spawn_batch(&blue, jobs)?);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn spawn_batch<T: Send + 'static>(
        &self,
        netns: &Netns,
        jobs: impl IntoIterator<Item = impl FnOnce() -> T + Send + 'static>,
    ) -> Result<Vec<JoinHandle<T>>> {
        let registry = self.registry();
        let tasks = submit::spawn_batch(jobs, |batch| {
            submit::with_group(registry, netns, |group| {
                submit::queue_all(registry, Some(group), netns, batch)
            })
        })?;
        Ok(tasks.into_iter().map(JoinHandle::new).collect())
    }

    /// Ships `f` to a worker of `netns`, unless its queue is full.
    ///
    /// # Blocking
    ///
    /// Blocks while the namespace's first worker starts, and for nothing else.
    /// When [`max_workers`](Builder::max_workers) leaves no room for it, an idle
    /// worker is asked to leave, so that a later attempt finds room.
    ///
    /// # Errors
    ///
    /// [`TrySpawnError`] gives `f` back: when the queue is full, or the limit of
    /// workers is reached, and when `spawn` would have failed.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns, TrySpawnError};
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// match executor.try_spawn(&blue, || 6 * 7) {
    ///     Ok(handle) => assert_eq!(handle.join()?, 42),
    ///     Err(TrySpawnError::Full(f)) => println!("busy; here it is: {}", f()),
    ///     Err(error) => return Err(error.into_error()),
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn try_spawn<F, T>(&self, netns: &Netns, f: F) -> Result<JoinHandle<T>, TrySpawnError<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        submit::try_spawn(self.registry(), None, netns, f).map(JoinHandle::new)
    }

    /// Calls `f` with a scope in which jobs may borrow, and waits for all of them.
    ///
    /// The counterpart of [`std::thread::scope`]: jobs run in parallel, in as
    /// many namespaces as there are.
    ///
    /// # Blocking
    ///
    /// Returns when `f` has returned and every job of the scope is over.
    ///
    /// # Panics
    ///
    /// With `f`'s panic, after the jobs are over; when a job panicked whose handle was
    /// not joined; and in a copy of the process that `f` made by fork(2), where jobs
    /// are never over.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// # let (blue, green) = (Netns::open("blue")?, Netns::open("green")?);
    /// let name = String::from("eth0");
    /// let total = executor.scope(|scope| {
    ///     let one = scope.spawn(&blue, || name.len())?;
    ///     let two = scope.spawn(&green, || name.len())?;
    ///     Ok::<_, netns_exec::Error>(one.join()? + two.join()?)
    /// })?;
    /// assert_eq!(total, 8);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn scope<'env, R>(&'env self, f: impl for<'s> FnOnce(&'s Scope<'s, 'env>) -> R) -> R {
        scope::scope(self, f)
    }

    /// Calls `f` in each of `spaces`, in all of them at the same time, and returns the
    /// results in their order: the visit to every namespace of a host.
    ///
    /// `f` may borrow from the caller's stack. It is called once for each element, with
    /// that element, on a worker of that namespace; a namespace that is there twice is
    /// visited twice. Workers that are missing are started on the way, a few at a time.
    ///
    /// What goes wrong in one namespace concerns no other.
    ///
    /// # Blocking
    ///
    /// Blocks until all calls are over, and is woken once. As many run in parallel as
    /// there are workers: with [`max_workers`](Builder::max_workers) below the number of
    /// namespaces, the rest wait for their turn, so `f` must not wait in one namespace
    /// for what it does in another one. May be called inside a job, where workers that
    /// are missing are started beyond that limit.
    ///
    /// # Errors
    ///
    /// Each namespace has a result of its own, with the errors of
    /// [`run`](Executor::run): it may be gone, or its worker impossible to start. A panic of `f` is
    /// one as well ([`is_panic`](crate::Error::is_panic)), with its payload in
    /// [`into_panic`](crate::Error::into_panic), and so are calls that were given up
    /// because the executor shut down ([`is_cancelled`](crate::Error::is_cancelled)).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// let spaces = Netns::list()?;
    /// let tables = executor.broadcast(&spaces, |_| {
    ///     std::fs::read_to_string("/proc/thread-self/net/dev")
    /// });
    /// for (netns, table) in spaces.iter().zip(tables) {
    ///     match table {
    ///         Ok(table) => println!("{netns}: {} devices", table?.lines().count() - 2),
    ///         Err(error) => eprintln!("{netns}: {error}"),
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn broadcast<T: Send>(
        &self,
        spaces: &[Netns],
        f: impl Fn(&Netns) -> T + Sync,
    ) -> Vec<Result<T>> {
        broadcast::broadcast(self, spaces, f)
    }

    /// Keeps the workers of `netns` resident, and finds them without a look-up.
    ///
    /// Starts the first one. See [`Pinned`].
    ///
    /// # Blocking
    ///
    /// Blocks while the worker starts.
    ///
    /// # Errors
    ///
    /// As [`run`](Executor::run), as far as they come before a job starts.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// let blue = executor.pin(&Netns::open("blue")?)?;
    /// assert_eq!(blue.run(|| 6 * 7)?, 42);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn pin(&self, netns: &Netns) -> Result<Pinned> {
        Pinned::new(self.clone(), netns)
    }

    /// Ends the workers of `netns` and drops every reference to it.
    ///
    /// Jobs that were accepted before still run. A later call for the same
    /// namespace starts anew. Nothing happens when it has no workers.
    ///
    /// # Blocking
    ///
    /// Blocks until the workers' threads are gone, so that a namespace without
    /// other references is dissolved when this returns (the kernel takes its
    /// devices down a moment later). Called inside a job of this executor it does
    /// not wait, since it could wait for itself.
    ///
    /// # Errors
    ///
    /// None at present.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// let blue = Netns::open("blue")?;
    /// executor.run(&blue, || ())?;
    /// executor.retire(&blue)?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn retire(&self, netns: &Netns) -> Result<()> {
        current::check_may_wait()?;
        let registry = self.registry();
        submit::forget_cached();
        let retired = registry.retire(netns.id());
        if !current::is_worker_of(registry.pool()) {
            current::blocking(|| {
                for group in &retired.groups {
                    group.wait_empty(None);
                }
                registry
                    .pool()
                    .threads
                    .join_retired(netns.id(), retired.end);
            });
        }
        Ok(())
    }

    /// Returns what the executor has done and is doing.
    ///
    /// # Examples
    ///
    /// ```
    /// let executor = netns_exec::Executor::new()?;
    /// assert_eq!(executor.stats().workers, 0);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn stats(&self) -> Stats {
        if current::check_may_wait().is_err() {
            // The locks may be held by threads that are not there.
            return Stats::default();
        }
        self.registry().stats()
    }

    /// Looks where every thread of this process is: the quick check for tests and
    /// health endpoints.
    ///
    /// # Errors
    ///
    /// See [`audit::Process::this`].
    ///
    /// # Examples
    ///
    /// ```
    /// let executor = netns_exec::Executor::new()?;
    /// assert_eq!(executor.audit()?.strays().count(), 0);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    #[cfg(feature = "audit")]
    pub fn audit(&self) -> Result<audit::Process> {
        audit::Process::this()
    }

    /// Returns the guard that is in force.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Guard};
    ///
    /// assert_eq!(Executor::new()?.guard(), Guard::Seal);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn guard(&self) -> Guard {
        self.registry().pool().policy.guard()
    }

    /// Takes no more jobs, runs those that were accepted, and ends the workers.
    ///
    /// Holds for all clones: their calls fail from now on. With a `timeout`,
    /// jobs that have not started by then are cancelled, and workers end with
    /// the job they are at. It is the worker that cancels, when it comes to the
    /// job: a closure is never dropped in another namespace than its own.
    ///
    /// # Blocking
    ///
    /// Blocks until the workers' threads are gone, or `timeout` has passed.
    /// Called inside a job of this executor it does not wait.
    ///
    /// # Errors
    ///
    /// [`is_timed_out`](crate::Error::is_timed_out) when `timeout` has passed.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let executor = netns_exec::Executor::new()?;
    /// executor.shutdown(Some(Duration::from_secs(5)))?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn shutdown(self, timeout: Option<Duration>) -> Result<()> {
        current::check_may_wait()?;
        let waits = !current::is_worker_of(self.registry().pool());
        self.end(timeout, waits)
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("guard", &self.guard())
            .field("mechanism", &self.registry().pool().policy.mechanism())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Calls `wait`, which may block the calling thread, and lets others do its work
/// meanwhile.
///
/// A job that waits for a job of its own through [`run`](Executor::run),
/// [`join`](JoinHandle::join), a [scope](Executor::scope) or by awaiting a handle is
/// replaced meanwhile, so that nesting cannot deadlock. What it waits for by other
/// means, a channel or a lock of its own, the executor does not see: when that comes
/// from a later job of the same namespace, both wait for ever. Inside `blocking` such a
/// wait counts as well. The counterpart of tokio's `block_in_place`.
///
/// On a thread that is no worker it just calls `wait`.
///
/// # Panics
///
/// With the panic of `wait`.
///
/// # Examples
///
/// ```no_run
/// use std::sync::mpsc::channel;
/// use netns_exec::{Executor, Netns, blocking};
///
/// let executor = Executor::new()?;
/// let blue = Netns::open("blue")?;
/// let (sender, receiver) = channel();
/// let waits = executor.spawn(&blue, move || blocking(|| receiver.recv()))?;
/// // The only worker of blue is in `recv`; another one stands in for it.
/// executor.run(&blue, || sender.send("eth0"))?.unwrap();
/// assert_eq!(waits.join()?, Ok("eth0"));
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn blocking<R>(wait: impl FnOnce() -> R) -> R {
    current::blocking(wait)
}

/// Runs `f` in `netns` on the [global executor](Executor::global) and waits for
/// its result.
///
/// # Errors
///
/// See [`Executor::run`].
///
/// # Panics
///
/// With `f`'s panic, and as [`Executor::global`].
///
/// # Examples
///
/// ```no_run
/// use netns_exec::Netns;
///
/// let id = netns_exec::run(&Netns::open("blue")?, || Netns::current().map(|n| n.id()))??;
/// # let _ = id;
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn run<T: Send>(netns: &Netns, f: impl FnOnce() -> T + Send) -> Result<T> {
    Executor::global().run(netns, f)
}

/// Ships `f` to a worker of `netns` on the [global executor](Executor::global).
///
/// # Errors
///
/// See [`Executor::spawn`].
///
/// # Panics
///
/// As [`Executor::global`].
///
/// # Examples
///
/// ```no_run
/// use netns_exec::Netns;
///
/// let handle = netns_exec::spawn(&Netns::open("blue")?, || 6 * 7)?;
/// assert_eq!(handle.join()?, 42);
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn spawn<T: Send + 'static>(
    netns: &Netns,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    Executor::global().spawn(netns, f)
}
