//! One socket on its way to owning a port.
//!
//! The way is in the types. A [`Fresh`] socket is unbound, and the only one
//! that can be bound; only a [`Bound`] one can listen, and a step that fails
//! gives nothing back that the next step would take. That matters: listen(2) on
//! a socket whose bind failed succeeds, on a port that the kernel chooses, and
//! after a failed listen a socket can never be bound again.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::error::Stage;
use super::gate::{Fallback, Gate, GateState};
use super::protocol::Protocol;
use crate::sys::socket as sys;

/// What a socket is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) protocol: Protocol,
    pub(crate) addr: IpAddr,
    pub(crate) gate: Gate,
    pub(crate) options: Options,
}

/// What else a socket is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// UDP: recvmsg(2) tells the address a datagram was sent to.
    pub(crate) packet_info: bool,
    /// It may be bound to an address that is not there yet.
    pub(crate) free_bind: bool,
    /// TCP: it can never connect.
    pub(crate) accept_only: bool,
    /// It is tied to this device.
    pub(crate) device: Option<Device>,
}

impl Default for Options {
    fn default() -> Options {
        Options::DEFAULT
    }
}

impl Options {
    pub(crate) const DEFAULT: Options = Options {
        packet_info: true,
        free_bind: false,
        accept_only: false,
        device: None,
    };

    /// Whether a socket that another process has bound could still be given
    /// them.
    fn can_follow_bind(&self) -> bool {
        !self.free_bind && !self.accept_only && self.device.is_none()
    }
}

/// The name of a network device, with zeros behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device([u8; libc::IFNAMSIZ]);

impl Device {
    /// `None` for what can be no device's name.
    pub(crate) fn new(name: &str) -> Option<Device> {
        let mut bytes = [0; libc::IFNAMSIZ];
        let is_name = !matches!(name, "" | "." | "..")
            && name.len() < bytes.len()
            && !name
                .bytes()
                .any(|byte| matches!(byte, 0 | b'/' | b':') || byte.is_ascii_whitespace());
        is_name.then(|| {
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            Device(bytes)
        })
    }
}

/// A step that the kernel refused.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) stage: Stage,
    pub(crate) cause: io::Error,
}

impl Fault {
    fn at(stage: Stage) -> impl Fn(io::Error) -> Fault {
        move |cause| Fault { stage, cause }
    }

    /// The same once more.
    pub(crate) fn duplicate(&self) -> Fault {
        let cause = match self.cause.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(self.cause.kind(), self.cause.to_string()),
        };
        Fault {
            stage: self.stage,
            cause,
        }
    }

    /// Another program has the port: it is the next port's turn.
    pub(crate) fn is_in_use(&self) -> bool {
        self.cause.raw_os_error() == Some(libc::EADDRINUSE)
    }

    /// The namespace has no such address, or not yet.
    pub(crate) fn is_no_such_address(&self) -> bool {
        self.stage == Stage::Bind && self.cause.raw_os_error() == Some(libc::EADDRNOTAVAIL)
    }

    /// The kernel was built or started without the family, or keeps it from this
    /// process.
    pub(crate) fn is_family_missing(&self) -> bool {
        self.stage == Stage::Socket && self.cause.raw_os_error() == Some(libc::EAFNOSUPPORT)
    }

    /// This port needs a privilege that others may not need.
    pub(crate) fn is_denied(&self) -> bool {
        self.stage == Stage::Bind && self.cause.raw_os_error() == Some(libc::EACCES)
    }
}

/// A process in the socket's namespace that opened it for this one.
pub(crate) trait Vendor: fmt::Debug + Send + Sync {
    /// Whether it may bind ports that this process may not.
    fn binds_privileged_ports(&self) -> bool;

    /// Has a socket bound to the first port of `range` that can be had.
    fn bind(&self, spec: Spec, range: &RangeInclusive<u16>) -> Result<(Bound, u16), Fault>;
}

/// A socket that has all its options and no port yet.
#[derive(Debug)]
pub(crate) struct Fresh {
    /// None where it stays with the vendor until it is bound.
    fd: Option<OwnedFd>,
    spec: Spec,
    gate: GateState,
    /// The process that it came from.
    vendor: Option<Arc<dyn Vendor>>,
}

/// A socket whose bind succeeded.
#[derive(Debug)]
pub(crate) struct Bound(Fresh);

/// A socket that owns its port.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) fd: OwnedFd,
    pub(crate) spec: Spec,
    pub(crate) gate: GateState,
}

/// A bind that failed. The socket comes back where another port may be tried
/// with it.
#[derive(Debug)]
pub(crate) struct Unbound {
    pub(crate) fault: Fault,
    pub(crate) fresh: Option<Fresh>,
}

