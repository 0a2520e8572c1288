//! What a child does between fork(2) and execve(2), and whose child it is.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Weak;

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::{netns, thread};

/// The number of descriptors that this process may have open, RLIMIT_NOFILE of
/// getrlimit(2).
pub(crate) fn descriptor_limit() -> Option<usize> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes two numbers to a live variable.
    let rc = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    (rc == 0).then(|| usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

/// Lets the children of `command` enter `target`, whose id is `id`, and change nothing
/// else.
///
/// A command cannot be rid of this again, so `target` lives as long as it does.
pub(crate) fn enter_before_exec(
    command: &mut Command,
    target: impl AsFd + Send + Sync + 'static,
    id: u64,
    inode: u64,
) {
    let step = move || enter(&target, id, inode);
    // SAFETY: after fork(2) in a threaded process only async-signal-safe calls
    // are allowed; the step is nothing but system calls and allocates nothing.
    unsafe { command.pre_exec(step) };
}

/// Lets the children of `command` enter `target`, whose id is `id`, with every signal
/// unblocked, for as long as the caller holds `target`; after that the step does
/// nothing.
///
/// A failure to enter comes back from `spawn` as an error that [`enter_errno`]
/// knows.
pub(crate) fn enter_clean_before_exec<T>(
    command: &mut Command,
    target: Weak<T>,
    id: u64,
    inode: u64,
) where
    T: AsFd + Send + Sync + 'static,
{
    let step = move || match target.upgrade() {
        Some(target) => {
            enter(&*target, id, inode).map_err(marked)?;
            thread::restore_signals(&SigSet::empty())
        }
        None => Ok(()),
    };
    // SAFETY: after fork(2) in a threaded process only async-signal-safe calls
    // are allowed: the step is nothing but system calls and allocates nothing. It
    // frees nothing either, as the parent's strong count came along with the fork.
    unsafe { command.pre_exec(step) };
}

/// Enters as a child does: async-signal-safe. To be there already takes no
/// privilege. `EBADF` when the descriptor means another namespace by now.
fn enter(target: &impl AsFd, id: u64, inode: u64) -> io::Result<()> {
    let entered = netns::enter(target);
    if let Err(error) = &entered
        && error.raw_os_error() != Some(libc::EPERM)
    {
        return entered;
    }
    match netns::is_here(id, inode) {
        Ok(true) => Ok(()),
        // It was refused, and is not there already.
        _ if entered.is_err() => entered,
        Ok(false) => Err(io::Error::from_raw_os_error(libc::EBADF)),
        Err(error) => Err(error),
    }
}

/// Whether the calling thread, and not only its process, has children that were not
/// waited for.
pub(crate) fn has_children_of_this_thread() -> bool {
    let flags = WaitPidFlag::WEXITED
        | WaitPidFlag::WNOHANG
        | WaitPidFlag::WNOWAIT
        | WaitPidFlag::__WNOTHREAD;
    waitid(Id::All, flags) != Err(Errno::ECHILD)
}

/// Set in the errno that the child reports when it was the entering that
/// failed. The standard library carries the number as it is; a bare errno could
/// have come from execve(2) as well.
const ENTER: i32 = 1 << 30;

fn marked(error: io::Error) -> io::Error {
    io::Error::from_raw_os_error(ENTER | error.raw_os_error().unwrap_or(libc::EINVAL))
}

/// The errno of setns(2), if that is what made `spawn` fail.
pub(crate) fn enter_errno(error: &io::Error) -> Option<i32> {
    (error.raw_os_error())
        .filter(|errno| errno & ENTER != 0)
        .map(|errno| errno & !ENTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_marked_errno_means_that_entering_failed() {
        let denied = || io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(enter_errno(&marked(denied())), Some(libc::EPERM));
        assert_eq!(enter_errno(&denied()), None);
        assert_eq!(enter_errno(&io::Error::other("no errno")), None);
    }
}
