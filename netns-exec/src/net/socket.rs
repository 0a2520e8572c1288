//! One socket at a time: made by a worker, and all else by the caller.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use super::place::Place;
use crate::error::{Error, Result};
use crate::executor::blocking;
use crate::sys::socket;

/// The arguments of socket(2).
#[derive(Clone, Copy)]
pub(super) struct Spec {
    pub(super) domain: libc::c_int,
    pub(super) kind: libc::c_int,
    pub(super) protocol: libc::c_int,
}

impl Spec {
    pub(super) const TCP4: Spec = Spec::new(libc::AF_INET, libc::SOCK_STREAM, 0);
    pub(super) const TCP6: Spec = Spec::new(libc::AF_INET6, libc::SOCK_STREAM, 0);
    pub(super) const UDP4: Spec = Spec::new(libc::AF_INET, libc::SOCK_DGRAM, 0);
    pub(super) const UDP6: Spec = Spec::new(libc::AF_INET6, libc::SOCK_DGRAM, 0);
    const UNIX: Spec = Spec::new(libc::AF_UNIX, libc::SOCK_STREAM, 0);

    const fn new(domain: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> Spec {
        Spec {
            domain,
            kind,
            protocol,
        }
    }

    pub(super) fn tcp(addr: SocketAddr) -> Spec {
        match addr.is_ipv4() {
            true => Spec::TCP4,
            false => Spec::TCP6,
        }
    }

    pub(super) fn udp(addr: SocketAddr) -> Spec {
        match addr.is_ipv4() {
            true => Spec::UDP4,
            false => Spec::UDP6,
        }
    }

    /// Makes the socket, in the calling thread's namespace.
    pub(super) fn open(self, nonblocking: bool) -> io::Result<OwnedFd> {
        let flag = match nonblocking {
            true => libc::SOCK_NONBLOCK,
            false => 0,
        };
        socket::open(self.domain, self.kind | flag, self.protocol)
    }
}

/// What a call attempts, for the text of its error.
struct Attempt<'a, P> {
    what: &'a dyn Fn() -> String,
    place: &'a P,
}

impl<P: Place> Attempt<'_, P> {
    fn failed(&self, cause: io::Error) -> Error {
        let errno = cause.raw_os_error();
        let attempt = format!("cannot {} in netns `{}`", (self.what)(), self.place.name());
        let error = Error::kernel(attempt, cause);
        match errno {
            Some(libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::ENETDOWN) => {
                error.hint("a new namespace has no address, and even its loopback is down")
            }
            Some(libc::EPERM | libc::EACCES) => {
                error.hint("needs a capability over that namespace, such as CAP_NET_RAW")
            }
            _ => error,
        }
    }

    fn open(&self, spec: Spec) -> Result<OwnedFd> {
        self.make(move |nonblocking| spec.open(nonblocking))
    }

    fn make(&self, f: impl FnOnce(bool) -> io::Result<OwnedFd> + Send) -> Result<OwnedFd> {
        let nonblocking = self.place.is_nonblocking();
        let made = self.place.run_there(move || f(nonblocking))?;
        made.map_err(|cause| self.failed(cause))
    }
}

/// Has `f` make a socket that does not block, and awaits it.
async fn awaited<P: Place>(
    place: &P,
    what: &(dyn Fn() -> String + Sync),
    f: impl FnOnce() -> io::Result<OwnedFd> + Send + 'static,
) -> Result<OwnedFd> {
    let made = place.spawn_there(f).await?.await?;
    made.map_err(|cause| Attempt { what, place }.failed(cause))
}

/// Listens at `addr` for TCP connections.
///
/// `SO_REUSEADDR` is set, as [`TcpListener::bind`] does, and the queue is as long as
/// the namespace allows. Port 0 is a free one.
///
/// # Blocking
///
/// As [`Executor::run`](crate::Executor::run), for the time of socket(2).
///
/// # Errors
///
/// As [`Executor::run`](crate::Executor::run); and the errno of socket(2), bind(2) or
/// listen(2), such as `EADDRINUSE`.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Netns, net};
///
/// let listener = net::tcp_listen(&Netns::open("blue")?, ([127, 0, 0, 1], 80))?;
/// # let _ = listener;
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn tcp_listen(place: impl Place, addr: impl Into<SocketAddr>) -> Result<TcpListener> {
    let addr = addr.into();
    let attempt = Attempt {
        what: &|| listens(addr),
        place: &place,
    };
    let socket = attempt.open(Spec::tcp(addr))?;
    listen(socket, addr).map_err(|cause| attempt.failed(cause))
}

