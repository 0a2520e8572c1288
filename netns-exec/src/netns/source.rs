//! Where handles come from, names aside.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::why::{self, is_permission};
use super::{Netns, NetnsId, Origin, with_privilege};
use crate::error::{Error, Kind, Result};
use crate::home::{Home, roster};
use crate::sys::netns::{self, FileKind};

impl Netns {
    /// Opens the namespace at `path`: a bind mount such as `/run/netns/blue`
    /// or `/run/docker/netns/1a2b`, or a link such as `/proc/4711/ns/net`.
    ///
    /// Symbolic links are followed. Whatever is not a namespace is not opened
    /// at all, so that a FIFO or a device at `path` does no harm. The path is
    /// looked up by the calling thread, in its mount namespace. The label is
    /// the path.
    ///
    /// # Errors
    ///
    /// - [`is_not_found`](Error::is_not_found): nothing is there (`ENOENT`,
    ///   `ENOTDIR`, `ESRCH`).
    /// - [`is_not_a_netns`](Error::is_not_a_netns): something else is there,
    ///   and the text says what.
    /// - Without `/proc` no namespace can be opened, and the text says that.
    /// - Otherwise what open(2) failed with; `EACCES` for the namespaces of a
    ///   process that the caller may not trace (ptrace(2)).
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// let main = Netns::from_path("/proc/self/ns/net")?;
    /// assert_eq!(main.label(), "/proc/self/ns/net");
    ///
    /// let error = Netns::from_path("/proc/self/ns/mnt").unwrap_err();
    /// assert!(error.is_not_a_netns());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn from_path(path: impl AsRef<Path>) -> Result<Netns> {
        let path = path.as_ref();
        let shown = path.display().to_string();
        open_at(path, &shown, &format!("cannot open netns `{shown}`"))
    }

    /// Opens the namespace that a process is in; strictly, its main thread.
    ///
    /// Goes through pidfd_open(2), so what is opened belongs to the process
    /// that had the number when the call began, never to one that got it
    /// later. Since Linux 6.9 the number may also be that of a single thread,
    /// as `ps -L` shows it. The label is `pid 4711`.
    ///
    /// # Errors
    ///
    /// - [`is_not_found`](Error::is_not_found): there is no such process, or
    ///   it has exited (`ESRCH`).
    /// - [`is_permission_denied`](Error::is_permission_denied): the caller may
    ///   not look at it (`EPERM` or `EACCES`): takes the same user, or
    ///   `CAP_SYS_PTRACE`.
    /// - [`is_invalid_input`](Error::is_invalid_input): 0 or beyond the
    ///   largest pid there can be.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// let mine = Netns::from_pid(std::process::id())?;
    /// assert_eq!(mine, Netns::home()?);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn from_pid(pid: u32) -> Result<Netns> {
        let attempt = format!("cannot open the netns of pid {pid}");
        let raw = match libc::pid_t::try_from(pid) {
            Ok(raw) if raw > 0 => raw,
            _ => return Err(Error::new(Kind::Invalid, attempt).hint("no process has this number")),
        };
        let fd = with_privilege(move || netns::of_pid(raw)).map_err(|cause| {
            if let Some(error) = why::no_proc(&attempt, &cause) {
                return error;
            }
            match cause.raw_os_error() {
                Some(libc::ESRCH) => Error::new(Kind::NotFound, attempt.clone()).caused_by(cause),
                Some(libc::EINVAL | libc::ENOENT) => Error::new(Kind::NotFound, attempt.clone())
                    .caused_by(cause)
                    .hint("that number is a thread's; before Linux 6.9 it must be a process's"),
                Some(libc::EPERM | libc::EACCES) => Error::kernel(attempt.clone(), cause)
                    .hint("needs to run as the user of that process, or CAP_SYS_PTRACE"),
                _ => Error::kernel(attempt.clone(), cause),
            }
        })?;
        Netns::wrap(fd, Some(&format!("pid {pid}")), &attempt)
    }

    /// Takes over an open namespace file, after checking that it is one.
    ///
    /// The descriptor is made close-on-exec. It may have come from anywhere:
    /// open(2), another process over a Unix socket, a pidfd request. The label
    /// is `netns:42` with the namespace's id.
    ///
    /// # Errors
    ///
    /// - [`is_not_a_netns`](Error::is_not_a_netns): it is something else, and
    ///   the text says what. The descriptor is closed.
    /// - `EBADF`: it was opened with `O_PATH`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::fs::File;
    /// use netns_exec::Netns;
    ///
    /// let file = File::open("/proc/self/ns/net")?;
    /// assert_eq!(Netns::from_fd(file.into())?, Netns::home()?);
    ///
    /// let file = File::open("/proc/self/status")?;
    /// let error = Netns::from_fd(file.into()).unwrap_err();
    /// assert!(error.to_string().contains("a regular file"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_fd(fd: OwnedFd) -> Result<Netns> {
        let attempt = "cannot use the file descriptor as a netns";
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(|errno| Error::kernel(attempt, errno))?;
        admit(fd, None, attempt)
    }

    /// Opens the namespace that a socket belongs to: the one it was made in,
    /// wherever the thread or process that uses it is.
    ///
    /// The label is `netns:42` with the namespace's id.
    ///
    /// # Errors
    ///
    /// - [`is_permission_denied`](Error::is_permission_denied): `EPERM`, the
    ///   kernel's `SIOCGSKNS` takes `CAP_NET_ADMIN` over that namespace. Not
    ///   needed where the namespace is that of the calling thread or of the
    ///   process's main thread.
    /// - [`is_invalid_input`](Error::is_invalid_input): it is no socket.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::UdpSocket;
    /// use netns_exec::Netns;
    ///
    /// let socket = UdpSocket::bind("127.0.0.1:0")?;
    /// assert_eq!(Netns::of_socket(&socket)?, Netns::current()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn of_socket(socket: impl AsFd) -> Result<Netns> {
        let attempt = "cannot open the netns of a socket";
        let failed = |cause: io::Error| match cause.raw_os_error() {
            Some(libc::ENOTTY) => Error::new(Kind::Invalid, attempt).hint("it is not a socket"),
            _ => Error::kernel(attempt, cause),
        };
        let socket = socket.as_fd().try_clone_to_owned().map_err(failed)?;
        let kept = socket.try_clone().map_err(failed)?;
        match with_privilege(move || netns::of_socket(socket.as_fd())) {
            Ok(fd) => Netns::wrap(fd, None, attempt),
            Err(cause) if is_permission(&cause) => {
                // Its id is no secret, and two namespaces are always at hand.
                let id = NetnsId::by_socket(kept.as_fd()).map_err(failed)?;
                let at_hand = [Netns::current(), Netns::home()];
                let found = at_hand.into_iter().flatten().find(|netns| netns.id() == id);
                found
                    .ok_or_else(|| failed(cause).hint("needs CAP_NET_ADMIN over its namespace"))
                    .and_then(|netns| netns.relabelled(None))
            }
            Err(cause) => Err(failed(cause)),
        }
    }

    /// Opens the namespace of the calling thread.
    ///
    /// Inside a job that is the job's namespace, not the process's. The label
    /// is `netns:42` with its id.
    ///
    /// # Errors
    ///
    /// Fails without `/proc`, or when no file descriptor is left.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// let here = Netns::current()?;
    /// assert_eq!(here.label(), format!("netns:{}", here.id()));
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn current() -> Result<Netns> {
        let attempt = "cannot open the netns of this thread";
        let fd = netns::of_this_thread().map_err(|cause| proc_failed(attempt, cause))?;
        Netns::wrap(fd, None, attempt)
    }

    /// Opens the home namespace: that of the process's main thread, or, once that
    /// has ended before the others, the one where the home thread got from it.
    ///
    /// The label is `home`.
    ///
    /// # Errors
    ///
    /// Fails without `/proc`, or when no file descriptor is left.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// assert_eq!(Netns::home()?, Netns::from_pid(std::process::id())?);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn home() -> Result<Netns> {
        let attempt = "cannot open the netns of the main thread";
        let fd = match netns::of_main_thread() {
            // It has ended before the others; the home thread has its place from it.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => match roster::home_thread() {
                Some(tid) => netns::of_thread(tid),
                None => Err(cause),
            },
            opened => opened,
        };
        let fd = fd.map_err(|cause| proc_failed(attempt, cause))?;
        Netns::wrap(fd, Some("home"), attempt)
    }

    /// Makes a namespace without a name, gone with the last reference to it.
    ///
    /// It has nothing but a loopback device that is down; see
    /// [`set_loopback_up`](Netns::set_loopback_up). The label is `netns:42`
    /// with its id. Waits for a short-lived thread that calls unshare(2) for
    /// the caller: about half a millisecond.
    ///
    /// # Errors
    ///
    /// - [`is_permission_denied`](Error::is_permission_denied): `EPERM`
    ///   without `CAP_SYS_ADMIN`.
    /// - `ENOSPC`: the limit in `/proc/sys/user/max_net_namespaces` is reached.
    /// - `EAGAIN`: no thread could be started.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Netns;
    ///
    /// let netns = Netns::new()?;
    /// netns.set_loopback_up()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn new() -> Result<Netns> {
        let attempt = "cannot create a netns";
        let made = Home::get()?.visit(netns::unshare).and_then(|made| made);
        let fd = made.map_err(|cause| creation_failed(attempt, cause))?;
        Netns::wrap(fd, None, attempt).map(|netns| netns.made(Origin::Unnamed))
    }

    /// The same namespace under another label, as a handle of its own.
    fn relabelled(&self, label: Option<&str>) -> Result<Netns> {
        let attempt = "cannot keep a netns open";
        let fd =
            (self.as_fd().try_clone_to_owned()).map_err(|cause| Error::kernel(attempt, cause))?;
        Netns::wrap(fd, label, attempt)
    }
}

