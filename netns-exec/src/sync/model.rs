//! The same parts for the models: loom tries every interleaving of them, and
//! every value that a weaker memory model lets a load return.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::Epoll;

use crate::sys::seccomp::{Answer, Notified};

pub(crate) use crossbeam_channel::TrySendError;
pub(crate) use loom::cell::UnsafeCell;
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
pub(crate) use loom::thread::yield_now;
pub(crate) use loom::thread_local as local;

// futex(2).

/// A thread that sleeps on a word.
struct Sleeper {
    word: usize,
    is_woken: Arc<std::sync::atomic::AtomicBool>,
    /// For one that blocks.
    bell: Arc<loom::sync::Condvar>,
}

/// What the kernel knows of sleepers. Nothing that orders what threads do is loom's.
struct Kernel {
    /// Moves with every call, so that loom tries them in every order.
    clock: AtomicU32,
    /// In the order in which they fell asleep.
    sleepers: std::sync::Mutex<Vec<Sleeper>>,
    /// See [`have_sleepers_block`].
    block: std::sync::atomic::AtomicBool,
    lock: loom::sync::Mutex<()>,
}

loom::lazy_static! {
    static ref KERNEL: Kernel = Kernel {
        clock: AtomicU32::new(0),
        sleepers: std::sync::Mutex::new(Vec::new()),
        block: false.into(),
        lock: loom::sync::Mutex::new(()),
    };
}

impl Kernel {
    /// Begins a system call. Other threads may go first. Where sleepers block, what it
    /// returns keeps them out from now on.
    fn enter(&self) -> Option<loom::sync::MutexGuard<'_, ()>> {
        if self.block.load(Ordering::Relaxed) {
            return Some(self.lock.lock().unwrap());
        }
        self.clock.fetch_add(1, Ordering::Relaxed);
        None
    }

    fn sleepers(&self) -> std::sync::MutexGuard<'_, Vec<Sleeper>> {
        self.sleepers.lock().unwrap()
    }
}

/// From now on threads sleep on a lock of loom's, which orders what the waker did before
/// what the sleeper does next; else they ask again and again, which orders nothing. Models
/// of whole calls have too many threads for that.
pub(crate) fn have_sleepers_block() {
    KERNEL.block.store(true, Ordering::Relaxed);
}

loom::lazy_static! {
    /// How many waits with a limit are still to end.
    /// Not loom's: what happens first is not to be tried both ways.
    static ref TIMES_UP: std::sync::atomic::AtomicU32 = 2.into();
}

/// Lets time be up for so many more waits with a limit.
pub(crate) fn let_time_pass(waits: u32) {
    TIMES_UP.fetch_add(waits, Ordering::Relaxed);
}

/// Whether a wait with a limit ends now because time is up: the first two do, at
/// once (a worker waits twice before it leaves), and the others never. If all did,
/// workers would come and go for ever.
fn time_is_up() -> bool {
    let left = TIMES_UP.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        left.checked_sub(1)
    });
    left.is_ok()
}

/// Sleeps until it is woken through the very same word. A wake-up that is lost shows as
/// a deadlock, or as a model with too many branches where the sleeper asks for ever.
///
/// What futex(2) promises is one thing: the look at the word and the falling asleep are
/// one step for the waker, who looks for sleepers after it has changed the word. It does
/// not say that the sleeper then sees what the waker has done.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> bool {
    let kernel = &*KERNEL;
    let locked = kernel.enter();
    let found = match locked {
        Some(_) => word.load(Ordering::Relaxed),
        // A change that changes nothing: it gets the latest value, where a load may get
        // one from before a wake-up. From here to the push no other thread runs.
        None => word.fetch_or(0, Ordering::Relaxed),
    };
    if found != expected {
        return true;
    }
    if timeout.is_some() && time_is_up() {
        return false;
    }
    let is_woken = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let bell = Arc::new(loom::sync::Condvar::new());
    kernel.sleepers().push(Sleeper {
        word: std::ptr::from_ref(word).addr(),
        is_woken: Arc::clone(&is_woken),
        bell: Arc::clone(&bell),
    });
    let is_woken = || is_woken.load(Ordering::Relaxed);
    match locked {
        Some(mut locked) => {
            while !is_woken() {
                locked = bell.wait(locked).unwrap();
            }
        }
        None => {
            while !is_woken() {
                yield_now();
            }
        }
    }
    true
}

