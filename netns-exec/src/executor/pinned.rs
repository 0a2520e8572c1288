//! A namespace whose workers stay.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;

use super::awaited::{self, Served};
use super::current;
use super::group::Group;
use super::handle::JoinHandle;
use super::owner::Executor;
use super::registry::{Registry, Room};
use super::submit::{self, TrySpawnError};
use crate::error::Result;
use crate::home::aside;
use crate::netns::{Netns, NetnsId, WeakNetns};

/// Keeps the workers of a namespace resident, and finds them without a look-up.
///
/// While it lives, its workers do not end for being idle, and
/// [`max_workers`](crate::Builder::max_workers) does not choose them.
///
/// To a namespace without a name it is as good as a handle: its workers stay, and the
/// namespace with them. It does not keep a deleted one alive: [`Executor::retire`] and
/// the deletion of its last name end the workers all the same. A later call starts new ones
/// if the namespace still exists, that is if something else refers to it.
///
/// A clone keeps the workers too, for as long as it lives itself.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Executor, Netns, Pinned};
///
/// /// A proxy's way into one container.
/// struct Backend {
///     netns: Pinned,
/// }
///
/// impl Backend {
///     fn dial(&self) -> std::io::Result<std::net::TcpStream> {
///         self.netns.run(|| std::net::TcpStream::connect("127.0.0.1:80"))?
///     }
/// }
/// let backend = Backend { netns: Executor::global().pin(&Netns::open("blue")?)? };
/// backend.dial()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pinned {
    executor: Executor,
    netns: WeakNetns,
    group: PinnedGroup,
    /// The group that came after the first one had died, if it has.
    /// Its clones share it, and so do the futures that it makes.
    later: Arc<Mutex<Option<PinnedGroup>>>,
}

/// A group whose workers stay as long as this does.
struct PinnedGroup {
    registry: Arc<Registry>,
    group: Arc<Group>,
}

impl PinnedGroup {
    fn new(registry: &Arc<Registry>, group: Arc<Group>) -> Self {
        group.pin();
        let registry = Arc::clone(registry);
        PinnedGroup { registry, group }
    }
}

impl Clone for PinnedGroup {
    fn clone(&self) -> Self {
        PinnedGroup::new(&self.registry, Arc::clone(&self.group))
    }
}

impl Drop for PinnedGroup {
    fn drop(&mut self) {
        // In a copy of the process there are no workers to tell.
        if current::check_may_wait().is_ok() {
            self.registry.unpin(&self.group);
        }
    }
}

impl Pinned {
    pub(crate) fn new(executor: Executor, netns: &Netns) -> Result<Pinned> {
        let group = submit::started(executor.registry(), None, netns, Room::Awaited)?;
        Ok(Pinned::of(executor, netns, group))
    }

    pub(super) fn of(executor: Executor, netns: &Netns, group: Arc<Group>) -> Pinned {
        Pinned {
            netns: netns.downgrade(),
            group: PinnedGroup::new(executor.registry(), group),
            executor,
            later: Arc::default(),
        }
    }

