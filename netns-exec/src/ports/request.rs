//! What a port is wanted for, and the checks that need no system call.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::acquire::Acquire;
use super::cancel::Cancel;
use super::lease::{Book, Lease};
use super::opener::{Opener, Pinned};
use super::table::overlap;
use super::walk::Walk;
use super::{Broker, Error, Gate, Ports, Protocol};
use crate::executor::Executor;
use crate::netns::Netns;

/// How long a request goes on looking for a port of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Budget {
    /// Until each port has been tried once.
    #[default]
    WalkOnce,
    /// Until this many ports have reached the kernel, and at most once over the
    /// range.
    Tries(u32),
    /// Several times over the range.
    Laps {
        /// How many times.
        laps: u32,
        /// How long to rest in between, give or take a half, so that requests
        /// that met once do not meet again.
        pause: Duration,
    },
    /// Over and over, until then. It bounds the walk, not the wait for a
    /// namespace's worker that is busy with a job.
    Deadline(Instant),
}

/// A port to be leased: what for, where, which, and how hard to try.
///
/// Made by [`Allocator::request`](super::Allocator::request). Nothing happens
/// before [`acquire`](Self::acquire) or [`acquire_async`](Self::acquire_async).
#[must_use = "a request does nothing until it is acquired"]
pub struct Request {
    pub(super) book: Arc<Book>,
    pub(super) executor: Executor,
    pub(super) protocol: Protocol,
    pub(super) wanted: Vec<Wanted>,
    /// A namespace that was named without an address.
    pub(super) addressless: Option<String>,
    pub(super) choice: Option<Choice>,
    pub(super) gate: Gate,
    pub(super) budget: Budget,
    pub(super) retry_for: Option<Duration>,
    pub(super) cancel: Cancel,
}

/// A member before it has a socket.
pub(super) struct Wanted {
    pub(super) opener: Arc<dyn Opener>,
    pub(super) addr: IpAddr,
}

/// [`Ports`], without the borrow.
pub(super) enum Choice {
    Exact(u16),
    Range(RangeInclusive<u16>),
    Dynamic { of: Arc<dyn Opener> },
}

impl Request {
    pub(super) fn new(book: Arc<Book>, executor: Executor, protocol: Protocol) -> Self {
        Request {
            book,
            executor,
            protocol,
            wanted: Vec::new(),
            addressless: None,
            choice: None,
            gate: Gate::default(),
            budget: Budget::default(),
            retry_for: None,
            cancel: Cancel::new(),
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
        Arc::new(Pinned {
            executor: self.executor.clone(),
            netns: netns.clone(),
        })
    }

    pub(super) fn on_opener(
        mut self,
        opener: Arc<dyn Opener>,
        addrs: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let before = self.wanted.len();
        self.wanted.extend(addrs.into_iter().map(|addr| Wanted {
            opener: opener.clone(),
            addr: addr.to_canonical(),
        }));
        if self.wanted.len() == before {
            self.addressless = Some(opener.label().to_owned());
        }
        self
    }

    /// Says which ports will do.
    pub fn ports(mut self, ports: Ports<'_>) -> Self {
        self.choice = Some(match ports {
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
        self.gate = gate;
        self
    }

    /// Says how long to go on looking for a port of a range.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Goes on trying an exact port while somebody else has it, for this long.
    /// When the time has passed, the error is that of the last try.
    pub fn retry_for(mut self, time: Duration) -> Self {
        self.retry_for = Some(time);
        self
    }

    /// Lets another thread give this request up.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
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
        self.check()?;
        Walk::new(self).run()
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
        Acquire::new(self)
    }

    /// Refuses what makes no sense.
    pub(super) fn check(&self) -> Result<(), Error> {
        if let Some(label) = &self.addressless {
            return Err(Error::invalid(format!(
                "no address to hold the port on in netns `{label}`"
            )));
        }
        if self.wanted.is_empty() {
            return Err(Error::invalid(
                "no members (say where to hold the port with `on`)",
            ));
        }
        for (index, new) in self.wanted.iter().enumerate() {
            for old in &self.wanted[..index] {
                if old.opener.netns() != new.opener.netns() || !overlap(old.addr, new.addr) {
                    continue;
                }
                let label = new.opener.label();
                return Err(Error::invalid(if old.addr == new.addr {
                    format!("{} in netns `{label}` is there twice", new.addr)
                } else {
                    format!(
                        "{} and {} in netns `{label}` overlap: a wildcard covers every \
                         address of its family",
                        old.addr, new.addr
                    )
                }));
            }
        }
        if self.protocol == Protocol::Udp && self.gate == Gate::Refuse {
            return Err(Error::invalid(
                "a udp socket cannot be bound and refuse (use `Gate::Drop`)",
            ));
        }
        self.check_ports()
    }

    fn check_ports(&self) -> Result<(), Error> {
        let exact = match &self.choice {
            None => {
                return Err(Error::invalid("no ports (say which will do with `ports`)"));
            }
            Some(Choice::Exact(0)) => {
                return Err(Error::invalid(
                    "port 0 is not a port (use `Ports::Range` or `Ports::Dynamic`)",
                ));
            }
            Some(Choice::Range(range)) if range.start() > range.end() => {
                return Err(Error::invalid(format!(
                    "the range {}-{} is inverted",
                    range.start(),
                    range.end()
                )));
            }
            Some(Choice::Range(range)) if *range.start() == 0 => {
                return Err(Error::invalid(format!(
                    "the range 0-{} begins with port 0, which is not a port",
                    range.end()
                )));
            }
            Some(choice) => matches!(choice, Choice::Exact(_)),
        };
        if exact && self.budget != Budget::WalkOnce {
            return Err(Error::invalid(
                "a budget is for ranges (use `retry_for` with an exact port)",
            ));
        }
        if !exact && self.retry_for.is_some() {
            return Err(Error::invalid(
                "`retry_for` is for an exact port (use `budget` with a range)",
            ));
        }
        if matches!(self.budget, Budget::Tries(0) | Budget::Laps { laps: 0, .. }) {
            return Err(Error::invalid("the budget allows no try at all"));
        }
        Ok(())
    }
}
