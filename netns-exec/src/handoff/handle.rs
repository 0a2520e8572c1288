//! The handle's side of what was spawned, be it a job or a future.
//!
//! What the flags mean that it sets and reads is said in `task`, and in `future`.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::task::{Context, Poll};
use std::time::Instant;

use super::counted::{AbortTask, Abortable, CANCELLED, Counted, DETACHED, STARTED};
use super::outcome::{Outcome, Pack};
use crate::error::{Error, Kind};
use crate::payload::quietly;

/// What a handle needs of a job or a future, whatever its closure.
pub(super) trait Packet<T>: Abortable {
    /// # Safety
    ///
    /// The latch is set, and the caller is the handle, which calls this once.
    unsafe fn take_outcome(&self) -> Option<Outcome<T>>;
    fn pack(&self) -> Pack<T>;
    fn panic_dropped(&self);
    /// Whether the calling thread would wait for itself.
    fn depends_on_this_thread(&self) -> bool {
        false
    }
    fn why_cancelled(&self) -> &'static str {
        "job cancelled before it started"
    }
}

/// The handle's side of a spawned job: joins, awaits or cancels it.
pub(crate) struct TaskHandle<'a, T> {
    pub(super) packet: ManuallyDrop<Counted<dyn Packet<T> + 'a>>,
    pub(super) taken: bool,
    /// Its owner's, who may keep a number here; 0 at first.
    pub(crate) mark: u64,
}

impl<'a, T> TaskHandle<'a, T> {
    /// # Safety
    ///
    /// One reference that the latch counts becomes the handle's, of which there is one.
    #[inline]
    pub(super) unsafe fn new(packet: NonNull<dyn Packet<T> + 'a>) -> Self {
        TaskHandle {
            // SAFETY: as the caller says.
            packet: ManuallyDrop::new(unsafe { Counted::new(packet) }),
            taken: false,
            mark: 0,
        }
    }
}

impl<T: 'static> TaskHandle<'static, T> {
    pub(crate) fn abort_task(&self) -> AbortTask {
        let packet = Counted::clone(&self.packet);
        // SAFETY: the clone's reference becomes this one.
        AbortTask::new(unsafe { Counted::new(packet.into_raw()) })
    }
}

impl<T> TaskHandle<'_, T> {
    pub(crate) fn is_over(&self) -> bool {
        self.packet.is_over()
    }

    /// Whether the calling thread would wait for itself.
    pub(crate) fn depends_on_this_thread(&self) -> bool {
        self.packet.depends_on_this_thread()
    }

    /// Gives the job up if it has not started, or the future if it has not ended; tells
    /// whether it did.
    pub(crate) fn cancel(&self) -> bool {
        self.packet.cancel()
    }

    pub(crate) fn has_started(&self) -> bool {
        // A worker that comes to a cancelled one only drops it.
        self.packet.latch().flags() & (STARTED | CANCELLED) == STARTED
    }

    /// Blocks until the job is over or `deadline` has passed; tells which.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> bool {
        self.packet.latch().wait_until(CANCELLED, deadline)
    }

    /// Takes what a job that is over gives.
    ///
    /// # Panics
    ///
    /// When it has been taken already.
    pub(crate) fn take_result(&mut self) -> Result<T, Error> {
        let pack = self.packet.pack();
        match self.take_outcome() {
            Some(outcome) => outcome.into_join_result(pack),
            None => Err(Error::new(Kind::Cancelled, self.packet.why_cancelled())),
        }
    }

    /// Takes the outcome of a job that is over; `None` when it was cancelled.
    pub(crate) fn take_outcome(&mut self) -> Option<Outcome<T>> {
        assert!(!self.taken, "polled again after it was ready");
        self.taken = true;
        let latch = self.packet.latch();
        if !latch.is_set() {
            return None;
        }
        // SAFETY: set, and `taken` was clear.
        unsafe { self.packet.take_outcome() }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.packet.latch().poll(CANCELLED, cx)
    }
}

impl<T> Drop for TaskHandle<'_, T> {
    fn drop(&mut self) {
        // SAFETY: it is dropped once.
        let packet = unsafe { ManuallyDrop::take(&mut self.packet) };
        if self.taken {
            return;
        }
        if let Some(is_last) = packet.latch().release_unset(DETACHED) {
            let job = packet.into_raw();
            if is_last {
                // SAFETY: this reference was the last one.
                unsafe { Counted::free(job) }
            }
            return;
        }
        // SAFETY: set before it was detached, and not taken.
        let outcome = unsafe { packet.take_outcome() };
        if matches!(outcome, Some(Outcome::Panicked(..))) {
            packet.panic_dropped();
        }
        quietly(|| drop(outcome));
    }
}
