//! Which threads the handlers of signals run on.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::gettid;

const ROOM: usize = 4096;

static BEGUN: AtomicUsize = AtomicUsize::new(0);
static HANDLED: AtomicUsize = AtomicUsize::new(0);
static TIDS: [AtomicI32; ROOM] = [const { AtomicI32::new(0) }; ROOM];

/// The log of a process: the signals it caught and the threads that did.
pub struct SignalLog;

impl SignalLog {
    /// Has the process catch `signals` from now on, for good.
    #[allow(unsafe_code)]
    pub fn start(signals: &[Signal]) -> SignalLog {
        let handler = SigHandler::Handler(note);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        for signal in signals {
            // SAFETY: `note` does only what a handler may.
            let before = unsafe { sigaction(*signal, &action) };
            before.expect("a signal that can be caught");
        }
        SignalLog
    }

    /// How many were caught since the start.
    pub fn caught(&self) -> usize {
        HANDLED.load(Ordering::SeqCst)
    }

    /// The threads that caught them, in order.
    ///
    /// # Panics
    ///
    /// When there were more than there is room for.
    pub fn tids(&self) -> Vec<i32> {
        let caught = self.caught();
        assert!(
            caught <= ROOM,
            "{caught} signals are more than there is room for"
        );
        (TIDS[..caught].iter())
            .map(|tid| tid.load(Ordering::SeqCst))
            .collect()
    }
}

/// Async-signal-safe: a system call and three atomic operations.
extern "C" fn note(_: i32) {
    let tid = gettid().as_raw();
    if let Some(slot) = TIDS.get(BEGUN.fetch_add(1, Ordering::SeqCst)) {
        slot.store(tid, Ordering::SeqCst);
    }
    HANDLED.fetch_add(1, Ordering::SeqCst);
}
