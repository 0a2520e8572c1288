//! Closures on their way to a worker, and the one place where their type and
//! their lifetime are erased.
//!
//! A [`JobRef`] is one word that points at a job's [`Header`], wherever the job
//! lives. Whoever holds the `JobRef` owes the job exactly one of
//! [`execute`](JobRef::execute) and [`abort`](JobRef::abort): until then the job
//! stays where it is, and after it the job may be gone.
//!
//! | job          | lives                      | stays because                          |
//! |--------------|----------------------------|----------------------------------------|
//! | [`StackJob`] | on the caller's stack      | its caller waits on the job's latch    |
//! | [`HeapJob`]  | behind an `Arc`, 1 allocation | the `JobRef` owns one of two references |
//!
//! A heap job's life, as flags of its latch:
//!
//! | flag       | set by           | meaning                                                 |
//! |------------|------------------|---------------------------------------------------------|
//! | `STARTED`  | worker           | the closure belongs to the worker; too late to cancel   |
//! | `CANCELLED`| handle           | it will not run; the worker drops the closure           |
//! | `DETACHED` | handle, dropped  | nobody will take the ending: the worker drops it        |
//! | set        | worker           | the ending is stored and belongs to the handle          |
//!
//! `STARTED` and `CANCELLED` bar each other; between `DETACHED` and set, the later
//! one drops the ending.
#![allow(unsafe_code)]

use std::any::Any;
use std::io;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use crate::error::{Error, Kind};
use crate::guard::{Fence, LeftThread, Verdict};
use crate::handoff::latch::{FIRST_FLAG, Latch, WakerLatch};
use crate::sync::UnsafeCell;

const STARTED: u32 = FIRST_FLAG;
const CANCELLED: u32 = FIRST_FLAG << 1;
const DETACHED: u32 = FIRST_FLAG << 2;

/// How a job ended.
pub(crate) enum Ending<T> {
    Returned(T),
    Panicked(Box<dyn Any + Send>),
    /// It never ran.
    Aborted(Error),
    /// It ended one way or the other, and did what the guard forbids.
    Violated(Box<Violation<T>>),
}

/// What the guard found after a job.
pub(crate) struct Violation<T> {
    pub(crate) found: Found,
    pub(crate) result: Result<T, Box<dyn Any + Send>>,
}

pub(crate) enum Found {
    Escaped,
    LeftThreads(Vec<LeftThread>),
    /// The job panicked over something the guard refused.
    Refused,
    /// Where the job left its thread could not be found out.
    Unknown(io::Error),
}

/// Where jobs run: what a worker brings along for them.
pub(crate) struct Site {
    pub(crate) fence: Fence,
    pub(crate) counters: Arc<Counters>,
}

/// What a worker has done. Written by the worker only, before the job's owner is
/// told, so that whoever saw a job end finds it counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    started: AtomicU64,
    done: AtomicU64,
    panicked: AtomicU64,
}

impl Counters {
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn panicked(&self) -> u64 {
        self.panicked.load(Ordering::Relaxed)
    }

    pub(crate) fn is_running(&self) -> bool {
        // `done` first: a job that ends in between is counted, not missed.
        let done = self.done();
        self.started.load(Ordering::Relaxed) > done
    }

    /// One writer, so that no read-modify-write is needed.
    fn bump(counter: &AtomicU64) {
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// What a worker needs to know of a job it ran.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct After {
    /// The thread must run nothing any more.
    pub(crate) spoiled: bool,
    /// It did not end with a plain value.
    pub(crate) boxed: bool,
}

impl After {
    pub(crate) fn of<T>(ending: &Ending<T>) -> After {
        match ending {
            Ending::Returned(_) | Ending::Aborted(_) => After::default(),
            Ending::Panicked(_) => After {
                spoiled: false,
                boxed: true,
            },
            Ending::Violated(violation) => After {
                spoiled: !matches!(violation.found, Found::Refused),
                boxed: true,
            },
        }
    }
}

/// Calls `f` on the worker's thread, and has the guard look at what it did.
pub(crate) fn call<T>(f: impl FnOnce() -> T, site: &mut Site) -> Ending<T> {
    Counters::bump(&site.counters.started);
    site.fence.before_job();
    // The caller gets the payload and decides; nothing of `f` is seen again.
    let result = catch_unwind(AssertUnwindSafe(f));
    let verdict = site.fence.after_job();
    if result.is_err() {
        Counters::bump(&site.counters.panicked);
    }
    Counters::bump(&site.counters.done);
    let found = match verdict {
        Verdict::Clean => match result {
            Ok(value) => return Ending::Returned(value),
            Err(panic) if site.fence.explains(&*panic) => {
                return Ending::Violated(Box::new(Violation {
                    found: Found::Refused,
                    result: Err(panic),
                }));
            }
            Err(panic) => return Ending::Panicked(panic),
        },
        Verdict::Escaped => Found::Escaped,
        Verdict::Unknown(cause) => Found::Unknown(cause),
        Verdict::LeftThreads(threads) => Found::LeftThreads(threads),
    };
    Ending::Violated(Box::new(Violation { found, result }))
}

/// Drops `value`, which may run code of the user's that panics, and the
/// payload's own drop may too.
pub(crate) fn drop_quietly<T>(value: T) {
    let mut panic = match catch_unwind(AssertUnwindSafe(|| drop(value))) {
        Ok(()) => return,
        Err(panic) => panic,
    };
    while let Err(next) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        panic = next;
    }
}

