//! The system calls of this program, each of which can be made to fail once.
//!
//! The functions of libc that make them are defined here again, so that the linker takes
//! these: for the library, for nix and for the standard library alike, and none can be
//! forgotten in `sys/`. Each counts, and then either fails with the errno that was asked
//! for or passes on to the real one. Nothing of this is in what ships.
//!
//! A child between fork(2) and execve(2) runs these too: no lock, no allocation.
#![allow(unsafe_code)]
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "clippy does not see the comments in `interpose!`"
)]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::libc;

/// One that can be made to fail.
pub(crate) struct Call {
    /// As in its manual page.
    pub(crate) name: &'static str,
    /// What it can plausibly fail with here.
    pub(crate) errnos: &'static [i32],
    made: &'static AtomicU32,
}

/// A descriptor or memory is not to be had.
const MAKES: &[i32] = &[libc::EMFILE, libc::ENOMEM];
/// A filter of a container, or a kernel that is older.
const REFUSED: &[i32] = &[libc::EPERM, libc::ENOSYS];
const OPENS: &[i32] = &[libc::EMFILE, libc::EACCES];

macro_rules! calls {
    ($($id:ident = $name:literal: $errnos:expr;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[derive(Clone, Copy)]
        enum Id { $($id),* }

        /// All of them.
        pub(crate) static CALLS: &[Call] = &[
            $(Call {
                name: $name,
                errnos: $errnos,
                made: {
                    static MADE: AtomicU32 = AtomicU32::new(0);
                    &MADE
                },
            }),*
        ];
    };
}

calls! {
    Open = "open": OPENS;
    Read = "read": &[libc::EIO, libc::ENOMEM];
    Write = "write": &[libc::EIO];
    Stat = "stat": &[libc::EACCES, libc::ENOMEM];
    Statfs = "fstatfs": &[libc::EPERM, libc::ENOMEM];
    Readlink = "readlink": &[libc::EACCES, libc::ENOMEM];
    Opendir = "opendir": OPENS;
    Getdents = "getdents64": &[libc::ENOENT, libc::ENOMEM];
    Mkdir = "mkdir": &[libc::EACCES, libc::ENOSPC];
    Unlink = "unlink": &[libc::EACCES, libc::EROFS];
    Flock = "flock": &[libc::ENOLCK];
    Dup = "fcntl(F_DUPFD_CLOEXEC)": &[libc::EMFILE];
    Setns = "setns": &[libc::EPERM, libc::ENOMEM];
    Unshare = "unshare": &[libc::EPERM, libc::ENOSPC];
    Mount = "mount": &[libc::EPERM, libc::ENOMEM];
    Umount = "umount2": &[libc::EPERM, libc::EINVAL];
    Ioctl = "ioctl": &[libc::EPERM, libc::ENOTTY, libc::EMFILE];
    Socket = "socket": &[libc::EMFILE, libc::EACCES];
    Socketpair = "socketpair": &[libc::EMFILE];
    Bind = "bind": &[libc::EADDRINUSE, libc::EACCES, libc::ENOMEM];
    Listen = "listen": &[libc::EADDRINUSE, libc::ENOMEM];
    Getsockname = "getsockname": &[libc::ENOBUFS];
    Getsockopt = "getsockopt": &[libc::ENOPROTOOPT, libc::ENOMEM];
    Setsockopt = "setsockopt": &[libc::EPERM, libc::ENOMEM];
    Sendmsg = "sendmsg": &[libc::EPIPE, libc::ENOBUFS, libc::EINTR];
    Recvmsg = "recvmsg": &[libc::ENOMEM, libc::EINTR];
    Poll = "poll": &[libc::ENOMEM, libc::EINTR];
    Eventfd = "eventfd": MAKES;
    Inotify = "inotify_init1": MAKES;
    InotifyAdd = "inotify_add_watch": &[libc::ENOSPC];
    Fanotify = "fanotify_init": &[libc::EPERM, libc::EMFILE];
    FanotifyMark = "fanotify_mark": &[libc::ENOSPC, libc::EINVAL];
    Epoll = "epoll_create1": MAKES;
    Memfd = "memfd_create": &[libc::EMFILE, libc::EACCES, libc::ENOSYS];
    Ftruncate = "ftruncate": &[libc::ENOMEM];
    Mmap = "mmap": &[libc::ENOMEM, libc::EPERM];
    Madvise = "madvise": &[libc::EINVAL];
    Prctl = "prctl": &[libc::EPERM, libc::EINVAL];
    Affinity = "sched_setaffinity": &[libc::EPERM, libc::EINVAL];
    Thread = "pthread_create": &[libc::EAGAIN];
    Fork = "fork": &[libc::EAGAIN, libc::ENOMEM];
    PosixSpawn = "posix_spawn": &[libc::EAGAIN, libc::ENOENT];
    Pipe = "pipe2": &[libc::EMFILE];
    Waitid = "waitid": &[libc::EINTR];
    Chdir = "chdir": &[libc::EACCES];
    PidfdOpen = "pidfd_open": &[libc::ESRCH, libc::EMFILE, libc::ENOSYS];
    PidfdSignal = "pidfd_send_signal": &[libc::EPERM, libc::ESRCH];
    PidfdGetfd = "pidfd_getfd": REFUSED;
    Kcmp = "kcmp": REFUSED;
    CloseRange = "close_range": REFUSED;
    SchedGetattr = "sched_getattr": REFUSED;
    SchedSetattr = "sched_setattr": REFUSED;
    Capget = "capget": REFUSED;
    Capset = "capset": REFUSED;
    Perf = "perf_event_open": &[libc::EACCES, libc::ENOSYS, libc::EMFILE];
    Seccomp = "seccomp": &[libc::EINVAL, libc::ENOMEM, libc::ENOSYS];
    Handle = "name_to_handle_at": &[libc::EOPNOTSUPP, libc::EPERM];
    OpenHandle = "open_by_handle_at": &[libc::EPERM, libc::ESTALE];
}

const NOTHING: usize = usize::MAX;

/// Which of [`CALLS`] is to fail.
static TARGET: AtomicUsize = AtomicUsize::new(NOTHING);
/// At which of its calls from now on, counted down from there.
static LEFT: AtomicI32 = AtomicI32::new(0);
static ERRNO: AtomicI32 = AtomicI32::new(0);
static COUNTING: AtomicBool = AtomicBool::new(false);

/// Begins to count, and to let nothing fail.
pub(crate) fn count() {
    for call in CALLS {
        call.made.store(0, Ordering::Relaxed);
    }
    TARGET.store(NOTHING, Ordering::SeqCst);
    COUNTING.store(true, Ordering::SeqCst);
}

/// Ends that, and tells how often each was called.
pub(crate) fn counted() -> Vec<u32> {
    COUNTING.store(false, Ordering::SeqCst);
    let made = CALLS.iter().map(|call| call.made.load(Ordering::Relaxed));
    made.collect()
}

/// Lets the `nth` call (from 1) of `CALLS[call]` from now on fail.
pub(crate) fn arm(call: usize, nth: u32, errno: i32) {
    ERRNO.store(errno, Ordering::SeqCst);
    LEFT.store(nth as i32, Ordering::SeqCst);
    TARGET.store(call, Ordering::SeqCst);
}

/// Lets no more fail, and tells whether one did.
pub(crate) fn disarm() -> bool {
    TARGET.store(NOTHING, Ordering::SeqCst);
    LEFT.load(Ordering::SeqCst) <= 0
}

/// The errno that the calling call is to fail with, if it is.
fn due(id: Id) -> Option<i32> {
    let index = id as usize;
    if COUNTING.load(Ordering::Relaxed) {
        CALLS[index].made.fetch_add(1, Ordering::Relaxed);
    }
    if TARGET.load(Ordering::SeqCst) != index {
        return None;
    }
    (LEFT.fetch_sub(1, Ordering::SeqCst) == 1).then(|| ERRNO.load(Ordering::SeqCst))
}

/// Finds the real function, once.
fn real(cell: &AtomicUsize, name: &CStr) -> usize {
    match cell.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: the name ends with a nul, and looking it up runs no code but libc's.
            let at = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) } as usize;
            assert_ne!(at, 0, "libc has it");
            cell.store(at, Ordering::Relaxed);
            at
        }
        at => at,
    }
}

