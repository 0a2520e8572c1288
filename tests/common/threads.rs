//! Threads made and counted behind the standard library's back.

use std::fs;
use std::io;

use nix::libc;

/// A thread of this process made by clone(2) itself: no library knows of it.
///
/// It waits until this is dropped.
#[derive(Debug)]
pub struct RawThread {
    tid: u32,
    shared: Box<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// What the thread reads from until there is nothing more to come.
    read_end: libc::c_int,
    write_end: libc::c_int,
    stack: Vec<u8>,
}

impl RawThread {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// Fails with what clone(2) fails with.
    #[allow(unsafe_code)]
    pub fn start() -> io::Result<RawThread> {
        const STACK: usize = 64 * 1024;
        const FLAGS: libc::c_int = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_SYSVSEM
            | libc::CLONE_THREAD;

        let mut ends = [0; 2];
        // SAFETY: there is room for two descriptors.
        let rc = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
        nix::errno::Errno::result(rc)?;
        let mut shared = Box::new(Shared {
            read_end: ends[0],
            write_end: ends[1],
            stack: vec![0; STACK],
        });
        let top = (shared.stack.as_mut_ptr_range().end as usize & !15) as *mut libc::c_void;
        let argument = (&raw mut *shared).cast();
        // SAFETY: the stack and what the argument points to stay until `drop` has
        // seen the thread's end, and `wait_for_end` touches nothing else.
        let tid = unsafe { libc::clone(wait_for_end, top, FLAGS, argument) };
        let thread = RawThread {
            tid: tid.max(0).unsigned_abs(),
            shared,
        };
        nix::errno::Errno::result(tid)?;
        Ok(thread)
    }

    /// What the kernel calls it.
    pub fn tid(&self) -> u32 {
        self.tid
    }
}

/// The main function of a raw thread. It shares the thread-locals of the one
/// that made it, so it must do without: one call that does not fail sets no errno.
#[allow(unsafe_code)]
extern "C" fn wait_for_end(argument: *mut libc::c_void) -> libc::c_int {
    let shared = argument.cast::<Shared>();
    // SAFETY: see `RawThread::start`.
    let read_end = unsafe { (*shared).read_end };
    let mut byte = 0_u8;
    // SAFETY: there is room for one byte.
    unsafe { libc::read(read_end, (&raw mut byte).cast(), 1) };
    0
}

impl Drop for RawThread {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours. Closing it is the end of the thread's wait.
        unsafe { libc::close(self.shared.write_end) };
        if self.tid != 0 {
            // Its stack may go only when it has.
            while fs::exists(format!("/proc/self/task/{}", self.tid)).unwrap_or(false) {
                std::thread::yield_now();
            }
        }
        // SAFETY: the descriptor is ours, and the thread that read from it is gone.
        unsafe { libc::close(self.shared.read_end) };
    }
}
