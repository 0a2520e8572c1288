//! Filtering the system calls of one thread: seccomp(2).
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::sock_filter;
use nix::errno::Errno;
use nix::sys::prctl;

/// Puts `program` before every system call of the calling thread, of its later
/// threads and of its children; there is no way to take it off.
///
/// Without `CAP_SYS_ADMIN` the kernel wants the thread to give up gaining
/// privileges through execve(2) first; that is done only then.
pub(crate) fn install(program: &[sock_filter]) -> io::Result<()> {
    with_privilege(|| load(program, 0)).map(drop)
}

/// As [`install`], and returns what hears of the calls that `program` answers with
/// `SECCOMP_RET_USER_NOTIF`. They wait for [`answer`], and fail with `ENOSYS` when
/// the listener is closed.
///
/// A wait can be interrupted, as any that a debugger or SIGSTOP must be able to end:
/// the call begins anew then, as another notification.
///
/// # Errors
///
/// `EBUSY` when the thread's filters have a listener already, `EINVAL` where the
/// kernel has none; then nothing is installed.
pub(crate) fn install_with_listener(program: &[sock_filter]) -> io::Result<OwnedFd> {
    let fd = with_privilege(|| load(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER))?;
    let fd = fd.try_into().expect("descriptors fit");
    // SAFETY: the kernel just made this descriptor, so this is its only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn with_privilege(load: impl Fn() -> Result<libc::c_long, Errno>) -> io::Result<libc::c_long> {
    match load() {
        Err(Errno::EACCES) => {
            prctl::set_no_new_privs()?;
            Ok(load()?)
        }
        loaded => Ok(loaded?),
    }
}

fn load(program: &[sock_filter], flags: libc::c_ulong) -> Result<libc::c_long, Errno> {
    let program = libc::sock_fprog {
        len: program.len().try_into().map_err(|_| Errno::E2BIG)?,
        // The kernel copies the program and writes nothing.
        filter: program.as_ptr().cast_mut(),
    };
    // The code that runs here is the program's own. Without SPEC_ALLOW, kernels
    // before 5.16 would take speculative store bypass from the thread, which
    // costs its jobs some percent.
    let flags = flags | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: `program` points at `len` instructions that are borrowed for the
    // whole call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &program,
        )
    };
    Errno::result(rc)
}

/// Set in the numbers of the x32 ABI.
const X32_BIT: libc::c_long = 0x4000_0000;

/// A call that waits for an answer: a notification.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notified {
    /// Names it to [`answer`].
    pub(crate) id: u64,
    /// The thread that calls, as the reader's pid namespace numbers it.
    pub(crate) tid: u32,
    nr: libc::c_long,
    /// The call's first argument.
    option: u64,
    /// And what a [trap] was made with.
    pub(crate) argument: u64,
    pub(crate) cookie: u64,
}

impl Notified {
    /// In a model: the [trap](trap) of the one thread that is listened to.
    #[cfg(loom)]
    pub(crate) fn trap(id: u64, argument: u64, cookie: u64) -> Notified {
        Notified {
            id,
            tid: 0,
            nr: libc::SYS_prctl,
            option: TRAP.into(),
            argument,
            cookie,
        }
    }

    /// Whether it is the call with this number, through whichever entry.
    pub(crate) fn is(&self, call: libc::c_long) -> bool {
        self.nr & !X32_BIT == call & !X32_BIT
    }

    pub(crate) fn is_trap(&self) -> bool {
        self.is(libc::SYS_prctl) && self.option == u64::from(TRAP)
    }
}

/// An operation of prctl(2) that no kernel has and no program asks for: for a filter to
/// hand to its listener. A call that no kernel has would not do: what a container's
/// filter does not know it refuses, or kills for, and its answer comes before ours.
pub(crate) const TRAP: u32 = 0x2e7e_2e7e;

/// Makes the call [`TRAP`], and waits until the listener has answered it with
/// [`Answer::Return`].
///
/// # Errors
///
/// `ENOSYS` when nothing listens, `EINTR` when a signal was handled, another one when
/// another filter refuses it.
pub(crate) fn trap(argument: u64, cookie: u64) -> Result<(), Errno> {
    let option = libc::c_ulong::from(TRAP);
    // SAFETY: integers are passed; there is no such operation to do anything with them.
    let rc = unsafe { libc::syscall(libc::SYS_prctl, option, argument, cookie, 0, 0) };
    Errno::result(rc).map(drop)
}

/// What there is to hear from a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Nothing,
    /// A call that nothing has received yet.
    Call,
    /// The threads with this filter have ended.
    End,
}

