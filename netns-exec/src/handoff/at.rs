//! Which job of the queue a worker is at.
//!
//! A job can end the thread that executes it by exit(2). So the worker notes which one it
//! is at: from its beginning until nothing of the user's is left to be run and its owner may
//! let it go. The job that is there when the thread has ended is lost.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::bell::Ended;

/// See the module. Written by the worker only, for as long as it is there.
#[derive(Debug, Default)]
pub(super) struct At(AtomicPtr<()>);

impl At {
    #[inline]
    pub(super) fn begin(&self, job: NonNull<()>) {
        self.0.store(job.as_ptr(), Ordering::Relaxed);
    }

    /// From here on the job runs nothing of the user's, and may be gone.
    #[inline]
    pub(super) fn end(&self) {
        self.0.store(ptr::null_mut(), Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed).is_null()
    }

    /// The job that the worker, whose thread has ended, was at. Returned once.
    pub(super) fn take(&self, _worker: &Ended) -> Option<NonNull<()>> {
        NonNull::new(self.0.swap(ptr::null_mut(), Ordering::Relaxed))
    }
}
