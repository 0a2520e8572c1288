//! Who opens the sockets of a member's namespace.

use std::net::Ipv6Addr;

use super::cancel::Patience;
use super::dynamic::{self, LocalPorts};
use super::error::Error;
use super::socket::{Fault, Fresh, Spec};
use crate::executor::Executor;
use crate::netns::{Netns, NetnsId};

/// Brings unbound sockets out of one namespace.
///
/// Binding and listening is done by the walk over the ports, on any thread: the
/// sockets belong to their namespace for good. So a whole walk takes one round
/// trip, and each errno is the kernel's own.
pub(crate) trait Opener: Send + Sync {
    /// The namespace that the sockets belong to.
    fn netns(&self) -> NetnsId;

    /// What people call it.
    fn label(&self) -> &str;

    /// Opens sockets, up to the first that fails.
    ///
    /// Must not be called while a claim is pending: it may have to wait for a
    /// thread that itself waits for the outcome of that claim.
    ///
    /// `patience` bounds the wait for another process; a wait for a worker has no
    /// bound.
    fn open(&self, request: &OpenRequest, patience: &Patience) -> Result<OpenReply, Error>;

    /// Tells whether the namespace has this address, and does not let it be bound
    /// yet, because duplicate address detection still runs.
    fn is_tentative(&self, addr: Ipv6Addr) -> Result<bool, Error>;
}

/// A thread pinned in the namespace.
pub(crate) struct WorkerOpener {
    pub(crate) executor: Executor,
    pub(crate) netns: Netns,
}

impl Opener for WorkerOpener {
    fn netns(&self) -> NetnsId {
        self.netns.id()
    }

    fn label(&self) -> &str {
        self.netns.label()
    }

    fn open(&self, request: &OpenRequest, _: &Patience) -> Result<OpenReply, Error> {
        self.executor
            .run(&self.netns, || request.fill())
            .map_err(|cause| Error::namespace("open sockets", self.label(), cause))
    }

    fn is_tentative(&self, addr: Ipv6Addr) -> Result<bool, Error> {
        self.executor
            .run(&self.netns, || dynamic::is_tentative(addr))
            .map_err(|cause| Error::namespace("look up addresses", self.label(), cause))
    }
}

/// What is wanted from a thread in a namespace, all in one round trip.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenRequest {
    /// A socket for each.
    pub(crate) specs: Vec<Spec>,
    /// Whether to read the namespace's port settings too.
    pub(crate) local_ports: bool,
}

/// What the thread brought.
#[derive(Debug, Default)]
pub(crate) struct OpenReply {
    /// In the order of the specs, up to the first that failed.
    pub(crate) sockets: Vec<Fresh>,
    /// Why there are fewer sockets than specs.
    pub(crate) fault: Option<Fault>,
    pub(crate) local_ports: Option<LocalPorts>,
}

impl OpenRequest {
    /// Does what is asked on the calling thread, from the namespace it is in.
    pub(crate) fn fill(&self) -> OpenReply {
        let mut reply = OpenReply {
            local_ports: self.local_ports.then(LocalPorts::read),
            ..OpenReply::default()
        };
        for &spec in &self.specs {
            match Fresh::open(spec) {
                Ok(fresh) => reply.sockets.push(fresh),
                Err(fault) => {
                    reply.fault = Some(fault);
                    break;
                }
            }
        }
        reply
    }
}
