//! What the command asks of the kernel that no safe call offers: signal
//! dispositions, what a child does between fork(2) and execve(2), and fork(2).
//!
//! The only file of the command with unsafe code.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, signal};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid, setsid};

/// Whether SIGPIPE was ignored before the standard library came to ignore it.
static SIGPIPE_IGNORED: AtomicBool = AtomicBool::new(false);

extern "C" fn read_sigpipe() {
    SIGPIPE_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
}

// SAFETY: the linker puts functions of this signature there, which the C library
// calls before `main`; this one makes one system call and stores a flag.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = read_sigpipe;

fn is_ignored(number: libc::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the kernel only writes to `action`, which has room for it.
    let rc = unsafe { libc::sigaction(number, std::ptr::null(), action.as_mut_ptr()) };
    if rc != 0 {
        return false;
    }
    // SAFETY: the call succeeded, so the kernel has filled it.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// What a process passes on through execve(2), as it was when this one began:
/// what exec changes for itself, its children get back.
#[derive(Clone, Copy)]
pub(crate) struct Inherited {
    blocked: SigSet,
    sigchld_ignored: bool,
    sigpipe_ignored: bool,
    files: (rlim_t, rlim_t),
}

impl Inherited {
    /// Reads it; before anything of it is changed.
    pub(crate) fn read() -> io::Result<Inherited> {
        Ok(Inherited {
            blocked: SigSet::thread_get_mask()?,
            sigchld_ignored: is_ignored(libc::SIGCHLD),
            sigpipe_ignored: SIGPIPE_IGNORED.load(Ordering::Relaxed),
            files: getrlimit(Resource::RLIMIT_NOFILE)?,
        })
    }

    /// Changes what a process needs that waits for children and holds many files:
    /// statuses are kept, and the soft limit of files is the hard one.
    pub(crate) fn prepare_to_supervise(&self) -> io::Result<()> {
        if self.sigchld_ignored {
            set_disposition(Signal::SIGCHLD, SigHandler::SigDfl)?;
        }
        let (_, hard) = self.files;
        Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
    }

    /// The most files that may be open at once.
    pub(crate) fn hard_file_limit(&self) -> rlim_t {
        self.files.1
    }

    /// Async-signal-safe.
    fn give_back(&self) -> io::Result<()> {
        if self.sigchld_ignored {
            set_disposition(Signal::SIGCHLD, SigHandler::SigIgn)?;
        }
        if self.sigpipe_ignored {
            set_disposition(Signal::SIGPIPE, SigHandler::SigIgn)?;
        }
        let (soft, hard) = self.files;
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.blocked), None)?;
        Ok(())
    }
}

/// Async-signal-safe. Never installs a handler.
fn set_disposition(number: Signal, disposition: SigHandler) -> io::Result<()> {
    // SAFETY: both dispositions that callers pass run no code of ours.
    unsafe { signal(number, disposition) }?;
    Ok(())
}

/// Has what `command` becomes, or its children, begin as this process did.
pub(crate) fn give_back_before_exec(command: &mut Command, inherited: Inherited) {
    let step = move || inherited.give_back();
    // SAFETY: the step is nothing but system calls and allocates nothing.
    unsafe { command.pre_exec(step) };
}

/// Has the children of `command` begin as this process did, but each in a session
/// of its own; and killed when the calling thread ends, which is the main thread.
///
/// The kernel forgets the last of it when the child changes its user or runs a
/// set-user-ID program.
pub(crate) fn supervise_before_exec(command: &mut Command, inherited: Inherited) {
    let parent = getpid();
    let step = move || {
        setsid()?;
        set_pdeathsig(Signal::SIGKILL)?;
        // It may have ended before the line above. In a PID namespace of its own
        // the child has no parent that it could see.
        if getppid() != parent && getppid() != Pid::from_raw(0) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        inherited.give_back()
    };
    // SAFETY: the step is nothing but system calls and allocates nothing.
    unsafe { command.pre_exec(step) };
}

/// Starts a copy of this process, in a session of its own, that runs `f` and ends.
///
/// # Panics
///
/// When this process has a second thread: `f` may do anything, so the copy has to
/// be whole.
pub(crate) fn fork_helper(f: impl FnOnce()) -> io::Result<Pid> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    assert_eq!(threads, 1, "a copy of this process would miss its threads");
    // SAFETY: this is the only thread, so the child is a whole copy of the process.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let _ = setsid();
            // A panic was shown; it must not go on in a copy of the caller.
            let _ = catch_unwind(AssertUnwindSafe(f));
            // SAFETY: ends the copy without running what the original's end runs.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Closes all files of this process but `kept`.
pub(crate) fn close_all_but(kept: i32) {
    let range = |first: i32, last: i32| {
        if first <= last {
            // SAFETY: takes three integers. Only a process that uses no other
            // file, and has no owner of one left to drop, calls this.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    };
    range(0, kept - 1);
    range(kept + 1, i32::MAX);
}

/// Has the allocator give back to the kernel what it keeps for later.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and nothing that is in use goes.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// How many bytes of the heap are in use, those included that threads keep for their next
/// requests; `None` where the allocator does not tell. Counts round at 4 GiB, so that only
/// differences mean something.
pub(crate) fn heap_in_use() -> Option<u32> {
    #[cfg(target_env = "gnu")]
    {
        // Not mallinfo2(3), which programs for older C libraries cannot have.
        // SAFETY: it takes nothing, and reads what is the allocator's, under its locks.
        let info = unsafe { libc::mallinfo() };
        Some((info.uordblks as u32).wrapping_add(info.hblkhd as u32))
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

#[cfg(test)]
mod tests {
    // Of all unit tests of the command. Here, because it stands for unsafe code.
    netns_exec::rootless::test_harness!(own_net);
}
