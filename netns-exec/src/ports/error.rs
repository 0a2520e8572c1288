//! Why a port was not leased: which member, at which step, with which errno.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use nix::errno::Errno;

use super::cancel::GivenUp;
use super::endpoint::Endpoint;
use super::protocol::Protocols;
use crate::error::reason;

/// The step at which a member of a lease failed.
///
/// # Examples
///
/// ```
/// # use netns_exec::ports::{Error, Stage};
/// # fn f(error: &Error) {
/// match error.stage() {
///     Some(Stage::Bind) => println!("the port is taken, or needs a privilege"),
///     Some(Stage::Listen) => println!("the port is shared, and another socket listens"),
///     Some(Stage::Filter) => println!("needs CAP_NET_ADMIN, or another gate"),
///     stage => println!("{stage:?}"),
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// socket(2).
    Socket,
    /// setsockopt(2), other than the filter.
    Option,
    /// The filter that keeps clients away until
    /// [`activate`](super::Lease::activate).
    Filter,
    /// bind(2).
    Bind,
    /// listen(2).
    Listen,
    /// The socket is not bound to what was asked for.
    Verify,
    /// A socket was to come from another process.
    Transfer,
}

/// What kind of failure an [`Error`] reports.
///
/// # Examples
///
/// ```
/// # use std::process::ExitCode;
/// # use netns_exec::ports::{Error, ErrorKind};
/// # fn f(error: &Error) -> ExitCode {
/// match error.kind() {
///     ErrorKind::Invalid => ExitCode::from(2), // the command line is wrong
///     ErrorKind::AlreadyLeased | ErrorKind::Exhausted => ExitCode::from(3), // come again later
///     _ => ExitCode::FAILURE,
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request makes no sense, whatever the state of the system. No system
    /// call was made.
    Invalid,
    /// The port asked for belongs to another lease of the same allocator.
    AlreadyLeased,
    /// No port of the range could be had within the budget.
    Exhausted,
    /// The kernel refused a socket, and another port would not help.
    Socket,
    /// The time ran out first.
    Deadline,
    /// A socket could not be had from a broker.
    Broker,
    /// No thread could be had in the namespace.
    Namespace,
    /// The request was given up.
    Cancelled,
}

/// What became of the ports that a request looked at.
///
/// With a budget of several laps the numbers are sums over all laps.
///
/// # Examples
///
/// ```
/// # use netns_exec::ports::Error;
/// # fn f(error: &Error) {
/// let counts = error.counts();
/// if counts.denied == counts.tried {
///     println!("no privilege for any of {} ports", counts.tried);
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Ports that reached the kernel.
    pub tried: u32,
    /// Ports passed over because another lease of this allocator holds them.
    pub leased: u32,
    /// Ports passed over because a member's namespace reserves them.
    pub reserved: u32,
    /// Those of the tried that ended in `EACCES`.
    pub denied: u32,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tried, {} leased, {} reserved, {} denied",
            self.tried, self.leased, self.reserved, self.denied
        )
    }
}

/// Says why a port was not leased.
///
/// Nothing needs to be read out of the text. Where a caller branches there is a
/// predicate, as for [`crate::Error`]; [`kind`](Error::kind) is what happened,
/// [`endpoint`](Error::endpoint) the member that failed, [`stage`](Error::stage)
/// the step and [`raw_os_error`](Error::raw_os_error) the errno. For a range that is exhausted the last three belong to the last
/// port that was tried.
///
/// # Examples
///
/// ```
/// use netns_exec::ports::{Allocator, ErrorKind, Ports, Protocol};
/// use netns_exec::Executor;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let ports = Allocator::new(&Executor::new()?);
/// let error = ports.request(Protocol::Tcp).ports(Ports::Exact(80)).acquire().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Invalid);
/// assert!(error.to_string().contains("no members"));
/// # Ok(())
/// # }
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    /// The attempt, in words, where kind and endpoint do not say it all.
    text: Cow<'static, str>,
    endpoint: Option<Endpoint>,
    port: Option<u16>,
    stage: Option<Stage>,
    counts: Counts,
    cause: Cause,
}

enum Cause {
    None,
    Os(io::Error),
    /// The failure of the last port that was tried.
    Last(Error),
    Enter(crate::Error),
}