impl Spec {
    /// The family, type and protocol of such a socket.
    pub(crate) fn kind(&self) -> [libc::c_int; 3] {
        let domain = match self.addr {
            IpAddr::V4(_) => libc::AF_INET,
            IpAddr::V6(_) => libc::AF_INET6,
        };
        match self.protocol {
            Protocol::Tcp => [domain, libc::SOCK_STREAM, libc::IPPROTO_TCP],
            Protocol::Udp => [domain, libc::SOCK_DGRAM, libc::IPPROTO_UDP],
            Protocol::Sctp => [domain, libc::SOCK_STREAM, libc::IPPROTO_SCTP],
        }
    }
}

// A broker opens and binds sockets, and it can allocate no memory: these steps
// must not.
impl Fresh {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open(spec: Spec) -> Result<Fresh, Fault> {
        let v6 = spec.addr.is_ipv6();
        let [domain, kind, protocol] = spec.kind();
        let fd = sys::open(domain, kind, protocol).map_err(Fault::at(Stage::Socket))?;

        let option = Fault::at(Stage::Option);
        if v6 {
            sys::set_v6_only(&fd).map_err(&option)?;
        }
        let mut fresh = Fresh {
            fd: Some(fd),
            spec,
            gate: spec.gate.shut(),
            vendor: None,
        };
        fresh.prepare_bind()?;
        match spec.protocol {
            Protocol::Tcp => {
                // First the gate, which decides about SO_REUSEADDR.
                fresh.shut_gate()?;
                // So that connections in TIME_WAIT are no obstacle. It lets two
                // sockets bind one port, of which only one can listen; one that
                // does not listen yet has to be alone.
                if fresh.gate != GateState::Refusing {
                    sys::set_reuse_addr(fresh.here()).map_err(&option)?;
                }
            }
            Protocol::Udp => {
                // Never SO_REUSEADDR: the socket that is bound last would get all
                // datagrams.
                fresh.shut_gate()?;
                if spec.options.packet_info {
                    sys::set_packet_info(fresh.here(), v6).map_err(&option)?;
                }
            }
            // The gate comes after the bind.
            Protocol::Sctp => sys::set_sctp_streams(fresh.here()).map_err(&option)?,
        }
        fresh.lock_if_open()?;
        Ok(fresh)
    }

    /// Sets what decides about where the socket can be bound.
    fn prepare_bind(&self) -> Result<(), Fault> {
        let option = Fault::at(Stage::Option);
        if self.spec.options.free_bind {
            sys::set_free_bind(self.here(), self.spec.addr.is_ipv6()).map_err(&option)?;
        }
        if let Some(Device(name)) = &self.spec.options.device {
            sys::bind_to_device(self.here(), name).map_err(&option)?;
        }
        Ok(())
    }

    /// Sets the filter of a socket that can only accept, unless that of the gate
    /// is there: [`open_gate`] then puts the one in place of the other.
    fn lock_if_open(&self) -> Result<(), Fault> {
        if self.spec.options.accept_only && self.gate != GateState::Dropping {
            sys::lock_to_accepting(self.here()).map_err(Fault::at(Stage::Filter))?;
        }
        Ok(())
    }

    /// Sets the filter, or what is to be done without it.
    fn shut_gate(&mut self) -> Result<(), Fault> {
        let Gate::Drop { otherwise } = self.spec.gate else {
            return Ok(());
        };
        let Err(cause) = sys::drop_packets(self.here()) else {
            return Ok(());
        };
        self.gate = match (cause.raw_os_error(), otherwise) {
            (Some(libc::EPERM), Fallback::Queue) => GateState::Queueing,
            (Some(libc::EPERM), Fallback::Refuse) if self.spec.protocol != Protocol::Udp => {
                GateState::Refusing
            }
            _ => {
                return Err(Fault {
                    stage: Stage::Filter,
                    cause,
                });
            }
        };
        Ok(())
    }

    /// Binds to `port`.
    pub(crate) fn bind(mut self, port: u16) -> Result<Bound, Unbound> {
        if self.fd.is_none() {
            let bound = self.bind_any_of(&(port..=port));
            return bound.map(|(bound, _)| bound);
        }
        let addr = SocketAddr::new(self.spec.addr, port);
        let bound = match self.spec.protocol {
            Protocol::Sctp => sys::sctp_bindx(self.here(), addr),
            Protocol::Tcp | Protocol::Udp => sys::bind(self.here(), addr),
        };
        if let Err(cause) = bound {
            let fault = Fault {
                stage: Stage::Bind,
                cause,
            };
            match &self.vendor {
                // It may have a privilege over its namespace that we lack.
                Some(vendor)
                    if fault.is_denied()
                        && vendor.binds_privileged_ports()
                        && self.spec.options.can_follow_bind() =>
                {
                    return match vendor.bind(self.spec, &(port..=port)) {
                        Ok((bound, _)) => Ok(bound),
                        Err(fault) => Err(Unbound {
                            fault,
                            fresh: Some(self),
                        }),
                    };
                }
                _ => {}
            }
            return Err(Unbound {
                fault,
                fresh: self.is_reusable().then_some(self),
            });
        }
        #[cfg(test)]
        hook::run(addr);
        if self.spec.protocol == Protocol::Sctp {
            self.shut_gate()
                .map_err(|fault| Unbound { fault, fresh: None })?;
        }
        Ok(Bound(self))
    }

