//! Panics as values.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The payload of the panic of `f`.
///
/// # Panics
///
/// When `f` does not.
#[track_caller]
pub fn panic_of<T>(f: impl FnOnce() -> T) -> Box<dyn Any + Send> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(_) => panic!("no panic"),
        Err(payload) => payload,
    }
}

/// The text of the panic of `f`.
///
/// # Panics
///
/// When `f` does not, or with something else.
#[track_caller]
pub fn panic_text<T>(f: impl FnOnce() -> T) -> String {
    match panic_of(f).downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast_ref::<&str>().expect("a text")).to_owned(),
    }
}