/// As [`tcp_listen`], to be awaited. The socket does not block.
///
/// # Errors
///
/// As [`tcp_listen`].
///
/// # Examples
///
/// ```no_run
/// # async fn f() -> netns_exec::Result<()> {
/// use netns_exec::{Netns, net};
///
/// let listener = net::tcp_listen_async(&Netns::open("blue")?, ([127, 0, 0, 1], 80)).await?;
/// // For instance `tokio::net::TcpListener::from_std(listener)`.
/// # let _ = listener;
/// # Ok(())
/// # }
/// ```
pub async fn tcp_listen_async(
    place: impl Place,
    addr: impl Into<SocketAddr>,
) -> Result<TcpListener> {
    let addr = addr.into();
    let open = move || listen(Spec::tcp(addr).open(true)?, addr).map(OwnedFd::from);
    let socket = awaited(&place, &move || listens(addr), open).await?;
    Ok(socket.into())
}

fn listens(addr: SocketAddr) -> String {
    format!("listen on tcp {addr}")
}

fn listen(socket: OwnedFd, addr: SocketAddr) -> io::Result<TcpListener> {
    socket::set_reuse_addr(&socket)?;
    socket::bind(&socket, addr)?;
    socket::listen(&socket)?;
    Ok(socket.into())
}

/// Connects to `addr` by TCP, within `timeout` if there is one.
///
/// The wait is on the calling thread: no worker is kept from other calls by a peer that
/// does not answer.
///
/// # Blocking
///
/// Blocks until the connection is there, refused, or `timeout` has passed; without one
/// the kernel gives up after about two minutes. The stream blocks later unless
/// [`nonblocking`](super::nonblocking) was asked for.
///
/// # Errors
///
/// As [`Executor::run`](crate::Executor::run); and the errno of connect(2), such as
/// `ECONNREFUSED`, or `ETIMEDOUT`.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use netns_exec::{Netns, net};
///
/// let blue = Netns::open("blue")?;
/// let stream = net::tcp_connect(&blue, ([10, 0, 0, 2], 443), Duration::from_secs(3))?;
/// # let _ = stream;
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn tcp_connect(
    place: impl Place,
    addr: impl Into<SocketAddr>,
    timeout: impl Into<Option<Duration>>,
) -> Result<TcpStream> {
    let (addr, deadline) = (addr.into(), deadline(timeout.into()));
    let attempt = Attempt {
        what: &|| connects(addr),
        place: &place,
    };
    let socket = attempt.make(move |_| Spec::tcp(addr).open(true))?;
    blocking(|| socket::connect(&socket, addr, deadline))
        .and_then(|()| socket::set_nonblocking(&socket, place.is_nonblocking()))
        .map_err(|cause| attempt.failed(cause))?;
    Ok(socket.into())
}

/// As [`tcp_connect`], to be awaited. The stream does not block.
///
/// A worker waits for the peer, and others serve the namespace meanwhile. For many
/// connections at a time take a socket from a [`SocketStock`](super::SocketStock) and
/// have the runtime connect it.
///
/// # Errors
///
/// As [`tcp_connect`].
///
/// # Examples
///
/// ```no_run
/// # async fn f() -> netns_exec::Result<()> {
/// use netns_exec::{Netns, net};
///
/// let stream = net::tcp_connect_async(&Netns::open("blue")?, ([10, 0, 0, 2], 443), None).await?;
/// # let _ = stream;
/// # Ok(())
/// # }
/// ```
pub async fn tcp_connect_async(
    place: impl Place,
    addr: impl Into<SocketAddr>,
    timeout: impl Into<Option<Duration>>,
) -> Result<TcpStream> {
    let (addr, deadline) = (addr.into(), deadline(timeout.into()));
    let connect = move || {
        let socket = Spec::tcp(addr).open(true)?;
        blocking(|| socket::connect(&socket, addr, deadline))?;
        Ok(socket)
    };
    let socket = awaited(&place, &move || connects(addr), connect).await?;
    Ok(socket.into())
}