    /// Binds to a port of `range` that the kernel finds free, and returns it.
    /// A [`Vendor`] tries them all, at the cost of one message.
    ///
    /// The kernel honours the range only within the namespace's own
    /// (`ip_local_port_range`), and skips what the namespace reserves, so this
    /// can fail or miss where [`bind`](Self::bind) would not.
    pub(crate) fn bind_any_of(self, range: &RangeInclusive<u16>) -> Result<(Bound, u16), Unbound> {
        if let Some(vendor) = &self.vendor {
            if !self.spec.options.can_follow_bind() {
                return Err(Unbound {
                    fault: Fault {
                        stage: Stage::Option,
                        cause: libc_error(libc::EOPNOTSUPP),
                    },
                    fresh: Some(self),
                });
            }
            return vendor.bind(self.spec, range).map_err(|fault| Unbound {
                fault,
                fresh: Some(self),
            });
        }
        if let Err(cause) = sys::set_local_port_range(self.here(), *range.start(), *range.end()) {
            return Err(Unbound {
                fault: Fault {
                    stage: Stage::Option,
                    cause,
                },
                fresh: Some(self),
            });
        }
        let bound = self.bind(0)?;
        // The socket is the caller's soon, who asked for no such option.
        let _ = sys::set_local_port_range(bound.fd(), 0, 0);
        match sys::local_addr(bound.fd()) {
            Ok(Some(addr)) if range.contains(&addr.port()) => Ok((bound, addr.port())),
            other => Err(Unbound {
                fault: Fault {
                    stage: Stage::Verify,
                    cause: (other.err()).unwrap_or_else(|| libc_error(libc::ERANGE)),
                },
                fresh: None,
            }),
        }
    }

    /// Takes a socket that another process opened, with the options that every
    /// such socket has.
    pub(crate) fn vended(
        fd: OwnedFd,
        spec: Spec,
        gate: GateState,
        vendor: Option<Arc<dyn Vendor>>,
    ) -> Result<Fresh, Fault> {
        let fresh = Fresh {
            fd: Some(fd),
            spec,
            gate,
            vendor,
        };
        fresh.prepare_bind()?;
        fresh.lock_if_open()?;
        if spec.protocol == Protocol::Udp && !spec.options.packet_info {
            let cleared = sys::clear_packet_info(fresh.here(), spec.addr.is_ipv6());
            cleared.map_err(Fault::at(Stage::Option))?;
        }
        Ok(fresh)
    }

    /// Stands for a socket that only the vendor may bind.
    pub(crate) fn to_be_bound_by(vendor: Arc<dyn Vendor>, spec: Spec) -> Fresh {
        Fresh {
            fd: None,
            spec,
            gate: spec.gate.shut(),
            vendor: Some(vendor),
        }
    }

    /// The descriptor, if it is this process that has it.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// The descriptor of a socket that this process has.
    fn here(&self) -> BorrowedFd<'_> {
        self.fd()
            .expect("only the vendor binds what this process does not have")
    }

    pub(crate) fn gate(&self) -> GateState {
        self.gate
    }

    /// Whether a failed bind leaves the socket as it was.
    fn is_reusable(&self) -> bool {
        // Known of the others; SCTP keeps a list of addresses on the side.
        self.spec.protocol != Protocol::Sctp
    }
}

impl Bound {
    /// Takes a socket that another process bound.
    pub(crate) fn vended(fd: OwnedFd, spec: Spec, gate: GateState) -> Result<Bound, Fault> {
        Fresh::vended(fd, spec, gate, None).map(Bound)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.here()
    }

    pub(crate) fn gate(&self) -> GateState {
        self.0.gate
    }

    /// Takes the step that makes the port ours.
    pub(crate) fn own(self) -> Result<Owned, Fault> {
        let Fresh { fd, spec, gate, .. } = self.0;
        let fd = fd.expect("what is bound is here");
        if spec.protocol != Protocol::Udp && gate != GateState::Refusing {
            sys::listen(&fd).map_err(Fault::at(Stage::Listen))?;
        }
        Ok(Owned { fd, spec, gate })
    }
}

