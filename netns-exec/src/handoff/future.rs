//! Futures that are polled on workers, of one namespace or, if they are not `Send`, on
//! one of them.
//!
//! A [`FutureJob`] is shared by the queue, its wakers and its handle. Its life, as the
//! bits of one word; each change is one read-modify-write, so that no step waits:
//!
//! | bit       | set by            | cleared by       | meaning                                    |
//! |-----------|-------------------|------------------|--------------------------------------------|
//! | `READY`   | waker, closer     | worker, to begin | there is a `JobRef` of it; while `POLLING`: there will be, afterwards |
//! | `POLLING` | worker, to begin  | the same worker  | the future belongs to this thread          |
//! | `CLOSED`  | handle, executor  | never            | dropped instead of polled from now on      |
//! | `OVER`    | owner of `POLLING`| never            | there is no future any more                |
//! | `LEFT`    | aborter           | never            | never polled, and the handle's to drop     |
//!
//! A waker that finds `READY`, `POLLING` or `OVER` has nothing more to do; one that finds
//! none of them owes the queue a `JobRef`. The worker that clears `POLLING` and finds
//! `READY` owes it one too. So there is never more than one, and a wake-up that comes
//! while the future is polled is not lost.
//!
//! How it ended is told through the latch, as with other heap jobs (see `task`): with
//! `STARTED`, which for a future means that its outcome is settled, so `CANCELLED` can
//! come at any time before. A future is dropped before its handle is told that it is over,
//! except when the handle itself has cancelled it, or when the worker that would drop it
//! cannot be had at once.
#![allow(unsafe_code)]

use std::future::Future;
use std::mem::{self, ManuallyDrop};
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::ThreadId;

use super::counted::{Abortable, Actions, CANCELLED, STARTED};
use super::handle::{Packet, TaskHandle};
use super::job::{Header, JobKind, JobRef, Vtable};
use super::latch::WakerLatch;
use super::outcome::{Door, Outcome, Pack, Violation};
use super::task::tell;
use crate::error::{Error, Kind};
use crate::payload::quietly;
use crate::sync::{AtomicU32, Ordering, UnsafeCell};

const READY: u32 = 1;
const POLLING: u32 = 1 << 1;
const CLOSED: u32 = 1 << 2;
const OVER: u32 = 1 << 3;
const LEFT: u32 = 1 << 4;

/// Has workers come to a future: those of the namespace that it belongs to.
pub(crate) trait Scheduler: Send + Sync + 'static {
    /// Puts the job of a future among those that are ready, and has a worker come.
    /// Neither waits nor runs user code.
    fn schedule(&self, job: JobRef);

    /// The same on the worker that has just polled it, which looks by itself.
    fn put_back(&self, job: JobRef);

    /// Calls `f`, which polls or drops the future when it is called first, inside of
    /// what the user wants around that; `waker` is the address that the poll's waker is known by.
    fn surround(&self, waker: usize, f: &mut dyn FnMut());

    /// Whether a worker will come to what is scheduled.
    fn is_served(&self) -> bool;

    /// Whether the calling thread is the only one that the future can be polled on.
    fn depends_on_this_thread(&self) -> bool;

    /// There is no future any more. Called once.
    fn over(&self);
}

/// A future that is not over, whatever it is.
pub(crate) trait Task: Send + Sync {
    /// Has it dropped by the next worker that comes to it, instead of polled. Its owner
    /// is told that it has been cancelled.
    fn close(self: Arc<Self>);

    /// Gives it up, because no worker will come to it any more.
    fn fail(self: Arc<Self>, why: Error);

    /// Drops it, if it can be dropped on the calling thread only: a worker that is about
    /// to leave.
    fn end_here(&self, door: &mut Door);

    /// Gives it up, if it belongs to that thread, which has ended.
    fn lose(&self, thread: ThreadId, why: &Error);
}

/// What there is of a future. It stays where it is once it is built.
enum Stage<B, F> {
    /// Makes it, on the worker.
    Unbuilt(B),
    Built(F),
    Gone,
}

struct Staged<B, F> {
    stage: Stage<B, F>,
    /// Whether it has ever been polled, or begun to be built.
    polled: bool,
}

