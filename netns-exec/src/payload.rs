//! What a panic was raised with, which is a user's value like any other: its drop may
//! panic as well.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a panic was raised with.
pub(crate) type Payload = Box<dyn Any + Send>;

/// Runs what may be a user's code, on a thread that is no worker: what it panics with
/// is dropped.
pub(crate) fn quietly(f: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(f)) {
        discard(panic);
    }
}

/// Drops a panic's payload. If that panics as well, what it panics with is leaked: it
/// might go on like that for ever.
pub(crate) fn discard(panic: Payload) {
    if let Err(next) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        mem::forget(next);
    }
}
