//! What leases come from.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::holds::{Hold, Holds};
use super::protocol::Protocol;
use super::range::Start;
use super::request::Request;
use super::table::Binding;
use crate::executor::Executor;
use crate::netns::NetnsId;

/// Leases ports. Clones share one table.
///
/// It keeps its executor running, and no namespace alive.
#[derive(Clone)]
pub struct Allocator {
    holds: Arc<Holds>,
    executor: Executor,
}

/// One entry of an allocator's table: a port that is leased at one address of
/// one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Leased {
    /// The namespace.
    pub netns: NetnsId,
    /// The protocol.
    pub protocol: Protocol,
    /// The address.
    pub addr: IpAddr,
    /// The port.
    pub port: u16,
}

impl Allocator {
    /// Makes an allocator whose sockets are opened by the workers of
    /// `executor`, and whose walks begin at a random place.
    pub fn new(executor: &Executor) -> Allocator {
        Allocator::starting_at(executor, Start::default())
    }

    /// Makes an allocator whose first walk over a range begins at `start`.
    pub fn starting_at(executor: &Executor, start: Start) -> Allocator {
        Allocator {
            holds: Holds::new(start),
            executor: executor.clone(),
        }
    }

    /// Begins a request for one port.
    pub fn request(&self, protocol: Protocol) -> Request {
        Request::new(self.holds.clone(), self.executor.clone(), protocol)
    }

    /// Returns what is leased at present, in order of namespace, protocol, port
    /// and address.
    pub fn leased(&self) -> Vec<Leased> {
        let leased = |(port, binding): (u16, Binding)| Leased {
            netns: binding.netns,
            protocol: binding.protocol,
            addr: binding.addr,
            port,
        };
        self.holds.leased().into_iter().map(leased).collect()
    }
}

impl fmt::Debug for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allocator")
            .field("leased", &self.leased().len())
            .finish_non_exhaustive()
    }
}

/// What the benchmark of the table alone measures.
pub(crate) fn fill_and_empty_table(netns: NetnsId, range: RangeInclusive<u16>) {
    let holds = Holds::new(Start::Beginning);
    let addr = IpAddr::from([0, 0, 0, 0]);
    let bindings: Arc<[Binding]> = [Binding {
        netns,
        protocol: Protocol::Tcp,
        addr,
        offset: 0,
    }]
    .into();
    let lease = |port| {
        let hold = holds.claim(port, &bindings, Duration::ZERO);
        let hold = hold.expect("the table was empty");
        hold.confirm();
        hold
    };
    let holds: Vec<Hold> = range.map(lease).collect();
    drop(holds);
}
