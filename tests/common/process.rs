//! Looking at this process from inside.

use std::collections::HashSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::resume_unwind;
use std::thread;

use netns_exec::Netns;

/// Where the calling thread is: `net:[4026532177]`.
pub fn netns_link_of_this_thread() -> String {
    let link = fs::read_link("/proc/thread-self/ns/net").expect("/proc is mounted");
    link.to_str().expect("plain ASCII").to_owned()
}

/// Where every job of `netns` is: `net:[4026532177]`.
pub fn netns_link_of(netns: &Netns) -> String {
    let inode = nix::sys::stat::fstat(netns.as_fd()).expect("an open namespace");
    format!("net:[{}]", inode.st_ino)
}

/// Where `ip netns` keeps a name.
pub fn path_of(name: &str) -> String {
    format!("/run/netns/{name}")
}

/// What the kernel calls the calling thread.
pub fn tid() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// The threads of this process.
pub fn tids() -> HashSet<i32> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is mounted");
    let tid = |task: fs::DirEntry| task.file_name().to_str()?.parse().ok();
    tasks.flatten().filter_map(tid).collect()
}

/// Runs `f` on a thread of its own, which it may ruin.
pub fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => resume_unwind(panic),
    })
}

/// A line of the status of a thread of this process, see proc_pid_status(5);
/// `None` when it is gone.
pub fn status_of(tid: i32, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/self/task/{tid}/status")).ok()?;
    let value = |line: &str| {
        let value = line.strip_prefix(key)?.strip_prefix(':')?;
        Some(value.trim().to_owned())
    };
    Some(
        status
            .lines()
            .find_map(value)
            .expect("a key of the kernel's"),
    )
}

/// Asks bpf(2) for the first program that is loaded: what takes `CAP_SYS_ADMIN`. Tells
/// whether there is one.
#[allow(unsafe_code)]
pub fn next_bpf_program() -> nix::Result<bool> {
    const BPF_PROG_GET_NEXT_ID: nix::libc::c_int = 11;
    // `start_id`, `next_id` and `open_flags`, in the kernel's union.
    let mut attr = [0_u32; 32];
    // SAFETY: the kernel reads and writes no more than the given length.
    let rc = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_bpf,
            BPF_PROG_GET_NEXT_ID,
            attr.as_mut_ptr(),
            size_of_val(&attr),
        )
    };
    match nix::errno::Errno::result(rc) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The signals that the calling thread blocks, as a bit mask.
pub fn blocked_signals() -> u64 {
    blocked_signals_of(tid()).expect("this thread is there")
}

/// The signals that a thread of this process blocks; `None` when it is gone.
pub fn blocked_signals_of(tid: i32) -> Option<u64> {
    let mask = status_of(tid, "SigBlk")?;
    Some(u64::from_str_radix(&mask, 16).expect("a mask"))
}

/// Bytes of this process that are in memory.
pub fn resident() -> u64 {
    let pid = nix::unistd::getpid().as_raw();
    let size = status_of(pid, "VmRSS").expect("this process is there");
    let kilobytes = size.trim_end_matches(" kB");
    kilobytes.parse::<u64>().expect("a number") * 1024
}

/// How many file descriptors this process has open.
pub fn fds_of_this_process() -> usize {
    // One of them is the folder's own.
    fs::read_dir("/proc/self/fd")
        .expect("/proc is mounted")
        .count()
        - 1
}

/// How many threads this process has.
pub fn threads_of_this_process() -> usize {
    tids().len()
}

/// The threads of this process that have that name.
pub fn tids_named(name: &str) -> Vec<i32> {
    let is_named = |tid: &i32| {
        let comm = fs::read_to_string(format!("/proc/self/task/{tid}/comm"));
        comm.is_ok_and(|comm| comm.trim_end() == name)
    };
    tids().into_iter().filter(is_named).collect()
}

/// How many threads of this process have that name.
pub fn threads_named(name: &str) -> usize {
    tids_named(name).len()
}

