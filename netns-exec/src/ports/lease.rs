//! What a request ends with: the sockets, and the hold on their port.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;

use super::endpoint::Endpoint;
use super::error::Error;
use super::gate::GateState;
use super::holds::Hold;
use super::protocol::{Protocol, Protocols};
use super::socket::{self, Owned, Spec};
use crate::netns::NetnsId;
use crate::sys;

/// One socket of a lease.
///
/// It blocks, is closed on exec, and belongs to its namespace whichever thread
/// uses it, as do the connections it accepts. `OwnedFd::from(member)` makes a
/// [`TcpListener`](std::net::TcpListener) or
/// [`UdpSocket`](std::net::UdpSocket) of it.
///
/// # Examples
///
/// ```
/// # use std::net::TcpListener;
/// # use std::os::fd::OwnedFd;
/// # use netns_exec::ports::Lease;
/// # fn f(lease: Lease) {
/// let (members, hold) = lease.split();
/// let listeners: Vec<TcpListener> =
///     members.into_iter().map(|member| OwnedFd::from(member).into()).collect();
/// # drop((listeners, hold));
/// # }
/// ```
pub struct Member {
    endpoint: Endpoint,
    port: u16,
    fd: OwnedFd,
    spec: Spec,
    gate: Mutex<GateState>,
}

impl Member {
    pub(crate) fn new(endpoint: Endpoint, port: u16, owned: Owned) -> Member {
        Member {
            endpoint,
            port,
            fd: owned.fd,
            spec: owned.spec,
            gate: Mutex::new(owned.gate),
        }
    }

    /// Returns the namespace, the protocol and the address.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Lease, Member};
    /// # fn f(lease: &Lease) {
    /// let labels = lease.members().iter().map(|member| member.endpoint().label());
    /// println!("held in {}", labels.collect::<Vec<_>>().join(", "));
    /// # }
    /// ```
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the address together with the port.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Lease;
    /// # fn f(lease: &Lease) {
    /// assert!(lease.members().iter().all(|member| member.local_addr().port() == lease.port()));
    /// # }
    /// ```
    pub fn local_addr(&self) -> SocketAddr {
        SocketAddr::new(self.endpoint.addr, self.port)
    }

    /// Returns what keeps clients away at present.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Error, GateState, Member};
    /// # fn f(member: &Member) -> Result<(), Error> {
    /// assert_eq!(member.gate(), GateState::Dropping);
    /// member.activate()?;
    /// assert_eq!(member.gate(), GateState::Open);
    /// # Ok(())
    /// # }
    /// ```
    pub fn gate(&self) -> GateState {
        *self.gate.lock()
    }

    /// Lets clients reach this socket. Done before, it does nothing.
    ///
    /// # Errors
    ///
    /// The filter cannot be taken away ([`Stage::Filter`](super::Stage::Filter)),
    /// or a refusing gate cannot listen
    /// ([`Stage::Listen`](super::Stage::Listen)); of such a socket nothing more
    /// can be made.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::{Netns, ports::{Error, Lease}};
    /// # fn f(lease: &Lease, blue: &Netns) -> Result<(), Error> {
    /// // Inside first; the host's comes when the container says that it is ready.
    /// for member in lease.members().iter().filter(|member| member.endpoint().netns() == blue.id()) {
    ///     member.activate()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn activate(&self) -> Result<(), Error> {
        let mut gate = self.gate.lock();
        socket::open_gate(&self.fd, self.spec, *gate).map_err(|fault| {
            Error::socket(
                self.endpoint.clone(),
                Some(self.port),
                fault.stage,
                fault.cause,
            )
        })?;
        *gate = GateState::Open;
        Ok(())
    }

    /// Makes a second descriptor of the same socket, to be handed on; of what can be
    /// done with it there, see [`Lease::split`].
    ///
    /// # Errors
    ///
    /// The limit on open files is reached.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::net::TcpListener;
    /// # use netns_exec::ports::Member;
    /// # fn f(member: &Member) -> std::io::Result<()> {
    /// let listener = TcpListener::from(member.try_clone()?);
    /// let (client, _) = listener.accept()?; // the lease stays whole
    /// # drop(client);
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

impl AsFd for Member {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Member> for OwnedFd {
    fn from(member: Member) -> OwnedFd {
        member.fd
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("netns", &self.endpoint.label)
            .field("protocol", &self.endpoint.protocol)
            .field("addr", &self.local_addr())
            .field("gate", &self.gate())
            .finish()
    }
}

/// One port number, held in every namespace that was asked for.
///
/// Dropping it closes the sockets and then frees the port. As long as it
/// exists, its sockets keep their namespaces alive.
///
/// # Examples
///
/// ```
/// # use netns_exec::ports::{Error, Lease};
/// /// What is published of a container, for as long as it runs.
/// struct Published {
///     lease: Lease,
/// }
///
/// impl Published {
///     fn open(&self) -> Result<u16, Error> {
///         self.lease.activate()?;
///         Ok(self.lease.port())
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Lease {
    ports: RangeInclusive<u16>,
    protocols: Protocols,
    /// Before the hold, because fields are dropped in this order: the request that is
    /// given the port next must not find our sockets on it.
    members: Vec<Member>,
    hold: Hold,
}

impl Lease {
    /// Confirms the claim; `members` in the order they were asked for.
    pub(crate) fn new(protocols: Protocols, block: u16, members: Vec<Member>, hold: Hold) -> Lease {
        hold.confirm();
        Lease {
            ports: hold.port()..=hold.port() + (block - 1),
            protocols,
            members,
            hold,
        }
    }