fn proc_failed(attempt: &'static str, cause: io::Error) -> Error {
    why::no_proc(attempt, &cause).unwrap_or_else(|| Error::kernel(attempt, cause))
}

/// Opens what is at `path` if it is a network namespace.
pub(super) fn open_at(path: &Path, label: &str, attempt: &str) -> Result<Netns> {
    let failed = |cause: io::Error| match cause.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH) => {
            Error::new(Kind::NotFound, attempt.to_owned()).caused_by(cause)
        }
        _ => Error::kernel(attempt.to_owned(), cause),
    };
    // What is found by way of /proc, be it by a link, is not known to be missing
    // while /proc is.
    let leads_to_proc = || path.starts_with("/proc") || path.is_symlink();
    let located = netns::locate(path, true).map_err(|cause| {
        (why::no_proc(attempt, &cause).filter(|_| leads_to_proc())).unwrap_or_else(|| failed(cause))
    })?;
    let on_nsfs = netns::is_on_nsfs(located.as_fd()).map_err(failed)?;
    // Of anything else not even the type needs an open file.
    let fd = match on_nsfs {
        true => netns::reopen(located.as_fd())
            .map_err(|cause| why::no_proc(attempt, &cause).unwrap_or_else(|| failed(cause)))?,
        false => located,
    };
    admit(fd, Some(label), attempt)
}

