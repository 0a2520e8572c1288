//! Saying what a port is wanted for, and asking for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use super::acquire::Acquire;
use super::broker::Broker;
use super::cancel::Cancel;
use super::error::Error;
use super::gate::Gate;
use super::holds::Holds;
use super::lease::Lease;
use super::opener::{Opener, WorkerOpener};
use super::plan::{Budget, Choice, Plan, Ports, Wanted};
use super::protocol::{Protocol, Protocols};
use super::socket::Device;
use super::walk::Walk;
use crate::executor::Executor;
use crate::netns::Netns;

/// A port to be leased: what for, where, which, and how hard to try.
///
/// Made by [`Allocator::request`](super::Allocator::request). Nothing happens
/// before [`acquire`](Self::acquire) or [`acquire_async`](Self::acquire_async).
///
/// # Examples
///
/// ```
/// # use netns_exec::{Netns, ports::{Allocator, Ports, Protocol, Request}};
/// /// The same for each container of this program.
/// fn of_container(ports: &Allocator, host: &Netns, container: &Netns) -> Request {
///     ports
///         .request(Protocol::Tcp)
///         .on_every_family(host)
///         .on(container, [[0, 0, 0, 0].into()])
///         .ports(Ports::Range(30000..=32767))
/// }
/// ```
#[must_use = "a request does nothing until it is acquired"]
pub struct Request {
    plan: Plan,
    executor: Executor,
}

impl Request {
    pub(super) fn new(holds: Arc<Holds>, executor: Executor, protocol: Protocol) -> Self {
        Request {
            plan: Plan::new(holds, protocol),
            executor,
        }
    }

    /// Adds one member for each address. An IPv4 address that is mapped into
    /// IPv6 counts as the IPv4 address it is.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::{Netns, ports::Request};
    /// # fn f(request: Request, host: &Netns, blue: &Netns) -> Request {
    /// // One number that is free in both.
    /// request.on(host, [[127, 0, 0, 1].into()]).on(blue, [[0, 0, 0, 0].into()])
    /// # }
    /// ```
    pub fn on(self, netns: &Netns, addrs: impl IntoIterator<Item = IpAddr>) -> Self {
        let opener = self.pinned(netns);
        self.on_opener(opener, addrs)
    }

    /// Adds one member for each address, in the namespace of a broker.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::net::{Ipv4Addr, Ipv6Addr};
    /// # use netns_exec::ports::{Broker, Request};
    /// # fn f(request: Request, host: &Broker) -> Request {
    /// request.on_broker(host, [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()])
    /// # }
    /// ```
    pub fn on_broker(self, broker: &Broker, addrs: impl IntoIterator<Item = IpAddr>) -> Self {
        self.on_opener(Arc::new(broker.clone()), addrs)
    }

    fn pinned(&self, netns: &Netns) -> Arc<dyn Opener> {
        Arc::new(WorkerOpener {
            executor: self.executor.clone(),
            netns: netns.clone(),
        })
    }

