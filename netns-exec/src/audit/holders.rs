//! What keeps namespaces alive.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::fstat;

use super::found::{Hold, Holder, Holders, Namespace, Namespaces, Unreadable};
use super::proc::{self, ProcDir, is_denied, is_gone};
use super::spaces::{self, Spaces};
use crate::error::{Error, Result};
use crate::netns::{Netns, NetnsId};
use crate::sys;
use crate::sys::mount_table::{netns_inode, netns_mounts};
use crate::sys::netns::FileKind;
use crate::sys::task;

/// Finds out what keeps a namespace alive, anywhere on the system: threads,
/// open descriptors, sockets and bind mounts.
///
/// `netns` itself is among them. To tell where another process's socket was
/// made, its descriptor is duplicated for a moment (pidfd_getfd(2)), which
/// takes the privilege to trace that process; a connection that is closed in
/// that moment ends with it.
///
/// What the kernel holds on its own, and descriptors that are on their way in a
/// message or registered with an io_uring, cannot be listed.
///
/// # Errors
///
/// Fails when /proc is not mounted or no file descriptor is left.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Netns, audit};
///
/// let blue = Netns::open("blue")?;
/// for holder in audit::holders(&blue)?.holders() {
///     println!("{holder}"); // process 4711 (dockerd): thread 4720
/// }
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn holders(netns: &Netns) -> Result<Holders> {
    let failed = |cause| {
        let attempt = format!("cannot find out what keeps netns `{netns}` alive");
        Error::kernel(attempt, cause)
    };
    let inode = fstat(netns).map_err(|errno| failed(errno.into()))?.st_ino;
    let wanted = Some(Wanted {
        inode,
        id: netns.id(),
    });
    let mut survey = Survey::new(wanted);
    survey.everything().map_err(failed)?;
    Ok(Holders {
        holders: survey.held.remove(&inode).unwrap_or_default(),
        unreadable: survey.unreadable,
    })
}

/// Finds all network namespaces on the system, with what keeps each alive.
///
/// As [`holders`], for every namespace that a thread, descriptor, socket or
/// bind mount leads to.
///
/// # Errors
///
/// As [`holders`].
///
/// # Examples
///
/// ```
/// let found = netns_exec::audit::namespaces()?;
/// assert!(!found.namespaces().is_empty());
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn namespaces() -> Result<Namespaces> {
    let failed = |cause| Error::kernel("cannot list network namespaces", cause);
    let mut survey = Survey::new(None);
    survey.everything().map_err(failed)?;
    let mut names = spaces::names().map_err(failed)?;
    let spaces = &survey.spaces;
    let mut namespaces: Vec<_> = (survey.held.into_iter())
        .map(|(inode, holders)| Namespace {
            id: spaces.id(inode),
            inode,
            names: names.remove(&inode).unwrap_or_default(),
            holders,
        })
        .collect();
    // Ids are given out in order.
    namespaces.sort_by_key(|namespace| (namespace.id.is_none(), namespace.id, namespace.inode));
    Ok(Namespaces {
        namespaces,
        unreadable: survey.unreadable,
    })
}

/// The one namespace a survey is about; held by the caller, so that its inode
/// number is its own.
#[derive(Clone, Copy)]
struct Wanted {
    inode: u64,
    id: NetnsId,
}

/// A walk through all processes.
struct Survey {
    wanted: Option<Wanted>,
    spaces: Spaces,
    /// By the namespace's inode number.
    held: BTreeMap<u64, Vec<Holder>>,
    unreadable: Vec<Unreadable>,
    /// Mount namespaces that were looked at.
    mounts_read: BTreeSet<std::ffi::OsString>,
}

impl Survey {
    fn new(wanted: Option<Wanted>) -> Survey {
        Survey {
            wanted,
            spaces: Spaces::default(),
            held: BTreeMap::new(),
            unreadable: Vec::new(),
            mounts_read: BTreeSet::new(),
        }
    }