    /// Returns the namespace's id.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// let blue = Netns::open("blue")?;
    /// assert_eq!(Executor::global().pin(&blue)?.id(), blue.id());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn id(&self) -> NetnsId {
        self.netns.id()
    }

    /// Runs `f` on a worker of the namespace and waits for its result.
    ///
    /// # Blocking
    ///
    /// As [`Executor::run`].
    ///
    /// # Errors
    ///
    /// As [`Executor::run`]; and [`is_not_found`](crate::Error::is_not_found) when
    /// the workers have been retired and the namespace is gone.
    ///
    /// # Panics
    ///
    /// With `f`'s panic.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns};
    ///
    /// let here = Executor::new()?.pin(&Netns::current()?)?;
    /// let mut sockets = Vec::new();
    /// for _ in 0..3 {
    ///     // Always the same worker, and what it makes goes to the caller.
    ///     here.run(|| sockets.push(std::net::UdpSocket::bind("127.0.0.1:0")))?;
    /// }
    /// assert_eq!(sockets.len(), 3);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    #[inline]
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let registry = self.executor.registry();
        if submit::is_inline(registry, self.id()) {
            return Ok(f());
        }
        current::check_may_wait()?;
        if !self.group.group.is_retiring() {
            return submit::run_on(registry, &self.group.group, &self.netns, f);
        }
        submit::run_on(registry, &self.renew(Room::Awaited)?, &self.netns, f)
    }

    /// Ships `f` to a worker of the namespace and returns at once.
    ///
    /// # Blocking
    ///
    /// As [`Executor::spawn`].
    ///
    /// # Errors
    ///
    /// As [`Executor::spawn`], and as [`run`](Pinned::run) when the namespace is
    /// gone.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// let blue = Executor::global().pin(&Netns::open("blue")?)?;
    /// assert_eq!(blue.spawn(|| 6 * 7)?.join()?, 42);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let group = self.current(Room::Awaited)?;
        submit::spawn(self.executor.registry(), Some(&group), &self.netns, f).map(JoinHandle::new)
    }

    /// Ships `f` to a worker of the namespace, and is awaited where [`spawn`](Pinned::spawn)
    /// blocks.
    ///
    /// All else is as with [`Executor::spawn_async`].
    ///
    /// # Errors
    ///
    /// As [`spawn`](Pinned::spawn).
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::Pinned;
    /// # async fn f(blue: &Pinned) -> netns_exec::Result<()> {
    /// // Awaits room in the queue, and then the result.
    /// let handle = blue.spawn_async(|| std::net::TcpListener::bind("0.0.0.0:80")).await?;
    /// let listener = handle.await?;
    /// # let _ = listener;
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn_async<F, T>(
        &self,
        f: F,
    ) -> impl Future<Output = Result<JoinHandle<T>>> + Send + use<F, T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let pinned = self.clone();
        async move {
            let known = pinned.known();
            let (registry, netns) = (pinned.executor.registry(), &pinned.netns);
            let group = Served::new(registry, known, netns.clone()).await?;
            if pinned.group.group.is_retiring() {
                pinned.note_later(&group);
            }
            let task = awaited::ship(registry, group, netns.clone(), f).await?;
            Ok(JoinHandle::new(task))
        }
    }

    /// Ships many jobs to the workers of the namespace, for one wake-up where
    /// [`spawn`](Pinned::spawn) may need one for each.
    ///
    /// All else is as with [`Executor::spawn_batch`].
    ///
    /// # Blocking
    ///
    /// As [`Executor::spawn_batch`].
    ///
    /// # Errors
    ///
    /// As [`Executor::spawn_batch`], and as [`run`](Pinned::run) when the
    /// namespace is gone.
    ///
    /// # Panics
    ///
    /// With the panic of `jobs`; then no job runs.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// let blue = Executor::global().pin(&Netns::open("blue")?)?;
    /// for handle in blue.spawn_batch(["eth0", "lo"].map(|name| move || name.len()))? {
    ///     println!("{}", handle.join()?);
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn spawn_batch<T: Send + 'static>(
        &self,
        jobs: impl IntoIterator<Item = impl FnOnce() -> T + Send + 'static>,
    ) -> Result<Vec<JoinHandle<T>>> {
        let tasks = submit::spawn_batch(jobs, |batch| {
            let group = self.current(Room::Awaited)?;
            submit::queue_all(self.executor.registry(), Some(&group), &self.netns, batch)
        })?;
        Ok(tasks.into_iter().map(JoinHandle::new).collect())
    }

    /// Ships `f` to a worker of the namespace, unless its queue is full.
    ///
    /// # Blocking
    ///
    /// As [`Executor::try_spawn`].
    ///
    /// # Errors
    ///
    /// As [`Executor::try_spawn`], and as [`run`](Pinned::run) when the namespace
    /// is gone.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::{Pinned, TrySpawnError};
    /// # fn f(blue: &Pinned, packet: Vec<u8>) -> netns_exec::Result<()> {
    /// match blue.try_spawn(move || packet.len()) {
    ///     Ok(handle) => drop(handle),
    ///     Err(TrySpawnError::Full(_)) => println!("dropped: the namespace is busy"),
    ///     Err(error) => return Err(error.into_error()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_spawn<F, T>(&self, f: F) -> Result<JoinHandle<T>, TrySpawnError<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        match self.current(Room::Now) {
            Ok(group) => submit::try_spawn(self.executor.registry(), Some(&group), &self.netns, f)
                .map(JoinHandle::new),
            Err(error) if error.is_full() => Err(TrySpawnError::Full(f)),
            Err(error) => Err(TrySpawnError::Failed(error, f)),
        }
    }

    /// Ships `f` as [`try_spawn`](Pinned::try_spawn) does, and has a thread at home wait
    /// where a worker has to be started. What cannot be shipped is dropped.
    pub(crate) fn send(&self, f: impl FnOnce() + Send + 'static) {
        if current::check_may_wait().is_err() {
            return;
        }
        match self.known().filter(|group| group.is_served()) {
            Some(group) => {
                let registry = self.executor.registry();
                drop(awaited::ship_now(registry, &group, self.netns.clone(), f));
            }
            None => {
                let pinned = self.clone();
                drop(aside::errand(move || drop(pinned.try_spawn(f))));
            }
        }
    }

    pub(crate) fn executor(&self) -> &Executor {
        &self.executor
    }

    pub(super) fn netns(&self) -> &WeakNetns {
        &self.netns
    }

    /// The group that it was made with, which may be on its way out.
    pub(super) fn group(&self) -> &Arc<Group> {
        &self.group.group
    }

    /// The thread of a worker that stays as long as this does, unless its namespace is
    /// retired or a job spoils it. One is started if there is none.
    pub(crate) fn thread(&self) -> Result<u32> {
        loop {
            let group = self.current(Room::Awaited)?;
            match group.thread() {
                Some(tid) => return Ok(tid),
                // A spare may serve meanwhile, which the calling thread may be: it takes
                // the lane over after a job.
                None => self.spawn(|| ())?.join()?,
            }
        }
    }

    pub(crate) fn label(&self) -> &str {
        self.netns.label()
    }

    fn current(&self, room: Room) -> Result<Arc<Group>> {
        current::check_may_wait()?;
        if self.group.group.is_retiring() {
            self.renew(room)
        } else {
            Ok(Arc::clone(&self.group.group))
        }
    }

    /// Finds or starts the group that serves the namespace now.
    #[cold]
    fn renew(&self, room: Room) -> Result<Arc<Group>> {
        if let Some(group) = self.later() {
            return Ok(group);
        }
        // Not locked: a call that finds room waits for no other that does not.
        let group = submit::started(self.executor.registry(), None, &self.netns, room)?;
        self.note_later(&group);
        Ok(group)
    }

    /// The group that serves the namespace now, as far as this has heard of it.
    fn known(&self) -> Option<Arc<Group>> {
        match self.group.group.is_retiring() {
            true => self.later(),
            false => Some(Arc::clone(&self.group.group)),
        }
    }

    /// The group that came after the first one, if it is good.
    fn later(&self) -> Option<Arc<Group>> {
        let mut later = self.later.lock();
        match &*later {
            Some(pinned) if !pinned.group.is_retiring() => Some(Arc::clone(&pinned.group)),
            _ => {
                *later = None;
                None
            }
        }
    }

    fn note_later(&self, group: &Arc<Group>) {
        let renewed = PinnedGroup::new(self.executor.registry(), Arc::clone(group));
        // One pin is enough, should another call have been faster.
        let before = self.later.lock().replace(renewed);
        drop(before);
    }
}

impl Clone for Pinned {
    fn clone(&self) -> Self {
        Pinned {
            executor: self.executor.clone(),
            netns: self.netns.clone(),
            group: self.group.clone(),
            later: Arc::clone(&self.later),
        }
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f.debug_struct("Pinned").field("netns", &self.netns)).finish_non_exhaustive()
    }
}
