//! Filtering the system calls of one thread: seccomp(2).
#![allow(unsafe_code)]

use std::io;

use libc::sock_filter;
use nix::errno::Errno;
use nix::sys::prctl;

/// Puts `program` before every system call of the calling thread, of its later
/// threads and of its children; there is no way to take it off.
///
/// Without `CAP_SYS_ADMIN` the kernel wants the thread to give up gaining
/// privileges through execve(2) first; that is done only then, and told by
/// returning `true`.
pub(crate) fn install(program: &[sock_filter]) -> io::Result<bool> {
    match load(program) {
        Err(Errno::EACCES) => {
            prctl::set_no_new_privs()?;
            load(program)?;
            Ok(true)
        }
        loaded => Ok(loaded.map(|()| false)?),
    }
}

fn load(program: &[sock_filter]) -> Result<(), Errno> {
    let program = libc::sock_fprog {
        len: program.len().try_into().map_err(|_| Errno::E2BIG)?,
        // The kernel copies the program and writes nothing.
        filter: program.as_ptr().cast_mut(),
    };
    // The code that runs here is the program's own. Without SPEC_ALLOW, kernels
    // before 5.16 would take speculative store bypass from the thread, which
    // costs its jobs some percent.
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
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

    /// Runs `true` by fork(2) and execve(2), not by posix_spawn(3).
    pub(crate) fn fork_and_exec() -> io::Result<ExitStatus> {
        let mut command = Command::new("true");
        // SAFETY: a closure that does nothing does nothing that is forbidden
        // between fork and exec.
        unsafe { command.pre_exec(|| Ok(())) };
        command.status()
    }
}