struct Vtable {
    execute: unsafe fn(NonNull<Header>, &mut Site) -> After,
    abort: unsafe fn(NonNull<Header>, Error),
}

/// The first field of every job.
pub(crate) struct Header {
    vtable: &'static Vtable,
}

/// One word that stands for a job, see the module.
pub(crate) struct JobRef {
    job: NonNull<Header>,
}

// SAFETY: jobs are made of closures and results that are `Send`, see
// `StackJob::new` and `HeapJob::new`.
unsafe impl Send for JobRef {}

impl JobRef {
    /// Runs the job and tells its owner.
    pub(crate) fn execute(self, site: &mut Site) -> After {
        let run = self.vtable().execute;
        // SAFETY: the job is live because neither function has been called yet,
        // and `self` is gone after this.
        unsafe { run(self.job, site) }
    }

    /// Gives the job up without running it and tells its owner why.
    pub(crate) fn abort(self, why: Error) {
        let abort = self.vtable().abort;
        // SAFETY: as in `execute`.
        unsafe { abort(self.job, why) }
    }

    fn vtable(&self) -> &'static Vtable {
        // SAFETY: the job is live, see the module.
        unsafe { self.job.as_ref() }.vtable
    }
}

/// Ends the process when it is dropped: for frames that a worker still uses.
pub(crate) struct NoWayOut;

