//! Mounting, as far as named namespaces need it: see mount(2) and umount2(2).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Lets `target` show the same file or tree as `source`.
pub(crate) fn bind(source: &Path, target: &Path) -> io::Result<()> {
    let none = None::<&str>;
    mount(
        Some(source),
        target,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
    .map_err(io::Error::from)
}

/// Lets mounts below `target` appear in, and disappear from, every mount
/// namespace that has it. `EINVAL` when nothing is mounted there.
pub(crate) fn make_shared(target: &Path) -> io::Result<()> {
    let none = None::<&str>;
    mount(
        none,
        target,
        none,
        MsFlags::MS_SHARED | MsFlags::MS_REC,
        none,
    )
    .map_err(io::Error::from)
}

/// Takes the topmost mount off `target`, even while files of it are open.
pub(crate) fn detach(target: &Path) -> io::Result<()> {
    umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(io::Error::from)
}

/// Locks an open file or folder, as iproute2 does before it changes mounts: flock(2). It
/// is unlocked when its last copy is closed, which cannot fail. (nix's lock unlocks in
/// its drop, and panics where the kernel refuses that.)
pub(crate) fn lock(file: BorrowedFd<'_>) -> io::Result<()> {
    loop {
        // SAFETY: the call takes two integers.
        match Errno::result(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }) {
            Err(Errno::EINTR) => {}
            result => return Ok(result.map(drop)?),
        }
    }
}
