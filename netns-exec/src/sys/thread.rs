//! What belongs to one thread: its signal mask, its CPUs, its id.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, gettid};

/// The calling thread's id, as `ps -L` shows it.
pub(crate) fn tid() -> u32 {
    gettid().as_raw().unsigned_abs()
}

/// The calling thread's name, as `ps -L` shows it.
pub(crate) fn name() -> io::Result<CString> {
    prctl::get_name().map_err(io::Error::from)
}

/// Names the calling thread. A name has no more than 15 bytes; the rest is cut.
pub(crate) fn set_name(name: &CStr) {
    // It takes any text, and no privilege.
    let _ = prctl::set_name(name);
}

/// What a thread's own fault raises. When that is blocked the kernel ends the
/// process at once, past every handler: a stack overflow would go unreported,
/// and a runtime that handles its own page faults could not be used in a job.
pub(crate) const FAULTS: [Signal; 6] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGTRAP,
    Signal::SIGSYS,
];

/// All signals but the [`FAULTS`].
fn all_but_faults() -> SigSet {
    let mut mask = SigSet::all();
    for fault in FAULTS {
        mask.remove(fault);
    }
    mask
}

/// Blocks every signal on the calling thread but the [`FAULTS`], and returns the
/// mask before.
pub(crate) fn block_signals() -> io::Result<SigSet> {
    (all_but_faults().thread_swap_mask(SigmaskHow::SIG_SETMASK)).map_err(io::Error::from)
}

/// The signals that the calling thread blocks.
#[cfg(feature = "births-at-home")]
pub(crate) fn signals() -> io::Result<SigSet> {
    SigSet::thread_get_mask().map_err(io::Error::from)
}

/// Whether `mask` is as [`block_signals`] leaves it.
#[cfg(feature = "births-at-home")]
pub(crate) fn blocks_as_workers_do(mask: &SigSet) -> bool {
    let workers = all_but_faults();
    // The kernel blocks these for no thread.
    let mut known =
        Signal::iterator().filter(|it| !matches!(it, Signal::SIGKILL | Signal::SIGSTOP));
    known.all(|signal| mask.contains(signal) == workers.contains(signal))
}

/// Puts back what [`block_signals`] returned.
pub(crate) fn restore_signals(mask: &SigSet) -> io::Result<()> {
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(mask), None).map_err(io::Error::from)
}

/// Gives the calling thread a descriptor table of its own, with nothing in it but a
/// copy of `fd`, which is returned. The table that it shared is as before.
///
/// To be called by a thread that owns no other descriptor.
pub(crate) fn keep_one_descriptor(fd: RawFd) -> io::Result<OwnedFd> {
    /// `CLOSE_RANGE_UNSHARE`, see linux/close_range.h.
    const UNSHARE: libc::c_uint = 1 << 1;

    let kept = libc::c_uint::try_from(fd).map_err(|_| Errno::EBADF)?;
    let close = |first: libc::c_uint, last: libc::c_uint, flags: libc::c_uint| {
        // SAFETY: the call takes three integers, and closes what the calling thread
        // alone has: the first one that is made unshares, and the caller says that
        // it owns nothing in the table.
        let rc = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
        Errno::result(rc).map(drop)
    };
    // The most first: what is closed is not copied, not even for a moment (Linux 6.13).
    match kept {
        0 => close(1, libc::c_uint::MAX, UNSHARE)?,
        _ => {
            close(0, kept - 1, UNSHARE)?;
            close(kept + 1, libc::c_uint::MAX, 0)?;
        }
    }
    // SAFETY: a number in this thread's own table, where nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What threads of a process share unless one asked for its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shared {
    /// The descriptor table: `KCMP_FILES`, see linux/kcmp.h.
    Files = 2,
    /// Working directory, root and umask: `KCMP_FS`.
    Fs = 3,
}

