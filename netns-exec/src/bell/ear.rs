//! The thread that sees to bells when no caller does.
//!
//! It has a copy of each worker's listener, and hears of what no caller is there to
//! receive: calls that the guard refuses to jobs that no caller waits for, calls of
//! children (they inherit the filter; theirs go on as if there were none), traps of
//! workers whose bell is broken. And it keeps the time of parked workers, since a trap
//! has no timeout: at a worker's [alarm](Listened::set_alarm) it has it woken.
//!
//! - The thread has a descriptor table of its own. A child made by fork(2) thus has
//!   no copy of these listeners, and what closes the process's descriptors does not
//!   close them.
//! - It runs no user code and waits for nothing but the listeners, so that a refused
//!   call waits for a context switch and no longer, in a process that is quiet; where
//!   workers are called all the time it looks every [`TICK`], for each of their traps
//!   would wake it otherwise.
//! - It starts at home with the first bell and ends with the last.
//!
//! A listener cannot always be had: the kernel allows a thread one, which a container
//! runtime may have taken, and handing it over takes a free descriptor for a moment.
//! Then there is no bell.

use std::collections::HashMap;
use std::io;
use std::iter;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::time::Duration;

use libc::sock_filter;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit};
use parking_lot::Mutex;

use super::{Bell, State, TELL, TRY};
use crate::home::{Home, roster};
use crate::sync::{Listener, futex_wait, futex_wake};
use crate::sys;

/// How long this thread sleeps at a time while workers are called all the time.
const TICK: Duration = Duration::from_millis(5);

/// The ear of those workers that have a bell now.
static EAR: Mutex<Weak<Ear>> = Mutex::new(Weak::new());

/// Where the thread is told of workers. It ends when this is dropped.
struct Ear {
    socket: OwnedFd,
    shared: Arc<Shared>,
}

/// What both sides see.
struct Shared {
    /// By the number that is sent along. Locked for a moment only.
    arriving: Mutex<HashMap<u64, Arriving>>,
    /// Listeners that are open, or on their way.
    listeners: AtomicUsize,
    /// When the thread will look next, at the latest.
    next: AtomicU64,
    /// A worker has parked since it looked last.
    has_parked: AtomicBool,
    /// When a worker parked last while the thread listened, which the trap wakes then; 0
    /// once that has been told.
    disturbed: AtomicU64,
}

impl Shared {
    /// Whether the thread is to be told that a worker parks, whose alarm is at `when` at the
    /// latest.
    fn is_to_be_told(&self, when: u64) -> bool {
        let next = self.next.load(Ordering::Relaxed);
        if next == IN_A_RUSH {
            return false;
        }
        when < next || self.disturbs_again(now())
    }

    /// Notes that the trap of a worker will wake the thread; tells whether one did just
    /// before. The kernel puts the thread to sleep again, which learns nothing of it, and
    /// each call takes three times as long as if it were told once.
    fn disturbs_again(&self, now: u64) -> bool {
        let before = self.disturbed.swap(now, Ordering::Relaxed);
        let again = before != 0 && now.saturating_sub(before) < TICK.as_nanos() as u64;
        if again {
            self.disturbed.store(0, Ordering::Relaxed);
        }
        again
    }
}

/// A bell whose listener is on its way, for which its worker waits. Lost when dropped.
struct Arriving(Arc<State>);

impl Arriving {
    /// The thread has the listener.
    fn has_come(self) -> Arc<State> {
        self.0.arrival.store(HAS_COME, Ordering::Release);
        Arc::clone(&self.0)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let arrival = &self.0.arrival;
        let _ = arrival.compare_exchange(COMES, IS_LOST, Ordering::Release, Ordering::Relaxed);
        futex_wake(arrival);
    }
}

/// How a listener is on its way; whole words, to sleep on.
pub(super) const COMES: u32 = 0;
const HAS_COME: u32 = 1;
const IS_LOST: u32 = 2;

impl State {
    /// Waits until the thread has the listener; `false` when it will not.
    fn wait_for_arrival(&self) -> bool {
        while self.arrival.load(Ordering::Acquire) == COMES {
            futex_wait(&self.arrival, COMES, None);
        }
        self.arrival.load(Ordering::Acquire) == HAS_COME
    }
}

/// A worker's side: it is listened to until this is dropped.
pub(crate) struct Listened {
    bell: Arc<Bell>,
    ear: Arc<Ear>,
}

