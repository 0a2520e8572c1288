//! Sockets of a namespace that this process has left for good.
//!
//! A rootless process enters a user namespace of its own, and from there no
//! thread can go back to the host's network namespace. What it can do is use
//! sockets that were opened there, and a broker opens them: a small process
//! that is forked off before, stays behind, and serves one socket pair.
//!
//! ```text
//!   host user and network namespace        |  a namespace of its own
//!                                          |
//!   process -- Broker::spawn() -- fork     |
//!      |                           \       |
//!      `-- unshare(2) ------------- \ ---- | --> process: Request::on_broker
//!                                    \     |        |
//!                                   broker <--------'  "a tcp socket, please"
//!                                          |        .
//!                                   socket ........-> bind, listen, accept
//! ```
//!
//! The sockets come unbound, and the client binds them: so each
//! errno is the kernel's own, and one message serves a whole walk over a range.
//! Two things are done by the broker itself: ports that take a privilege which
//! only it has, and long stretches of ports in use.

mod client;
mod policy;
mod server;
mod wire;

#[cfg(any(test, fuzzing))]
pub(super) use wire::fuzz;

use std::fmt;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use client::{Client, NoAnswer};
pub use policy::Policy;

use super::cancel::Patience;
use super::error::Error;
use super::opener::{OpenReply, OpenRequest, Opener};
use crate::netns::NetnsId;
use crate::sys::scm;

/// A process that stays in a network namespace and opens sockets there.
///
/// It is for a process that is about to enter a user namespace, from where it
/// cannot come back; [`Request::on_broker`](super::Request::on_broker) makes
/// members of its sockets. With the privilege to enter the namespace no broker
/// is needed.
///
/// # The process
///
/// It is forked from the caller, and drops at once what it does not need: every
/// descriptor but its end of a socket pair and two files with port settings,
/// every capability but `CAP_NET_BIND_SERVICE` and `CAP_NET_ADMIN` (of which it
/// has none that the caller has not), and every system call but those that it
/// is made of. It shares no memory with the caller, and takes no signal but
/// `SIGKILL`.
///
/// # Trust
///
/// Who has a socket of the host can use it on the host: a listener can be shut
/// down and connected, to the host's loopback for instance, though its owner is in
/// a namespace without a way out. A client that is not trusted so far gets a
/// [`Policy`], with [`accept_only`](Policy::accept_only) where the broker has
/// `CAP_NET_ADMIN`; a UDP socket can always send.
///
/// A broker knows no leases. A port is held by the process that has its socket, and free
/// once all copies are closed; so nothing leaks when either process dies. It
/// ends when the last copy of the caller's end of the pair is closed, and no
/// later than the last clone of this value in the process that spawned it.
///
/// # Examples
///
/// ```no_run
/// use std::net::Ipv4Addr;
/// use netns_exec::ports::{Allocator, Broker, Ports, Protocol};
/// use netns_exec::{Executor, Netns};
///
/// # fn enter_user_and_network_namespace() {}
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = Broker::spawn()?;
/// // With unshare(2), which wants a process without threads.
/// enter_user_and_network_namespace();
///
/// let child = Netns::current()?;
/// let ports = Allocator::new(&Executor::new()?);
/// let lease = ports
///     .request(Protocol::Tcp)
///     .on_broker(&broker, [Ipv4Addr::UNSPECIFIED.into()])
///     .on(&child, [Ipv4Addr::UNSPECIFIED.into()])
///     .ports(Ports::Range(33000..=33099))
///     .acquire()?;
/// println!("port {} is ours, here and on the host", lease.port());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Broker(Arc<Client>);

impl Broker {
    /// Starts a broker in the network namespace of the calling thread, with no
    /// more privileges than that has.
    ///
    /// Forks, and starts no thread. It may be called in a process that has
    /// other threads; early is still better, because the broker keeps the
    /// memory of the process as it was, for as long as that is not overwritten.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Broker`](super::ErrorKind::Broker), when the process cannot
    /// be made or cannot drop what it does not need.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::ports::Broker;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let broker = Broker::spawn()?; // first of all, while the process is small
    ///     println!("the broker is process {}", broker.pid());
    ///     Ok(())
    /// }
    /// ```
    pub fn spawn() -> Result<Broker, Error> {
        Broker::spawn_with(Policy::new())
    }

    /// As [`spawn`](Self::spawn), and the broker hands out what `policy` allows and
    /// nothing else. A port that it does not allow is `EACCES`, as one that needs
    /// a privilege is, and passed over in a range; an address or a protocol is
    /// `EPERM`.
    ///
    /// Without a policy the sockets come unbound, and a client can bind them to
    /// anything, or connect with them: then it has to be trusted as if it were in
    /// the namespace. With one, the broker binds each of them itself, which takes
    /// a message for each port; options that have to be set before a bind
    /// ([`Request::free_bind`](super::Request::free_bind),
    /// [`on_device`](super::Request::on_device),
    /// [`accept_only`](super::Request::accept_only)) are `EOPNOTSUPP`.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::ports::{Broker, Policy};
    ///
    /// // The container's publisher gets these ports, and no others.
    /// let broker = Broker::spawn_with(Policy::new().ports(30000..=32767))?;
    /// # let _ = broker;
    /// # Ok::<(), netns_exec::ports::Error>(())
    /// ```
    pub fn spawn_with(policy: Policy) -> Result<Broker, Error> {
        let start = || {
            let (ours, theirs) = scm::pair()?;
            let child = server::start(theirs, policy)?;
            Client::connect(ours, Some(child))
        };
        match start() {
            Ok(client) => Ok(Broker(Arc::new(client))),
            Err(cause) => Err(Error::broker("cannot start a broker", cause)),
        }
    }

