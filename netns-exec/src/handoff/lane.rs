//! The lane between callers and one worker: a cache line that carries a small
//! closure there and its result back, and the word that says who may use it.
//!
//! | line  | written by        | holds                                            |
//! |-------|-------------------|--------------------------------------------------|
//! | gate  | callers, parking worker | who may use the lane: a number and five flags; what callers have learnt |
//! | trip  | the caller that owns the lane, then the worker | the number again once the job is in, and once it is done; the job, then its result |
//!
//! The number counts calls. The caller that moves the gate from `n` (free) to
//! `n+1 | OWNED` owns the lane: it writes the job, posts `n+1`, waits until `n+1` is
//! done, reads the result and clears `OWNED`.
//!
//! Both ways go through one line, because on an Intel Xeon a ping-pong in one takes half as
//! long as one in two: as if the reader of what the other CPU wrote were given the line for
//! good, and could write its answer at once.
//!
//! | gate flag | set by  | cleared by          | meaning                                  |
//! |-----------|---------|---------------------|------------------------------------------|
//! | `OWNED`   | caller  | the same caller     | a call is under way                      |
//! | `BUSY`    | worker, or who wakes it for the queue | worker | it runs jobs of the queue: use the queue |
//! | `PARKED`  | worker  | who wakes it        | it sleeps, or is about to                |
//! | `TRAPPED` | worker  | with `PARKED`       | it sleeps in the trap of its [bell](crate::bell), not on the gate |
//! | `CLOSED`  | worker, on leaving, or who does that in its place | the next worker of the lane | no worker |
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
//! A worker whose caller slept parks in the trap, which wakes that caller, and is woken
//! there by the next; one that was woken for the queue parks on the gate, because who
//! sends to the queue goes on, and would keep its CPU from the worker. Who clears
//! `TRAPPED` answers the trap, and until then the worker is in it, or will be.
//!
//! There is unsafe code here, besides that of `job`, `task`, `scope` and `latch`, because a closure
//! that travels in the lane's own bytes belongs to one side at a time, and it is the
//! gate that says to which.
#![allow(unsafe_code)]

mod serving;

pub(crate) use serving::Serving;

use std::mem::{self, MaybeUninit};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32 as StdAtomicU32, AtomicU64 as StdAtomicU64};
use std::time::{Duration, Instant};

use super::job::AbortOnUnwind;
use super::outcome::{Door, Outcome, thread_ended};
use super::pace::{self, ARRIVAL, Pace, SPIN};
use crate::bell::{Bell, Ended, Lost};
use crate::sync::{AtomicU32, Mutex, Ordering, UnsafeCell, futex_wait, futex_wake, yield_now};
use crate::sys::{self, thread::ElsewhereThan};

const OWNED: u32 = 1;
const BUSY: u32 = 1 << 1;
const PARKED: u32 = 1 << 2;
const CLOSED: u32 = 1 << 3;
const TRAPPED: u32 = 1 << 4;
const FLAGS: u32 = OWNED | BUSY | PARKED | CLOSED | TRAPPED;
/// The gate counts in steps of this. It wraps: only equality is ever asked. Built with
/// `--cfg netns_wrap` there are two numbers in all, so that every other call does.
const CALL: u32 = if cfg!(netns_wrap) { 1 << 31 } else { 1 << 5 };

/// In `done`: the caller sleeps: wake it through the bell if the lane has one that
/// rings, else on the word.
const ASLEEP: u32 = 1;

/// What the numbers leave of a line.
const ROOM: usize = 56;

/// A job in the lane: reads its [`Request`] from the room, writes the outcome there,
/// and returns how: 0 for a plain value, or [`BOXED`].
type Call = unsafe fn(*mut Room, &mut Door) -> u32;

/// What is put in the room on the way there. The worker finds the call at its beginning,
/// and the call knows the rest.
#[repr(C)]
struct Request<F> {
    call: Call,
    closure: F,
}

/// Bytes that hold a value of whatever type is small enough.
#[repr(align(8))]
struct Room([MaybeUninit<u8>; ROOM]);

impl Room {
    const fn new() -> Self {
        Room([MaybeUninit::uninit(); ROOM])
    }

