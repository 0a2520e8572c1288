//! How a job finds its worker: inline, through a lane, or through the queue.

use std::cell::Cell;
use std::error;
use std::fmt;
use std::sync::Arc;

use super::group::Group;
use super::registry::Shared;
use crate::error::{Error, Kind, Result};
use crate::executor::handle::{JoinHandle, run_result};
use crate::executor::worker;
use crate::handoff::job::{self, JobRef};
use crate::handoff::task::{self, Batch};
use crate::netns::{Netns, NetnsId, WeakNetns};
use crate::sync;

/// What names the namespace of a call.
pub(crate) trait Target {
    fn id(&self) -> NetnsId;
    fn label(&self) -> &str;
    /// A handle to start workers with.
    fn netns(&self) -> Result<Netns>;
}

impl Target for Netns {
    fn id(&self) -> NetnsId {
        self.id()
    }

    fn label(&self) -> &str {
        self.label()
    }

    fn netns(&self) -> Result<Netns> {
        Ok(self.clone())
    }
}

impl Target for WeakNetns {
    fn id(&self) -> NetnsId {
        self.id()
    }

    fn label(&self) -> &str {
        self.label()
    }

    fn netns(&self) -> Result<Netns> {
        self.upgrade().ok_or_else(|| {
            let label = self.label();
            Error::new(
                Kind::NotFound,
                format!("netns `{label}` does not exist any more"),
            )
        })
    }
}

/// Whether a caller waits for others to make room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    None,
    Endless,
}

struct Cached {
    executor: u64,
    group: Arc<Group>,
}

sync::local! {
    /// The group of the calling thread's last `run` or `spawn`. It pins nothing: a group
    /// without workers holds no namespace.
    static CACHED: Cell<Option<Cached>> = Cell::new(None);
}

/// Drops what the calling thread remembers of its last call.
pub(crate) fn forget_cached() {
    let _ = CACHED.try_with(Cell::take);
}

/// Whether the calling thread is a worker of this namespace and executor, and
/// still in that namespace.
#[inline]
pub(crate) fn is_inline(shared: &Shared, netns: NetnsId) -> bool {
    worker::with_current(|current| {
        current.is_some_and(|current| {
            current.group.id() == netns && current.shared.key == shared.key && current.is_in_place()
        })
    })
}

#[inline]
pub(crate) fn run<F, T>(shared: &Arc<Shared>, netns: &impl Target, f: F) -> Result<T>
where
    F: FnOnce() -> T + Send,
    T: Send,
{
    if is_inline(shared, netns.id()) {
        return Ok(f());
    }
    with_group(shared, netns, |group| run_on(shared, group, netns, f))?
}

/// Calls `f` with the group of a namespace, which this thread remembers.
#[inline]
pub(crate) fn with_group<R>(
    shared: &Arc<Shared>,
    netns: &impl Target,
    f: impl FnOnce(&Arc<Group>) -> R,
) -> Result<R> {
    // Taken out meanwhile: `f` may get here again.
    // Gone already when a thread-local's destructor calls.
    let cached = CACHED.try_with(Cell::take).ok().flatten();
    let cached = cached.filter(|cached| {
        cached.executor == shared.key
            && cached.group.id() == netns.id()
            && !cached.group.is_retiring()
    });
    let group = match cached {
        Some(cached) => cached.group,
        None => shared.group(netns)?,
    };
    let result = f(&group);
    let executor = shared.key;
    let _ = CACHED.try_with(|cached| cached.set(Some(Cached { executor, group })));
    Ok(result)
}

/// Runs `f` in a namespace whose group is known, and has not to be alive any more.
#[inline]
pub(crate) fn run_on<F, T>(
    shared: &Arc<Shared>,
    group: &Arc<Group>,
    netns: &impl Target,
    f: F,
) -> Result<T>
where
    F: FnOnce() -> T + Send,
    T: Send,
{
    // Blocked before the lane is claimed: from then on its worker waits for us.
    let ending = worker::blocking(|| {
        let f = match group.claim() {
            None => f,
            Some(claim) => match claim.run(f, shared.may_spin) {
                Ok(ending) => return ending,
                Err(f) => f,
            },
        };
        job::run_on_stack(f, |job| queue(shared, Some(group), netns, job))
    });
    run_result(ending)
}

/// Puts a job in the queue of a namespace that has a worker.
///
/// Gives the job back with the error when it has none and cannot get one. After
/// that it is the job's owner who is told of errors, through the job.
pub(crate) fn queue(
    shared: &Arc<Shared>,
    known: Option<&Arc<Group>>,
    netns: &impl Target,
    job: JobRef,
) -> Result<(), (JobRef, Error)> {
    let push = |group: &Arc<Group>, job| {
        group.push(job);
        settle(shared, netns, group);
    };
    if let Some(group) = known
        && group.is_served()
    {
        push(group, job);
        return Ok(());
    }
    match started(shared, known, netns, Patience::Endless) {
        Ok(group) => {
            push(&group, job);
            Ok(())
        }
        Err(error) => Err((job, error)),
    }
}

