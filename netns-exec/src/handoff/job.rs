//! Jobs in one word, and those on the stack of a caller that waits for them.
//!
//! A [`JobRef`] is one word that points at a job's [`Header`], wherever the job
//! lives; behind it the closure's type and lifetime are erased. The owner of the
//! `JobRef` owes the job exactly one of [`execute`](JobRef::execute) and
//! [`abort`](JobRef::abort): until then the job stays where it is, and after it the
//! job may be gone.
//!
//! A job whose thread ends while it executes it is [lost](lose), see `at`.
//!
//! | job          | lives                         | stays because                           |
//! |--------------|-------------------------------|-----------------------------------------|
//! | [`StackJob`] | on the caller's stack         | its caller waits on the job's latch     |
//! | `HeapJob`, see `task` | in a box, 1 allocation | the `JobRef` owns one of its references |
//! | `FutureJob`, see `future` | behind an `Arc`, 1 allocation | the `JobRef` of a poll owns a reference |
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::latch::Latch;
use super::outcome::{Counters, Door, Outcome, thread_ended};
use crate::bell::Ended;
use crate::error::{Error, Kind};
use crate::sync::UnsafeCell;

pub(super) struct Vtable {
    /// Says through the door's [`At`](super::at::At) when the job is over.
    pub(super) execute: unsafe fn(NonNull<Header>, &mut Door),
    pub(super) abort: unsafe fn(NonNull<Header>, Error),
    /// In the place of the thread that was to `execute` it, and has ended meanwhile: what
    /// that has moved to its stack is never dropped.
    pub(super) lose: unsafe fn(NonNull<Header>, Error),
    pub(super) kind: JobKind,
}

/// What a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobKind {
    /// A caller waits for it alone, and may have the next one at once.
    Call,
    /// One of many, or its owner goes on meanwhile.
    Task,
    /// A poll of a future, which may be one of many.
    Poll,
}

/// The first field of every job.
pub(super) struct Header {
    vtable: &'static Vtable,
    /// Since when it waits in a queue, on the queue's clock. Here, where both sides look
    /// anyway, it takes no room in the queue: four jobs share a line of that.
    since: AtomicU64,
}

impl Header {
    #[inline]
    pub(super) const fn new(vtable: &'static Vtable) -> Header {
        Header {
            vtable,
            since: AtomicU64::new(0),
        }
    }
}

/// One word that stands for a job, see the module.
///
/// A job whose reference is dropped has been aborted: no early return and no panic
/// can lose its owner.
pub(crate) struct JobRef {
    job: NonNull<Header>,
}

// SAFETY: jobs are made of closures and results that are `Send`, see
// `StackJob::new` and `HeapJob::new`.
unsafe impl Send for JobRef {}

impl JobRef {
    /// # Safety
    ///
    /// The job is live, and stays so until it has been executed or aborted; there is
    /// no other reference to it.
    pub(super) unsafe fn new(job: NonNull<Header>) -> JobRef {
        JobRef { job }
    }

    /// Tells jobs apart that are there at the same time.
    pub(crate) fn address(&self) -> usize {
        self.job.addr().get()
    }

    /// Gives the reference up, neither executed nor aborted.
    pub(super) fn into_raw(self) -> NonNull<Header> {
        ManuallyDrop::new(self).job
    }

    /// Runs the job and tells its owner.
    #[inline]
    pub(crate) fn execute(self, door: &mut Door) {
        let run = self.vtable().execute;
        let job = self.into_raw();
        door.at().begin(job.cast());
        // SAFETY: the job is live because neither function has been called yet,
        // and the reference is gone after this.
        unsafe { run(job, door) };
        debug_assert!(door.at().is_over(), "what is over is not to be lost");
    }

    /// Gives the job up without running it and tells its owner why.
    pub(crate) fn abort(self, why: Error) {
        let abort = self.vtable().abort;
        // SAFETY: as in `execute`.
        unsafe { abort(self.into_raw(), why) }
    }

    pub(crate) fn kind(&self) -> JobKind {
        self.vtable().kind
    }

    #[inline]
    pub(crate) fn set_since(&self, now: u64) {
        self.header().since.store(now, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn since(&self) -> u64 {
        self.header().since.load(Ordering::Relaxed)
    }

    fn vtable(&self) -> &'static Vtable {
        self.header().vtable
    }

    fn header(&self) -> &Header {
        // SAFETY: the job is live, see the module.
        unsafe { self.job.as_ref() }
    }
}

/// Ends the job that a worker is at, if it is at one, in the place of its thread, and tells
/// the owner.
pub(crate) fn lose(counters: &Counters, worker: &Ended) {
    if let Some(job) = counters.at().take(worker) {
        let job = job.cast::<Header>();
        // SAFETY: `execute` has put it there, and the thread has ended that had the reference
        // and was not through with the job.
        let lose = unsafe { job.as_ref() }.vtable.lose;
        // SAFETY: as above; the reference is gone after this.
        unsafe { lose(job, thread_ended()) }
    }
}

impl Drop for JobRef {
    fn drop(&mut self) {
        // SAFETY: this is the only reference, and it is gone after this.
        let job = unsafe { JobRef::new(self.job) };
        job.abort(Error::new(Kind::Cancelled, "job lost before it started"));
    }
}

/// Ends the process when it is dropped, that is when a panic comes by: for frames that
/// another thread still uses, which must not go away.
pub(crate) struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        eprintln!(
            "netns-exec: panic while another thread uses the frame of a call, which therefore \
             cannot be left; ending the process"
        );
        std::process::abort();
    }
}

