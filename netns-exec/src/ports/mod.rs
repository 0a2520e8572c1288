//! Leases on port numbers, held in several namespaces at once.
//!
//! A daemon that publishes a port often has to own one number twice: in the
//! namespace of the host and in that of a container. Reserving it in one and
//! binding it in the other later is a race, and a bind that succeeds is not
//! even proof in one: two sockets with `SO_REUSEADDR` can bind the same port,
//! and only one of them can listen.
//!
//! Here a port is leased only when the *last* step has succeeded in *every*
//! namespace. Where any step finds the port in use, whatever the attempt has
//! opened so far is closed, everywhere, and the next port is tried.
//!
//! ```no_run
//! use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
//! use std::os::fd::OwnedFd;
//! use netns_exec::ports::{Allocator, Ports, Protocol};
//! use netns_exec::{Executor, Netns};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let host = Netns::current()?;
//! let child = Netns::new()?;
//! let ports = Allocator::new(&Executor::new()?);
//! let lease = ports
//!     .request(Protocol::Tcp)
//!     .on(&host, [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()])
//!     .on(&child, [Ipv4Addr::UNSPECIFIED.into()])
//!     .ports(Ports::Range(33000..=33099))
//!     .acquire()?;
//! // No client can connect before the rules that go with the port are in place.
//! println!("leased port {}", lease.port());
//! lease.activate()?;
//!
//! // Dropping the lease gives the port back; to keep the sockets, take them out.
//! let (members, hold) = lease.split();
//! let listeners: Vec<TcpListener> = members.into_iter().map(|m| OwnedFd::from(m).into()).collect();
//! # drop((listeners, hold));
//! # Ok(())
//! # }
//! ```
//!
//! # Which ports
//!
//! An [`Allocator`] keeps a table of what it has leased, so that two requests
//! of one process never compete in the kernel, and a cursor per range, so that
//! a port just given back is not the next to be given out. The table is keyed
//! by namespace, protocol and address, and not by device; a wildcard address stands for all of
//! its family, and the families are independent, because sockets are V6ONLY.
//!
//! # Privileges
//!
//! A thread has to enter each namespace (`CAP_SYS_ADMIN`); ports below 1024
//! need `CAP_NET_BIND_SERVICE`, and the default [`Gate`] for TCP needs
//! `CAP_NET_ADMIN`, both over the namespace.
//!
//! # Rootless
//!
//! A process that is inside a user and a network namespace of its own cannot
//! enter the host's any more. It spawns a [`Broker`] before it goes in, and
//! names it as a member. One that keeps to the host's network namespace, and has
//! a detached one besides, needs none: its threads can enter that.
//!
//! # Limits
//!
//! A link-local IPv6 address needs its device:
//! [`Request::on_device`](Request::on_device). Who has a socket can use it in its
//! namespace: a listener can be shut down and connected, against which there is
//! [`Request::accept_only`](Request::accept_only), and a UDP socket can send.
//! Nothing keeps the superuser from `SO_REUSEPORT` tricks, and a
//! copy of a UDP socket that was handed on owns its port until it is closed.

mod acquire;
mod allocator;
mod attempt;
mod broker;
mod cancel;
mod dynamic;
mod endpoint;
mod error;
mod gate;
mod holds;
mod lease;
mod opener;
mod plan;
mod protocol;
mod range;
mod request;
mod socket;
mod table;
mod walk;

#[cfg(any(test, fuzzing))]
/// For `crate::fuzz`.
pub(crate) fn fuzz_request(bytes: &[u8]) {
    broker::fuzz::request(bytes);
}

#[cfg(any(test, fuzzing))]
/// For `crate::fuzz`.
pub(crate) fn fuzz_reply(bytes: &[u8]) {
    broker::fuzz::reply(bytes);
}

#[cfg(any(test, fuzzing))]
pub(crate) use dynamic::fuzz as fuzz_settings;

pub use acquire::Acquire;
pub(crate) use allocator::fill_and_empty_table;
pub use allocator::{Allocator, Leased};
pub use broker::{Broker, Policy};
pub use cancel::Cancel;
pub use endpoint::Endpoint;
pub use error::{Counts, Error, ErrorKind, Stage};
pub use gate::{Fallback, Gate, GateState};
pub use holds::Hold;
pub use lease::{Lease, Member};
pub use plan::{Budget, Ports};
pub use protocol::Protocol;
pub use range::Start;
pub use request::Request;
