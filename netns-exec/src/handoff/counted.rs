//! References to a job on the heap, counted by its latch; and who may only cancel it.
//!
//! The flags and the count are of one word, see `task`.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;

use super::latch::{FIRST_FLAG, WakerLatch};

/// The flags of a heap job's latch, see `task`.
pub(super) const STARTED: u32 = FIRST_FLAG;
pub(super) const CANCELLED: u32 = FIRST_FLAG << 1;
pub(super) const DETACHED: u32 = FIRST_FLAG << 2;

/// What can be done to a heap job from anywhere, whatever its closure and its result.
///
/// # Safety
///
/// The latch counts the [`Counted`]s of the job, all of which are made by [`Counted::new`] with
/// the same pointer, that `free` and `cancelled` take.
pub(super) unsafe trait Abortable: Send + Sync {
    fn latch(&self) -> &WakerLatch;
    fn actions(&self) -> &'static Actions;
}

/// What takes the job by the pointer that it has been made with.
pub(super) struct Actions {
    /// The last reference has gone.
    pub(super) free: unsafe fn(NonNull<()>),
    /// It has just been cancelled. The job is live.
    pub(super) cancelled: unsafe fn(NonNull<()>),
}

/// A reference to a job, counted by its latch.
pub(super) struct Counted<J: Abortable + ?Sized>(NonNull<J>);

// SAFETY: it gives what a shared borrow gives, and whichever is the last one frees the job.
unsafe impl<J: Abortable + ?Sized> Send for Counted<J> {}
// SAFETY: as above.
unsafe impl<J: Abortable + ?Sized> Sync for Counted<J> {}

impl<J: Abortable + ?Sized> Counted<J> {
    /// # Safety
    ///
    /// One reference that the latch counts becomes this one.
    pub(super) unsafe fn new(job: NonNull<J>) -> Counted<J> {
        Counted(job)
    }

    pub(super) fn pointer(&self) -> NonNull<J> {
        self.0
    }

    /// The reference is not counted any more, or becomes another one.
    pub(super) fn into_raw(self) -> NonNull<J> {
        ManuallyDrop::new(self).0
    }

    /// Gives the job up if it has not started, or the future if it has not ended; tells
    /// whether it did. Wakes what waits for it, on the calling thread.
    pub(super) fn cancel(&self) -> bool {
        let cancelled = self.latch().try_flag(CANCELLED, STARTED | CANCELLED);
        if cancelled {
            let told = self.actions().cancelled;
            // SAFETY: the job is live, by this reference, which was made by `new`.
            unsafe { told(self.0.cast()) }
            // Last: a waker is user code, and may panic.
            self.latch().wake_for_flag();
        }
        cancelled
    }

    /// Whether it has ended, or was cancelled.
    pub(super) fn is_over(&self) -> bool {
        let latch = self.latch();
        latch.is_set() || latch.flags() & CANCELLED != 0
    }

    /// Frees the job, whose latch counts no reference any more.
    ///
    /// # Safety
    ///
    /// It is the caller who took the last one from the count.
    pub(super) unsafe fn free(job: NonNull<J>) {
        // SAFETY: it is live until the next line.
        let free = unsafe { job.as_ref() }.actions().free;
        // SAFETY: made by `new`.
        unsafe { free(job.cast()) }
    }
}

impl<J: Abortable + ?Sized> Clone for Counted<J> {
    fn clone(&self) -> Counted<J> {
        self.latch().retain();
        Counted(self.0)
    }
}

impl<J: Abortable + ?Sized> Deref for Counted<J> {
    type Target = J;

    fn deref(&self) -> &J {
        // SAFETY: counted.
        unsafe { self.0.as_ref() }
    }
}

impl<J: Abortable + ?Sized> Drop for Counted<J> {
    fn drop(&mut self) {
        if self.latch().release() {
            // SAFETY: that was the last one.
            unsafe { Self::free(self.0) }
        }
    }
}

/// A spawned job, for those that only want to give it up.
#[derive(Clone)]
pub(crate) struct AbortTask(Counted<dyn Abortable>);

impl AbortTask {
    pub(super) fn new(job: Counted<dyn Abortable>) -> AbortTask {
        AbortTask(job)
    }

    pub(crate) fn cancel(&self) -> bool {
        self.0.cancel()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.is_over()
    }
}
