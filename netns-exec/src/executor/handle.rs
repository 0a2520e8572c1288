//! The handle to a spawned job: join, await, cancel.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::current::{self, Polled};
use super::group::IS_STUCK;
use crate::error::{Error, Result};
use crate::handoff::counted::AbortTask;
use crate::handoff::handle::TaskHandle;
use crate::payload::quietly;

/// A handle to a job that was [spawned](crate::Executor::spawn): joins, awaits or
/// cancels it.
///
/// Dropping it lets the job run. It is a future, driven by the waker alone: it
/// can be awaited on any runtime.
///
/// # Examples
///
/// ```no_run
/// # use netns_exec::{Executor, Netns};
/// # async fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
/// let answer = executor.spawn(blue, || 6 * 7)?.await?;
/// assert_eq!(answer, 42);
/// # Ok(())
/// # }
/// ```
///
/// A handle goes to other threads, and its result with it, so a result that may
/// not cross threads does not compile:
///
/// ```compile_fail,E0277
/// # use netns_exec::{Executor, Netns};
/// # fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
/// executor.spawn(blue, || std::rc::Rc::new(1))?.join()?;
/// # Ok(())
/// # }
/// ```
///
/// The same with one that may:
///
/// ```
/// # use netns_exec::{Executor, Netns};
/// # fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
/// executor.spawn(blue, || std::sync::Arc::new(1))?.join()?;
/// # Ok(())
/// # }
/// ```
///
/// A handle must be used, be it by dropping it:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # use netns_exec::{Executor, Netns};
/// # fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
/// executor.spawn(blue, || 1)?;
/// # Ok(())
/// # }
/// ```
///
/// ```
/// #![deny(unused_must_use)]
/// # use netns_exec::{Executor, Netns};
/// # fn f(executor: &Executor, blue: &Netns) -> netns_exec::Result<()> {
/// drop(executor.spawn(blue, || 1)?);
/// # Ok(())
/// # }
/// ```
#[must_use = "a job's panic is seen by the thread that joins it; drop the handle to say that none does"]
pub struct JoinHandle<T> {
    task: TaskHandle<'static, T>,
}

/// A handle to a job of a [`Scope`](crate::Scope).
///
/// Dropping it lets the job run; the scope waits for it. It is a future as well, for what
/// polls inside the scope.
///
/// There is no scope whose *end* can be awaited. A future can be forgotten half way
/// ([`mem::forget`](std::mem::forget)), and then what its jobs borrow would go away under
/// them; only a call that does not return before keeps it. Async code moves what a job
/// needs into it ([`spawn_async`](crate::Executor::spawn_async), with an
/// [`Arc`](std::sync::Arc) for what is shared), or has a thread of its runtime for blocking
/// work call the scope.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Executor, Netns, ScopedJoinHandle};
///
/// let executor = Executor::new()?;
/// let all = [Netns::open("blue")?, Netns::open("green")?];
/// let wanted = String::from("eth0");
/// executor.scope(|scope| {
///     let look = |netns| scope.spawn(netns, || std::path::Path::new("/sys/class/net").join(&wanted).exists());
///     let handles = all.iter().map(look).collect::<Result<Vec<ScopedJoinHandle<'_, bool>>, _>>()?;
///     for (netns, handle) in all.iter().zip(handles) {
///         println!("{netns}: {}", handle.join()?);
///     }
///     Ok::<_, netns_exec::Error>(())
/// })?;
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub struct ScopedJoinHandle<'s, T> {
    task: TaskHandle<'s, T>,
}

/// Waits until a job is over or `deadline` has passed; tells which.
fn wait<T>(task: &TaskHandle<'_, T>, deadline: Option<Instant>) -> Result<bool> {
    if task.is_over() {
        return Ok(true);
    }
    current::check_may_wait()?;
    if task.depends_on_this_thread() {
        let cause = io::Error::from_raw_os_error(libc::EDEADLK);
        let attempt = "cannot wait for a future on the only thread that can poll it";
        return Err(Error::kernel(attempt, cause).hint("await its handle"));
    }
    Ok(current::blocking(|| {
        let long = Instant::now() + IS_STUCK;
        if deadline.is_none_or(|deadline| deadline > long)
            && !task.wait_until(Some(long))
            && !task.has_started()
        {
            // The worker that is kept says nothing.
            quietly(|| {
                tracing::warn!(
                    for_ms = IS_STUCK.as_millis(),
                    "a job waits behind one that does not end: start what never ends with \
                     `Executor::thread`, or see `workers_per_netns`"
                );
            });
        }
        task.wait_until(deadline)
    }))
}

/// Polls a job that is not over, or takes its result.
fn poll<T>(task: &mut TaskHandle<'_, T>, cx: &mut Context<'_>) -> Poll<Result<T>> {
    if task.poll(cx).is_ready() {
        Polled(&mut task.mark).no_more();
        return Poll::Ready(task.take_result());
    }
    current::check_may_wait()?;
    if !current::is_polling(cx.waker()) {
        Polled(&mut task.mark).in_vain();
    }
    Poll::Pending
}

impl<T> JoinHandle<T> {
    pub(crate) fn new(task: TaskHandle<'static, T>) -> Self {
        JoinHandle { task }
    }

    pub(super) fn abort_task(&self) -> AbortTask
    where
        T: 'static,
    {
        self.task.abort_task()
    }

