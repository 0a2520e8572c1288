//! `#[in_netns]`: what it accepts, what it does, what it refuses.

// An annotation must not turn clean code into code with warnings.
#![deny(warnings, clippy::all)]
#![deny(clippy::redundant_closure, clippy::used_underscore_binding)]

mod functions;
mod ui;
