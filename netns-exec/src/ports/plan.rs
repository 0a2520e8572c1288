//! What a port is wanted for, and the checks that need no system call.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::broker::Broker;
use super::cancel::Cancel;
use super::error::Error;
use super::gate::Gate;
use super::holds::Holds;
use super::opener::Opener;
use super::protocol::{Protocol, Protocols};
use super::socket::{Device, Options};
use super::table::overlap;
use crate::netns::Netns;

/// Which ports a request may have.
///
/// # Examples
///
/// ```
/// # use netns_exec::{Netns, ports::{Ports, Request}};
/// # fn f(request: Request, host: &Netns, asked: Option<u16>) -> Request {
/// // As `docker run -p`: this port, or one of the host's choice.
/// request.ports(match asked {
///     Some(port) => Ports::Exact(port),
///     None => Ports::Dynamic { of: host },
/// })
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Ports<'a> {
    /// This one, reserved or not.
    Exact(u16),
    /// One of these, reserved or not.
    Range(RangeInclusive<u16>),
    /// One of the ports that a namespace gives to outgoing connections
    /// (`ip_local_port_range`, or 49152-65535 where that cannot be read), other
    /// than those that a member's namespace reserves
    /// (`ip_local_reserved_ports`). Both are read anew for each request.
    Dynamic {
        /// The namespace whose range it is; it need not be a member.
        of: &'a Netns,
    },
    /// As `Dynamic`, with the range of the namespace that a broker is in.
    DynamicOfBroker {
        /// The broker; it need not be a member.
        of: &'a Broker,
    },
}

/// How long a request goes on looking for a port of a range.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use netns_exec::ports::Budget;
///
/// // A range of four ports, shared with programs that come and go.
/// let patient = Budget::Laps { laps: 20, pause: Duration::from_millis(100) };
/// assert_ne!(patient, Budget::default());
/// ```
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
    /// Over and over, until then. It bounds the walk and the wait for a broker, not
    /// that for a namespace's worker that is busy with a job.
    Deadline(Instant),
}

/// All that a request says.
pub(super) struct Plan {
    pub(super) holds: Arc<Holds>,
    pub(super) protocols: Protocols,
    /// How many ports in a row.
    pub(super) block: u16,
    pub(super) wanted: Vec<Wanted>,
    /// A namespace that was named without an address.
    pub(super) addressless: Option<String>,
    /// What was given as a device and can be none.
    pub(super) bad_device: Option<String>,
    pub(super) choice: Option<Choice>,
    pub(super) gate: Gate,
    pub(super) options: Options,
    pub(super) budget: Budget,
    pub(super) retry_for: Option<Duration>,
    pub(super) cancel: Cancel,
    pub(super) on_wait: Option<OnWait>,
}

/// What the caller of a request does when that begins to wait.
pub(super) type OnWait = Box<dyn Fn(&Error) + Send + Sync>;

/// A member before it has a socket.
pub(super) struct Wanted {
    pub(super) opener: Arc<dyn Opener>,
    pub(super) addr: IpAddr,
    /// It is left out where the namespace lacks the address's family.
    pub(super) if_family: bool,
    /// It is tied to this device.
    pub(super) device: Option<Device>,
}

/// [`Ports`], without the borrow.
pub(super) enum Choice {
    Exact(u16),
    Range(RangeInclusive<u16>),
    Dynamic { of: Arc<dyn Opener> },
}

impl Plan {
    pub(super) fn new(holds: Arc<Holds>, protocol: Protocol) -> Plan {
        Plan {
            holds,
            protocols: Protocols::new([protocol]),
            block: 1,
            wanted: Vec::new(),
            addressless: None,
            bad_device: None,
            choice: None,
            gate: Gate::default(),
            options: Options::default(),
            budget: Budget::default(),
            retry_for: None,
            cancel: Cancel::new(),
            on_wait: None,
        }
    }

    /// Refuses what makes no sense.
    pub(super) fn check(&self) -> Result<(), Error> {
        if let Some(label) = &self.addressless {
            return Err(Error::invalid(format!(
                "no address to hold the port on in netns `{label}`"
            )));
        }
        if let Some(device) = &self.bad_device {
            return Err(Error::invalid(format!(
                "`{device}` cannot be the name of a device"
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
        if self.protocols.as_slice().is_empty() {
            return Err(Error::invalid("no protocol to hold the port for"));
        }
        if self.protocols.contains(Protocol::Udp) && self.gate == Gate::Refuse {
            return Err(Error::invalid(
                "a udp socket cannot be bound and refuse (use `Gate::Drop`)",
            ));
        }
        if self.options.accept_only && self.protocols.as_slice() != [Protocol::Tcp] {
            return Err(Error::invalid(format!(
                "`accept_only` is for tcp: nothing keeps a {} socket from sending",
                self.protocols
            )));
        }
        self.check_ports()?;
        self.check_block()
    }

    fn check_block(&self) -> Result<(), Error> {
        let block = self.block;
        let (low, high) = match &self.choice {
            _ if block == 0 => return Err(Error::invalid("a block of no ports")),
            Some(Choice::Exact(port)) => (*port, u16::MAX),
            Some(Choice::Range(range)) => (*range.start(), *range.end()),
            // Not known yet; one that is too short has no block.
            Some(Choice::Dynamic { .. }) | None => (1, u16::MAX),
        };
        if high - low < block - 1 {
            return Err(Error::invalid(format!(
                "{block} ports in a row do not fit between {low} and {high}"
            )));
        }
        Ok(())
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
