//! Sockets of a namespace, wherever they are used.
//!
//! A socket belongs to the namespace of the thread that made it, whichever thread binds,
//! connects or polls it later. So a worker is needed for socket(2) alone: all else
//! happens on the caller's thread, and no slow peer ever holds up a worker.
//!
//! * [`tcp_listen`], [`tcp_connect`], [`udp_bind`], [`unix_abstract`], [`raw`],
//!   [`packet`] and [`netlink`] make one socket. They give out the standard library's
//!   types, or an [`OwnedFd`](std::os::fd::OwnedFd) where it has none: every runtime,
//!   and socket2, takes those. Each has a form that can be awaited.
//! * [`SocketStock`] has sockets made ahead of use, so that taking one is no trip to a
//!   worker at all.
//! * `resolve` (with the feature of that name) looks a host name up with the namespace's
//!   own `resolv.conf` and `hosts`.
//! * [`ProcNet`] is the folder in which every thread reads the namespace's tables.
//!
//! All descriptors are closed on exec. A call waits only where it says so; a socket
//! does not block if that is asked for: [`nonblocking`]. The forms that are awaited ship
//! a job first, as [`Executor::spawn_async`](crate::Executor::spawn_async) does, and block
//! for nothing.
//!
//! # Examples
//!
//! ```no_run
//! use std::time::Duration;
//! use netns_exec::{Netns, net};
//!
//! let blue = Netns::open("blue")?;
//! let listener = net::tcp_listen(&blue, ([127, 0, 0, 1], 80))?;
//! let stream = net::tcp_connect(&blue, ([10, 0, 0, 2], 443), Duration::from_secs(3))?;
//! # let _ = (listener, stream);
//! # Ok::<(), netns_exec::Error>(())
//! ```

mod keeper;
mod place;
mod proc_net;
#[cfg(feature = "resolve")]
mod resolve;
mod shelf;
mod socket;
mod stock;

pub use place::{NonBlocking, Place, nonblocking};
pub use proc_net::ProcNet;
#[cfg(feature = "resolve")]
pub use resolve::{resolve, resolve_async};
pub use socket::{
    netlink, netlink_async, packet, packet_async, raw, raw_async, tcp_connect, tcp_connect_async,
    tcp_listen, tcp_listen_async, udp_bind, udp_bind_async, unix_abstract, unix_abstract_async,
    unix_abstract_connect, unix_abstract_connect_async,
};
pub use stock::{SocketKind, SocketStock, StockBuilder};
