//! What hand-written synchronisation is made of: the standard library's parts,
//! crossbeam's and parking_lot's, or loom's when the models run (`--cfg loom`).
//!
//! Only what takes part in a protocol comes from here. Counters that no thread
//! waits on, and locks that are not held across any of this, are the real ones
//! even in a model.

#[cfg(not(all(test, loom)))]
pub(crate) use native::*;

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, loom))]
pub(crate) use model::*;

#[cfg(not(all(test, loom)))]
mod native {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
    pub(crate) use std::thread;
    pub(crate) use std::thread::yield_now;

    use std::io;
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::Duration;

    use nix::errno::Errno;
    use nix::sys::epoll::Epoll;

    pub(crate) use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

    use crate::sys;
    use crate::sys::seccomp::{self, Answer, Heard, Notified};
    pub(crate) use crate::sys::thread::join_lost;

    /// Hears of a thread's system calls, see [`seccomp`].
    #[derive(Debug)]
    pub(crate) struct Listener(OwnedFd);

    impl From<OwnedFd> for Listener {
        fn from(fd: OwnedFd) -> Listener {
            Listener(fd)
        }
    }

    impl AsFd for Listener {
        fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl Listener {
        /// Called by the thread that is listened to: waits for the answer.
        pub(crate) fn trap(&self, argument: u64, cookie: u64) -> Result<(), Errno> {
            seccomp::trap(argument, cookie)
        }

        pub(crate) fn receive(&self) -> Result<Notified, Errno> {
            seccomp::receive(self.as_fd())
        }

        pub(crate) fn answer(&self, id: u64, answer: Answer) -> Result<(), Errno> {
            seccomp::answer(self.as_fd(), id, answer)
        }

        /// Whether a call waits that nothing has received.
        pub(crate) fn has_call(&self) -> bool {
            seccomp::poll(self.as_fd()) == Heard::Call
        }

        /// Whether the thread that is listened to has ended, with all of its children.
        pub(crate) fn has_ended(&self) -> bool {
            seccomp::poll(self.as_fd()) == Heard::End
        }

        /// Has `epoll` hear of it no more.
        pub(crate) fn leave(&self, epoll: &Epoll) {
            let _ = epoll.delete(self);
        }

        pub(crate) fn wake_on_this_cpu(&self, yes: bool) -> io::Result<()> {
            seccomp::wake_on_this_cpu(self.as_fd(), yes)
        }
    }

    /// The standard cell behind the interface of loom's, which sees every
    /// access and fails the model on a race.
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }

        #[inline]
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }

    /// Sleeps while `word` is `expected`; `false` when `timeout` ran out.
    pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> bool {
        sys::futex::wait(word, expected, timeout)
    }

    /// Wakes one sleeper. The word may be gone already, see [`sys::futex::wake`].
    pub(crate) fn futex_wake(word: *const AtomicU32) {
        sys::futex::wake(word, 1);
    }

    /// As the standard one; loom's has no `const` initialisers.
    macro_rules! local {
        ($($(#[$doc:meta])* static $name:ident: $ty:ty = $init:expr;)*) => {
            ::std::thread_local! {
                $($(#[$doc])* static $name: $ty = const { $init };)*
            }
        };
    }
    pub(crate) use local;
}
