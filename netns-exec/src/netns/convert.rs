//! The conversions of the standard library, by which generic code makes and uses
//! handles.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::str::FromStr;

use super::Netns;
use crate::error::{Error, Result};

impl FromStr for Netns {
    type Err = Error;

    /// Opens the namespace of that name, as [`Netns::open`] does: for what parses,
    /// such as a configuration or a command line.
    ///
    /// # Errors
    ///
    /// As [`Netns::open`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Netns;
    ///
    /// let blue: Netns = "blue".parse()?;
    /// assert_eq!(blue, Netns::open("blue")?);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    fn from_str(name: &str) -> Result<Netns> {
        Netns::open(name)
    }
}

impl TryFrom<OwnedFd> for Netns {
    type Error = Error;

    /// Takes over an open namespace file, as [`Netns::from_fd`] does.
    ///
    /// # Errors
    ///
    /// As [`Netns::from_fd`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::fs::File;
    /// use std::os::fd::OwnedFd;
    ///
    /// use netns_exec::Netns;
    ///
    /// let fd = OwnedFd::from(File::open("/proc/self/ns/net")?);
    /// assert_eq!(Netns::try_from(fd)?, Netns::home()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn try_from(fd: OwnedFd) -> Result<Netns> {
        Netns::from_fd(fd)
    }
}

impl TryFrom<File> for Netns {
    type Error = Error;

    /// Takes over an open namespace file, as [`Netns::from_fd`] does.
    ///
    /// # Errors
    ///
    /// As [`Netns::from_fd`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::fs::File;
    ///
    /// use netns_exec::Netns;
    ///
    /// let here = Netns::try_from(File::open("/proc/thread-self/ns/net")?)?;
    /// assert_eq!(here, Netns::current()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn try_from(file: File) -> Result<Netns> {
        Netns::from_fd(file.into())
    }
}

impl TryFrom<BorrowedFd<'_>> for Netns {
    type Error = Error;

    /// Makes a handle with a copy of the descriptor, which stays its owner's.
    ///
    /// # Errors
    ///
    /// As [`Netns::from_fd`], and `EMFILE` when no descriptor is left for the copy.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::fs::File;
    /// use std::os::fd::AsFd;
    ///
    /// use netns_exec::Netns;
    ///
    /// let file = File::open("/proc/self/ns/net")?;
    /// let netns = Netns::try_from(file.as_fd())?;
    /// drop(file); // the handle has a descriptor of its own
    /// assert_eq!(netns, Netns::home()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn try_from(fd: BorrowedFd<'_>) -> Result<Netns> {
        let copy = fd.try_clone_to_owned();
        let failed = |cause| Error::kernel("cannot copy the file descriptor of a netns", cause);
        Netns::from_fd(copy.map_err(failed)?)
    }
}

impl AsRawFd for Netns {
    /// The number of the open namespace, for interfaces that take numbers. It is
    /// that of all clones of the handle, and means nothing once they are gone:
    /// prefer [`as_fd`](AsFd::as_fd).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::os::fd::AsRawFd;
    ///
    /// use netns_exec::Netns;
    ///
    /// let netns = Netns::current()?;
    /// assert_eq!(netns.as_raw_fd(), netns.clone().as_raw_fd());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