    /// Waits for the job and returns its result.
    ///
    /// # Blocking
    ///
    /// Blocks until the job is over. May be called inside another job.
    ///
    /// # Errors
    ///
    /// [`is_panic`](crate::Error::is_panic) with the payload when the job panicked,
    /// [`is_cancelled`](crate::Error::is_cancelled) when it never ran, and what the
    /// [`Guard`](crate::Guard) found, see [`Executor::run`](crate::Executor::run).
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns};
    ///
    /// let executor = Executor::new()?;
    /// let handle = executor.spawn(&Netns::current()?, || -> () { panic!("no route") })?;
    /// let error = handle.join().unwrap_err();
    /// assert!(error.is_panic(), "{error}");
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn join(mut self) -> Result<T> {
        wait(&self.task, None)?;
        self.task.take_result()
    }

    /// Waits for the job for at most `timeout`; gives the handle back when the
    /// job was not over by then.
    ///
    /// # Blocking
    ///
    /// Blocks until the job is over or `timeout` has passed.
    ///
    /// # Errors
    ///
    /// The handle, when the time has run out. The inner result is that of
    /// [`join`](JoinHandle::join).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use std::time::Duration;
    /// use netns_exec::{Executor, Netns};
    ///
    /// let executor = Executor::new()?;
    /// let (go, wait) = mpsc::channel();
    /// let handle = executor.spawn(&Netns::current()?, move || wait.recv())?;
    /// // Not yet: the handle comes back.
    /// let handle = handle.join_timeout(Duration::from_millis(1)).unwrap_err();
    /// go.send(42).expect("the job waits");
    /// assert_eq!(handle.join()?, Ok(42));
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn join_timeout(mut self, timeout: Duration) -> Result<Result<T>, JoinHandle<T>> {
        // A time that is out of range is one that never comes.
        let deadline = Instant::now().checked_add(timeout);
        match wait(&self.task, deadline) {
            Ok(true) => Ok(self.task.take_result()),
            Ok(false) => Err(self),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Tells whether the job is over: ended, or cancelled.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::JoinHandle;
    /// # fn f(mut pending: Vec<JoinHandle<u32>>) -> netns_exec::Result<()> {
    /// // Takes what has ended, and looks after the others later.
    /// for handle in pending.extract_if(.., |handle| handle.is_finished()) {
    ///     println!("{}", handle.join()?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_finished(&self) -> bool {
        self.task.is_over()
    }

    /// Cancels the job if it has not started, or the
    /// [future](crate::Executor::spawn_future) if it has not ended; tells whether it did.
    ///
    /// A cancelled job never runs; its closure is dropped on the worker it was
    /// made for, when its turn comes. So is a future, between two polls.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use netns_exec::{Executor, Netns};
    ///
    /// let (executor, here) = (Executor::new()?, Netns::current()?);
    /// let (go, wait) = mpsc::channel::<()>();
    /// let first = executor.spawn(&here, move || wait.recv().is_err())?;
    /// // Queued behind it, for the one worker.
    /// let second = executor.spawn(&here, || unreachable!("it was cancelled"))?;
    /// assert!(second.cancel());
    /// drop(go);
    /// assert!(first.join()?);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn cancel(&self) -> bool {
        self.task.cancel()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T>;

    /// # Panics
    ///
    /// When polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        poll(&mut self.task, cx)
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        // The calling thread's job may have polled it.
        Polled(&mut self.task.mark).no_more();
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle")
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

impl<'s, T> ScopedJoinHandle<'s, T> {
    pub(crate) fn new(task: TaskHandle<'s, T>) -> Self {
        ScopedJoinHandle { task }
    }

    /// Waits for the job and returns its result.
    ///
    /// # Blocking
    ///
    /// Blocks until the job is over.
    ///
    /// # Errors
    ///
    /// See [`JoinHandle::join`].
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns};
    ///
    /// let (executor, here) = (Executor::new()?, Netns::current()?);
    /// let ports = [80, 443];
    /// let sum = executor.scope(|scope| scope.spawn(&here, || ports.iter().sum::<u16>())?.join())?;
    /// assert_eq!(sum, 523);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn join(mut self) -> Result<T> {
        wait(&self.task, None)?;
        self.task.take_result()
    }

    /// Tells whether the job is over: ended, or cancelled.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns};
    ///
    /// let (executor, here) = (Executor::new()?, Netns::current()?);
    /// let done = executor.scope(|scope| {
    ///     let handle = scope.spawn(&here, || 6 * 7)?;
    ///     while !handle.is_finished() {
    ///         std::thread::yield_now(); // or a round of work of its own
    ///     }
    ///     handle.join()
    /// })?;
    /// assert_eq!(done, 42);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_finished(&self) -> bool {
        self.task.is_over()
    }

    /// Cancels the job if it has not started; tells whether it did.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns};
    ///
    /// let (executor, here) = (Executor::new()?, Netns::current()?);
    /// let found = executor.scope(|scope| {
    ///     let handles = (0..4).map(|n| scope.spawn(&here, move || n)).collect::<Result<Vec<_>, _>>()?;
    ///     let mut handles = handles.into_iter();
    ///     let first = handles.next().map(|handle| handle.join());
    ///     // The first answer is enough: what is still queued need not run.
    ///     handles.for_each(|handle| drop(handle.cancel()));
    ///     first.expect("four were asked")
    /// })?;
    /// assert_eq!(found, 0);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn cancel(&self) -> bool {
        self.task.cancel()
    }
}

impl<T> Future for ScopedJoinHandle<'_, T> {
    type Output = Result<T>;

    /// # Panics
    ///
    /// When polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        poll(&mut self.task, cx)
    }
}

impl<T> Drop for ScopedJoinHandle<'_, T> {
    fn drop(&mut self) {
        // The calling thread's job may have polled it.
        Polled(&mut self.task.mark).no_more();
    }
}

impl<T> fmt::Debug for ScopedJoinHandle<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedJoinHandle")
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}
