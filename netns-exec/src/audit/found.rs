//! What a look for that which keeps namespaces alive has found.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::netns::NetnsId;

/// The way in which a process keeps a namespace alive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Hold {
    /// A thread is in it.
    #[non_exhaustive]
    Thread {
        /// The thread's number.
        tid: u32,
    },
    /// The namespace itself is open, as in a [`Netns`] or through its mount
    /// (`< /run/netns/blue`), or a device that belongs to it, as `/dev/net/tun`
    /// does.
    #[non_exhaustive]
    Fd {
        /// The descriptor's number in that process.
        fd: u32,
    },
    /// A socket that was made in it is open. Wherever its process is now, an
    /// AF_UNIX one included.
    #[non_exhaustive]
    Socket {
        /// The descriptor's number in that process.
        fd: u32,
    },
    /// It is mounted, which is what gives it a name. Said of the process with
    /// the lowest number that has the mount.
    #[non_exhaustive]
    Mount {
        /// Where, as that process sees it.
        path: PathBuf,
    },
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hold::Thread { tid } => write!(f, "thread {tid}"),
            Hold::Fd { fd } => write!(f, "fd {fd}"),
            Hold::Socket { fd } => write!(f, "socket {fd}"),
            Hold::Mount { path } => write!(f, "mount {}", path.display()),
        }
    }
}

/// One thing that keeps a namespace alive, and whose it is.
#[derive(Clone, Debug)]
pub struct Holder {
    pub(super) pid: u32,
    pub(super) process: Arc<str>,
    pub(super) hold: Hold,
}

impl Holder {
    /// Returns the number of the process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the name of the process.
    pub fn process(&self) -> &str {
        &self.process
    }

    /// Returns what of that process keeps the namespace alive.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}): {}", self.pid, self.process, self.hold)
    }
}

/// A process that may hold more than could be found out.
#[derive(Clone, Debug)]
pub struct Unreadable {
    pub(super) pid: u32,
    pub(super) process: Arc<str>,
    pub(super) what: &'static str,
}

impl Unreadable {
    /// Returns the number of the process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the name of the process.
    pub fn process(&self) -> &str {
        &self.process
    }

    /// Returns what of it could not be read, first of all: "threads", "fds",
    /// "sockets" or "mounts".
    pub fn what(&self) -> &str {
        self.what
    }
}

/// What keeps one namespace alive, from [`holders`].
#[derive(Clone, Debug)]
pub struct Holders {
    pub(super) holders: Vec<Holder>,
    pub(super) unreadable: Vec<Unreadable>,
}

impl Holders {
    /// Returns what was found, by process.
    pub fn holders(&self) -> &[Holder] {
        &self.holders
    }

    /// Returns the processes that may hold it too.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }
}

/// A namespace that was found on the system, from [`namespaces`].
#[derive(Clone, Debug)]
pub struct Namespace {
    pub(super) id: Option<NetnsId>,
    pub(super) inode: u64,
    pub(super) names: Vec<String>,
    pub(super) holders: Vec<Holder>,
}

impl Namespace {
    /// Returns its never-reused id; `None` for one that was seen and may not be
    /// opened.
    pub fn id(&self) -> Option<NetnsId> {
        self.id
    }

    /// Returns the number in `net:[4026531840]`, which is its own only while
    /// it lives.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Returns its names: `blue` for `/run/netns/blue`, then the paths where
    /// else it is mounted in this process's mount namespace.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns what keeps it alive, by process.
    pub fn holders(&self) -> &[Holder] {
        &self.holders
    }

    /// Returns the processes that have threads in it: number, name, how many.
    pub fn processes(&self) -> Vec<(u32, &str, usize)> {
        let mut processes: Vec<(u32, &str, usize)> = Vec::new();
        for holder in &self.holders {
            if !matches!(holder.hold, Hold::Thread { .. }) {
                continue;
            }
            match processes.last_mut() {
                Some((pid, _, count)) if *pid == holder.pid => *count += 1,
                _ => processes.push((holder.pid, &holder.process, 1)),
            }
        }
        processes
    }
}

/// All namespaces that were found, from [`namespaces`].
#[derive(Clone, Debug)]
pub struct Namespaces {
    pub(super) namespaces: Vec<Namespace>,
    pub(super) unreadable: Vec<Unreadable>,
}

impl Namespaces {
    /// Returns the namespaces, oldest first.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// Returns the processes that may know more of them.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }
}
