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

use super::view::{Plan, Refusal};
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

/// What a child does before its program: it enters `netns`, whose id is `id`, and takes
/// the view.
pub(crate) struct Entry<T> {
    pub(crate) netns: T,
    pub(crate) id: u64,
    pub(crate) inode: u64,
    pub(crate) view: Option<Plan>,
}

impl<T: AsFd> Entry<T> {
    /// Async-signal-safe.
    fn enter(&self) -> io::Result<()> {
        enter(&self.netns, self.id, self.inode)
    }

    /// Async-signal-safe.
    fn take_view(&self) -> Result<(), Refusal> {
        self.view.as_ref().map_or(Ok(()), Plan::apply)
    }
}

/// Lets the children of `command` do what `entry` says, and change nothing else.
///
/// A command cannot be rid of this again, so `entry` lives as long as it does.
pub(crate) fn enter_before_exec<T>(command: &mut Command, entry: Entry<T>)
where
    T: AsFd + Send + Sync + 'static,
{
    let step = move || {
        entry.enter()?;
        entry.take_view().map_err(|refusal| refusal.errno.into())
    };
    // SAFETY: after fork(2) in a threaded process only async-signal-safe calls
    // are allowed; the step is nothing but system calls and allocates nothing.
    unsafe { command.pre_exec(step) };
}

/// Lets the children of `command` do what `entry` says, with every signal
/// unblocked, for as long as the caller holds it; after that the step does
/// nothing.
///
/// A failure comes back from `spawn` as an error that [`enter_errno`] or
/// [`view_refusal`] knows.
pub(crate) fn enter_clean_before_exec<T>(command: &mut Command, entry: Weak<Entry<T>>)
where
    T: AsFd + Send + Sync + 'static,
{
    let step = move || match entry.upgrade() {
        Some(entry) => {
            entry.enter().map_err(marked)?;
            entry.take_view().map_err(marked_view)?;
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

/// Set in what the child reports when it was a step of its view that failed: the step's
/// number is above the errno.
const VIEW: i32 = 1 << 29;
const ERRNO_BITS: u32 = 12;
/// More files than a namespace has.
const STEP_MAX: usize = (1 << 16) - 1;

fn marked_view(refusal: Refusal) -> io::Error {
    let step = refusal.step.min(STEP_MAX) as i32;
    io::Error::from_raw_os_error(VIEW | step << ERRNO_BITS | refusal.errno as i32)
}

/// The step of its view that the child was refused, if that is what made `spawn` fail.
pub(crate) fn view_refusal(error: &io::Error) -> Option<Refusal> {
    let marked = error.raw_os_error().filter(|code| code & VIEW != 0)? & !VIEW;
    Some(Refusal {
        step: (marked >> ERRNO_BITS) as usize,
        errno: Errno::from_raw(marked & ((1 << ERRNO_BITS) - 1)),
    })
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

    #[test]
    fn refused_step_comes_back_with_its_errno() {
        let refusal = Refusal {
            step: 17,
            errno: Errno::ENOENT,
        };
        let error = marked_view(refusal);
        assert_eq!(view_refusal(&error), Some(refusal));
        assert_eq!(enter_errno(&error), None);
        let denied = || io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(view_refusal(&marked(denied())), None);
        assert_eq!(view_refusal(&denied()), None);
    }
}
