//! The namespace files of nsfs.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, setns};

/// Moves the calling thread, and no other, into a network namespace.
///
/// For threads that were made for it only: there is no way back that cannot
/// fail, see setns(2).
pub(crate) fn enter(netns: impl AsFd) -> io::Result<()> {
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// Opens the namespace of the calling thread.
pub(crate) fn of_this_thread() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
}

/// Opens the namespace of the process's main thread.
pub(crate) fn of_main_thread() -> io::Result<OwnedFd> {
    File::open("/proc/self/ns/net").map(OwnedFd::from)
}

/// The never-reused id of a namespace: `NS_GET_ID` (Linux 6.18).
pub(crate) fn id(netns: impl AsFd) -> io::Result<u64> {
    nix::ioctl_read!(ns_get_id, 0xb7, 13, u64);
    let mut id = 0;
    // SAFETY: the kernel writes one u64 to a live variable.
    unsafe { ns_get_id(netns.as_fd().as_raw_fd(), &mut id) }?;
    Ok(id)
}