impl Drop for NoWayOut {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// Makes `f` a job on this stack, has `send` hand it to a worker, and waits for
/// its end. `f` may borrow whatever the caller can.
///
/// `send` gives the reference back when it could not be handed over.
pub(crate) fn run_on_stack<F, T>(
    f: F,
    send: impl FnOnce(JobRef) -> Result<(), (JobRef, Error)>,
) -> Ending<T>
where
    F: FnOnce() -> T + Send,
    T: Send,
{
    #[cfg_attr(not(loom), expect(unused_mut, reason = "only models check"))]
    let mut job = StackJob {
        header: Header {
            vtable: &StackJob::<F, T>::VTABLE,
        },
        f: UnsafeCell::new(Some(f)),
        ending: UnsafeCell::new(None),
        latch: Latch::new(),
    };
    let job_ref = JobRef {
        job: NonNull::from(&job).cast(),
    };
    // From here on this frame must stay until the latch is set, whatever happens.
    let stay = NoWayOut;
    let sent = send(job_ref);
    if sent.is_ok() {
        job.latch.wait();
    }
    std::mem::forget(stay);
    #[cfg(loom)]
    job.latch.check_unused();
    match sent {
        Ok(()) => {
            // SAFETY: the latch is set, so the worker has left the cell to us.
            let ending = job.ending.with_mut(|ending| unsafe { (*ending).take() });
            ending.expect("whoever sets the latch stores the ending first")
        }
        Err((_never_sent, why)) => Ending::Aborted(why),
    }
}

/// A job on the stack of a caller that waits for it, see [`run_on_stack`].
#[repr(C)]
struct StackJob<F, T> {
    header: Header,
    f: UnsafeCell<Option<F>>,
    ending: UnsafeCell<Option<Ending<T>>>,
    latch: Latch,
}

impl<F, T> StackJob<F, T>
where
    F: FnOnce() -> T + Send,
    T: Send,
{
    const VTABLE: Vtable = Vtable {
        execute: Self::execute,
        abort: Self::abort,
    };

    unsafe fn execute(job: NonNull<Header>, site: &mut Site) -> After {
        // SAFETY: the caller waits, so the job is live until its latch is set.
        let job = unsafe { job.cast::<Self>().as_ref() };
        // SAFETY: the `JobRef` that was consumed is the only way to the cells.
        let f = job.f.with_mut(|f| unsafe { (*f).take() });
        let ending = call(f.expect("a job runs once"), site);
        let after = After::of(&ending);
        // SAFETY: as above.
        (job.ending).with_mut(|cell| unsafe { *cell = Some(ending) });
        let latch = &raw const job.latch;
        // SAFETY: live until this very call, the last touch.
        unsafe { Latch::set(latch) };
        after
    }

    unsafe fn abort(job: NonNull<Header>, why: Error) {
        // SAFETY: as in `execute`.
        let job = unsafe { job.cast::<Self>().as_ref() };
        // SAFETY: as in `execute`. The closure stays: its caller drops it.
        (job.ending).with_mut(|cell| unsafe { *cell = Some(Ending::Aborted(why)) });
        let latch = &raw const job.latch;
        // SAFETY: as in `execute`.
        unsafe { Latch::set(latch) };
    }
}

/// Told when a job is over and nothing of it is left on the worker.
pub(crate) trait OnEnd: Send + Sync {
    /// `panicked` when nobody took the panic.
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

/// Turns a result into something that an error can carry.
type Pack<T> = fn(T) -> Option<Box<dyn Any + Send>>;

/// A job behind an `Arc`, shared by the queue and the handle.
#[repr(C)]
struct HeapJob<F, T, E> {
    header: Header,
    latch: WakerLatch,
    f: UnsafeCell<ManuallyDrop<Option<F>>>,
    ending: UnsafeCell<Option<Ending<T>>>,
    on_end: E,
    pack: Pack<T>,
}

// SAFETY: the flags at the top of this file give each cell one owner at a time,
// and what is in them may move between threads.
unsafe impl<F: Send, T: Send, E: Send> Send for HeapJob<F, T, E> {}
// SAFETY: as above; `on_end` is shared, and `Sync`.
unsafe impl<F: Send, T: Send, E: Sync> Sync for HeapJob<F, T, E> {}

/// The handle's side of a heap job, whatever its closure.
trait Packet<T> {
    fn latch(&self) -> &WakerLatch;
    /// # Safety
    ///
    /// The latch is set, and the caller is the handle, which calls this once.
    unsafe fn take_ending(&self) -> Option<Ending<T>>;
    /// The queue's side of the job.
    ///
    /// # Safety
    ///
    /// Called once for a job: there is one `JobRef`.
    unsafe fn into_ref(self: Arc<Self>) -> JobRef;
    fn pack(&self) -> Pack<T>;
    fn panic_dropped(&self);
}

impl<F, T, E: OnEnd> Packet<T> for HeapJob<F, T, E> {
    fn latch(&self) -> &WakerLatch {
        &self.latch
    }

    unsafe fn take_ending(&self) -> Option<Ending<T>> {
        // SAFETY: set and not detached: the cell belongs to the handle.
        (self.ending).with_mut(|ending| unsafe { (*ending).take() })
    }

    unsafe fn into_ref(self: Arc<Self>) -> JobRef {
        let job = Arc::into_raw(self).cast_mut();
        JobRef {
            // `HeapJob` is repr(C) with the header first.
            job: NonNull::new(job.cast()).expect("an Arc is not null"),
        }
    }

    fn pack(&self) -> Pack<T> {
        self.pack
    }

