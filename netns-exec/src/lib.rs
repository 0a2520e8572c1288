//! A namespace-safe thread executor.
#![cfg(target_os = "linux")]

pub mod audit;
mod error;
mod executor;
mod guard;
mod handle;
mod home;
mod job;
mod lane;
mod latch;
mod netns;
mod process;
mod roster;
mod scope;
mod sync;
mod sys;
mod watch;
mod worker;

#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;

pub use error::{Error, Result};
pub use executor::{Builder, Executor, NetnsStats, Pinned, Stats, TrySpawnError, run, spawn};
pub use guard::Guard;
pub use handle::{JoinHandle, ScopedJoinHandle};
pub use netns::{Netns, NetnsId, WeakNetns};
pub use netns_exec_macros::in_netns;
pub use process::CommandExt;
pub use scope::Scope;
