//! How a job ended, and the one door through which a worker runs user code.
//!
//! User code is more than a job's closure: the drop of what it captured or returned,
//! of a panic's payload, a waker, a tracing subscriber. All of it that runs on a
//! worker goes through a [`Door`]: under a catch, and with the guard looking at what
//! it has done before anything else runs there.

use std::any::Any;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use super::at::At;
use crate::bell::ear::Listened;
use crate::error::{Error, Kind, LeftThread};
use crate::guard::{ThreadGuard, ThreadState};
use crate::payload::{Payload, discard};
use crate::refused::Refused;

/// How a job ended.
pub(crate) enum Outcome<T> {
    Returned(T),
    /// Boxed, as is what else is rare: a result is moved from place to place.
    Panicked(Box<Panic>),
    /// It never ran.
    Aborted(Error),
    /// It ended one way or the other, and did what the guard forbids.
    Violated(Box<Violation<T>>),
}

/// The panic that a job ended with.
pub(crate) struct Panic {
    pub(crate) payload: Payload,
    /// So often was the job refused what it asked for.
    pub(crate) refused: Refused,
}

/// What the guard found after a job.
pub(crate) struct Violation<T> {
    pub(crate) finding: Finding,
    pub(crate) result: Result<T, Payload>,
}

pub(crate) enum Finding {
    Escaped,
    /// The thread has something that the process has not: what.
    Altered(&'static str),
    LeftThreads(Vec<LeftThread>),
    /// Where the job left its thread could not be found out.
    Unknown(io::Error),
}

/// Turns a result into something that an error can carry.
pub(crate) type Pack<T> = fn(T) -> Option<Box<dyn Any + Send>>;

impl<T> Outcome<T> {
    pub(crate) fn violated(finding: Finding, result: Result<T, Payload>) -> Outcome<T> {
        Outcome::Violated(Box::new(Violation { finding, result }))
    }

    /// What joining the job gives: its value, or why there is none.
    pub(crate) fn into_join_result(self, pack: Pack<T>) -> Result<T, Error> {
        match self {
            Outcome::Returned(value) => Ok(value),
            Outcome::Panicked(panic) => {
                Err(Error::panicked("job panicked", panic.payload).beside(panic.refused))
            }
            Outcome::Aborted(error) => Err(error),
            Outcome::Violated(violation) => Err(violation.into_error(pack)),
        }
    }

    /// What the caller that waited for the job is given: its panic goes on there.
    pub(crate) fn into_run_result(self) -> Result<T, Error> {
        match self {
            Outcome::Panicked(panic) => resume_unwind(panic.payload),
            other => other.into_join_result(|_| None),
        }
    }
}

/// Why a job has no outcome whose thread has ended.
#[cold]
pub(crate) fn thread_ended() -> Error {
    Error::new(
        Kind::Escaped,
        "job ended its thread by exit(2), or its thread was killed: it has no result",
    )
}

impl Finding {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Finding::Escaped => Error::new(
                Kind::Escaped,
                "job left its thread in another network namespace; the thread has been retired",
            )
            .hint(
                "a job must not call setns(2) or unshare(2); run it in the other namespace instead",
            ),
            Finding::Altered(with) => Error::new(
                Kind::Escaped,
                format!("job left its thread with {with}; the thread has been retired"),
            )
            .hint("what a job changes for its thread alone, the next one would find: use a thread of your own"),
            Finding::Unknown(cause) => Error::new(
                Kind::Escaped,
                "cannot tell whether the job left its thread in place; the thread has been retired",
            )
            .caused_by(cause),
            Finding::LeftThreads(threads) => Error::left_threads(&threads),
        }
    }
}

impl<T> Violation<T> {
    fn into_error(self, pack: Pack<T>) -> Error {
        let error = self.finding.into_error();
        match self.result {
            Ok(value) => match pack(value) {
                Some(value) => error.with_result(value),
                None => error,
            },
            Err(panic) => error.with_panic(panic),
        }
    }
}