    const fn fits<X>() -> bool {
        size_of::<X>() <= size_of::<Self>() && align_of::<X>() <= align_of::<Self>()
    }

    fn put<X>(&mut self, value: X) {
        assert!(Self::fits::<X>());
        // SAFETY: the bytes are ours, enough of them, and aligned.
        unsafe { self.0.as_mut_ptr().cast::<X>().write(value) };
    }

    /// # Safety
    ///
    /// The last thing that was `put` is an `X`, or begins with one, that has not been
    /// taken yet.
    unsafe fn take<X>(&self) -> X {
        assert!(Self::fits::<X>());
        // SAFETY: it is there, the caller says; read as it was written.
        unsafe { self.0.as_ptr().cast::<X>().read() }
    }
}

/// Two of the usual 64 bytes: CPUs fetch them in pairs.
#[repr(align(128))]
struct Line<T>(T);

/// See the module.
pub(crate) struct Lane {
    gate: Line<Gate>,
    trip: Line<Trip>,
    /// The worker's thread.
    worker: StdAtomicU32,
    /// The worker's, while there is one.
    bell: Mutex<Option<Arc<Bell>>>,
    born: Instant,
    /// Since when the worker has had nothing to do, in nanoseconds from `born`.
    idle_since: StdAtomicU64,
}

struct Gate {
    word: AtomicU32,
    /// What callers have learnt; belongs to the one that owns the lane.
    pace: UnsafeCell<Pace>,
}

struct Trip {
    posted: AtomicU32,
    done: AtomicU32,
    room: UnsafeCell<Room>,
}

// SAFETY: the gate gives each cell one owner at a time: the pace is the owning caller's;
// so is the room until the job is posted, which is the worker's until it is done, and the
// caller's again until it lets go. Closures and results are `Send`, see `Claim::run`.
unsafe impl Send for Lane {}
// SAFETY: as above.
unsafe impl Sync for Lane {}

impl Lane {
    pub(crate) fn new() -> Lane {
        Lane {
            gate: Line(Gate {
                word: AtomicU32::new(CLOSED),
                pace: UnsafeCell::new(Pace::new()),
            }),
            trip: Line(Trip {
                posted: AtomicU32::new(0),
                done: AtomicU32::new(0),
                room: UnsafeCell::new(Room::new()),
            }),
            worker: StdAtomicU32::new(0),
            bell: Mutex::new(None),
            born: Instant::now(),
            idle_since: StdAtomicU64::new(0),
        }
    }

    /// Takes the lane for one call, if its worker is free.
    #[inline]
    pub(crate) fn claim(&self) -> Option<Claim<'_>> {
        let gate = self.gate.0.word.load(Ordering::Relaxed);
        if gate & (FLAGS & !(PARKED | TRAPPED)) != 0 {
            return None;
        }
        let claimed = (gate & !FLAGS).wrapping_add(CALL) | OWNED;
        // Acquire: pairs with the Release of the caller before us, which has
        // read its result from the room that our worker will write to.
        self.gate
            .0
            .word
            .compare_exchange(gate, claimed, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        Some(Claim {
            lane: self,
            number: claimed & !FLAGS,
            parked: gate & (PARKED | TRAPPED),
        })
    }

    /// Whether the worker is awake and free, at this moment.
    #[inline]
    pub(crate) fn is_awake_and_free(&self) -> bool {
        self.gate.0.word.load(Ordering::Relaxed) & FLAGS == 0
    }

    /// Whether a call is under way.
    pub(crate) fn is_owned(&self) -> bool {
        self.gate.0.word.load(Ordering::Relaxed) & OWNED != 0
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.gate.0.word.load(Ordering::Acquire) & CLOSED != 0
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.gate.0.word.load(Ordering::Relaxed) & PARKED != 0
    }

    /// Wakes the worker if it is parked; tells whether it did.
    ///
    /// The caller has put something where the worker looks before it parks, and
    /// a fence of sequential consistency after that.
    #[inline]
    pub(crate) fn wake(&self) -> bool {
        match self.unpark(PARKED) {
            None => return false,
            // It goes on beside us, not in our place.
            Some(TRAPPED) => self.bell().expect("who traps has one").ring(false),
            Some(_) => futex_wake(&self.gate.0.word),
        }
        true
    }

