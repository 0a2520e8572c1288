//! Jobs of their own, on the heap: shared by the queue and the handle.
//!
//! A heap job's life, as flags of its latch:
//!
//! | flag       | set by           | meaning                                                 |
//! |------------|------------------|---------------------------------------------------------|
//! | `STARTED`  | worker           | the closure belongs to the worker; too late to cancel. On a cancelled job it means nothing |
//! | `CANCELLED`| handle           | it will not run; the worker drops the closure           |
//! | `DETACHED` | handle, dropped  | no handle will take the outcome: the worker drops it    |
//! | set        | worker           | the outcome is stored and belongs to the handle         |
//!
//! The same word counts the references: the handle's, the `JobRef`'s, and those of who may
//! only cancel. So a handle that is dropped says so and goes with one read-modify-write,
//! and a worker that starts a job finds out with the same one whether it is alone with it.
//!
//! A job that is aborted before it was cancelled leaves its closure to the handle,
//! with the outcome that says so.
//!
//! Of `STARTED` and `CANCELLED` the first one counts; between `DETACHED` and set, the later
//! one drops the outcome.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::mem::{ManuallyDrop, needs_drop};
use std::ptr::NonNull;
use std::sync::Arc;

use super::counted::{Abortable, Actions, CANCELLED, Counted, DETACHED, STARTED};
use super::handle::{Packet, TaskHandle};
use super::job::{Header, JobKind, JobRef, Vtable};
use super::latch::WakerLatch;
use super::outcome::{Door, Outcome, Pack};
use crate::error::Error;
use crate::payload::quietly;
use crate::sync::UnsafeCell;

/// Told when a job is over and nothing of it is left on the worker.
pub(crate) trait OnEnd: Send + Sync {
    /// `panicked` when no handle took the panic.
    fn job_over(&self, panicked: bool);

    /// A panic was handed to the handle, which dropped it.
    fn panic_dropped(&self);
}

impl<E: OnEnd + ?Sized> OnEnd for Arc<E> {
    fn job_over(&self, panicked: bool) {
        (**self).job_over(panicked);
    }

    fn panic_dropped(&self) {
        (**self).panic_dropped();
    }
}

impl OnEnd for () {
    fn job_over(&self, _panicked: bool) {}

    fn panic_dropped(&self) {}
}

/// What becomes of the result of a job whose guard found something: see [`Pack`].
pub(super) trait Packing<T> {
    const PACK: Pack<T>;
}

/// The error carries it.
pub(super) struct Carried;

impl<T: Send + 'static> Packing<T> for Carried {
    const PACK: Pack<T> = |value| Some(Box::new(value));
}

/// It is dropped: it may borrow, and an error does not.
pub(super) struct Dropped;

impl<T> Packing<T> for Dropped {
    const PACK: Pack<T> = |_| None;
}

/// A job on the heap, shared by the queue and the handle.
#[repr(C)]
struct HeapJob<F, T, E, P> {
    header: Header,
    latch: WakerLatch,
    f: UnsafeCell<ManuallyDrop<Option<F>>>,
    outcome: UnsafeCell<Option<Outcome<T>>>,
    on_end: E,
    packing: PhantomData<P>,
}

// SAFETY: the flags at the top of this file give each cell one owner at a time,
// and what is in them may move between threads.
unsafe impl<F: Send, T: Send, E: Send, P> Send for HeapJob<F, T, E, P> {}
// SAFETY: as above; `on_end` is shared, and `Sync`.
unsafe impl<F: Send, T: Send, E: Sync, P> Sync for HeapJob<F, T, E, P> {}

// SAFETY: `Draft` is what makes them, by the pointer of the box.
unsafe impl<F, T, E, P> Abortable for HeapJob<F, T, E, P>
where
    F: Send,
    T: Send,
    E: OnEnd,
    P: Packing<T>,
{
    fn latch(&self) -> &WakerLatch {
        &self.latch
    }

    fn actions(&self) -> &'static Actions {
        &Actions {
            free: |job| {
                #[cfg_attr(not(loom), expect(unused_mut, reason = "only models check"))]
                // SAFETY: boxed by `Draft::new`, and live until this very call.
                let mut job = unsafe { Box::from_raw(job.cast::<Self>().as_ptr()) };
                #[cfg(all(test, loom))]
                job.latch.check_unused();
                drop(job);
            },
            cancelled: |_| (),
        }
    }
}

