//! The namespace files of nsfs: finding, telling apart and entering them.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{Mode, fstat, stat};
use nix::sys::statfs::fstatfs;

mod ioctl {
    // include/uapi/linux/nsfs.h
    nix::ioctl_none!(ns_get_userns, 0xb7, 1);
    nix::ioctl_none!(ns_get_nstype, 0xb7, 3);
    nix::ioctl_read!(ns_get_id, 0xb7, 13, u64);
    // include/uapi/linux/pidfd.h. The kernel demands a third argument of 0,
    // which the `ioctl_none` form would leave to chance.
    nix::ioctl_write_int_bad!(pidfd_get_net_namespace, nix::request_code_none!(0xff, 4));
    // include/uapi/linux/sockios.h
    nix::ioctl_none_bad!(siocgskns, 0x894c);
    nix::ioctl_readwrite_bad!(siocgifflags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(siocsifflags, libc::SIOCSIFFLAGS, libc::ifreq);
}

/// What a file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Netns,
    /// Anything else, in words: "a regular file", "a mount namespace".
    Other(&'static str),
}

/// Moves the calling thread, and no other, into a network namespace.
///
/// For threads that were made for it only: there is no way back that cannot
/// fail, see setns(2).
#[expect(clippy::disallowed_methods, reason = "the one way into a namespace")]
pub(crate) fn enter(netns: impl AsFd) -> io::Result<()> {
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// Gives the calling thread a new network namespace of its own, and opens it.
#[expect(clippy::disallowed_methods, reason = "the one way to a new namespace")]
pub(crate) fn unshare() -> io::Result<OwnedFd> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
    of_this_thread()
}

/// Opens the namespace of the calling thread.
pub(crate) fn of_this_thread() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
}

/// Opens the namespace of the process's main thread.
pub(crate) fn of_main_thread() -> io::Result<OwnedFd> {
    File::open("/proc/self/ns/net").map(OwnedFd::from)
}

/// Tells whether `/proc` has an entry for the calling thread: whether it is mounted,
/// and shows the pid namespace that this process is in.
pub(crate) fn is_proc_there() -> bool {
    fs::symlink_metadata("/proc/thread-self/ns").is_ok()
}

/// The inode number of the user namespace that owns another namespace: the number
/// in `user:[4026531837]`. `EPERM` where that is neither the caller's nor below it.
pub(crate) fn owner(namespace: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: this request takes no argument.
    let fd = unsafe { ioctl::ns_get_userns(namespace.as_raw_fd()) }?;
    // SAFETY: the kernel just made this descriptor, so this is its only owner.
    let owner = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(fstat(owner)?.st_ino)
}

/// Opens the mount namespace of the calling thread.
pub(crate) fn mount_ns_of_this_thread() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/mnt").map(OwnedFd::from)
}

/// The inode number of the user namespace that the calling thread is in.
pub(crate) fn user_ns_of_this_thread() -> io::Result<u64> {
    Ok(fstat(File::open("/proc/thread-self/ns/user")?)?.st_ino)
}

/// Opens the namespace of one of the process's threads.
pub(crate) fn of_thread(tid: u32) -> io::Result<OwnedFd> {
    File::open(format!("/proc/self/task/{tid}/ns/net")).map(OwnedFd::from)
}

/// Opens the namespace of a process, or of one thread of it (Linux 6.9).
///
/// A pid that is reused meanwhile is noticed: `ESRCH`.
pub(crate) fn of_pid(pid: libc::pid_t) -> io::Result<OwnedFd> {
    let pidfd = pidfd_open(pid)?;
    match of_pidfd(pidfd.as_fd()) {
        // Before Linux 6.11 a pidfd does not know this request.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP)
            ) =>
        {
            of_pid_in_proc(pid, pidfd.as_fd())
        }
        result => result,
    }
}

