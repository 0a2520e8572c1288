//! What went wrong: what was attempted, on what, and why.

mod convert;

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::io;

use parking_lot::Mutex;

use crate::refused::Refused;

/// The result of every fallible call of this crate.
///
/// # Examples
///
/// ```
/// use netns_exec::{Executor, Netns, Result};
///
/// fn has_ipv6(netns: &Netns) -> Result<bool> {
///     Executor::global().run(netns, || std::path::Path::new("/proc/thread-self/net/if_inet6").exists())
/// }
/// assert!(has_ipv6(&Netns::current()?).is_ok());
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what was attempted, on what, and why it failed.
///
/// The kind of failure is asked for with a predicate such as
/// [`is_permission_denied`](Error::is_permission_denied); where the kernel
/// refused, [`raw_os_error`](Error::raw_os_error) is its errno and
/// [`source`](std::error::Error::source) the [`io::Error`] that holds it.
///
/// It converts into an [`io::Error`] and from one. The first keeps the errno, and an
/// [`io::Error`] with an errno has no room for a text of its own: who wants the text
/// writes it down first, or wraps the whole with [`io::Error::other`].
///
/// # Examples
///
/// ```
/// use netns_exec::Netns;
///
/// let error = Netns::open("no-such-namespace").unwrap_err();
/// assert!(error.is_not_found());
/// assert!(error.to_string().contains("no-such-namespace"));
/// ```
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: Kind,
    /// What was attempted and on what: "cannot enter netns `blue`". Empty where only
    /// the cause is known, as of an [`io::Error`] from elsewhere.
    attempt: Cow<'static, str>,
    cause: Option<io::Error>,
    /// What the reader can do about it.
    hint: Option<Cow<'static, str>>,
    /// What the job left. In a mutex because it is `Send` only.
    left: Option<Mutex<Left>>,
    /// What the payload of its panic says, if that is text: to show an error takes
    /// no lock.
    panic_text: Option<String>,
    /// The guard refused the job something.
    is_refused: bool,
}

/// What a job that ended in an error has left.
enum Left {
    /// Its value, which the guard's finding did not destroy.
    Value(Box<dyn Any + Send>),
    /// The payload of its panic.
    Panic(Box<dyn Any + Send>),
}

/// A thread that outlived the job that created it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftThread {
    pub(crate) tid: u32,
    pub(crate) name: String,
    /// It is called what the worker of its job is: a thread inherits the name of the
    /// one that makes it.
    pub(crate) is_namesake: bool,
}

/// Private so that it can grow; callers use the predicates.
pub(crate) enum Kind {
    /// The kernel refused, or cannot be asked; an errno is in the cause.
    Kernel,
    /// A name, path, process or namespace that does not exist (any more).
    NotFound,
    /// Something exists, and is not a network namespace.
    NotANetns,
    /// The request makes no sense, whatever the state of the system.
    Invalid,
    /// A name that is already taken.
    Exists,
    /// The job was given up before it started.
    Cancelled,
    /// The job panicked.
    Panic,
    /// The executor takes no more jobs.
    ShutDown,
    /// No room for another job just now.
    Full,
    /// A wait that was bounded in time ran out.
    TimedOut,
    /// A job left its thread in another namespace.
    Escaped,
    /// A job left threads behind in its namespace.
    LeftThreads,
}

/// Makes an [`io::Error`], which cannot be cloned, once more: whole where it is the
/// kernel's, with its kind and text where it is not.
pub(crate) fn copy_of(cause: &io::Error) -> io::Error {
    match cause.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(cause.kind(), cause.to_string()),
    }
}

/// What the payload of a panic says, if that is text.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> Option<String> {
    (payload.downcast_ref::<&str>()).map_or_else(
        || {
            (payload.downcast_ref::<String>().cloned())
                .or_else(|| payload.downcast_ref::<Error>().map(Error::to_string))
        },
        |text| Some((*text).to_owned()),
    )
}

impl Error {
    pub(crate) fn new(kind: Kind, attempt: impl Into<Cow<'static, str>>) -> Self {
        Error {
            inner: Box::new(Inner {
                kind,
                attempt: attempt.into(),
                cause: None,
                hint: None,
                left: None,
                panic_text: None,
                is_refused: false,
            }),
        }
    }

    /// An error of the kernel: `attempt` reads "cannot enter netns `blue`".
    pub(crate) fn kernel(
        attempt: impl Into<Cow<'static, str>>,
        cause: impl Into<io::Error>,
    ) -> Self {
        Error::new(Kind::Kernel, attempt).caused_by(cause)
    }