    fn panic_dropped(&self) {
        self.on_end.panic_dropped();
    }
}

impl<F, T, E> HeapJob<F, T, E>
where
    F: FnOnce() -> T + Send,
    T: Send,
    E: OnEnd,
{
    const VTABLE: Vtable = Vtable {
        execute: Self::execute,
        abort: Self::abort,
    };

    unsafe fn execute(job: NonNull<Header>, site: &mut Site) -> After {
        // SAFETY: the `JobRef` that was consumed owned this reference, which
        // `spawn` made with `Arc::into_raw`.
        let job = unsafe { Arc::from_raw(job.as_ptr().cast_const().cast::<Self>()) };
        // SAFETY: only the queue's side touches the closure, and that is us.
        let f = job.f.with_mut(|f| unsafe { (*f).take() });
        let f = f.expect("a job runs once");
        if !job.latch.try_flag(STARTED, CANCELLED) {
            drop_quietly(f);
            job.on_end.job_over(false);
            return After::default();
        }
        let ending = call(f, site);
        let after = After::of(&ending);
        job.end(ending);
        after
    }

    unsafe fn abort(job: NonNull<Header>, why: Error) {
        // SAFETY: as in `execute`.
        let job = unsafe { Arc::from_raw(job.as_ptr().cast_const().cast::<Self>()) };
        // SAFETY: as in `execute`.
        drop_quietly(job.f.with_mut(|f| unsafe { (*f).take() }));
        if job.latch.try_flag(STARTED, CANCELLED) {
            job.end(Ending::Aborted(why));
        } else {
            job.on_end.job_over(false);
        }
    }

    /// Stores the ending and tells the handle, or drops it when there is none.
    fn end(&self, ending: Ending<T>) {
        let panicked = matches!(ending, Ending::Panicked(_));
        // SAFETY: STARTED and not set: the cell belongs to the worker.
        (self.ending).with_mut(|cell| unsafe { *cell = Some(ending) });
        let unclaimed = self.latch.complete() & DETACHED != 0;
        if unclaimed {
            // SAFETY: the handle was gone before the latch was set, so the cell
            // is still the worker's.
            drop_quietly((self.ending).with_mut(|ending| unsafe { (*ending).take() }));
        }
        self.on_end.job_over(panicked && unclaimed);
    }
}

/// A job on the heap that is not on its way yet.
struct Draft<F, T, E> {
    job: Arc<HeapJob<F, T, E>>,
}

impl<F, T, E> Draft<F, T, E>
where
    F: FnOnce() -> T + Send,
    T: Send,
    E: OnEnd,
{
    fn new(f: F, on_end: E, pack: Pack<T>) -> Self {
        let job = HeapJob {
            header: Header {
                vtable: &HeapJob::<F, T, E>::VTABLE,
            },
            latch: WakerLatch::new(),
            f: UnsafeCell::new(ManuallyDrop::new(Some(f))),
            ending: UnsafeCell::new(None),
            on_end,
            pack,
        };
        Draft { job: Arc::new(job) }
    }

    /// The handle's side of the job.
    fn into_ticket<'a>(self) -> Ticket<'a, T>
    where
        F: 'a,
        T: 'a,
        E: 'a,
    {
        Ticket {
            packet: self.job,
            taken: false,
        }
    }

    /// Has `send` hand the job over; gives the closure back when it could not.
    fn send<'a, X>(
        self,
        send: impl FnOnce(JobRef) -> Result<(), (JobRef, X)>,
    ) -> Result<Ticket<'a, T>, (X, F)>
    where
        F: 'a,
        T: 'a,
        E: 'a,
    {
        // SAFETY: the draft is gone after this, so it is the only one.
        let job_ref = unsafe { Arc::clone(&self.job).into_ref() };
        let raw = Arc::as_ptr(&self.job);
        match send(job_ref) {
            Ok(()) => Ok(self.into_ticket()),
            Err((back, why)) => {
                let back = back.job.as_ptr().cast_const().cast();
                assert_eq!(back, raw, "`send` returned another job");
                // SAFETY: the reference that came back owns what into_ref took.
                drop(unsafe { Arc::from_raw(back) });
                // SAFETY: no worker has ever seen the job.
                let f = self.job.f.with_mut(|f| unsafe { (*f).take() });
                Err((why, f.expect("the job has not run")))
            }
        }
    }
}

/// Makes `f` a job of its own and has `send` hand it over; gives the closure
/// back when it could not.
pub(crate) fn spawn<F, T, X>(
    f: F,
    send: impl FnOnce(JobRef) -> Result<(), (JobRef, X)>,
) -> Result<Ticket<'static, T>, (X, F)>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Draft::new(f, (), |value| Some(Box::new(value))).send(send)
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
) -> Result<Ticket<'a, T>, (X, F)>
where
    F: FnOnce() -> T + Send + 'a,
    T: Send + 'a,
    E: OnEnd + 'a,
{
    Draft::new(f, on_end, |_| None).send(send)
}

/// Jobs of their own that are handed over together: gives out each once, in
/// their order. Those that are left when it is dropped never run.
pub(crate) struct Batch<'a, T> {
    tickets: Vec<Ticket<'a, T>>,
    /// How many have been given out.
    sent: usize,
}

