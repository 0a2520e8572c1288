//! The handle to a spawned job: join, await, cancel.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::executor::worker;
use crate::guard;
use crate::handoff::outcome::{Finding, Outcome, Violation};
use crate::handoff::task::TaskHandle;

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
#[must_use = "a job's panic is seen by whoever joins it; drop the handle to say that nobody does"]
pub struct JoinHandle<T> {
    ticket: TaskHandle<'static, T>,
}

/// A handle to a job of a [`Scope`](crate::Scope).
///
/// Dropping it lets the job run; the scope waits for it.
///
/// # Examples
///
/// See [`Executor::scope`](crate::Executor::scope).
pub struct ScopedJoinHandle<'s, T> {
    ticket: TaskHandle<'s, T>,
}

/// What joining a job gives: its value, or why there is none.
fn join_result<T>(ticket: &mut TaskHandle<'_, T>) -> Result<T> {
    let pack = ticket.pack();
    match ticket.take_outcome() {
        Some(Outcome::Returned(value)) => Ok(value),
        Some(Outcome::Panicked(panic)) => Err(Error::panicked("job panicked", panic)),
        Some(Outcome::Aborted(error)) => Err(error),
        Some(Outcome::Violated(violation)) => Err(violated(*violation, pack)),
        None => Err(Error::new(
            Kind::Cancelled,
            "job cancelled before it started",
        )),
    }
}

/// What `run` gives: a panic goes on in the caller.
pub(crate) fn run_result<T>(outcome: Outcome<T>) -> Result<T> {
    match outcome {
        Outcome::Returned(value) => Ok(value),
        Outcome::Panicked(panic) => resume_unwind(panic),
        Outcome::Aborted(error) => Err(error),
        Outcome::Violated(violation) => Err(violated(*violation, |_| None)),
    }
}

fn violated<T>(violation: Violation<T>, pack: fn(T) -> Option<Box<dyn Any + Send>>) -> Error {
    let error = match violation.found {
        Finding::Escaped => Error::new(
            Kind::Escaped,
            "job left its thread in another network namespace; the thread has been retired",
        )
        .hint("a job must not call setns(2) or unshare(2); run it in the other namespace instead"),
        Finding::Refused => Error::new(
            Kind::Refused,
            "job panicked over something that the guard refused",
        )
        .hint(guard::CURE),
        Finding::Unknown(cause) => Error::new(
            Kind::Escaped,
            "cannot tell whether the job left its thread in place; the thread has been retired",
        )
        .caused_by(cause),
        Finding::LeftThreads(threads) => Error::left_threads(&threads),
    };
    match violation.result {
        Ok(value) => match pack(value) {
            Some(value) => error.with_result(value),
            None => error,
        },
        Err(panic) => error.with_panic(panic),
    }
}

impl<T> JoinHandle<T> {
    pub(crate) fn new(ticket: TaskHandle<'static, T>) -> Self {
        JoinHandle { ticket }
    }

    /// Waits for the job and returns its result.
    ///
    /// # Blocking
    ///
    /// Blocks until the job is over. May be called inside another job.
    ///
    /// # Errors
    ///
    /// [`is_panic`](Error::is_panic) with the payload when the job panicked,
    /// [`is_cancelled`](Error::is_cancelled) when it never ran, and what the
    /// [`Guard`](crate::Guard) found, see [`Executor::run`](crate::Executor::run).
    pub fn join(mut self) -> Result<T> {
        if !self.ticket.is_over() {
            worker::blocking(|| self.ticket.wait_until(None));
        }
        join_result(&mut self.ticket)
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
    pub fn join_timeout(mut self, timeout: Duration) -> Result<Result<T>, JoinHandle<T>> {
        // A time that is out of range is one that never comes.
        let deadline = Instant::now().checked_add(timeout);
        if worker::blocking(|| self.ticket.wait_until(deadline)) {
            Ok(join_result(&mut self.ticket))
        } else {
            Err(self)
        }
    }

    /// Tells whether the job is over: ended, or cancelled.
    pub fn is_finished(&self) -> bool {
        self.ticket.is_over()
    }

    /// Cancels the job if it has not started; tells whether it did.
    ///
    /// A cancelled job never runs; its closure is dropped on the worker it was
    /// made for, when its turn comes.
    pub fn cancel(&self) -> bool {
        self.ticket.cancel()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T>;

    /// # Panics
    ///
    /// When polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        ready!(self.ticket.poll(cx));
        Poll::Ready(join_result(&mut self.ticket))
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
    pub(crate) fn new(ticket: TaskHandle<'s, T>) -> Self {
        ScopedJoinHandle { ticket }
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
    pub fn join(mut self) -> Result<T> {
        if !self.ticket.is_over() {
            worker::blocking(|| self.ticket.wait_until(None));
        }
        join_result(&mut self.ticket)
    }

    /// Tells whether the job is over: ended, or cancelled.
    pub fn is_finished(&self) -> bool {
        self.ticket.is_over()
    }

    /// Cancels the job if it has not started; tells whether it did.
    pub fn cancel(&self) -> bool {
        self.ticket.cancel()
    }
}

impl<T> fmt::Debug for ScopedJoinHandle<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedJoinHandle")
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}
