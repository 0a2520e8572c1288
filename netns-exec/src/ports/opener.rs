//! Who opens the sockets of a member's namespace.

use crate::executor::Executor;
use crate::netns::{Netns, NetnsId};

use super::Error;
use super::socket::{Order, Supply};

/// Brings unbound sockets out of one namespace.
///
/// Binding and listening is done by whoever walks over the ports, on any
/// thread: the sockets belong to their namespace for good. So a whole walk
/// takes one round trip, and each errno is the kernel's own.
pub(crate) trait Opener: Send + Sync {
    /// The namespace that the sockets belong to.
    fn netns(&self) -> NetnsId;

    /// What people call it.
    fn label(&self) -> &str;

    /// Opens sockets, up to the first that fails.
    ///
    /// Must not be called while a claim is pending: it may have to wait for a
    /// thread that itself waits for the outcome of that claim.
    fn open(&self, order: &Order) -> Result<Supply, Error>;
}

/// A thread pinned in the namespace.
pub(crate) struct Pinned {
    pub(crate) executor: Executor,
    pub(crate) netns: Netns,
}

impl Opener for Pinned {
    fn netns(&self) -> NetnsId {
        self.netns.id()
    }

    fn label(&self) -> &str {
        self.netns.label()
    }

    fn open(&self, order: &Order) -> Result<Supply, Error> {
        self.executor
            .run(&self.netns, || order.fill())
            .map_err(|cause| Error::namespace("open sockets", self.label(), cause))
    }
}