impl<'a, T: 'a> Batch<'a, T> {
    /// Asks `jobs` for all it has. When it panics, none of them runs.
    fn new<F, E>(jobs: impl IntoIterator<Item = F>, draft: impl Fn(F) -> Draft<F, T, E>) -> Self
    where
        F: FnOnce() -> T + Send + 'a,
        T: Send,
        E: OnEnd + 'a,
    {
        let jobs = jobs.into_iter();
        let mut batch = Batch {
            tickets: Vec::with_capacity(jobs.size_hint().0),
            sent: 0,
        };
        for f in jobs {
            batch.tickets.push(draft(f).into_ticket());
        }
        batch
    }

    /// Has `send` hand all jobs over, if there are any.
    fn send<X>(
        mut self,
        send: impl FnOnce(&mut Self) -> Result<(), X>,
    ) -> Result<Vec<Ticket<'a, T>>, X> {
        if !self.tickets.is_empty() {
            send(&mut self)?;
        }
        assert_eq!(self.sent, self.tickets.len(), "`send` has left out jobs");
        Ok(std::mem::take(&mut self.tickets))
    }
}

impl<T> Iterator for Batch<'_, T> {
    type Item = JobRef;

    fn next(&mut self) -> Option<JobRef> {
        let ticket = self.tickets.get(self.sent)?;
        self.sent += 1;
        // SAFETY: counted as sent, so this is the only time.
        Some(unsafe { Arc::clone(&ticket.packet).into_ref() })
    }
}

impl<T> Drop for Batch<'_, T> {
    fn drop(&mut self) {
        for job in self {
            // Its handle dies with us: nobody reads this.
            job.abort(Error::new(Kind::Cancelled, "job never shipped"));
        }
    }
}

/// Makes each closure a job of its own and has `send` hand all of them over. When
/// it cannot, it takes none, and they are dropped.
pub(crate) fn spawn_batch<F, T, X>(
    jobs: impl IntoIterator<Item = F>,
    send: impl FnOnce(&mut Batch<'static, T>) -> Result<(), X>,
) -> Result<Vec<Ticket<'static, T>>, X>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Batch::new(jobs, |f| Draft::new(f, (), |value| Some(Box::new(value)))).send(send)
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
) -> Result<Vec<Ticket<'a, T>>, X>
where
    F: FnOnce() -> T + Send + 'a,
    T: Send + 'a,
    E: OnEnd + 'a,
{
    Batch::new(jobs, |f| Draft::new(f, on_end(), |_| None)).send(send)
}

/// The handle's side of a spawned job: joins, awaits or cancels it.
pub(crate) struct Ticket<'a, T> {
    packet: Arc<dyn Packet<T> + Send + Sync + 'a>,
    taken: bool,
}

impl<T> Ticket<'_, T> {
    pub(crate) fn is_over(&self) -> bool {
        let latch = self.packet.latch();
        latch.is_set() || latch.flags() & CANCELLED != 0
    }

    /// Gives the job up if it has not started; tells whether it did.
    pub(crate) fn cancel(&self) -> bool {
        let latch = self.packet.latch();
        let cancelled = latch.try_flag(CANCELLED, STARTED | CANCELLED);
        if cancelled {
            latch.wake_for_flag();
        }
        cancelled
    }

    /// Blocks until the job is over or `deadline` has passed; tells which.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> bool {
        self.is_over() || self.packet.latch().wait_until(deadline)
    }

    /// Takes the ending of a job that is over; `None` when it was cancelled.
    pub(crate) fn take_ending(&mut self) -> Option<Ending<T>> {
        assert!(!self.taken, "polled again after it was ready");
        self.taken = true;
        let latch = self.packet.latch();
        if !latch.is_set() {
            return None;
        }
        // SAFETY: set, and `taken` was clear.
        unsafe { self.packet.take_ending() }
    }

    pub(crate) fn pack(&self) -> Pack<T> {
        self.packet.pack()
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.packet.latch().poll(CANCELLED, cx)
    }
}

impl<T> Drop for Ticket<'_, T> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let was_set = self.packet.latch().flag(DETACHED);
        if was_set {
            // SAFETY: set before it was detached, and not taken.
            let ending = unsafe { self.packet.take_ending() };
            if matches!(ending, Some(Ending::Panicked(_))) {
                self.packet.panic_dropped();
            }
            drop_quietly(ending);
        }
    }
}
