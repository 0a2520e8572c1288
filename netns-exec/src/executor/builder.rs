//! How an executor is to behave.

use std::time::Duration;

use super::current;
use super::owner::Executor;
use super::pool::{Config, Pool};
use crate::error::{Error, Kind, Result};
use crate::guard::{Guard, Policy};
use crate::home::Home;
use crate::sys;

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
    pub fn max_workers(mut self, workers: usize) -> Self {
        self.config.max_workers = Some(workers);
        self
    }

    /// Sets how many jobs wait in a namespace's queue before callers wait, or
    /// [`try_spawn`](Executor::try_spawn) refuses. Default: 64.
    pub fn queue_depth(mut self, jobs: usize) -> Self {
        self.config.queue_depth = jobs;
        self
    }

    /// Sets for how long a worker without work stays. `None`: for ever.
    /// Default: 10 seconds.
    ///
    /// A worker keeps its namespace alive, as every thread does.
    pub fn idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.config.idle_timeout = timeout;
        self
    }

    /// Sets the size of the workers' stacks, in bytes. Default: 2 MiB.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.config.stack_size = bytes;
        self
    }

    /// Sets how the names of the workers' threads begin. Default: `ns`, which
    /// makes `ns:blue/0`; ps(1) shows 15 bytes.
    pub fn name_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.config.name_prefix = prefix.into();
        self
    }

    /// Sets what keeps a job from moving its thread or leaving threads behind.
    /// Default: [`Guard::Seal`].
    pub fn guard(mut self, guard: Guard) -> Self {
        self.guard = guard;
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
    pub fn build(self) -> Result<Executor> {
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
        tracing::debug!(guard = ?self.guard, mechanism = policy.mechanism(), "executor built");
        if !self.prewarm.is_empty() {
            // What it runs may wait for the namespace that this thread serves.
            current::check_may_wait()?;
            for f in self.prewarm {
                current::blocking(|| home.run_hook("netns-prewarm", f))?;
            }
        }
        Ok(Executor::start(Pool::new(config, policy)))
    }
}
