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
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the address together with the port.
    pub fn local_addr(&self) -> SocketAddr {
        SocketAddr::new(self.endpoint.addr, self.port)
    }

    /// Returns what keeps clients away at present.
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
    pub fn port(&self) -> u16 {
        *self.ports.start()
    }

    /// Returns all ports: one, or as many in a row as the request's
    /// [`block`](super::Request::block) says.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.ports.clone()
    }

    /// Returns the protocol; of several, the first one.
    pub fn protocol(&self) -> Protocol {
        self.protocols.as_slice()[0]
    }

    /// Returns all protocols, in the order asked for.
    pub fn protocols(&self) -> &[Protocol] {
        self.protocols.as_slice()
    }

    /// Returns the sockets, in the order of the addresses asked for; of one
    /// address in that of the protocols, and of those in that of the ports.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Lets clients reach every member.
    ///
    /// # Errors
    ///
    /// As [`Member::activate`], for the first member that fails. Those before
    /// it stay open, those after it stay shut.
    pub fn activate(&self) -> Result<(), Error> {
        self.members.iter().try_for_each(Member::activate)
    }

    /// Gives one address back, and keeps the others: closes its sockets, for
    /// every protocol, then frees what they held. Returns `false` if there is no
    /// such member.
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
    pub fn split(self) -> (Vec<Member>, Hold) {
        (self.members, self.hold)
    }

    /// Gives everything back as a drop does, and also ends listening in copies
    /// of the descriptors that another process may have, so that they own the
    /// port no longer.
    ///
    /// A copy of a UDP socket goes on owning its port until it is closed:
    /// there is no way to take it away.
    pub fn revoke(self) {
        for member in &self.members {
            // Fails where nothing listens, and then there is nothing to end.
            let _ = sys::socket::shut_down(&member.fd);
        }
    }
}
