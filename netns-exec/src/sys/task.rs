//! The threads of this process, as `/proc/self/task` shows them.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use parking_lot::Mutex;

/// What a link such as `/proc/thread-self/ns/net` says: `net:[4026531840]`.
///
/// The number is the namespace's inode, so two that are equal mean the same
/// namespace only while something keeps that namespace alive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct NsLink {
    text: [u8; 32],
    length: usize,
}

impl NsLink {
    #[inline]
    fn read(dir: &OwnedFd, path: &CStr) -> io::Result<NsLink> {
        let mut text = [0; 32];
        // Not nix's: that one allocates, and this is done after every job.
        // SAFETY: `path` ends with a nul, and the kernel writes at most
        // `text.len()` bytes.
        let length = unsafe {
            libc::readlinkat(
                dir.as_raw_fd(),
                path.as_ptr(),
                text.as_mut_ptr().cast(),
                text.len(),
            )
        };
        let length = Errno::result(length)?.unsigned_abs();
        Ok(NsLink { text, length })
    }
}

/// A look at the network namespace of one thread that stays cheap: the link is
/// found once, and read anew each time.
pub(crate) struct NsProbe(OwnedFd);

impl NsProbe {
    /// A probe of the calling thread.
    pub(crate) fn of_this_thread() -> io::Result<NsProbe> {
        // The link itself, not what it leads to: that would tell of the
        // namespace the thread is in now for ever.
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(NsProbe(open(
            "/proc/thread-self/ns/net",
            flags,
            Mode::empty(),
        )?))
    }

    #[inline]
    pub(crate) fn read(&self) -> io::Result<NsLink> {
        NsLink::read(&self.0, c"")
    }
}

/// The directory of the process's threads, kept open, so that looking into it
/// needs no descriptor: a job may have used them all up.
pub(crate) struct TaskDir {
    /// Reading moves the position, which is shared.
    entries: Mutex<Dir>,
    dir: OwnedFd,
}

impl TaskDir {
    pub(crate) fn open() -> io::Result<TaskDir> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = open("/proc/self/task", flags, Mode::empty())?;
        let entries = Dir::openat(&dir, ".", flags, Mode::empty())?;
        Ok(TaskDir {
            entries: Mutex::new(entries),
            dir,
        })
    }

    /// Lists the threads there are, without those that come or go meanwhile.
    pub(crate) fn tids(&self) -> io::Result<Vec<u32>> {
        let mut tids = Vec::new();
        // The iterator rewinds when it is dropped.
        for entry in self.entries.lock().iter() {
            let name = entry?;
            let name = name.file_name().to_bytes();
            if let Some(tid) = std::str::from_utf8(name).ok().and_then(|n| n.parse().ok()) {
                tids.push(tid);
            }
        }
        Ok(tids)
    }

    /// The namespace that `tid` is in; `None` when the thread is gone, or so
    /// far on its way out that it has none.
    pub(crate) fn ns_link(&self, tid: u32) -> io::Result<Option<NsLink>> {
        let path = format!("{tid}/ns/net\0");
        let path = CStr::from_bytes_with_nul(path.as_bytes()).expect("ends with its only nul");
        match NsLink::read(&self.dir, path) {
            Ok(link) => Ok(Some(link)),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::ESRCH) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Tells when the thread started, in the kernel's clock ticks, which tells it
    /// from earlier owners of its number. `None` when it has ended, or the kernel
    /// is already taking it down, as it does for a moment after a join has
    /// returned.
    pub(crate) fn alive_since(&self, tid: u32) -> io::Result<Option<u64>> {
        /// `PF_EXITING`, see linux/sched.h.
        const EXITING: u32 = 0x4;

        let stat = match self.read(&format!("{tid}/stat")) {
            Ok(stat) => stat,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::ESRCH) => return Ok(None),
                _ => return Err(error),
            },
        };
        // The name, in parentheses, may hold anything; behind it the flags are
        // the seventh field and the start the twentieth, see proc_pid_stat(5).
        let mut fields = (stat.rsplit(')').next().unwrap_or_default()).split_ascii_whitespace();
        let flags = fields.nth(6).and_then(|flags| flags.parse::<u32>().ok());
        let started = fields.nth(12).and_then(|started| started.parse().ok());
        match (flags, started) {
            (Some(flags), started) if flags & EXITING == 0 => Ok(started),
            _ => Ok(None),
        }
    }

    /// The thread's name, as far as it can be told.
    pub(crate) fn name(&self, tid: u32) -> String {
        match self.read(&format!("{tid}/comm")) {
            Ok(name) => name.trim_end_matches('\n').to_owned(),
            Err(_) => "?".to_owned(),
        }
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(self.dir.as_fd(), path, flags, Mode::empty())?;
        let mut bytes = Vec::new();
        File::from(file).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