/// How often a thread of this process has gone to sleep; `None` when it is gone.
pub fn sleeps_of(tid: i32) -> Option<u64> {
    let count = status_of(tid, "voluntary_ctxt_switches")?;
    Some(count.parse().expect("a number"))
}

/// Tells whether a descriptor is closed by exec.
pub fn is_cloexec(fd: BorrowedFd<'_>) -> bool {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let flags = fcntl(fd, FcntlArg::F_GETFD).expect("an open descriptor");
    FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC)
}

/// The `SO_NETNS_COOKIE` of a socket.
#[allow(unsafe_code)]
pub fn netns_cookie_of(socket: BorrowedFd<'_>) -> u64 {
    const SO_NETNS_COOKIE: nix::libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as nix::libc::socklen_t;
    // SAFETY: `cookie` has room for `len` bytes; both outlive the call.
    let rc = unsafe {
        nix::libc::getsockopt(
            socket.as_raw_fd(),
            nix::libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut len,
        )
    };
    nix::errno::Errno::result(rc).expect("the socket knows its namespace");
    cookie
}

/// Takes `CAP_SYS_ADMIN` from the calling thread, and no other, for good.
pub fn drop_sys_admin() {
    const CAP_SYS_ADMIN: u32 = 21;
    keep_capabilities(!(1 << CAP_SYS_ADMIN));
}

/// Takes every capability from the calling thread, and no other, for good.
pub fn drop_all_capabilities() {
    keep_capabilities(0);
}

#[allow(unsafe_code)]
fn keep_capabilities(kept: u64) {
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut data = <[Data; 2]>::default();
    // SAFETY: the kernel writes two `Data` for this version; both outlive the call.
    let rc =
        unsafe { nix::libc::syscall(nix::libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    nix::errno::Errno::result(rc).expect("a thread may read its own capabilities");
    for (data, kept) in data.iter_mut().zip([kept as u32, (kept >> 32) as u32]) {
        data.effective &= kept;
        data.permitted &= kept;
    }
    // SAFETY: the kernel reads two `Data` for this version; both outlive the call.
    let rc = unsafe { nix::libc::syscall(nix::libc::SYS_capset, &raw mut header, data.as_ptr()) };
    nix::errno::Errno::result(rc).expect("a thread may drop a capability");
}

/// Tells whether a thread of this process has nothing to do: it sleeps, and goes
/// on sleeping for a while. A thread that is gone has nothing to do either.
pub fn sleeps_soundly(tid: i32) -> bool {
    let look = || {
        let asleep = status_of(tid, "State")?.starts_with('S');
        Some((asleep, sleeps_of(tid)?))
    };
    let Some(before) = look() else {
        return true;
    };
    thread::sleep(std::time::Duration::from_millis(5));
    before.0 && look().is_none_or(|after| after == before)
}

/// The number of the system call that a thread of this process sleeps in, if it does:
/// see proc_pid_syscall(5).
pub fn sleeps_in(tid: i32) -> Option<i64> {
    let call = fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).ok()?;
    call.split(' ').next()?.parse().ok()
}

/// Returns when no other thread of this process has anything to do.
pub fn settle() {
    let me = tid();
    super::eventually("all other threads sleep", || {
        tids()
            .into_iter()
            .all(|tid| tid == me || sleeps_soundly(tid))
    });
}

/// Waits until a process has ended, this process's child or not; whether it has been
/// reaped is another matter.
#[allow(unsafe_code)]
pub fn wait_for_exit(pid: u32) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    // SAFETY: the call takes two integers.
    let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
    match nix::errno::Errno::result(fd) {
        Err(nix::errno::Errno::ESRCH) => return,
        result => result.expect("a process can be opened"),
    };
    // SAFETY: the kernel just made this descriptor, and it has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let ended = poll(&mut fds, PollTimeout::from(10_000_u16)).expect("a wait");
    assert_eq!(ended, 1, "process {pid} goes on");
}