    fn everything(&mut self) -> io::Result<()> {
        for pid in proc::pids()? {
            match self.process(pid) {
                Err(error) if is_gone(&error) => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn process(&mut self, pid: u32) -> io::Result<()> {
        let dir = ProcDir::open(pid)?;
        // They are in the first namespace, which lives on without them.
        if dir.status("status")?.is_kernel_thread {
            return Ok(());
        }
        let name: Arc<str> = dir.name("comm")?.into();
        let mut visit = Visit {
            survey: self,
            dir,
            name,
        };
        for what in ["threads", "mounts", "fds"] {
            let done = match what {
                "threads" => visit.threads(),
                "mounts" => visit.mounts(),
                _ => visit.fds(),
            };
            match done {
                // What is denied once is denied for all of the process.
                Err(error) if is_denied(&error) => {
                    visit.unreadable(what);
                    return Ok(());
                }
                done => done?,
            }
        }
        Ok(())
    }
}

/// A process being looked at.
struct Visit<'a> {
    survey: &'a mut Survey,
    dir: ProcDir,
    name: Arc<str>,
}

impl Visit<'_> {
    fn unreadable(&mut self, what: &'static str) {
        self.survey.unreadable.push(Unreadable {
            pid: self.dir.pid(),
            process: Arc::clone(&self.name),
            what,
        });
    }

    fn add(&mut self, inode: u64, hold: Hold) {
        self.survey.held.entry(inode).or_default().push(Holder {
            pid: self.dir.pid(),
            process: Arc::clone(&self.name),
            hold,
        });
    }

    /// Adds what another thread's table may have shown already.
    fn add_once(&mut self, inode: u64, hold: Hold) {
        let pid = self.dir.pid();
        let known = self.survey.held.get(&inode).is_some_and(|held| {
            let mut ours = held.iter().rev().take_while(|holder| holder.pid == pid);
            ours.any(|holder| holder.hold == hold)
        });
        if !known {
            self.add(inode, hold);
        }
    }

    /// Tells whether an error about a thread means that it has ended. One that
    /// was not waited for is all root's.
    fn has_ended(&self, tid: u32, error: &io::Error) -> bool {
        is_gone(error) || (is_denied(error) && self.dir.is_exiting(tid).unwrap_or(false))
    }

    /// The inode of the namespace that a link leads to, if it is of interest.
    fn meet(&mut self, path: &str) -> io::Result<Option<u64>> {
        match self.survey.wanted {
            Some(wanted) => {
                let inode = self.dir.netns_link(path)?;
                Ok((inode == wanted.inode).then_some(inode))
            }
            None => self.survey.spaces.meet(&self.dir, path).map(Some),
        }
    }

    fn threads(&mut self) -> io::Result<()> {
        for tid in self.dir.tids()? {
            match self.meet(&format!("task/{tid}/ns/net")) {
                Ok(Some(inode)) => self.add(inode, Hold::Thread { tid }),
                Ok(None) => {}
                Err(error) if self.has_ended(tid, &error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn mounts(&mut self) -> io::Result<()> {
        for tid in self.dir.tids()? {
            // A thread can have mounts of its own: see unshare(2).
            let mounts = self.dir.link(&format!("task/{tid}/ns/mnt"));
            let read = mounts.and_then(|mounts| match self.survey.mounts_read.contains(&mounts) {
                true => Ok(()),
                false => {
                    self.mounts_of(tid)?;
                    self.survey.mounts_read.insert(mounts);
                    Ok(())
                }
            });
            match read {
                Err(error) if self.has_ended(tid, &error) => {}
                // A process that has no root any more: it is about to end.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                read => read?,
            }
        }
        Ok(())
    }

    fn mounts_of(&mut self, tid: u32) -> io::Result<()> {
        let path = format!("/proc/{}/task/{tid}/mountinfo", self.dir.pid());
        for mount in netns_mounts(Path::new(&path))? {
            let inode = mount.inode;
            match self.survey.wanted {
                Some(wanted) if wanted.inode != inode => continue,
                Some(_) => {}
                None if self.survey.spaces.contains(inode) => {}
                // For its id. That it is there is known even if this fails.
                None => drop(self.open_mount(tid, &mount.target)),
            }
            self.add(inode, Hold::Mount { path: mount.target });
        }
        Ok(())
    }

    /// Opens what is mounted at `target` as a thread sees it.
    fn open_mount(&mut self, tid: u32, target: &Path) -> io::Result<u64> {
        let root = format!("/proc/{}/task/{tid}/root", self.dir.pid());
        let path = Path::new(&root).join(target.strip_prefix("/").unwrap_or(target));
        // Something else may be mounted over it, and opening that could have
        // effects.
        let located = sys::netns::locate(&path, false)?;
        if !sys::netns::is_on_nsfs(located.as_fd())? {
            return Err(io::ErrorKind::NotFound.into());
        }
        let netns = sys::netns::reopen(located.as_fd())?;
        self.survey.spaces.hold(netns)
    }

    /// Looks at every table of descriptors there is: threads share one, unless
    /// unshare(2) or close_range(2) gave a thread its own. That of the main thread
    /// is gone once it has ended, whatever the others have.
    fn fds(&mut self) -> io::Result<()> {
        let mut read: Vec<u32> = Vec::new();
        // Without kcmp(2) every thread's is read: what is met again counts once.
        let mut comparable = true;
        for tid in self.dir.tids()? {
            let mut is_known = false;
            for &other in &read {
                if is_known || !comparable {
                    break;
                }
                match task::share_files(tid, other) {
                    Ok(shared) => is_known = shared,
                    Err(error) if is_gone(&error) => {}
                    Err(_) => comparable = false,
                }
            }
            if is_known {
                continue;
            }
            match self.fds_of(tid) {
                Ok(()) => read.push(tid),
                Err(error) if self.has_ended(tid, &error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn fds_of(&mut self, tid: u32) -> io::Result<()> {
        // Of a thread that has ended there is a table to list, an empty one.
        self.dir.link(&format!("task/{tid}/ns/net"))?;
        let ours = self.dir.pid() == std::process::id();
        // Opened when first needed, and then kept for this table.
        let mut pidfd = None;
        let mut denied = false;
        for fd in self.dir.fds(tid)? {
            if ours && self.survey.spaces.owns(fd as RawFd) {
                continue;
            }
            let path = format!("task/{tid}/fd/{fd}");
            let link = match self.dir.link(&path) {
                Err(error) if is_gone(&error) => continue,
                link => link?,
            };
            let link = link.as_encoded_bytes();
            let is_path = link.starts_with(b"/");
            if netns_inode(link).is_some() || (is_path && self.may_be_namespace(tid, fd)) {
                match self.inode_of_file(&path) {
                    Ok(Some(inode)) => self.add_once(inode, Hold::Fd { fd }),
                    // Another file has taken the number, or none.
                    Ok(None) => {}
                    Err(error) if is_denied(&error) => return Err(error),
                    Err(_) => {}
                }
                continue;
            }
            let is_socket = link.starts_with(b"socket:[");
            // What else is bound to a namespace as a socket is.
            if !is_socket && link != b"/dev/net/tun" {
                continue;
            }
            if denied {
                continue;
            }
            match self.inode_of_socket(tid, fd, &mut pidfd) {
                Ok(Some(inode)) if is_socket => self.add_once(inode, Hold::Socket { fd }),
                Ok(Some(inode)) => self.add_once(inode, Hold::Fd { fd }),
                Ok(None) => {}
                Err(error) if is_denied(&error) => denied = true,
                // Closed meanwhile, or another file by now.
                Err(_) => {}
            }
        }
        if denied {
            self.unreadable("sockets");
        }
        Ok(())
    }

    /// Tells whether a descriptor whose link is a path may be a namespace that was
    /// opened through a mount. Asks nothing of the filesystem that the file is on,
    /// which may be a server that does not answer.
    fn may_be_namespace(&self, tid: u32, fd: u32) -> bool {
        /// From here on the kernel numbers namespaces.
        const LOWEST: u64 = 0xe000_0000;
        match self.dir.inode_in_fdinfo(tid, fd) {
            Ok(Some(inode)) => match self.survey.wanted {
                Some(wanted) => inode == wanted.inode,
                None => (LOWEST..=u64::from(u32::MAX)).contains(&inode),
            },
            // Linux before 5.14 does not say.
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// The inode of the namespace that a descriptor leads to, if it is of interest.
    fn inode_of_file(&mut self, path: &str) -> io::Result<Option<u64>> {
        // What else has the number by now may be a device, which opening affects.
        let located = self.dir.locate(path)?;
        if !sys::netns::is_on_nsfs(located.as_fd())? {
            return Ok(None);
        }
        if let Some(wanted) = self.survey.wanted {
            return Ok((fstat(&located)?.st_ino == wanted.inode).then_some(wanted.inode));
        }
        let file = sys::netns::reopen(located.as_fd())?;
        match sys::netns::file_kind(file.as_fd())? {
            FileKind::Netns => self.survey.spaces.hold(file).map(Some),
            FileKind::Other(_) => Ok(None),
        }
    }

    /// The inode of the namespace a socket was made in, if it is of interest.
    fn inode_of_socket(
        &mut self,
        tid: u32,
        fd: u32,
        pidfd: &mut Option<OwnedFd>,
    ) -> io::Result<Option<u64>> {
        if pidfd.is_none() {
            // Of the thread, where it is not the main one: that one's table may be
            // another, or gone. Linux before 6.9 knows processes only.
            let opened = sys::netns::pidfd_open(tid as libc::pid_t)
                .or_else(|_| sys::netns::pidfd_open(self.dir.pid() as libc::pid_t))?;
            // The folder is still that of a thread, so that is the one the
            // number means.
            self.dir.link(&format!("task/{tid}/ns/net"))?;
            *pidfd = Some(opened);
        }
        let pidfd = pidfd.as_ref().map(AsFd::as_fd).expect("opened above");
        let socket = sys::pidfd::getfd(pidfd, fd as RawFd)?;
        let socket = socket.as_fd();
        match sys::netns::id_by_socket(socket) {
            Ok(id) => match self.survey.wanted {
                Some(wanted) => Ok((wanted.id.as_u64() == id).then_some(wanted.inode)),
                None => match self.survey.spaces.inode_of_id(id) {
                    Some(inode) => Ok(Some(inode)),
                    None => self
                        .survey
                        .spaces
                        .hold(sys::netns::of_socket(socket)?)
                        .map(Some),
                },
            },
            // A tun device is asked as a socket is, but knows no id.
            Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => {
                let netns = sys::netns::of_socket(socket)?;
                match self.survey.wanted {
                    Some(wanted) => {
                        Ok((fstat(&netns)?.st_ino == wanted.inode).then_some(wanted.inode))
                    }
                    None => self.survey.spaces.hold(netns).map(Some),
                }
            }
            Err(error) => Err(error),
        }
    }
}