impl Listened {
    pub(crate) fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Has the worker, which is about to park, woken after so long.
    pub(crate) fn set_alarm(&self, after: Option<Duration>, mind: Punctual) {
        let after = after.and_then(|after| u64::try_from(after.as_nanos()).ok());
        let when = after.map_or(NEVER, |after| now().saturating_add(after).min(NEVER - 1));
        let shared = &self.ear.shared;
        self.bell.state.alarm.store(when, Ordering::Relaxed);
        // Between saying so and looking; the other half is in `look`.
        fence(Ordering::SeqCst);
        if !shared.has_parked.load(Ordering::Relaxed) {
            shared.has_parked.store(true, Ordering::Relaxed);
        }
        let at_latest = match mind {
            Punctual::Yes => when,
            Punctual::No => when.saturating_add(SECOND),
        };
        if shared.is_to_be_told(at_latest) {
            self.ear.tell(LOOK);
        }
    }
}

/// Messages that are no worker's number: the end, which closing the socket alone would
/// not be where a child holds a copy, and that there is something to see to.
const END: u64 = 0;
const LOOK: u64 = 1;

/// No alarm.
const NEVER: u64 = u64::MAX;

/// In [`Shared::next`]: the thread looks again soon enough, and no trap wakes it.
const IN_A_RUSH: u64 = 0;

/// The thread looks once in a second at least, for those who are in no hurry.
const SECOND: u64 = 1_000_000_000;

/// How exact an alarm is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Punctual {
    Yes,
    /// It may come a second later. A worker whose caller waits for it to park has nothing
    /// to do for it then, where otherwise it may have to wake this thread: ten times as
    /// long as the rest of a call.
    No,
}

fn now() -> u64 {
    sys::time::monotonic(false)
}

/// Puts `program`, which hands calls over, around the calling thread, a worker. `None`
/// when it cannot be listened to; a filter that refuses by itself must then be
/// installed, and prevails over this one should that be there.
pub(crate) fn install(program: &[sock_filter]) -> Option<Listened> {
    let ear = Ear::get().ok()?;
    if !ear.has_room(1) {
        return None;
    }
    let listener = sys::seccomp::install_with_listener(program).ok()?;
    ear.listen_to(listener).ok()
}

/// Has the thread look, if there is one. By way of the home thread: the caller may have a
/// descriptor table of its own, in which the socket's number is another file's.
pub(super) fn poke() {
    let look = || {
        let ear = EAR.lock().upgrade();
        if let Some(ear) = ear {
            ear.tell(LOOK);
        }
    };
    if let Some(home) = Home::started() {
        home.post(Box::new(look));
    }
}

impl Ear {
    fn get() -> io::Result<Arc<Ear>> {
        if let Some(ear) = EAR.lock().upgrade() {
            return Ok(ear);
        }
        // Not under the lock: this waits. Another worker may be as far.
        let new = Arc::new(Ear::start()?);
        let mut ear = EAR.lock();
        Ok(match ear.upgrade() {
            Some(other) => other,
            None => {
                *ear = Arc::downgrade(&new);
                new
            }
        })
    }

