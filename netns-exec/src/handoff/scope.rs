//! A frame that jobs borrow from, which stays until all of them are over.
#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use super::batch::{self, Batch};
use super::handle::TaskHandle;
use super::job::{AbortOnUnwind, JobRef};
use super::latch::Latch;
use super::task::{self, OnEnd};
use crate::error::Error;
use crate::sync::{AtomicBool, AtomicU32, Ordering};

/// A scope in which jobs may borrow. `C` is what they are shipped with.
///
/// `'s` is the scope's own lifetime and `'env` that of what it borrows, as in
/// [`std::thread::Scope`].
pub struct Scope<'s, 'env: 's, C> {
    context: &'env C,
    tally: Arc<Tally>,
    /// Invariant: with a longer `'s` jobs could borrow what dies before they do,
    /// with a shorter `'env` what was borrowed mutably could be used meanwhile.
    scope: PhantomData<&'s mut &'s ()>,
    env: PhantomData<&'env mut &'env ()>,
}

/// Counts one for the scope itself and one for each of its jobs.
struct Tally {
    left: AtomicU32,
    panicked: AtomicBool,
    all_over: Latch,
}

impl OnEnd for Tally {
    fn job_over(&self, panicked: bool) {
        if panicked {
            self.panicked.store(true, Ordering::Relaxed);
        }
        // AcqRel: what every job did is visible to the scope that sees the latch set.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all_over.set_shared();
        }
    }

    fn panic_dropped(&self) {
        // Handles are dropped before the scope looks: by its closure, or by jobs,
        // whose end makes it visible.
        self.panicked.store(true, Ordering::Relaxed);
    }
}

/// Calls `f` with a scope, and returns when every job of the scope is over. `wait`
/// waits for a latch; it fails in a copy of the process only, where no job is ever
/// over, and no thread uses what jobs have borrowed.
///
/// # Panics
///
/// With `f`'s panic; when a job panicked whose handle was not joined; and with the
/// error of `wait`.
pub(crate) fn scope<'env, C, R>(
    context: &'env C,
    wait: impl FnOnce(&Latch) -> Result<(), Error>,
    f: impl for<'s> FnOnce(&'s Scope<'s, 'env, C>) -> R,
) -> R {
    let tally = Arc::new(Tally {
        left: AtomicU32::new(1),
        panicked: AtomicBool::new(false),
        all_over: Latch::new(),
    });
    let scope = Scope {
        context,
        tally: Arc::clone(&tally),
        scope: PhantomData,
        env: PhantomData,
    };
    let result = catch_unwind(AssertUnwindSafe(|| f(&scope)));
    // Whatever happens now must not end the frames that jobs borrow from.
    let stay = AbortOnUnwind;
    tally.job_over(false);
    let waited = match tally.all_over.is_set() {
        true => Ok(()),
        false => wait(&tally.all_over),
    };
    if waited.is_ok() {
        assert!(tally.all_over.is_set(), "`wait` waits for the latch");
    }
    std::mem::forget(stay);
    if let (Ok(_), Err(error)) = (&result, waited) {
        panic!("cannot end the scope: {error}");
    }
    match result {
        Err(panic) => resume_unwind(panic),
        Ok(_) if tally.panicked.load(Ordering::Relaxed) => panic!("a scoped job panicked"),
        Ok(value) => value,
    }
}

impl<'s, C> Scope<'s, '_, C> {
    pub(crate) fn context(&self) -> &C {
        self.context
    }

    /// Makes `f` a job of the scope and has `send` hand it over.
    pub(crate) fn ship<F, T, X>(
        &'s self,
        f: F,
        send: impl FnOnce(JobRef) -> Result<(), (JobRef, X)>,
    ) -> Result<TaskHandle<'s, T>, X>
    where
        F: FnOnce() -> T + Send + 's,
        T: Send + 's,
    {
        let on_end = self.count_one();
        // SAFETY: `scope` returns only when all that was counted is over, and
        // `'s` cannot end before.
        let shipped = unsafe { task::spawn_borrowing(f, on_end, send) };
        shipped.map_err(|(error, _f)| {
            self.tally.left.fetch_sub(1, Ordering::Relaxed);
            error
        })
    }

    /// As [`ship`](Scope::ship), for many jobs.
    pub(crate) fn ship_all<F, T, X>(
        &'s self,
        jobs: impl IntoIterator<Item = F>,
        send: impl FnOnce(&mut Batch<'s, T>) -> Result<(), X>,
    ) -> Result<Vec<TaskHandle<'s, T>>, X>
    where
        F: FnOnce() -> T + Send + 's,
        T: Send + 's,
    {
        // SAFETY: as in `ship`.
        unsafe { batch::spawn_batch_borrowing(jobs, || self.count_one(), send) }
    }

    fn count_one(&self) -> Arc<Tally> {
        // Cannot be 0 before: the scope's own one is still there.
        let before = self.tally.left.fetch_add(1, Ordering::Relaxed);
        assert!(before < u32::MAX, "too many jobs in a scope");
        Arc::clone(&self.tally)
    }
}

impl<C> fmt::Debug for Scope<'_, '_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}
