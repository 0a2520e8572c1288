//! Where any thread reads a namespace's tables.

use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::executor::{Executor, Pinned};
use crate::netns::Netns;
use crate::sys;

/// The folder in which every thread of this process reads a namespace's tables, such as
/// `tcp`, `dev`, `route` and `snmp`: `/proc/net` of that namespace, without a job.
///
/// It is that of a worker's thread (`/proc/self/task/TID/net`), held open, and keeps
/// that worker by a [`Pinned`]. It dereferences to a [`Path`], which is good for as
/// long as this lives.
///
/// When the worker ends all the same, since its namespace was
/// [retired](Executor::retire) or lost its last name, or a job spoiled it, the tables
/// are gone (`ENOENT`), and another one may be asked for. What is never to be seen here
/// is another namespace's table: the folder is not found by the thread's number, which
/// may be given out again. It does not keep a deleted namespace alive; a table that is
/// open does.
///
/// The path begins with `/proc/thread-self/fd`, so it means nothing to another process,
/// nor to a thread that has a descriptor table of its own.
///
/// # Examples
///
/// ```no_run
/// use std::fs;
/// use netns_exec::Netns;
///
/// let net = Netns::open("blue")?.proc_net()?;
/// loop {
///     println!("{}", fs::read_to_string(net.join("snmp")).expect("its worker is there"));
///     # break;
/// }
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub struct ProcNet {
    path: PathBuf,
    _folder: OwnedFd,
    pinned: Pinned,
}

impl Deref for ProcNet {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for ProcNet {
    fn as_ref(&self) -> &Path {
        self
    }
}

impl fmt::Debug for ProcNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcNet")
            .field("netns", &self.pinned.label())
            .field("path", &self.path)
            .finish()
    }
}

impl Pinned {
    /// Returns the folder in which any thread reads the namespace's tables.
    ///
    /// # Blocking
    ///
    /// Blocks while a worker starts, if there is none.
    ///
    /// # Errors
    ///
    /// As [`run`](Pinned::run); and the errno when the folder cannot be opened, such as
    /// `EMFILE`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// let blue = Executor::global().pin(&Netns::open("blue")?)?;
    /// let net = blue.proc_net()?;
    /// let sockets = std::fs::read_to_string(net.join("sockstat"));
    /// # let _ = sockets;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn proc_net(&self) -> Result<ProcNet> {
        loop {
            let tid = self.thread()?;
            let folder = sys::task::net_folder(tid);
            // While it is a worker's, the number is not another thread's.
            if self.thread()? != tid {
                continue;
            }
            let folder = folder.map_err(|cause| {
                let label = self.label();
                Error::kernel(format!("cannot open the tables of netns `{label}`"), cause)
            })?;
            return Ok(ProcNet {
                path: format!("/proc/thread-self/fd/{}", folder.as_raw_fd()).into(),
                _folder: folder,
                pinned: self.clone(),
            });
        }
    }
}

impl Netns {
    /// Returns the folder in which any thread reads the namespace's tables. A worker of
    /// the [global executor](Executor::global) stays for it.
    ///
    /// # Blocking
    ///
    /// As [`Pinned::proc_net`].
    ///
    /// # Errors
    ///
    /// As [`Executor::pin`] and [`Pinned::proc_net`].
    ///
    /// # Panics
    ///
    /// As [`Executor::global`].
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// let net = Netns::current()?.proc_net()?;
    /// let devices = std::fs::read_to_string(net.join("dev")).expect("its worker is there");
    /// assert!(devices.contains("lo:"));
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn proc_net(&self) -> Result<ProcNet> {
        Executor::global().pin(self)?.proc_net()
    }
}
