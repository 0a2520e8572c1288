//! What a broker hands out.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::ports::protocol::Protocol;

/// Limits what a broker hands out; it is the broker that checks it, whatever its
/// client asks for. See [`Broker::spawn_with`](super::Broker::spawn_with).
///
/// # Examples
///
/// ```no_run
/// use std::net::Ipv4Addr;
/// use netns_exec::ports::{Broker, Policy};
///
/// # fn main() -> Result<(), netns_exec::ports::Error> {
/// let policy = Policy::new()
///     .ports(8000..=8999)
///     .addrs([Ipv4Addr::UNSPECIFIED.into()])
///     .accept_only(true);
/// let broker = Broker::spawn_with(policy)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// None: all.
    ports: Vec<RangeInclusive<u16>>,
    /// None: all.
    addrs: Vec<IpAddr>,
    accept_only: bool,
}

impl Policy {
    /// Makes a policy that allows everything.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::ports::Policy;
    ///
    /// // Still more than no policy at all: the broker binds what it hands out.
    /// let all = Policy::new();
    /// # let _ = all;
    /// ```
    pub fn new() -> Policy {
        Policy::default()
    }

    /// Allows these ports, besides those of other calls, and no others.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::ports::Policy;
    ///
    /// let web = Policy::new().ports(80..=80).ports(8000..=8999);
    /// # let _ = web;
    /// ```
    pub fn ports(mut self, ports: RangeInclusive<u16>) -> Policy {
        self.ports.push(ports);
        self
    }

    /// Allows these addresses, besides those of other calls, and no others. A
    /// wildcard is an address of its own here: it does not stand for the rest.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::{Ipv4Addr, Ipv6Addr};
    /// use netns_exec::ports::Policy;
    ///
    /// // For clients on this machine only.
    /// let local = Policy::new().addrs([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    /// # let _ = local;
    /// ```
    pub fn addrs(mut self, addrs: impl IntoIterator<Item = IpAddr>) -> Policy {
        let addrs = addrs.into_iter().map(|addr| addr.to_canonical());
        self.addrs.extend(addrs);
        self
    }

    /// Hands out TCP listeners only, and none that could ever connect: as
    /// [`Request::accept_only`](crate::ports::Request::accept_only), which needs
    /// `CAP_NET_ADMIN` over the namespace. The filter of `Gate::Drop` would be in
    /// its place, so members get what that falls back to.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::ports::Policy;
    ///
    /// // The code that gets the listeners is not trusted with the host's loopback.
    /// let policy = Policy::new().ports(8000..=8999).accept_only(true);
    /// # let _ = policy;
    /// ```
    pub fn accept_only(mut self, yes: bool) -> Policy {
        self.accept_only = yes;
        self
    }

    /// Whether there is anything that it does not allow.
    pub(super) fn is_limited(&self) -> bool {
        *self != Policy::default()
    }

    pub(super) fn has_accept_only(&self) -> bool {
        self.accept_only
    }

    // A broker allocates nothing: these must not.

    pub(super) fn allows_protocol(&self, protocol: Protocol) -> bool {
        !self.accept_only || protocol == Protocol::Tcp
    }

    pub(super) fn allows_addr(&self, addr: IpAddr) -> bool {
        self.addrs.is_empty() || self.addrs.contains(&addr)
    }

    pub(super) fn allows_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|range| range.contains(&port))
    }
}