fn connects(addr: SocketAddr) -> String {
    format!("connect to tcp {addr}")
}

/// A time that is out of range is one that never comes.
fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// Binds a UDP socket to `addr`. Port 0 is a free one.
///
/// # Blocking
///
/// As [`tcp_listen`].
///
/// # Errors
///
/// As [`tcp_listen`].
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Netns, net};
///
/// let socket = net::udp_bind(&Netns::open("blue")?, ([0, 0, 0, 0], 53))?;
/// # let _ = socket;
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn udp_bind(place: impl Place, addr: impl Into<SocketAddr>) -> Result<UdpSocket> {
    let addr = addr.into();
    let attempt = Attempt {
        what: &|| format!("bind udp {addr}"),
        place: &place,
    };
    let socket = attempt.open(Spec::udp(addr))?;
    socket::bind(&socket, addr).map_err(|cause| attempt.failed(cause))?;
    Ok(socket.into())
}

/// As [`udp_bind`], to be awaited. The socket does not block.
///
/// # Errors
///
/// As [`udp_bind`].
///
/// # Examples
///
/// ```no_run
/// # async fn f() -> netns_exec::Result<()> {
/// use netns_exec::{Netns, net};
///
/// let socket = net::udp_bind_async(&Netns::open("blue")?, ([0, 0, 0, 0], 53)).await?;
/// # let _ = socket;
/// # Ok(())
/// # }
/// ```
pub async fn udp_bind_async(place: impl Place, addr: impl Into<SocketAddr>) -> Result<UdpSocket> {
    let addr = addr.into();
    let open = move || {
        let socket = Spec::udp(addr).open(true)?;
        socket::bind(&socket, addr)?;
        Ok(socket)
    };
    let socket = awaited(&place, &move || format!("bind udp {addr}"), open).await?;
    Ok(socket.into())
}

/// Listens at a name of unix(7) that is no file's: an abstract one, which each network
/// namespace has its own of. `name` is without the zero byte that begins it.
///
/// # Blocking
///
/// As [`tcp_listen`].
///
/// # Errors
///
/// As [`tcp_listen`]; `ENAMETOOLONG` for more than 107 bytes.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Netns, net};
///
/// let blue = Netns::open("blue")?;
/// let listener = net::unix_abstract(&blue, "agent")?;
/// let stream = net::unix_abstract_connect(&blue, "agent")?;
/// # let _ = (listener, stream);
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn unix_abstract(place: impl Place, name: impl AsRef<[u8]>) -> Result<UnixListener> {
    let name = name.as_ref();
    let attempt = Attempt {
        what: &|| format!("listen on unix {}", shown(name)),
        place: &place,
    };
    let socket = attempt.open(Spec::UNIX)?;
    listen_abstract(&socket, name).map_err(|cause| attempt.failed(cause))?;
    Ok(socket.into())
}

/// As [`unix_abstract`], to be awaited. The socket does not block.
///
/// # Errors
///
/// As [`unix_abstract`].
///
/// # Examples
///
/// ```no_run
/// # async fn f() -> netns_exec::Result<()> {
/// use netns_exec::{Netns, net};
///
/// let listener = net::unix_abstract_async(&Netns::open("blue")?, "agent").await?;
/// # let _ = listener;
/// # Ok(())
/// # }
/// ```
pub async fn unix_abstract_async(
    place: impl Place,
    name: impl AsRef<[u8]>,
) -> Result<UnixListener> {
    let name = name.as_ref().to_owned();
    let what = format!("listen on unix {}", shown(&name));
    let open = move || {
        let socket = Spec::UNIX.open(true)?;
        listen_abstract(&socket, &name)?;
        Ok(socket)
    };
    Ok(awaited(&place, &move || what.clone(), open).await?.into())
}

