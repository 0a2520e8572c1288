//! A namespace whose workers stay.

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;

use super::group::Group;
use super::{Executor, submit};
use crate::error::{Error, Kind, Result};
use crate::handle::JoinHandle;
use crate::netns::{Netns, NetnsId, WeakNetns};
use crate::worker;

/// Keeps the workers of a namespace resident, and finds them without a look-up.
///
/// While it lives, its workers do not end for being idle, and
/// [`max_workers`](crate::Builder::max_workers) does not choose them.
///
/// It does not keep a dead namespace alive: [`Executor::retire`] and the deletion
/// of its last name end the workers all the same. A later call starts new ones
/// if the namespace still exists, that is if something else refers to it.
///
/// # Examples
///
/// See [`Executor::pin`].
pub struct Pinned {
    executor: Executor,
    netns: WeakNetns,
    group: RwLock<Arc<Group>>,
}

impl Pinned {
    pub(crate) fn new(executor: Executor, netns: &Netns) -> Result<Pinned> {
        let group = submit::started(executor.shared(), None, netns)?;
        group.pin();
        Ok(Pinned {
            executor,
            netns: netns.downgrade(),
            group: RwLock::new(group),
        })
    }

    /// Returns the namespace's id.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// let blue = Netns::open("blue")?;
    /// assert_eq!(Executor::global().pin(&blue)?.id(), blue.id());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn id(&self) -> NetnsId {
        self.netns.id()
    }

    /// Runs `f` on a worker of the namespace and waits for its result.
    ///
    /// # Errors
    ///
    /// As [`Executor::run`]; and [`is_not_found`](Error::is_not_found) when the
    /// workers have been retired and the namespace is gone.
    ///
    /// # Panics
    ///
    /// With `f`'s panic.
    ///
    /// # Examples
    ///
    /// See [`Executor::pin`].
    #[inline]
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let shared = self.executor.shared();
        if worker::serves(shared, self.id()) {
            return Ok(f());
        }
        let group = self.group.read();
        let f = match submit::through_lane(shared, &group, f) {
            Ok(result) => return result,
            Err(f) => f,
        };
        drop(group);
        submit::run_queued(shared, None, &self.upgrade()?, f)
    }

    /// Ships `f` to a worker of the namespace and returns at once.
    ///
    /// # Errors
    ///
    /// As [`Executor::spawn`]; and [`is_not_found`](Error::is_not_found) as
    /// [`run`](Pinned::run).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// let blue = Executor::global().pin(&Netns::open("blue")?)?;
    /// assert_eq!(blue.spawn(|| 6 * 7)?.join()?, 42);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        self.executor.spawn(&self.upgrade()?, f)
    }
}
