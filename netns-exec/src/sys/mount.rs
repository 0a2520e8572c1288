//! Mounting, as far as named namespaces need it: see mount(2) and umount2(2).

use std::io;
use std::path::Path;

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
