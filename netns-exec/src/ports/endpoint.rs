//! Where a port is to be held.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::protocol::Protocol;
use crate::netns::NetnsId;

/// Where a port is to be held: a protocol and an address of one
/// namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub(crate) netns: NetnsId,
    pub(crate) label: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) addr: IpAddr,
}

impl Endpoint {
    /// Returns the id of the namespace.
    pub fn netns(&self) -> NetnsId {
        self.netns
    }

    /// Returns what people call the namespace.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns the protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Returns the address; 0.0.0.0 and :: stand for all of their family.
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