    fn start() -> io::Result<Ear> {
        const STACK: usize = 128 * 1024;

        let home = Home::get().map_err(io::Error::other)?;
        // Made at home: a socket keeps the namespace that it was made in, and this
        // thread is in that of the first worker.
        let (socket, theirs) = home.call(sys::scm::pair)?;
        let shared = Arc::new(Shared {
            arriving: Mutex::default(),
            listeners: AtomicUsize::new(0),
            next: AtomicU64::new(NEVER),
            has_parked: AtomicBool::new(false),
            disturbed: AtomicU64::new(0),
        });
        let ear = Ear {
            socket,
            shared: Arc::clone(&shared),
        };
        let number = theirs.as_raw_fd();
        let (ready, is_ready) = sync_channel(1);
        home.spawn_thread("netns-guard".to_owned(), Some(STACK), move || {
            let _registration = roster::sign_in_visitor();
            let listening = sys::thread::keep_one_descriptor(number)
                .and_then(|socket| Listening::new(socket, shared));
            match listening {
                Ok(mut listening) => {
                    let _ = ready.send(Ok(()));
                    listening.serve();
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        // From then on the thread has a socket of its own.
        (is_ready.recv()).map_err(|_| io::Error::from(Errno::ESRCH))??;
        drop(theirs);
        Ok(ear)
    }

    /// Whether a descriptor table, of which listeners are to take one `part`, will take
    /// another one.
    fn has_room(&self, part: u64) -> bool {
        /// For the socket, the epoll, and workers that ask at the same time.
        const RESERVE: u64 = 32;
        let listeners = self.shared.listeners.load(Ordering::Relaxed) as u64;
        getrlimit(Resource::RLIMIT_NOFILE).is_ok_and(|(soft, _)| listeners + RESERVE < soft / part)
    }

    fn listen_to(self: Arc<Ear>, listener: OwnedFd) -> io::Result<Listened> {
        static NEXT: AtomicU64 = AtomicU64::new(LOOK + 1);

        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // The process's own descriptors come first.
        let rings =
            self.has_room(2) && sys::seccomp::wake_on_this_cpu(listener.as_fd(), true).is_ok();
        let copy = listener.try_clone()?;
        let listener = rings.then(|| Listener::from(listener));
        let bell = Arc::new(Bell::new(sys::thread::tid(), listener));
        let Shared {
            arriving,
            listeners,
            ..
        } = &*self.shared;
        listeners.fetch_add(1, Ordering::Relaxed);
        let arrives = Arriving(Arc::clone(&bell.state));
        arriving.lock().insert(number, arrives);
        let message = number.to_ne_bytes();
        let sent = sys::scm::send(self.socket.as_fd(), &message, [copy.as_fd()].into_iter());
        if let Err(error) = sent {
            arriving.lock().remove(&number);
            listeners.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        drop(copy);
        // Without an ear that has it no trap of the worker's would be answered.
        if !bell.state.wait_for_arrival() {
            return Err(Errno::ESRCH.into());
        }
        if bell.listener.is_some() {
            bell.try_out();
        }
        Ok(Listened { bell, ear: self })
    }

    fn tell(&self, what: u64) {
        // Full, it has enough to look at. Otherwise what fails has run out for a moment.
        for _ in 0..3 {
            let sent = sys::scm::send(self.socket.as_fd(), &what.to_ne_bytes(), iter::empty());
            if sent.is_ok() {
                return;
            }
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        // The thread is the parent's.
        if sys::fork::is_copy() {
            return;
        }
        self.tell(END);
    }
}

/// What the thread has.
struct Listening {
    epoll: Epoll,
    socket: OwnedFd,
    shared: Arc<Shared>,
    workers: HashMap<u64, Worker>,
    /// A call waits that this thread could not see to yet.
    is_late: bool,
    /// One is new, and about to trap.
    has_new: bool,
    /// When all alarms were last read, and the next of them then. One that was set later is
    /// not among them: then the reading is stale.
    read: u64,
    next: u64,
    is_stale: bool,
}

fn timeout_until(next: u64) -> EpollTimeout {
    if next == NEVER {
        return EpollTimeout::NONE;
    }
    // Rounded up: a millisecond too early is a round for nothing.
    let ms = next.saturating_sub(now()).div_ceil(1_000_000);
    let ms = i32::try_from(ms).unwrap_or(i32::MAX);
    EpollTimeout::try_from(ms).unwrap_or(EpollTimeout::MAX)
}

struct Worker {
    listener: Listener,
    bell: Arc<State>,
}

impl Listening {
    fn new(socket: OwnedFd, shared: Arc<Shared>) -> io::Result<Listening> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, END))?;
        Ok(Listening {
            epoll,
            socket,
            shared,
            workers: HashMap::new(),
            is_late: false,
            has_new: false,
            read: 0,
            next: NEVER,
            is_stale: false,
        })
    }

    fn serve(&mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let in_a_rush = self.look();
            let is_late = mem::take(&mut self.is_late);
            let wait = if (in_a_rush || is_late) && !self.has_new {
                self.shared.next.store(IN_A_RUSH, Ordering::Relaxed);
                // At once when it is told of something.
                sys::scm::wait(self.socket.as_fd(), TICK);
                EpollTimeout::ZERO
            } else {
                let next = self.next_look();
                self.shared.next.store(next, Ordering::Relaxed);
                timeout_until(next)
            };
            let Ok(count) = self.epoll.wait(&mut events, wait) else {
                // EINTR: nothing else can be wrong with it.
                self.is_late = is_late;
                continue;
            };
            if is_late {
                self.attend_broken();
            }
            for event in &events[..count] {
                match event.data() {
                    END if !self.admit() => return,
                    END => {}
                    number => self.attend(number, event.events()),
                }
            }
        }
    }

    /// Has those woken whose alarm is due; tells whether a worker has parked since the last
    /// look.
    fn look(&mut self) -> bool {
        // An alarm that is set from here on is told of, if its worker minds.
        self.shared.next.store(NEVER, Ordering::Relaxed);
        let in_a_rush = self.shared.has_parked.swap(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.is_stale |= in_a_rush;
        let now = now();
        if self.has_new || now >= self.next || self.is_stale && now >= self.next_reading() {
            self.read_alarms(now);
        }
        in_a_rush
    }

    /// When a stale reading is to be renewed: where there are many workers it takes a while.
    fn next_reading(&self) -> u64 {
        const EACH: u64 = 20_000;

        self.read + self.workers.len() as u64 * EACH
    }

    /// When to look again, if nothing happens before.
    fn next_look(&self) -> u64 {
        if self.workers.is_empty() {
            return NEVER;
        }
        let stale = if self.is_stale {
            self.next_reading()
        } else {
            NEVER
        };
        self.next.min(stale).min(now() + SECOND)
    }

    fn read_alarms(&mut self, now: u64) {
        self.read = now;
        self.next = NEVER;
        self.is_stale = false;
        self.has_new = false;
        for Worker { bell, listener } in self.workers.values() {
            self.has_new |= !bell.is_tried.load(Ordering::Relaxed);
            let alarm = bell.alarm.load(Ordering::Relaxed);
            if alarm > now {
                self.next = self.next.min(alarm);
            } else if (bell.alarm)
                .compare_exchange(alarm, NEVER, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
            {
                bell.ring_alarm(listener);
            }
        }
    }

    /// Takes a worker in, or looks; `false` when there will be none any more.
    fn admit(&mut self) -> bool {
        let (mut message, mut listener) = ([0; size_of::<u64>()], Vec::new());
        match sys::scm::receive(self.socket.as_fd(), &mut message, &mut listener) {
            Ok(received) if received.len == message.len() => {}
            Ok(_) => return false,
            Err(_) => return true,
        }
        let number = u64::from_ne_bytes(message);
        if number == END {
            return false;
        }
        if number == LOOK {
            self.attend_broken();
            return true;
        }
        let bell = self.shared.arriving.lock().remove(&number);
        // A listener that did not get here is closed: what the worker is refused
        // then fails with ENOSYS.
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        match (bell, listener.pop()) {
            (Some(arriving), Some(listener)) if self.epoll.add(&listener, event).is_ok() => {
                let listener = Listener::from(listener);
                let bell = arriving.has_come();
                self.workers.insert(number, Worker { listener, bell });
                self.has_new = true;
            }
            _ => self.lose_listener(),
        }
        true
    }

    /// Sees to the workers whose bell is broken.
    fn attend_broken(&mut self) {
        for worker in self.workers.values() {
            if worker.bell.is_broken() {
                self.is_late |= !worker.attend();
            }
        }
    }

    fn attend(&mut self, number: u64, what: EpollFlags) {
        let Some(worker) = self.workers.get(&number) else {
            return;
        };
        if what.contains(EpollFlags::EPOLLIN) {
            self.is_late |= !worker.attend();
        } else if what.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            // The worker has ended, and so have its children.
            if let Some(worker) = self.workers.remove(&number) {
                // By name: the process may have it open for longer.
                worker.listener.leave(&self.epoll);
                worker.bell.worker_has_ended();
            }
            self.lose_listener();
        }
    }

    fn lose_listener(&self) {
        self.shared.listeners.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    /// Receives a call that no caller does; `false` when it is to be tried again.
    ///
    /// Another may receive, which may take a moment to get there; and what fails here has
    /// run out for a moment, since the listener is this thread's own.
    fn attend(&self) -> bool {
        let Some(mut receiver) = self.bell.try_take(&self.listener) else {
            return false;
        };
        let mut is_done = self.bell.reply_left(&self.listener);
        // Asked now that there is no other receiver: this thread must not wait.
        if self.listener.has_call()
            && let Ok(call) = self.listener.receive()
        {
            if !self.bell.is_trap(call) {
                is_done &= self.bell.refuse(&self.listener, call);
            } else {
                receiver.held = Some(call.id);
                if call.argument == TRY || call.argument == TELL {
                    // It is new, or its caller has given the bell up.
                    is_done &= receiver.answer(false).is_ok();
                }
            }
        }
        // A waker that cannot use the bell has left it to this thread.
        if self.bell.is_broken() && receiver.held.is_some() {
            is_done &= receiver.answer(false).is_ok();
        }
        // There is no other ear to leave it to.
        receiver.gives_up = false;
        is_done
    }
}
