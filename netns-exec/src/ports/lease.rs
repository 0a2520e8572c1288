//! What a request ends with: the sockets, and the hold on their port.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;

use super::error::{Endpoint, Error};
use super::gate::GateState;
use super::holds::Hold;
use super::protocol::Protocol;
use super::socket::{self, Owned};
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
    gate: Mutex<GateState>,
}

impl Member {
    pub(crate) fn new(endpoint: Endpoint, port: u16, owned: Owned) -> Member {
        Member {
            endpoint,
            port,
            fd: owned.fd,
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
        socket::open_gate(&self.fd, self.endpoint.protocol, *gate).map_err(|fault| {
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

    /// Makes a second descriptor of the same socket, to be handed on.
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
    port: u16,
    protocol: Protocol,
    /// Before the hold, because fields are dropped in this order: the request that is
    /// given the port next must not find our sockets on it.
    members: Vec<Member>,
    hold: Hold,
}

impl Lease {
    /// Confirms the claim; `members` in the order they were asked for.
    pub(crate) fn new(protocol: Protocol, members: Vec<Member>, hold: Hold) -> Lease {
        hold.confirm();
        Lease {
            port: hold.port(),
            protocol,
            members,
            hold,
        }
    }

    /// Returns the port that is held everywhere.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Returns the sockets, in the order of the addresses asked for.
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

    /// Gives one member back, and keeps the others: closes its socket, then
    /// frees its binding. Returns `false` if there is no such member.
    pub fn release(&mut self, netns: NetnsId, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        let is_it =
            |member: &Member| (member.endpoint.netns, member.endpoint.addr) == (netns, addr);
        let Some(index) = self.members.iter().position(is_it) else {
            return false;
        };
        drop(self.members.remove(index));
        self.hold.release(netns, addr)
    }

    /// Separates the sockets from the hold, each to live as long as it is
    /// needed. While the hold exists the allocator gives the port to no
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
