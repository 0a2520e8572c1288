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

use super::Error;
use super::cancel::Cancel;
use super::lease::Lease;
use super::request::Request;
use crate::home::Home;

/// The future of [`Request::acquire_async`].
///
/// # Panics
///
/// When polled again after it was ready.
#[must_use = "a future does nothing until it is polled"]
pub struct Acquire {
    state: State,
    cancel: Cancel,
}

enum State {
    New(Box<Request>),
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
    pub(super) fn new(mut request: Request) -> Acquire {
        // Its own, because dropping one future must not cancel the requests it
        // shares a token with.
        let cancel = request.cancel.child();
        request.cancel = cancel.clone();
        Acquire {
            state: State::New(Box::new(request)),
            cancel,
        }
    }
}

/// Small: a walk over ports needs no deep stack.
const STACK: usize = 128 * 1024;

fn start(request: Request) -> Result<Arc<Mutex<Slot>>, Error> {
    request.check()?;
    let slot = Arc::new(Mutex::new(Slot::default()));
    let reply = slot.clone();
    let drive = move || {
        // A panic is the poller's to see; without it the future would hang.
        let outcome = catch_unwind(AssertUnwindSafe(|| request.acquire()));
        let waker = {
            let mut slot = reply.lock();
            slot.outcome = Some(outcome);
            slot.waker.take()
        };
        // Before the waker, so that the outcome is gone if nobody wants it.
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
        if let State::New(_) = this.state {
            let State::New(request) = std::mem::replace(&mut this.state, State::Done) else {
                unreachable!("just matched");
            };
            match start(*request) {
                Ok(slot) => this.state = State::Running(slot),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let State::Running(slot) = &this.state else {
            panic!("polled after it was ready");
        };
        let mut slot = slot.lock();
        match slot.outcome.take() {
            Some(outcome) => {
                drop(slot);
                this.state = State::Done;
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