/// See the module.
#[repr(C)]
struct FutureJob<B, F, T, P> {
    header: Header,
    state: AtomicU32,
    latch: WakerLatch,
    /// Belongs to the thread that has set `POLLING`, or with `LEFT` to the handle.
    staged: UnsafeCell<ManuallyDrop<Staged<B, F>>>,
    outcome: UnsafeCell<Option<Outcome<T>>>,
    /// For a future that is not `Send`: the thread it was built on, and stays on.
    bound: Option<OnceLock<ThreadId>>,
    scheduler: P,
}

// SAFETY: what is in the cells has one owner at a time, see the module, and may move
// between threads: the makers at the end of this file demand it, of all but a built future
// that is bound to a thread, which `staged` then touches on that thread only.
unsafe impl<B: Send, F, T: Send, P: Send> Send for FutureJob<B, F, T, P> {}
// SAFETY: as above; `scheduler` is shared, and `Sync`.
unsafe impl<B: Send, F, T: Send, P: Sync> Sync for FutureJob<B, F, T, P> {}

impl<B, F, T, P> FutureJob<B, F, T, P>
where
    B: FnOnce() -> F + Send + 'static,
    F: Future<Output = T> + 'static,
    T: Send + 'static,
    P: Scheduler,
{
    const VTABLE: Vtable = Vtable {
        execute: Self::execute,
        abort: Self::abort,
        lose: Self::lose,
        kind: JobKind::Poll,
    };

    /// A future that nothing has been promised about yet, and the only `JobRef` of it.
    fn new(stage: Stage<B, F>, is_bound: bool, scheduler: P) -> (Arc<Self>, JobRef) {
        let job = Arc::new(FutureJob {
            header: Header::new(&Self::VTABLE),
            state: AtomicU32::new(READY),
            latch: WakerLatch::new(1),
            staged: UnsafeCell::new(ManuallyDrop::new(Staged {
                stage,
                polled: false,
            })),
            outcome: UnsafeCell::new(None),
            bound: is_bound.then(OnceLock::new),
            scheduler,
        });
        let job_ref = Arc::clone(&job).into_job();
        (job, job_ref)
    }

    /// For the thread that has made `READY` true while there was no `JobRef`.
    fn into_job(self: Arc<Self>) -> JobRef {
        let job = Arc::into_raw(self).cast_mut();
        // `FutureJob` is repr(C) with the header first.
        let job = NonNull::new(job.cast()).expect("an Arc is not null");
        // SAFETY: the reference that `into_raw` took keeps the job; that there is one
        // `JobRef` at a time is what the bits are for.
        unsafe { JobRef::new(job) }
    }

    /// Notes that there is something to do; tells whether the caller owes a `JobRef`.
    ///
    /// AcqRel: what the waker wrote before is visible to the poll that it asks for, also
    /// when another waker came first.
    fn note(&self, bits: u32) -> bool {
        let before = self.state.fetch_or(bits | READY, Ordering::AcqRel);
        before & (READY | POLLING | OVER) == 0
    }

    /// Turns the `JobRef` that has been consumed into the right to the future; returns
    /// the state before.
    fn begin(&self) -> u32 {
        // Acquire: the last poll's changes are visible, and so is what wakers wrote.
        let before = self.state.fetch_xor(READY | POLLING, Ordering::AcqRel);
        debug_assert!(before & READY != 0, "a job of a future that is not ready");
        before
    }

    unsafe fn execute(job: NonNull<Header>, door: &mut Door) {
        // SAFETY: the `JobRef` that was consumed owned this reference, see `into_job`.
        let job = unsafe { Arc::from_raw(job.as_ptr().cast_const().cast::<Self>()) };
        let before = job.begin();
        if before & OVER != 0 {
            door.at().end();
            return;
        }
        job.check_thread();
        if before & CLOSED != 0 {
            return job.finish(Outcome::Aborted(dropped()), door);
        }
        let outcome = match job.poll(door) {
            Outcome::Returned(Poll::Pending) => {
                door.at().end();
                // Release: what the poll changed is visible to the next one.
                if job.state.fetch_and(!POLLING, Ordering::AcqRel) & READY != 0 {
                    // To the end of the queue, so that others have their turn.
                    job.scheduler.put_back(Arc::clone(&job).into_job());
                }
                return;
            }
            Outcome::Returned(Poll::Ready(value)) => Outcome::Returned(value),
            Outcome::Panicked(panic) => Outcome::Panicked(panic),
            Outcome::Aborted(error) => Outcome::Aborted(error),
            Outcome::Violated(violation) => return job.finish_elsewhere(*violation, door),
        };
        job.finish(outcome, door);
    }

    /// Runs none of the user's code but a waker, unless there is no handle, or no worker
    /// that could drop what has been polled.
    unsafe fn abort(job: NonNull<Header>, why: Error) {
        // SAFETY: as in `execute`.
        let job = unsafe { Arc::from_raw(job.as_ptr().cast_const().cast::<Self>()) };
        if job.begin() & OVER != 0 {
            return;
        }
        let polled = job.staged.with_mut(|staged| {
            // SAFETY: POLLING is this thread's.
            let staged: &mut Staged<B, F> = unsafe { &mut *staged };
            staged.polled
        });
        if !polled {
            job.state.fetch_or(OVER | LEFT, Ordering::AcqRel);
            job.scheduler.over();
            if !job.settle(Outcome::Aborted(why), None) {
                job.drop_quietly();
            }
        } else if job.scheduler.is_served() {
            job.settle(Outcome::Aborted(why), None);
            job.hand_over();
        } else {
            if job.bound.is_none() {
                job.drop_quietly();
            }
            job.state.fetch_or(OVER, Ordering::AcqRel);
            job.scheduler.over();
            job.settle(Outcome::Aborted(why), None);
        }
    }

    unsafe fn lose(job: NonNull<Header>, why: Error) {
        // SAFETY: as in `execute`.
        let job = unsafe { Arc::from_raw(job.as_ptr().cast_const().cast::<Self>()) };
        job.leave_lost(why);
    }

    /// Leaves the future where it is, undropped, as the only thread that had the right to it
    /// has ended.
    fn leave_lost(&self, why: Error) {
        if self.state.fetch_or(OVER, Ordering::AcqRel) & OVER == 0 {
            self.scheduler.over();
        }
        self.settle(Outcome::Aborted(why), None);
    }

    /// Gives the right to the future to the next worker, which drops it.
    fn hand_over(self: Arc<Self>) {
        self.state.fetch_or(CLOSED | READY, Ordering::AcqRel);
        self.state.fetch_and(!POLLING, Ordering::AcqRel);
        self.scheduler.schedule(Arc::clone(&self).into_job());
    }

    fn is_bound_to(&self, thread: ThreadId) -> bool {
        self.bound.as_ref().and_then(OnceLock::get) == Some(&thread)
    }

    fn check_thread(&self) {
        if let Some(bound) = &self.bound {
            let here = std::thread::current().id();
            assert_eq!(
                *bound.get_or_init(|| here),
                here,
                "future that is bound to a thread met another one"
            );
        }
    }

    /// Polls the future once. The caller has the right to it.
    fn poll(self: &Arc<Self>, door: &mut Door) -> Outcome<Poll<T>> {
        // SAFETY: not dropped: counted by `self`, which is borrowed longer.
        let lent = unsafe { Arc::from_raw(Arc::as_ptr(self)) };
        let waker = ManuallyDrop::new(Waker::from(lent));
        let mut cx = Context::from_waker(&waker);
        door.poll(|| {
            let mut polled = None;
            let mut poll = || {
                if polled.is_none() {
                    polled = Some(self.poll_stage(&mut cx));
                }
            };
            self.scheduler.surround(waker.data().addr(), &mut poll);
            polled.expect("a scheduler calls what it surrounds")
        })
    }

    fn poll_stage(&self, cx: &mut Context<'_>) -> Poll<T> {
        self.staged.with_mut(|staged| {
            // SAFETY: POLLING is this thread's.
            let staged: &mut Staged<B, F> = unsafe { &mut *staged };
            staged.polled = true;
            if let Stage::Unbuilt(_) = staged.stage {
                let Stage::Unbuilt(build) = mem::replace(&mut staged.stage, Stage::Gone) else {
                    unreachable!("looked at above")
                };
                staged.stage = Stage::Built(build());
            }
            let Stage::Built(future) = &mut staged.stage else {
                panic!("future polled again after its maker had panicked")
            };
            // SAFETY: it is in an `Arc`, is dropped in place, and is not moved before.
            let future = unsafe { Pin::new_unchecked(future) };
            future.poll(cx)
        })
    }

    /// Drops what there is of the future, in place. The caller has the right to it.
    fn empty(&self) {
        self.staged.with_mut(|staged| {
            // SAFETY: POLLING, or LEFT, is this thread's.
            let staged: &mut Staged<B, F> = unsafe { &mut *staged };
            staged.stage = Stage::Gone;
        });
    }

    fn drop_quietly(&self) {
        quietly(|| self.empty());
    }

    fn empty_through(&self, door: &mut Door) {
        const WHAT: &str = "drop of a future";
        let surrounded = door.run(WHAT, || {
            self.scheduler.surround(0, &mut || self.empty());
        });
        if surrounded.is_none() {
            // Should what is around it have panicked first. An empty one stays so.
            door.run(WHAT, || self.empty());
        }
    }

    /// Drops the future and tells its owner how it ended.
    fn finish(&self, outcome: Outcome<T>, door: &mut Door) {
        self.empty_through(door);
        self.state.fetch_or(OVER, Ordering::AcqRel);
        self.scheduler.over();
        self.settle(outcome, Some(door));
        door.at().end();
    }

    /// Tells the owner what the guard has found, and leaves the drop to a worker that is
    /// fit for it, unless the future is bound to this one.
    fn finish_elsewhere(self: Arc<Self>, violation: Violation<Poll<T>>, door: &mut Door) {
        let Violation { finding, result } = violation;
        let outcome = match result {
            Ok(Poll::Pending) => Outcome::Aborted(finding.into_error()),
            Ok(Poll::Ready(value)) => Outcome::violated(finding, Ok(value)),
            Err(panic) => Outcome::violated(finding, Err(panic)),
        };
        if self.bound.is_some() {
            return self.finish(outcome, door);
        }
        self.settle(outcome, Some(door));
        door.at().end();
        self.hand_over();
    }

    /// Stores the outcome and tells the handle, or drops it when the handle has been told
    /// something else, or there is none. Tells whether there is a handle that takes it.
    fn settle(&self, outcome: Outcome<T>, mut door: Option<&mut Door>) -> bool {
        let mut through = |what, f: &mut dyn FnMut()| match &mut door {
            Some(door) => drop(door.run(what, f)),
            None => quietly(f),
        };
        if !self.latch.try_flag(STARTED, STARTED | CANCELLED) {
            let mut outcome = Some(outcome);
            through("drop of a result", &mut || drop(outcome.take()));
            return false;
        }
        tell(&self.latch, &self.outcome, outcome, &mut through)
    }
}

