//! What the tests of port leases need: namespaces with a loopback, rivals, and
//! the kernel's own list of sockets.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use netns_exec::ports::{Allocator, Error, Lease, Ports, Protocol, Start};
use netns_exec::{Executor, Netns};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind,
    listen, recv, send, setsockopt, socket, sockopt,
};

/// 127.0.0.1.
pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// 0.0.0.0.
pub const V4_ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// ::1.
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
/// ::.
pub const V6_ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// A namespace of the test's own, with its loopback up.
pub fn netns() -> Netns {
    super::require_root();
    let netns = Netns::new().expect("root may make namespaces");
    netns.set_loopback_up().expect("and set their links up");
    netns
}

/// Writes a sysctl of a namespace: `net/ipv4/ip_local_port_range`.
pub fn set_sysctl(executor: &Executor, netns: &Netns, name: &str, value: &str) {
    let path = format!("/proc/sys/{name}");
    executor
        .run(netns, || fs::write(path, value))
        .expect("a thread in the namespace")
        .unwrap_or_else(|error| panic!("cannot write {value:?} to {name}: {error}"));
}

/// Two namespaces, and an allocator whose walks begin at the lowest port.
pub struct World {
    /// Whose workers open the sockets.
    pub executor: Executor,
    /// What is tested.
    pub ports: Allocator,
    /// The one.
    pub host: Netns,
    /// The other.
    pub child: Netns,
}

impl World {
    /// Makes them.
    #[expect(clippy::new_without_default, reason = "it does a lot")]
    pub fn new() -> World {
        let executor = Executor::new().expect("an executor");
        World {
            ports: Allocator::starting_at(&executor, Start::Beginning),
            host: netns(),
            child: netns(),
            executor,
        }
    }

    /// Asks for a port of 127.0.0.1 in both namespaces.
    pub fn both(&self, protocol: Protocol, ports: Ports<'_>) -> Result<Lease, Error> {
        self.ports
            .request(protocol)
            .on(&self.host, [V4])
            .on(&self.child, [V4])
            .ports(ports)
            .acquire()
    }

    /// Asks for a port in the host namespace only.
    pub fn host(&self, protocol: Protocol, addr: IpAddr, ports: Ports<'_>) -> Result<Lease, Error> {
        self.ports
            .request(protocol)
            .on(&self.host, [addr])
            .ports(ports)
            .acquire()
    }

    /// Takes a port of 127.0.0.1 in one of them, and listens.
    pub fn rival(&self, netns: &Netns, port: u16) -> OwnedFd {
        rival(&self.executor, netns, Protocol::Tcp, V4, port)
    }

    /// Connects from inside of one of them.
    pub fn connect(&self, netns: &Netns, addr: SocketAddr) -> std::io::Result<TcpStream> {
        self.executor
            .run(netns, || TcpStream::connect(addr))
            .expect("a thread in the namespace")
    }

    /// Neither the kernel nor the table has anything left.
    #[track_caller]
    pub fn assert_empty(&self) {
        for netns in [&self.host, &self.child] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                assert_eq!(sockets(&self.executor, netns, protocol), []);
            }
        }
        assert_eq!(self.ports.leased(), []);
    }
}

/// The error of a request that must fail.
#[track_caller]
pub fn refused(outcome: Result<Lease, Error>) -> Error {
    match outcome {
        Ok(lease) => panic!("leased after all: {lease:?}"),
        Err(error) => error,
    }
}

/// How a [`rival`] takes its port.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rival {
    /// With `SO_REUSEADDR`.
    pub reuse: bool,
    /// For IPv4 too, where the address is one of IPv6.
    pub dual_stack: bool,
    /// Bound only, and never listening.
    pub mute: bool,
}

impl Rival {
    /// Takes a port in a namespace, as any other program would.
    pub fn take(
        self,
        executor: &Executor,
        netns: &Netns,
        protocol: Protocol,
        addr: impl Into<IpAddr>,
        port: u16,
    ) -> nix::Result<OwnedFd> {
        let addr = SocketAddr::new(addr.into(), port);
        executor
            .run(netns, || self.take_here(protocol, addr))
            .expect("a thread in the namespace")
    }

