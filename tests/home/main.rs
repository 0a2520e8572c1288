//! The threads that the library makes: what they inherit, from which thread, and what
//! may run on them.
#![allow(clippy::disallowed_methods)]

mod children;
mod descriptors;
mod first_caller;
mod inherited;
mod main_thread;
mod prewarm;

netns_exec::rootless::test_harness!(own_net);
