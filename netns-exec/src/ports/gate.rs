//! How clients are kept away from a port until it is put to use.

/// What a client meets before [`activate`](super::Lease::activate).
///
/// # Examples
///
/// ```
/// use std::net::{Ipv4Addr, TcpStream};
/// use netns_exec::ports::{Allocator, Gate, Ports, Protocol};
/// use netns_exec::{Executor, Netns};
///
/// let here = Netns::current()?;
/// let lease = Allocator::new(&Executor::new()?)
///     .request(Protocol::Tcp)
///     .on(&here, [Ipv4Addr::LOCALHOST.into()])
///     .ports(Ports::Dynamic { of: &here })
///     .gate(Gate::Refuse)
///     .acquire()?;
/// let addr = lease.members()[0].local_addr();
/// assert!(TcpStream::connect(addr).is_err());
/// lease.activate()?;
/// assert!(TcpStream::connect(addr).is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Gate {
    /// Nothing: every packet is dropped, so that a client goes on trying.
    ///
    /// For TCP this needs `CAP_NET_ADMIN` over the member's namespace;
    /// `otherwise` is for those who lack it.
    Drop {
        /// What to do where the filter is refused.
        otherwise: Fallback,
    },
    /// A connection that waits to be accepted, or for UDP a datagram that waits
    /// to be read.
    Queue,
    /// A refused connection: the port is bound, and so owned, but listened on
    /// only from `activate` on, which can then fail. Not for UDP, which has no
    /// such state. It has to be alone on its port, so a connection of an earlier
    /// owner in TIME_WAIT is in its way.
    Refuse,
}

impl Default for Gate {
    /// [`Gate::Drop`], and an error where the filter is refused.
    fn default() -> Self {
        Gate::Drop {
            otherwise: Fallback::Fail,
        }
    }
}

/// What to do where the kernel refuses the filter of [`Gate::Drop`].
///
/// # Examples
///
/// ```
/// use netns_exec::ports::{Fallback, Gate};
///
/// // With CAP_NET_ADMIN clients wait in silence, without it in the listener's queue.
/// let gate = Gate::Drop { otherwise: Fallback::Queue };
/// assert_ne!(gate, Gate::default());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fallback {
    /// Give up, with the stage [`Stage::Filter`](super::Stage::Filter).
    #[default]
    Fail,
    /// As [`Gate::Queue`].
    Queue,
    /// As [`Gate::Refuse`].
    Refuse,
}

/// What a member's gate really is.
///
/// # Examples
///
/// ```
/// # use netns_exec::ports::{GateState, Lease};
/// # fn f(lease: &Lease) {
/// if lease.members().iter().any(|member| member.gate() == GateState::Queueing) {
///     println!("clients can connect already, and wait for the first accept");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GateState {
    /// Every packet is dropped.
    Dropping,
    /// Connections or datagrams queue up.
    Queueing,
    /// Bound, but not listening.
    Refusing,
    /// In use since [`activate`](super::Lease::activate).
    Open,
}

impl Gate {
    /// What it is before anything is known to be in its way.
    pub(crate) fn shut(self) -> GateState {
        match self {
            Gate::Drop { .. } => GateState::Dropping,
            Gate::Queue => GateState::Queueing,
            Gate::Refuse => GateState::Refusing,
        }
    }
}