/// Connects to a listener at an abstract name of unix(7), in the same namespace.
///
/// # Blocking
///
/// Blocks while the listener's queue is full.
///
/// # Errors
///
/// As [`Executor::run`](crate::Executor::run); and the errno of connect(2), such as
/// `ECONNREFUSED` when no socket has that name.
///
/// # Examples
///
/// ```no_run
/// use std::io::Write;
/// use netns_exec::{Netns, net};
///
/// // A D-Bus or X11 socket of a container, which no path leads to.
/// let mut stream = net::unix_abstract_connect(&Netns::open("blue")?, "/tmp/.X11-unix/X0")?;
/// stream.write_all(b"l")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn unix_abstract_connect(place: impl Place, name: impl AsRef<[u8]>) -> Result<UnixStream> {
    let name = name.as_ref();
    let attempt = Attempt {
        what: &|| format!("connect to unix {}", shown(name)),
        place: &place,
    };
    let socket = attempt.open(Spec::UNIX)?;
    blocking(|| socket::connect_abstract(&socket, name)).map_err(|cause| attempt.failed(cause))?;
    Ok(socket.into())
}

/// As [`unix_abstract_connect`], to be awaited. The stream does not block.
///
/// # Errors
///
/// As [`unix_abstract_connect`]; `EAGAIN` when the listener's queue is full.
///
/// # Examples
///
/// ```no_run
/// # async fn f() -> netns_exec::Result<()> {
/// use netns_exec::{Netns, net};
///
/// let stream = net::unix_abstract_connect_async(&Netns::open("blue")?, "agent").await?;
/// # let _ = stream;
/// # Ok(())
/// # }
/// ```
pub async fn unix_abstract_connect_async(
    place: impl Place,
    name: impl AsRef<[u8]>,
) -> Result<UnixStream> {
    let name = name.as_ref().to_owned();
    let what = format!("connect to unix {}", shown(&name));
    let open = move || {
        let socket = Spec::UNIX.open(true)?;
        socket::connect_abstract(&socket, &name)?;
        Ok(socket)
    };
    Ok(awaited(&place, &move || what.clone(), open).await?.into())
}

fn listen_abstract(socket: &OwnedFd, name: &[u8]) -> io::Result<()> {
    socket::bind_abstract(socket, name)?;
    socket::listen(socket)
}

/// As ss(8) shows an abstract name.
fn shown(name: &[u8]) -> impl Display {
    format!("@{}", name.escape_ascii())
}

/// Opens a raw socket of an IP protocol: raw(7). `any` is the unspecified address of the
/// family, or any other of it.
///
/// # Blocking
///
/// As [`tcp_listen`].
///
/// # Errors
///
/// As [`tcp_listen`];
/// [`is_permission_denied`](crate::Error::is_permission_denied) without `CAP_NET_RAW`.
///
/// # Examples
///
/// ```no_run
/// use std::net::Ipv4Addr;
/// use netns_exec::{Netns, net};
///
/// const ICMP: i32 = 1;
/// let socket = net::raw(&Netns::open("blue")?, Ipv4Addr::UNSPECIFIED, ICMP)?;
/// # let _ = socket;
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn raw(place: impl Place, any: impl Into<IpAddr>, protocol: i32) -> Result<OwnedFd> {
    let attempt = Attempt {
        what: &|| format!("open a raw socket of protocol {protocol}"),
        place: &place,
    };
    attempt.open(raw_spec(any.into(), protocol))
}

/// As [`raw`], to be awaited. The socket does not block.
///
/// # Errors
///
/// As [`raw`].
///
/// # Examples
///
/// ```no_run
/// # async fn f() -> netns_exec::Result<()> {
/// use std::net::Ipv6Addr;
/// use netns_exec::{Netns, net};
///
/// let socket = net::raw_async(&Netns::open("blue")?, Ipv6Addr::UNSPECIFIED, 58).await?;
/// # let _ = socket;
/// # Ok(())
/// # }
/// ```
pub async fn raw_async(
    place: impl Place,
    any: impl Into<IpAddr>,
    protocol: i32,
) -> Result<OwnedFd> {
    let spec = raw_spec(any.into(), protocol);
    let what = move || format!("open a raw socket of protocol {protocol}");
    awaited(&place, &what, move || spec.open(true)).await
}

