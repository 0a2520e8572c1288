//! The calls that block, in a form that can be awaited.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::awaited::{self, Served};
use super::handle::JoinHandle;
use super::owner::Executor;
use super::pinned::Pinned;
use super::{current, submit};
use crate::error::{Error, Result};
use crate::home::aside;
use crate::netns::Netns;

impl Executor {
    /// Ships `f` to a worker of `netns`, and is awaited where [`spawn`](Executor::spawn)
    /// blocks: for the namespace's first worker, for room in its queue and under
    /// [`max_workers`](crate::Builder::max_workers).
    ///
    /// Driven by wakers alone: any runtime will do. They are called on a thread of the
    /// library's, one for the whole process, and must not block, as no waker may.
    ///
    /// Nothing happens before it is polled. Dropped before it was ready, it gives up its place, drops `f` where it is dropped
    /// itself, and `f` never runs. A worker that was being started for it stays for the next
    /// call, as an idle one does.
    ///
    /// The future may outlive `self`, which is a handle less then: it keeps the executor
    /// going.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Executor::spawn).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # async fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
    /// let answer = executor.spawn_async(blue, || 6 * 7).await?.await?;
    /// assert_eq!(answer, 42);
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn_async<F, T>(
        &self,
        netns: &Netns,
        f: F,
    ) -> impl Future<Output = Result<JoinHandle<T>>> + Send + use<F, T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (executor, netns) = (self.clone(), netns.clone());
        async move {
            let registry = executor.registry();
            let group = Served::new(registry, None, netns.clone()).await?;
            let task = awaited::ship(registry, group, netns, f).await?;
            Ok(JoinHandle::new(task))
        }
    }

    /// Keeps the workers of `netns` resident, and is awaited where [`pin`](Executor::pin)
    /// blocks.
    ///
    /// Nothing happens before it is polled. Dropped before it was ready, it leaves at most
    /// an idle worker.
    ///
    /// # Errors
    ///
    /// As [`pin`](Executor::pin).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # async fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
    /// let blue = executor.pin_async(blue).await?;
    /// assert_eq!(blue.spawn_async(|| 6 * 7).await?.await?, 42);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pin_async(&self, netns: &Netns) -> impl Future<Output = Result<Pinned>> + Send + use<> {
        let (executor, netns) = (self.clone(), netns.clone());
        async move {
            let group = Served::new(executor.registry(), None, netns.clone()).await?;
            Ok(Pinned::of(executor, &netns, group))
        }
    }

    /// Ends the workers of `netns`, and returns a future of the end: the form of
    /// [`retire`](Executor::retire) for async code.
    ///
    /// It begins with the call: what was accepted before still runs, and later calls start
    /// anew. Nothing is taken back when the future is dropped.
    ///
    /// # Errors
    ///
    /// `EAGAIN` when no thread could be started to wait for the workers' threads, which end
    /// all the same.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # async fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
    /// executor.spawn_async(blue, || ()).await?.await?;
    /// executor.retire_async(blue).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn retire_async(&self, netns: &Netns) -> impl Future<Output = Result<()>> + Send + use<> {
        let (registry, id) = (Arc::clone(self.registry()), netns.id());
        let retired = current::check_may_wait().map(|()| {
            submit::forget_cached();
            registry.retire(id)
        });
        let waits = !current::is_worker_of(registry.pool());
        async move {
            let retired = retired?;
            if !waits {
                return Ok(());
            }
            let end = retired.end;
            awaited::Ended::new(&registry, id, retired).await?;
            let join = move || registry.pool().threads.join_retired(id, end);
            aside::errand(join)
                .map_err(never_over)?
                .await
                .map_err(never_over)
        }
    }

    /// Takes no more jobs from now on, and returns a future of the end: the form of
    /// [`shutdown`](Executor::shutdown) for async code.
    ///
    /// It begins with the call. Nothing is taken back when the future is dropped: then the
    /// rest goes on in the background, with the `timeout` that it has. A short-lived thread
    /// waits for the workers, so any runtime will do.
    ///
    /// # Errors
    ///
    /// As [`shutdown`](Executor::shutdown); and `EAGAIN` when no thread could be started to
    /// wait, though the executor ends all the same.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn f(executor: netns_exec::Executor) -> netns_exec::Result<()> {
    /// use std::time::Duration;
    ///
    /// executor.shutdown_async(Some(Duration::from_secs(5))).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_async(
        self,
        timeout: Option<Duration>,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let ends = current::check_may_wait().and_then(|()| {
            let waits = !current::is_worker_of(self.registry().pool());
            self.end_aside(timeout, waits)
        });
        async move {
            match ends? {
                Some(errand) => errand.await.map_err(never_over)?,
                None => Ok(()),
            }
        }
    }

    /// Takes no more jobs, and returns at once. Those that were accepted run, and then the
    /// workers end; no thread waits for that.
    ///
    /// Holds for all clones, as [`shutdown`](Executor::shutdown) does. Dropping the last
    /// handle does the same.
    ///
    /// # Examples
    ///
    /// ```
    /// let executor = netns_exec::Executor::new()?;
    /// executor.clone().shutdown_background();
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn shutdown_background(self) {
        if current::check_may_wait().is_ok() {
            // It does not wait, so it does not fail.
            let _ = self.end(None, false);
        }
    }
}

fn never_over(cause: io::Error) -> Error {
    Error::kernel("cannot wait for the workers' threads", cause)
}
