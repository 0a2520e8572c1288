//! Messages with descriptors in them, between two processes: sendmsg(2) and
//! recvmsg(2) with `SCM_RIGHTS` over a `SOCK_SEQPACKET` pair, see unix(7).
//!
//! Nothing here allocates, because one end is served by a process that was
//! forked from a threaded one. The safe calls of nix do.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

/// Most descriptors in one message; the kernel would take 253 (`SCM_MAX_FD`).
pub(crate) const MAX_FDS: usize = 64;

/// Room for a control message with [`MAX_FDS`] descriptors.
// SAFETY: CMSG_SPACE is arithmetic on its argument.
const CONTROL: usize = unsafe { libc::CMSG_SPACE((MAX_FDS * size_of::<RawFd>()) as u32) as usize };

/// A buffer that a `cmsghdr` may begin.
#[repr(C)]
struct Control {
    align: [libc::cmsghdr; 0],
    bytes: [u8; CONTROL],
}

impl Control {
    const fn new() -> Control {
        Control {
            align: [],
            bytes: [0; CONTROL],
        }
    }
}

/// What recvmsg(2) says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// Zero when the other end is closed, or sent nothing.
    pub(crate) len: usize,
    /// The message was longer than the buffer, and the rest of it is lost.
    pub(crate) is_cut: bool,
    /// Descriptors came along that there was no room for. They are closed.
    pub(crate) lost_fds: bool,
}

/// Makes two connected sockets that keep messages apart.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    Ok(pair)
}