fn dropped() -> Error {
    Error::new(
        Kind::Cancelled,
        "future dropped before it had ended: the workers of its namespace were retired",
    )
}

impl<B, F, T, P> Wake for FutureJob<B, F, T, P>
where
    B: FnOnce() -> F + Send + 'static,
    F: Future<Output = T> + 'static,
    T: Send + 'static,
    P: Scheduler,
{
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.note(0) {
            self.scheduler.schedule(Arc::clone(self).into_job());
        }
    }
}

impl<B, F, T, P> Task for FutureJob<B, F, T, P>
where
    B: FnOnce() -> F + Send + 'static,
    F: Future<Output = T> + 'static,
    T: Send + 'static,
    P: Scheduler,
{
    fn close(self: Arc<Self>) {
        if self.note(CLOSED) {
            self.scheduler.schedule(Arc::clone(&self).into_job());
        }
    }

    fn fail(self: Arc<Self>, why: Error) {
        if self.note(CLOSED) {
            self.into_job().abort(why);
        }
    }

    fn end_here(&self, door: &mut Door) {
        if self.is_bound_to(std::thread::current().id())
            && self.state.load(Ordering::Acquire) & OVER == 0
        {
            self.finish(Outcome::Aborted(dropped()), door);
        }
    }

    fn lose(&self, thread: ThreadId, why: &Error) {
        if self.is_bound_to(thread) {
            self.leave_lost(why.duplicate());
        }
    }
}

