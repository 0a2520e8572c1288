//! A user namespace of our own, for an ordinary user to be root in.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

use crate::failure::Failure;

/// To make and enter network namespaces.
pub(crate) const CAP_SYS_ADMIN: u32 = 21;
/// To read what other users' processes are and have.
pub(crate) const CAP_SYS_PTRACE: u32 = 19;

/// Tells whether this process has a capability.
pub(crate) fn has_capability(number: u32) -> Result<bool, Failure> {
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|error| Failure::io("cannot read /proc/self/status", error))?;
    let set = (status.lines())
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    Ok(set.is_some_and(|set| set & (1 << number) != 0))
}

/// Moves this process into a new user namespace, in which it has every
/// capability; the user and the group appear as root there.
///
/// Only before any other thread exists: see unshare(2).
pub(crate) fn enter_new() -> Result<(), Failure> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| {
        let failure = Failure::io("cannot enter a user namespace", errno);
        match errno {
            Errno::EPERM => failure.hint(
                "run this as root; or allow them with sysctl kernel.unprivileged_userns_clone=1, \
                 and in a container with its seccomp profile",
            ),
            Errno::ENOSPC | Errno::EUSERS => failure.hint(
                "run this as root, or allow more of them with sysctl user.max_user_namespaces=10000",
            ),
            Errno::EINVAL => failure.hint("run this as root; a process with threads cannot"),
            _ => failure.hint("run this as root"),
        }
    })?;
    // Needed before an ordinary user may write the map of groups.
    match fs::write("/proc/self/setgroups", "deny") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(not_mapped(Path::new("/proc/self/setgroups"), error));
        }
        _ => {}
    }
    for (file, id) in [
        ("/proc/self/uid_map", uid.as_raw()),
        ("/proc/self/gid_map", gid.as_raw()),
    ] {
        fs::write(file, format!("0 {id} 1\n"))
            .map_err(|error| not_mapped(Path::new(file), error))?;
    }
    Ok(())
}

/// Ubuntu's AppArmor lets the namespace be entered, and takes away what one
/// would enter it for.
fn not_mapped(file: &Path, error: io::Error) -> Failure {
    Failure::io(format!("cannot write {}", file.display()), error).hint(
        "run this as root, or let ordinary users have capabilities in their user namespaces: \
         sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    )
}
