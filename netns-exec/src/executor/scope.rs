//! Jobs that borrow from the caller, in parallel.

use super::current;
use super::handle::ScopedJoinHandle;
use super::owner::Executor;
use super::submit::{queue, queue_all};
use crate::error::Result;
use crate::handoff;
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
pub type Scope<'s, 'env> = handoff::scope::Scope<'s, 'env, Executor>;

pub(crate) fn scope<'env, R>(
    executor: &'env Executor,
    f: impl for<'s> FnOnce(&'s Scope<'s, 'env>) -> R,
) -> R {
    let wait = |all_over: &handoff::latch::Latch| {
        current::check_may_wait()?;
        current::blocking(|| all_over.wait());
        Ok(())
    };
    handoff::scope::scope(executor, wait, f)
}

impl<'s> Scope<'s, '_> {
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
    /// ```
    /// use netns_exec::{Executor, Netns};
    ///
    /// let (executor, here) = (Executor::new()?, Netns::current()?);
    /// let names = [String::from("lo"), String::from("eth0")];
    /// executor.scope(|scope| {
    ///     for name in &names {
    ///         // The end of the scope waits for them.
    ///         drop(scope.spawn(&here, move || println!("{name}"))?);
    ///     }
    ///     Ok::<_, netns_exec::Error>(())
    /// })?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn spawn<T: Send + 's>(
        &'s self,
        netns: &Netns,
        f: impl FnOnce() -> T + Send + 's,
    ) -> Result<ScopedJoinHandle<'s, T>> {
        let registry = self.context().registry();
        (self.ship(f, |job| queue(registry, None, netns, job))).map(ScopedJoinHandle::new)
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
        let registry = self.context().registry();
        let handles = self.ship_all(jobs, |batch| queue_all(registry, None, netns, batch))?;
        Ok(handles.into_iter().map(ScopedJoinHandle::new).collect())
    }
}