/// Asks without waiting.
pub(crate) fn poll(listener: BorrowedFd<'_>) -> Heard {
    use nix::poll::{PollFd, PollFlags, PollTimeout};

    let mut asked = [PollFd::new(listener, PollFlags::POLLIN)];
    let _ = nix::poll::poll(&mut asked, PollTimeout::ZERO);
    match asked[0].revents() {
        Some(what) if what.contains(PollFlags::POLLIN) => Heard::Call,
        Some(what) if what.intersects(PollFlags::POLLHUP) => Heard::End,
        _ => Heard::Nothing,
    }
}

/// Has the threads on both sides of a listener wake each other on the CPU of the one
/// that wakes (Linux 6.6), or wherever the scheduler likes.
pub(crate) fn wake_on_this_cpu(listener: BorrowedFd<'_>, yes: bool) -> io::Result<()> {
    /// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`, which libc lacks.
    const SYNC_WAKE_UP: libc::c_ulong = 1;

    let flags = if yes { SYNC_WAKE_UP } else { 0 };
    // SAFETY: takes an integer.
    let rc = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS,
            flags,
        )
    };
    Errno::result(rc).map(drop).map_err(io::Error::from)
}

/// How a call goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Fail(Errno),
    /// As if there were no filter.
    GoOn,
    /// Nothing is done, and the call succeeds.
    Return,
}

/// Takes the next call that waits, or waits for one. `ENOENT`: it was given up
/// meanwhile, or there will be none.
pub(crate) fn receive(listener: BorrowedFd<'_>) -> Result<Notified, Errno> {
    // SAFETY: all-zero is a valid `seccomp_notif`, and what the kernel asks for.
    let mut heard: libc::seccomp_notif = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes one `seccomp_notif`.
    let rc = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            &raw mut heard,
        )
    };
    Errno::result(rc)?;
    Ok(Notified {
        id: heard.id,
        tid: heard.pid,
        nr: heard.data.nr.into(),
        option: heard.data.args[0],
        argument: heard.data.args[1],
        cookie: heard.data.args[2],
    })
}

/// Answers a call. `ENOENT`: it has been given up, and may come again.
pub(crate) fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> Result<(), Errno> {
    let (error, flags) = match answer {
        Answer::Return => (0, 0),
        Answer::Fail(errno) => (-(errno as i32), 0),
        Answer::GoOn => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let mut response = libc::seccomp_notif_resp {
        id,
        val: 0,
        error,
        flags,
    };
    // SAFETY: the kernel reads one `seccomp_notif_resp`.
    let rc = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw mut response,
        )
    };
    Errno::result(rc).map(drop)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, ExitStatus};

    /// Makes a system call from libc's code that fails, and returns how.
    pub(crate) fn raw(nr: libc::c_long, first: libc::c_int) -> Errno {
        // SAFETY: callers name calls that refuse these arguments: no memory is
        // passed, and a clone that would succeed is not asked for.
        let rc = unsafe { libc::syscall(nr, libc::c_long::from(first), 0, 0, 0, 0) };
        Errno::result(rc).expect_err("a call that cannot succeed")
    }

    /// Makes a system call from the executable's own code that fails, and
    /// returns how.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn inline(nr: libc::c_long, first: libc::c_int) -> Errno {
        let result: i64;
        // SAFETY: as for `raw`; the registers that the kernel overwrites are
        // named.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") nr => result,
                in("rdi") i64::from(first),
                in("rsi") 0,
                in("rdx") 0,
                in("r10") 0,
                in("r8") 0,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        assert!(result < 0, "a call that cannot succeed");
        Errno::from_raw((-result) as i32)
    }

    /// Closes no descriptor, with `flags`, through `syscall`.
    pub(crate) fn close_nothing(flags: libc::c_int) -> Result<(), Errno> {
        const NONE: libc::c_uint = libc::c_uint::MAX;
        // SAFETY: the call takes three integers, and there is no such descriptor.
        let rc = unsafe { libc::syscall(libc::SYS_close_range, NONE, NONE, flags) };
        Errno::result(rc).map(drop)
    }

    /// Runs `true` by fork(2) and execve(2), not by posix_spawn(3).
    pub(crate) fn fork_and_exec() -> io::Result<ExitStatus> {
        fork_and(|| Ok(()))
    }

    /// The same, with `f` in between, in the child.
    pub(crate) fn fork_and(
        f: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<ExitStatus> {
        let mut command = Command::new("true");
        // SAFETY: the tests' closures make system calls, and a thread, which takes
        // memory: glibc's allocator can be used after a fork.
        unsafe { command.pre_exec(f) };
        command.status()
    }
}
