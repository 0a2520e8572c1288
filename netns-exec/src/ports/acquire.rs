//! A request that is awaited.
//!
//! A request may have to wait for workers and, between laps, for time to pass.
//! It must not do so on the thread that polls, nor on a worker, which may be
//! the very one it needs; so it runs on a short-lived thread of its own, born
//! at home like all others.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;

use parking_lot::Mutex;

use super::cancel::Cancel;
use super::error::Error;
use super::lease::Lease;
use super::plan::Plan;
use super::walk::Walk;
use crate::home::Home;

/// The future of [`Request::acquire_async`](super::Request::acquire_async).
///
/// # Panics
///
/// When polled again after it was ready.
///
/// # Examples
///
/// ```
/// use std::net::Ipv4Addr;
/// use netns_exec::ports::{Acquire, Allocator, Ports, Protocol};
/// use netns_exec::{Executor, Netns};
///
/// let ports = Allocator::new(&Executor::new()?);
/// let pending: Acquire = ports
///     .request(Protocol::Tcp)
///     .on(&Netns::current()?, [Ipv4Addr::LOCALHOST.into()])
///     .ports(Ports::Exact(8080))
///     .acquire_async();
/// // Never polled: nothing was asked for.
/// drop(pending);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a future does nothing until it is polled"]
pub struct Acquire {
    progress: Progress,
    cancel: Cancel,
}

enum Progress {
    New(Box<Plan>),
    Running(Arc<Mutex<Slot>>),
    Done,
}

/// Where the thread leaves the outcome. If the future is gone by then, the
/// last reference drops it, and with it the lease.
#[derive(Default)]
struct Slot {
    outcome: Option<thread::Result<Result<Lease, Error>>>,
    waker: Option<Waker>,
}

impl Acquire {
    pub(super) fn new(mut plan: Plan) -> Acquire {
        // Its own, because dropping one future must not cancel the requests it
        // shares a token with.
        let cancel = plan.cancel.child();
        plan.cancel = cancel.clone();
        Acquire {
            progress: Progress::New(Box::new(plan)),
            cancel,
        }
    }
}

/// Small: a walk over ports needs no deep stack.
const STACK: usize = 128 * 1024;

fn start(plan: Plan) -> Result<Arc<Mutex<Slot>>, Error> {
    plan.check()?;
    let slot = Arc::new(Mutex::new(Slot::default()));
    let reply = slot.clone();
    let drive = move || {
        // A panic is the poller's to see; without it the future would hang.
        let outcome = catch_unwind(AssertUnwindSafe(|| Walk::new(plan).run()));
        let waker = {
            let mut slot = reply.lock();
            slot.outcome = Some(outcome);
            slot.waker.take()
        };
        // Before the waker, so that the outcome is gone if the future is.
        drop(reply);
        if let Some(waker) = waker {
            waker.wake();
        }
    };
    let spawned = Home::get().and_then(|home| {
        home.spawn_thread("netns-lease".to_owned(), Some(STACK), drive)
            .map_err(|cause| crate::Error::kernel("cannot start a thread", cause))
    });
    match spawned {
        Ok(_detached) => Ok(slot),
        Err(cause) => Err(Error::thread(cause)),
    }
}

impl Future for Acquire {
    type Output = Result<Lease, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Progress::New(_) = this.progress {
            let Progress::New(plan) = std::mem::replace(&mut this.progress, Progress::Done) else {
                unreachable!("just matched");
            };
            match start(*plan) {
                Ok(slot) => this.progress = Progress::Running(slot),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let Progress::Running(slot) = &this.progress else {
            panic!("polled after it was ready");
        };
        let mut slot = slot.lock();
        match slot.outcome.take() {
            Some(outcome) => {
                drop(slot);
                this.progress = Progress::Done;
                Poll::Ready(outcome.unwrap_or_else(|panic| resume_unwind(panic)))
            }
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl fmt::Debug for Acquire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acquire")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn future_and_lease_may_move_between_threads() {
        fn check<T: Send + Unpin + 'static>() {}
        check::<Acquire>();
        check::<Lease>();
        fn check_sync<T: Sync>() {}
        check_sync::<Lease>();
    }
}
