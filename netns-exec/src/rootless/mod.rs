//! Network namespaces for an ordinary user.
//!
//! To make and enter network namespaces takes `CAP_SYS_ADMIN` in the user namespace
//! that owns them. The kernel lets an ordinary user make a user namespace and be root
//! in it, but only for a process without threads: so it has to be the first thing that
//! a program does.
//!
//! * [`enter`], first in `main`: the process is root of a user namespace from then on,
//!   and this crate works as it does for root.
//! * [`test_harness!`](crate::rootless::test_harness), once in a crate's tests: `cargo
//!   test` and `cargo nextest run` work as an ordinary user, without a wrapper.
//!
//! Both do nothing where the process has the privilege already.
//!
//! # What it is, and what it is not
//!
//! ```text
//!   host's user and network namespace   | user namespace of the process
//!                                       |
//!   process --- enter() --------------- | --> root; makes netns, names, veth pairs
//!      its own network namespace stays: |     a worker enters one of those for good;
//!      sockets of the host's, as before |     a job that is shipped home is at the host
//! ```
//!
//! Root of a user namespace is root over what is made in it. The network namespace that
//! the process was in stays the host's: it can be used, with the rights that the user
//! has there, and it cannot be set up. No thread can enter it from another one; workers
//! never have to. A process that wants no part in it, not even to open a socket, asks
//! for [`Setup::own_net`], and leaves a [`Broker`] behind for the
//! [ports](crate::ports) that it needs on the host.
//!
//! `/run/netns` is the process's own and empty: names that are made there are seen by
//! this process and its children, and go with them.

mod why;

use std::env;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::panic::catch_unwind;

use crate::error::{Error, Result};
use crate::ports::{Broker, Policy};
use crate::sys::caps;
use crate::sys::userns::{self, Failed, Shape};

#[doc(inline)]
pub use crate::__rootless_test_harness as test_harness;

/// Makes this process root of a user namespace of its own, where it is not privileged
/// already.
///
/// It is called first in `main`. Afterwards [`Netns::new`](crate::Netns::new),
/// [`Netns::create`](crate::Netns::create) and all that is built on them work; the
/// process is still in the network namespace of the host, and has a `/run/netns` of
/// its own. [`Setup`] has what else there is to choose.
///
/// In a process that has threads, as under `#[tokio::main]`, unshare(2) cannot do it:
/// then the program is executed once more, as the same process with the same arguments
/// and environment, and is root before its `main` begins. What `main` has done before
/// it called this it does again, its threads are gone, and so is each descriptor that
/// is closed on exec.
///
/// The user appears as uid 0 and gid 0. No other id exists there: files of others
/// belong to `nobody`, and a program that changes its user gets `EINVAL`.
///
/// # Errors
///
/// When the system does not let this user have user namespaces, or have them to any
/// purpose. The text says what forbids it, as far as the kernel tells (a sysctl,
/// AppArmor, a seccomp filter), and what allows it. Nothing has changed then: all steps
/// are tried in a short-lived copy of the process first.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Executor, Netns, rootless};
///
/// fn main() -> netns_exec::Result<()> {
///     rootless::enter()?;
///     let fresh = Netns::new()?; // as an ordinary user
///     fresh.set_loopback_up()?;
///     Executor::new()?.run(&fresh, || println!("port 80 is ours here"))
/// }
/// ```
pub fn enter() -> Result<Entered> {
    Setup::new().enter()
}

/// How to be rootless; [`enter`] is `Setup::new().enter()`.
///
/// # Examples
///
/// A daemon that keeps away from the host's network, all but the ports that it is
/// lent:
///
/// ```no_run
/// use std::net::Ipv4Addr;
///
/// use netns_exec::ports::{Allocator, Gate, Policy, Ports, Protocol};
/// use netns_exec::{Executor, rootless};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let entered = rootless::Setup::new().own_net(Policy::new()).enter()?;
///     let broker = entered.broker().expect("asked for");
///     let lease = Allocator::new(&Executor::new()?)
///         .request(Protocol::Tcp)
///         .on_broker(broker, [Ipv4Addr::UNSPECIFIED.into()])
///         .gate(Gate::Queue) // to drop packets takes more than the user may
///         .ports(Ports::Range(33000..=33099))
///         .acquire()?;
///     println!("port {} of the host is ours", lease.port());
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Setup {
    broker: Option<Policy>,
}