/// Stores how a job ended in `cell`, completes `latch` and wakes the waker, or drops the
/// outcome when no handle will take it; tells whether one will. The cell belongs to the
/// caller, with `STARTED`. User code is called `through` that.
pub(super) fn tell<T>(
    latch: &WakerLatch,
    cell: &UnsafeCell<Option<Outcome<T>>>,
    outcome: Outcome<T>,
    through: &mut dyn FnMut(&'static str, &mut dyn FnMut()),
) -> bool {
    // SAFETY: STARTED and not set: the cell belongs to this side.
    cell.with_mut(|cell| unsafe { *cell = Some(outcome) });
    let (before, waker) = latch.complete();
    if let Some(waker) = waker {
        let mut waker = Some(waker);
        through("waker", &mut || {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        });
    }
    let unclaimed = before.has(DETACHED);
    if unclaimed {
        // SAFETY: the handle was gone before the latch was set, so the cell
        // is still this side's.
        let outcome = cell.with_mut(|outcome| unsafe { (*outcome).take() });
        drop_unclaimed(outcome, through);
    }
    !unclaimed
}

/// Drops an outcome that no handle will take.
fn drop_unclaimed<T>(
    mut outcome: Option<Outcome<T>>,
    through: &mut dyn FnMut(&'static str, &mut dyn FnMut()),
) {
    // A plain value is nothing of the user's to run.
    if needs_drop::<T>() || !matches!(outcome, Some(Outcome::Returned(_))) {
        through("drop of a result", &mut || drop(outcome.take()));
    }
}

impl<F, T, E, P> Packet<T> for HeapJob<F, T, E, P>
where
    F: FnOnce() -> T + Send,
    T: Send,
    E: OnEnd,
    P: Packing<T>,
{
    unsafe fn take_outcome(&self) -> Option<Outcome<T>> {
        // SAFETY: set and not detached: the cell belongs to the handle.
        let outcome = (self.outcome).with_mut(|outcome| unsafe { (*outcome).take() });
        // Still there when the job was aborted: it belongs to the handle as well.
        if matches!(outcome, Some(Outcome::Aborted(_))) {
            quietly(|| drop(self.take_closure()));
        }
        outcome
    }

    fn pack(&self) -> Pack<T> {
        P::PACK
    }

    fn panic_dropped(&self) {
        self.on_end.panic_dropped();
    }
}

impl<F, T, E, P> HeapJob<F, T, E, P>
where
    F: FnOnce() -> T + Send,
    T: Send,
    E: OnEnd,
    P: Packing<T>,
{
    const VTABLE: Vtable = Vtable {
        execute: Self::execute,
        abort: Self::abort,
        lose: Self::lose,
        kind: JobKind::Task,
    };

    unsafe fn execute(job: NonNull<Header>, door: &mut Door) {
        // SAFETY: the `JobRef` that was consumed owned this reference, see `Draft`.
        let job = unsafe { Counted::new(job.cast::<Self>()) };
        let before = job.latch.start(STARTED);
        if before.has(CANCELLED) {
            let f = job.take_closure();
            door.run("drop of a cancelled job", || drop(f));
            door.at().end();
            job.on_end.job_over(false);
            return;
        }
        let f = job.take_closure().expect("a job runs once");
        let outcome = door.call(f);
        if before.has(DETACHED) && before.is_sole() {
            job.end_alone(outcome, door);
        } else {
            job.end(outcome, Some(door));
        }
    }

    /// Runs none of the user's code but a waker, unless there is no handle: a closure
    /// that has not run is dropped by the handle, on its own thread.
    unsafe fn abort(job: NonNull<Header>, why: Error) {
        // SAFETY: as in `execute`.
        let job = unsafe { Counted::new(job.cast::<Self>()) };
        if job.latch.start(STARTED).has(CANCELLED) {
            quietly(|| drop(job.take_closure()));
            job.on_end.job_over(false);
        } else {
            job.end(Outcome::Aborted(why), None);
        }
    }

    unsafe fn lose(job: NonNull<Header>, why: Error) {
        // SAFETY: as in `execute`.
        let counted = unsafe { Counted::new(job.cast::<Self>()) };
        if counted.latch.is_set() {
            // The thread has ended in a waker, or where the result was dropped.
            counted.on_end.job_over(false);
        } else {
            counted.into_raw();
            // SAFETY: not over. What `execute` has done of it before is done once.
            unsafe { Self::abort(job, why) }
        }
    }

    /// For the side that owns the closure just now, as said at the top of this file.
    fn take_closure(&self) -> Option<F> {
        // SAFETY: the owner calls, and the other side does not touch it any more.
        (self.f).with_mut(|f| unsafe { (*f).take() })
    }

    /// Stores the outcome and tells the handle, or drops it when there is none.
    fn end(&self, outcome: Outcome<T>, mut door: Option<&mut Door>) {
        let mut through = |what, f: &mut dyn FnMut()| match &mut door {
            Some(door) => drop(door.run(what, f)),
            None => quietly(f),
        };
        let panicked = matches!(outcome, Outcome::Panicked(..));
        let claimed = tell(&self.latch, &self.outcome, outcome, &mut through);
        // Still there when the job was aborted.
        if !claimed && let Some(closure) = self.take_closure() {
            let mut closure = Some(closure);
            through("drop of a result", &mut || drop(closure.take()));
        }
        if let Some(door) = door {
            door.at().end();
        }
        self.on_end.job_over(panicked && !claimed);
    }
}

impl<F, T, E, P> Counted<HeapJob<F, T, E, P>>
where
    F: FnOnce() -> T + Send,
    T: Send,
    E: OnEnd,
    P: Packing<T>,
{
    /// Drops the outcome of a job that has run, and that nothing else refers to: there is
    /// nothing to be told.
    fn end_alone(self, outcome: Outcome<T>, door: &mut Door) {
        let panicked = matches!(outcome, Outcome::Panicked(..));
        drop_unclaimed(Some(outcome), &mut |what, f| _ = door.run(what, f));
        door.at().end();
        self.on_end.job_over(panicked);
        // SAFETY: there is no other reference, and nothing to make one of.
        unsafe { Self::free(self.into_raw()) }
    }
}

/// A job on the heap that is not on its way yet: with one reference for its handle, and
/// one for its `JobRef`.
pub(super) struct Draft<F, T, E, P>
where
    F: FnOnce() -> T + Send,
    T: Send,
    E: OnEnd,
    P: Packing<T>,
{
    job: NonNull<HeapJob<F, T, E, P>>,
}

impl<F, T, E, P> Draft<F, T, E, P>
where
    F: FnOnce() -> T + Send,
    T: Send,
    E: OnEnd,
    P: Packing<T>,
{
    #[inline]
    pub(super) fn new(f: F, on_end: E) -> Self {
        // Its place first: a job that is built elsewhere and then copied waits for itself.
        let place = Box::new_uninit();
        let job = Box::write(
            place,
            HeapJob {
                header: Header::new(&HeapJob::<F, T, E, P>::VTABLE),
                latch: WakerLatch::new(2),
                f: UnsafeCell::new(ManuallyDrop::new(Some(f))),
                outcome: UnsafeCell::new(None),
                on_end,
                packing: PhantomData,
            },
        );
        Draft {
            job: NonNull::from(Box::leak(job)),
        }
    }

    /// The handle's side of the job.
    #[inline]
    pub(super) fn into_handle<'a>(self) -> TaskHandle<'a, T>
    where
        F: 'a,
        T: 'a,
        E: 'a,
        P: 'a,
    {
        let job = ManuallyDrop::new(self).job;
        // SAFETY: the draft is gone, so it is the only handle.
        unsafe { TaskHandle::new(job) }
    }

    /// Has `send` hand the job over; gives the closure back when it could not.
    #[inline]
    fn send<'a, X>(
        self,
        send: impl FnOnce(JobRef) -> Result<(), (JobRef, X)>,
    ) -> Result<TaskHandle<'a, T>, (X, F)>
    where
        F: 'a,
        T: 'a,
        E: 'a,
        P: 'a,
    {
        // SAFETY: the only one. `HeapJob` is repr(C) with the header first.
        let job_ref = unsafe { JobRef::new(self.job.cast()) };
        match send(job_ref) {
            Ok(()) => Ok(self.into_handle()),
            Err((back, why)) => {
                let job = self.job;
                assert_eq!(back.into_raw(), job.cast(), "`send` returned another job");
                // SAFETY: what came back is the `JobRef`'s reference.
                let job = unsafe { Counted::new(job) };
                let f = job.take_closure().expect("the job has not run");
                self.into_handle().taken = true;
                Err((why, f))
            }
        }
    }
}

impl<F, T, E, P> Drop for Draft<F, T, E, P>
where
    F: FnOnce() -> T + Send,
    T: Send,
    E: OnEnd,
    P: Packing<T>,
{
    /// For a `send` that panics, which has dropped the `JobRef`.
    fn drop(&mut self) {
        // SAFETY: the draft is gone, so it is the only handle.
        drop(unsafe { TaskHandle::new(self.job) });
    }
}

/// Makes `f` a job of its own and has `send` hand it over; gives the closure
/// back when it could not.
#[inline]
pub(crate) fn spawn<F, T, X>(
    f: F,
    send: impl FnOnce(JobRef) -> Result<(), (JobRef, X)>,
) -> Result<TaskHandle<'static, T>, (X, F)>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Draft::<F, T, (), Carried>::new(f, ()).send(send)
}

