//! What of the file system shows a network namespace, shown as another one has it: the
//! mounts of a view, see mount_namespaces(7).
//!
//! [`Plan::new`] reads and allocates; [`Plan::apply`] makes system calls only, so that
//! a child can do it between fork(2) and execve(2).
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, stat, umask};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::mount_table::unescape;

/// A file or folder that is to be seen in the place of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
}

/// The steps that give a thread its view, in order.
#[derive(Debug)]
pub(crate) struct Plan {
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    /// A mount namespace of its own, and with that a working directory.
    Part,
    /// What is mounted here is seen nowhere else; what goes elsewhere goes here too.
    Slave,
    Sysfs {
        flags: MsFlags,
    },
    /// What was mounted on the old /sys.
    Keep {
        below: CString,
        path: CString,
    },
    Show {
        source: CString,
        target: CString,
        /// Whether a symbolic link at the target is followed: what takes the place of
        /// a link is a file, and not a folder.
        follow: bool,
    },
    /// `/proc/net` is that of the process's main thread.
    OwnProcNet,
}

/// A step that the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) step: usize,
    pub(crate) errno: Errno,
}

const SYS: &CStr = c"/sys";

/// How often a step is tried again where there is no room, two milliseconds later.
const PATIENCE: u32 = 20;

impl Plan {
    /// Plans the view of the calling thread or of its children: `files` in their places, and `/proc/net`
    /// of its own for a thread that is not its process's main thread.
    pub(crate) fn new(files: &[Shown], is_thread: bool) -> io::Result<Plan> {
        let mut steps = vec![Step::Part, Step::Slave];
        steps.push(Step::Sysfs {
            flags: flags_of_sys(),
        });
        let mountinfo = fs::read("/proc/thread-self/mountinfo")?;
        for path in mounted_on_sys(&mountinfo) {
            let below = path[SYS.count_bytes() + 1..].to_vec();
            steps.push(Step::Keep {
                below: CString::new(below)?,
                path: CString::new(path)?,
            });
        }
        for Shown { source, target } in files {
            steps.push(Step::Show {
                source: c_path(source)?,
                target: c_path(target)?,
                follow: source.is_dir(),
            });
        }
        if is_thread {
            steps.push(Step::OwnProcNet);
        }
        Ok(Plan { steps })
    }

    /// Gives the calling thread the view. It must have entered its network namespace,
    /// and must have been made for it: there is no way back.
    ///
    /// Async-signal-safe.
    pub(crate) fn apply(&self) -> Result<(), Refusal> {
        let mut old_sys = None;
        for (step, what) in self.steps.iter().enumerate() {
            let mut done = what.apply(&mut old_sys);
            // The kernel counts a mount namespace for a while after its last thread has
            // gone, or what was mounted from it.
            for _ in 0..PATIENCE {
                if done != Err(Errno::ENOSPC) {
                    break;
                }
                pause();
                done = what.apply(&mut old_sys);
            }
            done.map_err(|errno| Refusal { step, errno })?;
        }
        Ok(())
    }

    /// What a step was to do, after "cannot"; `None` when there is no such step.
    pub(crate) fn describe(&self, step: usize) -> Option<String> {
        self.steps.get(step).map(Step::to_string)
    }

    /// Whether a step is about /sys.
    pub(crate) fn is_sysfs(&self, step: usize) -> bool {
        matches!(self.steps.get(step), Some(Step::Sysfs { .. }))
    }
}

/// Where a thread that has these for itself was, and how it made files.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    folder: (libc::dev_t, libc::ino_t),
    umask: Mode,
}

impl Place {
    /// To be called by a thread that shares neither with another one: a umask can be
    /// read by setting it alone.
    pub(crate) fn of_this_thread() -> io::Result<Place> {
        let folder = stat(c".")?;
        let mask = umask(Mode::empty());
        umask(mask);
        Ok(Place {
            folder: (folder.st_dev, folder.st_ino),
            umask: mask,
        })
    }
}

impl Step {
    /// `old_sys` is where the mounts are that are to be kept.
    #[expect(clippy::disallowed_methods, reason = "of a thread made for this")]
    fn apply(&self, old_sys: &mut Option<OwnedFd>) -> Result<(), Errno> {
        let none = None::<&CStr>;
        match self {
            Step::Part => unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS),
            Step::Slave => mount(none, c"/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none),
            Step::Sysfs { flags } => {
                let old = openat(
                    AT_FDCWD,
                    SYS,
                    OFlag::O_PATH | OFlag::O_CLOEXEC,
                    Mode::empty(),
                )?;
                match mount(Some(c"sysfs"), SYS, Some(c"sysfs"), *flags, none) {
                    Ok(()) => *old_sys = Some(old),
                    // It is there already: that of this very namespace.
                    Err(Errno::EBUSY) => {}
                    Err(errno) => return Err(errno),
                }
                Ok(())
            }
            Step::Keep { below, path } => match old_sys {
                Some(old) => match show(old.as_raw_fd(), below, path, false) {
                    // It has gone meanwhile, or the namespace has no place for it.
                    Err(Errno::ENOENT) => Ok(()),
                    result => result,
                },
                None => Ok(()),
            },
            Step::Show {
                source,
                target,
                follow,
            } => show(libc::AT_FDCWD, source, target, *follow),
            Step::OwnProcNet => show(
                libc::AT_FDCWD,
                c"/proc/thread-self/net",
                c"/proc/self/net",
                false,
            ),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Part => f.write_str("make a mount namespace for it"),
            Step::Slave => f.write_str("part its mounts from those of the process"),
            Step::Sysfs { .. } => f.write_str("mount sysfs on /sys"),
            Step::Keep { path, .. } => write!(f, "keep {}", path.to_string_lossy()),
            Step::Show { source, target, .. } => write!(
                f,
                "show {} as {}",
                source.to_string_lossy(),
                target.to_string_lossy()
            ),
            Step::OwnProcNet => f.write_str("show /proc/thread-self/net as /proc/net"),
        }
    }
}

