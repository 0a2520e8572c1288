//! What went wrong: what was attempted, on what, and why.

use std::borrow::Cow;
use std::fmt;
use std::io;

/// The result of every fallible call of this crate.
///
/// # Examples
///
/// ```
/// use netns_exec_lab::{Lab, Node, Result};
///
/// /// The network that all tests of this file are about.
/// fn pair(lab: &Lab) -> Result<[Node; 2]> {
///     let nodes = lab.nodes(["client", "server"])?;
///     lab.link(nodes[0].at(&["10.0.0.1/24"]), nodes[1].at(&["10.0.0.2/24"]))?;
///     Ok(nodes)
/// }
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what was attempted, on what, and why it failed.
///
/// # Examples
///
/// ```no_run
/// use netns_exec_lab::{ErrorKind, Lab};
///
/// let lab = Lab::new()?;
/// let node = lab.node("client")?;
/// let error = node.route("10.0.0.0", "10.0.0.1").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Invalid); // a route has a length: 10.0.0.0/8
/// # Ok::<(), netns_exec_lab::Error>(())
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    attempt: Cow<'static, str>,
    cause: Option<io::Error>,
    hint: Option<Cow<'static, str>>,
}

/// What a caller may want to tell apart.
///
/// # Examples
///
/// ```
/// # use netns_exec_lab::{Error, ErrorKind};
/// # fn f(error: &Error) {
/// match error.kind() {
///     ErrorKind::Namespace => eprintln!("needs `rootless::test_harness!()`"),
///     ErrorKind::Unsupported => eprintln!("not on this kernel"),
///     _ => panic!("{error}"),
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request makes no sense, on whatever kernel.
    Invalid,
    /// This kernel was built without what it takes.
    Unsupported,
    /// The kernel refused; an errno is the source.
    Kernel,
    /// A namespace could not be made or entered.
    Namespace,
}

impl Error {
    pub(crate) fn invalid(attempt: impl Into<Cow<'static, str>>, hint: &'static str) -> Error {
        Error::new(ErrorKind::Invalid, attempt, None).hint(hint)
    }

    pub(crate) fn kernel(attempt: impl Into<Cow<'static, str>>, cause: io::Error) -> Error {
        Error::new(ErrorKind::Kernel, attempt, Some(cause))
    }

    pub(crate) fn new(
        kind: ErrorKind,
        attempt: impl Into<Cow<'static, str>>,
        cause: Option<io::Error>,
    ) -> Error {
        Error(Box::new(Inner {
            kind,
            attempt: attempt.into(),
            cause,
            hint: None,
        }))
    }

    pub(crate) fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Error {
        self.0.hint = Some(hint.into());
        self
    }

    /// Returns what kind of failure it is.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// # let (a, b) = (lab.node("a")?, lab.node("b")?);
    /// use netns_exec_lab::ErrorKind;
    ///
    /// let error = lab.link(a.at(&["10.0.0.1"]), b.at(&[])).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Invalid); // an address has a length: 10.0.0.1/24
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Tells whether this kernel was built without what the call takes.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec_lab::{Link, Result};
    /// # fn f(link: &Link) -> Result<()> {
    /// match link.rate(1_000_000) {
    ///     Err(error) if error.is_unsupported() => eprintln!("as fast as it gets: {error}"),
    ///     limited => limited?,
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.0.kind == ErrorKind::Unsupported
    }

    /// Returns the kernel's errno, if it is the kernel that refused.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// let node = lab.node("client")?;
    /// let error = node.route("default", "10.0.0.1").unwrap_err();
    /// assert!(error.raw_os_error().is_some()); // no device has a way to 10.0.0.1
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.0.cause.as_ref().and_then(io::Error::raw_os_error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        f.write_str(&inner.attempt)?;
        // The library's own text says what its cause is.
        if let (Some(cause), true) = (&inner.cause, inner.kind != ErrorKind::Namespace) {
            write!(f, ": {}", netns_exec::__private::reason(cause))?;
        }
        match &inner.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}, {:?})", self.0.kind, self.to_string())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        (self.0.cause.as_ref()).map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}

impl From<netns_exec::Error> for Error {
    fn from(error: netns_exec::Error) -> Error {
        let cause = error.raw_os_error().map(io::Error::from_raw_os_error);
        Error::new(ErrorKind::Namespace, error.to_string(), cause)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::other(error)
    }
}

impl From<Error> for netns_exec::Error {
    fn from(error: Error) -> netns_exec::Error {
        io::Error::other(error).into()
    }
}
