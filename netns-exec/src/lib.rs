//! A namespace-safe thread executor.
#![cfg(target_os = "linux")]

mod error;
mod executor;
mod home;
mod netns;
mod sys;

pub use error::{Error, Result};
pub use executor::{
    Builder, Executor, Guard, JoinHandle, Pinned, Scope, TrySpawnError, run, spawn,
};
pub use netns::{Netns, NetnsId, WeakNetns};
