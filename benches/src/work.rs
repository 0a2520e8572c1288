//! What the shipped closure does.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// What the shipped closure does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Adds one to a number that it holds: the cost of the way, and nothing else.
    Empty,
    /// Opens a UDP socket there and gives it to the caller, who closes it.
    Socket,
}

/// Opens a UDP socket in the calling thread's namespace.
///
/// # Panics
///
/// When the kernel refuses: there is nothing left to measure then.
pub fn open_socket() -> OwnedFd {
    socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a UDP socket can be opened")
}

/// The inode of the calling thread's namespace.
///
/// Good enough to tell namespaces apart that are all held open meanwhile.
///
/// # Panics
///
/// When /proc is not there.
pub fn own_netns_inode() -> u64 {
    fs::metadata("/proc/thread-self/ns/net")
        .expect("/proc is mounted")
        .ino()
}