fn raw_spec(any: IpAddr, protocol: i32) -> Spec {
    let domain = match any {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    Spec::new(domain, libc::SOCK_RAW, protocol)
}

/// Opens a packet socket for frames of `ethertype`, with their headers, on one device or
/// on all: packet(7). Not one frame of another device gets in before.
///
/// # Blocking
///
/// As [`tcp_listen`].
///
/// # Errors
///
/// As [`tcp_listen`]; `ENODEV` when the namespace has no such device,
/// [`is_permission_denied`](crate::Error::is_permission_denied) without `CAP_NET_RAW`.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Netns, net};
///
/// const IPV4: u16 = 0x0800;
/// let socket = net::packet(&Netns::open("blue")?, IPV4, "eth0")?; // as a DHCP client
/// # let _ = socket;
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn packet<'a>(
    place: impl Place,
    ethertype: u16,
    device: impl Into<Option<&'a str>>,
) -> Result<OwnedFd> {
    let device = device.into();
    let attempt = Attempt {
        what: &|| captures(device),
        place: &place,
    };
    attempt.make(move |nonblocking| open_packet(ethertype, device, nonblocking))
}

/// As [`packet`], to be awaited. The socket does not block.
///
/// # Errors
///
/// As [`packet`].
///
/// # Examples
///
/// ```no_run
/// # async fn f() -> netns_exec::Result<()> {
/// use netns_exec::{Netns, net};
///
/// let socket = net::packet_async(&Netns::open("blue")?, 0x0806, "eth0").await?;
/// # let _ = socket;
/// # Ok(())
/// # }
/// ```
pub async fn packet_async<'a>(
    place: impl Place,
    ethertype: u16,
    device: impl Into<Option<&'a str>>,
) -> Result<OwnedFd> {
    let device = device.into().map(str::to_owned);
    let what = captures(device.as_deref());
    let open = move || open_packet(ethertype, device.as_deref(), true);
    awaited(&place, &move || what.clone(), open).await
}

fn captures(device: Option<&str>) -> String {
    match device {
        Some(device) => format!("open a packet socket on `{device}`"),
        None => "open a packet socket".to_owned(),
    }
}

/// In the calling thread's namespace, which is where the device's number means it.
fn open_packet(ethertype: u16, device: Option<&str>, nonblocking: bool) -> io::Result<OwnedFd> {
    let index = device.map_or(Ok(0), socket::device_index)?;
    // No protocol yet, so that it receives nothing before it is bound.
    let socket = Spec::new(libc::AF_PACKET, libc::SOCK_RAW, 0).open(nonblocking)?;
    socket::bind_packet(&socket, ethertype, index)?;
    Ok(socket)
}

/// Opens a netlink socket, bound to an address that the kernel chooses and to `groups`, a
/// bit for each: netlink(7).
///
/// It serves this namespace from anywhere, for as long as it lives: an agent needs one
/// for each namespace, and no worker after that.
///
/// # Blocking
///
/// As [`tcp_listen`].
///
/// # Errors
///
/// As [`tcp_listen`].
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Netns, net};
///
/// const ROUTE: i32 = 0;
/// const LINKS: u32 = 1; // RTMGRP_LINK
/// let socket = net::netlink(&Netns::open("blue")?, ROUTE, LINKS)?;
/// # let _ = socket;
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn netlink(place: impl Place, protocol: i32, groups: u32) -> Result<OwnedFd> {
    let attempt = Attempt {
        what: &|| format!("open a netlink socket of protocol {protocol}"),
        place: &place,
    };
    attempt.make(move |nonblocking| open_netlink(protocol, groups, nonblocking))
}

/// As [`netlink`], to be awaited. The socket does not block.
///
/// # Errors
///
/// As [`netlink`].
///
/// # Examples
///
/// ```no_run
/// # async fn f() -> netns_exec::Result<()> {
/// use netns_exec::{Netns, net};
///
/// let socket = net::netlink_async(&Netns::open("blue")?, 0, 0).await?;
/// # let _ = socket;
/// # Ok(())
/// # }
/// ```
pub async fn netlink_async(place: impl Place, protocol: i32, groups: u32) -> Result<OwnedFd> {
    let what = move || format!("open a netlink socket of protocol {protocol}");
    awaited(&place, &what, move || open_netlink(protocol, groups, true)).await
}

fn open_netlink(protocol: i32, groups: u32, nonblocking: bool) -> io::Result<OwnedFd> {
    let socket = Spec::new(libc::AF_NETLINK, libc::SOCK_RAW, protocol).open(nonblocking)?;
    socket::bind_netlink(&socket, groups)?;
    Ok(socket)
}
