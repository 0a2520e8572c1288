//! The executor: its calls, its workers, and how both end.

mod batch;
mod calls;
mod deletion;
mod faults;
mod futures;
mod lifecycle;
mod nested;
mod panics;
mod scope;
mod signals;
mod threads;
