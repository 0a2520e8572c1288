//! Giving jobs up: from elsewhere, or by letting go of them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::handle::JoinHandle;
use crate::error::Result;
use crate::handoff::counted::AbortTask;

/// Gives a job up from anywhere, and keeps nothing of what it returns: see
/// [`JoinHandle::abort_handle`].
///
/// Dropping it does nothing to the job.
///
/// # Panics
///
/// Cloning it does when the job has more than eight million handles, as
/// [`JoinHandle::abort_handle`] does.
///
/// # Examples
///
/// ```
/// use netns_exec::{AbortHandle, Executor, Netns};
///
/// let (executor, here) = (Executor::new()?, Netns::current()?);
/// let mut asked: Vec<AbortHandle> = Vec::new();
/// let handles = (0..4).map(|n| executor.spawn(&here, move || n)).collect::<Result<Vec<_>, _>>()?;
/// asked.extend(handles.iter().map(|handle| handle.abort_handle()));
/// // What is still queued when the program is told to end is given up.
/// asked.iter().for_each(|job| drop(job.abort()));
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone)]
pub struct AbortHandle {
    task: AbortTask,
}

impl AbortHandle {
    /// Cancels the job if it has not started, as [`JoinHandle::cancel`] does; tells whether
    /// it did.
    ///
    /// A task that waits for the job is woken, on the calling thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns};
    ///
    /// let executor = Executor::new()?;
    /// let handle = executor.spawn(&Netns::current()?, || 6 * 7)?;
    /// // The job may have been faster.
    /// match handle.abort_handle().abort() {
    ///     true => assert!(handle.join().unwrap_err().is_cancelled()),
    ///     false => assert_eq!(handle.join()?, 42),
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn abort(&self) -> bool {
        self.task.cancel()
    }

    /// Tells whether the job is over: ended, or cancelled.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns};
    ///
    /// let executor = Executor::new()?;
    /// let handle = executor.spawn(&Netns::current()?, || 6 * 7)?;
    /// let watched = handle.abort_handle();
    /// handle.join()?;
    /// assert!(watched.is_finished());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_finished(&self) -> bool {
        self.task.is_over()
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle")
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

impl<T: 'static> JoinHandle<T> {
    /// Returns a handle that can give the job up from elsewhere: while this one is awaited,
    /// from another thread, many times over.
    ///
    /// # Panics
    ///
    /// When the job has more than eight million handles.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// let handle = executor.spawn(&blue, || 6 * 7)?;
    /// let abort = handle.abort_handle();
    /// let stop = std::thread::spawn(move || abort.abort() || abort.is_finished());
    /// match handle.join() {
    ///     Err(error) if error.is_cancelled() => println!("given up in time"),
    ///     answer => println!("{}", answer?),
    /// }
    /// # drop(stop);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle {
            task: self.abort_task(),
        }
    }
}

impl<T> JoinHandle<T> {
    /// Ties the job to its handle: when that is dropped before the job has started, the
    /// job is cancelled.
    ///
    /// So a job is given up with the future that waits for it, by a time limit or a
    /// `select!`. One that has started runs to its end, since a closure cannot be stopped
    /// half way.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # async fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
    /// // Awaited under a time limit, this leaves nothing in the queue.
    /// let answer = executor.spawn_async(blue, || 6 * 7).await?.abort_on_drop().await?;
    /// # let _ = answer;
    /// # Ok(())
    /// # }
    /// ```
    pub fn abort_on_drop(self) -> AbortOnDrop<T> {
        AbortOnDrop { handle: Some(self) }
    }
}

/// A handle to a job that is cancelled with it: see [`JoinHandle::abort_on_drop`].
///
/// It is a future, as the handle is.
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// # use netns_exec::{AbortOnDrop, Executor, JoinHandle, Netns};
/// # async fn timeout<T>(_: Duration, future: impl Future<Output = T>) -> Option<T> { Some(future.await) }
/// # async fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
/// let tied: AbortOnDrop<u32> = executor.spawn_async(blue, || 6 * 7).await?.abort_on_drop();
/// // As tokio's: drops the handle when the time is over, and with it the job.
/// match timeout(Duration::from_secs(1), tied).await {
///     Some(answer) => println!("{}", answer?),
///     None => println!("too busy; the job will not run"),
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "dropped at once, it cancels the job"]
pub struct AbortOnDrop<T> {
    /// Here until it is taken out again.
    handle: Option<JoinHandle<T>>,
}

impl<T> AbortOnDrop<T> {
    /// Returns the handle, which lets the job run when it is dropped.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
    /// let tied = executor.spawn(blue, || 6 * 7)?.abort_on_drop();
    /// assert_eq!(tied.into_handle().join()?, 42);
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_handle(mut self) -> JoinHandle<T> {
        self.handle.take().expect("here until now")
    }
}

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T>;

    /// # Panics
    ///
    /// When polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let handle = self.handle.as_mut().expect("here until it is dropped");
        Pin::new(handle).poll(cx)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        if let Some(handle) = &self.handle {
            handle.cancel();
        }
    }
}

impl<T> fmt::Debug for AbortOnDrop<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AbortOnDrop").field(&self.handle).finish()
    }
}