    /// Adds one member for each address, tied to a device of the namespace
    /// (`SO_BINDTODEVICE`): packets of other devices do not reach it, and a
    /// link-local IPv6 address means the one on this device.
    ///
    /// The allocator's table does not look at devices: it leases one port of one
    /// address once. A name that can be no device's makes the request senseless;
    /// one that is missing is [`Stage::Option`](super::Stage::Option) with
    /// `ENODEV`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::ports::{Allocator, Ports, Protocol};
    /// use netns_exec::{Executor, Netns};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let ports = Allocator::new(&Executor::new()?);
    /// let lease = ports
    ///     .request(Protocol::Udp)
    ///     .on_device(&Netns::current()?, "eth0", ["fe80::1".parse()?])
    ///     .ports(Ports::Exact(546))
    ///     .acquire()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_device(
        mut self,
        netns: &Netns,
        device: &str,
        addrs: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let Some(name) = Device::new(device) else {
            self.plan.bad_device = Some(device.to_owned());
            return self;
        };
        let before = self.plan.wanted.len();
        self = self.on(netns, addrs);
        for wanted in &mut self.plan.wanted[before..] {
            wanted.device = Some(name);
        }
        self
    }

    /// Adds a member for 0.0.0.0 and one for ::, as far as the namespace has the
    /// family: a kernel may be booted without IPv6, or a filter keep it from this
    /// process. [`Lease::members`] tells which they are.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::ports::{Allocator, Ports, Protocol};
    /// use netns_exec::{Executor, Netns};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let ports = Allocator::new(&Executor::new()?);
    /// let request = ports.request(Protocol::Tcp).on_every_family(&Netns::current()?);
    /// let lease = request.ports(Ports::Exact(8080)).acquire()?;
    /// for member in lease.members() {
    ///     println!("{}", member.local_addr());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_every_family(self, netns: &Netns) -> Self {
        let opener = self.pinned(netns);
        self.on_families_of(opener)
    }

    /// As [`on_every_family`](Self::on_every_family), in the namespace of a
    /// broker.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Allocator, Broker, Error, Lease, Ports, Protocol};
    /// # fn f(ports: &Allocator, host: &Broker) -> Result<Lease, Error> {
    /// let request = ports.request(Protocol::Tcp).on_every_family_of_broker(host);
    /// request.ports(Ports::Exact(8080)).acquire()
    /// # }
    /// ```
    pub fn on_every_family_of_broker(self, broker: &Broker) -> Self {
        self.on_families_of(Arc::new(broker.clone()))
    }

    pub(super) fn on_families_of(mut self, opener: Arc<dyn Opener>) -> Self {
        let before = self.plan.wanted.len();
        let addrs = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        self = self.on_opener(opener, addrs);
        for wanted in &mut self.plan.wanted[before..] {
            wanted.if_family = true;
        }
        self
    }

    pub(super) fn on_opener(
        mut self,
        opener: Arc<dyn Opener>,
        addrs: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let before = self.plan.wanted.len();
        self.plan
            .wanted
            .extend(addrs.into_iter().map(|addr| Wanted {
                opener: opener.clone(),
                addr: addr.to_canonical(),
                if_family: false,
                device: None,
            }));
        if self.plan.wanted.len() == before {
            self.plan.addressless = Some(opener.label().to_owned());
        }
        self
    }

    /// Says which ports will do.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Ports, Request};
    /// # fn f(request: Request) -> Request {
    /// request.ports(Ports::Range(30000..=32767))
    /// # }
    /// ```
    pub fn ports(mut self, ports: Ports<'_>) -> Self {
        self.plan.choice = Some(match ports {
            Ports::Exact(port) => Choice::Exact(port),
            Ports::Range(range) => Choice::Range(range),
            Ports::Dynamic { of } => Choice::Dynamic {
                of: self.pinned(of),
            },
            Ports::DynamicOfBroker { of } => Choice::Dynamic {
                of: Arc::new(of.clone()),
            },
        });
        self
    }

    /// Asks for one number for all of these, in place of the protocol that the
    /// request was made with: DNS and HTTP/3 want TCP and UDP.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::net::Ipv4Addr;
    /// use netns_exec::ports::{Allocator, Ports, Protocol};
    /// use netns_exec::{Executor, Netns};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let ports = Allocator::new(&Executor::new()?);
    /// let lease = ports
    ///     .request(Protocol::Tcp)
    ///     .protocols([Protocol::Tcp, Protocol::Udp])
    ///     .on(&Netns::current()?, [Ipv4Addr::UNSPECIFIED.into()])
    ///     .ports(Ports::Range(33000..=33099))
    ///     .acquire()?;
    /// assert_eq!(lease.members().len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn protocols(mut self, protocols: impl IntoIterator<Item = Protocol>) -> Self {
        self.plan.protocols = Protocols::new(protocols);
        self
    }

    /// Asks for this many ports in a row, in place of one;
    /// [`Lease::ports`] tells which they are.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::net::Ipv4Addr;
    /// use netns_exec::ports::{Allocator, Ports, Protocol};
    /// use netns_exec::{Executor, Netns};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let ports = Allocator::new(&Executor::new()?);
    /// // As RTP and RTCP have them.
    /// let lease = ports
    ///     .request(Protocol::Udp)
    ///     .on(&Netns::current()?, [Ipv4Addr::UNSPECIFIED.into()])
    ///     .ports(Ports::Range(33000..=33099))
    ///     .block(2)
    ///     .acquire()?;
    /// assert_eq!(lease.ports().count(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn block(mut self, ports: u16) -> Self {
        self.plan.block = ports;
        self
    }

    /// Says whether recvmsg(2) on a UDP member tells the address that a datagram
    /// was sent to (`IP_PKTINFO`, `IPV6_RECVPKTINFO`); it does unless this says
    /// `false`. A reader that makes no room for it is told `MSG_CTRUNC`, so a
    /// program that does not ask for it is better off without.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Request;
    /// # fn f(request: Request) -> Request {
    /// // The server reads with `UdpSocket::recv_from`, which has no room for it.
    /// request.packet_info(false)
    /// # }
    /// ```
    pub fn packet_info(mut self, yes: bool) -> Self {
        self.plan.options.packet_info = yes;
        self
    }

    /// Lets members be bound to addresses that their namespace does not have, or
    /// not yet (`IP_FREEBIND`): one that is still tentative, or that a failover
    /// will bring. Without it such an address is `EADDRNOTAVAIL`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::ports::{Allocator, Ports, Protocol};
    /// use netns_exec::{Executor, Netns};
    ///
    /// let ports = Allocator::new(&Executor::new()?);
    /// let lease = ports
    ///     .request(Protocol::Tcp)
    ///     .on(&Netns::current()?, ["192.0.2.10".parse()?]) // keepalived will bring it
    ///     .free_bind(true)
    ///     .ports(Ports::Exact(443))
    ///     .acquire()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn free_bind(mut self, yes: bool) -> Self {
        self.plan.options.free_bind = yes;
        self
    }

    /// Keeps TCP members from ever connecting, whichever process has them.
    ///
    /// A listener of the host that is handed to a process in a namespace without
    /// a way out is one: that process can shut it down and connect it, to the
    /// host's loopback for instance. With this option a locked filter
    /// (`SO_LOCK_FILTER`) drops the answers to such an attempt. Connections that
    /// the listener accepts inherit the filter, and work.
    ///
    /// It needs what [`Gate::Drop`] needs, `CAP_NET_ADMIN` over the member's
    /// namespace, and [`activate`](Lease::activate) has to come before the socket
    /// is handed on: what keeps clients away until then is not locked.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::net::Ipv4Addr;
    /// use netns_exec::ports::{Allocator, Ports, Protocol};
    /// use netns_exec::{Executor, Netns};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let ports = Allocator::new(&Executor::new()?);
    /// let lease = ports
    ///     .request(Protocol::Tcp)
    ///     .on(&Netns::current()?, [Ipv4Addr::UNSPECIFIED.into()])
    ///     .ports(Ports::Exact(8080))
    ///     .accept_only(true)
    ///     .acquire()?;
    /// lease.activate()?;
    /// // From here on the sockets may go to code that is not trusted.
    /// let (members, hold) = lease.split();
    /// # Ok(())
    /// # }
    /// ```
    pub fn accept_only(mut self, yes: bool) -> Self {
        self.plan.options.accept_only = yes;
        self
    }

    /// Has `notice` called, on the thread that acquires, each time that the
    /// request begins to wait before it tries again, with what it waits out.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::net::Ipv4Addr;
    /// use std::time::Duration;
    /// use netns_exec::ports::{Allocator, Ports, Protocol};
    /// use netns_exec::{Executor, Netns};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let ports = Allocator::new(&Executor::new()?);
    /// let lease = ports
    ///     .request(Protocol::Tcp)
    ///     .on(&Netns::current()?, [Ipv4Addr::UNSPECIFIED.into()])
    ///     .ports(Ports::Exact(8080))
    ///     .retry_for(Duration::from_secs(60))
    ///     .on_wait(|error| eprintln!("waiting: {error}"))
    ///     .acquire()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_wait(mut self, notice: impl Fn(&Error) + Send + Sync + 'static) -> Self {
        self.plan.on_wait = Some(Box::new(notice));
        self
    }

    /// Says what clients meet before the lease is activated.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Fallback, Gate, Request};
    /// # fn f(request: Request) -> Request {
    /// // As good as it gets without CAP_NET_ADMIN: refused until `activate`.
    /// request.gate(Gate::Drop { otherwise: Fallback::Refuse })
    /// # }
    /// ```
    pub fn gate(mut self, gate: Gate) -> Self {
        self.plan.gate = gate;
        self
    }

    /// Says how long to go on looking for a port of a range.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Budget, Ports, Request};
    /// # fn f(request: Request) -> Request {
    /// // Twenty binds and no more, however large the range is.
    /// request.ports(Ports::Range(20000..=60000)).budget(Budget::Tries(20))
    /// # }
    /// ```
    pub fn budget(mut self, budget: Budget) -> Self {
        self.plan.budget = budget;
        self
    }

    /// Goes on trying an exact port while another program or lease has it, for this long.
    /// When the time has passed, the error is that of the last try. So long it also
    /// waits for an IPv6 address that is tentative (of a broker's members that
    /// cannot be told), and at most so long for a broker that does not answer.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use netns_exec::ports::{Ports, Request};
    /// # fn f(request: Request) -> Request {
    /// // The old instance of this daemon still has the port, for some seconds.
    /// request.ports(Ports::Exact(8080)).retry_for(Duration::from_secs(10))
    /// # }
    /// ```
    pub fn retry_for(mut self, time: Duration) -> Self {
        self.plan.retry_for = Some(time);
        self
    }

    /// Lets another thread give this request up.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Cancel, Error, Lease, Request};
    /// # fn f(request: Request, shutdown: &Cancel) -> Result<Lease, Error> {
    /// // Another thread has a clone, and calls `shutdown.cancel()`.
    /// request.cancel(shutdown).acquire()
    /// # }
    /// ```
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.plan.cancel = cancel.clone();
        self
    }

    /// Leases a port: in every namespace, or in none.
    ///
    /// Blocks until there is a port or the budget is spent. It waits for a
    /// worker of each member's namespace, and so may be called from a job, as
    /// [`Executor::run`] may.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](super::ErrorKind); whichever it is, nothing is held
    /// any more, in any namespace.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::net::Ipv4Addr;
    /// use netns_exec::ports::{Allocator, Ports, Protocol};
    /// use netns_exec::{Executor, Netns};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (host, child) = (Netns::current()?, Netns::new()?);
    /// let ports = Allocator::new(&Executor::new()?);
    /// let lease = ports
    ///     .request(Protocol::Tcp)
    ///     .on(&host, [Ipv4Addr::UNSPECIFIED.into()])
    ///     .on(&child, [Ipv4Addr::UNSPECIFIED.into()])
    ///     .ports(Ports::Range(33000..=33099))
    ///     .acquire()?;
    /// println!("port {} is ours in both", lease.port());
    /// # Ok(())
    /// # }
    /// ```
    pub fn acquire(self) -> Result<Lease, Error> {
        self.plan.check()?;
        Walk::new(self.plan).run()
    }

    /// Leases a port as [`acquire`](Self::acquire) does, without blocking the
    /// thread that polls; needs no particular runtime.
    ///
    /// It needs the workers of the members' namespaces, so a job on one of
    /// those must not block until the future is ready; `acquire` is made for
    /// that.
    ///
    /// Nothing happens before the first poll. Dropping the future gives the
    /// request up: what it has so far is given back shortly after.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Error, Request};
    /// # async fn f(request: Request) -> Result<(), Error> {
    /// let lease = request.acquire_async().await?;
    /// println!("port {}", lease.port());
    /// # Ok(())
    /// # }
    /// ```
    pub fn acquire_async(self) -> Acquire {
        Acquire::new(self.plan)
    }
    #[cfg(test)]
    pub(super) fn into_plan(self) -> Plan {
        self.plan
    }
}
