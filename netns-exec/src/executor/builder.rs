//! How an executor is to behave.

use std::io;
use std::time::Duration;

use super::current;
use super::event::Event;
use super::hooks::Hooks;
use super::owner::Executor;
use super::pool::{Around, Config, Pool};
use super::queue::Clock;
use crate::error::{Error, Kind, Result};
use crate::guard::{Guard, Policy};
use crate::home::Home;
use crate::netns::Netns;
use crate::sys;
use crate::view::View;

/// Configures an [`Executor`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use netns_exec::Executor;
///
/// let executor = Executor::builder()
///     .workers_per_netns(2)
///     .idle_timeout(Some(Duration::from_secs(60)))
///     .build()?;
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[must_use = "a builder does nothing before `build`"]
#[derive(Default)]
pub struct Builder {
    config: Config,
    guard: Guard,
    hooks: Hooks,
    prewarm: Vec<Box<dyn FnOnce() + Send>>,
}

/// Far beyond what a machine can serve: more is a slip, and would run out of memory at
/// the first call instead of failing here.
const MAX_PER_NETNS: usize = 1 << 16;
const MAX_DEPTH: usize = 1 << 20;
const MAX_STACK: usize = 1 << 40;

impl Builder {
    /// As many [workers for each namespace](Builder::workers_per_netns) as there are
    /// CPUs.
    ///
    /// These are the CPUs that the process's main thread may use and its cgroup has the
    /// time for: workers run where that thread may, whichever CPUs the thread is bound
    /// to that builds the executor.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Builder, Executor};
    ///
    /// let executor = Executor::builder().workers_per_netns(Builder::ALL_CPUS).build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub const ALL_CPUS: usize = 0;

