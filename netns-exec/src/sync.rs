//! The atomics that hand-written synchronisation is made of: the standard ones,
//! or loom's when the models run (`--cfg loom`).
#![allow(unsafe_code)]

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, Ordering, fence};

pub(crate) use cell::UnsafeCell;
pub(crate) use futex::{futex_wait, futex_wake};

#[cfg(not(loom))]
mod cell {
    /// The standard cell behind the interface of loom's, which sees every
    /// access and fails the model on a race.
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }

        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

#[cfg(loom)]
mod cell {
    pub(crate) use loom::cell::UnsafeCell;
}

#[cfg(not(loom))]
mod futex {
    use std::time::Duration;

    use super::AtomicU32;
    use crate::sys;

    /// Sleeps while `word` is `expected`; `false` when `timeout` ran out.
    pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> bool {
        sys::futex::wait(word, expected, timeout)
    }

    /// Wakes one sleeper. The word may be gone already, see [`sys::futex::wake`].
    pub(crate) fn futex_wake(word: *const AtomicU32) {
        sys::futex::wake(word, 1);
    }
}

#[cfg(loom)]
mod futex {
    use std::time::Duration;

    use loom::sync::{Condvar, Mutex};

    use super::{AtomicU32, Ordering};

    loom::lazy_static! {
        /// One lock and one condition for all words: every wake-up is a
        /// spurious one for the others, which futex(2) allows.
        static ref WAITERS: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
    }

    pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, _timeout: Option<Duration>) -> bool {
        let guard = WAITERS.0.lock().unwrap();
        if word.load(Ordering::Relaxed) == expected {
            drop(WAITERS.1.wait(guard).unwrap());
        }
        true
    }

    pub(crate) fn futex_wake(_word: *const AtomicU32) {
        let _guard = WAITERS.0.lock().unwrap();
        WAITERS.1.notify_all();
    }
}
