//! Giving up a request from another thread.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::executor::current;

/// Gives up the requests it was handed to with
/// [`Request::cancel`](super::Request::cancel), from any thread.
///
/// # Examples
///
/// ```
/// use std::net::Ipv4Addr;
/// use std::time::Duration;
/// use netns_exec::ports::{Allocator, Cancel, Gate, Ports, Protocol};
/// use netns_exec::{Executor, Netns};
///
/// let here = Netns::current()?;
/// let ports = Allocator::new(&Executor::new()?);
/// let request = |ports: &Allocator| {
///     let request = ports.request(Protocol::Udp).gate(Gate::Queue);
///     request.on(&here, [Ipv4Addr::LOCALHOST.into()])
/// };
/// let lease = request(&ports).ports(Ports::Dynamic { of: &here }).acquire()?;
///
/// let give_up = Cancel::new();
/// let waits = request(&ports)
///     .ports(Ports::Exact(lease.port()))
///     .retry_for(Duration::from_secs(600))
///     .cancel(&give_up);
/// let waiting = std::thread::spawn(|| waits.acquire());
/// give_up.cancel();
/// assert!(waiting.join().unwrap().unwrap_err().is_cancelled());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Token>);

/// How long a request may wait for something else.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    pub(crate) cancel: Cancel,
    pub(crate) deadline: Option<Instant>,
}

/// Why a wait was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GivenUp {
    Cancelled,
    Deadline,
}

impl Patience {
    /// Without a bound.
    pub(crate) fn endless() -> Patience {
        Patience {
            cancel: Cancel::new(),
            deadline: None,
        }
    }

    /// Whether there is some left.
    pub(crate) fn check(&self) -> Result<(), GivenUp> {
        if self.cancel.is_cancelled() {
            return Err(GivenUp::Cancelled);
        }
        match self.deadline {
            Some(end) if Instant::now() >= end => Err(GivenUp::Deadline),
            _ => Ok(()),
        }
    }

    /// As much of `time` as the deadline leaves.
    pub(crate) fn bound(&self, time: Duration) -> Duration {
        let left = |end: Instant| end.saturating_duration_since(Instant::now());
        self.deadline.map_or(time, |end| time.min(left(end)))
    }
}

#[derive(Debug, Default)]
struct Token {
    state: Mutex<TokenState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct TokenState {
    cancelled: bool,
    /// Cancelled along with this one.
    children: Vec<Weak<Token>>,
}

impl Cancel {
    /// Makes a token that no request knows yet.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::ports::Cancel;
    ///
    /// assert!(!Cancel::new().is_cancelled());
    /// ```
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Makes the requests end with
    /// [`ErrorKind::Cancelled`](super::ErrorKind::Cancelled), and give back
    /// what they have so far. A lease that exists is not touched.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Cancel, Request};
    /// # fn f(request: Request) {
    /// let shutdown = Cancel::new();
    /// let request = request.cancel(&shutdown);
    /// // From a signal's thread, say.
    /// shutdown.cancel();
    /// assert!(request.acquire().unwrap_err().is_cancelled());
    /// # }
    /// ```
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// Tells whether [`cancel`](Self::cancel) was called.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::ports::Cancel;
    ///
    /// let shutdown = Cancel::new();
    /// let elsewhere = shutdown.clone();
    /// shutdown.cancel();
    /// assert!(elsewhere.is_cancelled());
    /// ```
    pub fn is_cancelled(&self) -> bool {
        self.0.state.lock().cancelled
    }

    /// Makes a token that is cancelled with this one, or alone.
    pub(crate) fn child(&self) -> Cancel {
        let child = Cancel::new();
        let mut state = self.0.state.lock();
        if state.cancelled {
            child.cancel();
        } else {
            state.children.retain(|child| child.strong_count() > 0);
            state.children.push(Arc::downgrade(&child.0));
        }
        drop(state);
        child
    }

    /// Sleeps for `pause`, or less when cancelled. A worker that does this, in a
    /// job that asks for a port, lets another one serve its namespace meanwhile.
    pub(crate) fn sleep(&self, pause: Duration) {
        current::blocking(|| {
            let mut state = self.0.state.lock();
            (self.0.changed).wait_while_for(&mut state, |state| !state.cancelled, pause);
        });
    }
}

impl Token {
    fn cancel(&self) {
        let mut state = self.state.lock();
        state.cancelled = true;
        let children = std::mem::take(&mut state.children);
        drop(state);
        self.changed.notify_all();
        for child in children.iter().filter_map(Weak::upgrade) {
            child.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_is_cancelled_with_its_parent_and_not_the_other_way_round() {
        let parent = Cancel::new();
        let (first, second) = (parent.child(), parent.child());
        first.cancel();
        assert!(!parent.is_cancelled() && !second.is_cancelled());
        parent.cancel();
        assert!(second.is_cancelled());
        assert!(parent.child().is_cancelled());
    }

    #[test]
    fn sleeper_wakes_when_cancelled() {
        let cancel = Cancel::new();
        let sleeper = cancel.child();
        let thread = std::thread::spawn(move || sleeper.sleep(Duration::MAX / 4));
        cancel.cancel();
        thread.join().expect("it woke");
    }
}
