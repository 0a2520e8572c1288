//! Every raw system call, one file per kernel area. Functions here return
//! [`std::io::Result`]; what was attempted on whose behalf is said above.

pub(crate) mod futex;
pub(crate) mod mount;
pub(crate) mod netns;
pub(crate) mod thread;