/// Defines functions of libc anew. The ones that take a variable number of arguments are
/// given as many as their callers ever pass: what is not passed is not looked at.
macro_rules! interpose {
    ($($name:ident / $symbol:literal ($($arg:ident: $type:ty),*) -> $ret:ty,
        $id:expr, $fails:expr;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $type),*) -> $ret {
            static REAL: AtomicUsize = AtomicUsize::new(0);
            let id: Option<Id> = $id;
            if let Some(errno) = id.and_then(due) {
                let fails: fn(c_int) -> $ret = $fails;
                return fails(errno);
            }
            let at = real(&REAL, $symbol);
            // SAFETY: libc's function of this name has this signature.
            let function: unsafe extern "C" fn($($type),*) -> $ret =
                unsafe { std::mem::transmute(at) };
            // SAFETY: the caller has kept to what the function asks for.
            unsafe { function($($arg),*) }
        }
    )*};
}

fn int(errno: c_int) -> c_int {
    Errno::from_raw(errno).set();
    -1
}

fn long(errno: c_int) -> c_long {
    int(errno).into()
}

fn null(errno: c_int) -> *mut c_void {
    int(errno);
    std::ptr::null_mut()
}

fn map_failed(errno: c_int) -> *mut c_void {
    int(errno);
    libc::MAP_FAILED
}

