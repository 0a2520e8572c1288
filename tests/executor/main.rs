//! The executor: its calls, its workers, and how both end.

mod batch;
mod calls;
mod deletion;
mod faults;
mod futures;
mod idle;
mod nested;
mod panics;
mod retire;
mod scope;
mod shutdown;
mod signals;
mod threads;
mod workers;
