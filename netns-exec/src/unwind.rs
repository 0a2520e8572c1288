//! What may be used on both sides of [`catch_unwind`](std::panic::catch_unwind):
//! everything that callers hold.
//!
//! The compiler asks because a panic can leave a value half changed. None of these
//! can be left so by a caller's panic: no code of a caller runs while one of the
//! library's locks is held or one of its tables is being changed (closures, their
//! drops and wakers run in one place, on a worker, and the builder's hooks on a thread
//! of their own), what is changed through `&` are atomics and what those locks guard,
//! and a job that panics has told its outcome before any handle can see it. The
//! payload of a panic and a job's value are asserted nothing about: they can be had by
//! value only, from a handle that ends with that.
//!
//! In one list, so that a new handle has a place to be added at; the compiler finds the
//! rest by itself.

use std::panic::{RefUnwindSafe, UnwindSafe};

use crate::error;
use crate::executor::{
    AbortHandle, AbortOnDrop, Builder, Executor, JoinHandle, Pinned, Scope, ScopedJoinHandle, Stop,
    ThreadHandle,
};
#[cfg(feature = "net")]
use crate::net;
#[cfg(feature = "ports")]
use crate::ports;

macro_rules! safe {
    ($($handle:ty $(where [$($generics:tt)+])?,)+) => {$(
        impl $(<$($generics)+>)? UnwindSafe for $handle {}
        impl $(<$($generics)+>)? RefUnwindSafe for $handle {}
    )+};
}

safe! {
    error::Error,
    Builder,
    Executor,
    Pinned,
    JoinHandle<T> where [T],
    ScopedJoinHandle<'_, T> where [T],
    AbortHandle,
    AbortOnDrop<T> where [T],
    Stop,
    ThreadHandle<T> where [T],
    Scope<'_, '_>,
}

#[cfg(feature = "net")]
safe! {
    net::ProcNet,
    net::SocketStock,
    net::StockBuilder,
}

#[cfg(feature = "ports")]
safe! {
    ports::Acquire,
    ports::Allocator,
    ports::Broker,
    ports::Cancel,
    ports::Error,
    ports::Hold,
    ports::Lease,
    ports::Member,
    ports::Request,
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::*;

    fn check<T: UnwindSafe + RefUnwindSafe>() {}

    #[test]
    fn what_callers_hold_may_cross_catch_unwind() {
        check::<Error>();
        check::<Builder>();
        check::<Executor>();
        check::<Pinned>();
        check::<Scope<'_, '_>>();
        check::<Stats>();
        check::<NetnsStats>();
        check::<TrySpawnError<fn()>>();
        check::<Guard>();
        check::<Netns>();
        check::<WeakNetns>();
        check::<NetnsId>();
    }

    #[test]
    #[cfg(feature = "audit")]
    fn what_an_audit_finds_may_cross_catch_unwind() {
        check::<audit::Process>();
        check::<audit::Thread>();
        check::<audit::Holders>();
        check::<audit::Namespaces>();
    }

    #[test]
    #[cfg(feature = "net")]
    fn stocks_of_sockets_may_cross_catch_unwind() {
        check::<net::ProcNet>();
        check::<net::SocketKind>();
        check::<net::SocketStock>();
        check::<net::StockBuilder>();
    }

    #[test]
    #[cfg(feature = "ports")]
    fn what_holds_ports_may_cross_catch_unwind() {
        check::<ports::Allocator>();
        check::<ports::Acquire>();
        check::<ports::Broker>();
        check::<ports::Cancel>();
        check::<ports::Error>();
        check::<ports::Gate>();
        check::<ports::Hold>();
        check::<ports::Lease>();
        check::<ports::Member>();
        check::<ports::Request>();
    }

    /// What a job returns may be anything: a handle gives it by value only.
    #[test]
    fn handles_of_jobs_may_cross_whatever_the_jobs_return() {
        check::<JoinHandle<Cell<u8>>>();
        check::<ScopedJoinHandle<'_, Cell<u8>>>();
        check::<AbortOnDrop<Cell<u8>>>();
        check::<AbortHandle>();
        check::<Stop>();
        check::<ThreadHandle<Cell<u8>>>();
    }
}
