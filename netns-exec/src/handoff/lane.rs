//! The lane between callers and one worker: cache lines that carry a
//! small closure there and its result back, and the word the worker parks on. What
//! callers have learnt of the worker has a line of its own, and so has where it is.
//!
//! | line  | written by        | holds                                            |
//! |-------|-------------------|--------------------------------------------------|
//! | gate  | callers, parking worker | who may use the lane: a number and four flags |
//! | request | the caller that owns the lane | the number again once the job is in; the job |
//! | reply | the worker        | the number again once the job is done; its result |
//!
//! The number counts calls. The caller that moves the gate from `n` (free) to
//! `n+1 | OWNED` owns the lane: it writes the job, posts `n+1` in the request, waits
//! for `n+1` in the reply, reads the result and clears `OWNED`.
//!
//! | gate flag | set by  | cleared by          | meaning                                  |
//! |-----------|---------|---------------------|------------------------------------------|
//! | `OWNED`   | caller  | the same caller     | a call is under way                      |
//! | `BUSY`    | worker  | worker              | it runs jobs of the queue: use the queue |
//! | `PARKED`  | worker  | who wakes it        | it sleeps on the gate, or is about to    |
//! | `CLOSED`  | worker, on leaving | the next worker of the lane | no worker        |
//!
//! A claim succeeds from `n` and from `n | PARKED` (the claimer then owes the
//! wake-up) and from nothing else. The worker sets each of its flags by comparing
//! with the number it has served last: when a claim came first the comparison
//! fails and the worker turns to the call. `n | OWNED` with the worker's own
//! number means a caller that has its result and has not let go yet; the worker
//! may park or leave meanwhile.
//!
//! No wake-up is lost. Claimers see `PARKED` in the value they replace. Senders to
//! the queue push, then look at the gate; the worker sets `PARKED`, then looks at
//! the queue; both with a sequentially consistent fence in between, so at least one
//! of them sees the other (x86-64 and aarch64 both let a store pass a later load).
//!
//! There is unsafe code here, besides that of `job`, `task`, `scope` and `latch`, because a closure
//! that travels in the lane's own bytes belongs to one side at a time, and it is the
//! gate that says to which.
#![allow(unsafe_code)]

use std::mem::{self, MaybeUninit};
use std::time::{Duration, Instant};

use super::caller::{Caller, Plan};
use super::job::AbortOnUnwind;
use super::outcome::{Door, Outcome};
use super::placement::{Cpu, CpuHint, Whereabouts};
use crate::sync::{AtomicU32, Ordering, UnsafeCell, fence, futex_wait, futex_wake, yield_now};

const OWNED: u32 = 1;
const BUSY: u32 = 1 << 1;
const PARKED: u32 = 1 << 2;
const CLOSED: u32 = 1 << 3;
const FLAGS: u32 = OWNED | BUSY | PARKED | CLOSED;
/// The gate counts in steps of this. It wraps: only equality is ever asked. Built with
/// `--cfg netns_wrap` there are two numbers in all, so that every other call does.
const CALL: u32 = if cfg!(netns_wrap) { 1 << 31 } else { 1 << 4 };

/// In the reply: the caller sleeps on the word.
const ASLEEP: u32 = 1;

const REQUEST: usize = 48;
const REPLY: usize = 56;

/// A job in the lane: reads the closure from the request, writes the outcome to the
/// reply, and returns how: 0 for a plain value, or [`BOXED`].
type Call = unsafe fn(*mut Request, *mut Reply, &mut Door) -> u32;

struct Request {
    call: Option<Call>,
    closure: Room<REQUEST>,
}

type Reply = Room<REPLY>;

/// Bytes that hold a value of whatever type is small enough.
#[repr(align(8))]
struct Room<const N: usize>([MaybeUninit<u8>; N]);

impl<const N: usize> Room<N> {
    const fn new() -> Self {
        Room([MaybeUninit::uninit(); N])
    }

    const fn fits<X>() -> bool {
        size_of::<X>() <= N && align_of::<X>() <= align_of::<Self>()
    }

