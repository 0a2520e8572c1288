//! Jobs that borrow from the caller, in parallel.
//!
//! The one unsafe block outside the islands lives here because its obligation
//! does: [`scope`] does not end before the jobs have.
#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::Result;
use crate::executor::handle::ScopedJoinHandle;
use crate::executor::worker;
use crate::executor::{Executor, queue, queue_all};
use crate::handoff::job::{self, NoWayOut, OnEnd};
use crate::handoff::latch::Latch;
use crate::netns::Netns;

/// A scope in which jobs may borrow, see [`Executor::scope`].
///
/// `'s` is the scope's own lifetime and `'env` that of what it borrows, as in
/// [`std::thread::Scope`]: a job cannot borrow what dies inside the scope.
///
/// ```compile_fail,E0373
/// # use netns_exec::{Executor, Netns};
/// # fn f(executor: &Executor, blue: &Netns) {
/// executor.scope(|scope| {
///     let inside = 1;
///     scope.spawn(blue, || inside + 1).unwrap();
/// });
/// # }
/// ```
///
/// What lives outside it can be borrowed:
///
/// ```
/// # use netns_exec::{Executor, Netns};
/// # fn f(executor: &Executor, blue: &Netns) {
/// let outside = 1;
/// executor.scope(|scope| {
///     scope.spawn(blue, || outside + 1).unwrap();
/// });
/// # }
/// ```
///
/// Nor can a handle, or anything else that a job borrows from, leave it:
///
/// ```compile_fail,E0521
/// # use netns_exec::{Executor, Netns};
/// # fn f(executor: &Executor, blue: &Netns) {
/// let mut kept = None;
/// executor.scope(|scope| {
///     kept = Some(scope.spawn(blue, || 1).unwrap());
/// });
/// # }
/// ```
///
/// What a job returned can:
///
/// ```
/// # use netns_exec::{Executor, Netns};
/// # fn f(executor: &Executor, blue: &Netns) {
/// let mut kept = None;
/// executor.scope(|scope| {
///     kept = Some(scope.spawn(blue, || 1).unwrap().join().unwrap());
/// });
/// # }
/// ```
///
/// Two jobs cannot change the same thing:
///
/// ```compile_fail,E0499
/// # use netns_exec::{Executor, Netns};
/// # fn f(executor: &Executor, blue: &Netns) {
/// let mut count = 0;
/// executor.scope(|scope| {
///     scope.spawn(blue, || count += 1).unwrap();
///     scope.spawn(blue, || count += 1).unwrap();
/// });
/// # }
/// ```
///
/// They can when they agree on how:
///
/// ```
/// # use netns_exec::{Executor, Netns};
/// # use std::sync::atomic::{AtomicU32, Ordering};
/// # fn f(executor: &Executor, blue: &Netns) {
/// let count = AtomicU32::new(0);
/// executor.scope(|scope| {
///     scope.spawn(blue, || count.fetch_add(1, Ordering::Relaxed)).unwrap();
///     scope.spawn(blue, || count.fetch_add(1, Ordering::Relaxed)).unwrap();
/// });
/// # }
/// ```
///
/// What may not cross threads does not compile here either:
///
/// ```compile_fail,E0277
/// # use netns_exec::{Executor, Netns};
/// # fn f(executor: &Executor, blue: &Netns) {
/// let counter = std::rc::Rc::new(1);
/// executor.scope(|scope| {
///     scope.spawn(blue, || *counter + 1).unwrap();
/// });
/// # }
/// ```
pub struct Scope<'s, 'env: 's> {
    executor: &'env Executor,
    tally: Arc<Tally>,
    /// Invariant: with a longer `'s` jobs could borrow what dies before they do,
    /// with a shorter `'env` what was borrowed mutably could be used meanwhile.
    scope: PhantomData<&'s mut &'s ()>,
    env: PhantomData<&'env mut &'env ()>,
}

/// Counts one for the scope itself and one for each of its jobs.
struct Tally {
    left: AtomicUsize,
    panicked: AtomicBool,
    all_over: Latch,
}