impl Setup {
    /// Has the process stay in its network namespace.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let entered = netns_exec::rootless::Setup::new().enter()?;
    /// println!("{entered:?}");
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    #[must_use]
    pub fn new() -> Setup {
        Setup::default()
    }

    /// Has the process leave its network namespace for a new one, with nothing but a
    /// loopback in it that is up, and leave a broker behind that opens the sockets which `policy` allows.
    ///
    /// A process that is privileged already stays where it is, and has a broker all the
    /// same.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::ports::Policy;
    /// use netns_exec::rootless::Setup;
    ///
    /// let entered = Setup::new().own_net(Policy::new()).enter()?;
    /// assert!(entered.broker().is_some());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    #[must_use]
    pub fn own_net(mut self, policy: Policy) -> Setup {
        self.broker = Some(policy);
        self
    }

    /// Does it. See [`enter`] for when to call this, and what it does to a process with
    /// threads.
    ///
    /// # Errors
    ///
    /// As [`enter`]; and when the broker cannot be started.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::rootless::Setup;
    ///
    /// fn main() -> netns_exec::Result<()> {
    ///     Setup::new().enter()?;
    ///     // ...
    ///     Ok(())
    /// }
    /// ```
    pub fn enter(self) -> Result<Entered> {
        if let Some(before) = userns::entered_before_main() {
            before.outcome.map_err(why::failed)?;
            return Ok(Entered {
                is_new: true,
                broker: before.kept.map(adopt).transpose()?,
            });
        }
        let is_privileged = is_privileged()?;
        let shape = Shape {
            own_net: self.broker.is_some(),
            own_run: false,
        };
        let broker = match self.broker {
            Some(policy) => Some(Broker::spawn_with(policy).map_err(|cause| {
                Error::kernel("cannot leave a broker behind", io::Error::from(cause))
            })?),
            None => None,
        };
        if !is_privileged {
            match userns::has_threads() {
                true => return Err(why::failed(exec_again(shape, broker))),
                false => userns::enter(shape).map_err(why::failed)?,
            }
        }
        Ok(Entered {
            is_new: !is_privileged,
            broker,
        })
    }
}

/// With the line to the broker kept open, which ends with its last copy.
fn exec_again(shape: Shape, broker: Option<Broker>) -> Failed {
    let socket = broker.as_ref().map(Broker::try_clone_socket).transpose();
    match socket {
        Ok(socket) => userns::exec_again(shape, socket),
        Err(cause) => Failed {
            step: userns::EntryStep::Exec,
            cause: cause.into(),
        },
    }
}

fn adopt(socket: OwnedFd) -> Result<Broker> {
    Broker::adopt(socket)
        .map_err(|cause| Error::kernel("cannot reach the broker", io::Error::from(cause)))
}

fn is_privileged() -> Result<bool> {
    caps::has_sys_admin()
        .map_err(|cause| Error::kernel("cannot read the capabilities of this process", cause))
}

/// What [`enter`] found, and made.
///
/// # Examples
///
/// ```no_run
/// let entered = netns_exec::rootless::enter()?;
/// if entered.is_new() {
///     println!("root in a user namespace, for this process only");
/// }
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Debug)]
pub struct Entered {
    is_new: bool,
    broker: Option<Broker>,
}

