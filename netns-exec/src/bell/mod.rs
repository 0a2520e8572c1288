//! How a worker that sleeps is woken on its waker's own CPU, and wakes its caller there.
//!
//! Between two threads that hand work to each other and sleep in between, nothing is
//! faster than one CPU that goes from one to the other. Of all that wakes a thread, only
//! seccomp user notification in its synchronous mode does that (seccomp_unotify(2),
//! Linux 6.6). So a worker parks in a system call that means nothing ([`TRAP`](crate::sys::seccomp::TRAP)),
//! which its filter hands to a listener: that is its *bell*. Who wakes it answers the
//! call; a caller then waits for the next one, by which the worker says that the
//! result is there. Three system calls a round trip, and two context switches.
//!
//! | trap   | made when                                    | answered                 |
//! |--------|----------------------------------------------|--------------------------|
//! | `PARK` | the worker has nothing to do                  | by who wakes it          |
//! | `TELL` | it has more to do, but its caller waits       | by that caller, at once  |
//! | `TRY`  | it is new                                     | by the [`ear`]           |
//!
//! The first is a trial: where another filter refuses the call, as that of a container may,
//! no worker goes into a trap and no caller waits for one.
//!
//! A listener gives each call to one of those who receive, and receiving cannot be
//! ended from outside. So there is one receiver at a time, by a word:
//!
//! | word     | meaning                                                            |
//! |----------|--------------------------------------------------------------------|
//! | `FREE`   | none; a call may wait in the kernel                                |
//! | `HELD`   | none; the worker is parked, and this is the number of its call     |
//! | `TAKEN`  | one; it alone receives and answers                                 |
//! | `WANTED` | the same, and a waker that came meanwhile leaves the answer to it  |
//!
//! The lane sees to it that each `PARK` has one waker: the thread that clears `PARKED`
//! in the gate. From then on the worker does not leave its trap, or goes into it, until
//! it is answered. A caller that has said that it sleeps receives one trap, and the
//! worker makes one for it: none is lost, because neither goes on without the other.
//!
//! A call that is interrupted (SIGSTOP, a debugger, the freezer) begins anew, under a
//! new number: the answer to the old one fails with `ENOENT`, and the next is received.
//!
//! The same listener hears of what the guard refuses, and of the calls of children,
//! which inherit the filter. Who receives sees to those as well (`State::refuse`); when
//! no one does, the [`ear`] does, a thread that has a copy of each listener. It also
//! keeps the time of those who are parked: a trap has no timeout.
//!
//! A caller to whom the listener's descriptor means nothing (it was closed behind our
//! back, or the caller's descriptor table is its own) gives the bell up for good:
//! [`Bell::is_broken`]. The ear, whose copy is its own, then answers what waits, and the
//! worker goes on with futexes.

pub(crate) mod ear;
pub(crate) mod refusals;

use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicBool as StdAtomicBool;
use std::sync::atomic::AtomicU64 as StdAtomicU64;

use nix::errno::Errno;
use parking_lot::Mutex;

use self::refusals::{Place, Refusals};
use crate::home::aside;
use crate::refused::Refused;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Listener, Ordering, yield_now};
use crate::sys::seccomp::{Answer, Notified};

const FREE: u32 = 0;
const HELD: u32 = 1;
const TAKEN: u32 = 2;
const WANTED: u32 = 3;

/// What a worker traps for.
const PARK: u64 = 0;
const TELL: u64 = 1;
const TRY: u64 = 2;

/// See the module.
pub(crate) struct Bell {
    state: Arc<State>,
    /// `None`: it only counts what is refused. In the process's descriptor table, so that
    /// the ear, which has one of its own, must not own it.
    listener: Option<Listener>,
}

/// Makes the calling thread the one that is to answer a worker's `PARK`; tells whether it
/// is.
pub(crate) type Unpark = Box<dyn Fn() -> bool + Send>;

/// Says that a worker's thread has ended: its listener has, which hears of nothing else.
pub(crate) struct Ended(());

#[cfg(all(test, loom))]
impl Ended {
    /// In a model, where no thread ends so: it does nothing any more.
    pub(crate) fn in_effect() -> Ended {
        Ended(())
    }
}

/// Called when a worker's thread has ended without a word.
pub(crate) type WhenLost = Box<dyn FnOnce(&Ended) + Send>;