/// As [`spawn`], for a job that borrows; `on_end` is told when it is over.
///
/// # Safety
///
/// Until `on_end` has been told, or this has returned an error, the caller lets
/// nothing die that `f` may borrow.
pub(crate) unsafe fn spawn_borrowing<'a, F, T, E, X>(
    f: F,
    on_end: E,
    send: impl FnOnce(JobRef) -> Result<(), (JobRef, X)>,
) -> Result<TaskHandle<'a, T>, (X, F)>
where
    F: FnOnce() -> T + Send + 'a,
    T: Send + 'a,
    E: OnEnd + 'a,
{
    Draft::<F, T, E, Dropped>::new(f, on_end).send(send)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::task::{Context, Waker};
    use std::thread;

    use super::*;

    /// A job and what the queue would hold of it.
    fn task<T: Send + 'static>(
        f: impl FnOnce() -> T + Send + 'static,
    ) -> (TaskHandle<'static, T>, JobRef) {
        let mut sent = None;
        let handle = spawn(f, |job| {
            sent = Some(job);
            Ok::<(), (JobRef, ())>(())
        });
        (handle.ok().unwrap(), sent.unwrap())
    }

    fn execute(job: JobRef) {
        let worker = thread::spawn(move || job.execute(&mut Door::here()));
        worker.join().unwrap();
    }

    #[test]
    fn value_is_taken_by_the_handle() {
        let (mut handle, job) = task(|| "value".to_owned());
        execute(job);
        assert!(handle.wait_until(None));
        assert_eq!(handle.take_result().unwrap(), "value");
    }

    #[test]
    fn closure_of_an_aborted_job_is_dropped_by_the_handle() {
        let captured = Arc::new(());
        let kept = Arc::clone(&captured);
        let (mut handle, job) = task(move || drop(kept));
        drop(job);
        assert_eq!(Arc::strong_count(&captured), 2, "the handle has it");
        assert!(handle.take_result().unwrap_err().is_cancelled());
        assert_eq!(Arc::strong_count(&captured), 1);
    }

    #[test]
    fn what_no_handle_takes_is_dropped_once() {
        let value = Arc::new(());
        let result = Arc::clone(&value);
        let (handle, job) = task(move || result);
        drop(handle);
        execute(job);
        assert_eq!(Arc::strong_count(&value), 1);

        let result = Arc::clone(&value);
        let (handle, job) = task(move || result);
        execute(job);
        assert_eq!(Arc::strong_count(&value), 2);
        drop(handle);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn cancelled_job_does_not_run() {
        let captured = Arc::new(());
        let kept = Arc::clone(&captured);
        let (handle, job) = task(move || -> () { panic!("{kept:?} runs") });
        assert!(handle.cancel() && !handle.cancel());
        execute(job);
        assert_eq!(Arc::strong_count(&captured), 1);
    }

    #[test]
    fn job_that_does_not_go_gives_its_closure_back_and_is_freed() {
        let (captured, on_end) = (Arc::new(()), Arc::new(()));
        let kept = Arc::clone(&captured);
        // SAFETY: it borrows nothing.
        let refused = unsafe {
            spawn_borrowing(
                move || drop(kept),
                Arc::clone(&on_end),
                |job| Err((job, "full")),
            )
        };
        let Err((why, f)) = refused else {
            panic!("it was refused");
        };
        assert_eq!((why, Arc::strong_count(&on_end)), ("full", 1));
        f();
        assert_eq!(Arc::strong_count(&captured), 1);
    }

    #[test]
    fn job_whose_sender_panics_is_freed_with_its_closure() {
        let (captured, on_end) = (Arc::new(()), Arc::new(()));
        let (kept, told) = (Arc::clone(&captured), Arc::clone(&on_end));
        let send = move || {
            // SAFETY: it borrows nothing.
            let sent: Result<_, ((), _)> =
                unsafe { spawn_borrowing(move || drop(kept), told, |_job| panic!("no room")) };
            sent.is_ok()
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(send)).is_err());
        assert_eq!(Arc::strong_count(&captured), 1);
        assert_eq!(Arc::strong_count(&on_end), 1);
    }

    #[test]
    fn waker_is_called_through_the_door() {
        let (mut handle, job) = task(|| 7);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(handle.poll(&mut cx).is_pending());
        execute(job);
        assert!(handle.poll(&mut cx).is_ready());
        assert_eq!(handle.take_result().unwrap(), 7);
    }
}