/// As [`queue`], for many jobs, with as few wake-ups as possible. Takes none when
/// it fails.
pub(crate) fn queue_all(
    shared: &Arc<Shared>,
    known: Option<&Arc<Group>>,
    netns: &impl Target,
    jobs: impl Iterator<Item = JobRef>,
) -> Result<()> {
    let group = match known {
        Some(group) if group.is_served() => Arc::clone(group),
        _ => started(shared, known, netns, Patience::Endless)?,
    };
    for job in jobs {
        if let Err(job) = group.try_push(job) {
            // Nobody makes room who does not know that there is something to do.
            settle(shared, netns, &group);
            group.push(job);
            // Room for one is little to go on with: let the worker make more.
            sync::yield_now();
        }
    }
    // One is enough for many workers: each that takes a job passes it on.
    settle(shared, netns, &group);
    Ok(())
}

/// Finds the group of a namespace and sees to it that it has a worker.
pub(crate) fn started(
    shared: &Arc<Shared>,
    known: Option<&Arc<Group>>,
    netns: &impl Target,
    patience: Patience,
) -> Result<Arc<Group>> {
    let mut group = match known {
        Some(group) => Arc::clone(group),
        None => shared.group(netns)?,
    };
    loop {
        match group.ensure_started(shared, netns, patience) {
            Ok(Ok(())) => return Ok(group),
            Ok(Err(_dead)) => group = shared.group(netns)?,
            Err(error) => {
                group.bury(shared);
                return Err(error);
            }
        }
    }
}

/// Has somebody serve what was just pushed to `group`, or ships it elsewhere when
/// the group has died in between.
fn settle(shared: &Arc<Shared>, netns: &impl Target, group: &Arc<Group>) {
    for orphan in group.notify(shared) {
        if let Err((job, error)) = queue(shared, None, netns, orphan) {
            job.abort(error);
        }
    }
}

pub(crate) fn spawn<F, T>(
    shared: &Arc<Shared>,
    known: Option<&Arc<Group>>,
    netns: &impl Target,
    f: F,
) -> Result<JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let spawn = |group: &Arc<Group>| task::spawn(f, |job| queue(shared, Some(group), netns, job));
    let spawned = match known {
        Some(group) => spawn(group),
        None => with_group(shared, netns, spawn)?,
    };
    spawned.map(JoinHandle::new).map_err(|(error, _f)| error)
}

/// Spawns many jobs, which `send` puts in a queue.
pub(crate) fn spawn_batch<F, T>(
    jobs: impl IntoIterator<Item = F>,
    send: impl FnOnce(&mut Batch<'static, T>) -> Result<()>,
) -> Result<Vec<JoinHandle<T>>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let tickets = task::spawn_batch(jobs, send)?;
    Ok(tickets.into_iter().map(JoinHandle::new).collect())
}

pub(crate) fn try_spawn<F, T>(
    shared: &Arc<Shared>,
    known: Option<&Arc<Group>>,
    netns: &impl Target,
    f: F,
) -> Result<JoinHandle<T>, TrySpawnError<F>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let group = match started(shared, known, netns, Patience::None) {
        Ok(group) => group,
        Err(error) if error.is_full() => return Err(TrySpawnError::Full(f)),
        Err(error) => return Err(TrySpawnError::Failed(error, f)),
    };
    task::spawn(f, |job| {
        group.try_push(job).map_err(|job| (job, ()))?;
        settle(shared, netns, &group);
        Ok(())
    })
    .map(JoinHandle::new)
    .map_err(|((), f)| TrySpawnError::Full(f))
}

/// Why [`try_spawn`](crate::Executor::try_spawn) did not accept a closure, which
/// it gives back.
#[non_exhaustive]
pub enum TrySpawnError<F> {
    /// The namespace's queue is full, or it has no worker and the limit of
    /// workers is reached.
    Full(F),
    /// The job could not be accepted for another reason.
    Failed(Error, F),
}

impl<F> TrySpawnError<F> {
    /// Returns the closure.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let (executor, blue) = (Executor::new()?, Netns::open("blue")?);
    /// let answer = match executor.try_spawn(&blue, || 6 * 7) {
    ///     Ok(handle) => handle.join()?,
    ///     Err(error) => error.into_closure()(),
    /// };
    /// # let _ = answer;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn into_closure(self) -> F {
        match self {
            TrySpawnError::Full(f) | TrySpawnError::Failed(_, f) => f,
        }
    }

    /// Returns the error, without the closure.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let (executor, blue) = (Executor::new()?, Netns::open("blue")?);
    /// executor.try_spawn(&blue, || ()).map_err(|error| error.into_error())?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn into_error(self) -> Error {
        match self {
            TrySpawnError::Full(_) => Error::new(Kind::Full, FULL),
            TrySpawnError::Failed(error, _) => error,
        }
    }
}

const FULL: &str =
    "cannot accept the job: the namespace's queue is full, or the limit of workers reached";

impl<F> fmt::Display for TrySpawnError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrySpawnError::Full(_) => f.write_str(FULL),
            TrySpawnError::Failed(error, _) => error.fmt(f),
        }
    }
}

impl<F> fmt::Debug for TrySpawnError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrySpawnError::Full(_) => f.write_str("Full(..)"),
            TrySpawnError::Failed(error, _) => write!(f, "Failed({error:?}, ..)"),
        }
    }
}

impl<F> error::Error for TrySpawnError<F> {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            TrySpawnError::Full(_) => None,
            TrySpawnError::Failed(error, _) => error.source(),
        }
    }
}
