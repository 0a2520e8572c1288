//! Sockets as the port leases and the network wing want them, and the options that std
//! does not know.
//!
//! A socket belongs to the namespace of the thread that opened it. From then
//! on any thread may use it: bind(2), listen(2) and all options act in the
//! socket's namespace, not in the caller's.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, Backlog, NetlinkAddr, Shutdown, SockaddrStorage, UnixAddr, setsockopt, sockopt,
};

use super::bpf;

/// From linux/in.h (Linux 6.3); neither libc nor nix has it.
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
/// From linux/in6.h (Linux 4.15); libc does not have it.
const IPV6_FREEBIND: libc::c_int = 78;
/// From linux/sctp.h.
const SCTP_INITMSG: libc::c_int = 2;
/// From linux/sctp.h.
const SCTP_SOCKOPT_BINDX_ADD: libc::c_int = 100;

/// `struct sctp_initmsg` of linux/sctp.h; a zero leaves the default in place.
#[repr(C)]
struct SctpInitMsg {
    num_ostreams: u16,
    max_instreams: u16,
    max_attempts: u16,
    max_init_timeo: u16,
}

/// Opens a socket that is neither bound nor inherited by children.
pub(crate) fn open(
    domain: libc::c_int,
    kind: libc::c_int,
    protocol: libc::c_int,
) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes three numbers and no pointer.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, so this is its only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn bind(fd: impl AsFd, addr: SocketAddr) -> io::Result<()> {
    socket::bind(fd.as_fd().as_raw_fd(), &SockaddrStorage::from(addr)).map_err(io::Error::from)
}