    /// A worker's thread could not be created.
    pub(crate) fn start_thread(netns: &str, cause: io::Error) -> Self {
        let error = Error::kernel(format!("cannot start a worker for netns `{netns}`"), cause);
        match error.raw_os_error() {
            Some(libc::EAGAIN) => error.hint(
                "the limit of threads is reached: see ulimit -u, the pids cgroup's pids.max, \
                 and kernel.threads-max",
            ),
            Some(libc::ENOMEM) => error.hint("no memory for its stack"),
            _ => error,
        }
    }

    pub(crate) fn panicked(
        attempt: impl Into<Cow<'static, str>>,
        payload: Box<dyn Any + Send>,
    ) -> Self {
        Error::new(Kind::Panic, attempt).with_panic(payload)
    }

    /// A job left threads behind in its namespace.
    pub(crate) fn left_threads(threads: &[LeftThread]) -> Self {
        let names: Vec<_> = (threads.iter())
            .map(|thread| {
                let LeftThread { tid, name, .. } = thread;
                match thread.is_namesake {
                    true => format!("{tid}, called `{name}` after the worker that it comes from"),
                    false => format!("{tid} `{name}`"),
                }
            })
            .collect();
        Error::new(
            Kind::LeftThreads,
            format!(
                "job left {} thread(s) behind in its network namespace: {}",
                threads.len(),
                names.join(", ")
            ),
        )
        .hint("start pools at home, with `Builder::prewarm`, or join the threads within the job")
    }

    pub(crate) fn with_panic(mut self, payload: Box<dyn Any + Send>) -> Self {
        self.inner.panic_text = panic_text(&*payload);
        self.inner.left = Some(Mutex::new(Left::Panic(payload)));
        self
    }

    /// Adds what the guard refused to the job, which this error may or may not be
    /// about.
    pub(crate) fn beside(mut self, refused: Refused) -> Self {
        if !refused.is_none() {
            self.inner.is_refused = true;
            self = self.hint(refused.hint());
        }
        self
    }

    pub(crate) fn with_result(mut self, value: Box<dyn Any + Send>) -> Self {
        self.inner.left = Some(Mutex::new(Left::Value(value)));
        self
    }

    pub(crate) fn caused_by(mut self, cause: impl Into<io::Error>) -> Self {
        self.inner.cause = Some(cause.into());
        self
    }

    /// Adds what the reader can do about it.
    pub(crate) fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    /// Says the same a second time, for another caller. What cannot be copied, a
    /// panic's payload or a job's result, stays with the original.
    pub(crate) fn duplicate(&self) -> Error {
        let kind = match &self.inner.kind {
            Kind::NotFound => Kind::NotFound,
            Kind::NotANetns => Kind::NotANetns,
            Kind::Invalid => Kind::Invalid,
            Kind::Exists => Kind::Exists,
            Kind::Cancelled => Kind::Cancelled,
            Kind::ShutDown => Kind::ShutDown,
            Kind::Full => Kind::Full,
            Kind::TimedOut => Kind::TimedOut,
            Kind::Escaped => Kind::Escaped,
            Kind::LeftThreads => Kind::LeftThreads,
            Kind::Panic => Kind::Panic,
            Kind::Kernel => Kind::Kernel,
        };
        let cause = self.inner.cause.as_ref();
        Error {
            inner: Box::new(Inner {
                kind,
                attempt: self.inner.attempt.clone(),
                cause: cause.map(copy_of),
                hint: self.inner.hint.clone(),
                left: None,
                panic_text: self.inner.panic_text.clone(),
                is_refused: self.inner.is_refused,
            }),
        }
    }

    /// Tells whether a privilege was missing (`EPERM` or `EACCES`).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Netns;
    ///
    /// if let Err(error) = Netns::new() {
    ///     assert!(error.is_permission_denied(), "{error}");
    ///     eprintln!("{error}"); // says how to get the privilege
    /// }
    /// ```
    pub fn is_permission_denied(&self) -> bool {
        let kind = self.inner.cause.as_ref().map(io::Error::kind);
        kind == Some(io::ErrorKind::PermissionDenied)
    }

    /// Tells whether the name, path, process or namespace does not exist.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// assert!(Netns::open("no-such-namespace").unwrap_err().is_not_found());
    /// ```
    pub fn is_not_found(&self) -> bool {
        matches!(self.inner.kind, Kind::NotFound)
    }