// SAFETY: the references that the latch counts own one of the `Arc` together, by the
// pointer that `make` got from it.
unsafe impl<B, F, T, P> Abortable for FutureJob<B, F, T, P>
where
    B: FnOnce() -> F + Send + 'static,
    F: Future<Output = T> + 'static,
    T: Send + 'static,
    P: Scheduler,
{
    fn latch(&self) -> &WakerLatch {
        &self.latch
    }

    fn actions(&self) -> &'static Actions {
        &Actions {
            // SAFETY: the last of them gives up what they own.
            free: |job| drop(unsafe { Arc::from_raw(job.cast::<Self>().as_ptr()) }),
            cancelled: |job| {
                let job = job.cast::<Self>().as_ptr().cast_const();
                // SAFETY: it is live, which is what they own it for.
                unsafe { Arc::increment_strong_count(job) };
                // SAFETY: counted just now.
                unsafe { Arc::from_raw(job) }.close();
            },
        }
    }
}

impl<B, F, T, P> Packet<T> for FutureJob<B, F, T, P>
where
    B: FnOnce() -> F + Send + 'static,
    F: Future<Output = T> + 'static,
    T: Send + 'static,
    P: Scheduler,
{
    unsafe fn take_outcome(&self) -> Option<Outcome<T>> {
        // SAFETY: set and not detached: the cell belongs to the handle.
        let outcome = (self.outcome).with_mut(|outcome| unsafe { (*outcome).take() });
        if self.state.load(Ordering::Acquire) & LEFT != 0 {
            self.drop_quietly();
        }
        outcome
    }

    fn pack(&self) -> Pack<T> {
        |value| Some(Box::new(value))
    }

    fn panic_dropped(&self) {}

    fn depends_on_this_thread(&self) -> bool {
        self.scheduler.depends_on_this_thread()
    }

    fn why_cancelled(&self) -> &'static str {
        "future cancelled before it had ended"
    }
}

