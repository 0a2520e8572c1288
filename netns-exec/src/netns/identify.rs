//! Asking for the id of an open namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::stat::fstat;

use super::{NetnsId, enter};
use crate::home::Home;
use crate::sys;

/// Asks the kernel for the id of an open namespace.
///
/// Before Linux 6.18 only a socket knows it, and a socket can be made only
/// by a thread that is there: a short-lived one, unless the caller is.
pub(super) fn id_of(netns: BorrowedFd<'_>) -> io::Result<NetnsId> {
    match sys::netns::id(netns) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP)
            ) =>
        {
            by_cookie(netns)
        }
        result => result.map(NetnsId::from_raw),
    }
}

fn by_cookie(netns: BorrowedFd<'_>) -> io::Result<NetnsId> {
    // Needs no privilege, unlike entering.
    if is_of_this_thread(netns)? {
        return sys::netns::id_of_this_thread().map(NetnsId::from_raw);
    }
    by_visit(netns)
}

fn by_visit(netns: BorrowedFd<'_>) -> io::Result<NetnsId> {
    let key = fstat(netns).map(|stat| (stat.st_dev, stat.st_ino))?;
    let netns = netns.try_clone_to_owned()?;
    let home = Home::get().map_err(io::Error::from)?;
    let (id, there) = home.visit(move || -> io::Result<_> {
        enter::enter(netns.as_fd())?;
        let stat = fstat(sys::netns::of_this_thread()?)?;
        let id = sys::netns::id_of_this_thread()?;
        Ok((id, (stat.st_dev, stat.st_ino)))
    })??;
    // The caller holds the namespace, so its inode number means no other.
    match there == key {
        true => Ok(NetnsId::from_raw(id)),
        false => Err(io::Error::from_raw_os_error(libc::EBADF)),
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
        let id = id_of(here.as_fd()).unwrap();
        assert_eq!(by_cookie(here.as_fd()).unwrap(), id);
        assert_eq!(by_visit(here.as_fd()).unwrap(), id);
    }
}
