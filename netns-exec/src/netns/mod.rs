//! Handles to network namespaces.
//!
//! [`Netns`] pins a namespace, [`WeakNetns`] names one, and [`NetnsId`] tells
//! them apart for good. Nothing here moves the calling thread or forks: what
//! has to be done inside a namespace is done by a short-lived thread, and what
//! takes a privilege that the caller may have given up, as the thread of a
//! sealed job has, by one that is born with all the process has.

mod awaited;
mod convert;
mod enter;
mod handle;
pub(crate) mod id;
mod identify;
mod named;
mod owned;
mod source;
mod thread;
pub(crate) mod users;
pub(crate) mod watch;
mod weak;
mod why;

use std::io;

use crate::home::Home;

#[cfg(any(test, fuzzing))]
/// For `crate::fuzz`.
pub(crate) fn fuzz_name(name: &std::ffi::OsStr) {
    named::fuzz(name);
}

pub use handle::Netns;
use handle::{Inner, Origin};
pub use id::NetnsId;
pub use owned::OwnedNetns;
pub use weak::WeakNetns;
pub(crate) use why::NOT_THE_SAME_FILE;
use why::is_permission;

/// Tries on the calling thread, and where that lacks a privilege on the home
/// thread, which never gives one up.
fn with_privilege<T: Send + 'static>(
    f: impl Fn() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match f() {
        Err(error) if is_permission(&error) => match Home::get() {
            Ok(home) => home.call(f),
            Err(_) => Err(error),
        },
        result => result,
    }
}
