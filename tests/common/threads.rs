//! Threads that stay: one left behind in a namespace, and one that no library
//! knows of.

use std::fs::{self, File};
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use netns_exec::{Netns, NetnsId, audit};
use nix::libc;
use nix::sched::{CloneFlags, setns};

/// The stray threads of an audit that are in these namespaces, which are the caller's own:
/// other tests of the process leave some on purpose.
pub fn strays_in(shown: &audit::Process, spaces: impl IntoIterator<Item = NetnsId>) -> Vec<u32> {
    let spaces: Vec<_> = spaces.into_iter().collect();
    let is_there =
        |thread: &&audit::Thread| (thread.netns_id()).is_some_and(|netns| spaces.contains(&netns));
    let strays = shown.strays().filter(is_there);
    strays.map(audit::Thread::tid).collect()
}

/// Ends the calling thread, and nothing else, by exit(2).
#[allow(unsafe_code)]
pub fn end_thread() {
    // SAFETY: it does not come back. What is on its stack stays as it is until the thread is
    // joined, and no other thread may use it.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// A thread that stays where it is until this is dropped.
pub struct Parked {
    tid: u32,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Parked {
    /// A thread born where the caller is.
    pub fn here(name: &str) -> Parked {
        let (born, tid) = channel();
        let (end, ended) = channel();
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            let tid = super::tid().unsigned_abs();
            born.send(tid).expect("awaited below");
            let _ = ended.recv();
        });
        Parked {
            tid: tid.recv().expect("the thread says so"),
            end: Some(end),
            thread: Some(thread.expect("a thread can be started")),
        }
    }

    /// The old way: a thread enters `netns`, calls something that starts another
    /// thread, and goes back.
    pub fn left_in(netns: &Netns, name: &str) -> Parked {
        super::on_a_thread(|| {
            let before = File::open("/proc/thread-self/ns/net").expect("/proc is mounted");
            setns(netns, CloneFlags::CLONE_NEWNET).expect("needs CAP_SYS_ADMIN");
            let parked = Parked::here(name);
            setns(before, CloneFlags::CLONE_NEWNET).expect("needs CAP_SYS_ADMIN");
            parked
        })
    }

    /// What the kernel calls it.
    pub fn tid(&self) -> u32 {
        self.tid
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        drop(self.end.take());
        let thread = self.thread.take().expect("taken here only");
        thread.join().expect("it does not panic");
    }
}

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