    /// Connects to a broker by a socket that came from
    /// [`try_clone_socket`](Self::try_clone_socket) of another process, or of
    /// this one before it executed another program.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Broker`](super::ErrorKind::Broker), when there is no broker
    /// at the other end.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::os::fd::OwnedFd;
    /// use netns_exec::ports::{Broker, Error};
    ///
    /// /// In the process that was handed the socket, as a descriptor that it inherited.
    /// fn from_parent(socket: OwnedFd) -> Result<Broker, Error> {
    ///     Broker::adopt(socket)
    /// }
    /// ```
    pub fn adopt(socket: OwnedFd) -> Result<Broker, Error> {
        match Client::connect(socket, None) {
            Ok(client) => Ok(Broker(Arc::new(client))),
            Err(cause) => Err(Error::broker("cannot reach a broker", cause)),
        }
    }

    /// Makes a copy of the socket that leads to the broker, to be handed to
    /// another process and [adopted](Self::adopt) there. It is closed on exec.
    ///
    /// A broker serves one process at a time: from then on requests by way of
    /// this value fail, and so do both when they go on nevertheless.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Broker`](super::ErrorKind::Broker), when the broker is gone
    /// or the limit on open files is reached.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::os::fd::AsRawFd;
    /// use netns_exec::ports::Broker;
    ///
    /// let broker = Broker::spawn()?;
    /// let socket = broker.try_clone_socket()?;
    /// // For `--broker-fd N` of the program that is executed next.
    /// println!("{}", socket.as_raw_fd());
    /// # Ok::<(), netns_exec::ports::Error>(())
    /// ```
    pub fn try_clone_socket(&self) -> Result<OwnedFd, Error> {
        let copy = self.0.try_clone_socket();
        copy.map_err(|cause| Error::broker("cannot copy the socket of a broker", cause))
    }

    /// Has this value and all its clones, and the requests that hold one, use
    /// another broker of the same namespace from now on: where the old one was
    /// killed, or is stopped for good. The old one ends, if it is this process's.
    ///
    /// A process that has left the namespace is handed `socket` from outside: it
    /// comes from [`try_clone_socket`](Self::try_clone_socket) of a process that
    /// spawned a broker there. Leases that exist are not touched.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Broker`](super::ErrorKind::Broker), when there is no broker at
    /// the other end, or it is in another namespace. The old one stays then.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::os::fd::OwnedFd;
    /// use netns_exec::ports::{Broker, Error};
    ///
    /// fn broker_was_lost(broker: &Broker, from_outside: OwnedFd) -> Result<(), Error> {
    ///     broker.replace(from_outside)
    /// }
    /// ```
    pub fn replace(&self, socket: OwnedFd) -> Result<(), Error> {
        let replaced = self.0.replace(socket);
        replaced.map_err(|cause| Error::broker("cannot replace a broker", cause))
    }

    /// Returns the id of the broker's network namespace.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Netns, ports::Broker};
    ///
    /// let host = Netns::current()?;
    /// assert_eq!(Broker::spawn()?.netns(), host.id());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn netns(&self) -> NetnsId {
        self.0.netns
    }

    /// Returns the broker's process id, as it was in the namespace of process
    /// ids where it was spawned.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::ports::Broker;
    ///
    /// let broker = Broker::spawn()?;
    /// eprintln!("sockets of the host come from process {}", broker.pid());
    /// # Ok::<(), netns_exec::ports::Error>(())
    /// ```
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }
}

impl Opener for Broker {
    fn netns(&self) -> NetnsId {
        self.0.netns
    }

    fn label(&self) -> &str {
        &self.0.label
    }

    fn open(&self, request: &OpenRequest, patience: &Patience) -> Result<OpenReply, Error> {
        self.0.open(request, patience).map_err(|no_answer| {
            let pid = self.0.pid();
            match no_answer {
                NoAnswer::Failed(cause) => {
                    let attempt = format!("cannot get sockets from the broker, pid {pid}");
                    Error::broker(attempt, cause)
                }
                NoAnswer::GivenUp(why) => Error::given_up(why, format_args!("pid {pid}")),
            }
        })
    }

    fn is_tentative(&self, _: Ipv6Addr) -> Result<bool, Error> {
        // It can read no more than two files.
        Ok(false)
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("pid", &self.0.pid())
            .field("netns", &self.0.netns)
            .finish()
    }
}