    /// Has the calling thread wake the worker if it sleeps in its trap.
    pub(crate) fn unpark_trapped(&self) -> bool {
        self.unpark(TRAPPED).is_some()
    }

    /// Clears `PARKED` if the worker sleeps as `how` says, and tells whether that is in
    /// its trap.
    #[inline]
    fn unpark(&self, how: u32) -> Option<u32> {
        let mut gate = self.gate.0.word.load(Ordering::Relaxed);
        while gate & how != 0 {
            let trapped = gate & TRAPPED;
            // No caller claims the lane before the worker is out of its trap.
            let busy = if trapped == 0 { 0 } else { BUSY };
            match self.gate.0.word.compare_exchange_weak(
                gate,
                gate & !(PARKED | TRAPPED) | busy,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(trapped),
                Err(now) => gate = now,
            }
        }
        None
    }

    /// The worker's bell. A handle of its own: the worker may be gone as soon as it is
    /// woken.
    fn bell(&self) -> Option<Arc<Bell>> {
        self.bell.lock().clone()
    }

    /// Nanoseconds from the lane's birth.
    fn age(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.born);
        u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)
    }

    fn idle_for(&self) -> Duration {
        let since = self.idle_since.load(Ordering::Relaxed);
        Duration::from_nanos(self.age(Instant::now()).saturating_sub(since))
    }

    /// Makes the calling thread, whose bell is `bell`, the lane's worker, if it has none;
    /// a busy one, until it says that it is [not](Serving::end_busy).
    pub(crate) fn open(&self, bell: Option<Arc<Bell>>) -> Option<Serving<'_>> {
        if !self.is_closed() {
            return None;
        }
        // Before the lane is open: until then its callers might move another thread.
        self.worker.store(sys::thread::tid(), Ordering::Relaxed);
        self.bell.lock().clone_from(&bell);
        // Acquire: the worker before us has left the room alone since. Release:
        // for who claims the lane and sees what is before this.
        let gate = (self.gate.0.word)
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |gate| {
                // OWNED stays: the last caller may not have let go yet.
                (gate & CLOSED != 0).then_some(gate & !CLOSED | BUSY)
            })
            .ok()?;
        Some(Serving::new(self, bell, gate & !FLAGS))
    }

    /// Closes the lane whose worker, which has this lane, has ended without leaving. The
    /// caller that has claimed it is to be [told](LostCall::tell), if there is one.
    pub(crate) fn close_lost(&self, _worker: &Ended) -> Option<LostCall<'_>> {
        *self.bell.lock() = None;
        // As in `Serving::close`, in the place of the worker.
        let gate = self.gate.0.word.fetch_or(CLOSED, Ordering::AcqRel);
        let number = gate & !FLAGS;
        let served = self.trip.0.done.load(Ordering::Relaxed) & !FLAGS;
        (number != served).then_some(LostCall { lane: self, number })
    }
}

/// A call that its worker has left unfinished, or has not begun.
#[must_use]
pub(crate) struct LostCall<'a> {
    lane: &'a Lane,
    number: u32,
}

impl LostCall<'_> {
    /// Gives the call back to its caller, or has it end without a result where it
    /// `had_begun`.
    pub(crate) fn tell(self, had_begun: bool) {
        let Trip { posted, done, .. } = &self.lane.trip.0;
        // It follows within a few instructions.
        while posted.load(Ordering::Relaxed) != self.number {
            yield_now();
        }
        let how = if had_begun { LOST } else { REFUSED };
        if done.swap(self.number | how, Ordering::AcqRel) & ASLEEP != 0 {
            futex_wake(done);
        }
    }
}