    /// Sets how many workers serve one namespace at the same time. Default: 1.
    /// [`ALL_CPUS`](Builder::ALL_CPUS), which is 0, stands for as many as there are CPUs.
    ///
    /// Workers start when they are needed: the second one when calls wait for the first.
    /// While some of them wait for jobs of their own elsewhere, others stand in for
    /// them, so for a while there can be more: a nested call never waits for the very
    /// thread that made it.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Executor;
    ///
    /// // Probes of a network wait most of their time: eight of them beside each other.
    /// let executor = Executor::builder().workers_per_netns(8).build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn workers_per_netns(mut self, workers: usize) -> Self {
        self.config.workers_per_netns = workers;
        self
    }

    /// Sets how many workers there are in all namespaces together. Default: no
    /// limit.
    ///
    /// When one more is needed, the least recently used idle one ends; when all
    /// are busy, the caller waits. Workers that stand in for blocked ones, and
    /// those that a job's own calls need, are started beyond the limit: waiting
    /// for room there could be waiting for oneself.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Executor;
    ///
    /// // A thousand namespaces, and no more than 256 threads for all of them.
    /// let executor = Executor::builder().max_workers(256).build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn max_workers(mut self, workers: usize) -> Self {
        self.config.max_workers = Some(workers);
        self
    }

    /// Sets how many jobs wait in a namespace's queue before callers wait, or
    /// [`try_spawn`](Executor::try_spawn) refuses. Default: 96.
    ///
    /// A place takes 16 bytes for as long as the namespace has workers. A flood of jobs from
    /// several threads is faster through a queue of several hundred: senders wait less often.
    ///
    /// A caller that waits goes on when half of the places are free, and otherwise within
    /// about 5 ms of the first one, so that it does not change places with the worker for
    /// each job; of several that wait one goes on at a time. A task is told of each place.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Executor;
    ///
    /// // Callers had better notice early that a namespace is slow.
    /// let executor = Executor::builder().queue_depth(4).build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn queue_depth(mut self, jobs: usize) -> Self {
        self.config.queue_depth = jobs;
        self
    }

    /// Sets for how long a worker without work stays. `None`: for ever.
    /// Default: 10 seconds.
    ///
    /// A worker keeps its namespace alive, as every thread does.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Executor;
    ///
    /// // Three namespaces that never go: their workers are always at hand.
    /// let executor = Executor::builder().idle_timeout(None).build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.config.idle_timeout = timeout;
        self
    }

    /// Sets the size of the workers' stacks, in bytes. Default: 2 MiB.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::hint::black_box;
    /// use netns_exec::{Executor, Netns};
    ///
    /// // For a parser that recurses deeply, or has large arrays.
    /// let executor = Executor::builder().stack_size(64 << 20).build()?;
    /// let len = executor.run(&Netns::current()?, || black_box([1_u8; 4 << 20]).len())?;
    /// assert_eq!(len, 4 << 20);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.config.stack_size = bytes;
        self
    }

    /// Sets how the names of the workers' threads begin. Default: `ns`, which
    /// makes `ns:blue/0`; ps(1) shows 15 bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns};
    ///
    /// let executor = Executor::builder().name_prefix("proxy").build()?;
    /// let name = executor.run(&Netns::current()?, || {
    ///     std::fs::read_to_string("/proc/thread-self/comm").unwrap_or_default()
    /// })?;
    /// assert!(name.starts_with("proxy:"), "{name}");
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn name_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.config.name_prefix = prefix.into();
        self
    }

    /// Sets what keeps a job from moving its thread or leaving threads behind.
    /// Default: [`Guard::Seal`].
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Guard, Netns};
    ///
    /// // Jobs may start threads, and have to join them.
    /// let executor = Executor::builder().guard(Guard::Detect).build()?;
    /// let answer = executor.run(&Netns::current()?, || {
    ///     std::thread::spawn(|| 6 * 7).join().expect("it does not panic")
    /// })?;
    /// assert_eq!(answer, 42);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn guard(mut self, guard: Guard) -> Self {
        self.guard = guard;
        self
    }

    /// Gives workers a view: their jobs see the `/sys` and `/proc/net` of their namespace,
    /// and its files over `/etc`, as `ip netns exec` shows them. Default: none, and jobs
    /// see what the process sees.
    ///
    /// It is made when a worker is born, and costs nothing later; [`View`] says what it
    /// takes. A worker that cannot have it is an error of the call
    /// that needed the worker, as when it may not enter.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Netns, View};
    ///
    /// let executor = Executor::builder().view(View::new()).build()?;
    /// let devices = executor.run(&Netns::open("blue")?, || {
    ///     std::fs::read_dir("/sys/class/net").map(Iterator::count)
    /// })?;
    /// # let _ = devices;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn view(mut self, view: View) -> Self {
        self.config.view = Some(view);
        self
    }

    /// Runs `f` once at the end of [`build`](Builder::build), which waits for it: for
    /// pools that start their threads with the first use and must not do so inside a
    /// job.
    ///
    /// It runs on a short-lived thread of its own, in the home namespace and with the
    /// signal mask, CPUs, priority and capabilities of the process's main thread, and
    /// so do the threads that it starts. It may do what any thread may: run jobs, wait,
    /// even move its thread, which no other code of this library runs on. A child that
    /// it starts with a parent-death signal (`PR_SET_PDEATHSIG`) dies with that thread;
    /// [`CommandExt`](crate::CommandExt) has others.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn start_the_pool_that_jobs_use() {}
    /// let executor = netns_exec::Executor::builder()
    ///     .prewarm(|| start_the_pool_that_jobs_use())
    ///     .build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn prewarm(mut self, f: impl FnOnce() + Send + 'static) -> Self {
        self.prewarm.push(Box::new(f));
        self
    }

    /// Holds what `f` returns around each poll and each drop of a
    /// [future](Executor::spawn_future), on the worker.
    ///
    /// It is made and dropped there, and need not be [`Send`]. What borrows, as the guard
    /// of a runtime's handle does, is for [`around`](Builder::around).
    ///
    /// # Examples
    ///
    /// ```
    /// # struct Entered;
    /// # fn enter_the_runtime() -> Entered { Entered }
    /// let executor = netns_exec::Executor::builder().enter(enter_the_runtime).build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn enter<G>(self, f: impl Fn() -> G + Send + Sync + 'static) -> Self {
        self.around(move |poll| {
            let _entered = f();
            poll();
        })
    }

    /// Has `f` call each poll and each drop of a [future](Executor::spawn_future), which
    /// it is given, on the worker: inside of a runtime's context, so that sockets made in
    /// a poll belong to the namespace and are driven by that runtime.
    ///
    /// `f` is to call it once. More calls do nothing, and without any it is called when
    /// `f` has returned. A panic of `f` is the future's. Given several times, the first
    /// one is the outermost.
    ///
    /// With the feature `tokio` this is not needed for a future that is spawned inside of
    /// a tokio runtime: it is polled inside of that one.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::Executor;
    /// # struct Runtime;
    /// # impl Runtime { fn handle(&self) -> Handle { Handle } }
    /// # #[derive(Clone)] struct Handle;
    /// # impl Handle { fn enter(&self) -> &Handle { self } }
    /// # fn f(runtime: &Runtime) -> netns_exec::Result<()> {
    /// // `runtime` is a tokio::runtime::Runtime.
    /// let handle = runtime.handle().clone();
    /// let executor = Executor::builder()
    ///     .around(move |poll| {
    ///         let _entered = handle.enter();
    ///         poll();
    ///     })
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn around(mut self, f: impl Fn(&mut dyn FnMut()) + Send + Sync + 'static) -> Self {
        let inner = Around::new(f);
        self.config.around = Some(match self.config.around {
            None => inner,
            Some(outer) => Around::new(move |poll| outer.call(&mut || inner.call(poll))),
        });
        self
    }

    /// Has each worker run `hook` when it starts: on its thread, in its namespace, before
    /// the guard is in force and before its first job.
    ///
    /// For what a thread must be given before any job runs there: a mount namespace with
    /// files of its own, a scheduling policy, a thread-local. The hook has the privileges
    /// of the home thread, may call unshare(2) for anything but the network namespace, and
    /// what it changes is what the guard takes as given from then on. A worker that stands
    /// in for a blocked one runs it as well. Hooks run in the order in which they are added.
    ///
    /// The callers that need the worker wait for the hook. So it cannot use an executor:
    /// calls that would wait fail with `EDEADLK`, whichever executor it is. Threads that it
    /// starts are the hook's to end: they are born in the namespace, and no guard looks for
    /// them.
    ///
    /// # Errors
    ///
    /// When the hook fails, panics, or leaves the thread in another network namespace,
    /// the worker ends, and the calls that needed it fail with the hook's error as their
    /// cause. The next call tries again.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Executor;
    ///
    /// // Below what the rest of the process does.
    /// let executor = Executor::builder()
    ///     .on_worker_start(|_netns| std::fs::write("/proc/thread-self/oom_score_adj", "500"))
    ///     .build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn on_worker_start(
        mut self,
        hook: impl Fn(&Netns) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.add_start(Box::new(hook));
        self
    }

    /// Has each worker that has started run `hook` when it stops: on its thread, in its
    /// namespace, under the guard, after its last job.
    ///
    /// It may use executors. Its panic is told in the log and harms nothing. What waits
    /// for the worker's end, such as [`retire`](Executor::retire) and
    /// [`shutdown`](Executor::shutdown), waits for the hook. It does not run on a worker
    /// whose thread the guard found unfit: nothing does.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use netns_exec::Executor;
    ///
    /// let stopped = Arc::new(AtomicU32::new(0));
    /// let count = Arc::clone(&stopped);
    /// let executor = Executor::builder()
    ///     .on_worker_stop(move |_netns| {
    ///         count.fetch_add(1, Ordering::Relaxed);
    ///     })
    ///     .build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn on_worker_stop(mut self, hook: impl Fn(&Netns) + Send + Sync + 'static) -> Self {
        self.hooks.add_stop(Box::new(hook));
        self
    }

    /// Has `hook` told of what happens in the executor: how long jobs waited and ran,
    /// panics, refusals, workers that come and go. For metrics of whatever kind.
    ///
    /// It is called by the worker that the event is about, in that worker's namespace and
    /// under the guard, between jobs: a hook that takes long keeps the next job waiting, and
    /// one that waits for a job of that namespace can wait for ever. It had better count and
    /// return. Its panic is told in the log. The caller of a job may go on before the hook is
    /// told of its end. What is about a worker whose thread the guard has found unfit, on
    /// which nothing runs any more, is told by a thread at home, soon after.
    ///
    /// With the feature `metrics` there is one ready: `Builder::metrics`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use netns_exec::{Event, Executor};
    ///
    /// let longest = Arc::new(AtomicU64::new(0));
    /// let wait = Arc::clone(&longest);
    /// let executor = Executor::builder()
    ///     .on_event(move |event| {
    ///         if let Event::JobEnded { queued, .. } = event {
    ///             wait.fetch_max(queued.as_micros() as u64, Ordering::Relaxed);
    ///         }
    ///     })
    ///     .build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn on_event(mut self, hook: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.hooks.add_event(Box::new(hook));
        self.config.clock = Clock::Fine;
        self
    }

    /// Builds the executor. It has no worker yet, and needs no privilege.
    ///
    /// # Errors
    ///
    /// [`is_invalid_input`](Error::is_invalid_input) for a limit of zero workers, an empty
    /// queue, sizes that no machine has, or a prefix with a NUL byte; an error with the errno when the home
    /// thread or one for [`prewarm`](Builder::prewarm) cannot be started or the guard's policy cannot be installed here.
    ///
    /// # Panics
    ///
    /// With the panic of a [`prewarm`](Builder::prewarm) closure.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Executor;
    ///
    /// let error = Executor::builder().queue_depth(0).build().unwrap_err();
    /// assert!(error.is_invalid_input());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn build(mut self) -> Result<Executor> {
        let mut config = self.config;
        let nonsense = |what| Err(Error::new(Kind::Invalid, what));
        if config.max_workers == Some(0) {
            return nonsense("invalid executor: `max_workers` is 0, so nothing would run");
        }
        if config.queue_depth == 0 {
            return nonsense("invalid executor: `queue_depth` is 0, so nothing could be queued");
        }
        if config.workers_per_netns > MAX_PER_NETNS {
            return nonsense("invalid executor: `workers_per_netns` is over 65,536");
        }
        if config.queue_depth > MAX_DEPTH {
            return nonsense("invalid executor: `queue_depth` is over 1,048,576");
        }
        if config.stack_size > MAX_STACK {
            return nonsense("invalid executor: `stack_size` is over 1 TiB");
        }
        if config.name_prefix.contains('\0') {
            return nonsense("invalid executor: `name_prefix` contains a NUL byte");
        }
        sys::fork::arm().map_err(|errno| {
            Error::kernel("cannot have copies of this process told apart", errno)
                .hint("needs MADV_WIPEONFORK, Linux 4.14")
        })?;
        let home = Home::get()?;
        if config.workers_per_netns == Builder::ALL_CPUS {
            // As the home thread sees it, which has the main thread's CPUs.
            let cpus = home.call(std::thread::available_parallelism);
            config.workers_per_netns = cpus.map_or(1, usize::from).min(MAX_PER_NETNS);
        }
        let policy = Policy::prepare(self.guard)?;
        self.hooks.get_ready()?;
        tracing::debug!(guard = ?self.guard, mechanism = policy.mechanism(), "executor built");
        if !self.prewarm.is_empty() {
            // What it runs may wait for the namespace that this thread serves.
            current::check_may_wait()?;
            for f in self.prewarm {
                current::blocking(|| home.run_hook("netns-prewarm", f))?;
            }
        }
        Ok(Executor::start(Pool::new(config, policy), self.hooks))
    }
}
