//! Jobs in one word, and those on the stack of a caller that waits for them.
//!
//! A [`JobRef`] is one word that points at a job's [`Header`], wherever the job
//! lives; behind it the closure's type and lifetime are erased. The owner of the
//! `JobRef` owes the job exactly one of [`execute`](JobRef::execute) and
//! [`abort`](JobRef::abort): until then the job stays where it is, and after it the
//! job may be gone.
//!
//! | job          | lives                         | stays because                           |
//! |--------------|-------------------------------|-----------------------------------------|
//! | [`StackJob`] | on the caller's stack         | its caller waits on the job's latch     |
//! | `HeapJob`, see `task` | behind an `Arc`, 1 allocation | the `JobRef` owns one of two references |
#![allow(unsafe_code)]

use std::ptr::NonNull;

use super::latch::Latch;
use super::outcome::{self, After, Outcome, Site};
use crate::error::Error;
use crate::sync::UnsafeCell;

pub(super) struct Vtable {
    pub(super) execute: unsafe fn(NonNull<Header>, &mut Site) -> After,
    pub(super) abort: unsafe fn(NonNull<Header>, Error),
}

/// The first field of every job.
pub(super) struct Header {
    pub(super) vtable: &'static Vtable,
}

/// One word that stands for a job, see the module.
pub(crate) struct JobRef {
    pub(super) job: NonNull<Header>,
}

// SAFETY: jobs are made of closures and results that are `Send`, see
// `StackJob::new` and `HeapJob::new`.
unsafe impl Send for JobRef {}

impl JobRef {
    /// Runs the job and tells its owner.
    pub(crate) fn execute(self, site: &mut Site) -> After {
        let run = self.vtable().execute;
        // SAFETY: the job is live because neither function has been called yet,
        // and `self` is gone after this.
        unsafe { run(self.job, site) }
    }

    /// Gives the job up without running it and tells its owner why.
    pub(crate) fn abort(self, why: Error) {
        let abort = self.vtable().abort;
        // SAFETY: as in `execute`.
        unsafe { abort(self.job, why) }
    }

    fn vtable(&self) -> &'static Vtable {
        // SAFETY: the job is live, see the module.
        unsafe { self.job.as_ref() }.vtable
    }
}

/// Ends the process when it is dropped: for frames that a worker still uses.
pub(crate) struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
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
        header: Header {
            vtable: &StackJob::<F, T>::VTABLE,
        },
        f: UnsafeCell::new(Some(f)),
        outcome: UnsafeCell::new(None),
        latch: Latch::new(),
    };
    let job_ref = JobRef {
        job: NonNull::from(&job).cast(),
    };
    // From here on this frame must stay until the latch is set, whatever happens.
    let stay = AbortOnUnwind;
    let sent = send(job_ref);
    if sent.is_ok() {
        job.latch.wait();
    }
    std::mem::forget(stay);
    #[cfg(loom)]
    job.latch.check_unused();
    match sent {
        Ok(()) => {
            // SAFETY: the latch is set, so the worker has left the cell to us.
            let outcome = job.outcome.with_mut(|outcome| unsafe { (*outcome).take() });
            outcome.expect("the setter stores the outcome first")
        }
        Err((_never_sent, why)) => Outcome::Aborted(why),
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
    };

    unsafe fn execute(job: NonNull<Header>, site: &mut Site) -> After {
        // SAFETY: the caller waits, so the job is live until its latch is set.
        let job = unsafe { job.cast::<Self>().as_ref() };
        // SAFETY: the `JobRef` that was consumed is the only way to the cells.
        let f = job.f.with_mut(|f| unsafe { (*f).take() });
        let outcome = outcome::call(f.expect("a job runs once"), site);
        let after = After::of(&outcome);
        // SAFETY: as above.
        (job.outcome).with_mut(|cell| unsafe { *cell = Some(outcome) });
        let latch = &raw const job.latch;
        // SAFETY: live until this very call, the last touch.
        unsafe { Latch::set(latch) };
        after
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