/// Tells whether the threads `a` and `b` of this process share `what`: kcmp(2).
///
/// # Errors
///
/// `ENOSYS` and `EPERM` where a kernel or a container has no such call, `ESRCH` when
/// one has ended.
pub(crate) fn share(a: u32, b: u32, what: Shared) -> io::Result<bool> {
    // SAFETY: the call takes integers.
    let rc = unsafe { libc::syscall(libc::SYS_kcmp, a, b, what as libc::c_int, 0, 0) };
    Ok(Errno::result(rc)? == 0)
}

/// The CPU time that the calling thread has used.
pub(crate) fn cpu_time() -> Duration {
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

/// Keeps a thread from the CPU of the one that made this, for as long as this lives.
#[derive(Debug)]
pub(crate) struct ElsewhereThan {
    thread: Pid,
    before: CpuSet,
}

impl ElsewhereThan {
    /// Has the thread `tid`, which sleeps, wake up on another CPU than the calling
    /// thread's; `None` when there is none that it may run on.
    pub(crate) fn here(tid: u32) -> Option<ElsewhereThan> {
        let here = sched_getcpu().ok()?;
        let thread = Pid::from_raw(i32::try_from(tid).ok()?);
        let before = sched_getaffinity(thread).ok()?;
        let mut others = before;
        others.unset(here).ok()?;
        let any = (0..CpuSet::count()).any(|cpu| others.is_set(cpu).unwrap_or(false));
        (any && sched_setaffinity(thread, &others).is_ok())
            .then_some(ElsewhereThan { thread, before })
    }
}

impl Drop for ElsewhereThan {
    fn drop(&mut self) {
        // Fails when the machine has just lost them all; then any will do.
        let _ = sched_setaffinity(self.thread, &self.before);
    }
}

/// Waits until a joined thread has left the kernel's tables.
///
/// pthread_join(3) returns when the thread has given up its memory; it gives up
/// its namespaces a moment later, and its entry in `/proc` after that.
pub(crate) fn wait_gone(tid: u32) {
    if cfg!(loom) {
        // A model's threads are all one.
        return;
    }
    let entry = format!("/proc/self/task/{tid}");
    let entry = std::path::Path::new(&entry);
    // Bounded: the kernel may have given the number to another thread already.
    // In time and not in rounds, because on a busy machine the dying thread may
    // have to wait for a CPU.
    let deadline = Instant::now() + Duration::from_secs(1);
    let mut rounds = 0;
    while entry.exists() && Instant::now() < deadline {
        rounds += 1;
        if rounds < 100 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Joins a thread that was ended by exit(2), over which [`JoinHandle::join`] panics: it has
/// left no result.
pub(crate) fn join_lost(thread: JoinHandle<()>) {
    // SAFETY: the handle was the only one to join or detach it.
    unsafe { libc::pthread_join(thread.into_pthread_t(), ptr::null_mut()) };
}

/// Tells whether the kernel has let go of a thread of this process.
pub(crate) fn is_gone(tid: u32) -> bool {
    // A model's threads are all one.
    cfg!(loom) || !std::path::Path::new(&format!("/proc/self/task/{tid}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::File;

    use nix::sched::{CloneFlags, unshare};

    /// What is joined has still to close what it has open, when that is its own.
    #[test]
    fn joined_thread_is_waited_for_until_it_has_left_the_kernel() {
        let mut early = 0;
        for _ in 0..20 {
            let thread = std::thread::spawn(|| {
                unshare(CloneFlags::CLONE_FILES).expect("it takes no privilege");
                for _ in 0..900 {
                    match File::open("/dev/null") {
                        // Closed by the kernel, when the thread has ended.
                        Ok(file) => std::mem::forget(file),
                        Err(_) => break,
                    }
                }
                tid()
            });
            let tid = thread.join().expect("no panic");
            early += u32::from(!is_gone(tid));
            wait_gone(tid);
            assert!(is_gone(tid), "{tid} is still there");
        }
        assert_ne!(
            early, 0,
            "the kernel was faster each time: this shows nothing"
        );
    }
}