    /// Returns the port that is held everywhere; of a block, the first one.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Lease;
    /// # fn f(lease: &Lease) {
    /// println!("DNAT: --dport {} -j DNAT --to-destination 10.0.0.2:80", lease.port());
    /// # }
    /// ```
    pub fn port(&self) -> u16 {
        *self.ports.start()
    }

    /// Returns all ports: one, or as many in a row as the request's
    /// [`block`](super::Request::block) says.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Lease;
    /// # fn f(lease: &Lease) {
    /// let (first, last) = lease.ports().into_inner();
    /// println!("forward {first}-{last}");
    /// # }
    /// ```
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.ports.clone()
    }

    /// Returns the protocol; of several, the first one.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Lease;
    /// # fn f(lease: &Lease) {
    /// println!("0.0.0.0:{}->80/{}", lease.port(), lease.protocol()); // 0.0.0.0:33000->80/tcp
    /// # }
    /// ```
    pub fn protocol(&self) -> Protocol {
        self.protocols.as_slice()[0]
    }

    /// Returns all protocols, in the order asked for.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Lease, Protocol};
    /// # fn f(lease: &Lease) {
    /// // A request for both is all or nothing.
    /// assert_eq!(lease.protocols(), [Protocol::Tcp, Protocol::Udp]);
    /// # }
    /// ```
    pub fn protocols(&self) -> &[Protocol] {
        self.protocols.as_slice()
    }

    /// Returns the sockets, in the order of the addresses asked for; of one
    /// address in that of the protocols, and of those in that of the ports.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Lease;
    /// # fn f(lease: &Lease) {
    /// for member in lease.members() {
    ///     println!("{} in {}", member.local_addr(), member.endpoint().label());
    /// }
    /// # }
    /// ```
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Lets clients reach every member.
    ///
    /// # Errors
    ///
    /// As [`Member::activate`], for the first member that fails. Those before
    /// it stay open, those after it stay shut.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::net::TcpListener;
    /// # use std::os::fd::OwnedFd;
    /// # use netns_exec::ports::{Error, Lease};
    /// # fn install_rules(port: u16) {}
    /// # fn f(lease: Lease) -> Result<(), Error> {
    /// install_rules(lease.port());
    /// // No client has connected before the rules were there.
    /// lease.activate()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn activate(&self) -> Result<(), Error> {
        self.members.iter().try_for_each(Member::activate)
    }

    /// Gives one address back, and keeps the others: closes its sockets, for
    /// every protocol, then frees what they held. Returns `false` if there is no
    /// such member.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::{Netns, ports::Lease};
    /// # fn f(lease: &mut Lease, blue: &Netns) {
    /// // The container leaves the network; what is published on the host stays.
    /// lease.release(blue.id(), [0, 0, 0, 0].into());
    /// # }
    /// ```
    pub fn release(&mut self, netns: NetnsId, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        let before = self.members.len();
        (self.members)
            .retain(|member| (member.endpoint.netns, member.endpoint.addr) != (netns, addr));
        self.members.len() < before && self.hold.release(netns, addr)
    }

    /// Separates the sockets from the hold, each to live as long as it is
    /// needed. A process that is given a listener can also shut it down and
    /// connect it, from the listener's namespace:
    /// [`accept_only`](super::Request::accept_only) is against that. While the hold exists the allocator gives the port to no
    /// other request, whatever became of the sockets.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::{Ipv4Addr, UdpSocket};
    /// use std::os::fd::OwnedFd;
    /// use netns_exec::ports::{Allocator, Gate, Ports, Protocol};
    /// use netns_exec::{Executor, Netns};
    ///
    /// let here = Netns::current()?;
    /// let lease = Allocator::new(&Executor::new()?)
    ///     .request(Protocol::Udp)
    ///     .on(&here, [Ipv4Addr::LOCALHOST.into()])
    ///     .ports(Ports::Dynamic { of: &here })
    ///     .gate(Gate::Queue)
    ///     .acquire()?;
    /// let (mut members, hold) = lease.split();
    /// let socket = UdpSocket::from(OwnedFd::from(members.remove(0)));
    /// assert_eq!(socket.local_addr()?.port(), hold.port());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn split(self) -> (Vec<Member>, Hold) {
        (self.members, self.hold)
    }

    /// Gives everything back as a drop does, and also ends listening in copies
    /// of the descriptors that another process may have, so that they own the
    /// port no longer.
    ///
    /// A copy of a UDP socket goes on owning its port until it is closed:
    /// there is no way to take it away.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Lease;
    /// # fn f(lease: Lease) -> std::io::Result<()> {
    /// let copy = lease.members()[0].try_clone()?;
    /// // ... `copy` goes to a process that does not give it back ...
    /// lease.revoke();
    /// // It still has a descriptor, of a socket that listens no longer.
    /// # drop(copy);
    /// # Ok(())
    /// # }
    /// ```
    pub fn revoke(self) {
        for member in &self.members {
            // Fails where nothing listens, and then there is nothing to end.
            let _ = sys::socket::shut_down(&member.fd);
        }
    }
}
