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
///
/// # Examples
///
/// ```
/// use netns_exec::Executor;
/// use netns_exec::ports::{Allocator, Protocol};
///
/// let ports = Allocator::new(&Executor::new()?);
/// // One for each part of the program, and one table for all.
/// let of_another_part = ports.clone();
/// # let _ = of_another_part.request(Protocol::Tcp);
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone)]
pub struct Allocator {
    holds: Arc<Holds>,
    executor: Executor,
}

/// One entry of an allocator's table: a port that is leased at one address of
/// one namespace.
///
/// # Examples
///
/// ```
/// # use netns_exec::ports::{Allocator, Leased};
/// # fn f(ports: &Allocator) {
/// for Leased { netns, protocol, addr, port, .. } in ports.leased() {
///     println!("{netns} {protocol} {addr}:{port}");
/// }
/// # }
/// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, ports::Allocator};
    ///
    /// let ports = Allocator::new(&Executor::new()?);
    /// assert!(ports.leased().is_empty());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn new(executor: &Executor) -> Allocator {
        Allocator::starting_at(executor, Start::default())
    }

    /// Makes an allocator whose first walk over a range begins at `start`.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Executor;
    /// use netns_exec::ports::{Allocator, Start};
    ///
    /// // As a test wants it, which looks at the numbers.
    /// let ports = Allocator::starting_at(&Executor::new()?, Start::Beginning);
    /// # let _ = ports;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn starting_at(executor: &Executor, start: Start) -> Allocator {
        Allocator {
            holds: Holds::new(start),
            executor: executor.clone(),
        }
    }

    /// Begins a request for one port.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::Ipv4Addr;
    /// use netns_exec::ports::{Allocator, Gate, Ports, Protocol};
    /// use netns_exec::{Executor, Netns};
    ///
    /// let here = Netns::current()?;
    /// let ports = Allocator::new(&Executor::new()?);
    /// let lease = ports
    ///     .request(Protocol::Udp)
    ///     .on(&here, [Ipv4Addr::LOCALHOST.into()])
    ///     .ports(Ports::Dynamic { of: &here })
    ///     .gate(Gate::Queue)
    ///     .acquire()?;
    /// assert_eq!(ports.leased().len(), 1);
    /// # drop(lease);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn request(&self, protocol: Protocol) -> Request {
        Request::new(self.holds.clone(), self.executor.clone(), protocol)
    }

    /// Returns what is leased at present, in order of namespace, protocol, port
    /// and address.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::{Netns, ports::Allocator};
    /// # fn f(ports: &Allocator, blue: &Netns) {
    /// let in_blue = ports.leased().into_iter().filter(|leased| leased.netns == blue.id());
    /// println!("{} ports of {blue} are leased", in_blue.count());
    /// # }
    /// ```
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