impl Error {
    fn new(kind: ErrorKind, text: impl Into<Cow<'static, str>>) -> Self {
        Error(Box::new(Inner {
            kind,
            text: text.into(),
            endpoint: None,
            port: None,
            stage: None,
            counts: Counts::default(),
            cause: Cause::None,
        }))
    }

    pub(crate) fn invalid(text: impl Into<Cow<'static, str>>) -> Self {
        Error::new(ErrorKind::Invalid, text)
    }

    pub(crate) fn already_leased(endpoint: Endpoint, port: u16) -> Self {
        let mut error = Error::new(ErrorKind::AlreadyLeased, "");
        error.0.endpoint = Some(endpoint);
        error.0.port = Some(port);
        error
    }

    /// One member of one port that the kernel refused.
    pub(crate) fn socket(
        endpoint: Endpoint,
        port: Option<u16>,
        stage: Stage,
        cause: io::Error,
    ) -> Self {
        let kind = match stage {
            Stage::Transfer => ErrorKind::Broker,
            _ => ErrorKind::Socket,
        };
        let mut error = Error::new(kind, "");
        error.0.endpoint = Some(endpoint);
        error.0.port = port;
        error.0.stage = Some(stage);
        error.0.cause = Cause::Os(cause);
        error
    }

    pub(crate) fn exhausted(
        protocols: &Protocols,
        range: &RangeInclusive<u16>,
        last: Option<Error>,
    ) -> Self {
        Error::new(
            ErrorKind::Exhausted,
            format!(
                "no free {protocols} port in {}-{}",
                range.start(),
                range.end()
            ),
        )
        .after(last)
    }

    pub(crate) fn deadline(
        protocols: &Protocols,
        range: &RangeInclusive<u16>,
        last: Option<Error>,
    ) -> Self {
        Error::new(
            ErrorKind::Deadline,
            format!(
                "no free {protocols} port in {}-{} before the deadline",
                range.start(),
                range.end()
            ),
        )
        .after(last)
    }

    pub(crate) fn cancelled(protocols: &Protocols) -> Self {
        Error::new(
            ErrorKind::Cancelled,
            format!("the request for a {protocols} port was cancelled"),
        )
    }

    /// A wait for a broker that came to no end.
    pub(crate) fn given_up(why: GivenUp, broker: impl fmt::Display) -> Self {
        let (kind, text) = match why {
            GivenUp::Cancelled => (
                ErrorKind::Cancelled,
                format!("the request was cancelled while it waited for the broker, {broker}"),
            ),
            GivenUp::Deadline => (
                ErrorKind::Deadline,
                format!("no answer from the broker, {broker}, before the deadline"),
            ),
        };
        let mut error = Error::new(kind, text);
        error.0.stage = Some(Stage::Transfer);
        error
    }

    /// No thread in the namespace: `what` reads "open sockets".
    pub(crate) fn namespace(what: &str, label: &str, cause: crate::Error) -> Self {
        let mut error = Error::new(
            ErrorKind::Namespace,
            format!("cannot {what} in netns `{label}`"),
        );
        error.0.cause = Cause::Enter(cause);
        error
    }

    /// No thread to wait on.
    pub(crate) fn thread(cause: crate::Error) -> Self {
        let mut error = Error::new(ErrorKind::Namespace, "cannot wait for a port");
        error.0.cause = Cause::Enter(cause);
        error
    }

    /// A broker that cannot be started or reached.
    pub(crate) fn broker(attempt: impl Into<Cow<'static, str>>, cause: io::Error) -> Self {
        let mut error = Error::new(ErrorKind::Broker, attempt);
        error.0.stage = Some(Stage::Transfer);
        error.0.cause = Cause::Os(cause);
        error
    }

    fn after(mut self, last: Option<Error>) -> Self {
        if let Some(last) = last {
            self.0.cause = Cause::Last(last);
        }
        self
    }

    pub(crate) fn counted(mut self, counts: Counts) -> Self {
        self.0.counts = counts;
        self
    }

    fn last(&self) -> Option<&Error> {
        match &self.0.cause {
            Cause::Last(last) => Some(last),
            _ => None,
        }
    }

