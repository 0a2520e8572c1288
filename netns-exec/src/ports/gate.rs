//! How clients are kept away from a port until it is put to use.

/// What a client meets before [`activate`](super::Lease::activate).
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
