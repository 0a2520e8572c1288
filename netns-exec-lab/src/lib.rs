//! Networks for tests: namespaces joined by links and bridges, without root.
//!
//! ```no_run
//! use std::net::{TcpListener, TcpStream};
//!
//! use netns_exec_lab::Lab;
//!
//! # netns_exec::rootless::test_harness!();
//! // As an ordinary user, with `netns_exec::rootless::test_harness!()` among the tests.
//! let lab = Lab::new()?;
//! let [client, router, server] = lab.nodes(["client", "router", "server"])?;
//! lab.link(client.at(&["10.0.1.2/24"]), router.at(&["10.0.1.1/24"]))?;
//! lab.link(server.at(&["10.0.2.2/24"]), router.at(&["10.0.2.1/24"]))?;
//! client.route("default", "10.0.1.1")?;
//! server.route("default", "10.0.2.1")?;
//! router.forward()?;
//!
//! let listener = server.run(|| TcpListener::bind("10.0.2.2:80"))??;
//! client.run(|| TcpStream::connect("10.0.2.2:80"))??;
//! # drop(listener);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! For the pair that most tests need there is `#[in_netns(fresh, link = peer)]`, see
//! [`Peer`].
//!
//! # What is promised
//!
//! * When a call returns, its effect is there: addresses can be bound (duplicate address
//!   detection is off), the carrier is up, a bridge's port forwards. Nothing is to be
//!   waited for.
//! * A link loses nothing, and is as fast as the machine. [`Link::delay`] and
//!   [`Link::rate`] change that as far as the kernel can: what it was built without is an
//!   error that says so.
//! * Nothing has a name outside of the process. A namespace is gone with its last handle:
//!   when the lab is dropped, after a panic, and when the process is killed.
//! * It needs no root but that of a user namespace, and no other program.
//!
//! Namespaces, threads and the ways in and out are those of [`netns_exec`]: a node's jobs
//! run on workers of its own.
#![cfg(target_os = "linux")]

mod cidr;
mod error;
mod lab;
mod link;
mod netlink;
mod node;
mod peer;

#[doc(hidden)]
pub mod __private {
    //! What `#[in_netns(fresh, link = ...)]` expands to calls of.
    pub use crate::peer::run_linked;
}

pub use error::{Error, ErrorKind, Result};
pub use lab::Lab;
pub use link::{Bridge, Link};
pub use node::{End, Node};
pub use peer::Peer;
