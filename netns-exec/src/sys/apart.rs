//! A process forked off to serve this one, and to be able to do little else.
//!
//! It is a copy of a process that may have other threads, so until its end it
//! may only do what a signal handler may: no allocation, no lock, no panic.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::sock_filter;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, chdir, getpid};

use super::{bpf, caps, seccomp};

/// A process made by [`fork`]. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub(crate) struct Child {
    pidfd: OwnedFd,
    /// A copy of this value in a process forked later has no say.
    parent: i32,
}

/// Runs `child` in a copy of this process, with every signal blocked. It ends
/// when `child` returns, with that as its exit code.
///
/// It is no child that wait(2) finds by itself, and its end sends no `SIGCHLD`:
/// the program around us may count its children. Handlers of pthread_atfork(3)
/// are not run, either.
///
/// # Safety
///
/// `child` makes async-signal-safe calls only, see signal-safety(7), and
/// allocates and frees no memory.
pub(crate) unsafe fn fork(child: impl FnOnce() -> i32) -> io::Result<Child> {
    let parent = getpid().as_raw();
    // Before the copy exists, so that none of our handlers ever runs in it.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let mut pidfd: RawFd = -1;
    // SAFETY: without CLONE_VM this is fork(2): the child has a copy of this
    // stack; the kernel writes one descriptor to a live variable. What the child
    // may do until its end is the caller's duty.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::CLONE_PIDFD as libc::c_long, // and no signal when it ends
            0_usize,
            &raw mut pidfd,
            0_usize,
            0_usize,
        )
    };
    let pid = Errno::result(pid);
    if pid == Ok(0) {
        let _not_by_a_panic = End(libc::EXIT_FAILURE);
        drop(End(child()));
    }
    mask.thread_set_mask()?;
    pid?;
    // SAFETY: the kernel just made this descriptor for us, so this is its only owner.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pidfd, parent })
}

/// Ends the process when dropped, by a panic if need be: that must not unwind
/// into a second life of our callers.
struct End(i32);

impl Drop for End {
    fn drop(&mut self) {
        // SAFETY: ends this process and runs nothing of ours.
        unsafe { libc::_exit(self.0) }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if getpid().as_raw() != self.parent {
            return;
        }
        // SAFETY: the call takes integers and a null pointer.
        let killed = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                0_usize,
                0,
            )
        };
        let mut flags = WaitPidFlag::WEXITED | WaitPidFlag::__WALL;
        // This process may have lost the right to kill it. Then it ends when it
        // notices that we are gone, and must not be waited for.
        if killed != 0 {
            flags |= WaitPidFlag::WNOHANG;
        }
        while waitid(Id::PIDFd(self.pidfd.as_fd()), flags) == Err(Errno::EINTR) {}
    }
}

/// Leaves the calling process, which [`fork`] made, with the descriptors `kept`
/// (in ascending order), the capabilities in `capabilities` as far as it has
/// them, and the system calls that `program` lets through.
pub(crate) fn confine(
    kept: &[RawFd],
    capabilities: u64,
    program: &[sock_filter],
) -> io::Result<()> {
    let mut next = 0;
    for &fd in kept {
        if next < fd {
            close_range(next as u32, fd as u32 - 1)?;
        }
        next = fd + 1;
    }
    close_range(next as u32, u32::MAX)?;
    // Keeps no folder busy.
    chdir(c"/")?;
    prctl::set_name(c"netns-broker")?;
    // `seccomp::install` sets it too, but only on a thread that would be refused a filter
    // without: whatever capabilities are kept, this process executes nothing with more.
    prctl::set_no_new_privs()?;
    caps::keep_only(capabilities)?;
    seccomp::install(program)
}

/// What a process made by [`fork_confined`] keeps.
pub(crate) struct Confinement<'a> {
    /// Its descriptors, in ascending order.
    pub(crate) kept: &'a [RawFd],
    /// Its capabilities, as far as it has them.
    pub(crate) capabilities: u64,
    /// Its system calls: none that a lock or an allocator waits or grows by.
    pub(crate) allowed: &'a [Allowed],
}

/// Runs `serve` in a copy of this process that has confined itself first, with
/// the copy's process id, and the reason why it could not where that is so. See
/// [`fork`].
///
/// # Panics
///
/// When futex(2) is allowed.
pub(crate) fn fork_confined(
    confinement: &Confinement<'_>,
    serve: impl FnOnce(Pid, io::Result<()>) -> i32,
) -> io::Result<Child> {
    let Confinement {
        kept,
        capabilities,
        allowed,
    } = *confinement;
    assert!(
        allowed
            .iter()
            .all(|allowed| allowed.call != libc::SYS_futex),
        "a confined process cannot wait for a lock that no thread of it will open"
    );
    // Here, because the copy can allocate nothing.
    let filter = program(allowed);
    // SAFETY: `confine` makes system calls only. `serve` is called after it, when
    // futex(2) and mmap(2) end the process: a lock that another thread held at the
    // fork is found shut, and is the end; so no state that such a thread was in
    // the middle of changing is ever seen. Where the copy could not be confined,
    // its author (broker/server.rs) sends one message and returns; its tests run
    // under an allocator that ends the copy at the first attempt.
    unsafe { fork(|| serve(getpid(), confine(kept, capabilities, &filter))) }
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the call takes three integers. The descriptors are those of a
    // process that runs nothing but the closure given to `fork`, whose author
    // named the ones that are still used.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    Errno::result(rc)?;
    Ok(())
}