pub(crate) fn futex_wake(word: *const AtomicU32) {
    let kernel = &*KERNEL;
    let locked = kernel.enter();
    let mut sleepers = kernel.sleepers();
    let at = (sleepers.iter()).position(|sleeper| sleeper.word == word.addr());
    let sleeper = at.map(|at| sleepers.remove(at));
    drop(sleepers);
    if let Some(sleeper) = sleeper {
        sleeper.is_woken.store(true, Ordering::Relaxed);
        if locked.is_some() {
            sleeper.bell.notify_one();
        }
    }
}

// seccomp_unotify(2).

/// Hears of the traps of one thread. The lock is the kernel's: it hands a call to one of
/// those who receive, and lets the thread go on when that one has answered.
#[derive(Clone)]
pub(crate) struct Listener(Arc<Notification>);

struct Notification {
    state: loom::sync::Mutex<Call>,
    called: loom::sync::Condvar,
    answered: loom::sync::Condvar,
}

#[derive(Default)]
struct Call {
    /// The number of the call that waits, or of the last one.
    id: u64,
    /// It waits for an answer; with its arguments.
    waits: Option<(u64, u64)>,
    received: bool,
}

impl Listener {
    pub(crate) fn new() -> Listener {
        Listener(Arc::new(Notification {
            state: loom::sync::Mutex::default(),
            called: loom::sync::Condvar::new(),
            answered: loom::sync::Condvar::new(),
        }))
    }

    pub(crate) fn trap(&self, argument: u64, cookie: u64) -> Result<(), Errno> {
        let Notification {
            state,
            called,
            answered,
        } = &*self.0;
        let mut call = state.lock().unwrap();
        call.id += 1;
        call.waits = Some((argument, cookie));
        call.received = false;
        called.notify_one();
        while call.waits.is_some() {
            call = answered.wait(call).unwrap();
        }
        Ok(())
    }

    /// What a signal does to the call that waits: it begins anew, under a new number.
    pub(crate) fn interrupt(&self) {
        let mut call = self.0.state.lock().unwrap();
        if call.waits.is_some() {
            call.id += 1;
            call.received = false;
            self.0.called.notify_one();
        }
    }

    pub(crate) fn receive(&self) -> Result<Notified, Errno> {
        let mut call = self.0.state.lock().unwrap();
        loop {
            if let Some((argument, cookie)) = call.waits
                && !call.received
            {
                call.received = true;
                return Ok(Notified::trap(call.id, argument, cookie));
            }
            call = self.0.called.wait(call).unwrap();
        }
    }

    pub(crate) fn answer(&self, id: u64, _: Answer) -> Result<(), Errno> {
        let mut call = self.0.state.lock().unwrap();
        if call.id != id || !call.received {
            return Err(Errno::ENOENT);
        }
        call.waits = None;
        call.received = false;
        self.0.answered.notify_one();
        Ok(())
    }

    pub(crate) fn has_call(&self) -> bool {
        let call = self.0.state.lock().unwrap();
        call.waits.is_some() && !call.received
    }

    pub(crate) fn leave(&self, _: &Epoll) {}

    pub(crate) fn has_ended(&self) -> bool {
        false
    }

    pub(crate) fn wake_on_this_cpu(&self, _: bool) -> std::io::Result<()> {
        Ok(())
    }
}

/// Models have no ear: what makes these is what the kernel hands out.
impl From<OwnedFd> for Listener {
    fn from(_: OwnedFd) -> Listener {
        Listener::new()
    }
}

// crossbeam-channel, as far as it is used.

/// A bounded queue whose counter orders nothing: a thread that finds it empty
/// has no reason to see what others did before they looked at it, nor they what
/// it did. What crossbeam adds to that, by its use of sequential consistency,
/// it does not promise.
struct Queue<T> {
    room: u32,
    len: AtomicU32,
    jobs: loom::sync::Mutex<VecDeque<T>>,
}

pub(crate) struct Sender<T>(Arc<Queue<T>>);
pub(crate) struct Receiver<T>(Arc<Queue<T>>);

pub(crate) fn bounded<T>(room: usize) -> (Sender<T>, Receiver<T>) {
    let queue = Arc::new(Queue {
        room: room.try_into().unwrap(),
        len: AtomicU32::new(0),
        jobs: loom::sync::Mutex::new(VecDeque::new()),
    });
    (Sender(Arc::clone(&queue)), Receiver(queue))
}

