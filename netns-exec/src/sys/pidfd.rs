//! Files of other processes, by way of a pidfd.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Opens what a process has open under the number `fd`: the same open file,
/// not a copy. pidfd_getfd(2) needs the privilege to trace the process.
pub(crate) fn getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes three integers and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    let fd = Errno::result(fd)?;
    let fd = libc::c_int::try_from(fd).expect("a file descriptor is an int");
    // SAFETY: the kernel just made this descriptor, so this is its only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