/// Connects a socket that does not block, and waits for that; `ETIMEDOUT` after
/// `deadline`.
pub(crate) fn connect(
    fd: impl AsFd,
    addr: SocketAddr,
    deadline: Option<Instant>,
) -> io::Result<()> {
    let fd = fd.as_fd();
    match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(addr)) {
        Ok(()) => return Ok(()),
        Err(Errno::EINPROGRESS | Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    wait_for(fd, PollFlags::POLLOUT, deadline)?;
    match socket::getsockopt(&fd, sockopt::SocketError)? {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Waits until one of `events`, or an error, is there; `ETIMEDOUT` after `deadline`.
pub(crate) fn wait_for(
    fd: impl AsFd,
    events: PollFlags,
    deadline: Option<Instant>,
) -> io::Result<()> {
    let mut fds = [PollFd::new(fd.as_fd(), events)];
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Rounded up: a wait that is a moment too short would be begun anew in vain.
        let timeout = match left {
            None => PollTimeout::NONE,
            Some(left) => {
                PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Makes calls on the socket wait, or not.
pub(crate) fn set_nonblocking(fd: impl AsFd, nonblocking: bool) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    let mut wanted = flags;
    wanted.set(OFlag::O_NONBLOCK, nonblocking);
    if wanted != flags {
        fcntl(&fd, FcntlArg::F_SETFL(wanted))?;
    }
    Ok(())
}

/// Keeps children that are started from inheriting the socket.
pub(crate) fn set_cloexec(fd: impl AsFd) -> io::Result<()> {
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// Binds a unix socket to a name that is no file's, and is its namespace's own.
pub(crate) fn bind_abstract(fd: impl AsFd, name: &[u8]) -> io::Result<()> {
    let addr = UnixAddr::new_abstract(name)?;
    socket::bind(fd.as_fd().as_raw_fd(), &addr).map_err(io::Error::from)
}

/// Connects a unix socket to the one that is bound to such a name.
pub(crate) fn connect_abstract(fd: impl AsFd, name: &[u8]) -> io::Result<()> {
    let addr = UnixAddr::new_abstract(name)?;
    loop {
        match socket::connect(fd.as_fd().as_raw_fd(), &addr) {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

/// Binds a netlink socket to an address that the kernel chooses, and to groups.
pub(crate) fn bind_netlink(fd: impl AsFd, groups: u32) -> io::Result<()> {
    let addr = NetlinkAddr::new(0, groups);
    socket::bind(fd.as_fd().as_raw_fd(), &addr).map_err(io::Error::from)
}

/// Binds a packet socket to what comes in, or goes out, as `ethertype` on one device:
/// packet(7). Index 0 stands for all.
pub(crate) fn bind_packet(fd: impl AsFd, ethertype: u16, device: u32) -> io::Result<()> {
    let addr = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::c_ushort,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: device.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the kernel reads at most the size of a live variable.
    let rc = unsafe {
        libc::bind(
            fd.as_fd().as_raw_fd(),
            (&raw const addr).cast(),
            size_of_val(&addr) as libc::socklen_t,
        )
    };
    Errno::result(rc).map(drop).map_err(io::Error::from)
}

/// The number of a device in the calling thread's namespace.
pub(crate) fn device_index(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(io::Error::from)
}

/// Listens with the longest queue the socket's namespace allows: the kernel
/// cuts -1, read as unsigned, down to `net.core.somaxconn`.
pub(crate) fn listen(fd: impl AsFd) -> io::Result<()> {
    socket::listen(&fd, Backlog::MAXALLOWABLE).map_err(io::Error::from)
}

/// The address that the socket is bound to; `None` for a family other than IP.
pub(crate) fn local_addr(fd: impl AsFd) -> io::Result<Option<SocketAddr>> {
    let addr: SockaddrStorage = socket::getsockname(fd.as_fd().as_raw_fd())?;
    let v4 = addr
        .as_sockaddr_in()
        .map(|addr| SocketAddr::V4((*addr).into()));
    let v6 = || {
        addr.as_sockaddr_in6()
            .map(|addr| SocketAddr::V6((*addr).into()))
    };
    Ok(v4.or_else(v6))
}

/// The family, type and protocol that the socket was opened with.
pub(crate) fn kind(fd: impl AsFd) -> io::Result<[libc::c_int; 3]> {
    let get = |name| {
        let mut value: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to a live variable.
        let rc = unsafe {
            libc::getsockopt(
                fd.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                name,
                (&raw mut value).cast(),
                &mut len,
            )
        };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(value)
    };
    Ok([
        get(libc::SO_DOMAIN)?,
        get(libc::SO_TYPE)?,
        get(libc::SO_PROTOCOL)?,
    ])
}

/// Ends listening in every copy of this descriptor.
pub(crate) fn shut_down(fd: impl AsFd) -> io::Result<()> {
    socket::shutdown(fd.as_fd().as_raw_fd(), Shutdown::Both).map_err(io::Error::from)
}

pub(crate) fn set_reuse_addr(fd: impl AsFd) -> io::Result<()> {
    setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(io::Error::from)
}

pub(crate) fn set_v6_only(fd: impl AsFd) -> io::Result<()> {
    setsockopt(&fd, sockopt::Ipv6V6Only, &true).map_err(io::Error::from)
}

/// Makes recvmsg(2) tell the address a datagram was sent to.
pub(crate) fn set_packet_info(fd: impl AsFd, v6: bool) -> io::Result<()> {
    let set = if v6 {
        setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)
    } else {
        setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)
    };
    set.map_err(io::Error::from)
}

/// Stops what [`set_packet_info`] began.
pub(crate) fn clear_packet_info(fd: impl AsFd, v6: bool) -> io::Result<()> {
    let clear = if v6 {
        setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &false)
    } else {
        setsockopt(&fd, sockopt::Ipv4PacketInfo, &false)
    };
    clear.map_err(io::Error::from)
}

/// Lets the socket be bound to an address that its namespace does not have, or
/// not yet.
pub(crate) fn set_free_bind(fd: impl AsFd, v6: bool) -> io::Result<()> {
    let on: libc::c_int = 1;
    if v6 {
        set(fd.as_fd(), libc::SOL_IPV6, IPV6_FREEBIND, &on)
    } else {
        set(fd.as_fd(), libc::SOL_IP, libc::IP_FREEBIND, &on)
    }
}

/// Ties the socket to a device of its namespace; `name` ends with a zero.
pub(crate) fn bind_to_device(fd: impl AsFd, name: &[u8; libc::IFNAMSIZ]) -> io::Result<()> {
    set(fd.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name)
}

/// Makes the socket drop every packet: no handshake, no datagram.
pub(crate) fn drop_packets(fd: impl AsFd) -> io::Result<()> {
    // Accept zero bytes of the packet, which drops it.
    attach_filter(fd, &mut [bpf::ret(0)])
}

/// Makes a TCP socket drop every answer to a connection attempt of its own, for
/// good: it can listen and accept, and never connect. The filter cannot be taken
/// away any more, and connections inherit it.
pub(crate) fn lock_to_accepting(fd: impl AsFd) -> io::Result<()> {
    // In the word of a header that the flags are in, see tcp(7): a filter's packet
    // begins there.
    const FLAGS: u32 = 12;
    const SYN_ACK: u32 = 0x0012_0000;
    let mut program = [
        bpf::load(FLAGS),
        bpf::and(SYN_ACK),
        bpf::jump(libc::BPF_JEQ, SYN_ACK, 0, 1),
        bpf::ret(0),
        bpf::ret(u32::MAX),
    ];
    attach_filter(&fd, &mut program)?;
    let on: libc::c_int = 1;
    set(fd.as_fd(), libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &on)
}

fn attach_filter(fd: impl AsFd, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // The kernel copies the program during the call, while `program` lives.
    set(
        fd.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_ATTACH_FILTER,
        &program,
    )
}

/// Takes [`drop_packets`] back.
pub(crate) fn pass_packets(fd: impl AsFd) -> io::Result<()> {
    let unused: libc::c_int = 0;
    set(
        fd.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_DETACH_FILTER,
        &unused,
    )
}

/// Makes a bind to port 0 choose from `low..=high`. The kernel ignores bounds
/// outside of the namespace's `ip_local_port_range` without a word.
pub(crate) fn set_local_port_range(fd: impl AsFd, low: u16, high: u16) -> io::Result<()> {
    let range = u32::from(high) << 16 | u32::from(low);
    set(fd.as_fd(), libc::SOL_IP, IP_LOCAL_PORT_RANGE, &range)
}

/// Offers every association the largest number of streams in both directions.
pub(crate) fn set_sctp_streams(fd: impl AsFd) -> io::Result<()> {
    let message = SctpInitMsg {
        num_ostreams: u16::MAX,
        max_instreams: u16::MAX,
        max_attempts: 0,
        max_init_timeo: 0,
    };
    set(fd.as_fd(), libc::IPPROTO_SCTP, SCTP_INITMSG, &message)
}

/// Adds an address to those an SCTP socket is bound to: sctp_bindx(3).
pub(crate) fn sctp_bindx(fd: impl AsFd, addr: SocketAddr) -> io::Result<()> {
    // The kernel wants addresses of their own length, one after the other.
    match addr {
        SocketAddr::V4(addr) => {
            let addr = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: addr.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(addr.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            set(
                fd.as_fd(),
                libc::IPPROTO_SCTP,
                SCTP_SOCKOPT_BINDX_ADD,
                &addr,
            )
        }
        SocketAddr::V6(addr) => {
            let addr = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: addr.port().to_be(),
                sin6_flowinfo: addr.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: addr.ip().octets(),
                },
                sin6_scope_id: addr.scope_id(),
            };
            set(
                fd.as_fd(),
                libc::IPPROTO_SCTP,
                SCTP_SOCKOPT_BINDX_ADD,
                &addr,
            )
        }
    }
}

/// setsockopt(2) with a plain value. The options above name the type that the
/// kernel reads for them.
fn set<T>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads at most `size_of::<T>()` bytes from a live reference.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::mem::MaybeUninit;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn kernel_that_has_sctp_takes_its_options_and_another_says_so() {
        let open = |domain| self::open(domain, libc::SOCK_STREAM, libc::IPPROTO_SCTP);
        let socket = match open(libc::AF_INET) {
            Ok(socket) => socket,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT));
                return;
            }
        };
        set_sctp_streams(&socket).expect("the option is as old as sctp");
        let mut message = MaybeUninit::<SctpInitMsg>::zeroed();
        let mut len = size_of::<SctpInitMsg>() as libc::socklen_t;
        // SAFETY: `message` has room for `len` bytes; both outlive the call.
        let rc = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_SCTP,
                SCTP_INITMSG,
                message.as_mut_ptr().cast(),
                &mut len,
            )
        };
        assert_eq!(rc, 0);
        // SAFETY: it is four integers, zeroed first, so any content is valid.
        let message = unsafe { message.assume_init() };
        assert_eq!(message.num_ostreams, u16::MAX);
        assert_eq!(message.max_instreams, u16::MAX);

        let v6 = open(libc::AF_INET6).expect("both families");
        for (socket, ip) in [
            (&socket, Ipv4Addr::LOCALHOST.into()),
            (&v6, Ipv6Addr::LOCALHOST.into()),
        ] {
            let addr = SocketAddr::new(ip, 33000);
            sctp_bindx(socket, addr).expect("the port is free");
            assert_eq!(local_addr(socket).expect("it is bound"), Some(addr));
        }
    }

    #[test]
    fn descriptor_is_closed_on_exec() {
        let socket = open(libc::AF_INET, libc::SOCK_DGRAM, 0).expect("a socket");
        let flags = nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_GETFD).expect("it is open");
        assert_eq!(flags, libc::FD_CLOEXEC);
    }
}