pub(crate) fn pidfd_open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    let open = |flags: libc::c_int| {
        // SAFETY: pidfd_open(2) takes two integers and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) };
        let fd = Errno::result(fd)?;
        let fd = libc::c_int::try_from(fd).expect("a file descriptor is an int");
        // SAFETY: the kernel just made this descriptor, so this is its only owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    match open(0) {
        // The number of a thread that leads no process: ENOENT since Linux
        // 6.9, EINVAL before, where the second attempt fails with it again.
        Err(Errno::ENOENT | Errno::EINVAL) => {
            const PIDFD_THREAD: libc::c_int = libc::O_EXCL;
            open(PIDFD_THREAD)
        }
        result => result,
    }
    .map_err(io::Error::from)
}

/// Linux 6.11. `ESRCH` when the process has exited, reaped or not.
fn of_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: this request takes no pointer.
    let fd = unsafe { ioctl::pidfd_get_net_namespace(pidfd.as_raw_fd(), 0) }?;
    // SAFETY: the kernel just made this descriptor, so this is its only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// As [`of_pidfd`], for older kernels.
fn of_pid_in_proc(pid: libc::pid_t, pidfd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let file = File::open(format!("/proc/{pid}/ns/net"));
    // The pid cannot have been reused before the process was reaped. If signal
    // 0 still reaches it now, then the file opened above was its own.
    // SAFETY: pidfd_send_signal(2) takes a null pointer for "no siginfo".
    let alive = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            0,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match Errno::result(alive) {
        // EPERM is an answer about a living process.
        Ok(_) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    match file {
        // A process that exited and was not reaped has no namespaces left.
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_proc_there() => {
            Err(Errno::ESRCH.into())
        }
        file => file.map(OwnedFd::from),
    }
}

/// Opens the namespace of a socket: `SIOCGSKNS`, which needs `CAP_NET_ADMIN`
/// over that namespace. `ENOTTY` when it is no socket.
pub(crate) fn of_socket(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: this request takes no argument.
    let fd = unsafe { ioctl::siocgskns(socket.as_raw_fd()) }?;
    // SAFETY: the kernel just made this descriptor, so this is its only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Finds `path` without opening what is there: opening a device or a FIFO can
/// have effects of its own. The result is good for [`file_kind`] and [`reopen`].
pub(crate) fn locate(path: &Path, follow_symlinks: bool) -> io::Result<OwnedFd> {
    let nofollow = if follow_symlinks { 0 } else { libc::O_NOFOLLOW };
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | nofollow)
        .open(path)
        .map(OwnedFd::from)
}

/// Opens for real what [`locate`] found, and nothing that took its place since.
pub(crate) fn reopen(located: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    File::open(format!("/proc/thread-self/fd/{}", located.as_raw_fd())).map(OwnedFd::from)
}

/// Tells whether a file belongs to nsfs, be it a namespace of any type.
pub(crate) fn is_on_nsfs(fd: BorrowedFd<'_>) -> io::Result<bool> {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    // The width of the field differs between targets.
    #[allow(clippy::unnecessary_cast)]
    Ok(fstatfs(fd)?.filesystem_type().0 as i64 == NSFS_MAGIC)
}

/// Tells whether a namespace was opened through a bind mount that has been taken
/// away since. `false` also where that cannot be told.
///
/// What is not mounted anywhere is called `net:[4026532177]` by `/proc`, what is
/// mounted by its path; and a detached mount is the root of its own small tree.
pub(crate) fn is_detached(fd: BorrowedFd<'_>) -> bool {
    let link = format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(link).is_ok_and(|path| path == Path::new("/"))
}

/// Tells what an open file is. `EBADF` for a namespace opened with `O_PATH`.
pub(crate) fn file_kind(fd: BorrowedFd<'_>) -> io::Result<FileKind> {
    if !is_on_nsfs(fd)? {
        return Ok(FileKind::Other(file_type(fd)?));
    }
    // SAFETY: this request takes no argument.
    let clone_flag = unsafe { ioctl::ns_get_nstype(fd.as_raw_fd()) }?;
    Ok(match clone_flag {
        libc::CLONE_NEWNET => FileKind::Netns,
        libc::CLONE_NEWNS => FileKind::Other("a mount namespace"),
        libc::CLONE_NEWUSER => FileKind::Other("a user namespace"),
        libc::CLONE_NEWPID => FileKind::Other("a pid namespace"),
        libc::CLONE_NEWIPC => FileKind::Other("an ipc namespace"),
        libc::CLONE_NEWUTS => FileKind::Other("a uts namespace"),
        libc::CLONE_NEWCGROUP => FileKind::Other("a cgroup namespace"),
        libc::CLONE_NEWTIME => FileKind::Other("a time namespace"),
        _ => FileKind::Other("a namespace of another type"),
    })
}

fn file_type(fd: BorrowedFd<'_>) -> io::Result<&'static str> {
    // fstat(2) with std's names for the types.
    let file = File::from(fd.try_clone_to_owned()?);
    let file_type = file.metadata()?.file_type();
    Ok(if file_type.is_file() {
        "a regular file"
    } else if file_type.is_dir() {
        "a directory"
    } else if file_type.is_symlink() {
        "a symbolic link"
    } else if file_type.is_socket() {
        "a socket"
    } else if file_type.is_fifo() {
        "a pipe"
    } else if file_type.is_block_device() || file_type.is_char_device() {
        "a device"
    } else {
        // pidfd, epoll and the like have no type bits.
        "an anonymous kernel object"
    })
}

/// The never-reused id of a namespace: `NS_GET_ID` (Linux 6.18).
pub(crate) fn id(netns: impl AsFd) -> io::Result<u64> {
    let mut id = 0;
    // SAFETY: the kernel writes one u64 to a live variable.
    unsafe { ioctl::ns_get_id(netns.as_fd().as_raw_fd(), &mut id) }?;
    Ok(id)
}

/// The same id, of the namespace that `socket` was made in:
/// `SO_NETNS_COOKIE` (Linux 5.14).
pub(crate) fn id_by_socket(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut len = mem::size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` has room for the `len` bytes that the kernel may write,
    // and both outlive the call.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut len,
        )
    };
    Errno::result(rc)?;
    Ok(cookie)
}

/// The same id, of the namespace of the calling thread. Async-signal-safe: a child asks
/// before it executes its program.
pub(crate) fn id_of_this_thread() -> io::Result<u64> {
    match any_socket() {
        Ok(socket) => id_by_socket(socket.as_fd()),
        // A filter may forbid to make sockets.
        Err(errno) => {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let here = open(c"/proc/thread-self/ns/net", flags, Mode::empty());
            (here.ok().and_then(|here| id(here).ok())).ok_or_else(|| errno.into())
        }
    }
}

/// Whether the calling thread is in the namespace with this id, or, where no descriptor
/// is left to ask for that, with this inode number: two that live never share it.
/// Async-signal-safe.
pub(crate) fn is_here(id: u64, inode: u64) -> io::Result<bool> {
    match id_of_this_thread() {
        Ok(here) => Ok(here == id),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            Ok(stat(c"/proc/thread-self/ns/net")?.st_ino == inode)
        }
        Err(error) => Err(error),
    }
}

/// AF_UNIX, because a kernel can lack any of the others.
fn any_socket() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
}

/// Brings `lo` up in the namespace of the calling thread, see netdevice(7).
pub(crate) fn set_loopback_up() -> io::Result<()> {
    let socket = any_socket()?;
    // SAFETY: all-zero is a valid value of every field of this plain C struct.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: the kernel reads and writes one ifreq, which lives in this frame.
    unsafe { ioctl::siocgifflags(socket.as_raw_fd(), &mut request) }?;
    // SAFETY: SIOCGIFFLAGS just filled in this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: the kernel reads one ifreq, which lives in this frame.
    unsafe { ioctl::siocsifflags(socket.as_raw_fd(), &request) }?;
    Ok(())
}

/// The kernel's `struct file_handle` with room for an nsfs handle, which has
/// 16 bytes so far.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct FileHandle {
    len: libc::c_uint,
    kind: libc::c_int,
    bytes: [u8; FileHandle::ROOM],
}

impl FileHandle {
    const ROOM: usize = 32;

    /// Names an open namespace without holding on to it (Linux 6.18;
    /// `EOPNOTSUPP` before).
    pub(crate) fn of(netns: BorrowedFd<'_>) -> io::Result<FileHandle> {
        let mut handle = FileHandle {
            len: FileHandle::ROOM as libc::c_uint,
            kind: 0,
            bytes: [0; FileHandle::ROOM],
        };
        let mut mount_id: libc::c_int = 0;
        // SAFETY: `handle.len` says how many bytes may be written behind the
        // two numbers; all three pointers outlive the call.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                netns.as_raw_fd(),
                c"".as_ptr(),
                &raw mut handle,
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        Errno::result(rc)?;
        Ok(handle)
    }

    /// Opens the namespace: `ESTALE` when it is gone, and also without
    /// `CAP_SYS_ADMIN` over it, unless it is the calling thread's own.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        // Stands for the root of nsfs, which is mounted nowhere.
        const FD_NSFS_ROOT: libc::c_int = -10003;
        // SAFETY: the kernel reads `len` bytes behind the two numbers, and
        // name_to_handle_at(2) left `len` within `ROOM`.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                FD_NSFS_ROOT,
                &raw const *self,
                libc::O_RDONLY | libc::O_CLOEXEC,
            )
        };
        let fd = Errno::result(fd)?;
        let fd = libc::c_int::try_from(fd).expect("a file descriptor is an int");
        // SAFETY: the kernel just made this descriptor, so this is its only owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_the_socket_cookie() {
        let netns = of_this_thread().unwrap();
        assert_eq!(id(&netns).unwrap(), id_of_this_thread().unwrap());
    }

    #[test]
    fn pidfd_and_proc_open_the_same_namespace() {
        let pid = nix::unistd::getpid().as_raw();
        let pidfd = pidfd_open(pid).unwrap();
        let ioctl = of_pidfd(pidfd.as_fd()).unwrap();
        let proc = of_pid_in_proc(pid, pidfd.as_fd()).unwrap();
        assert_eq!(fstat(&ioctl).unwrap().st_ino, fstat(&proc).unwrap().st_ino);
    }

    #[test]
    fn thread_number_opens_its_namespace() {
        let tid = nix::unistd::gettid();
        assert_ne!(
            tid,
            nix::unistd::getpid(),
            "tests run beside the main thread"
        );
        let netns = of_pid(tid.as_raw()).unwrap();
        assert_eq!(id(&netns).unwrap(), id_of_this_thread().unwrap());
    }

    #[test]
    fn exited_process_has_no_namespace_either_way() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id().try_into().unwrap();
        let pidfd = pidfd_open(pid).unwrap();
        child.wait().unwrap();
        for result in [of_pidfd(pidfd.as_fd()), of_pid_in_proc(pid, pidfd.as_fd())] {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ESRCH));
        }
    }

    #[test]
    fn located_namespace_is_told_apart_only_after_reopening() {
        let located = locate(Path::new("/proc/thread-self/ns/net"), true).unwrap();
        assert!(is_on_nsfs(located.as_fd()).unwrap());
        assert!(file_kind(located.as_fd()).is_err());
        let netns = reopen(located.as_fd()).unwrap();
        assert_eq!(file_kind(netns.as_fd()).unwrap(), FileKind::Netns);
    }

    #[test]
    fn what_is_no_netns_is_named() {
        for (path, name) in [
            ("/proc/thread-self/ns/mnt", "a mount namespace"),
            ("/proc/thread-self/ns/uts", "a uts namespace"),
            ("/proc/thread-self/status", "a regular file"),
            ("/", "a directory"),
            ("/dev/null", "a device"),
        ] {
            let file = OwnedFd::from(File::open(path).unwrap());
            assert_eq!(file_kind(file.as_fd()).unwrap(), FileKind::Other(name));
        }
        let pidfd = pidfd_open(nix::unistd::getpid().as_raw()).unwrap();
        assert!(matches!(
            file_kind(pidfd.as_fd()).unwrap(),
            FileKind::Other(_)
        ));
    }

    #[test]
    fn file_handle_names_the_namespace_it_was_made_of() {
        let netns = of_this_thread().unwrap();
        let again = FileHandle::of(netns.as_fd()).unwrap().open().unwrap();
        assert_eq!(id(&netns).unwrap(), id(&again).unwrap());
    }
}
