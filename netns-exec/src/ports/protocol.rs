//! What a port belongs to.

use std::fmt;

/// The protocol a port belongs to.
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
