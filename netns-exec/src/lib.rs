//! A namespace-safe thread executor.
#![cfg(target_os = "linux")]

mod error;
mod executor;
mod home;
mod netns;
mod sys;

#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;

pub use error::{Error, Result};
pub use executor::{
    Builder, Executor, Guard, JoinHandle, Pinned, Scope, TrySpawnError, run, spawn,
};
pub use netns::{Netns, NetnsId, WeakNetns};
pub use netns_exec_macros::in_netns;