    /// Returns what kind of failure this is.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{ErrorKind, Error, Lease, Request};
    /// # fn f(request: Request, fallback: Request) -> Result<Lease, Error> {
    /// match request.acquire() {
    ///     Err(error) if error.kind() == ErrorKind::Exhausted => fallback.acquire(),
    ///     outcome => outcome,
    /// }
    /// # }
    /// ```
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the member that failed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Error;
    /// # fn f(error: &Error) {
    /// if let Some(endpoint) = error.endpoint() {
    ///     println!("it was {}'s fault", endpoint.label());
    /// }
    /// # }
    /// ```
    pub fn endpoint(&self) -> Option<&Endpoint> {
        (self.0.endpoint.as_ref()).or_else(|| self.last().and_then(Error::endpoint))
    }

    /// Returns the port that failed last.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Error;
    /// # fn f(error: &Error) {
    /// if let Some(port) = error.port().filter(|_| error.is_in_use()) {
    ///     println!("`ss -ltnup sport = :{port}` says by which program");
    /// }
    /// # }
    /// ```
    pub fn port(&self) -> Option<u16> {
        (self.0.port).or_else(|| self.last().and_then(Error::port))
    }

    /// Returns the step at which the kernel refused.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Error, Stage};
    /// # fn f(error: &Error) {
    /// if error.stage() == Some(Stage::Listen) {
    ///     println!("another socket with SO_REUSEADDR was bound there before");
    /// }
    /// # }
    /// ```
    pub fn stage(&self) -> Option<Stage> {
        (self.0.stage).or_else(|| self.last().and_then(Error::stage))
    }

    /// Returns the errno, where the kernel refused.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Error;
    /// # fn f(error: &Error) {
    /// const EADDRNOTAVAIL: i32 = 99;
    /// if error.raw_os_error() == Some(EADDRNOTAVAIL) {
    ///     println!("no device has that address (yet): see Request::free_bind");
    /// }
    /// # }
    /// ```
    pub fn raw_os_error(&self) -> Option<i32> {
        match &self.0.cause {
            Cause::None => None,
            Cause::Os(cause) => cause.raw_os_error(),
            Cause::Last(last) => last.raw_os_error(),
            Cause::Enter(cause) => cause.raw_os_error(),
        }
    }

