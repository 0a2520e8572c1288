//! How a job finds its worker: inline, through a lane, or through the queue.

use std::borrow::Cow;
use std::cell::Cell;
use std::error;
use std::fmt;
use std::sync::Arc;

use super::group::{First, Group, Start};
use super::registry::{Registry, Room};
use super::{birth, current};
use crate::error::{Error, Kind, Result};
use crate::handoff::batch::{self, Batch};
use crate::handoff::handle::TaskHandle;
use crate::handoff::job::{self, JobRef};
use crate::handoff::outcome::Outcome;
use crate::handoff::task;
use crate::netns::{Netns, NetnsId, WeakNetns};
use crate::sync;

/// The namespace that a call is for.
pub(crate) trait Destination {
    fn id(&self) -> NetnsId;
    fn label(&self) -> &str;
    /// A handle to start workers with.
    fn netns(&self) -> Result<Netns>;

    /// Takes a handle back that no worker was started with.
    fn give_back(&self, _netns: Netns) {}
}

impl Destination for Netns {
    fn id(&self) -> NetnsId {
        self.id()
    }

    fn label(&self) -> &str {
        self.label()
    }

    fn netns(&self) -> Result<Netns> {
        Ok(self.kept())
    }
}

impl Destination for WeakNetns {
    fn id(&self) -> NetnsId {
        self.id()
    }

    fn label(&self) -> &str {
        self.label()
    }

    fn netns(&self) -> Result<Netns> {
        let label = self.label();
        let reopened = self.reopen();
        let netns = reopened
            .map_err(|cause| Error::kernel(format!("cannot open netns `{label}` again"), cause))?;
        netns.ok_or_else(|| {
            let gone = format!("netns `{label}` does not exist any more");
            Error::new(Kind::NotFound, gone)
        })
    }
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
pub(crate) fn is_inline(registry: &Registry, netns: NetnsId) -> bool {
    current::with_current(|current| {
        current.is_some_and(|current| {
            current.group.id() == netns
                && current.registry.pool().key == registry.pool().key
                && current.is_in_place()
        })
    })
}

#[inline]
pub(crate) fn run<F, T>(registry: &Arc<Registry>, netns: &impl Destination, f: F) -> Result<T>
where
    F: FnOnce() -> T + Send,
    T: Send,
{
    if is_inline(registry, netns.id()) {
        return Ok(f());
    }
    with_group(registry, netns, |group| run_on(registry, group, netns, f))
}

/// Calls `f` with the group of a namespace, which this thread remembers.
#[inline]
pub(crate) fn with_group<R>(
    registry: &Arc<Registry>,
    netns: &impl Destination,
    f: impl FnOnce(&Arc<Group>) -> Result<R>,
) -> Result<R> {
    current::check_may_wait()?;
    let executor = registry.pool().key;
    // Taken out meanwhile: `f` may get here again.
    // Gone already when a thread-local's destructor calls.
    let cached = CACHED.try_with(Cell::take).ok().flatten();
    let cached = cached.filter(|cached| {
        cached.executor == executor
            && cached.group.id() == netns.id()
            && !cached.group.is_retiring()
    });
    let group = match cached {
        Some(cached) => cached.group,
        None => registry.group(netns.id(), netns.label())?,
    };
    let to_cache = ToCache(Some(Cached { executor, group }));
    f(to_cache.group())
}

/// Has the calling thread remember it, when it is dropped: what is returned meanwhile
/// need not be moved once more for that.
struct ToCache(Option<Cached>);

impl ToCache {
    #[inline]
    fn group(&self) -> &Arc<Group> {
        &self.0.as_ref().expect("it has not been dropped").group
    }
}

impl Drop for ToCache {
    #[inline]
    fn drop(&mut self) {
        let _ = CACHED.try_with(|cached| cached.set(self.0.take()));
    }
}

/// Runs `f` in a namespace whose group is known, and has not to be alive any more.
#[inline]
pub(crate) fn run_on<F, T>(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    netns: &impl Destination,
    f: F,
) -> Result<T>
where
    F: FnOnce() -> T + Send,
    T: Send,
{
    // Blocked before the lane is claimed: from then on its worker waits for us.
    let outcome = current::blocking(|| {
        let f = match group.claim() {
            None => f,
            Some(claim) => match claim.run(f, registry.pool().may_spin) {
                Ok(outcome) => return outcome,
                Err(f) => f,
            },
        };
        let _waiting = group.crowd.wait();
        job::run_on_stack(f, |job| queue(registry, Some(group), netns, job))
    });
    run_result(outcome)
}

/// What `run` gives: a panic goes on in the caller.
#[inline]
fn run_result<T>(outcome: Outcome<T>) -> Result<T> {
    match outcome {
        Outcome::Returned(value) => Ok(value),
        other => other.into_run_result(),
    }
}

/// Puts a job in the queue of a namespace that has a worker.
///
/// Gives the job back with the error when it has none and cannot get one. After
/// that it is the job's owner who is told of errors, through the job.
#[inline]
pub(crate) fn queue(
    registry: &Arc<Registry>,
    known: Option<&Arc<Group>>,
    netns: &impl Destination,
    job: JobRef,
) -> Result<(), (JobRef, Error)> {
    queue_with(registry, known, netns, Room::Awaited, job)
}

#[inline]
fn queue_with(
    registry: &Arc<Registry>,
    known: Option<&Arc<Group>>,
    netns: &impl Destination,
    room: Room,
    job: JobRef,
) -> Result<(), (JobRef, Error)> {
    match served(registry, known, netns, room) {
        Ok(group) => {
            push(registry, &group, netns, job);
            Ok(())
        }
        Err(error) => Err((job, error)),
    }
}

/// Puts a job in the queue of a group that had a worker a moment ago.
#[inline]
pub(crate) fn push(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    netns: &impl Destination,
    job: JobRef,
) {
    if let Err(job) = group.queue.try_push(job) {
        current::blocking(|| group.queue.push(job));
    }
    ensure_served(registry, netns, group, Room::Awaited);
}

/// As [`queue`], for many jobs, with as few wake-ups as possible. Takes none when
/// it fails.
pub(crate) fn queue_all(
    registry: &Arc<Registry>,
    known: Option<&Arc<Group>>,
    netns: &impl Destination,
    jobs: impl Iterator<Item = JobRef>,
) -> Result<()> {
    let group = served(registry, known, netns, Room::Awaited)?;
    for job in jobs {
        if let Err(job) = group.queue.try_push(job) {
            // No worker makes room that does not know that there is something to do.
            ensure_served(registry, netns, &group, Room::Awaited);
            current::blocking(|| group.queue.push(job));
        }
    }
    // One is enough for many workers: each that takes a job has the rest covered.
    ensure_served(registry, netns, &group, Room::Awaited);
    Ok(())
}

/// Finds the group of a namespace that has a worker, or sees to it that it has one.
/// The calling thread's own group, if it is a worker, need not wait for that.
#[inline]
fn served<'a>(
    registry: &Arc<Registry>,
    known: Option<&'a Arc<Group>>,
    netns: &impl Destination,
    room: Room,
) -> Result<Cow<'a, Arc<Group>>> {
    match known {
        Some(group) if group.is_served() => Ok(Cow::Borrowed(group)),
        _ => current::blocking(|| started(registry, known, netns, room)).map(Cow::Owned),
    }
}