/// Those whose result is the errno.
fn itself(errno: c_int) -> c_int {
    errno
}

/// Of the mappings only the library's: the standard library takes the end of the process
/// for the answer to having no alternative stack for a new thread.
fn mapping(len: usize, fd: c_int) -> Option<Id> {
    (fd >= 0 || len == 4096).then_some(Id::Mmap)
}

fn duplication(command: c_int) -> Option<Id> {
    (command == libc::F_DUPFD_CLOEXEC).then_some(Id::Dup)
}

/// Not the one that the standard library makes of the pipes of a child, whose failure it
/// takes for a bug.
fn request_to(request: c_ulong) -> Option<Id> {
    (request != libc::FIONBIO).then_some(Id::Ioctl)
}

/// Not the flag that a thread is named by, which it makes no difference to lack.
fn control(option: c_int) -> Option<Id> {
    (option != libc::PR_SET_NAME && option != libc::PR_GET_NAME).then_some(Id::Prctl)
}

fn bare(number: c_long) -> Option<Id> {
    Some(match number {
        libc::SYS_pidfd_open => Id::PidfdOpen,
        libc::SYS_pidfd_send_signal => Id::PidfdSignal,
        libc::SYS_pidfd_getfd => Id::PidfdGetfd,
        libc::SYS_kcmp => Id::Kcmp,
        libc::SYS_close_range => Id::CloseRange,
        libc::SYS_sched_getattr => Id::SchedGetattr,
        libc::SYS_sched_setattr => Id::SchedSetattr,
        libc::SYS_capget => Id::Capget,
        libc::SYS_capset => Id::Capset,
        libc::SYS_perf_event_open => Id::Perf,
        libc::SYS_seccomp => Id::Seccomp,
        libc::SYS_name_to_handle_at => Id::Handle,
        libc::SYS_open_by_handle_at => Id::OpenHandle,
        libc::SYS_getdents64 => Id::Getdents,
        _ => return None,
    })
}

type Text = *const c_char;
type Memory = *mut c_void;