impl Entered {
    /// Tells whether a user namespace was entered: not where the process was
    /// privileged already.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let entered = netns_exec::rootless::enter()?;
    /// // Files that are made from now on belong to the caller, whom `ls` here calls root.
    /// println!("{}", if entered.is_new() { "root of a user namespace" } else { "privileged" });
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Returns the broker that was left in the host's network namespace, if one was
    /// asked for ([`Setup::own_net`]).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Executor;
    /// use netns_exec::ports::{Allocator, Policy, Ports, Protocol};
    /// use netns_exec::rootless::Setup;
    ///
    /// let entered = Setup::new().own_net(Policy::new()).enter()?;
    /// let host = entered.broker().expect("it was asked for");
    /// let ports = Allocator::new(&Executor::new()?);
    /// let request = ports.request(Protocol::Tcp).on_broker(host, [[0, 0, 0, 0].into()]);
    /// let lease = request.ports(Ports::Exact(8080)).acquire()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn broker(&self) -> Option<&Broker> {
        self.broker.as_ref()
    }
}

/// Has all tests of a crate run as an ordinary user: it stands once among the tests,
/// in the crate's root for unit tests and in each file of `tests/`, at the level of
/// items.
///
/// Before `main`, and so before the test harness has a second thread, the process
/// becomes root of a user namespace of its own, as [`enter`] makes it; where it is
/// privileged already, nothing is done. No command is wrapped around it: `cargo test`,
/// `cargo nextest run` and the binary by itself all work, in parallel.
///
/// The tests stay in the network namespace that they were started in, so that they can
/// use what is served on the host; `test_harness!(own_net)` gives them one of their own,
/// with nothing but a loopback in it: to set it up, and to have threads come back to it.
/// `/run` is their own, with everything in it that is in the host's but the names of
/// network namespaces.
///
/// Where the system forbids it, that is said on standard error; the tests run all the
/// same, and those that need a namespace fail with `EPERM`. With
/// `NETNS_EXEC_TEST_HARNESS=off` in the environment it does nothing: for tests that show
/// what happens without the privilege, and start themselves once more.
///
/// # Examples
///
/// ```no_run
/// use std::net::TcpListener;
///
/// use netns_exec::in_netns;
///
/// netns_exec::rootless::test_harness!();
///
/// #[test]
/// #[in_netns(fresh)]
/// fn serves_on_port_80() {
///     TcpListener::bind("127.0.0.1:80").unwrap();
/// }
/// # fn main() {}
/// ```
#[doc(hidden)]
#[macro_export]
macro_rules! __rootless_test_harness {
    () => {
        $crate::__rootless_test_harness!(@ __before_main);
    };
    (own_net) => {
        $crate::__rootless_test_harness!(@ __before_main_own_net);
    };
    (@ $function:ident) => {
        const _: () = {
            // The linker puts functions of this signature there, which the C library
            // calls before `main`.
            #[used]
            #[unsafe(link_section = ".init_array")]
            static BEFORE_MAIN: extern "C" fn() = $crate::rootless::$function;
        };
    };
}

/// What [`test_harness!`](crate::rootless::test_harness) has called before `main`.
#[doc(hidden)]
pub extern "C" fn __before_main() {
    before_main(false);
}

/// As [`__before_main`], for `own_net`.
#[doc(hidden)]
pub extern "C" fn __before_main_own_net() {
    before_main(true);
}

fn before_main(own_net: bool) {
    if env::var_os("NETNS_EXEC_TEST_HARNESS").is_some_and(|value| value == "off") {
        return;
    }
    let shape = Shape {
        own_net,
        own_run: true,
    };
    // A panic must not unwind into the C library, and was shown.
    let entered = catch_unwind(|| match is_privileged() {
        Ok(true) => Ok(()),
        Ok(false) => userns::enter(shape).map_err(why::failed),
        Err(error) => Err(error),
    });
    if let Ok(Err(error)) = entered {
        let text = format!("netns-exec: these tests stay without privilege: {error}\n");
        let _ = io::stderr().write_all(text.as_bytes());
    }
}
