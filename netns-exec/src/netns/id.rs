//! The identity of a network namespace: plain data, which everything else may
//! use. How an open namespace is asked for it is said in `identify`.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{Error, Result};
use crate::sys;

/// The number by which the kernel knows a network namespace, never reused
/// before the next boot.
///
/// This is what tells two namespaces apart, also when one died long ago. The
/// inode number in `net:[4026532177]` is not: the next namespace to be made
/// often has the inode of the last one that died.
///
/// It is the number that `ioctl(fd, NS_GET_ID)` (Linux 6.18, ioctl_nsfs(2))
/// and the socket option `SO_NETNS_COOKIE` (Linux 5.14) report, so it can be
/// compared with what eBPF programs read with `bpf_get_netns_cookie`.
///
/// # Examples
///
/// ```
/// use netns_exec::Netns;
///
/// let here = Netns::current()?.id();
/// assert_eq!(here, Netns::current()?.id());
/// println!("this thread is in namespace {here}");
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId(u64);

impl NetnsId {
    /// Returns the number itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// let cookie = Netns::current()?.id().as_u64(); // as eBPF programs see it
    /// assert_ne!(cookie, 0);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// An id that was passed on as a number.
    pub(crate) fn from_raw(id: u64) -> NetnsId {
        NetnsId(id)
    }

    /// Tells which namespace a socket was made in, wherever the thread or
    /// process that uses it is now.
    ///
    /// One system call, and unlike [`Netns::of_socket`](crate::Netns::of_socket)
    /// it needs no privilege: the cheapest way to prove where code runs.
    ///
    /// # Errors
    ///
    /// `ENOTSOCK` when it is no socket.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::UdpSocket;
    /// use netns_exec::{Netns, NetnsId};
    ///
    /// let socket = UdpSocket::bind("127.0.0.1:0")?;
    /// assert_eq!(NetnsId::of_socket(&socket)?, Netns::current()?.id());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn of_socket(socket: impl AsFd) -> Result<NetnsId> {
        NetnsId::by_socket(socket.as_fd())
            .map_err(|cause| Error::kernel("cannot read the netns id of a socket", cause))
    }

    pub(super) fn by_socket(socket: BorrowedFd<'_>) -> io::Result<NetnsId> {
        sys::netns::id_by_socket(socket).map(NetnsId)
    }
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<NetnsId> for u64 {
    fn from(id: NetnsId) -> u64 {
        id.0
    }
}