/// What a worker has done. Written by the worker only, before the job's owner is
/// told, so that a caller that saw a job end finds it counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    started: AtomicU64,
    done: AtomicU64,
    panicked: AtomicU64,
    at: At,
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

    /// Where the worker says which job of the queue it is at.
    #[inline]
    pub(super) fn at(&self) -> &At {
        &self.at
    }

    /// What was started waits, and is counted again when it goes on.
    fn suspend(&self) {
        let started = self.started.load(Ordering::Relaxed);
        self.started.store(started - 1, Ordering::Relaxed);
    }

    /// One writer, so that no read-modify-write is needed.
    #[inline]
    fn bump(counter: &AtomicU64) {
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// Where user code runs on a worker, see the module.
pub(crate) struct Door {
    guard: ThreadGuard,
    counters: Arc<Counters>,
    /// The thread must run nothing any more.
    spoiled: bool,
    /// What the guard refused to the last user code that ran.
    refused: Refused,
    /// How often it has refused something since this was asked for.
    refusals: u64,
    tripwire: Tripwire,
}

impl Door {
    pub(crate) fn new(guard: ThreadGuard, counters: Arc<Counters>) -> Door {
        Door {
            guard,
            counters,
            spoiled: false,
            refused: Refused::default(),
            refusals: 0,
            tripwire: Tripwire::here(),
        }
    }

    /// Whether the guard found the thread unfit for anything else.
    #[inline]
    pub(crate) fn is_spoiled(&self) -> bool {
        self.spoiled
    }

    /// Where it says which job the thread is at.
    #[inline]
    pub(super) fn at(&self) -> &At {
        self.counters.at()
    }

    /// Runs a job's closure. The verdict is the job's.
    #[inline]
    pub(crate) fn call<T>(&mut self, f: impl FnOnce() -> T) -> Outcome<T> {
        self.watched(f, |_| true)
    }

    /// Polls a future, which is a job that ends with its last poll.
    #[inline]
    pub(crate) fn poll<T>(&mut self, f: impl FnOnce() -> Poll<T>) -> Outcome<Poll<T>> {
        self.watched(f, Poll::is_ready)
    }

    #[inline]
    fn watched<T>(
        &mut self,
        f: impl FnOnce() -> T,
        is_over: impl FnOnce(&T) -> bool,
    ) -> Outcome<T> {
        Counters::bump(&self.counters.started);
        self.before_job();
        // The caller gets the payload and decides; nothing of `f` is seen again.
        let result = catch_unwind(AssertUnwindSafe(f));
        let verdict = self.after_job();
        match &result {
            Ok(value) if matches!(verdict, ThreadState::Clean) && !is_over(value) => {
                self.counters.suspend();
            }
            Ok(_) => Counters::bump(&self.counters.done),
            Err(_) => {
                Counters::bump(&self.counters.panicked);
                Counters::bump(&self.counters.done);
            }
        }
        let finding = match verdict {
            ThreadState::Clean => {
                return match result {
                    Ok(value) => Outcome::Returned(value),
                    Err(payload) => Outcome::Panicked(Box::new(Panic {
                        payload,
                        refused: self.refused,
                    })),
                };
            }
            ThreadState::Escaped => Finding::Escaped,
            ThreadState::Altered(with) => Finding::Altered(with),
            ThreadState::Unknown(cause) => Finding::Unknown(cause),
            ThreadState::LeftThreads(threads) => Finding::LeftThreads(threads),
        };
        self.spoiled = true;
        Outcome::violated(finding, result)
    }

    /// Runs what is no job's closure, such as a drop or a waker: `what` says which.
    /// `None` when it panicked. What it did wrong is told in the log, since no caller
    /// waits for it, and a thread that it spoiled runs nothing after that.
    pub(crate) fn run<R>(&mut self, what: &'static str, f: impl FnOnce() -> R) -> Option<R> {
        let (result, verdict) = self.look_after(f);
        if result.is_none() {
            self.report(|| tracing::error!(what, "panic on a worker, outside of a job"));
        }
        if !matches!(verdict, ThreadState::Clean) {
            self.report(|| tracing::error!(what, ?verdict, "guard broken outside of a job"));
        }
        result
    }

    /// Tells the tracing subscriber of something, which is the user's code as well.
    /// `None` when it panicked: of its own faults it is not told.
    pub(crate) fn report<R>(&mut self, event: impl FnOnce() -> R) -> Option<R> {
        self.look_after(event).0
    }

    /// Runs `f` as a job's closure is run, with no caller to be told.
    fn look_after<R>(&mut self, f: impl FnOnce() -> R) -> (Option<R>, ThreadState) {
        self.before_job();
        let result = catch_unwind(AssertUnwindSafe(f));
        let result = result.map_err(discard).ok();
        let verdict = self.after_job();
        self.spoiled |= !matches!(verdict, ThreadState::Clean);
        (result, verdict)
    }

    #[inline]
    fn before_job(&mut self) {
        if !self.spoiled {
            self.tripwire.check();
        }
        self.guard.before_job();
    }

    #[inline]
    fn after_job(&mut self) -> ThreadState {
        #[cfg(loom)]
        if SPOILED.with(|it| it.replace(false)) {
            return ThreadState::Escaped;
        }
        let verdict = self.guard.after_job();
        self.refused = self.guard.refused();
        if !self.refused.is_none() {
            self.note_refusals();
        }
        verdict
    }

    #[cold]
    fn note_refusals(&mut self) {
        self.refusals += self.refused.total();
        if let Some(listened) = self.guard.listened() {
            listened.bell().tell_of_refusals_anew();
        }
    }

    /// How often the guard has refused something since the last time that this was asked.
    pub(crate) fn take_refusals(&mut self) -> u64 {
        mem::take(&mut self.refusals)
    }

    /// What hears of the thread's traps, by which it can be woken.
    pub(crate) fn listened(&self) -> Option<&Listened> {
        self.guard.listened()
    }

    /// What the thread's guard has to do without, if anything.
    pub(crate) fn guards_lack(&self) -> Option<&'static str> {
        self.guard.lack()
    }

    /// Puts right, before the worker sleeps, what jobs may have changed; `false` when
    /// the thread is unfit for more.
    pub(crate) fn before_park(&mut self) -> bool {
        let verdict = self.guard.before_park();
        if !matches!(verdict, ThreadState::Clean) {
            self.spoiled = true;
            // No job's owner is told: which one has done it is not known any more.
            self.report(|| {
                tracing::warn!(?verdict, "worker found unfit when it had nothing to do")
            });
        }
        !self.spoiled
    }
}

