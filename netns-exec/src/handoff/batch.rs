//! Jobs of their own that are handed over together.
#![allow(unsafe_code)]

use super::handle::TaskHandle;
use super::job::JobRef;
use super::task::{Carried, Draft, Dropped, OnEnd, Packing};
use crate::error::{Error, Kind};

/// Gives out each of its jobs once, in their order. Those that are left when it is dropped
/// never run.
pub(crate) struct Batch<'a, T> {
    handles: Vec<TaskHandle<'a, T>>,
    /// How many have been given out.
    sent: usize,
}

impl<'a, T: 'a> Batch<'a, T> {
    /// Asks `jobs` for all it has. When it panics, none of them runs.
    fn new<F, E, P>(
        jobs: impl IntoIterator<Item = F>,
        draft: impl Fn(F) -> Draft<F, T, E, P>,
    ) -> Self
    where
        F: FnOnce() -> T + Send + 'a,
        T: Send,
        E: OnEnd + 'a,
        P: Packing<T> + 'a,
    {
        let jobs = jobs.into_iter();
        let mut batch = Batch {
            handles: Vec::with_capacity(jobs.size_hint().0),
            sent: 0,
        };
        for f in jobs {
            batch.handles.push(draft(f).into_handle());
        }
        batch
    }

    /// Has `send` hand all jobs over, if there are any.
    fn send<X>(
        mut self,
        send: impl FnOnce(&mut Self) -> Result<(), X>,
    ) -> Result<Vec<TaskHandle<'a, T>>, X> {
        if !self.handles.is_empty() {
            send(&mut self)?;
        }
        assert_eq!(self.sent, self.handles.len(), "`send` has left out jobs");
        Ok(std::mem::take(&mut self.handles))
    }
}

impl<T> Iterator for Batch<'_, T> {
    type Item = JobRef;

    fn next(&mut self) -> Option<JobRef> {
        let handle = self.handles.get(self.sent)?;
        self.sent += 1;
        // SAFETY: counted as sent, so this is the only time; all are heap jobs, made by a
        // `Draft`, with the header first.
        Some(unsafe { JobRef::new(handle.packet.pointer().cast()) })
    }
}

impl<T> Drop for Batch<'_, T> {
    fn drop(&mut self) {
        for job in self {
            // Its handle dies with us: this is never read.
            job.abort(Error::new(Kind::Cancelled, "job never shipped"));
        }
    }
}

/// Makes each closure a job of its own and has `send` hand all of them over. When
/// it cannot, it takes none, and they are dropped.
pub(crate) fn spawn_batch<F, T, X>(
    jobs: impl IntoIterator<Item = F>,
    send: impl FnOnce(&mut Batch<'static, T>) -> Result<(), X>,
) -> Result<Vec<TaskHandle<'static, T>>, X>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Batch::new(jobs, |f| Draft::<F, T, (), Carried>::new(f, ())).send(send)
}

/// As [`spawn_batch`], for jobs that borrow; each has an `on_end` of its own.
///
/// # Safety
///
/// Until every `on_end` that was made has been told, the caller lets nothing die
/// that the closures may borrow.
pub(crate) unsafe fn spawn_batch_borrowing<'a, F, T, E, X>(
    jobs: impl IntoIterator<Item = F>,
    on_end: impl Fn() -> E,
    send: impl FnOnce(&mut Batch<'a, T>) -> Result<(), X>,
) -> Result<Vec<TaskHandle<'a, T>>, X>
where
    F: FnOnce() -> T + Send + 'a,
    T: Send + 'a,
    E: OnEnd + 'a,
{
    Batch::new(jobs, |f| Draft::<F, T, E, Dropped>::new(f, on_end())).send(send)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn batch_that_is_not_sent_drops_its_closures() {
        let captured = Arc::new(());
        let jobs = [Arc::clone(&captured), Arc::clone(&captured)].map(|kept| move || drop(kept));
        assert!(spawn_batch(jobs, |_| Err(())).is_err());
        assert_eq!(Arc::strong_count(&captured), 1);
    }
}