    /// Tells whether the request makes no sense, whatever the state of the
    /// system.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Executor;
    /// use netns_exec::ports::{Allocator, Ports, Protocol};
    ///
    /// let ports = Allocator::new(&Executor::new()?);
    /// // In which namespace?
    /// let error = ports.request(Protocol::Tcp).ports(Ports::Exact(80)).acquire().unwrap_err();
    /// assert!(error.is_invalid_input());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_invalid_input(&self) -> bool {
        self.0.kind == ErrorKind::Invalid
    }

    /// Tells whether the port, or every port of the range, was in use: by
    /// another program (`EADDRINUSE`) or by another lease of the same allocator.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::{Ipv4Addr, UdpSocket};
    /// use netns_exec::ports::{Allocator, Gate, Ports, Protocol};
    /// use netns_exec::{Executor, Netns};
    ///
    /// let other = UdpSocket::bind("127.0.0.1:0")?;
    /// let error = Allocator::new(&Executor::new()?)
    ///     .request(Protocol::Udp)
    ///     .on(&Netns::current()?, [Ipv4Addr::LOCALHOST.into()])
    ///     .ports(Ports::Exact(other.local_addr()?.port()))
    ///     .gate(Gate::Queue)
    ///     .acquire()
    ///     .unwrap_err();
    /// assert!(error.is_in_use());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_in_use(&self) -> bool {
        let is_leased = match self.0.kind {
            ErrorKind::AlreadyLeased => true,
            ErrorKind::Exhausted => self.0.counts.leased > 0,
            _ => false,
        };
        is_leased || self.raw_os_error() == Some(libc::EADDRINUSE)
    }

    /// Tells whether a privilege was missing (`EPERM` or `EACCES`).
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Error;
    /// # fn f(error: &Error) {
    /// if error.is_permission_denied() {
    ///     println!("needs CAP_NET_BIND_SERVICE below 1024, and CAP_NET_ADMIN for Gate::Drop");
    /// }
    /// # }
    /// ```
    pub fn is_permission_denied(&self) -> bool {
        matches!(self.raw_os_error(), Some(libc::EPERM | libc::EACCES))
    }

    /// Tells whether the time ran out first.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::Ipv4Addr;
    /// use std::time::Instant;
    /// use netns_exec::ports::{Allocator, Budget, Ports, Protocol};
    /// use netns_exec::{Executor, Netns};
    ///
    /// let error = Allocator::new(&Executor::new()?)
    ///     .request(Protocol::Tcp)
    ///     .on(&Netns::current()?, [Ipv4Addr::LOCALHOST.into()])
    ///     .ports(Ports::Range(33000..=33099))
    ///     .budget(Budget::Deadline(Instant::now()))
    ///     .acquire()
    ///     .unwrap_err();
    /// assert!(error.is_timed_out());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_timed_out(&self) -> bool {
        self.0.kind == ErrorKind::Deadline
    }

    /// Tells whether the request was given up.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Error, Lease, Request};
    /// # fn f(request: Request) -> Result<Option<Lease>, Error> {
    /// match request.acquire() {
    ///     Err(error) if error.is_cancelled() => Ok(None), // the program ends: no failure
    ///     outcome => outcome.map(Some),
    /// }
    /// # }
    /// ```
    pub fn is_cancelled(&self) -> bool {
        self.0.kind == ErrorKind::Cancelled
    }

    /// Returns what became of the ports that the request looked at.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Error;
    /// # fn f(error: &Error) {
    /// println!("{}", error.counts()); // of 100 ports: how many were tried, leased, reserved
    /// # }
    /// ```
    pub fn counts(&self) -> Counts {
        self.0.counts
    }

    /// What the reader can do about it.
    fn hint(&self) -> Option<&'static str> {
        let errno = Errno::from_raw(self.raw_os_error()?);
        match (self.0.kind, self.0.stage?, errno) {
            (ErrorKind::Socket, Stage::Bind, Errno::EACCES) => Some(
                "ports below ip_unprivileged_port_start need CAP_NET_BIND_SERVICE \
                 over the namespace; and a broker's policy may not allow the port",
            ),
            (ErrorKind::Socket, Stage::Bind, Errno::EPERM) => {
                Some("the broker's policy does not allow it")
            }
            (ErrorKind::Socket, Stage::Filter, Errno::EPERM) => Some(
                "a filter on a tcp socket needs CAP_NET_ADMIN over its namespace; \
                 `Gate::Drop` can fall back to `Queue` or `Refuse`",
            ),
            (ErrorKind::Socket, Stage::Bind, Errno::EADDRNOTAVAIL) => {
                Some("the namespace has no such address, or it is not up")
            }
            (ErrorKind::Socket, Stage::Socket, Errno::EAFNOSUPPORT) => Some(
                "the kernel, or a filter on this process, has no such family; \
                 `on_every_family` leaves out what is missing",
            ),
            (ErrorKind::Socket, _, Errno::EPROTONOSUPPORT) => {
                Some("this kernel was built without the protocol")
            }
            (ErrorKind::Broker, _, Errno::EPIPE | Errno::ECONNRESET) => Some(
                "the broker is gone, and with it the way to its namespace, until `Broker::replace`",
            ),
            (ErrorKind::Broker, _, Errno::ETIMEDOUT) => Some(
                "it is stopped, or the machine is overloaded; it is asked again with the next \
                 request, and `Broker::replace` puts another in its place",
            ),
            (ErrorKind::Broker, _, Errno::ETOOMANYREFS) => Some(
                "too many descriptors are on their way between processes, see getrlimit(2) and \
                 RLIMIT_NOFILE",
            ),
            (ErrorKind::Socket | ErrorKind::Broker, _, Errno::EMFILE) => {
                Some("the limit on open files of this process is reached, see `ulimit -n`")
            }
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        match (inner.kind, &inner.endpoint) {
            (ErrorKind::Invalid, _) => {
                write!(f, "the port request makes no sense: {}", inner.text)?
            }
            (ErrorKind::AlreadyLeased, Some(endpoint)) => write!(
                f,
                "{} port {} is already leased on {} in netns `{}`",
                endpoint.protocol,
                inner.port.unwrap_or_default(),
                endpoint.addr,
                endpoint.label
            )?,
            (ErrorKind::Socket | ErrorKind::Broker, Some(endpoint)) => {
                let what = match inner.stage {
                    Some(Stage::Socket) | None => "open a socket for",
                    Some(Stage::Option) => "set an option of",
                    Some(Stage::Filter) => "set the filter of",
                    Some(Stage::Bind) => "bind",
                    Some(Stage::Listen) => "listen on",
                    Some(Stage::Verify) => "verify",
                    Some(Stage::Transfer) => "receive",
                };
                write!(f, "cannot {what} ")?;
                match inner.port {
                    Some(port) => write!(
                        f,
                        "{} {} in netns `{}`",
                        endpoint.protocol,
                        SocketAddr::new(endpoint.addr, port),
                        endpoint.label
                    )?,
                    None => endpoint.fmt(f)?,
                }
            }
            _ => f.write_str(&inner.text)?,
        }
        let is_walk = matches!(inner.kind, ErrorKind::Exhausted | ErrorKind::Deadline);
        if is_walk && inner.stage.is_none() {
            write!(f, ": {}", inner.counts)?;
        }
        match &inner.cause {
            Cause::None => {}
            Cause::Os(cause) => write!(f, ": {}", reason(cause))?,
            Cause::Last(last) => write!(f, "; last: {last}")?,
            Cause::Enter(cause) => write!(f, ": {cause}")?,
        }
        if let Some(hint) = self.hint() {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}, {:?}", self.kind(), self.to_string())?;
        if let Some(errno) = self.raw_os_error() {
            write!(f, ", {:?}", Errno::from_raw(errno))?;
        }
        f.write_str(")")
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.cause {
            Cause::None => None,
            Cause::Os(cause) => Some(cause),
            Cause::Last(last) => Some(last),
            Cause::Enter(cause) => Some(cause),
        }
    }
}