/// Sleeps for two milliseconds, and is async-signal-safe.
fn pause() {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 2_000_000,
    };
    // SAFETY: the kernel reads one struct, which lives longer than the call.
    unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
}

/// Mounts the tree at `source`, as it is under `dir`, on `target`: open_tree(2) and
/// move_mount(2), Linux 5.2. These, unlike mount(2), can mount on a symbolic link.
fn show(dir: libc::c_int, source: &CStr, target: &CStr, follow: bool) -> Result<(), Errno> {
    // linux/mount.h
    const OPEN_TREE_CLONE: libc::c_int = 1;
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x04;
    const MOVE_MOUNT_T_SYMLINKS: libc::c_uint = 0x10;
    // The same numbers on every architecture.
    const SYS_OPEN_TREE: libc::c_long = 428;
    const SYS_MOVE_MOUNT: libc::c_long = 429;

    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_RECURSIVE;
    // SAFETY: the kernel reads a string that lives longer than the call.
    let fd = unsafe { libc::syscall(SYS_OPEN_TREE, dir, source.as_ptr(), flags) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel just made this descriptor, so this is its only owner.
    let tree = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    let mut flags = MOVE_MOUNT_F_EMPTY_PATH;
    if follow {
        flags |= MOVE_MOUNT_T_SYMLINKS;
    }
    // SAFETY: the kernel reads two strings that live longer than the call.
    let rc = unsafe {
        libc::syscall(
            SYS_MOVE_MOUNT,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            flags,
        )
    };
    Errno::result(rc).map(drop)
}

/// A new sysfs may allow no more than the one that is there: in a user namespace the
/// kernel insists (`EPERM`), also on how times are kept, and elsewhere a container's
/// runtime has meant it.
fn flags_of_sys() -> MsFlags {
    let there = statvfs(SYS).map_or(FsFlags::empty(), |sys| sys.flags());
    let kept = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
    ];
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    (kept.into_iter()).fold(flags, |flags, (is, kept)| match there.contains(is) {
        true => flags | kept,
        false => flags,
    })
}

/// The paths of the mounts that lie directly on the uppermost one at /sys.
fn mounted_on_sys(mountinfo: &[u8]) -> Vec<Vec<u8>> {
    let mounts: Vec<(&[u8], &[u8], Vec<u8>)> = (mountinfo.split(|&byte| byte == b'\n'))
        .filter_map(|line| {
            // Mount id, parent id, device, root, mount point, ...
            let mut fields = line.split(|&byte| byte == b' ');
            let (id, parent) = (fields.next()?, fields.next()?);
            Some((id, parent, unescape(fields.nth(2)?)))
        })
        .collect();
    let at_sys = |path: &[u8]| path == SYS.to_bytes();
    let covered = |id: &[u8]| {
        let mut above = mounts.iter();
        above.any(|(_, parent, path)| *parent == id && at_sys(path))
    };
    let uppermost = (mounts.iter()).find(|(id, _, path)| at_sys(path) && !covered(id));
    let Some((sys, ..)) = uppermost else {
        return Vec::new();
    };
    let mut found: Vec<Vec<u8>> = (mounts.iter())
        .filter(|(_, parent, path)| parent == sys && path.starts_with(b"/sys/"))
        .map(|(_, _, path)| path.clone())
        .collect();
    found.sort();
    found.dedup();
    found
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(mountinfo: &str) -> Vec<String> {
        let found = mounted_on_sys(mountinfo.as_bytes()).into_iter();
        found
            .map(|path| String::from_utf8(path).expect("ASCII"))
            .collect()
    }

    #[test]
    fn what_lies_directly_on_sys_is_found() {
        let mountinfo = "\
22 27 0:21 / /proc rw - proc proc rw\n\
23 27 0:22 / /sys rw,relatime shared:7 - sysfs sysfs rw\n\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw\n\
33 23 0:30 / /sys/a\\040b rw - tmpfs tmpfs rw\n\
34 27 0:31 / /system rw - tmpfs tmpfs rw\n";
        assert_eq!(kept(mountinfo), ["/sys/a b", "/sys/fs/cgroup"]);
    }

    #[test]
    fn of_two_at_sys_the_uppermost_counts() {
        let mountinfo = "\
23 27 0:22 / /sys rw - sysfs sysfs rw\n\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
40 23 0:40 / /sys rw - sysfs sysfs rw\n\
41 40 0:41 / /sys/fs/bpf rw - bpf bpf rw\n";
        assert_eq!(kept(mountinfo), ["/sys/fs/bpf"]);
        assert!(kept("").is_empty());
    }
}