/// Ends a debug build in which user code is about to run in another namespace than the
/// worker's: what invariant 1 says cannot be.
struct Tripwire {
    #[cfg(all(debug_assertions, not(loom)))]
    home: Option<crate::sys::task::NsLink>,
}

impl Tripwire {
    fn here() -> Tripwire {
        Tripwire {
            #[cfg(all(debug_assertions, not(loom)))]
            home: crate::sys::task::netns_of_this_thread(),
        }
    }

    #[inline]
    fn check(&self) {
        #[cfg(all(debug_assertions, not(loom)))]
        if let Some(home) = &self.home
            && let Some(here) = crate::sys::task::netns_of_this_thread()
            && here != *home
        {
            eprintln!("netns-exec: user code of {home:?} was about to run in {here:?}");
            std::process::abort();
        }
    }
}

#[cfg(loom)]
crate::sync::local! {
    static SPOILED: std::cell::Cell<bool> = std::cell::Cell::new(false);
}

/// In a model, where no thread can be moved: the guard finds that this job has done it.
#[cfg(loom)]
pub(crate) fn spoil() {
    SPOILED.with(|it| it.set(true));
}

#[cfg(test)]
impl Door {
    /// A door on the calling thread, which is where it belongs.
    pub(crate) fn here() -> Door {
        use crate::guard::{Guard, Policy};
        use crate::home::roster;

        let policy = Policy::prepare(Guard::Off).unwrap();
        let id = crate::netns::Netns::current().unwrap().id();
        let guard = policy.install(roster::sign_in(id)).unwrap();
        Door::new(guard, Arc::default())
    }
}