interpose! {
    open / c"open" (path: Text, flags: c_int, mode: c_uint) -> c_int, Some(Id::Open), int;
    open64 / c"open64" (path: Text, flags: c_int, mode: c_uint) -> c_int, Some(Id::Open), int;
    openat / c"openat" (dir: c_int, path: Text, flags: c_int, mode: c_uint) -> c_int,
        Some(Id::Open), int;
    openat64 / c"openat64" (dir: c_int, path: Text, flags: c_int, mode: c_uint) -> c_int,
        Some(Id::Open), int;
    read / c"read" (fd: c_int, to: Memory, len: usize) -> isize, Some(Id::Read), long_size;
    write / c"write" (fd: c_int, from: Memory, len: usize) -> isize, write_to(fd), long_size;
    fstat / c"fstat" (fd: c_int, to: Memory) -> c_int, Some(Id::Stat), int;
    fstat64 / c"fstat64" (fd: c_int, to: Memory) -> c_int, Some(Id::Stat), int;
    stat / c"stat" (path: Text, to: Memory) -> c_int, Some(Id::Stat), int;
    stat64 / c"stat64" (path: Text, to: Memory) -> c_int, Some(Id::Stat), int;
    lstat64 / c"lstat64" (path: Text, to: Memory) -> c_int, Some(Id::Stat), int;
    fstatat / c"fstatat" (dir: c_int, path: Text, to: Memory, flags: c_int) -> c_int,
        Some(Id::Stat), int;
    statx / c"statx" (dir: c_int, path: Text, flags: c_int, mask: c_uint, to: Memory) -> c_int,
        Some(Id::Stat), int;
    fstatfs / c"fstatfs" (fd: c_int, to: Memory) -> c_int, Some(Id::Statfs), int;
    fstatfs64 / c"fstatfs64" (fd: c_int, to: Memory) -> c_int, Some(Id::Statfs), int;
    readlink / c"readlink" (path: Text, to: Memory, len: usize) -> isize,
        Some(Id::Readlink), long_size;
    readlinkat / c"readlinkat" (dir: c_int, path: Text, to: Memory, len: usize) -> isize,
        Some(Id::Readlink), long_size;
    opendir / c"opendir" (path: Text) -> Memory, Some(Id::Opendir), null;
    fdopendir / c"fdopendir" (fd: c_int) -> Memory, Some(Id::Opendir), null;
    mkdir / c"mkdir" (path: Text, mode: c_uint) -> c_int, Some(Id::Mkdir), int;
    unlink / c"unlink" (path: Text) -> c_int, Some(Id::Unlink), int;
    flock / c"flock" (fd: c_int, operation: c_int) -> c_int, Some(Id::Flock), int;
    fcntl / c"fcntl" (fd: c_int, command: c_int, argument: c_ulong) -> c_int,
        duplication(command), int;
    fcntl64 / c"fcntl64" (fd: c_int, command: c_int, argument: c_ulong) -> c_int,
        duplication(command), int;
    setns / c"setns" (fd: c_int, kind: c_int) -> c_int, Some(Id::Setns), int;
    unshare / c"unshare" (flags: c_int) -> c_int, Some(Id::Unshare), int;
    mount / c"mount" (what: Text, at: Text, kind: Text, flags: c_ulong, data: Memory) -> c_int,
        Some(Id::Mount), int;
    umount2 / c"umount2" (at: Text, flags: c_int) -> c_int, Some(Id::Umount), int;
    ioctl / c"ioctl" (fd: c_int, request: c_ulong, argument: c_ulong) -> c_int,
        request_to(request), int;
    socket / c"socket" (domain: c_int, kind: c_int, protocol: c_int) -> c_int,
        Some(Id::Socket), int;
    socketpair / c"socketpair" (domain: c_int, kind: c_int, protocol: c_int, to: Memory) -> c_int,
        Some(Id::Socketpair), int;
    bind / c"bind" (fd: c_int, addr: Memory, len: c_uint) -> c_int, Some(Id::Bind), int;
    listen / c"listen" (fd: c_int, backlog: c_int) -> c_int, Some(Id::Listen), int;
    getsockname / c"getsockname" (fd: c_int, addr: Memory, len: Memory) -> c_int,
        Some(Id::Getsockname), int;
    getsockopt / c"getsockopt" (fd: c_int, level: c_int, name: c_int, to: Memory, len: Memory)
        -> c_int, Some(Id::Getsockopt), int;
    setsockopt / c"setsockopt" (fd: c_int, level: c_int, name: c_int, from: Memory, len: c_uint)
        -> c_int, Some(Id::Setsockopt), int;
    sendmsg / c"sendmsg" (fd: c_int, message: Memory, flags: c_int) -> isize,
        Some(Id::Sendmsg), long_size;
    recvmsg / c"recvmsg" (fd: c_int, message: Memory, flags: c_int) -> isize,
        Some(Id::Recvmsg), long_size;
    poll / c"poll" (fds: Memory, count: c_ulong, timeout: c_int) -> c_int, Some(Id::Poll), int;
    eventfd / c"eventfd" (value: c_uint, flags: c_int) -> c_int, Some(Id::Eventfd), int;
    inotify_init1 / c"inotify_init1" (flags: c_int) -> c_int, Some(Id::Inotify), int;
    inotify_add_watch / c"inotify_add_watch" (fd: c_int, path: Text, mask: c_uint) -> c_int,
        Some(Id::InotifyAdd), int;
    fanotify_init / c"fanotify_init" (flags: c_uint, event: c_uint) -> c_int,
        Some(Id::Fanotify), int;
    fanotify_mark / c"fanotify_mark"
        (fd: c_int, flags: c_uint, mask: u64, dir: c_int, path: Text) -> c_int,
        Some(Id::FanotifyMark), int;
    epoll_create1 / c"epoll_create1" (flags: c_int) -> c_int, Some(Id::Epoll), int;
    memfd_create / c"memfd_create" (name: Text, flags: c_uint) -> c_int, Some(Id::Memfd), int;
    ftruncate / c"ftruncate" (fd: c_int, len: i64) -> c_int, Some(Id::Ftruncate), int;
    mmap / c"mmap" (at: Memory, len: usize, access: c_int, flags: c_int, fd: c_int, offset: i64)
        -> Memory, mapping(len, fd), map_failed;
    mmap64 / c"mmap64"
        (at: Memory, len: usize, access: c_int, flags: c_int, fd: c_int, offset: i64)
        -> Memory, mapping(len, fd), map_failed;
    madvise / c"madvise" (at: Memory, len: usize, advice: c_int) -> c_int, Some(Id::Madvise), int;
    prctl / c"prctl" (option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int,
        control(option), int;
    sched_setaffinity / c"sched_setaffinity" (pid: c_int, len: usize, set: Memory) -> c_int,
        Some(Id::Affinity), int;
    pthread_create / c"pthread_create" (to: Memory, attr: Memory, main: Memory, arg: Memory)
        -> c_int, Some(Id::Thread), itself;
    fork / c"fork" () -> c_int, Some(Id::Fork), int;
    posix_spawnp / c"posix_spawnp"
        (pid: Memory, file: Text, actions: Memory, attr: Memory, argv: Memory, env: Memory)
        -> c_int, Some(Id::PosixSpawn), itself;
    pipe2 / c"pipe2" (to: Memory, flags: c_int) -> c_int, Some(Id::Pipe), int;
    waitid / c"waitid" (kind: c_int, id: c_uint, to: Memory, options: c_int) -> c_int,
        Some(Id::Waitid), int;
    chdir / c"chdir" (path: Text) -> c_int, Some(Id::Chdir), int;
    syscall / c"syscall"
        (number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long)
        -> c_long, bare(number), long;
}

fn long_size(errno: c_int) -> isize {
    int(errno) as isize
}

/// What this program itself has to say goes through.
fn write_to(fd: c_int) -> Option<Id> {
    (fd > 2).then_some(Id::Write)
}

/// Where the calling thread is, by a call that never fails here: `net:[4026532177]`.
pub(crate) fn place() -> [u8; 32] {
    static REAL: AtomicUsize = AtomicUsize::new(0);
    let at = real(&REAL, c"readlink");
    // SAFETY: libc's function of this name has this signature.
    let readlink: unsafe extern "C" fn(Text, Memory, usize) -> isize =
        unsafe { std::mem::transmute(at) };
    let mut text = [0; 32];
    let link = c"/proc/thread-self/ns/net".as_ptr();
    // SAFETY: the path ends with a nul, and there is room for as much as is said.
    let len = unsafe { readlink(link, text.as_mut_ptr().cast(), text.len()) };
    assert!(len > 0, "/proc is mounted");
    text
}