    /// Tells whether the name is already taken.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Netns;
    ///
    /// let blue = match Netns::create("blue") {
    ///     Err(error) if error.is_already_exists() => Netns::open("blue")?,
    ///     created => created?,
    /// };
    /// # let _ = blue;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_already_exists(&self) -> bool {
        matches!(self.inner.kind, Kind::Exists)
    }

    /// Tells whether something was found that is not a network namespace.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// assert!(Netns::from_path("/dev/null").unwrap_err().is_not_a_netns());
    /// ```
    pub fn is_not_a_netns(&self) -> bool {
        matches!(self.inner.kind, Kind::NotANetns)
    }

    /// Tells whether the request makes no sense, whatever the state of the
    /// system: a name with a slash, zero workers.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// assert!(Netns::open("a/b").unwrap_err().is_invalid_input());
    /// ```
    pub fn is_invalid_input(&self) -> bool {
        matches!(self.inner.kind, Kind::Invalid)
    }

    /// Tells whether the job was given up before it started.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Netns};
    ///
    /// let (executor, blue) = (Executor::new()?, Netns::open("blue")?);
    /// match executor.spawn(&blue, || 6 * 7)?.join() {
    ///     Err(error) if error.is_cancelled() => eprintln!("the executor was shut down first"),
    ///     answer => println!("{}", answer?),
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_cancelled(&self) -> bool {
        matches!(self.inner.kind, Kind::Cancelled)
    }

    /// Tells whether the job panicked; [`into_panic`](Error::into_panic) has
    /// the payload.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Netns};
    ///
    /// let job = Executor::new()?.spawn(&Netns::open("blue")?, || panic!("boom"))?;
    /// assert!(job.join().unwrap_err().is_panic());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_panic(&self) -> bool {
        matches!(self.inner.kind, Kind::Panic)
    }

    /// Tells whether the executor takes no more jobs.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Netns};
    ///
    /// let executor = Executor::new()?;
    /// executor.clone().shutdown(None)?;
    /// let error = executor.run(&Netns::current()?, || ()).unwrap_err();
    /// assert!(error.is_shut_down());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_shut_down(&self) -> bool {
        matches!(self.inner.kind, Kind::ShutDown)
    }

    /// Tells whether there was no room for another job just now
    /// ([`try_spawn`](crate::Executor::try_spawn)).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Netns};
    ///
    /// let (executor, blue) = (Executor::new()?, Netns::open("blue")?);
    /// match executor.try_spawn(&blue, || ()).map_err(|error| error.into_error()) {
    ///     Err(error) if error.is_full() => eprintln!("later"),
    ///     spawned => spawned?.join()?,
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_full(&self) -> bool {
        matches!(self.inner.kind, Kind::Full)
    }

    /// Tells whether a wait that was bounded in time ran out.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use netns_exec::Executor;
    ///
    /// match Executor::new()?.shutdown(Some(Duration::from_secs(5))) {
    ///     Err(error) if error.is_timed_out() => eprintln!("jobs are still running"),
    ///     done => done?,
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_timed_out(&self) -> bool {
        matches!(self.inner.kind, Kind::TimedOut)
    }

    /// Tells whether the job left its thread in another namespace, or with files, a
    /// working directory, a user or capabilities that the process has not; that
    /// thread runs nothing any more.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Netns};
    /// # fn third_party() {}
    ///
    /// match Executor::new()?.run(&Netns::open("blue")?, third_party) {
    ///     Err(error) if error.is_escaped() => eprintln!("it calls setns(2)"),
    ///     done => done?,
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_escaped(&self) -> bool {
        matches!(self.inner.kind, Kind::Escaped)
    }

    /// Tells whether the job left threads behind in its namespace
    /// ([`Guard::Detect`](crate::Guard::Detect)).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Guard, Netns};
    /// # fn third_party() {}
    ///
    /// let executor = Executor::builder().guard(Guard::Detect).build()?;
    /// match executor.run(&Netns::open("blue")?, third_party) {
    ///     Err(error) if error.is_left_threads() => eprintln!("{error}"), // names them
    ///     done => done?,
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_left_threads(&self) -> bool {
        matches!(self.inner.kind, Kind::LeftThreads)
    }

    /// Tells whether the guard refused something to the job before it panicked
    /// ([`Guard::Seal`](crate::Guard::Seal)): a thread, or a change of its namespaces.
    ///
    /// This stands beside the panic ([`is_panic`](Error::is_panic) is true as well),
    /// whose reason it may be. It is never guessed: the guard counts what it refuses,
    /// and where it cannot, this is `false`. A job that got `EPERM` from anything else
    /// was refused nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Netns};
    ///
    /// let job = Executor::new()?.spawn(&Netns::open("blue")?, || {
    ///     std::thread::spawn(|| ()).join().unwrap(); // a sealed job may start none
    /// })?;
    /// let error = job.join().unwrap_err();
    /// assert!(error.is_panic() && error.is_refused());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_refused(&self) -> bool {
        self.inner.is_refused
    }

    /// The errno, where the kernel refused.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// let error = Netns::open("no-such-namespace").unwrap_err();
    /// assert_eq!(error.raw_os_error(), Some(2)); // ENOENT
    /// ```
    pub fn raw_os_error(&self) -> Option<i32> {
        self.inner.cause.as_ref().and_then(io::Error::raw_os_error)
    }

    /// Returns the payload of the job's panic, for
    /// [`std::panic::resume_unwind`].
    ///
    /// # Errors
    ///
    /// Gives the error back when the job did not panic.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Netns};
    ///
    /// let job = Executor::new()?.spawn(&Netns::open("blue")?, || panic!("boom"))?;
    /// let error = job.join().unwrap_err();
    /// if let Ok(payload) = error.into_panic() {
    ///     std::panic::resume_unwind(payload);
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn into_panic(mut self) -> Result<Box<dyn Any + Send>> {
        match self.inner.left.take().map(Mutex::into_inner) {
            Some(Left::Panic(payload)) => Ok(payload),
            left => {
                self.inner.left = left.map(Mutex::new);
                Err(self)
            }
        }
    }

    /// Returns the value of a [spawned](crate::Executor::spawn) job that returned,
    /// but did what the guard forbids.
    ///
    /// # Errors
    ///
    /// Gives the error back when it holds no value of this type: the job did not
    /// return, or was not spawned but [run](crate::Executor::run), whose values
    /// may borrow.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Guard, Netns};
    /// # fn third_party() -> u32 { 42 }
    ///
    /// let executor = Executor::builder().guard(Guard::Detect).build()?;
    /// let job = executor.spawn(&Netns::open("blue")?, third_party)?;
    /// let answer = match job.join() {
    ///     Err(error) if error.is_left_threads() => error.into_result::<u32>()?,
    ///     answer => answer?,
    /// };
    /// # let _ = answer;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn into_result<T: 'static>(mut self) -> Result<T> {
        match self.inner.left.take().map(Mutex::into_inner) {
            Some(Left::Value(value)) => match value.downcast() {
                Ok(value) => Ok(*value),
                Err(value) => Err(self.with_result(value)),
            },
            left => {
                self.inner.left = left.map(Mutex::new);
                Err(self)
            }
        }
    }
}