/// Opens a gate: clients reach the socket from now on.
pub(crate) fn open_gate(fd: &OwnedFd, spec: Spec, gate: GateState) -> Result<(), Fault> {
    match gate {
        GateState::Dropping if spec.options.accept_only => {
            sys::lock_to_accepting(fd).map_err(Fault::at(Stage::Filter))
        }
        GateState::Dropping => sys::pass_packets(fd).map_err(Fault::at(Stage::Filter)),
        GateState::Refusing => {
            sys::listen(fd).map_err(Fault::at(Stage::Listen))?;
            // It had to be alone while it did not listen. Connections inherit the
            // option from the listener; without it each would keep the port, in
            // TIME_WAIT, from the next lease.
            match spec.protocol {
                Protocol::Tcp => sys::set_reuse_addr(fd).map_err(Fault::at(Stage::Option)),
                Protocol::Udp | Protocol::Sctp => Ok(()),
            }
        }
        GateState::Queueing | GateState::Open => Ok(()),
    }
}

/// What a test does at the moment after a bind.
#[cfg(test)]
pub(super) mod hook {
    use std::cell::RefCell;
    use std::net::SocketAddr;

    type Hook = Box<dyn FnMut(SocketAddr)>;

    thread_local! {
        static AFTER_BIND: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// Has `hook` called after each bind of this thread, until it is set anew.
    pub(in crate::ports) fn after_bind(hook: impl FnMut(SocketAddr) + 'static) {
        AFTER_BIND.set(Some(Box::new(hook)));
    }

    pub(super) fn run(addr: SocketAddr) {
        // Taken out, for the hook may bind.
        if let Some(mut hook) = AFTER_BIND.take() {
            hook(addr);
            AFTER_BIND.with_borrow_mut(|next| {
                next.get_or_insert(hook);
            });
        }
    }
}

fn libc_error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    fn spec(protocol: Protocol) -> Spec {
        Spec {
            protocol,
            addr: Ipv4Addr::LOCALHOST.into(),
            gate: Gate::Queue,
            options: Options::default(),
        }
    }

    /// A port that this test has to itself for the moment.
    fn busy_port() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let port = listener.local_addr().expect("a bound socket").port();
        (listener, port)
    }

    #[test]
    fn rival_that_listens_between_bind_and_listen_is_noticed() {
        let fresh = Fresh::open(spec(Protocol::Tcp)).expect("a socket");
        let (mine, port) = fresh.bind_any_of(&(1..=65535)).expect("a free port");
        let rival = Fresh::open(spec(Protocol::Tcp)).expect("a socket");
        let rival = rival.bind(port).expect("both can bind");
        let _owner = rival.own().expect("the first to listen owns the port");
        let fault = mine.own().expect_err("the second does not");
        assert_eq!(fault.stage, Stage::Listen);
        assert!(fault.is_in_use(), "{fault:?}");
    }

    #[test]
    fn socket_whose_bind_failed_can_try_the_next_port() {
        let (_rival, port) = busy_port();
        let fresh = Fresh::open(spec(Protocol::Tcp)).expect("a socket");
        let unbound = fresh.bind(port).expect_err("the port is in use");
        assert_eq!(unbound.fault.stage, Stage::Bind);
        assert!(unbound.fault.is_in_use());
        let again = unbound
            .fresh
            .expect("tcp sockets can be bound after a failure");
        let (bound, port) = again.bind_any_of(&(1..=65535)).expect("a free port");
        let owned = bound.own().expect("no rival is there");
        TcpStream::connect(("127.0.0.1", port)).expect("it listens where it was bound");
        drop(owned);
    }

    #[test]
    fn port_outside_the_kernels_own_range_is_noticed() {
        // No machine sets ip_local_port_range to include it without 65535, and
        // port 1 is in no default range.
        let fresh = Fresh::open(spec(Protocol::Tcp)).expect("a socket");
        match fresh.bind_any_of(&(1..=1)) {
            Ok((_, port)) => assert_eq!(port, 1),
            Err(unbound) => assert_eq!(unbound.fault.stage, Stage::Verify),
        }
    }

    #[test]
    fn waiting_socket_of_the_refusing_gate_does_not_share_its_port() {
        let refusing = Spec {
            gate: Gate::Refuse,
            ..spec(Protocol::Tcp)
        };
        let fresh = Fresh::open(refusing).expect("a socket");
        let (bound, port) = fresh.bind_any_of(&(1..=65535)).expect("a free port");
        let owned = bound.own().expect("nothing is left to do");
        assert_eq!(owned.gate, GateState::Refusing);
        let refused = TcpStream::connect(("127.0.0.1", port)).expect_err("it does not listen");
        assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
        let rival = Fresh::open(spec(Protocol::Tcp)).expect("a socket");
        assert!(
            rival
                .bind(port)
                .expect_err("the port is ours")
                .fault
                .is_in_use()
        );
        open_gate(&owned.fd, owned.spec, owned.gate).expect("it listens now");
        TcpStream::connect(("127.0.0.1", port)).expect("activated");
    }
}
