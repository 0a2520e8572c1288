//! Where the calling thread is, and taking it elsewhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::stat::fstat;

use super::why::is_permission;
use crate::sys;

/// Moves the calling thread; that it is there already is no failure.
pub(super) fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    match sys::netns::enter(netns) {
        Err(error) if is_permission(&error) && is_of_this_thread(netns)? => Ok(()),
        result => result,
    }
}

/// Tells whether the calling thread is in that namespace.
pub(super) fn is_of_this_thread(netns: BorrowedFd<'_>) -> io::Result<bool> {
    let here: OwnedFd = sys::netns::of_this_thread()?;
    // Both are open, so neither inode number can have been reused.
    let (netns, here) = (fstat(netns)?, fstat(here.as_fd())?);
    Ok((netns.st_dev, netns.st_ino) == (here.st_dev, here.st_ino))
}