impl<T> Sender<T> {
    pub(crate) fn try_send(&self, job: T) -> Result<(), TrySendError<T>> {
        let queue = &*self.0;
        // Whether there is room is seen as weakly as whether it is empty.
        if self.is_full() {
            return Err(TrySendError::Full(job));
        }
        let mut jobs = queue.jobs.lock().unwrap();
        if jobs.len() >= queue.room as usize {
            return Err(TrySendError::Full(job));
        }
        jobs.push_back(job);
        // Locked, so that it is never taken before it is counted.
        queue.len.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.len.load(Ordering::Relaxed) >= self.0.room
    }
}

impl<T> Receiver<T> {
    pub(crate) fn try_recv(&self) -> Result<T, ()> {
        let queue = &*self.0;
        if queue.len.load(Ordering::Relaxed) == 0 {
            return Err(());
        }
        let mut jobs = queue.jobs.lock().unwrap();
        let job = jobs.pop_front().ok_or(())?;
        // Locked, so that no receiver is told of a job that cannot be had.
        queue.len.fetch_sub(1, Ordering::Relaxed);
        Ok(job)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// parking_lot, as far as it is used.

#[derive(Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

pub(crate) struct MutexGuard<'a, T> {
    /// Away only inside a wait.
    guard: Option<loom::sync::MutexGuard<'a, T>>,
    mutex: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard {
            guard: Some(self.0.lock().unwrap()),
            mutex: self,
        }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_ref().unwrap()
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().unwrap()
    }
}

pub(crate) struct Condvar(loom::sync::Condvar);

pub(crate) struct TimedOut(bool);

impl TimedOut {
    pub(crate) fn timed_out(&self) -> bool {
        self.0
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Condvar::new()
    }
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Condvar(loom::sync::Condvar::new())
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let inner = guard.guard.take().unwrap();
        guard.guard = Some(self.0.wait(inner).unwrap());
    }

    pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> TimedOut {
        if !time_is_up() {
            self.wait(guard);
            return TimedOut(false);
        }
        drop(guard.guard.take());
        guard.guard = Some(guard.mutex.0.lock().unwrap());
        TimedOut(true)
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        RwLock(loom::sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> loom::sync::RwLockReadGuard<'_, T> {
        self.0.read().unwrap()
    }

    pub(crate) fn write(&self) -> loom::sync::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap()
    }
}

// Threads. Joining through a condition variable: loom's own join trips over
// wake-ups of others.

pub(crate) mod thread {
    use std::io;
    use std::sync::Arc;

    type Result<T> = (loom::sync::Mutex<Option<T>>, loom::sync::Condvar);

    pub(crate) struct JoinHandle<T>(Arc<Result<T>>);

    impl<T> JoinHandle<T> {
        pub(crate) fn join(self) -> std::thread::Result<T> {
            let (result, ended) = &*self.0;
            let mut result = result.lock().unwrap();
            loop {
                match result.take() {
                    Some(value) => return Ok(value),
                    None => result = ended.wait(result).unwrap(),
                }
            }
        }
    }

    pub(crate) struct Builder(loom::thread::Builder);

    impl Builder {
        pub(crate) fn new() -> Builder {
            Builder(loom::thread::Builder::new())
        }

        pub(crate) fn name(self, name: String) -> Builder {
            Builder(self.0.name(name))
        }

        pub(crate) fn stack_size(self, words: usize) -> Builder {
            Builder(self.0.stack_size(words))
        }

        pub(crate) fn spawn<T: Send + 'static>(
            self,
            f: impl FnOnce() -> T + Send + 'static,
        ) -> io::Result<JoinHandle<T>> {
            let result = (loom::sync::Mutex::new(None), loom::sync::Condvar::new());
            let handle = JoinHandle(Arc::new(result));
            let result = Arc::clone(&handle.0);
            self.0.spawn(move || {
                let value = f();
                *result.0.lock().unwrap() = Some(value);
                result.1.notify_one();
            })?;
            Ok(handle)
        }
    }

    pub(crate) fn spawn<T: Send + 'static>(
        f: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        Builder::new().spawn(f).unwrap()
    }
}

pub(crate) fn join_lost(_: thread::JoinHandle<()>) {
    unreachable!("a model's threads end in order");
}