/// Wraps `fd` if it is a network namespace, and says what it is if not.
fn admit(fd: OwnedFd, label: Option<&str>, attempt: &str) -> Result<Netns> {
    match netns::file_kind(fd.as_fd()) {
        Ok(FileKind::Netns) => Netns::wrap(fd, label, attempt),
        Ok(FileKind::Other(what)) => Err(not_a_netns(attempt, what)),
        Err(cause) if cause.raw_os_error() == Some(libc::EBADF) => {
            Err(Error::kernel(attempt.to_owned(), cause).hint("open it without O_PATH"))
        }
        Err(cause) => Err(Error::kernel(attempt.to_owned(), cause)),
    }
}

pub(super) fn not_a_netns(attempt: &str, what: &str) -> Error {
    Error::new(
        Kind::NotANetns,
        format!("{attempt}: it is {what}, not a network namespace"),
    )
}

/// Names what unshare(2) wanted.
pub(super) fn creation_failed(attempt: impl Into<String>, cause: io::Error) -> Error {
    let (attempt, errno) = (attempt.into(), cause.raw_os_error());
    if let Some(error) = why::no_proc(&attempt, &cause) {
        return error;
    }
    let error = Error::kernel(attempt, cause);
    match errno {
        Some(libc::EPERM | libc::EACCES) => error.hint(why::creation_denied()),
        Some(libc::ENOSPC) => error.hint("see /proc/sys/user/max_net_namespaces"),
        Some(libc::EAGAIN) => {
            error.hint("no thread could be started: see `ulimit -u` and pids.max")
        }
        _ => error,
    }
}