/// What all sides see of a bell.
struct State {
    /// The worker's thread.
    worker: u32,
    word: AtomicU32,
    /// In `HELD`: the number of the call.
    held: AtomicU64,
    broken: AtomicBool,
    /// Whether the kernel has been told to wake on the waker's CPU.
    on_this_cpu: StdAtomicBool,
    /// When the worker is to be woken at the latest: the ear's time.
    alarm: StdAtomicU64,
    /// The ear has had the worker woken.
    rang: StdAtomicBool,
    /// It is known whether the worker can trap.
    is_tried: StdAtomicBool,
    /// Makes the calling thread the one that wakes the worker.
    unpark: Mutex<Option<Unpark>>,
    /// What is to be done when its thread ends without having taken this back.
    when_lost: Mutex<Option<WhenLost>>,
    refusals: Refusals,
    /// How its listener is on its way to the ear.
    arrival: AtomicU32,
    /// Answers to calls that are no traps, which the ear is to send.
    replies: Mutex<Vec<(u64, Answer)>>,
}

/// What came of the answer to a call that is no trap.
#[derive(PartialEq)]
enum Reply {
    Sent,
    /// The call has been given up.
    TooLate,
    /// It is among `replies`.
    Left,
}

/// What is waited for does not come this way: the worker's thread has ended without a word,
/// or its bell is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost;

impl Bell {
    /// The bell of the thread `worker`. Without a listener it only counts.
    pub(crate) fn new(worker: u32, listener: Option<Listener>) -> Bell {
        let state = State {
            worker,
            word: AtomicU32::new(FREE),
            held: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            on_this_cpu: false.into(),
            alarm: u64::MAX.into(),
            rang: false.into(),
            is_tried: listener.is_none().into(),
            unpark: Mutex::new(None),
            when_lost: Mutex::new(None),
            refusals: Refusals::default(),
            arrival: AtomicU32::new(ear::COMES),
            replies: Mutex::default(),
        };
        let state = Arc::new(state);
        Bell { state, listener }
    }

    /// Whether a worker can be woken by it.
    pub(crate) fn rings(&self) -> bool {
        self.listener.is_some() && !self.is_broken()
    }

    /// Whether a caller that sleeps may wait for a trap.
    pub(crate) fn is_listened_to(&self) -> bool {
        let word = || self.state.word.load(Ordering::Relaxed);
        self.listener.is_some() && (!self.is_broken() || matches!(word(), TAKEN | WANTED))
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.state.is_broken()
    }

    /// What the worker was refused since it was born.
    #[inline]
    pub(crate) fn refused(&self) -> Refused {
        self.state.refusals.count()
    }

    /// Says where the worker is: what it is refused is told of from then on.
    pub(crate) fn belong_to(&self, place: Place) {
        self.state.refusals.belong_to(place);
    }

    /// Has the log told of what is refused next: the job that it knows of has ended.
    pub(crate) fn tell_of_refusals_anew(&self) {
        self.state.refusals.tell_anew();
    }

    // The worker's side.

    /// Traps once, before there is a caller: whether that can be done. The ear answers.
    fn try_out(&self) {
        self.trap(TRY);
        self.state.is_tried.store(true, Ordering::Release);
    }

    /// Sleeps until the waker has answered.
    pub(crate) fn park(&self) {
        self.trap(PARK);
    }

    /// Wakes the caller that sleeps for its result.
    pub(crate) fn tell(&self) {
        self.trap(TELL);
    }

    fn trap(&self, what: u64) {
        let Some(listener) = &self.listener else {
            return;
        };
        loop {
            match listener.trap(what, self.state.cookie()) {
                Ok(()) => return,
                // Not answered: who is to do that waits for the next one.
                Err(Errno::EINTR) => {}
                // Nothing listens.
                Err(_) => {
                    self.state.broken.store(true, Ordering::Release);
                    return;
                }
            }
        }
    }

    /// How the ear may wake the worker, when it has been parked for long enough.
    pub(crate) fn set_unpark(&self, unpark: Option<Unpark>) {
        *self.state.unpark.lock() = unpark;
    }

    /// Keeps the ear from waking anything any more.
    pub(crate) fn take_unpark(&self) -> Option<Unpark> {
        self.state.unpark.lock().take()
    }

    /// What is to be done, on a thread of its own, when the worker's thread ends before this
    /// is called with `None`.
    pub(crate) fn when_lost(&self, f: Option<WhenLost>) {
        *self.state.when_lost.lock() = f;
    }