/// Makes `f` a job on this stack, has `send` hand it to a worker, and waits for
/// its end. `f` may borrow whatever the caller can.
///
/// `send` gives the reference back when it could not be handed over.
pub(crate) fn run_on_stack<F, T>(
    f: F,
    send: impl FnOnce(JobRef) -> Result<(), (JobRef, Error)>,
) -> Outcome<T>
where
    F: FnOnce() -> T + Send,
    T: Send,
{
    #[cfg_attr(not(loom), expect(unused_mut, reason = "only models check"))]
    let mut job = StackJob {
        header: Header::new(&StackJob::<F, T>::VTABLE),
        f: UnsafeCell::new(Some(f)),
        outcome: UnsafeCell::new(None),
        latch: Latch::new(),
    };
    // SAFETY: this frame stays until the job's latch is set or the reference is back.
    let job_ref = unsafe { JobRef::new(NonNull::from(&job).cast()) };
    // From here on this frame must stay until the latch is set, whatever happens.
    let stay = AbortOnUnwind;
    let sent = send(job_ref);
    if sent.is_ok() {
        job.latch.wait();
    }
    std::mem::forget(stay);
    #[cfg(all(test, loom))]
    job.latch.check_unused();
    match sent {
        Ok(()) => {
            // SAFETY: the latch is set, so the worker has left the cell to us.
            let outcome = job.outcome.with_mut(|outcome| unsafe { (*outcome).take() });
            outcome.expect("the setter stores the outcome first")
        }
        Err((never_sent, why)) => {
            never_sent.into_raw();
            Outcome::Aborted(why)
        }
    }
}

/// A job on the stack of a caller that waits for it, see [`run_on_stack`].
#[repr(C)]
struct StackJob<F, T> {
    header: Header,
    f: UnsafeCell<Option<F>>,
    outcome: UnsafeCell<Option<Outcome<T>>>,
    latch: Latch,
}

impl<F, T> StackJob<F, T>
where
    F: FnOnce() -> T + Send,
    T: Send,
{
    const VTABLE: Vtable = Vtable {
        execute: Self::execute,
        abort: Self::abort,
        lose: Self::abort,
        kind: JobKind::Call,
    };

    unsafe fn execute(job: NonNull<Header>, door: &mut Door) {
        // SAFETY: the caller waits, so the job is live until its latch is set.
        let job = unsafe { job.cast::<Self>().as_ref() };
        // SAFETY: the `JobRef` that was consumed is the only way to the cells.
        let f = job.f.with_mut(|f| unsafe { (*f).take() });
        let outcome = door.call(f.expect("a job runs once"));
        door.at().end();
        // SAFETY: as above.
        (job.outcome).with_mut(|cell| unsafe { *cell = Some(outcome) });
        let latch = &raw const job.latch;
        // SAFETY: live until this very call, the last touch.
        unsafe { Latch::set(latch) };
    }

    unsafe fn abort(job: NonNull<Header>, why: Error) {
        // SAFETY: as in `execute`.
        let job = unsafe { job.cast::<Self>().as_ref() };
        // SAFETY: as in `execute`. The closure stays: its caller drops it.
        (job.outcome).with_mut(|cell| unsafe { *cell = Some(Outcome::Aborted(why)) });
        let latch = &raw const job.latch;
        // SAFETY: as in `execute`.
        unsafe { Latch::set(latch) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;

    fn run<T: Send>(f: impl FnOnce() -> T + Send) -> Outcome<T> {
        thread::scope(|scope| {
            run_on_stack(f, |job| {
                scope.spawn(move || job.execute(&mut Door::here()));
                Ok(())
            })
        })
    }

    #[test]
    fn job_borrows_from_the_stack_it_lies_on() {
        let mut words = vec!["a".to_owned()];
        let outcome = run(|| {
            words.push("b".to_owned());
            words.len()
        });
        assert!(matches!(outcome, Outcome::Returned(2)));
        assert_eq!(words, ["a", "b"]);
    }

    #[test]
    fn panic_comes_back_with_its_payload() {
        let outcome: Outcome<()> = run(|| std::panic::panic_any("out".to_owned()));
        let Outcome::Panicked(panic) = outcome else {
            panic!("it panicked");
        };
        assert_eq!(*panic.payload.downcast::<String>().unwrap(), "out");
    }

    #[test]
    fn reference_that_is_dropped_aborts_its_job() {
        let text = "kept".to_owned();
        let outcome = run_on_stack(
            || text.len(),
            |job| {
                thread::spawn(move || drop(job));
                Ok(())
            },
        );
        assert!(matches!(outcome, Outcome::Aborted(_)));
    }

    #[test]
    fn job_that_is_not_sent_ends_with_the_reason() {
        let refuse = |job| Err((job, Error::new(Kind::Full, "no room")));
        let outcome = run_on_stack(|| (), refuse);
        assert!(matches!(outcome, Outcome::Aborted(error) if error.is_full()));
    }
}