    fn put<X>(&mut self, value: X) {
        assert!(Self::fits::<X>());
        // SAFETY: the bytes are ours, enough of them, and aligned.
        unsafe { self.0.as_mut_ptr().cast::<X>().write(value) };
    }

    /// # Safety
    ///
    /// The last thing that was `put` is an `X` that has not been taken yet.
    unsafe fn take<X>(&self) -> X {
        assert!(Self::fits::<X>());
        // SAFETY: it is there, the caller says; read as it was written.
        unsafe { self.0.as_ptr().cast::<X>().read() }
    }
}

#[repr(align(64))]
struct Line<T>(T);

/// See the module.
pub(crate) struct Lane {
    gate: Line<AtomicU32>,
    request: Line<RequestLine>,
    reply: Line<ReplyLine>,
    /// What callers have learnt; belongs to the one that owns the lane.
    caller: Line<UnsafeCell<Caller>>,
    worker: Whereabouts,
}

struct RequestLine {
    posted: AtomicU32,
    job: UnsafeCell<Request>,
    /// Where the caller runs. Belongs to the job.
    from: CpuHint,
}

struct ReplyLine {
    done: AtomicU32,
    result: UnsafeCell<Reply>,
    /// Where the worker ran its last job.
    cpu: CpuHint,
}

// SAFETY: the gate gives each cell one owner at a time: the request is the owning
// caller's until it is posted and the worker's until the call is done; the reply is
// the worker's until the call is done and the caller's until it lets go. Closures
// and results are `Send`, see `Claim::run`.
unsafe impl Send for Lane {}
// SAFETY: as above.
unsafe impl Sync for Lane {}

impl Lane {
    pub(crate) fn new() -> Lane {
        Lane {
            gate: Line(AtomicU32::new(CLOSED)),
            request: Line(RequestLine {
                posted: AtomicU32::new(0),
                job: UnsafeCell::new(Request {
                    call: None,
                    closure: Room::new(),
                }),
                from: CpuHint::new(),
            }),
            reply: Line(ReplyLine {
                done: AtomicU32::new(0),
                result: UnsafeCell::new(Reply::new()),
                cpu: CpuHint::new(),
            }),
            caller: Line(UnsafeCell::new(Caller::new())),
            worker: Whereabouts::new(),
        }
    }

    /// Takes the lane for one call, if its worker is free.
    #[inline]
    pub(crate) fn claim(&self) -> Option<Claim<'_>> {
        let gate = self.gate.0.load(Ordering::Relaxed);
        if gate & (FLAGS & !PARKED) != 0 {
            return None;
        }
        let claimed = (gate & !FLAGS).wrapping_add(CALL) | OWNED;
        // Acquire: pairs with the Release of the caller before us, which has
        // read its result from the line that our worker will write.
        self.gate
            .0
            .compare_exchange(gate, claimed, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        Some(Claim {
            lane: self,
            number: claimed & !FLAGS,
            parked: gate & PARKED != 0,
        })
    }

    /// Whether the worker is awake and free, at this moment.
    pub(crate) fn is_awake_and_free(&self) -> bool {
        self.gate.0.load(Ordering::Relaxed) & FLAGS == 0
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.gate.0.load(Ordering::Acquire) & CLOSED != 0
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.gate.0.load(Ordering::Relaxed) & PARKED != 0
    }

    /// Wakes the worker if it is parked; tells whether it did.
    ///
    /// The caller has put something where the worker looks before it parks, and
    /// a [`fence`] of sequential consistency after that.
    pub(crate) fn wake(&self) -> bool {
        let mut gate = self.gate.0.load(Ordering::Relaxed);
        while gate & PARKED != 0 {
            match self.gate.0.compare_exchange_weak(
                gate,
                gate & !PARKED,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    futex_wake(&self.gate.0);
                    return true;
                }
                Err(now) => gate = now,
            }
        }
        false
    }

    /// Makes the calling thread the lane's worker, if it has none; a busy one, until it
    /// says that it is [not](Serving::end_busy).
    pub(crate) fn open(&self) -> Option<Serving<'_>> {
        if !self.is_closed() {
            return None;
        }
        // Before the lane is open: until then a caller would move the worker before
        // this, and its number may be another thread's by now.
        self.worker.begin();
        // Acquire: the worker before us has left the lines alone since. Release:
        // for who claims the lane and sees the line before this.
        let gate = (self.gate.0)
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |gate| {
                // OWNED stays: the last caller may not have let go yet.
                (gate & CLOSED != 0).then_some(gate & !(CLOSED | PARKED) | BUSY)
            })
            .ok()?;
        Some(Serving {
            lane: self,
            served: gate & !FLAGS,
            sent_away: false,
        })
    }
}