/// A future with its scheduler.
pub(crate) trait Scheduled<P>: Task {
    fn scheduler(&self) -> &P;
}

impl<B, F, T, P> Scheduled<P> for FutureJob<B, F, T, P>
where
    B: FnOnce() -> F + Send + 'static,
    F: Future<Output = T> + 'static,
    T: Send + 'static,
    P: Scheduler,
{
    fn scheduler(&self) -> &P {
        &self.scheduler
    }
}

/// A future on its way to be polled for the first time.
pub(crate) struct Unsent<T, P> {
    pub(crate) task: Arc<dyn Scheduled<P>>,
    pub(crate) job: JobRef,
    pub(crate) handle: TaskHandle<'static, T>,
}

/// Makes a job of a future that any worker of its scheduler may poll.
pub(crate) fn draft<F, P>(future: F, scheduler: impl FnOnce() -> P) -> Unsent<F::Output, P>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
    P: Scheduler,
{
    type Built<F> = fn() -> F;
    make(Stage::<Built<F>, F>::Built(future), false, scheduler())
}

/// Makes a job of the future that `build` makes on the first worker of its scheduler that
/// comes to it, which is the only thread that ever touches it.
pub(crate) fn draft_local<B, F, P>(build: B, scheduler: impl FnOnce() -> P) -> Unsent<F::Output, P>
where
    B: FnOnce() -> F + Send + 'static,
    F: Future + 'static,
    F::Output: Send + 'static,
    P: Scheduler,
{
    make(Stage::Unbuilt(build), true, scheduler())
}

fn make<B, F, T, P>(stage: Stage<B, F>, is_bound: bool, scheduler: P) -> Unsent<T, P>
where
    B: FnOnce() -> F + Send + 'static,
    F: Future<Output = T> + 'static,
    T: Send + 'static,
    P: Scheduler,
{
    let (job, job_ref) = FutureJob::new(stage, is_bound, scheduler);
    let task = Arc::clone(&job) as _;
    let job = NonNull::new(Arc::into_raw(job).cast_mut()).expect("an Arc is not null");
    Unsent {
        task,
        job: job_ref,
        // SAFETY: the latch counts one, which owns what `into_raw` took.
        handle: unsafe { TaskHandle::new(job) },
    }
}
