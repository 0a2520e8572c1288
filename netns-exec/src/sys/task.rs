//! The threads of this process, as `/proc/self/task` shows them.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use parking_lot::Mutex;

use super::dir;

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
        NsLink::read_at(dir.as_raw_fd(), path)
    }

    #[inline]
    fn read_at(dir: RawFd, path: &CStr) -> io::Result<NsLink> {
        let mut text = [0; 32];
        // Not nix's: that one allocates, and this is done after every job.
        // SAFETY: `path` ends with a nul, and the kernel writes at most
        // `text.len()` bytes.
        let length =
            unsafe { libc::readlinkat(dir, path.as_ptr(), text.as_mut_ptr().cast(), text.len()) };
        let length = Errno::result(length)?.unsigned_abs();
        Ok(NsLink { text, length })
    }
}

impl fmt::Debug for NsLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.text[..self.length]))
    }
}

/// Opens the folder with the tables of the network namespace that a thread of this
/// process is in. It is that thread's for good: when the thread has ended there is
/// nothing in it, whichever thread has the number then.
pub(crate) fn net_folder(tid: u32) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/task/{tid}/net");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(&*path, flags, Mode::empty())?)
}

/// The namespaces of a thread beside its network namespace.
pub(crate) const OTHER_NAMESPACES: [&CStr; 7] = [
    c"/proc/thread-self/ns/mnt",
    c"/proc/thread-self/ns/uts",
    c"/proc/thread-self/ns/ipc",
    c"/proc/thread-self/ns/cgroup",
    c"/proc/thread-self/ns/user",
    c"/proc/thread-self/ns/pid_for_children",
    c"/proc/thread-self/ns/time_for_children",
];

/// The calling thread's namespace at one of [`OTHER_NAMESPACES`]; `None` where this
/// kernel has none of the kind, or `/proc` does not show it.
pub(crate) fn other_namespace(path: &CStr) -> Option<NsLink> {
    NsLink::read_at(libc::AT_FDCWD, path).ok()
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

/// Tells whether two threads have one table of descriptors: kcmp(2), which takes
/// the privilege to look at both, and which not every kernel and filter allows.
pub(crate) fn share_files(one: u32, other: u32) -> io::Result<bool> {
    // include/uapi/linux/kcmp.h
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: of this type the call takes five integers and touches no memory.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) };
    Ok(Errno::result(order)? == 0)
}

/// Lists threads by reading a `/proc/PID/task` again and again with `read`, until
/// that can be trusted. A thread that was there all the time is in the list; one
/// that came or went meanwhile may be.
///
/// The kernel finds its way through this folder by counting. A thread that ends
/// while the folder is read shifts those behind it, and any of them may be passed
/// over. So one reading proves nothing unless the next says the same, and as many
/// as `stat` of the folder does.
pub(crate) fn list(
    mut read: impl FnMut() -> io::Result<Vec<u32>>,
    stat: impl Fn() -> nix::Result<FileStat>,
) -> io::Result<Vec<u32>> {
    /// Where threads come and go all the time no two readings agree. Whatever
    /// was passed over in all of so many has not been there for long.
    const READINGS: usize = 16;

    let mut all = BTreeSet::new();
    let mut last = Vec::new();
    for _ in 0..READINGS {
        let listed = read()?;
        all.extend(listed.iter().copied());
        if listed == last && folders_in(&stat()?) == listed.len() as u64 {
            break;
        }
        last = listed;
    }
    Ok(all.into_iter().collect())
}

/// How many folders are in the one that `stat` is of: its links are its own two
/// and one for each of them.
fn folders_in(stat: &FileStat) -> u64 {
    // The width of the field differs between targets.
    #[allow(clippy::unnecessary_cast)]
    let links = stat.st_nlink as u64;
    links.saturating_sub(2)
}

/// What the kernel says of a thread that is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// When it started, in clock ticks.
    pub(crate) started: u64,
    /// It is one that the kernel made for a thread's io_uring, does the waiting of
    /// its requests, runs no code of the process and ends with that thread.
    pub(crate) is_io_worker: bool,
}

impl Stat {
    /// `None` when the thread is on its way out, or the text says nothing.
    pub(crate) fn parse(text: &str) -> Option<Stat> {
        // See linux/sched.h.
        const PF_EXITING: u32 = 0x4;
        const PF_IO_WORKER: u32 = 0x10;

        // The name, in parentheses, may hold anything; behind it the flags are
        // the seventh field and the start the twentieth, see proc_pid_stat(5).
        let (head, tail) = text.rsplit_once(')')?;
        let mut fields = tail.split_ascii_whitespace();
        let flags: u32 = fields.nth(6)?.parse().ok()?;
        let started = fields.nth(12)?.parse().ok()?;
        // The thread that polls a ring's queue (`iou-sqp-`) may have the flag too. It
        // does act in its namespace, and lives as long as the ring.
        let is_io_worker = flags & PF_IO_WORKER != 0 && head.contains("(iou-wrk-");
        (flags & PF_EXITING == 0).then_some(Stat {
            started,
            is_io_worker,
        })
    }
}