/// The right to make one call through a lane.
pub(crate) struct Claim<'a> {
    lane: &'a Lane,
    number: u32,
    /// The worker slept when the lane was claimed: waking it is up to us.
    parked: bool,
}

/// What travels when the closure or its result is too large for a line: a
/// pointer to both, on the caller's stack.
struct Frame<F, T> {
    f: Option<F>,
    outcome: Option<Outcome<T>>,
}

impl Claim<'_> {
    /// Ships `f` to the worker and waits for its end; gives `f` back when the
    /// worker had to leave without running it. `f` may borrow whatever the
    /// caller can.
    #[inline]
    pub(crate) fn run<F, T>(self, f: F, may_spin: bool) -> Result<Outcome<T>, F>
    where
        F: FnOnce() -> T + Send,
        T: Send,
    {
        if const { Room::<REQUEST>::fits::<F>() && Reply::fits::<T>() } {
            self.put(call_inline::<F, T>, f);
            let how = self.post_and_wait(may_spin);
            let outcome = self.lane.reply.0.result.with_mut(|reply| {
                // SAFETY: done and not let go: the reply is ours.
                let reply = unsafe { &*reply };
                match how {
                    // SAFETY: `call_inline` has put a T and said so.
                    0 => Some(Outcome::Returned(unsafe { reply.take() })),
                    // SAFETY: `call_inline` has put a box and said so.
                    BOXED => Some(*unsafe { reply.take::<Box<Outcome<T>>>() }),
                    _ => None,
                }
            });
            let outcome = outcome.ok_or_else(|| {
                self.lane.request.0.job.with_mut(|request| {
                    // SAFETY: done: the request is ours again.
                    let request = unsafe { &*request };
                    // SAFETY: refused: the closure is where we put it.
                    unsafe { request.closure.take() }
                })
            });
            self.let_go();
            outcome
        } else {
            let mut frame = Frame {
                f: Some(f),
                outcome: None,
            };
            let at = &raw mut frame;
            self.put(call_framed::<F, T>, at);
            self.post_and_wait(may_spin);
            self.let_go();
            // SAFETY: done: the worker has left the frame, which is ours again.
            // Through `at`, because the worker wrote through it.
            let frame = unsafe { &mut *at };
            match (frame.outcome.take(), frame.f.take()) {
                (Some(outcome), _) => Ok(outcome),
                (None, Some(f)) => Err(f),
                (None, None) => unreachable!("a job that was taken has an outcome"),
            }
        }
    }

    #[inline]
    fn put<X>(&self, call: Call, closure: X) {
        self.lane.request.0.job.with_mut(|request| {
            // SAFETY: the claim makes the request ours until it is posted.
            let request = unsafe { &mut *request };
            request.call = Some(call);
            request.closure.put(closure);
        });
    }

    /// Returns how it ended: 0, `BOXED` or `REFUSED`.
    #[inline]
    fn post_and_wait(&self, may_spin: bool) -> u32 {
        // From here to the end the worker uses lines and frames of ours.
        let stay = AbortOnUnwind;
        let here = Cpu::here();
        let word = self.lane.caller.0.with_mut(|caller| {
            // SAFETY: the claim makes it ours.
            let caller = unsafe { &mut *caller };
            let awake_on = (!self.parked).then(|| self.lane.reply.0.cpu.get());
            let apart = awake_on.is_some_and(|cpu| !cpu.is(here));
            if !(apart && may_spin && caller.may_spin()) {
                let plan = caller.plan(&self.lane.worker, awake_on, here, may_spin);
                return self.call(plan, here, caller);
            }
            self.post(here, false);
            caller.spin(&self.lane.worker, || self.done().is_some());
            self.done().unwrap_or_else(|| self.sleep())
        });
        mem::forget(stay);
        word & (BOXED | REFUSED)
    }

    /// Makes a call that is not over within a spin: the worker sleeps, or runs on
    /// this very CPU, or has been slow of late.
    #[cold]
    fn call(&self, plan: Plan, here: Cpu, caller: &mut Caller) -> u32 {
        self.post(here, plan.moves);
        if self.parked {
            futex_wake(&self.lane.gate.0);
        }
        plan.spin(|| self.done().is_some());
        let word = self.sleep();
        let ran_on = self.lane.reply.0.cpu.get();
        caller.learn(&plan, &self.lane.worker, here, ran_on);
        word
    }

    #[inline]
    fn post(&self, here: Cpu, moved: bool) {
        let request = &self.lane.request.0;
        request.from.set(here, moved);
        // Release: the job is visible to the worker that sees the number.
        request.posted.store(self.number, Ordering::Release);
    }

    /// The word in the reply, if it says that the call is done.
    #[inline]
    fn done(&self) -> Option<u32> {
        // Acquire: the result is visible to us.
        let word = self.lane.reply.0.done.load(Ordering::Acquire);
        (word & !FLAGS == self.number).then_some(word)
    }

    /// Waits for the end of the call, if it is not over.
    fn sleep(&self) -> u32 {
        let reply = &self.lane.reply.0.done;
        loop {
            if let Some(word) = self.done() {
                return word;
            }
            let now = reply.load(Ordering::Relaxed);
            if now & !FLAGS == self.number {
                continue;
            }
            // Relaxed: the worker finds ASLEEP by an RMW on the same word.
            if now & ASLEEP != 0
                || (reply.compare_exchange(now, now | ASLEEP, Ordering::Relaxed, Ordering::Relaxed))
                    .is_ok()
            {
                futex_wait(reply, now | ASLEEP, None);
            }
        }
    }

    /// Hands the lane to the next caller.
    #[inline]
    fn let_go(&self) {
        // An RMW because the worker may set PARKED or CLOSED meanwhile.
        // Release: our reads of the result come before the next claim.
        self.lane.gate.0.fetch_and(!OWNED, Ordering::Release);
    }
}

