//! What is done inside a namespace by a thread that goes there for it.

use std::io;
use std::os::fd::AsFd;

use super::thread::enter;
use super::{Netns, is_permission};
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
    ///   one that owns this namespace; the text says which is missing, and how
    ///   to get it. No privilege is needed for the home namespace.
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
        let label = self.label().to_owned();
        self.visit(move || {
            sys::netns::set_loopback_up().map_err(|cause| {
                let denied = is_permission(&cause);
                let error = Error::kernel(format!("cannot bring lo up in netns `{label}`"), cause);
                match denied {
                    true => error.hint("needs CAP_NET_ADMIN over the namespace"),
                    false => error,
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
                Some(libc::EPERM | libc::EACCES) => error.hint(why_denied()),
                Some(libc::EBADF | libc::EINVAL) => error.hint(NOT_THE_SAME_FILE),
                _ => error,
            }
        };
        enter(self.as_fd()).map_err(failed)?;
        // A number is all that setns(2) is given.
        match sys::netns::is_here(self.id().as_u64(), self.inner.inode) {
            Ok(true) => Ok(()),
            Ok(false) => Err(failed(io::Error::from_raw_os_error(libc::EBADF))),
            Err(cause) => {
                let attempt = format!("cannot tell whether a thread is in netns `{self}`");
                Err(Error::kernel(attempt, cause))
            }
        }
    }

    /// Runs `f` in the namespace, on a thread that ends there.
    fn visit<T: Send + 'static>(
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

/// Why a descriptor that was a namespace's is not.
pub(crate) const NOT_THE_SAME_FILE: &str = "the handle's file descriptor means another file to \
     the thread that enters: the descriptor was closed behind the handle's back, or the handle was \
     made by a thread with a descriptor table of its own (unshare(2), close_range(2))";

/// Why setns(2) refused the calling thread, and what helps.
fn why_denied() -> String {
    match sys::caps::has_sys_admin() {
        Ok(true) => {
            "this process has CAP_SYS_ADMIN, but not over this namespace, which belongs to \
                     another user namespace: enter that one before the first thread starts"
                .to_owned()
        }
        _ => cure("entering network namespaces needs CAP_SYS_ADMIN"),
    }
}

pub(super) fn cure(need: &str) -> String {
    format!(
        "{need}: run as root, give the program the capability (setcap cap_sys_admin+ep), \
         or start it in a user namespace of its own (unshare --user --map-root-user --net)"
    )
}