/// A system call that is allowed, under a condition on one argument.
pub(crate) struct Allowed {
    pub(crate) call: libc::c_long,
    /// The argument's index, and the values it may have. Only its low half is
    /// looked at: it is an `int`.
    pub(crate) only: Option<(usize, Vec<i32>)>,
}

/// Translates a list of system calls to a filter that kills the process at any
/// other one.
pub(crate) fn program(allowed: &[Allowed]) -> Vec<sock_filter> {
    let is = |value: u32, yes: u8, no: u8| bpf::jump(libc::BPF_JEQ, value, yes, no);
    let kill = bpf::ret(libc::SECCOMP_RET_KILL_PROCESS);
    let allow = bpf::ret(libc::SECCOMP_RET_ALLOW);

    let mut program = vec![
        bpf::load(bpf::ARCH),
        is(bpf::AUDIT_ARCH, 1, 0),
        kill,
        bpf::load(bpf::NR),
    ];
    for Allowed { call, only } in allowed {
        let mut answer = Vec::new();
        if let Some((argument, values)) = only {
            answer.push(bpf::load(bpf::arg_low(*argument)));
            for (index, &value) in values.iter().enumerate() {
                let to_allow = values.len() - index; // over the rest, and `kill`
                answer.push(is(value as u32, to_allow as u8, 0));
            }
            answer.push(kill);
        }
        answer.push(allow);
        program.push(is(*call as u32, 0, answer.len() as u8));
        program.extend(answer);
    }
    program.push(kill);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    use nix::sys::signal::Signal;
    use nix::sys::wait::WaitStatus;

    use crate::sys::scm;

    /// Runs `child` apart and returns how it ended.
    fn end(child: impl FnOnce() -> i32) -> WaitStatus {
        // SAFETY: the closures below make system calls, and prepare what they
        // need before.
        let child = unsafe { fork(child) }.expect("a process");
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::__WALL | WaitPidFlag::WNOWAIT;
        waitid(Id::PIDFd(child.pidfd.as_fd()), flags).expect("it is ours")
    }

    fn code(status: WaitStatus) -> Option<i32> {
        match status {
            WaitStatus::Exited(_, code) => Some(code),
            _ => None,
        }
    }

    /// `getpid`, and `dup` of 1.
    fn two_calls() -> Vec<sock_filter> {
        let any = |call| Allowed { call, only: None };
        program(&[
            any(libc::SYS_getpid),
            Allowed {
                call: libc::SYS_dup,
                only: Some((0, vec![7, 1])),
            },
            any(libc::SYS_exit_group),
        ])
    }

    /// Makes a call that takes at most one argument, an integer.
    fn call(number: libc::c_long, argument: i32) {
        // SAFETY: no memory is passed.
        unsafe { libc::syscall(number, argument) };
    }

    fn confined(step: impl Fn()) -> WaitStatus {
        let program = two_calls();
        end(|| {
            if confine(&[0, 1, 2], 0, &program).is_err() {
                return 1;
            }
            step();
            42
        })
    }

    #[test]
    fn confined_process_ends_at_the_first_call_that_is_not_on_the_list() {
        let killed = |status| matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _));
        assert_eq!(code(confined(|| {})), Some(42));
        let allowed = || {
            call(libc::SYS_getpid, 0);
            call(libc::SYS_dup, 1);
            call(libc::SYS_dup, 7);
        };
        assert_eq!(code(confined(allowed)), Some(42));
        assert!(killed(confined(|| call(libc::SYS_dup, 2))));
        assert!(killed(confined(|| call(libc::SYS_getppid, 0))));
        // The x32 variety of an allowed call.
        #[cfg(target_arch = "x86_64")]
        assert!(killed(confined(|| {
            call(libc::SYS_getpid | 0x4000_0000, 0);
        })));
    }

    #[test]
    fn child_is_found_by_no_plain_wait_and_reaped_on_drop() {
        let (ours, theirs) = scm::pair().expect("a pair");
        // Waits for a message that is never sent.
        let wait = || {
            scm::receive_bytes(theirs.as_fd(), &mut [0; 1])
                .is_err()
                .into()
        };
        // SAFETY: the closure is a system call.
        let child = unsafe { fork(wait) }.expect("a process");
        let pidfd = child.pidfd.try_clone().expect("a descriptor");
        let id = || Id::PIDFd(pidfd.as_fd());
        let plain = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        assert_eq!(waitid(id(), plain), Err(Errno::ECHILD));
        let thorough = plain | WaitPidFlag::__WALL;
        assert_eq!(waitid(id(), thorough), Ok(WaitStatus::StillAlive));
        drop(child);
        assert_eq!(waitid(id(), thorough), Err(Errno::ECHILD));
        drop(ours);
    }
}
