//! What an executor has done and is doing.

use crate::netns::NetnsId;

/// What an [`Executor`](crate::Executor) has done and is doing, at one moment.
///
/// The figures are read one after the other while work goes on; each is exact by
/// itself. Jobs that ran inline, because their caller already was on a worker of
/// their namespace, are part of the job that called them and not counted.
///
/// # Examples
///
/// ```
/// use netns_exec::{Executor, Netns};
///
/// let executor = Executor::new()?;
/// executor.run(&Netns::current()?, || ())?;
/// let stats = executor.stats();
/// assert_eq!((stats.workers, stats.queued, stats.panicked), (1, 0, 0));
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Workers alive.
    pub workers: usize,
    /// Threads beside the pool, see [`Executor::thread`](crate::Executor::thread). When one
    /// has ended it counts as a job that is done.
    pub threads: usize,
    /// Jobs in the queues, and futures that have been woken.
    pub queued: usize,
    /// Jobs under way.
    pub running: usize,
    /// Futures that are not over.
    pub futures: usize,
    /// Jobs that have ended, panicked ones included.
    pub done: u64,
    /// Jobs that have panicked.
    pub panicked: u64,
    /// How often the [`Guard`](crate::Guard) has refused jobs a thread, or a change of their
    /// namespaces or files, as far as that is counted (see [`Guard::Seal`]): at the moment at
    /// which it happens, also in a job that never ends. The log is told too, once for each
    /// job, with the cure.
    ///
    /// [`Guard::Seal`]: crate::Guard::Seal
    pub refused: u64,
    /// The same by namespace, for those that have workers now. What is being
    /// [retired](crate::Executor::retire) is in the totals only.
    pub per_netns: Vec<NetnsStats>,
}

/// The part of [`Stats`] that belongs to one namespace, since its first worker
/// started.
///
/// # Examples
///
/// ```
/// # use netns_exec::Executor;
/// # fn f(executor: &Executor) {
/// let longest = executor.stats().per_netns.into_iter().max_by_key(|netns| netns.queued);
/// if let Some(netns) = longest.filter(|netns| netns.queued > 0) {
///     println!("{}: {} jobs wait for {} workers", netns.label, netns.queued, netns.workers);
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetnsStats {
    /// The namespace.
    pub id: NetnsId,
    /// What people call it.
    pub label: Box<str>,
    /// Workers alive.
    pub workers: usize,
    /// How many of them are woken by seccomp user notification, which hands the caller's
    /// own CPU over and back (Linux 6.6, [`Guard::Seal`](crate::Guard::Seal)): a call to a
    /// worker that sleeps then takes about as long as two context switches. The others are
    /// woken by futex, which takes two to ten times as long where the scheduler chooses
    /// another CPU: their kernel is older, a container runtime listens to the process
    /// itself, or half of the descriptors that the process may open (`RLIMIT_NOFILE`) are
    /// taken by workers already.
    pub rung: usize,
    /// Jobs in the queue, and futures that have been woken.
    pub queued: usize,
    /// Jobs under way.
    pub running: usize,
    /// Futures that are not over.
    pub futures: usize,
    /// Jobs that have ended, panicked ones included.
    pub done: u64,
    /// Jobs that have panicked.
    pub panicked: u64,
}

impl Stats {
    /// Adds the figures of `per_netns` and of `leaving` to the totals.
    pub(crate) fn add_up(&mut self, leaving: &[NetnsStats]) {
        for netns in self.per_netns.iter().chain(leaving) {
            self.workers += netns.workers;
            self.queued += netns.queued;
            self.running += netns.running;
            self.futures += netns.futures;
            self.done += netns.done;
            self.panicked += netns.panicked;
        }
    }
}

/// Makes one of the figures of the groups that serve the same namespace.
pub(crate) fn merge(all: &mut Vec<NetnsStats>) {
    all.sort_by_key(|netns| netns.id);
    all.dedup_by(|more, netns| {
        let same = more.id == netns.id;
        if same {
            netns.workers += more.workers;
            netns.rung += more.rung;
            netns.queued += more.queued;
            netns.running += more.running;
            netns.futures += more.futures;
            netns.done += more.done;
            netns.panicked += more.panicked;
        }
        same
    });
}
