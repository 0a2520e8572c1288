//! Why the kernel said no, and what helps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{Error, Kind};
use crate::sys;

pub(super) fn is_permission(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// Why a descriptor that was a namespace's is not.
pub(crate) const NOT_THE_SAME_FILE: &str = "the handle's file descriptor means another file to \
     the thread that enters: the descriptor was closed behind the handle's back, or the handle was \
     made by a thread with a descriptor table of its own (unshare(2), close_range(2))";

/// The error where it is `/proc` that is missing, whatever file was looked for in it.
///
/// Without an errno: `ENOENT` would say that what the caller named is not there.
pub(super) fn no_proc(attempt: &str, cause: &io::Error) -> Option<Error> {
    let missing = cause.raw_os_error() == Some(libc::ENOENT) && !sys::netns::is_proc_there();
    missing.then(|| {
        let attempt = format!("{attempt}: /proc is not mounted, or is of another pid namespace");
        Error::new(Kind::Kernel, attempt).hint("mount it: mount -t proc proc /proc")
    })
}

/// Says why setns(2) refused the calling thread, and what helps.
pub(super) fn denied(netns: BorrowedFd<'_>) -> String {
    let foreign = foreign_owner(netns);
    match (sys::caps::has_sys_admin(), foreign) {
        (Ok(true), Some(foreign)) => format!(
            "this process has CAP_SYS_ADMIN, but not over this namespace: {foreign}; \
             enter that one before the first thread starts"
        ),
        (Ok(true), None) => "this process has CAP_SYS_ADMIN over this namespace, so a security \
             module or a seccomp filter refuses it"
            .to_owned(),
        (_, Some(foreign)) => {
            let cure = cure("entering network namespaces needs CAP_SYS_ADMIN");
            format!("{cure}; {foreign}")
        }
        (_, None) => cure("entering network namespaces needs CAP_SYS_ADMIN"),
    }
}

/// Says why a new network namespace was refused, and what helps.
pub(super) fn creation_denied() -> String {
    match sys::caps::has_sys_admin() {
        Ok(true) => "this process has CAP_SYS_ADMIN, so a security module or a seccomp filter \
             refuses it"
            .to_owned(),
        _ => cure("creating network namespaces needs CAP_SYS_ADMIN"),
    }
}

/// Says why a name was refused, whose file is in `/run/netns` and whose mount in the
/// mount namespace, and what helps. `doing` reads "creating network namespaces".
pub(super) fn name_denied(doing: &str) -> String {
    if !matches!(sys::caps::has_sys_admin(), Ok(true)) {
        return cure(&format!("{doing} needs CAP_SYS_ADMIN"));
    }
    let mounts = sys::netns::mount_ns_of_this_thread().ok();
    match mounts.and_then(|mounts| foreign_owner(mounts.as_fd())) {
        Some(foreign) => format!(
            "this process has CAP_SYS_ADMIN, but not over its mount namespace: {foreign}; \
             start it in a mount namespace of its own (unshare --mount)"
        ),
        None => "this process has CAP_SYS_ADMIN, so what refuses it is who owns /run, that it is \
             read-only, or a security module"
            .to_owned(),
    }
}

/// Says which user namespace owns another namespace, and which one this process is
/// in, where these are two. `None` also where that cannot be told.
pub(super) fn foreign_owner(namespace: BorrowedFd<'_>) -> Option<String> {
    let own = sys::netns::user_ns_of_this_thread().ok()?;
    match sys::netns::owner(namespace) {
        Ok(owner) if owner == own => None,
        Ok(owner) => Some(format!(
            "it belongs to another user namespace, user:[{owner}], and this process is in user:[{own}]"
        )),
        // ioctl_nsfs(2): the owner is no descendant of the caller's.
        Err(cause) if cause.raw_os_error() == Some(libc::EPERM) => Some(format!(
            "it belongs to another user namespace, out of sight from user:[{own}], \
             which this process is in"
        )),
        Err(_) => None,
    }
}

pub(super) fn cure(need: &str) -> String {
    format!(
        "{need}: run as root, give the program the capability (setcap cap_sys_admin+ep), \
         or start it in a user namespace of its own (unshare --user --map-root-user --net)"
    )
}