/// Waits up to `time` for a message, and tells whether there is one, or the end.
pub(crate) fn wait_for_message(socket: BorrowedFd<'_>, time: Duration) -> io::Result<bool> {
    let mut polled = [PollFd::new(socket, PollFlags::POLLIN)];
    // Rounded up, not to spin through the last millisecond.
    let millis = u16::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
    match poll(&mut polled, PollTimeout::from(millis)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn header(iov: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all-zero is a valid `msghdr`: null pointers and empty lengths.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = iov;
    header.msg_iovlen = 1;
    header
}

/// Sends one message. A closed other end is `EPIPE`, and no signal.
pub(crate) fn send<'a>(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: impl Iterator<Item = BorrowedFd<'a>>,
) -> io::Result<()> {
    let mut raw = [-1; MAX_FDS];
    let mut count = 0;
    for fd in fds {
        *raw.get_mut(count).ok_or(Errno::EINVAL)? = fd.as_raw_fd();
        count += 1;
    }
    let mut iov = libc::iovec {
        // The kernel only reads it.
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut header = header(&mut iov);
    let mut control = Control::new();
    if count > 0 {
        let len = (count * size_of::<RawFd>()) as u32;
        header.msg_control = (&raw mut control).cast();
        // SAFETY: CMSG_SPACE is arithmetic on its argument.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(len) } as _;
        // SAFETY: `header` points at a live control buffer with its length.
        let first = unsafe { libc::CMSG_FIRSTHDR(&header) };
        // SAFETY: the buffer has room for a header and `MAX_FDS` descriptors,
        // is aligned for one, and nothing else refers to it.
        let message = unsafe { &mut *first };
        message.cmsg_level = libc::SOL_SOCKET;
        message.cmsg_type = libc::SCM_RIGHTS;
        // SAFETY: CMSG_LEN is arithmetic on its argument.
        message.cmsg_len = unsafe { libc::CMSG_LEN(len) } as _;
        // SAFETY: `first` is the header of a message in a live buffer.
        let data: *mut u8 = unsafe { libc::CMSG_DATA(first) };
        // SAFETY: both are as long as `MAX_FDS` descriptors, of which `count` are
        // copied, byte by byte: CMSG_DATA need not be aligned for anything.
        unsafe { data.copy_from_nonoverlapping(raw.as_ptr().cast(), len as usize) };
    }
    loop {
        // SAFETY: `header` points at live buffers with their lengths.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL) };
        match Errno::result(sent) {
            // A message is sent whole or not at all.
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one message that is to bring no descriptors: none is taken in.
pub(crate) fn receive_bytes(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    receive_message(socket, &mut header(&mut iov))
}

/// Receives one message, and appends the descriptors in it to `fds`; they are
/// closed on exec.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut header = header(&mut iov);
    let mut control = Control::new();
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = CONTROL as _;
    let received = receive_message(socket, &mut header)?;

    // SAFETY: `header` points at a live control buffer, with the length that
    // the kernel has filled.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&header) };
    while !next.is_null() {
        // SAFETY: the kernel put a whole header there, in a live buffer.
        let message = unsafe { &*next };
        if (message.cmsg_level, message.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: `next` is the header of a message in a live buffer.
            let data: *const RawFd = unsafe { libc::CMSG_DATA(next) }.cast();
            // SAFETY: CMSG_LEN is arithmetic on its argument.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = (message.cmsg_len as usize - empty) / size_of::<RawFd>();
            for index in 0..count {
                // SAFETY: the kernel says that so many descriptors are there.
                let place = unsafe { data.add(index) };
                // SAFETY: as above; CMSG_DATA need not be aligned for anything.
                let fd = unsafe { place.read_unaligned() };
                // SAFETY: the kernel just made this descriptor for us, so this
                // is its only owner.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: `next` is a header within the control buffer of `header`.
        next = unsafe { libc::CMSG_NXTHDR(&header, next) };
    }
    Ok(received)
}

fn receive_message(socket: BorrowedFd<'_>, header: &mut libc::msghdr) -> io::Result<Received> {
    let len = loop {
        // SAFETY: the callers' headers point at live buffers with their lengths.
        let len = unsafe { libc::recvmsg(socket.as_raw_fd(), header, libc::MSG_CMSG_CLOEXEC) };
        match Errno::result(len) {
            Ok(len) => break len.unsigned_abs(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    Ok(Received {
        len,
        is_cut: header.msg_flags & libc::MSG_TRUNC != 0,
        lost_fds: header.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Waits until there is something to [`receive`], or `limit` has passed.
pub(crate) fn wait(socket: BorrowedFd<'_>, limit: Duration) {
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    // A signal ends it as well.
    let _ = poll(&mut [PollFd::new(socket, PollFlags::POLLIN)], limit);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::iter;
    use std::os::fd::AsFd;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    fn send_zeroes(socket: &OwnedFd, bytes: &[u8], count: usize) -> io::Result<()> {
        let zero = File::open("/dev/zero").expect("every system has it");
        let fds = vec![zero.as_fd(); count];
        send(socket.as_fd(), bytes, fds.into_iter())
    }

    #[test]
    fn message_arrives_whole_with_its_descriptors_closed_on_exec() {
        let (here, there) = pair().expect("a pair");
        for count in [0, 1, 3, MAX_FDS] {
            send_zeroes(&here, b"some bytes", count).expect("there is room");
            let mut fds = Vec::new();
            let mut buffer = [0; 100];
            let received = receive(there.as_fd(), &mut buffer, &mut fds).expect("a message");
            assert_eq!(&buffer[..received.len], b"some bytes");
            assert!(!received.is_cut && !received.lost_fds);
            assert_eq!(fds.len(), count);
            for fd in fds {
                let flags = fcntl(&fd, FcntlArg::F_GETFD).expect("it is open");
                assert_eq!(flags, FdFlag::FD_CLOEXEC.bits());
                let mut byte = [1];
                File::from(fd).read_exact(&mut byte).expect("it reads");
                assert_eq!(byte, [0]);
            }
        }
        assert!(send_zeroes(&here, b"", MAX_FDS + 1).is_err());
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let (here, there) = pair().expect("a pair");
        let mut buffer = [0; 4];
        send_zeroes(&here, b"12345", 0).expect("there is room");
        let long = receive(there.as_fd(), &mut buffer, &mut Vec::new()).expect("a message");
        assert!(long.is_cut && !long.lost_fds);
        send_zeroes(&here, b"1234", 2).expect("there is room");
        let unwanted = receive_bytes(there.as_fd(), &mut buffer).expect("a message");
        assert!(unwanted.lost_fds && !unwanted.is_cut);
        assert_eq!(unwanted.len, 4);
    }

    #[test]
    fn closed_end_is_told_without_a_signal() {
        let (here, there) = pair().expect("a pair");
        drop(there);
        let error = send(here.as_fd(), b"?", iter::empty()).expect_err("the other end is closed");
        assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
        let ended = receive_bytes(here.as_fd(), &mut [0; 4]).expect("the end");
        assert_eq!(ended.len, 0);
    }

    #[test]
    fn wait_ends_with_a_message_with_the_other_end_or_with_the_time() {
        let (here, there) = pair().expect("a pair");
        let wait = |time| wait_for_message(here.as_fd(), time).expect("a socket");
        assert!(!wait(Duration::from_millis(1)));
        send_zeroes(&there, b"1", 0).expect("there is room");
        assert!(wait(Duration::from_secs(60)));
        receive_bytes(here.as_fd(), &mut [0; 4]).expect("a message");
        drop(there);
        assert!(wait(Duration::from_secs(60)));
    }
}
