//! Whether a thread beside the pool is to end, for that thread and for those that ask.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::Waker;
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::{Condvar, Mutex};
use std::sync::OnceLock;

use super::wakers::{Ticket, Wakers};
use crate::home::aside::Lease;

/// Set once, and waited for in whichever way the thread's loop can: by a look, a wait, a
/// descriptor that becomes readable, a future.
pub(crate) struct StopFlag {
    is_set: Mutex<bool>,
    changed: Condvar,
    tasks: Wakers,
    /// Made when it is asked for.
    event: OnceLock<EventFd>,
    /// So that the flag can be set by a thread that runs no user code.
    _lease: Lease,
}

impl StopFlag {
    pub(super) fn new() -> io::Result<StopFlag> {
        Ok(StopFlag {
            is_set: Mutex::new(false),
            changed: Condvar::new(),
            tasks: Wakers::default(),
            event: OnceLock::new(),
            _lease: Lease::new()?,
        })
    }

    pub(crate) fn set(&self) {
        let mut is_set = self.is_set.lock();
        if std::mem::replace(&mut *is_set, true) {
            return;
        }
        if let Some(event) = self.event.get() {
            // It can only fail when it is full, and so readable.
            let _ = event.write(1);
        }
        drop(is_set);
        self.changed.notify_all();
        self.tasks.wake_all();
    }

    pub(super) fn is_set(&self) -> bool {
        *self.is_set.lock()
    }

    /// Waits until it is set or `deadline` has passed; tells which.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut is_set = self.is_set.lock();
        while !*is_set {
            match deadline {
                None => self.changed.wait(&mut is_set),
                Some(deadline) => {
                    if self.changed.wait_until(&mut is_set, deadline).timed_out() {
                        return *is_set;
                    }
                }
            }
        }
        true
    }

    /// A descriptor that is readable once it is set.
    pub(super) fn event(&self) -> io::Result<BorrowedFd<'_>> {
        // Locked, so that the setter finds it or it is told here.
        let is_set = self.is_set.lock();
        if self.event.get().is_none() {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let event = EventFd::from_value_and_flags(u32::from(*is_set), flags)?;
            let _ = self.event.set(event);
        }
        let event = self.event.get().expect("made under the lock");
        Ok(event.as_fd())
    }

    /// Registers a task, which then looks once more.
    pub(super) fn register(&self, ticket: &Ticket, waker: &Waker) {
        self.tasks.register(ticket, waker);
    }

    pub(super) fn forget(&self, ticket: &Ticket) {
        self.tasks.remove(ticket);
    }
}