/// How a cause is put at the end of a message: the kernel's text in lower case,
/// without the number that [`io::Error`] adds.
pub fn reason(cause: &io::Error) -> String {
    let Some(errno) = cause.raw_os_error() else {
        return cause.to_string();
    };
    let mut text = nix::errno::Errno::from_raw(errno).desc().to_owned();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.inner;
        f.write_str(&inner.attempt)?;
        if let Some(text) = &inner.panic_text {
            write!(f, ": {text}")?;
        }
        let reason = inner.cause.as_ref().map(reason);
        if let Some(reason) = &reason {
            let colon = if inner.attempt.is_empty() { "" } else { ": " };
            write!(f, "{colon}{reason}")?;
        }
        if let Some(hint) = &inner.hint {
            // A panic or a cause that quotes another error may have given it.
            let is_given = [&inner.panic_text, &reason]
                .into_iter()
                .flatten()
                .any(|text| text.contains(&**hint));
            if !is_given {
                write!(f, " ({hint})")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}", self.to_string())?;
        if let Some(errno) = self.raw_os_error() {
            write!(f, ", {:?}", nix::errno::Errno::from_raw(errno))?;
        }
        f.write_str(")")
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.cause.as_ref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_holds_attempt_cause_and_hint() {
        let error = Error::kernel(
            "cannot enter netns `blue`",
            io::Error::from_raw_os_error(libc::EPERM),
        )
        .hint("needs CAP_SYS_ADMIN");
        assert_eq!(
            error.to_string(),
            "cannot enter netns `blue`: operation not permitted (needs CAP_SYS_ADMIN)"
        );
        assert!(error.is_permission_denied());
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn panic_payload_comes_back() {
        let error = Error::panicked("job panicked", Box::new("boom"));
        assert_eq!(error.to_string(), "job panicked: boom");
        assert!(error.raw_os_error().is_none());
        let payload = error.into_panic().expect("a panic");
        assert_eq!(payload.downcast_ref(), Some(&"boom"));
    }

    #[test]
    fn error_can_be_written_while_it_is_written() {
        /// Looks at the error it is given a part of, as a log that adds what it knows.
        struct Again<'e>(&'e Error, Option<String>);

        impl fmt::Write for Again<'_> {
            fn write_str(&mut self, _part: &str) -> fmt::Result {
                self.1 = Some(self.0.to_string());
                Ok(())
            }
        }

        let (reply, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let error = Error::panicked("job panicked", Box::new(String::from("boom")));
            let mut again = Again(&error, None);
            fmt::Write::write_fmt(&mut again, format_args!("{error} {error:?}")).unwrap();
            reply.send(again.1).unwrap();
        });
        let again = answer.recv_timeout(std::time::Duration::from_secs(30));
        let again = again.expect("no lock is held while it is written");
        assert_eq!(again.as_deref(), Some("job panicked: boom"));
    }

    #[test]
    fn error_is_send_and_sync() {
        fn check<T: Send + Sync + 'static>() {}
        check::<Error>();
    }
}
