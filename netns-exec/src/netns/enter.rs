//! What is done inside a namespace by a thread that goes there for it.

use std::io;
use std::os::fd::AsFd;

use super::Netns;
use super::thread::enter;
use super::why::{self, is_permission};
use crate::error::{Error, Result};
use crate::home::Home;
use crate::sys;

impl Netns {
    /// Finds out whether a thread of this process could enter the namespace.
    ///
    /// A short-lived thread tries it for real (setns(2)) and ends there; the
    /// caller stays where it is and waits for it.
    ///
    /// # Errors
    ///
    /// - [`is_permission_denied`](Error::is_permission_denied): `EPERM`. Takes
    ///   `CAP_SYS_ADMIN` both in the process's own user namespace and in the
    ///   one that owns this namespace; the text says which is missing, how to get
    ///   it, and, where these are two user namespaces, which. No privilege is needed for the home namespace.
    /// - `EAGAIN`: no thread could be started.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// Netns::home()?.check_enter()?; // always possible
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn check_enter(&self) -> Result<()> {
        self.visit(|| Ok(()))
    }

    /// Finds out whether threads of this process can enter network namespaces that
    /// they are not in: whether it has `CAP_SYS_ADMIN`, both in its own user namespace
    /// and in the one that owns its home namespace.
    ///
    /// For a program to decide at its start. `true` promises nothing of a namespace
    /// that belongs to yet another user namespace; [`check_enter`](Netns::check_enter)
    /// asks for one and gives the reason. In a user namespace without a network
    /// namespace of its own it is `false`, although namespaces that are made there
    /// can be entered.
    ///
    /// A short-lived thread tries it for real, with the home namespace, where it is
    /// already; the caller waits for it. So it tells what the process's workers can
    /// do, and not what the calling thread can, which may have given its capabilities
    /// up, as that of a sealed job has.
    ///
    /// # Errors
    ///
    /// Fails without `/proc`, and when no thread can be started (`EAGAIN`).
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// if !Netns::can_enter_others()? {
    ///     eprintln!("needs CAP_SYS_ADMIN: serving this network namespace only");
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn can_enter_others() -> Result<bool> {
        let attempt = "cannot find out whether network namespaces can be entered";
        // setns(2) asks for the capabilities wherever the thread is.
        let tried = Home::get()?
            .visit(|| sys::netns::of_this_thread().and_then(sys::netns::enter))
            .and_then(|tried| tried);
        match tried {
            Ok(()) => Ok(true),
            Err(cause) if is_permission(&cause) => Ok(false),
            Err(cause) => {
                Err(why::no_proc(attempt, &cause).unwrap_or_else(|| Error::kernel(attempt, cause)))
            }
        }
    }

    /// Brings the loopback device up, as `ip link set lo up` does: before
    /// that, not even `127.0.0.1` can be reached in a new namespace.
    ///
    /// Does nothing where it is up already. Waits for a short-lived thread
    /// that enters the namespace.
    ///
    /// # Errors
    ///
    /// - [`is_permission_denied`](Error::is_permission_denied): `EPERM`, as
    ///   with [`check_enter`](Netns::check_enter), or without `CAP_NET_ADMIN`
    ///   over the namespace.
    /// - `EAGAIN`: no thread could be started.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::net::TcpListener;
    /// use netns_exec::Netns;
    ///
    /// let netns = Netns::new()?;
    /// netns.set_loopback_up()?;
    /// let listener = netns_exec::run(&netns, || TcpListener::bind("127.0.0.1:80"))?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn set_loopback_up(&self) -> Result<()> {
        let netns = self.clone();
        self.visit(move || {
            sys::netns::set_loopback_up().map_err(|cause| {
                let denied = is_permission(&cause);
                let error = Error::kernel(format!("cannot bring lo up in netns `{netns}`"), cause);
                if !denied {
                    return error;
                }
                let need = "needs CAP_NET_ADMIN over the namespace";
                match netns.foreign_owner() {
                    Some(foreign) => error.hint(format!("{need}: {foreign}")),
                    None => error.hint(need),
                }
            })
        })
    }

    /// Moves the calling thread, which must have been made for this, into the
    /// namespace, and makes sure that it is there.
    ///
    /// A thread that is there already needs no privilege to stay.
    pub(crate) fn enter(&self) -> Result<()> {
        let failed = |cause: io::Error| {
            let error = Error::kernel(format!("cannot enter netns `{self}`"), cause);
            match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => error.hint(why::denied(self.as_fd())),
                Some(libc::EBADF | libc::EINVAL) => error.hint(why::NOT_THE_SAME_FILE),
                _ => error,
            }
        };
        enter(self.as_fd()).map_err(failed)?;
        // A number is all that setns(2) is given.
        match self.is_here() {
            Ok(true) => Ok(()),
            Ok(false) => Err(failed(io::Error::from_raw_os_error(libc::EBADF))),
            Err(cause) => {
                let attempt = format!("cannot tell whether a thread is in netns `{self}`");
                Err(Error::kernel(attempt, cause))
            }
        }
    }

    /// Whether the calling thread is in the namespace.
    pub(crate) fn is_here(&self) -> io::Result<bool> {
        sys::netns::is_here(self.id().as_u64(), self.inner.inode)
    }

    /// Says which user namespace owns the namespace, and which one this process is
    /// in, where these are two: for errors. `None` also where that cannot be told.
    pub(crate) fn foreign_owner(&self) -> Option<String> {
        why::foreign_owner(self.as_fd())
    }

    /// Runs `f` in the namespace, on a thread that ends there.
    pub(crate) fn visit<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let netns = self.clone();
        let visited = Home::get()?.visit(move || {
            netns.enter()?;
            f()
        });
        match visited {
            Ok(result) => result,
            Err(cause) => Err(Error::kernel(
                format!("cannot start a thread for netns `{self}`"),
                cause,
            )
            .hint("see `ulimit -u` and pids.max")),
        }
    }
}
