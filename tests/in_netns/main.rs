//! `#[in_netns]`: what it accepts, what it does, what it refuses.

// An annotation must not turn clean code into code with warnings.
#![deny(warnings, clippy::all)]
#![deny(clippy::redundant_closure, clippy::used_underscore_binding)]

mod arguments;
mod executors;
mod failures;
mod fresh;
mod plain;
mod targets;
mod ui;

use std::panic::{AssertUnwindSafe, catch_unwind};

use netns_exec::{Netns, NetnsId};

/// The text of the panic of `f`.
fn panic_text<T>(f: impl FnOnce() -> T) -> String {
    let payload = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(_) => panic!("no panic"),
        Err(payload) => payload,
    };
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast_ref::<&str>().expect("a text")).to_owned(),
    }
}

/// The namespace of the main thread, wherever this one is.
fn home() -> NetnsId {
    Netns::home().expect("own process").id()
}