/// In the reply: the result is a boxed [`Outcome`], because the job did not return.
const BOXED: u32 = 1 << 1;
/// In the reply: the closure has not been touched, because the worker must leave.
const REFUSED: u32 = 1 << 2;

/// # Safety
///
/// For both calls: posted and not done, so that both lines are the worker's, and
/// the request holds what [`Claim::run`] put there for this very call.
unsafe fn call_inline<F, T>(request: *mut Request, reply: *mut Reply, door: &mut Door) -> u32
where
    F: FnOnce() -> T,
{
    // SAFETY: the worker's.
    let request = unsafe { &*request };
    // SAFETY: an F was put there.
    let f: F = unsafe { request.closure.take() };
    let outcome = door.call(f);
    // SAFETY: the worker's.
    let reply = unsafe { &mut *reply };
    match outcome {
        Outcome::Returned(value) => {
            reply.put(value);
            0
        }
        other => {
            reply.put(Box::new(other));
            BOXED
        }
    }
}

unsafe fn call_framed<F, T>(request: *mut Request, _reply: *mut Reply, door: &mut Door) -> u32
where
    F: FnOnce() -> T,
{
    // SAFETY: the worker's.
    let request = unsafe { &*request };
    // SAFETY: a pointer to the caller's frame was put there.
    let frame: *mut Frame<F, T> = unsafe { request.closure.take() };
    // SAFETY: the caller waits, so its frame is live, and leaves it to us.
    let frame = unsafe { &mut *frame };
    let f = frame.f.take().expect("a job runs once");
    frame.outcome = Some(door.call(f));
    0
}

