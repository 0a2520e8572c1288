//! Reading /proc, about processes that may end at any moment.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, fstatat};

use crate::sys::caps;
use crate::sys::mount_table::netns_inode;
use crate::sys::task;
use crate::sys::thread::FAULTS;

/// A process's folder in /proc, kept open: it stays that of this process, when
/// its number has become another's.
pub(super) struct ProcDir {
    dir: OwnedFd,
    pid: u32,
}

/// What tells workers and kernel threads from others: see proc_pid_status(5).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) tgid: u32,
    pub(super) is_kernel_thread: bool,
    pub(super) has_sys_admin: bool,
    pub(super) seccomp_filters: u32,
    pub(super) blocks_signals: bool,
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
    numbers(Dir::open("/proc", flags, Mode::empty())?)
}

fn numbers(mut dir: Dir) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = std::str::from_utf8(entry.file_name().to_bytes());
        numbers.extend(name.ok().and_then(|name| name.parse::<u32>().ok()));
    }
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
        numbers(Dir::openat(&self.dir, path, flags, Mode::empty())?)
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

    /// Tells whether the kernel is already taking a thread down, which it does
    /// for a moment after a join has returned.
    pub(super) fn is_exiting(&self, tid: u32) -> io::Result<bool> {
        const PF_EXITING: u32 = 0x4;
        let stat = self.read(&format!("task/{tid}/stat"))?;
        // The name, in parentheses, may hold anything; behind it the flags are
        // the seventh field, see proc_pid_stat(5).
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let flags = fields.split_ascii_whitespace().nth(6);
        let flags = flags.and_then(|flags| flags.parse::<u32>().ok());
        Ok(flags.is_some_and(|flags| flags & PF_EXITING != 0))
    }
}

impl Status {
    fn parse(text: &str) -> Status {
        let hex = |value: &str| u64::from_str_radix(value, 16).unwrap_or(0);
        let mut status = Status::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            match key {
                "Tgid" => status.tgid = value.parse().unwrap_or(0),
                "Kthread" => status.is_kernel_thread = value == "1",
                // With it in the permitted set only, it can be had back.
                "CapPrm" | "CapEff" => status.has_sys_admin |= hex(value) & caps::SYS_ADMIN != 0,
                "Seccomp_filters" => status.seccomp_filters = value.parse().unwrap_or(0),
                "SigBlk" => status.blocks_signals = hex(value) & ORDINARY == ORDINARY,
                _ => {}
            }
        }
        status
    }
}

/// The classic signals that workers block: not SIGKILL and SIGSTOP, which cannot
/// be, nor what a fault raises.
const ORDINARY: u64 = {
    let mut mask = 0x7fff_ffff & !bit(libc::SIGKILL) & !bit(libc::SIGSTOP);
    let mut at = 0;
    while at < FAULTS.len() {
        mask &= !bit(FAULTS[at] as libc::c_int);
        at += 1;
    }
    mask
};

const fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_says_what_a_sealed_worker_is_known_by() {
        let worker = "Name:\tns:a:b/0\nTgid:\t77\nKthread:\t0\nSigBlk:\tfffffffe3ffbfa27\n\
            CapPrm:\t000001fffedfffff\nCapEff:\t000001fffedfffff\nSeccomp_filters:\t1\n";
        let expected = Status {
            tgid: 77,
            is_kernel_thread: false,
            has_sys_admin: false,
            seccomp_filters: 1,
            blocks_signals: true,
        };
        assert_eq!(Status::parse(worker), expected);

        let ordinary = "SigBlk:\t0000000000000000\nCapPrm:\t000001ffffffffff\nCapEff:\t0\n";
        let ordinary = Status::parse(ordinary);
        assert!(ordinary.has_sys_admin && !ordinary.blocks_signals);
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