/// Finds the group of a namespace and sees to it that it has a worker.
pub(crate) fn started(
    registry: &Arc<Registry>,
    known: Option<&Arc<Group>>,
    netns: &impl Destination,
    room: Room,
) -> Result<Arc<Group>> {
    current::check_may_wait()?;
    let find = || registry.group(netns.id(), netns.label());
    let mut group = match known {
        Some(group) => Arc::clone(group),
        None => find()?,
    };
    let room = room_for_this_thread(room);
    while !first_worker(registry, &group, netns, room)? {
        group = find()?;
    }
    // Even when it has left again by now: the queue finds that out.
    Ok(group)
}

/// The room that the calling thread asks for, which would ask for `room` if it were no
/// worker: the caller of its job may hold the very room that it needs.
pub(crate) fn room_for_this_thread(room: Room) -> Room {
    match current::is_worker() {
        true => Room::Anyway,
        false => room,
    }
}

/// Sees to it that a group has a worker; `false` when it never will again.
pub(crate) fn first_worker(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    netns: &impl Destination,
    room: Room,
) -> Result<bool> {
    find_first(registry, group, netns, room).inspect_err(|_| registry.bury_unused(group))
}

fn find_first(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    netns: &impl Destination,
    room: Room,
) -> Result<bool> {
    let mut tried = false;
    loop {
        let born = match group.first() {
            First::Served => return Ok(true),
            First::Dead => return Ok(false),
            First::Coming => group.wait_first(),
            First::Wanted => {
                let handle = match netns.netns() {
                    Err(error) if !tried && birth::make_room(registry, &error) => {
                        tried = true;
                        continue;
                    }
                    opened => opened?,
                };
                let is_wanted = || matches!(group.first(), First::Wanted);
                if !registry.reserve(netns.id(), room, is_wanted)? {
                    netns.give_back(handle);
                    continue;
                }
                match group.begin_first(handle) {
                    Ok(start) => start_first(registry, group, netns, start, room),
                    Err(handle) => {
                        netns.give_back(handle);
                        continue;
                    }
                }
            }
        };
        match born {
            Ok(()) => return Ok(true),
            Err(error) if !tried && birth::make_room(registry, &error) => tried = true,
            Err(error) => return Err(error),
        }
    }
}