impl From<Error> for io::Error {
    /// Keeps the errno, or where there is none the [`io::ErrorKind`] and the whole
    /// text, as for [`netns_exec::Error`](crate::Error).
    fn from(error: Error) -> io::Error {
        let kind = match (error.kind(), error.raw_os_error()) {
            (ErrorKind::Invalid, _) => io::ErrorKind::InvalidInput,
            (ErrorKind::AlreadyLeased, _) => io::ErrorKind::AddrInUse,
            (ErrorKind::Deadline, _) => io::ErrorKind::TimedOut,
            (_, Some(errno)) => return io::Error::from_raw_os_error(errno),
            (_, None) => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::netns::NetnsId;
    use crate::ports::Protocol;

    fn endpoint() -> Endpoint {
        Endpoint {
            netns: NetnsId::from_raw(7),
            label: "blue".into(),
            protocol: Protocol::Tcp,
            addr: IpAddr::from([127, 0, 0, 1]),
        }
    }

    fn refused(stage: Stage, errno: i32) -> Error {
        Error::socket(
            endpoint(),
            Some(80),
            stage,
            io::Error::from_raw_os_error(errno),
        )
    }

    #[test]
    fn text_names_step_place_reason_and_cure() {
        assert_eq!(
            refused(Stage::Bind, libc::EACCES).to_string(),
            "cannot bind tcp 127.0.0.1:80 in netns `blue`: permission denied (ports below \
             ip_unprivileged_port_start need CAP_NET_BIND_SERVICE over the namespace; and a \
             broker's policy may not allow the port)"
        );
        assert_eq!(
            Error::already_leased(endpoint(), 80).to_string(),
            "tcp port 80 is already leased on 127.0.0.1 in netns `blue`"
        );
    }

    #[test]
    fn exhausted_range_answers_with_its_last_failure() {
        let counts = Counts {
            tried: 2,
            leased: 1,
            ..Counts::default()
        };
        let last = refused(Stage::Listen, libc::EADDRINUSE);
        let error = Error::exhausted(&Protocols::new([Protocol::Tcp]), &(80..=82), Some(last))
            .counted(counts);
        assert_eq!(error.stage(), Some(Stage::Listen));
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        assert_eq!(error.endpoint(), Some(&endpoint()));
        assert_eq!(
            error.to_string(),
            "no free tcp port in 80-82: 2 tried, 1 leased, 0 reserved, 0 denied; last: cannot \
             listen on tcp 127.0.0.1:80 in netns `blue`: address already in use"
        );
        let source = std::error::Error::source(&error).expect("the last failure");
        let source = source
            .downcast_ref::<Error>()
            .expect("an error of this module");
        assert_eq!(source.kind(), ErrorKind::Socket);
    }

    #[test]
    fn error_is_send_and_sync() {
        fn check<T: Send + Sync + 'static>() {}
        check::<Error>();
    }
}
