//! One turn: one method of calling into a namespace, timed in one regime.
//!
//! Every turn has a calling thread of its own, that ends with it. setns there
//! and back needs that, for a failure to come back must not leave a thread
//! astray that other code runs on; and the others get the same.

use std::fs::File;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use netns_exec::{Executor, Netns, Pinned};
use netns_exec_measure::{Extent, apart, back_to_back};
use nix::sched::{CloneFlags, setns};
use serde::Serialize;

use crate::failure::Failure;

/// How a closure gets into the namespace.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Method {
    /// To a resident worker, through the handle that knows it.
    PinnedRun,
    /// To the same worker, looked up by its namespace.
    ExecutorRun,
    /// With the calling thread, which goes there and comes back.
    SetnsInPlace,
    /// On a thread that is made for it, goes there and ends.
    ThreadPerCall,
}

impl Method {
    pub(super) const ALL: [Method; 4] = [
        Method::PinnedRun,
        Method::ExecutorRun,
        Method::SetnsInPlace,
        Method::ThreadPerCall,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Method::PinnedRun => "Pinned::run",
            Method::ExecutorRun => "Executor::run",
            Method::SetnsInPlace => "setns in place",
            Method::ThreadPerCall => "thread per call",
        }
    }
}

/// What the caller does between two calls.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Regime {
    /// Nothing: it calls back to back.
    Hot,
    /// It sleeps for [`GAP`], so that the worker does too.
    Parked,
}

impl Regime {
    pub(super) const ALL: [Regime; 2] = [Regime::Hot, Regime::Parked];

    pub(super) fn label(self) -> &'static str {
        match self {
            Regime::Hot => "hot",
            Regime::Parked => "parked",
        }
    }
}

/// What wakes the worker where it sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WokenBy {
    /// An answer to its seccomp user notification.
    Bell,
    /// A futex, where the kernel or a limit allows nothing better.
    Futex,
}

impl WokenBy {
    pub(super) fn label(self) -> &'static str {
        match self {
            WokenBy::Bell => "the bell (seccomp user notification)",
            WokenBy::Futex => "a futex",
        }
    }
}

/// Between two calls of [`Regime::Parked`], and before each turn: time for a
/// worker that still spins after its last turn to fall asleep.
const GAP: Duration = Duration::from_millis(1);

/// A namespace, and all that is needed to get there by each method.
pub(super) struct Setup {
    ns: Netns,
    /// Where the calling threads are born.
    back: File,
    executor: Executor,
    pinned: Pinned,
}

impl Setup {
    /// Starts the worker, and sees that every method leads to the namespace.
    pub(super) fn open(ns: Netns) -> Result<Setup, Failure> {
        ns.check_enter()?;
        let own = "/proc/thread-self/ns/net";
        let back =
            File::open(own).map_err(|error| Failure::io(format!("cannot open {own}"), error))?;
        let executor = Executor::new()?;
        let pinned = executor.pin(&ns)?;
        let setup = Setup {
            ns,
            back,
            executor,
            pinned,
        };
        for method in Method::ALL {
            let current = || setup.call(method, Netns::current);
            let current = on_a_thread_of_its_own(current)??;
            if current != setup.ns {
                return Err(Failure::new(format!(
                    "{} called into netns `{current}` instead of `{}`",
                    method.label(),
                    setup.ns
                )));
            }
        }
        Ok(setup)
    }

    /// Takes one turn of about this length, and returns the nanoseconds a call:
    /// one sample at least.
    pub(super) fn turn(
        &self,
        method: Method,
        regime: Regime,
        length: Duration,
    ) -> Result<Vec<f64>, Failure> {
        on_a_thread_of_its_own(|| {
            thread::sleep(GAP);
            match regime {
                Regime::Hot => back_to_back(length / 4, length - length / 4, |calls| {
                    (0..calls).try_for_each(|_| self.call(method, || ()))
                }),
                Regime::Parked => apart(
                    Extent::Time(length),
                    || thread::sleep(GAP),
                    || self.call(method, || ()),
                ),
            }
        })
    }

    /// What wakes the worker.
    pub(super) fn woken_by(&self) -> WokenBy {
        let stats = self.executor.stats();
        match stats.per_netns.iter().any(|netns| netns.rung > 0) {
            true => WokenBy::Bell,
            false => WokenBy::Futex,
        }
    }

    /// Ends the worker and waits for it.
    pub(super) fn close(self) -> Result<(), Failure> {
        drop(self.pinned);
        Ok(self.executor.shutdown(None)?)
    }

    /// Calls `f` in the namespace. Only on a thread that ends afterwards.
    fn call<T: Send>(&self, method: Method, f: impl FnOnce() -> T + Send) -> Result<T, Failure> {
        match method {
            Method::PinnedRun => Ok(self.pinned.run(f)?),
            Method::ExecutorRun => Ok(self.executor.run(&self.ns, f)?),
            Method::SetnsInPlace => {
                self.enter()?;
                let result = f();
                self.come_back()?;
                Ok(result)
            }
            Method::ThreadPerCall => on_a_thread_of_its_own(|| {
                self.enter()?;
                Ok(f())
            }),
        }
    }

    fn enter(&self) -> Result<(), Failure> {
        setns(self.ns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| {
            Failure::io(format!("cannot enter netns `{}` in place", self.ns), errno)
                .hint("setns(2) takes CAP_SYS_ADMIN, even to where one is: run this as root")
        })
    }

    fn come_back(&self) -> Result<(), Failure> {
        setns(&self.back, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            let attempt = format!("cannot come back from netns `{}`", self.ns);
            Failure::io(attempt, errno).hint(
                "setns in place takes CAP_SYS_ADMIN over the own namespace too, which a worker \
                 does not: bring one of your own, `unshare --net netns-exec bench`",
            )
        })
    }
}

/// Calls `f` on a thread that is made for it, and waits until that has ended.
fn on_a_thread_of_its_own<T: Send>(
    f: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    thread::scope(|scope| {
        let thread = (thread::Builder::new().spawn_scoped(scope, f))
            .map_err(|error| Failure::io("cannot start a thread", error))?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}
