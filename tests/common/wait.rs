//! Waiting without sleeping for luck: gates, conditions, and a limit for what
//! might never end.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; a test that gets here has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns when `condition` holds.
///
/// # Panics
///
/// When it does not for a minute.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `f`, which might deadlock.
///
/// # Panics
///
/// With the panic of `f`, or when `f` has not ended after a minute. Its thread
/// stays then.
#[track_caller]
pub fn within<T: Send + 'static>(what: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        let _ = sender.send(f());
    });
    match receiver.recv_timeout(LIMIT) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: did not end"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Ok(()) => unreachable!("a closure that returned has sent its value"),
            Err(panic) => resume_unwind(panic),
        },
    }
}

/// Whether threads that go on and on are to end.
#[derive(Default)]
pub struct Over(AtomicBool);

impl Over {
    /// To be asked again and again.
    pub fn has_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// It comes with the drop of this, so also where the test fails: `thread::scope` would
    /// wait for such threads for ever.
    pub fn comes_with_drop(&self) -> impl Drop {
        struct Comes<'a>(&'a Over);
        impl Drop for Comes<'_> {
            fn drop(&mut self) {
                self.0.0.store(true, Ordering::Relaxed);
            }
        }
        Comes(self)
    }
}

/// Holds jobs until it is opened, which its drop does too: a test that failed
/// must not leave an executor waiting for its jobs.
#[derive(Default)]
pub struct Gate {
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    open: bool,
    arrived: usize,
}

/// What a job takes along to stop at the gate.
#[derive(Clone)]
pub struct Pass {
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Gate {
    /// A gate that is closed.
    pub fn new() -> Gate {
        Gate::default()
    }

    /// A way for one job, or several, to wait here.
    pub fn pass(&self) -> Pass {
        Pass {
            state: Arc::clone(&self.state),
        }
    }

    /// Returns when `jobs` have arrived in all.
    ///
    /// # Panics
    ///
    /// When they have not for a minute.
    #[track_caller]
    pub fn wait_for(&self, jobs: usize) {
        let (state, changed) = &*self.state;
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, waited) = changed
            .wait_timeout_while(state, LIMIT, |state| state.arrived < jobs)
            .unwrap_or_else(PoisonError::into_inner);
        let arrived = state.arrived;
        drop(state);
        assert!(!waited.timed_out(), "{arrived} of {jobs} jobs have started");
    }

    /// How many have arrived.
    pub fn arrived(&self) -> usize {
        let state = self.state.0.lock();
        state.unwrap_or_else(PoisonError::into_inner).arrived
    }

    /// Lets all go on.
    pub fn open(&self) {
        let (state, changed) = &*self.state;
        state.lock().unwrap_or_else(PoisonError::into_inner).open = true;
        changed.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

impl Pass {
    /// Says that the job is here, and waits until the gate opens.
    pub fn stop(&self) {
        let (state, changed) = &*self.state;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.arrived += 1;
        changed.notify_all();
        while !state.open {
            state = (changed.wait(state)).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
