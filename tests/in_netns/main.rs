//! `#[in_netns]`: what it accepts, what it does, what it refuses.

// An annotation must not turn clean code into code with warnings.
#![deny(warnings, clippy::all)]
#![deny(clippy::redundant_closure, clippy::used_underscore_binding)]

mod arguments;
mod executors;
mod failures;
mod fresh;
mod futures;
mod plain;
mod targets;

use netns_exec::{Netns, NetnsId};

netns_exec::rootless::test_harness!(own_net);

/// The namespace of the main thread, wherever this one is.
fn home() -> NetnsId {
    Netns::home().expect("own process").id()
}