/// The right to make one call through a lane.
pub(crate) struct Claim<'a> {
    lane: &'a Lane,
    number: u32,
    /// How the worker slept when the lane was claimed, if it did: waking it is up to us.
    parked: u32,
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
        if const { Room::fits::<Request<F>>() && Room::fits::<T>() } {
            self.put(call_inline::<F, T>, f);
            let how = self.post_and_wait(may_spin);
            let outcome = self.lane.trip.0.room.with_mut(|room| {
                // SAFETY: done and not let go: the room is ours.
                let room = unsafe { &*room };
                match how {
                    // SAFETY: `call_inline` has put a T and said so.
                    0 => Ok(Outcome::Returned(unsafe { room.take() })),
                    // SAFETY: `call_inline` has put a box and said so.
                    BOXED => Ok(*unsafe { room.take::<Box<Outcome<T>>>() }),
                    LOST => Ok(Outcome::Aborted(thread_ended())),
                    // SAFETY: refused: the closure is where we put it.
                    _ => Err(unsafe { room.take::<Request<F>>() }.closure),
                }
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
            let how = self.post_and_wait(may_spin);
            self.let_go();
            if how == LOST {
                return Ok(Outcome::Aborted(thread_ended()));
            }
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
        self.lane.trip.0.room.with_mut(|room| {
            // SAFETY: the claim makes the room ours until the job is posted.
            let room = unsafe { &mut *room };
            room.put(Request { call, closure });
        });
    }

    /// Returns how it ended: 0, or `BOXED`, `REFUSED` or `LOST`.
    #[inline]
    fn post_and_wait(&self, may_spin: bool) -> u32 {
        // From here to the end the worker uses a room and a frame of ours.
        let stay = AbortOnUnwind;
        let word = self.lane.gate.0.pace.with_mut(|pace| {
            // SAFETY: the claim makes it ours.
            let pace = unsafe { &mut *pace };
            if self.parked != 0 {
                return self.wake_and_wait(may_spin, pace);
            }
            self.post();
            if may_spin && pace.is_hot() {
                pace.spin(|| self.done().is_some());
            }
            self.done().unwrap_or_else(|| self.sleep())
        });
        mem::forget(stay);
        word & (BOXED | REFUSED | LOST)
    }

    #[inline]
    fn post(&self) {
        // Release: the job is visible to the worker that sees the number.
        (self.lane.trip.0.posted).store(self.number, Ordering::Release);
    }

    /// Makes a call to a worker that sleeps.
    #[cold]
    fn wake_and_wait(&self, may_spin: bool, pace: &mut Pace) -> u32 {
        if may_spin && pace.is_hot_after(self.lane.idle_for()) {
            return self.part_and_spin(pace);
        }
        let bell = self
            .lane
            .bell()
            .filter(|bell| bell.rings() || self.parked & TRAPPED != 0);
        let mut receiver = bell.as_ref().and_then(|bell| bell.take(|| false));
        // Said before the worker may run, which may be at once and in our place.
        self.fall_asleep();
        self.post();
        let woken = match &mut receiver {
            Some(receiver) if self.parked & TRAPPED != 0 => receiver.answer(true),
            _ => {
                futex_wake(&self.lane.gate.0.word);
                Ok(())
            }
        };
        // It has been told that the caller sleeps, and traps once because of that.
        let waited = woken.and_then(|()| match &mut receiver {
            Some(receiver) => receiver.wait(),
            None => Err(Lost),
        });
        drop(receiver);
        self.end_of_wait(waited)
    }

    /// Wakes the worker on another CPU, and stays awake as well: two that take turns on
    /// one CPU are left there by the scheduler.
    fn part_and_spin(&self, pace: &mut Pace) -> u32 {
        let elsewhere = ElsewhereThan::here(self.lane.worker.load(Ordering::Relaxed));
        if self.parked & TRAPPED == 0 {
            futex_wake(&self.lane.gate.0.word);
        } else {
            self.lane.bell().expect("who traps has one").ring(false);
        }
        let patience = if elsewhere.is_some() { ARRIVAL } else { SPIN };
        // The worker may run anywhere again before it sees the job, which may look, and
        // whose children inherit that.
        drop(elsewhere);
        self.post();
        pace.note(pace::spin(patience, || self.done().is_some()).is_ok());
        self.done().unwrap_or_else(|| self.sleep())
    }

    /// The word in `done`, if it says that the call is done.
    #[inline]
    fn done(&self) -> Option<u32> {
        // Acquire: the result is visible to us.
        let word = self.lane.trip.0.done.load(Ordering::Acquire);
        (word & !FLAGS == self.number).then_some(word)
    }

    /// Waits for the end of the call, if it is not over.
    #[cold]
    fn sleep(&self) -> u32 {
        let bell = self.lane.bell().filter(|bell| bell.rings());
        let receiver = (bell.as_ref()).and_then(|bell| bell.take(|| self.done().is_some()));
        if let Some(mut receiver) = receiver
            && self.fall_asleep()
        {
            let waited = receiver.wait();
            drop(receiver);
            return self.end_of_wait(waited);
        }
        self.sleep_on_word()
    }

    fn end_of_wait(&self, waited: Result<(), Lost>) -> u32 {
        match waited {
            Ok(()) => self.done().expect("the worker says so when it is"),
            // The worker finds out as well, or the ear that there is none.
            Err(Lost) => self.sleep_on_word(),
        }
    }

    fn sleep_on_word(&self) -> u32 {
        let done = &self.lane.trip.0.done;
        loop {
            if let Some(word) = self.done() {
                return word;
            }
            if self.fall_asleep() {
                futex_wait(done, done.load(Ordering::Relaxed) | ASLEEP, None);
            }
        }
    }

    /// Says that the caller sleeps; `false` when the call is done.
    fn fall_asleep(&self) -> bool {
        let done = &self.lane.trip.0.done;
        let now = done.load(Ordering::Relaxed);
        // Relaxed: the worker finds ASLEEP by an RMW on the same word.
        now & !FLAGS != self.number
            && (now & ASLEEP != 0
                || (done.compare_exchange(now, now | ASLEEP, Ordering::Relaxed, Ordering::Relaxed))
                    .is_ok())
    }

    /// Hands the lane to the next caller.
    #[inline]
    fn let_go(&self) {
        // An RMW because the worker may set PARKED or CLOSED meanwhile.
        // Release: our reads of the result come before the next claim.
        self.lane.gate.0.word.fetch_and(!OWNED, Ordering::Release);
    }
}

/// In `done`: the result is a boxed [`Outcome`], because the job did not return.
const BOXED: u32 = 1 << 1;
/// In `done`: the closure has not been touched, because the worker must leave.
const REFUSED: u32 = 1 << 2;
/// In `done`: the worker's thread has ended in the midst of the job.
const LOST: u32 = 1 << 3;

/// # Safety
///
/// For both calls: posted and not done, so that the room is the worker's, and holds what
/// [`Claim::run`] put there for this very call.
unsafe fn call_inline<F, T>(room: *mut Room, door: &mut Door) -> u32
where
    F: FnOnce() -> T,
{
    // SAFETY: the worker's, and for as long as this takes.
    let room = unsafe { &mut *room };
    // SAFETY: it was put there.
    let request: Request<F> = unsafe { room.take() };
    match door.call(request.closure) {
        Outcome::Returned(value) => {
            room.put(value);
            0
        }
        other => {
            room.put(Box::new(other));
            BOXED
        }
    }
}

unsafe fn call_framed<F, T>(room: *mut Room, door: &mut Door) -> u32
where
    F: FnOnce() -> T,
{
    // SAFETY: the worker's.
    let room = unsafe { &*room };
    // SAFETY: it was put there, with a pointer to the caller's frame.
    let request: Request<*mut Frame<F, T>> = unsafe { room.take() };
    // SAFETY: the caller waits, so its frame is live, and leaves it to us.
    let frame = unsafe { &mut *request.closure };
    let f = frame.f.take().expect("a job runs once");
    frame.outcome = Some(door.call(f));
    0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;
    use crate::sync::yield_now;

    /// Calls `f` while a worker serves `lane`, which parks between calls.
    fn served<R>(lane: &Lane, f: impl FnOnce() -> R) -> R {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut serving = lane.open(None).unwrap();
                let mut door = Door::here();
                serving.end_busy();
                while !(stop.load(Ordering::Relaxed) && serving.close()) {
                    if serving.has_call() {
                        serving.serve(&mut door);
                    } else if serving.begin_park(Instant::now()) {
                        serving.sleep(Some(Duration::from_millis(1)));
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
            let Outcome::Panicked(panic) = small else {
                panic!("it panicked");
            };
            assert!(panic.payload.is::<i32>());
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