    /// Whether the worker has been woken because it was time.
    pub(crate) fn take_alarm(&self) -> bool {
        let rang = &self.state.rang;
        rang.load(Ordering::Relaxed) && rang.swap(false, Ordering::Relaxed)
    }

    // The other side.

    /// Becomes the one that receives, which another is for a moment longer at most;
    /// `None` once `done` says that there is nothing to wait for.
    pub(crate) fn take(&self, done: impl Fn() -> bool) -> Option<Receiver<'_>> {
        let listener = self.listener.as_ref()?;
        let mut turns = 0;
        loop {
            if let Some(receiver) = self.state.try_take(listener) {
                return Some(receiver);
            }
            if done() {
                return None;
            }
            give_way(&mut turns);
        }
    }

    /// Wakes the worker, whose `PARK` the calling thread is to answer.
    pub(crate) fn ring(&self, on_this_cpu: bool) {
        if let Some(listener) = &self.listener {
            self.state.ring(listener, on_this_cpu);
        }
    }
}

impl State {
    /// The worker's thread has ended, be it in order.
    fn worker_has_ended(&self) {
        if let Some(see_to_it) = self.when_lost.lock().take() {
            aside::apart("netns-lost", move || see_to_it(&Ended(())));
        }
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// What tells the worker's own traps from what a job may call by accident.
    fn cookie(&self) -> u64 {
        std::ptr::from_ref(self).addr() as u64
    }

    /// Wakes the worker because it is time.
    fn ring_alarm(&self, listener: &Listener) {
        // Before, so that the worker finds it.
        self.rang.store(true, Ordering::Relaxed);
        // Locked until it has been called: what it unparks is this bell's worker.
        let is_ours = self.unpark.lock().as_ref().is_some_and(|unpark| unpark());
        if is_ours {
            // Told nothing new: the next caller would have to take it back. The ear is about
            // to sleep, on whatever CPU.
            self.ring(listener, self.on_this_cpu.load(Ordering::Relaxed));
        } else {
            self.rang.store(false, Ordering::Relaxed);
        }
    }

    fn ring(&self, listener: &Listener, on_this_cpu: bool) {
        let mut turns = 0;
        loop {
            if let Some(mut receiver) = self.try_take(listener) {
                let _ = receiver.answer(on_this_cpu);
                return;
            }
            // Release: what we have left for the worker; the receiver hands it on.
            let left =
                (self.word).compare_exchange(TAKEN, WANTED, Ordering::AcqRel, Ordering::Relaxed);
            if left.is_ok() {
                return;
            }
            give_way(&mut turns);
        }
    }

    /// Becomes the one that receives, unless there is one.
    fn try_take<'a>(&'a self, listener: &'a Listener) -> Option<Receiver<'a>> {
        let word = self.word.load(Ordering::Relaxed);
        if word != FREE && word != HELD {
            return None;
        }
        // Acquire: the number that is held.
        self.word
            .compare_exchange(word, TAKEN, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        Some(Receiver {
            bell: self,
            listener,
            held: (word == HELD).then(|| self.held.load(Ordering::Relaxed)),
            gives_up: false,
        })
    }

    /// Sees to a call that is no trap of the worker's: one that the guard refuses, or a
    /// child's. `false` when the answer is left to the ear.
    fn refuse(&self, listener: &Listener, call: Notified) -> bool {
        if call.tid != self.worker || call.is_trap() {
            return self.reply(listener, call.id, Answer::GoOn) != Reply::Left;
        }
        let what = if call.is(libc::SYS_clone) {
            Refused::THREAD
        } else {
            Refused::MOVE
        };
        // Before the answer, after which the worker looks.
        self.refusals.note(what);
        let reply = self.reply(listener, call.id, Answer::Fail(Errno::EPERM));
        if reply == Reply::TooLate {
            self.refusals.take_back(what);
        }
        reply != Reply::Left
    }

    fn reply(&self, listener: &Listener, id: u64, answer: Answer) -> Reply {
        loop {
            match listener.answer(id, answer) {
                Ok(()) => return Reply::Sent,
                Err(Errno::ENOENT) => return Reply::TooLate,
                Err(Errno::EINTR) => {}
                Err(_) => {
                    self.replies.lock().push((id, answer));
                    self.broken.store(true, Ordering::Release);
                    return Reply::Left;
                }
            }
        }
    }

    /// Sends what others could not; `false` when this thread cannot just now either.
    fn reply_left(&self, listener: &Listener) -> bool {
        let left = mem::take(&mut *self.replies.lock());
        (left.into_iter()).fold(true, |sent, (id, answer)| {
            self.reply(listener, id, answer) != Reply::Left && sent
        })
    }

    fn is_trap(&self, call: Notified) -> bool {
        call.tid == self.worker && call.is_trap() && call.cookie == self.cookie()
    }
}

/// Lets another thread go on, be it one of lower priority.
fn give_way(turns: &mut u32) {
    *turns += 1;
    if *turns < 64 || cfg!(loom) {
        yield_now();
    } else {
        #[cfg(not(loom))]
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
}

/// The one that receives. Whatever it has not answered when it is dropped is held.
pub(crate) struct Receiver<'a> {
    bell: &'a State,
    listener: &'a Listener,
    /// The call of the worker, which waits for an answer.
    held: Option<u64>,
    /// It leaves the worker to the ear.
    gives_up: bool,
}

impl Receiver<'_> {
    /// Lets the worker go on, which is parked or about to be.
    pub(crate) fn answer(&mut self, on_this_cpu: bool) -> Result<(), Lost> {
        let told = self.bell.on_this_cpu.load(Ordering::Relaxed);
        if told != on_this_cpu {
            // Fails when the next step does.
            let _ = self.listener.wake_on_this_cpu(on_this_cpu);
            (self.bell.on_this_cpu).store(on_this_cpu, Ordering::Relaxed);
        }
        loop {
            let id = match self.held {
                Some(id) => id,
                None => self.receive()?.id,
            };
            match self.listener.answer(id, Answer::Return) {
                Ok(()) => {
                    self.held = None;
                    return Ok(());
                }
                // Interrupted: it comes again.
                Err(Errno::ENOENT) => self.held = None,
                Err(Errno::EINTR) => self.held = Some(id),
                Err(_) => {
                    self.held = Some(id);
                    return Err(self.give_up());
                }
            }
        }
    }

    #[cold]
    fn give_up(&mut self) -> Lost {
        self.bell.broken.store(true, Ordering::Release);
        self.gives_up = true;
        Lost
    }

    /// Sleeps until the worker traps, which is what it wakes its caller by.
    pub(crate) fn wait(&mut self) -> Result<(), Lost> {
        let call = self.receive()?;
        self.held = Some(call.id);
        if call.argument == TELL {
            let on_this_cpu = self.bell.on_this_cpu.load(Ordering::Relaxed);
            self.answer(on_this_cpu)?;
        }
        Ok(())
    }

    /// The next trap of the worker.
    fn receive(&mut self) -> Result<Notified, Lost> {
        loop {
            match self.listener.receive() {
                Ok(call) if self.bell.is_trap(call) => return Ok(call),
                Ok(call) if self.bell.refuse(self.listener, call) => {}
                Ok(_) => return Err(self.give_up()),
                Err(Errno::EINTR) => {}
                // Given up meanwhile, or there will be none.
                Err(Errno::ENOENT) => {
                    if self.listener.has_ended() {
                        return Err(Lost);
                    }
                }
                Err(_) => return Err(self.give_up()),
            }
        }
    }

    /// Lets the next one receive, to which it leaves what it holds.
    fn leave(&mut self) {
        let word = &self.bell.word;
        loop {
            let next = self.put_down();
            // Release: the number. Acquire: what the waker has left for the worker.
            if (word.compare_exchange(TAKEN, next, Ordering::Release, Ordering::Acquire)).is_ok() {
                return;
            }
            // Before the answer, after which there may be the next waker.
            word.store(TAKEN, Ordering::Relaxed);
            if self.answer(false).is_err() {
                word.store(self.put_down(), Ordering::Release);
                return;
            }
        }
    }

    /// Leaves what it holds where the next one finds it; returns the word for that.
    fn put_down(&self) -> u32 {
        match self.held {
            Some(id) => {
                self.bell.held.store(id, Ordering::Relaxed);
                HELD
            }
            None => FREE,
        }
    }
}

impl Drop for Receiver<'_> {
    fn drop(&mut self) {
        self.leave();
        if self.gives_up {
            // Not before: the ear could not become the one that receives.
            ear::poke();
        }
    }
}
