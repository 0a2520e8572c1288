//! Futures on workers: the face.
//!
//! How they are polled is in `handoff/future.rs`, how they find a worker in `future.rs`.

use std::future::Future;

use super::handle::JoinHandle;
use super::owner::Executor;
use super::pinned::Pinned;
use super::{current, future, submit};
use crate::error::Result;
use crate::netns::Netns;

impl Executor {
    /// Has the workers of `netns` poll `future`, and returns at once.
    ///
    /// Every poll and the drop happen on a worker of `netns`, with the [guard](crate::Guard)
    /// in force; between polls the worker does other work. So the sockets that the future
    /// makes are in `netns`, and it never leaves its namespace, wherever its handle is
    /// awaited. It is what an `async fn` with [`in_netns`](crate::in_netns) becomes.
    ///
    /// The future needs the runtime that its sockets and timers belong to: see
    /// [`Builder::around`](crate::Builder::around), and the feature `tokio`. That runtime
    /// drives them from its own threads and wakes the future, which is polled here.
    /// What the future *hands* to a runtime runs where that runtime's threads are, and not in
    /// `netns`: `tokio::spawn`, `spawn_blocking`, and what is built on it, such as looking up
    /// a name.
    ///
    /// # Blocking
    ///
    /// Never blocks: where there is no worker yet, one is started meanwhile. A poll that
    /// blocks keeps its worker from other work, as a job does.
    ///
    /// # Its life
    ///
    /// The future runs whether or not the handle is kept. It is polled when it is woken,
    /// in turn with the jobs of the namespace: one that wakes itself for ever keeps no job
    /// waiting for longer than a poll. Waking it never blocks, from whichever thread, and
    /// does nothing once it is over. While it is not, its workers stay, as if they were
    /// [pinned](Executor::pin).
    ///
    /// It is dropped, on a worker, when it is over; when it is
    /// [cancelled](JoinHandle::cancel), at the next point where it waits; and when its
    /// namespace loses its last name or is [retired](Executor::retire), or the executor
    /// is shut down: those do not wait for it. Its handle is told. One that never had a
    /// worker is dropped with its handle.
    ///
    /// # Errors
    ///
    /// All come from the handle: what [`run`](Executor::run) would return when there can
    /// be no worker, [`is_panic`](crate::Error::is_panic) when a poll panicked,
    /// [`is_cancelled`](crate::Error::is_cancelled) when it was dropped before its end.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # async fn connect() -> std::io::Result<u32> { Ok(7) }
    /// # async fn f(executor: &Executor, blue: &Netns) -> Result<(), Box<dyn std::error::Error>> {
    /// let answer = executor.spawn_future(blue, async { connect().await }).await??;
    /// # let _ = answer;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A future that may not cross threads is for [`spawn_local`](Executor::spawn_local):
    ///
    /// ```compile_fail
    /// # use std::rc::Rc;
    /// # use netns_exec::{Executor, Netns};
    /// # fn f(executor: &Executor, blue: &Netns) {
    /// let counter = Rc::new(1);
    /// drop(executor.spawn_future(blue, async move { *counter + 1 }));
    /// # }
    /// ```
    ///
    /// The same with what may:
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use netns_exec::{Executor, Netns};
    /// # fn f(executor: &Executor, blue: &Netns) {
    /// let counter = Arc::new(1);
    /// drop(executor.spawn_future(blue, async move { *counter + 1 }));
    /// # }
    /// ```
    pub fn spawn_future<F>(&self, netns: &Netns, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        JoinHandle::new(future::spawn(self.registry(), None, netns, future))
    }

    /// Has one worker of `netns` make a future with `build`, poll it and drop it.
    ///
    /// For futures that are not [`Send`]: `build` goes to the worker, and what it returns
    /// never leaves that thread. The local futures of one namespace share one worker, which
    /// is there for them alone: jobs, and futures that are `Send`, have others.
    ///
    /// All else is as with [`spawn_future`](Executor::spawn_future). When a poll leaves that
    /// worker unfit, see [`Guard`](crate::Guard), it drops all its futures before it ends,
    /// wherever that poll has brought it, since no other thread can.
    ///
    /// # Blocking
    ///
    /// Never blocks. Waiting for one local future, with [`JoinHandle::join`], in another
    /// one of the same namespace would be for ever: that is an error (`EDEADLK`). Await it.
    ///
    /// # Errors
    ///
    /// As [`spawn_future`](Executor::spawn_future).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::rc::Rc;
    /// # use netns_exec::{Executor, Netns};
    /// # async fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
    /// let two = executor.spawn_local(blue, || async {
    ///     let counter = Rc::new(1);
    ///     *counter + 1
    /// });
    /// assert_eq!(two.await?, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn_local<F>(
        &self,
        netns: &Netns,
        build: impl FnOnce() -> F + Send + 'static,
    ) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        JoinHandle::new(future::spawn_local(self.registry(), netns, build))
    }

    /// Has the workers of `netns` leave, and does not wait for that.
    pub(crate) fn begin_retire(&self, netns: &Netns) -> Result<()> {
        current::check_may_wait()?;
        submit::forget_cached();
        self.registry().retire(netns.id());
        Ok(())
    }
}

impl Pinned {
    /// Has the workers of the namespace poll `future`, and returns at once.
    ///
    /// All else is as with [`Executor::spawn_future`].
    ///
    /// # Errors
    ///
    /// As [`Executor::spawn_future`], and as [`run`](Pinned::run) when the namespace is
    /// gone: from the handle.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # async fn f() -> netns_exec::Result<()> {
    /// let blue = Executor::global().pin(&Netns::open("blue")?)?;
    /// assert_eq!(blue.spawn_future(async { 6 * 7 }).await?, 42);
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn_future<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let registry = self.executor().registry();
        let task = future::spawn(registry, Some(self.group()), self.netns(), future);
        JoinHandle::new(task)
    }

    /// Has one worker of the namespace make a future with `build`, poll it and drop it.
    ///
    /// All else is as with [`Executor::spawn_local`].
    ///
    /// # Errors
    ///
    /// As [`spawn_future`](Pinned::spawn_future).
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::cell::Cell;
    /// # use netns_exec::Pinned;
    /// # async fn f(blue: &Pinned) -> netns_exec::Result<()> {
    /// // Made on the worker, so that it may hold what cannot cross threads.
    /// let count = blue.spawn_local(|| async {
    ///     let seen = Cell::new(0);
    ///     seen.set(seen.get() + 1);
    ///     seen.get()
    /// });
    /// assert_eq!(count.await?, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn_local<F>(
        &self,
        build: impl FnOnce() -> F + Send + 'static,
    ) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        let registry = self.executor().registry();
        JoinHandle::new(future::spawn_local(registry, self.netns(), build))
    }
}
