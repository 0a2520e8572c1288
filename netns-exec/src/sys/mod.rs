//! Every raw system call, one file per kernel area. Functions here return
//! [`std::io::Result`]; what was attempted on whose behalf is said above.

use nix::unistd::{SysconfVar, sysconf};

pub(crate) mod apart;
#[cfg(feature = "births-at-home")]
pub(crate) mod births;
pub(crate) mod bpf;
pub(crate) mod caps;
pub(crate) mod dir;
pub(crate) mod fork;
pub(crate) mod futex;
pub(crate) mod inherit;
pub(crate) mod mount;
pub(crate) mod mount_table;
pub(crate) mod mount_watch;
pub(crate) mod netns;
pub(crate) mod perf;
pub(crate) mod pidfd;
pub(crate) mod process;
pub(crate) mod published;
pub(crate) mod scm;
pub(crate) mod seccomp;
pub(crate) mod socket;
pub(crate) mod stack;
pub(crate) mod task;
pub(crate) mod text;
pub(crate) mod thread;
pub(crate) mod time;
#[cfg(feature = "rootless")]
pub(crate) mod userns;
pub(crate) mod view;

/// How many bytes a page of memory has.
fn page_size() -> std::io::Result<usize> {
    let size = sysconf(SysconfVar::PAGE_SIZE)?.expect("pages have a size");
    Ok(usize::try_from(size).expect("a size is not negative"))
}

/// Whether there is no descriptor, or no memory for one, at this moment.
pub(crate) fn has_run_out(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(
        errno,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