/// When a thread started, in clock ticks, by its proc_pid_stat(5): also of a main
/// thread that has ended before the others.
pub(crate) fn start_of(stat: &str) -> Option<u64> {
    let (_, tail) = stat.rsplit_once(')')?;
    tail.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn stat_of(read: io::Result<String>) -> io::Result<Option<Stat>> {
    match read {
        Ok(text) => Ok(Stat::parse(&text)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Ok(None),
            _ => Err(error),
        },
    }
}

/// As [`TaskDir::alive_since`], for those who look once.
pub(crate) fn alive_since(tid: u32) -> io::Result<Option<u64>> {
    let read = File::open(format!("/proc/self/task/{tid}/stat")).and_then(read_line);
    Ok(stat_of(read)?.map(|stat| stat.started))
}

/// The directory of the process's threads, kept open, so that looking into it
/// needs no descriptor: a job may have used them all up.
pub(crate) struct TaskDir {
    dir: OwnedFd,
    /// Held while it is read, which moves the position.
    reading: Mutex<()>,
}

impl TaskDir {
    pub(crate) fn open() -> io::Result<TaskDir> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = open("/proc/self/task", flags, Mode::empty())?;
        Ok(TaskDir {
            dir,
            reading: Mutex::new(()),
        })
    }

    /// Lists the threads there are, see [`list`].
    pub(crate) fn tids(&self) -> io::Result<Vec<u32>> {
        let read = || {
            let _reading = self.reading.lock();
            dir::numbers(self.dir.as_fd())
        };
        list(read, || fstat(&self.dir))
    }

    /// The namespace that `tid` is in; `None` when the thread is gone, or so
    /// far on its way out that it has none.
    pub(crate) fn ns_link(&self, tid: u32) -> io::Result<Option<NsLink>> {
        let path = format!("{tid}/ns/net\0");
        let path = CStr::from_bytes_with_nul(path.as_bytes()).expect("ends with its only nul");
        let mut refused = false;
        loop {
            let error = match NsLink::read(&self.dir, path) {
                Ok(link) => return Ok(Some(link)),
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ESRCH) => return Ok(None),
                // What the kernel also says of a thread that ended between the
                // look-up and the reading. Its number may have a new owner, so
                // being refused counts only the second time.
                Some(libc::EACCES) if self.alive_since(tid)?.is_none() => return Ok(None),
                Some(libc::EACCES) if !refused => refused = true,
                _ => return Err(error),
            }
        }
    }

    /// Tells when the thread started, in the kernel's clock ticks, which tells it
    /// from earlier owners of its number. `None` when it has ended, or the kernel
    /// is already taking it down, as it does for a moment after a join has
    /// returned.
    pub(crate) fn alive_since(&self, tid: u32) -> io::Result<Option<u64>> {
        Ok(self.stat(tid)?.map(|stat| stat.started))
    }

    /// The same, with what else there is to know of the thread at one look.
    pub(crate) fn stat(&self, tid: u32) -> io::Result<Option<Stat>> {
        stat_of(self.read(&format!("{tid}/stat")))
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
        read_line(File::from(file))
    }
}

/// Reads one of the short files there: at once, since a worker would keep what is allocated
/// meanwhile.
fn read_line(mut file: File) -> io::Result<String> {
    let mut bytes = [0; 1024];
    let length = file.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// What names the calling thread's network namespace; `None` without `/proc`.
#[cfg(debug_assertions)]
pub(crate) fn netns_of_this_thread() -> Option<NsLink> {
    NsLink::read_at(libc::AT_FDCWD, c"/proc/thread-self/ns/net").ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;
    use crate::sys::thread::tid;

    #[test]
    fn resident_thread_is_listed_while_others_come_and_go() {
        let tasks = TaskDir::open().expect("procfs");
        let (over, born) = (AtomicBool::new(false), Barrier::new(2));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        thread::spawn(|| ()).join().expect("no panic");
                    }
                });
            }
            for _ in 0..2_000 {
                // Born last: whatever goes is before it in the kernel's list.
                let resident = scope.spawn(|| {
                    born.wait();
                    born.wait();
                    tid()
                });
                born.wait();
                let listed = tasks.tids();
                born.wait();
                let resident = resident.join().expect("no panic");
                if !listed
                    .as_ref()
                    .is_ok_and(|listed| listed.contains(&resident))
                {
                    over.store(true, Ordering::Relaxed);
                    panic!("{resident} is not in {listed:?}");
                }
            }
            over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn kernels_own_io_worker_is_known_by_its_flag_and_its_name() {
        let stat = |name: &str, flags: u32| {
            let text = format!("77 ({name}) S 1 1 1 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 3 0 4711 0");
            Stat::parse(&text)
        };
        let of = |is_io_worker| {
            Some(Stat {
                started: 4711,
                is_io_worker,
            })
        };
        assert_eq!(stat("iou-wrk-12", 0x50), of(true));
        // Any thread may be called so, and the ring's poller has the flag on some.
        assert_eq!(stat("iou-wrk-12", 0x40), of(false));
        assert_eq!(stat("iou-sqp-12", 0x50), of(false));
        assert_eq!(stat("a) S 1 1", 0x40), of(false));
        assert_eq!(stat("ended", 0x44), None);
        assert_eq!(Stat::parse("77 (cut"), None);
    }

    #[test]
    fn thread_that_has_ended_is_nowhere_and_was_not_refused() {
        let tasks = TaskDir::open().expect("procfs");
        let (tid, probe) = thread::spawn(|| (tid(), NsProbe::of_this_thread()))
            .join()
            .expect("no panic");
        crate::sys::thread::wait_gone(tid);
        assert!(tasks.ns_link(tid).expect("no error").is_none());
        assert!(tasks.alive_since(tid).expect("no error").is_none());
        // Where it was found before it ended, the kernel speaks of privilege.
        let error = probe.expect("procfs").read().expect_err("it has ended");
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}
