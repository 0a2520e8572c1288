//! Saying what a port is wanted for, and asking for it.

use std::net::IpAddr;
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
use super::protocol::Protocol;
use super::walk::Walk;
use crate::executor::Executor;
use crate::netns::Netns;

/// A port to be leased: what for, where, which, and how hard to try.
///
/// Made by [`Allocator::request`](super::Allocator::request). Nothing happens
/// before [`acquire`](Self::acquire) or [`acquire_async`](Self::acquire_async).
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
    pub fn on(self, netns: &Netns, addrs: impl IntoIterator<Item = IpAddr>) -> Self {
        let opener = self.pinned(netns);
        self.on_opener(opener, addrs)
    }

    /// Adds one member for each address, in the namespace of a broker.
    pub fn on_broker(self, broker: &Broker, addrs: impl IntoIterator<Item = IpAddr>) -> Self {
        self.on_opener(Arc::new(broker.clone()), addrs)
    }

    fn pinned(&self, netns: &Netns) -> Arc<dyn Opener> {
        Arc::new(WorkerOpener {
            executor: self.executor.clone(),
            netns: netns.clone(),
        })
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
            }));
        if self.plan.wanted.len() == before {
            self.plan.addressless = Some(opener.label().to_owned());
        }
        self
    }

    /// Says which ports will do.
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

    /// Says what clients meet before the lease is activated.
    pub fn gate(mut self, gate: Gate) -> Self {
        self.plan.gate = gate;
        self
    }

    /// Says how long to go on looking for a port of a range.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.plan.budget = budget;
        self
    }

    /// Goes on trying an exact port while another program or lease has it, for this long.
    /// When the time has passed, the error is that of the last try.
    pub fn retry_for(mut self, time: Duration) -> Self {
        self.plan.retry_for = Some(time);
        self
    }

    /// Lets another thread give this request up.
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
    pub fn acquire_async(self) -> Acquire {
        Acquire::new(self.plan)
    }
    #[cfg(test)]
    pub(super) fn into_plan(self) -> Plan {
        self.plan
    }
}
