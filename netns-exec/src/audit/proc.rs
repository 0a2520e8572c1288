//! Reading /proc, about processes that may end at any moment.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, fstatat};

use crate::home::published::Published;
use crate::sys::dir;
use crate::sys::mount_table::netns_inode;
use crate::sys::task::{self, Stat};

/// A process's folder in /proc, kept open: it stays that of this process, when
/// its number has become another's.
pub(super) struct ProcDir {
    dir: OwnedFd,
    pid: u32,
}

/// What is of interest in proc_pid_status(5).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) tgid: u32,
    pub(super) is_kernel_thread: bool,
    /// The number that the thread itself knows, in its own pid namespace.
    pub(super) own_tid: u32,
}

/// Tells whether an error means that the thread or process has ended.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

pub(super) fn is_denied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// Lists the processes that /proc shows, by number.
pub(super) fn pids() -> io::Result<Vec<u32>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    numbers(&open("/proc", flags, Mode::empty())?)
}

fn numbers(dir: &OwnedFd) -> io::Result<Vec<u32>> {
    let mut numbers = dir::numbers(dir.as_fd())?;
    numbers.sort_unstable();
    Ok(numbers)
}

impl ProcDir {
    /// Finds the process that `id` is the number of, or of a thread of it.
    pub(super) fn open(id: u32) -> io::Result<ProcDir> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let at = |pid: u32| -> io::Result<ProcDir> {
            let dir = open(&*format!("/proc/{pid}"), flags, Mode::empty())?;
            Ok(ProcDir { dir, pid })
        };
        let found = at(id)?;
        match found.status("status")?.tgid {
            tgid if tgid == id => Ok(found),
            tgid => at(tgid),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Lists the threads there are.
    pub(super) fn tids(&self) -> io::Result<Vec<u32>> {
        let stat = || fstatat(&self.dir, "task", AtFlags::empty());
        task::list(|| self.list("task"), stat)
    }

    /// Lists what a thread has open.
    pub(super) fn fds(&self, tid: u32) -> io::Result<Vec<u32>> {
        self.list(&format!("task/{tid}/fd"))
    }

    /// The inode number of an open file, as the kernel remembers it; `None` where
    /// it does not say (before Linux 5.14).
    pub(super) fn inode_in_fdinfo(&self, tid: u32, fd: u32) -> io::Result<Option<u64>> {
        let info = self.read(&format!("task/{tid}/fdinfo/{fd}"))?;
        let inode = info.lines().find_map(|line| line.strip_prefix("ino:"));
        Ok(inode.and_then(|inode| inode.trim().parse().ok()))
    }

    /// Finds a file, following links, and does not open it.
    pub(super) fn locate(&self, path: &str) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        Ok(openat(&self.dir, path, flags, Mode::empty())?)
    }

    fn list(&self, path: &str) -> io::Result<Vec<u32>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        numbers(&openat(&self.dir, path, flags, Mode::empty())?)
    }

    pub(super) fn link(&self, path: &str) -> io::Result<OsString> {
        Ok(readlinkat(&self.dir, path)?)
    }

    /// The inode number of the network namespace that a link leads to.
    pub(super) fn netns_link(&self, path: &str) -> io::Result<u64> {
        let link = self.link(path)?;
        netns_inode(link.as_encoded_bytes())
            .ok_or_else(|| io::Error::other(format!("{} is no network namespace", link.display())))
    }

    /// Opens a file, following links.
    pub(super) fn file(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        Ok(File::from(openat(
            &self.dir,
            path.as_ref(),
            flags,
            Mode::empty(),
        )?))
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let mut bytes = Vec::with_capacity(64);
        self.file(path)?.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The name in `comm`: of the process, or with `task/TID/comm` of a thread.
    pub(super) fn name(&self, path: &str) -> io::Result<String> {
        let mut name = self.read(path)?;
        name.truncate(name.trim_end_matches('\n').len());
        Ok(name)
    }

    pub(super) fn status(&self, path: &str) -> io::Result<Status> {
        Ok(Status::parse(&self.read(path)?))
    }

    /// What the kernel says of a thread; `None` when it is already taking it down,
    /// which it does for a moment after a join has returned.
    pub(super) fn stat(&self, tid: u32) -> io::Result<Option<Stat>> {
        Ok(Stat::parse(&self.read(&format!("task/{tid}/stat"))?))
    }

    pub(super) fn is_exiting(&self, tid: u32) -> io::Result<bool> {
        Ok(self.stat(tid)?.is_none())
    }

    /// Reads what the process publishes of its threads. `by` is any thread that is
    /// alive: the main thread may have ended before the others.
    pub(super) fn published(&self, by: u32) -> io::Result<Published> {
        let pid = self.status("status")?.own_tid;
        let started = task::start_of(&self.read("stat")?).unwrap_or(0);
        let maps = self.read(&format!("task/{by}/maps"))?;
        let mem = || self.file(format!("task/{by}/mem"));
        Ok(Published::read(&maps, mem, pid, started))
    }
}

impl Status {
    fn parse(text: &str) -> Status {
        let mut status = Status::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            match key {
                "Tgid" => status.tgid = value.parse().unwrap_or(0),
                "Kthread" => status.is_kernel_thread = value == "1",
                "NSpid" => {
                    let innermost = value.split_ascii_whitespace().next_back();
                    status.own_tid = innermost.and_then(|tid| tid.parse().ok()).unwrap_or(0);
                }
                _ => {}
            }
        }
        status
    }
}

#[cfg(any(test, fuzzing))]
/// For `crate::fuzz`.
pub(super) fn fuzz(text: &str) {
    let status = Status::parse(text);
    let written = format!(
        "Tgid:\t{}\nNSpid:\t9\t{}\nKthread:\t{}\n",
        status.tgid,
        status.own_tid,
        u8::from(status.is_kernel_thread)
    );
    let again = Status::parse(&written);
    assert_eq!(
        (again.tgid, again.own_tid, again.is_kernel_thread),
        (status.tgid, status.own_tid, status.is_kernel_thread)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_says_what_is_needed() {
        let contained = "Name:\ta b\nTgid:\t77\nNSpid:\t78\t9\t4\nKthread:\t0\n";
        let expected = Status {
            tgid: 77,
            is_kernel_thread: false,
            own_tid: 4,
        };
        assert_eq!(Status::parse(contained), expected);
        assert!(Status::parse("Kthread:\t1\n").is_kernel_thread);
    }

    #[test]
    fn what_proc_says_about_this_process_is_found() {
        let pid = std::process::id();
        let here = ProcDir::open(pid).expect("/proc is mounted");
        let tids = here.tids().expect("our own");
        let tid = crate::sys::thread::tid();
        assert!(tids.contains(&pid) && tids.contains(&tid));
        // A thread's number leads to its process.
        assert_eq!(ProcDir::open(tid).expect("our own").pid(), pid);
        assert!(!here.is_exiting(tid).expect("alive"));
        assert!(!here.status("status").expect("our own").is_kernel_thread);
        assert!(here.netns_link("ns/net").is_ok() && here.netns_link("ns/mnt").is_err());
    }
}
