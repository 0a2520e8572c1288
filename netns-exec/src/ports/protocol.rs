//! What a port belongs to.

use std::fmt;

/// The protocol a port belongs to.
///
/// # Examples
///
/// ```
/// use netns_exec::ports::Protocol;
///
/// assert_eq!(Protocol::Tcp.to_string(), "tcp");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Protocol {
    /// Owned from listen(2) on.
    Tcp,
    /// Owned from bind(2) on.
    Udp,
    /// As TCP. Many kernels have none: `EPROTONOSUPPORT`.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// The protocols that one lease is for, each once, in the order asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Protocols(Vec<Protocol>);

impl Protocols {
    pub(crate) fn new(protocols: impl IntoIterator<Item = Protocol>) -> Protocols {
        let mut list = Vec::new();
        for protocol in protocols {
            if !list.contains(&protocol) {
                list.push(protocol);
            }
        }
        Protocols(list)
    }

    pub(crate) fn as_slice(&self) -> &[Protocol] {
        &self.0
    }

    pub(crate) fn contains(&self, protocol: Protocol) -> bool {
        self.0.contains(&protocol)
    }
}

impl fmt::Display for Protocols {
    /// "tcp", or "tcp+udp".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, protocol) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("+")?;
            }
            protocol.fmt(f)?;
        }
        Ok(())
    }
}