impl OnEnd for Tally {
    fn job_over(&self, panicked: bool) {
        if panicked {
            self.panicked.store(true, Ordering::Relaxed);
        }
        // AcqRel: what every job did is visible to whoever sees the latch set.
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

pub(crate) fn scope<'env, R>(
    executor: &'env Executor,
    f: impl for<'s> FnOnce(&'s Scope<'s, 'env>) -> R,
) -> R {
    let tally = Arc::new(Tally {
        left: AtomicUsize::new(1),
        panicked: AtomicBool::new(false),
        all_over: Latch::new(),
    });
    let scope = Scope {
        executor,
        tally: Arc::clone(&tally),
        scope: PhantomData,
        env: PhantomData,
    };
    let result = catch_unwind(AssertUnwindSafe(|| f(&scope)));
    // Whatever happens now must not end the frames that jobs borrow from.
    let stay = NoWayOut;
    tally.job_over(false);
    if !tally.all_over.is_set() {
        worker::blocking(|| tally.all_over.wait());
    }
    std::mem::forget(stay);
    match result {
        Err(panic) => resume_unwind(panic),
        Ok(_) if tally.panicked.load(Ordering::Relaxed) => panic!("a scoped job panicked"),
        Ok(value) => value,
    }
}

impl<'s, 'env> Scope<'s, 'env> {
    /// Ships `f`, which may borrow whatever outlives the scope, to a worker of
    /// `netns`.
    ///
    /// # Blocking
    ///
    /// As [`Executor::spawn`].
    ///
    /// # Errors
    ///
    /// As [`Executor::spawn`].
    ///
    /// # Examples
    ///
    /// See [`Executor::scope`].
    pub fn spawn<T: Send + 's>(
        &'s self,
        netns: &Netns,
        f: impl FnOnce() -> T + Send + 's,
    ) -> Result<ScopedJoinHandle<'s, T>> {
        let shared = self.executor.shared();
        // Cannot be 0 before: the scope's own one is still there.
        self.tally.left.fetch_add(1, Ordering::Relaxed);
        let on_end = Arc::clone(&self.tally);
        // SAFETY: `scope` returns only when all that was counted is over, and
        // `'s` cannot end before.
        let spawned =
            unsafe { job::spawn_borrowing(f, on_end, |job| queue(shared, None, netns, job)) };
        match spawned {
            Ok(ticket) => Ok(ScopedJoinHandle::new(ticket)),
            Err((error, _f)) => {
                self.tally.left.fetch_sub(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Ships many jobs, which may borrow whatever outlives the scope, to the
    /// workers of `netns`, for one wake-up where [`spawn`](Scope::spawn) may need
    /// one for each.
    ///
    /// All else is as with [`Executor::spawn_batch`].
    ///
    /// # Blocking
    ///
    /// As [`Executor::spawn_batch`].
    ///
    /// # Errors
    ///
    /// As [`Executor::spawn_batch`].
    ///
    /// # Panics
    ///
    /// With the panic of `jobs`; then no job runs.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// let mut mtus = [0; 3];
    /// executor.scope(|scope| {
    ///     let jobs = mtus.iter_mut().map(|mtu| || *mtu = 1500);
    ///     scope.spawn_batch(&blue, jobs).map(drop)
    /// })?;
    /// assert_eq!(mtus, [1500; 3]);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn spawn_batch<T: Send + 's>(
        &'s self,
        netns: &Netns,
        jobs: impl IntoIterator<Item = impl FnOnce() -> T + Send + 's>,
    ) -> Result<Vec<ScopedJoinHandle<'s, T>>> {
        let shared = self.executor.shared();
        let count_one = || {
            self.tally.left.fetch_add(1, Ordering::Relaxed);
            Arc::clone(&self.tally)
        };
        // SAFETY: as in `spawn`.
        let tickets = unsafe {
            job::spawn_batch_borrowing(jobs, count_one, |batch| {
                queue_all(shared, None, netns, batch)
            })
        }?;
        Ok(tickets.into_iter().map(ScopedJoinHandle::new).collect())
    }
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}
