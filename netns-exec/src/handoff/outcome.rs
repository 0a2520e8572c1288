//! How a job ended, and the one door through which a worker runs user code.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, LeftThread};
use crate::guard::{ThreadGuard, ThreadState};

/// How a job ended.
pub(crate) enum Outcome<T> {
    Returned(T),
    Panicked(Box<dyn Any + Send>),
    /// It never ran.
    Aborted(Error),
    /// It ended one way or the other, and did what the guard forbids.
    Violated(Box<Violation<T>>),
}

/// What the guard found after a job.
pub(crate) struct Violation<T> {
    pub(crate) found: Finding,
    pub(crate) result: Result<T, Box<dyn Any + Send>>,
}

pub(crate) enum Finding {
    Escaped,
    LeftThreads(Vec<LeftThread>),
    /// The job panicked over something the guard refused.
    Refused,
    /// Where the job left its thread could not be found out.
    Unknown(io::Error),
}

/// Where jobs run: what a worker brings along for them.
pub(crate) struct Site {
    pub(crate) guard: ThreadGuard,
    pub(crate) counters: Arc<Counters>,
}

/// What a worker has done. Written by the worker only, before the job's owner is
/// told, so that a caller that saw a job end finds it counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    started: AtomicU64,
    done: AtomicU64,
    panicked: AtomicU64,
}

impl Counters {
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn panicked(&self) -> u64 {
        self.panicked.load(Ordering::Relaxed)
    }

    pub(crate) fn is_running(&self) -> bool {
        // `done` first: a job that ends in between is counted, not missed.
        let done = self.done();
        self.started.load(Ordering::Relaxed) > done
    }

    /// One writer, so that no read-modify-write is needed.
    fn bump(counter: &AtomicU64) {
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// What a worker needs to know of a job it ran.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct After {
    /// The thread must run nothing any more.
    pub(crate) spoiled: bool,
    /// It did not end with a plain value.
    pub(crate) boxed: bool,
}

impl After {
    pub(crate) fn of<T>(outcome: &Outcome<T>) -> After {
        match outcome {
            Outcome::Returned(_) | Outcome::Aborted(_) => After::default(),
            Outcome::Panicked(_) => After {
                spoiled: false,
                boxed: true,
            },
            Outcome::Violated(violation) => After {
                spoiled: !matches!(violation.found, Finding::Refused),
                boxed: true,
            },
        }
    }
}

/// Calls `f` on the worker's thread, and has the guard look at what it did.
pub(crate) fn call<T>(f: impl FnOnce() -> T, site: &mut Site) -> Outcome<T> {
    Counters::bump(&site.counters.started);
    site.guard.before_job();
    // The caller gets the payload and decides; nothing of `f` is seen again.
    let result = catch_unwind(AssertUnwindSafe(f));
    let state = site.guard.after_job();
    if result.is_err() {
        Counters::bump(&site.counters.panicked);
    }
    Counters::bump(&site.counters.done);
    let found = match state {
        ThreadState::Clean => match result {
            Ok(value) => return Outcome::Returned(value),
            Err(panic) if site.guard.explains(&*panic) => {
                return Outcome::Violated(Box::new(Violation {
                    found: Finding::Refused,
                    result: Err(panic),
                }));
            }
            Err(panic) => return Outcome::Panicked(panic),
        },
        ThreadState::Escaped => Finding::Escaped,
        ThreadState::Unknown(cause) => Finding::Unknown(cause),
        ThreadState::LeftThreads(threads) => Finding::LeftThreads(threads),
    };
    Outcome::Violated(Box::new(Violation { found, result }))
}

/// Drops `value`, which may run code of the user's that panics, and the
/// payload's own drop may too.
pub(crate) fn drop_quietly<T>(value: T) {
    let mut panic = match catch_unwind(AssertUnwindSafe(|| drop(value))) {
        Ok(()) => return,
        Err(panic) => panic,
    };
    while let Err(next) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        panic = next;
    }
}