/// The worker's side of a lane.
pub(crate) struct Serving<'a> {
    lane: &'a Lane,
    /// The number of the last call that was served.
    served: u32,
    /// The last caller has sent it to another CPU, and it has not been asked yet.
    sent_away: bool,
}

impl Serving<'_> {
    /// Whether a call waits.
    #[inline]
    pub(crate) fn has_call(&self) -> bool {
        self.lane.request.0.posted.load(Ordering::Relaxed) == self.served.wrapping_add(CALL)
    }

    /// Runs the call that waits, if any.
    #[inline]
    pub(crate) fn serve(&mut self, door: &mut Door) {
        let number = self.served.wrapping_add(CALL);
        let RequestLine {
            posted,
            job: request,
            from,
        } = &self.lane.request.0;
        let reply = &self.lane.reply.0.result;
        // Acquire: the job is visible to us.
        if posted.load(Ordering::Acquire) != number {
            return;
        }
        if from.has_moved() {
            self.lane.worker.go_back();
            self.sent_away = !self.is_beside_caller();
        }
        // The caller waits for this thread, whatever happens.
        let stay = AbortOnUnwind;
        let how = request.with_mut(|request| {
            reply.with_mut(|reply| {
                // SAFETY: posted: the caller has written this, and leaves it.
                let call = unsafe { (*request).call }.expect("posted with a call");
                // SAFETY: it is the one that was written with the closure.
                unsafe { call(request, reply, door) }
            })
        });
        mem::forget(stay);
        self.done(number | how);
    }

    /// Waits for the job of a caller that has claimed the lane.
    ///
    /// It follows within a few instructions, unless the caller was interrupted:
    /// with a single CPU it is this thread that keeps it from going on.
    pub(crate) fn await_post(&self) {
        while !self.has_call() {
            yield_now();
        }
    }

    /// Whether the worker runs on the CPU that the last call came from: there it
    /// can only spin for the next one while the caller does not run.
    #[inline]
    pub(crate) fn is_beside_caller(&self) -> bool {
        self.lane.request.0.from.get().is(Cpu::here())
    }

    #[inline]
    pub(crate) fn spin_budget(&self) -> Duration {
        self.lane.worker.spin_budget()
    }

    /// Whether the last caller has sent the worker to another CPU, because calls
    /// come in quick succession; says so once.
    #[inline]
    pub(crate) fn was_sent_away(&mut self) -> bool {
        mem::take(&mut self.sent_away)
    }

    /// Gives a call that came too late back to its caller.
    pub(crate) fn refuse(&mut self) {
        let number = self.served.wrapping_add(CALL);
        self.await_post();
        self.done(number | REFUSED);
    }

    fn done(&mut self, word: u32) {
        self.served = word & !FLAGS;
        // A store before the swap: it has the line fetched early, and a call takes
        // a sixth less.
        self.lane.reply.0.cpu.set(Cpu::here(), false);
        let done = &self.lane.reply.0.done;
        // Release: the result is visible to the caller. Acquire is not needed:
        // the caller writes nothing but ASLEEP. An RMW to learn of ASLEEP.
        let before = done.swap(word, Ordering::Release);
        if before & ASLEEP != 0 {
            futex_wake(done);
        }
    }

    /// Closes the lane to callers while the worker runs jobs of the queue;
    /// `false` when a call came first.
    pub(crate) fn begin_busy(&mut self) -> bool {
        self.set_flag(BUSY)
    }

    pub(crate) fn end_busy(&mut self) {
        self.lane.gate.0.fetch_and(!BUSY, Ordering::Relaxed);
    }

    /// Says that the worker is about to sleep; `false` when a call came first.
    ///
    /// Then the worker looks at everything else once more, and calls
    /// [`sleep`](Serving::sleep) or [`stay_awake`](Serving::stay_awake).
    pub(crate) fn begin_park(&mut self, now: Instant) -> bool {
        self.lane.worker.note_parking(now);
        let parked = self.set_flag(PARKED);
        // See the module: the other half is the sender's.
        fence(Ordering::SeqCst);
        parked
    }

    pub(crate) fn stay_awake(&mut self) {
        self.lane.gate.0.fetch_and(!PARKED, Ordering::Relaxed);
    }

    /// Sleeps until a caller or sender has cleared `PARKED`; `false` when `timeout` ran
    /// out first (the worker is still parked then).
    pub(crate) fn sleep(&mut self, timeout: Option<Duration>) -> bool {
        self.lane.worker.note_cpu();
        loop {
            let gate = self.lane.gate.0.load(Ordering::Relaxed);
            if gate & PARKED == 0 {
                return true;
            }
            if !futex_wait(&self.lane.gate.0, gate, timeout) {
                return self.lane.gate.0.load(Ordering::Relaxed) & PARKED == 0;
            }
        }
    }

    /// Closes the lane for good; `false` when a call came first.
    pub(crate) fn close(&mut self) -> bool {
        self.set_flag(CLOSED)
    }

    /// Takes [`close`](Serving::close) back.
    pub(crate) fn reopen(&mut self) {
        self.lane.gate.0.fetch_and(!CLOSED, Ordering::Relaxed);
    }

    /// Sets `flag` in the gate, and clears `PARKED` with it when it is another
    /// one, unless a caller has claimed the lane since the last call was served.
    fn set_flag(&mut self, flag: u32) -> bool {
        // Release: what the worker did to the lines comes before a claim by way
        // of a later worker.
        self.lane
            .gate
            .0
            .fetch_update(Ordering::Release, Ordering::Relaxed, |gate| {
                (gate & !FLAGS == self.served).then_some(gate & !PARKED | flag)
            })
            .is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    /// Calls `f` while a worker serves `lane`, which parks between calls.
    fn served<R>(lane: &Lane, f: impl FnOnce() -> R) -> R {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut serving = lane.open().unwrap();
                let mut door = Door::here();
                serving.end_busy();
                while !(stop.load(Ordering::Relaxed) && serving.close()) {
                    if serving.has_call() {
                        serving.serve(&mut door);
                    } else if serving.begin_park(Instant::now()) {
                        serving.sleep(Some(Duration::from_millis(1)));
                        serving.stay_awake();
                    }
                }
            });
            // Also when `f` panics: the scope waits for the worker.
            let _stopped = StopOnDrop(&stop);
            f()
        })
    }

    struct StopOnDrop<'a>(&'a AtomicBool);

    impl Drop for StopOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Calls through the lane, as soon as its worker is there and free.
    fn call<T: Send>(lane: &Lane, f: impl FnOnce() -> T + Send) -> Outcome<T> {
        let claim = loop {
            match lane.claim() {
                Some(claim) => break claim,
                None => yield_now(),
            }
        };
        claim.run(f, false).ok().expect("the worker stays")
    }

    #[test]
    fn small_and_large_closures_and_results_travel() {
        let lane = Lane::new();
        served(&lane, || {
            for n in 0..100_u64 {
                let text = n.to_string();
                assert!(matches!(call(&lane, || text.clone()), Outcome::Returned(t) if t == text));
                let large = [n; 40];
                assert!(matches!(call(&lane, || large), Outcome::Returned(back) if back == large));
                let moved = String::from("abc");
                assert!(matches!(
                    call(&lane, move || moved.len()),
                    Outcome::Returned(3)
                ));
            }
        });
        assert!(lane.claim().is_none(), "no worker, no call");
    }

    #[test]
    fn panics_travel_with_their_payload() {
        let lane = Lane::new();
        served(&lane, || {
            let small: Outcome<()> = call(&lane, || std::panic::panic_any(7));
            let Outcome::Panicked(payload, _) = small else {
                panic!("it panicked");
            };
            assert!(payload.is::<i32>());
            let large = [1_u64; 40];
            let framed: Outcome<u64> = call(&lane, || panic!("{}", large[0]));
            assert!(matches!(framed, Outcome::Panicked(..)));
        });
    }

    #[test]
    fn lane_goes_from_worker_to_worker() {
        let lane = Lane::new();
        for n in 0..10 {
            served(&lane, || {
                assert!(matches!(call(&lane, || n), Outcome::Returned(back) if back == n));
            });
        }
    }
}
