//! What a look for that which keeps namespaces alive has found.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::netns::NetnsId;

/// The way in which a process keeps a namespace alive.
///
/// # Examples
///
/// ```
/// # use netns_exec::audit::{Hold, Holder};
/// # fn f(holder: &Holder) {
/// match holder.hold() {
///     Hold::Mount { path, .. } => println!("umount {}", path.display()),
///     Hold::Thread { .. } => println!("kill {}", holder.pid()),
///     hold => println!("{} has {hold}", holder.process()),
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Hold {
    /// A thread is in it.
    #[non_exhaustive]
    Thread {
        /// The thread's number.
        tid: u32,
    },
    /// The namespace itself is open, as in a [`Netns`](crate::Netns) or through its mount
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
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Netns, audit};
///
/// let found = audit::holders(&Netns::open("blue")?)?;
/// for holder in found.holders() {
///     println!("{holder}"); // process 4711 (dockerd): socket 17
/// }
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Holder {
    pub(super) pid: u32,
    pub(super) process: Arc<str>,
    pub(super) hold: Hold,
}

impl Holder {
    /// Returns the number of the process.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn f(found: &netns_exec::audit::Holders) {
    /// let ours = std::process::id();
    /// let others = found.holders().iter().filter(|holder| holder.pid() != ours);
    /// println!("{} are not ours", others.count());
    /// # }
    /// ```
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the name of the process.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn f(found: &netns_exec::audit::Holders) {
    /// let by_docker = found.holders().iter().any(|holder| holder.process() == "dockerd");
    /// # let _ = by_docker;
    /// # }
    /// ```
    pub fn process(&self) -> &str {
        &self.process
    }

    /// Returns what of that process keeps the namespace alive.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::audit::{Hold, Holders};
    /// # fn f(found: &Holders) {
    /// // A namespace that has no name any more has no mount.
    /// let has_name = found.holders().iter().any(|holder| matches!(holder.hold(), Hold::Mount { .. }));
    /// # let _ = has_name;
    /// # }
    /// ```
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
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Netns, audit};
///
/// for process in audit::holders(&Netns::open("blue")?)?.unreadable() {
///     eprintln!("{process:?} may hold it too: ask as root");
/// }
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Unreadable {
    pub(super) pid: u32,
    pub(super) process: Arc<str>,
    pub(super) what: &'static str,
}

impl Unreadable {
    /// Returns the number of the process.
    ///
    /// # Examples
    ///
    /// ```
    /// let found = netns_exec::audit::namespaces()?;
    /// let pids: Vec<u32> = found.unreadable().iter().map(|process| process.pid()).collect();
    /// println!("look at these as root: {pids:?}");
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the name of the process.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn f(found: &netns_exec::audit::Holders) {
    /// let mine = found.unreadable().iter().any(|process| process.process() == "myd");
    /// # let _ = mine;
    /// # }
    /// ```
    pub fn process(&self) -> &str {
        &self.process
    }

    /// Returns what of it could not be read, first of all: "threads", "fds",
    /// "sockets" or "mounts".
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::audit::Unreadable;
    /// # fn f(process: &Unreadable) {
    /// if process.what() == "sockets" {
    ///     println!("{} may have a socket there", process.process());
    /// }
    /// # }
    /// ```
    pub fn what(&self) -> &str {
        self.what
    }
}

/// What keeps one namespace alive, from [`holders`](super::holders()).
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Netns, audit};
///
/// // Why is it still there, although its name has gone?
/// # let gone = Netns::open("blue")?;
/// let found = audit::holders(&gone)?;
/// if found.holders().is_empty() && !found.unreadable().is_empty() {
///     println!("a process that may not be looked at holds it, or the kernel");
/// }
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Holders {
    pub(super) holders: Vec<Holder>,
    pub(super) unreadable: Vec<Unreadable>,
}

impl Holders {
    /// Returns what was found, by process.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Netns, audit};
    ///
    /// let here = Netns::current()?;
    /// let me = std::process::id();
    /// // This thread, and the descriptor of `here`.
    /// assert!(audit::holders(&here)?.holders().iter().any(|holder| holder.pid() == me));
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn holders(&self) -> &[Holder] {
        &self.holders
    }

    /// Returns the processes that may hold it too.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn f(found: &netns_exec::audit::Holders) {
    /// let is_all = found.unreadable().is_empty();
    /// # let _ = is_all;
    /// # }
    /// ```
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }
}

/// A namespace that was found on the system, from [`namespaces`](super::namespaces()).
///
/// # Examples
///
/// ```
/// for namespace in netns_exec::audit::namespaces()?.namespaces() {
///     println!("net:[{}] {:?}", namespace.inode(), namespace.names());
/// }
/// # Ok::<(), netns_exec::Error>(())
/// ```
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
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Netns, audit};
    ///
    /// let blue = Netns::open("blue")?;
    /// let all = audit::namespaces()?;
    /// let found = all.namespaces().iter().find(|namespace| namespace.id() == Some(blue.id()));
    /// # let _ = found;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn id(&self) -> Option<NetnsId> {
        self.id
    }

    /// Returns the number in `net:[4026531840]`, which is its own only while
    /// it lives.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn f(namespace: &netns_exec::audit::Namespace) {
    /// // As `readlink /proc/PID/ns/net` has it.
    /// println!("net:[{}]", namespace.inode());
    /// # }
    /// ```
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Returns its names: `blue` for `/run/netns/blue`, then the paths where
    /// else it is mounted in this process's mount namespace.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn f(namespace: &netns_exec::audit::Namespace) {
    /// match namespace.names() {
    ///     [] => println!("no name: it lives by what is in it"),
    ///     names => println!("{}", names.join(", ")),
    /// }
    /// # }
    /// ```
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns what keeps it alive, by process.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::audit::{Hold, Namespace};
    /// # fn f(namespace: &Namespace) {
    /// // It has neither a name nor a thread: what is left are sockets and descriptors.
    /// let is_leak = namespace.holders().iter().all(|holder| {
    ///     matches!(holder.hold(), Hold::Socket { .. } | Hold::Fd { .. })
    /// });
    /// # let _ = is_leak;
    /// # }
    /// ```
    pub fn holders(&self) -> &[Holder] {
        &self.holders
    }

    /// Returns the processes that have threads in it: number, name, how many.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn f(namespace: &netns_exec::audit::Namespace) {
    /// for (pid, name, threads) in namespace.processes() {
    ///     println!("{name} ({pid}): {threads} threads");
    /// }
    /// # }
    /// ```
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

/// All namespaces that were found, from [`namespaces`](super::namespaces()).
///
/// # Examples
///
/// ```
/// let found = netns_exec::audit::namespaces()?;
/// println!("{} namespaces", found.namespaces().len());
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Namespaces {
    pub(super) namespaces: Vec<Namespace>,
    pub(super) unreadable: Vec<Unreadable>,
}

impl Namespaces {
    /// Returns the namespaces, oldest first.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let found = netns_exec::audit::namespaces()?;
    /// // The first is the one that the machine booted with.
    /// let unnamed = found.namespaces().iter().skip(1).filter(|namespace| namespace.names().is_empty());
    /// println!("{} without a name", unnamed.count());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// Returns the processes that may know more of them.
    ///
    /// # Examples
    ///
    /// ```
    /// let found = netns_exec::audit::namespaces()?;
    /// for process in found.unreadable() {
    ///     eprintln!("cannot read the {} of {}", process.what(), process.pid());
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }
}
