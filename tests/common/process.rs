//! Looking at this process from inside.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Where the calling thread is: `net:[4026532177]`.
pub fn netns_link_of_this_thread() -> String {
    let link = fs::read_link("/proc/thread-self/ns/net").expect("/proc is mounted");
    link.to_str().expect("plain ASCII").to_owned()
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
    fs::read_dir("/proc/self/task")
        .expect("/proc is mounted")
        .count()
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
        let status = fs::read_to_string(format!("/proc/self/task/{tid}/status")).ok()?;
        let line = |key| status.lines().find_map(|line| line.strip_prefix(key));
        let asleep = line("State:")?.trim().starts_with('S');
        Some((asleep, line("voluntary_ctxt_switches:")?.trim().to_owned()))
    };
    let Some(before) = look() else {
        return true;
    };
    std::thread::sleep(std::time::Duration::from_millis(5));
    before.0 && look().is_none_or(|after| after == before)
}

/// Returns when no other thread of this process has anything to do.
pub fn settle() {
    let me = nix::unistd::gettid().to_string();
    super::eventually("all other threads sleep", || {
        let tasks = fs::read_dir("/proc/self/task").expect("/proc is mounted");
        let names = tasks.flatten().map(|task| task.file_name());
        let others = names.filter(|name| **name != *me);
        let mut tids = others.filter_map(|name| name.to_str()?.parse().ok());
        tids.all(sleeps_soundly)
    });
}

/// Waits until a process has ended, whoever its parent is; whether it has been
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
    // SAFETY: the kernel just made this descriptor, and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let ended = poll(&mut fds, PollTimeout::from(10_000_u16)).expect("a wait");
    assert_eq!(ended, 1, "process {pid} goes on");
}