/// Has the first worker of a group born, which takes what may have been pushed by then.
pub(crate) fn start_first(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    netns: &impl Destination,
    start: Start,
    room: Room,
) -> Result<()> {
    birth::start(registry, group, start).inspect_err(|error| {
        group.fail_futures(error);
        registry.bury(group);
        let room = match room {
            // It is others' jobs that may need room, and they cannot be given back.
            Room::Now => Room::Anyway,
            room => room,
        };
        // A sender that found a worker before, which has left, may have relied on this
        // one.
        ensure_served(registry, netns, group, room);
    })
}

/// Sees to it that what was just pushed to `group` is served, or ships it elsewhere
/// when the group has died in between.
#[inline]
pub(crate) fn ensure_served(
    registry: &Arc<Registry>,
    netns: &impl Destination,
    group: &Arc<Group>,
    room: Room,
) {
    let orphans = birth::carry_out(registry, group, group.notify());
    group.tell_if_stuck();
    if !orphans.is_empty() {
        reship(registry, netns, room, orphans);
    }
}

/// Ships jobs elsewhere whose group has died.
pub(crate) fn reship(
    registry: &Arc<Registry>,
    netns: &impl Destination,
    room: Room,
    jobs: Vec<JobRef>,
) {
    for orphan in jobs {
        if let Err((job, error)) = queue_with(registry, None, netns, room, orphan) {
            job.abort(error);
        }
    }
}

pub(crate) fn spawn<F, T>(
    registry: &Arc<Registry>,
    known: Option<&Arc<Group>>,
    netns: &impl Destination,
    f: F,
) -> Result<TaskHandle<'static, T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let spawn = |group: &Arc<Group>| {
        task::spawn(f, |job| queue(registry, Some(group), netns, job)).map_err(|(error, _f)| error)
    };
    match known {
        Some(group) => spawn(group),
        None => with_group(registry, netns, spawn),
    }
}

/// Spawns many jobs, which `send` puts in a queue.
pub(crate) fn spawn_batch<F, T>(
    jobs: impl IntoIterator<Item = F>,
    send: impl FnOnce(&mut Batch<'static, T>) -> Result<()>,
) -> Result<Vec<TaskHandle<'static, T>>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    batch::spawn_batch(jobs, send)
}

pub(crate) fn try_spawn<F, T>(
    registry: &Arc<Registry>,
    known: Option<&Arc<Group>>,
    netns: &impl Destination,
    f: F,
) -> Result<TaskHandle<'static, T>, TrySpawnError<F>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let spawned = task::spawn(f, |job| try_queue(registry, known, netns, job));
    spawned.map_err(|(error, f)| match error {
        Some(error) if !error.is_full() => TrySpawnError::Failed(error, f),
        _ => TrySpawnError::Full(f),
    })
}

/// As [`queue`], without waiting for room. The job comes back without an error when
/// its queue is full.
fn try_queue(
    registry: &Arc<Registry>,
    known: Option<&Arc<Group>>,
    netns: &impl Destination,
    mut job: JobRef,
) -> Result<(), (JobRef, Option<Error>)> {
    let mut known = known.cloned();
    loop {
        let group = match started(registry, known.as_ref(), netns, Room::Now) {
            Ok(group) => group,
            Err(error) => return Err((job, Some(error))),
        };
        let address = job.address();
        group.queue.try_push(job).map_err(|job| (job, None))?;
        // When the group has died since, there may be no room for another one.
        let mut orphans = birth::carry_out(registry, &group, group.notify());
        group.tell_if_stuck();
        let own = (orphans.iter()).position(|orphan| orphan.address() == address);
        let own = own.map(|at| orphans.swap_remove(at));
        // Other senders', which were taken: they cannot be given back.
        reship(registry, netns, Room::Anyway, orphans);
        match own {
            None => return Ok(()),
            Some(back) => (job, known) = (back, None),
        }
    }
}

/// Why [`try_spawn`](crate::Executor::try_spawn) did not accept a closure, which
/// it gives back.
///
/// # Examples
///
/// ```
/// # use netns_exec::{Executor, Netns, TrySpawnError};
/// # fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
/// let mut job = || println!("done");
/// // Goes on with its own work while the namespace has no room.
/// while let Err(error) = executor.try_spawn(blue, job) {
///     job = match error {
///         TrySpawnError::Full(job) => job,
///         error => return Err(error.into_error()),
///     };
/// }
/// # Ok(())
/// # }
/// ```
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
