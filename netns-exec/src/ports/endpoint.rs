//! Where a port is to be held.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::protocol::Protocol;
use crate::netns::NetnsId;

/// Where a port is to be held: a protocol and an address of one
/// namespace.
///
/// # Examples
///
/// ```
/// # use netns_exec::ports::Lease;
/// # fn f(lease: &Lease) {
/// for member in lease.members() {
///     println!("{}", member.endpoint()); // tcp 0.0.0.0 in blue
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub(crate) netns: NetnsId,
    pub(crate) label: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) addr: IpAddr,
}

impl Endpoint {
    /// Returns the id of the namespace.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::{Netns, ports::Lease};
    /// # fn f(lease: &Lease, blue: &Netns) {
    /// let in_blue = lease.members().iter().find(|member| member.endpoint().netns() == blue.id());
    /// # let _ = in_blue;
    /// # }
    /// ```
    pub fn netns(&self) -> NetnsId {
        self.netns
    }

    /// Returns what people call the namespace.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Lease;
    /// # fn f(lease: &Lease) {
    /// let places: Vec<&str> = lease.members().iter().map(|member| member.endpoint().label()).collect();
    /// println!("port {} is held in {}", lease.port(), places.join(" and "));
    /// # }
    /// ```
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns the protocol.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::{Lease, Protocol};
    /// # fn f(lease: Lease) {
    /// let (members, _hold) = lease.split();
    /// let (tcp, udp): (Vec<_>, Vec<_>) =
    ///     members.into_iter().partition(|member| member.endpoint().protocol() == Protocol::Tcp);
    /// # let _ = (tcp, udp);
    /// # }
    /// ```
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Returns the address; 0.0.0.0 and :: stand for all of their family.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ports::Lease;
    /// # fn f(lease: &Lease) {
    /// let has_ipv6 = lease.members().iter().any(|member| member.endpoint().addr().is_ipv6());
    /// # let _ = has_ipv6;
    /// # }
    /// ```
    pub fn addr(&self) -> IpAddr {
        self.addr
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} in netns `{}`",
            self.protocol, self.addr, self.label
        )
    }
}