    /// As [`take`](Self::take), in the namespace of the calling thread.
    pub fn take_here(self, protocol: Protocol, addr: SocketAddr) -> nix::Result<OwnedFd> {
        let family = if addr.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let tcp = protocol == Protocol::Tcp;
        let kind = if tcp {
            SockType::Stream
        } else {
            SockType::Datagram
        };
        let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
        if self.reuse {
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        }
        if addr.is_ipv6() {
            setsockopt(&fd, sockopt::Ipv6V6Only, &!self.dual_stack)?;
        }
        bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
        if tcp && !self.mute {
            listen(&fd, Backlog::MAXALLOWABLE)?;
        }
        Ok(fd)
    }
}

/// A listener, or a bound UDP socket, without any option.
#[track_caller]
pub fn rival(
    executor: &Executor,
    netns: &Netns,
    protocol: Protocol,
    addr: impl Into<IpAddr>,
    port: u16,
) -> OwnedFd {
    Rival::default()
        .take(executor, netns, protocol, addr, port)
        .expect("the rival comes first")
}

/// A socket as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Its own address.
    pub addr: SocketAddr,
    /// The `TCP_` number of linux/tcp_states.h.
    pub state: u8,
    /// For a listener, the longest queue it may have.
    pub backlog: u32,
}

/// Listening, as [`Seen::state`].
pub const LISTEN: u8 = 10;
/// Bound and not listening, as [`Seen::state`]: closed, with a port.
pub const BOUND: u8 = 7;
/// Waiting for stray packets, as [`Seen::state`].
pub const TIME_WAIT: u8 = 6;

/// All sockets of a protocol that have a port in a namespace, also those that
/// are bound and do not listen: sock_diag(7), from a thread in there.
pub fn sockets(executor: &Executor, netns: &Netns, protocol: Protocol) -> Vec<Seen> {
    let protocol = match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP,
        _ => libc::IPPROTO_UDP,
    };
    executor
        .run(netns, || {
            let mut seen = dump(libc::AF_INET, protocol);
            seen.extend(dump(libc::AF_INET6, protocol));
            seen.sort_unstable();
            seen
        })
        .expect("a thread in the namespace")
}

/// The addresses of [`sockets`].
pub fn taken(executor: &Executor, netns: &Netns, protocol: Protocol) -> BTreeSet<SocketAddr> {
    let seen = sockets(executor, netns, protocol);
    seen.iter().map(|socket| socket.addr).collect()
}

/// One `SOCK_DIAG_BY_FAMILY` dump of the calling thread's namespace.
fn dump(family: i32, protocol: i32) -> Vec<Seen> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const HEADER: usize = 16;
    let mut request = Vec::with_capacity(HEADER + 56);
    request.extend_from_slice(&72_u32.to_ne_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request.extend_from_slice(&[0; 8]); // sequence number, port id
    request.extend_from_slice(&[family as u8, protocol as u8, 0, 0]);
    request.extend_from_slice(&u32::MAX.to_ne_bytes()); // every state
    request.resize(72, 0); // any address

    let fd = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )
    .expect("a netlink socket");
    send(fd.as_raw_fd(), &request, MsgFlags::empty()).expect("the kernel takes requests");

    let u16_at = |bytes: &[u8], at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |bytes: &[u8], at: usize| {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    };
    let mut seen = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("an answer");
        let mut rest = &buffer[..len];
        while rest.len() >= HEADER {
            let len = u32_at(rest, 0) as usize;
            match i32::from(u16_at(rest, 4)) {
                libc::NLMSG_DONE => return seen,
                libc::NLMSG_ERROR => panic!("sock_diag: errno {}", -(u32_at(rest, 16) as i32)),
                _ => {}
            }
            let body = &rest[HEADER..len];
            let port = u16::from_be_bytes([body[4], body[5]]);
            let ip = if family == libc::AF_INET {
                IpAddr::from(<[u8; 4]>::try_from(&body[8..12]).expect("four bytes"))
            } else {
                IpAddr::from(<[u8; 16]>::try_from(&body[8..24]).expect("sixteen bytes"))
            };
            seen.push(Seen {
                addr: SocketAddr::new(ip, port),
                state: body[1],
                backlog: u32_at(body, 60),
            });
            rest = &rest[len.next_multiple_of(4).min(rest.len())..];
        }
    }
}
