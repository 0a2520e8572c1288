//! The identity of a network namespace.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::stat::fstat;

use super::enter;
use crate::error::{Error, Result};
use crate::home::Home;
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
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// An id that was passed on as a number.
    pub(crate) fn from_raw(id: u64) -> NetnsId {
        NetnsId(id)
    }

    /// Asks the kernel for the id of an open namespace.
    ///
    /// Before Linux 6.18 only a socket knows it, and a socket can be made only
    /// by a thread that is there: a short-lived one, unless the caller is.
    pub(super) fn of(netns: BorrowedFd<'_>) -> io::Result<NetnsId> {
        match sys::netns::id(netns) {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP)
                ) =>
            {
                NetnsId::by_cookie(netns)
            }
            result => result.map(NetnsId),
        }
    }

    fn by_cookie(netns: BorrowedFd<'_>) -> io::Result<NetnsId> {
        // Needs no privilege, unlike entering.
        if is_of_this_thread(netns)? {
            return sys::netns::id_of_this_thread().map(NetnsId);
        }
        NetnsId::by_visit(netns)
    }

    fn by_visit(netns: BorrowedFd<'_>) -> io::Result<NetnsId> {
        let netns = netns.try_clone_to_owned()?;
        let home = Home::get().map_err(io::Error::from)?;
        home.visit(move || {
            enter::enter(netns.as_fd())?;
            sys::netns::id_of_this_thread()
        })?
        .map(NetnsId)
    }

    /// Tells which namespace a socket was made in, wherever the thread or
    /// process that uses it is now.
    ///
    /// One system call, and unlike [`Netns::of_socket`](super::Netns::of_socket)
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

/// Tells whether the calling thread is in that namespace.
pub(super) fn is_of_this_thread(netns: BorrowedFd<'_>) -> io::Result<bool> {
    let here: OwnedFd = sys::netns::of_this_thread()?;
    // Both are open, so neither inode number can have been reused.
    let (netns, here) = (fstat(netns)?, fstat(here.as_fd())?);
    Ok((netns.st_dev, netns.st_ino) == (here.st_dev, here.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_learn_the_id_gives_the_same() {
        // That of the home namespace needs no privilege, even by a visit.
        let here = sys::netns::of_this_thread().unwrap();
        let id = NetnsId::of(here.as_fd()).unwrap();
        assert_eq!(NetnsId::by_cookie(here.as_fd()).unwrap(), id);
        assert_eq!(NetnsId::by_visit(here.as_fd()).unwrap(), id);
    }
}
