//! The way into the standard library's error, and back.

use std::io;

use super::{Error, Kind};

impl From<Error> for io::Error {
    /// Keeps the errno, so that
    /// [`raw_os_error`](io::Error::raw_os_error) and the [`io::ErrorKind`] are those
    /// of the system call that failed.
    ///
    /// An [`io::Error`] holds either an errno or an error, so the text of such a one
    /// is the errno's alone; [`io::Error::other`] keeps the text instead. What has no
    /// errno, and what a job did (its panic, its escape), is kept whole: the text,
    /// and the error itself, which [`io::Error::downcast`] returns.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io;
    ///
    /// use netns_exec::Netns;
    ///
    /// let error = Netns::open("no-such-namespace").unwrap_err();
    /// eprintln!("{error}"); // names the namespace
    /// let error = io::Error::from(error);
    /// assert_eq!(error.kind(), io::ErrorKind::NotFound);
    /// assert!(error.raw_os_error().is_some());
    ///
    /// // Invalid whatever the kernel says, so there is no errno.
    /// let error = io::Error::from(Netns::open("a/b").unwrap_err());
    /// assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    /// assert!(error.to_string().contains("a/b"));
    /// ```
    fn from(error: Error) -> io::Error {
        let kind = match &error.inner.kind {
            Kind::NotFound => io::ErrorKind::NotFound,
            Kind::Exists => io::ErrorKind::AlreadyExists,
            Kind::Invalid | Kind::NotANetns => io::ErrorKind::InvalidInput,
            Kind::TimedOut => io::ErrorKind::TimedOut,
            _ => (error.inner.cause.as_ref()).map_or(io::ErrorKind::Other, io::Error::kind),
        };
        match (&error.inner.kind, error.raw_os_error()) {
            (Kind::Kernel | Kind::NotFound | Kind::Exists, Some(errno)) => {
                io::Error::from_raw_os_error(errno)
            }
            _ => io::Error::new(kind, error),
        }
    }
}

impl From<io::Error> for Error {
    /// Takes over an error from elsewhere, so that `?` works in a function that
    /// does more than this crate's calls.
    ///
    /// An error of this crate that became an [`io::Error`] comes back as it was,
    /// unless it had an errno: then it is like any other with that errno. The
    /// predicates go by the [`io::ErrorKind`], the text is the cause's.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::fs;
    ///
    /// use netns_exec::{Error, Netns};
    ///
    /// fn configured() -> netns_exec::Result<Netns> {
    ///     let name = fs::read_to_string("/etc/no-such-file")?;
    ///     Netns::open(name.trim())
    /// }
    ///
    /// let error: Error = configured().unwrap_err();
    /// assert!(error.is_not_found());
    /// assert_eq!(error.to_string(), "no such file or directory");
    /// ```
    fn from(cause: io::Error) -> Error {
        let cause = match cause.downcast::<Error>() {
            Ok(error) => return error,
            Err(cause) => cause,
        };
        let has_errno = cause.raw_os_error().is_some();
        let kind = match cause.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::AlreadyExists => Kind::Exists,
            // With an errno these are a system call's own.
            io::ErrorKind::InvalidInput if !has_errno => Kind::Invalid,
            io::ErrorKind::TimedOut if !has_errno => Kind::TimedOut,
            _ => Kind::Kernel,
        };
        Error::new(kind, "").caused_by(cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_survives_the_way_into_an_io_error() {
        for (kind, errno) in [
            (Kind::Kernel, libc::EPERM),
            (Kind::Kernel, libc::EBADF),
            (Kind::NotFound, libc::ESRCH),
            (Kind::Exists, libc::EEXIST),
        ] {
            let cause = io::Error::from_raw_os_error(errno);
            let error = io::Error::from(Error::new(kind, "cannot do it").caused_by(cause));
            assert_eq!(error.raw_os_error(), Some(errno));
        }
    }

    #[test]
    fn what_has_no_errno_goes_into_an_io_error_and_back_whole() {
        let error = io::Error::from(Error::new(Kind::TimedOut, "waited in vain"));
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "waited in vain");

        let error = Error::from(error);
        assert!(error.is_timed_out());
        assert_eq!(error.to_string(), "waited in vain");

        // Nor does a job's panic get lost, whatever stands beside it.
        let error = Error::panicked("job panicked", Box::new("boom"))
            .caused_by(io::Error::from_raw_os_error(libc::EPERM));
        let error = Error::from(io::Error::from(error));
        assert!(error.into_panic().is_ok());
    }

    #[test]
    fn io_error_from_elsewhere_keeps_its_text_errno_and_kind() {
        let denied = Error::from(io::Error::from_raw_os_error(libc::EACCES));
        assert!(denied.is_permission_denied());
        assert_eq!(denied.raw_os_error(), Some(libc::EACCES));
        assert_eq!(denied.to_string(), "permission denied");

        let own = Error::from(io::Error::new(io::ErrorKind::NotFound, "no config"));
        assert!(own.is_not_found());
        assert_eq!(own.to_string(), "no config");

        // The kernel's ETIMEDOUT is no wait of ours that was bounded.
        let late = Error::from(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        assert!(!late.is_timed_out());
        for (kind, says) in [
            (
                io::ErrorKind::AlreadyExists,
                Error::is_already_exists as fn(&Error) -> bool,
            ),
            (io::ErrorKind::InvalidInput, Error::is_invalid_input),
            (io::ErrorKind::TimedOut, Error::is_timed_out),
            (io::ErrorKind::PermissionDenied, Error::is_permission_denied),
        ] {
            assert!(says(&Error::from(io::Error::from(kind))), "{kind:?}");
        }
    }
}
