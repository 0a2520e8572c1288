//! A namespace of a lab.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, State};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netns_exec::{Executor, JoinHandle, Netns};

use crate::cidr::Cidr;
use crate::error::{Error, Result};
use crate::netlink::Netlink;

/// How long a carrier may take to come up. It takes no time that can be measured, unless
/// the machine has none to give.
const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace of a [`Lab`](crate::Lab), with its loopback up: a host, a router.
///
/// A clone is the same node. The namespace is gone when the lab and the last clone are,
/// unless a socket or a process is still in it.
///
/// # Examples
///
/// ```no_run
/// use netns_exec_lab::Lab;
///
/// let lab = Lab::new()?;
/// let host = lab.node("host")?;
/// host.run(|| std::net::TcpListener::bind("127.0.0.1:80"))??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    netns: Netns,
    executor: Executor,
    netlink: Mutex<Netlink>,
    /// How many devices were named after their number.
    devices: AtomicU32,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Its worker would keep the namespace until it has idled away.
        let _ = self.executor.retire(&self.netns);
    }
}

/// One end of a link: a node, and what its device is to be like ([`Node::at`]).
///
/// # Examples
///
/// ```no_run
/// # let lab = netns_exec_lab::Lab::new()?;
/// # let (client, server) = (lab.node("client")?, lab.node("server")?);
/// let server = server.at(&["10.0.0.2/24"]).device("wan").mtu(1280);
/// lab.link(client.at(&["10.0.0.1/24"]), server)?;
/// # Ok::<(), netns_exec_lab::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "an end is one argument of `Lab::link` or `Bridge::attach`"]
pub struct End<'a> {
    pub(crate) node: &'a Node,
    pub(crate) addrs: &'a [&'a str],
    pub(crate) device: Option<String>,
    pub(crate) mtu: Option<u32>,
}

impl End<'_> {
    /// Names the device, which is `eth0`, `eth1` and so on otherwise.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec_lab::{Lab, Node};
    /// # fn f(lab: &Lab, router: &Node, isp: &Node) -> netns_exec_lab::Result<()> {
    /// // The rules of the program under test name the device.
    /// let link = lab.link(router.at(&["192.0.2.2/24"]).device("wan"), isp.at(&["192.0.2.1/24"]))?;
    /// assert_eq!(link.devices()[0], "wan");
    /// # Ok(())
    /// # }
    /// ```
    pub fn device(mut self, name: impl Into<String>) -> Self {
        self.device = Some(name.into());
        self
    }

    /// Sets the device's MTU, which is 1500 otherwise.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec_lab::{Lab, Node};
    /// # fn f(lab: &Lab, a: &Node, b: &Node) -> netns_exec_lab::Result<()> {
    /// // A tunnel on the way: what is larger has to be fragmented.
    /// lab.link(a.at(&["10.0.0.1/24"]).mtu(1280), b.at(&["10.0.0.2/24"]).mtu(1280))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn mtu(mut self, bytes: u32) -> Self {
        self.mtu = Some(bytes);
        self
    }
}

impl Node {
    pub(crate) fn new(name: &str, executor: &Executor) -> Result<Node> {
        let netns = Netns::new()?;
        let attempt = || format!("cannot set up node `{name}`");
        let prepared = executor.run(&netns, || -> io::Result<Netlink> {
            // Addresses are there at once, those that the kernel makes up too.
            for kind in ["all", "default"] {
                let file = format!("/proc/sys/net/ipv6/conf/{kind}/accept_dad");
                match fs::write(file, "0") {
                    // A kernel without IPv6.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    written => written?,
                }
            }
            let mut netlink = Netlink::open()?;
            let mut loopback = LinkMessage::default();
            loopback.header.index = 1;
            set_flags(&mut loopback, true);
            netlink.change(RouteNetlinkMessage::SetLink(loopback), 0)?;
            Ok(netlink)
        })?;
        let netlink = prepared.map_err(|cause| Error::kernel(attempt(), cause))?;
        Ok(Node(Arc::new(Inner {
            name: name.to_owned(),
            netns,
            executor: executor.clone(),
            netlink: Mutex::new(netlink),
            devices: AtomicU32::new(0),
        })))
    }

    /// Returns the name that the lab gave it.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// assert_eq!(lab.node("client")?.name(), "client");
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns its namespace, for all that takes one: an executor of one's own,
    /// [`CommandExt`](netns_exec::CommandExt), `#[in_netns(ns = ...)]`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::process::Command;
    /// use netns_exec::CommandExt;
    ///
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// # let client = lab.node("client")?;
    /// Command::new("ping").args(["-c", "1", "10.0.0.2"]).status_in(client.netns())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.0.netns
    }

    /// Runs `f` in the node and waits for its result, as
    /// [`Executor::run`](netns_exec::Executor::run) does.
    ///
    /// # Errors
    ///
    /// As `Executor::run`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::net::UdpSocket;
    ///
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// let socket = lab.node("dns")?.run(|| UdpSocket::bind("0.0.0.0:53"))??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> netns_exec::Result<T> {
        self.0.executor.run(&self.0.netns, f)
    }

    /// Runs `f` in the node beside the caller, as
    /// [`Executor::spawn`](netns_exec::Executor::spawn) does: a server, for instance.
    ///
    /// # Errors
    ///
    /// As `Executor::spawn`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::net::TcpListener;
    ///
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// # let server = lab.node("server")?;
    /// let listener = server.run(|| TcpListener::bind("0.0.0.0:80"))??;
    /// let serving = server.spawn(move || listener.accept().map(drop))?;
    /// // ... a client connects ...
    /// serving.join()??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> netns_exec::Result<JoinHandle<T>> {
        self.0.executor.spawn(&self.0.netns, f)
    }

    /// Makes an end of a link of it, whose device has these addresses:
    /// `10.0.0.1/24`, `fd00::1/64`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// # let [client, server] = lab.nodes(["client", "server"])?;
    /// // Both families on one device; the other end has no address of its own.
    /// lab.link(client.at(&["10.0.0.1/24", "fd00::1/64"]), server.at(&[]))?;
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    pub fn at<'a>(&'a self, addrs: &'a [&'a str]) -> End<'a> {
        End {
            node: self,
            addrs,
            device: None,
            mtu: None,
        }
    }

    /// Adds a route to a network, or `default`, by way of a neighbour.
    ///
    /// # Errors
    ///
    /// [`Invalid`](crate::ErrorKind::Invalid) for what is no network or no address, or
    /// where they are of two families; otherwise what the kernel says: `ENETUNREACH` or
    /// `EHOSTUNREACH` where no device of the node leads to the neighbour, `EEXIST`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// # let client = lab.node("client")?;
    /// client.route("default", "10.0.0.1")?;
    /// client.route("fd01::/64", "fd00::1")?;
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    pub fn route(&self, to: &str, via: &str) -> Result<()> {
        let attempt = || format!("cannot route {to} via {via} on node `{}`", self.name());
        let via: IpAddr = (via.parse())
            .map_err(|_| Error::invalid(attempt(), "the neighbour is an address: 10.0.0.1"))?;
        let to_network = Cidr::parse_destination(to, via)?;
        if to_network.addr.is_ipv4() != via.is_ipv4() {
            return Err(Error::invalid(
                attempt(),
                "a network and a neighbour of two families",
            ));
        }
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: to_network.family(),
            destination_prefix_length: to_network.length,
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Static,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        if to_network.length > 0 {
            let destination = RouteAttribute::Destination(to_network.addr.into());
            message.attributes.push(destination);
        }
        message.attributes.push(RouteAttribute::Gateway(via.into()));
        let request = RouteNetlinkMessage::NewRoute(message);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|cause| Error::kernel(attempt(), cause))
    }

    /// Has the node forward packets, IPv4 and IPv6: it becomes a router.
    ///
    /// # Errors
    ///
    /// As [`sysctl`](Node::sysctl).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// let [a, router, b] = lab.nodes(["a", "router", "b"])?;
    /// lab.link(a.at(&["10.0.1.2/24"]), router.at(&["10.0.1.1/24"]))?;
    /// lab.link(b.at(&["10.0.2.2/24"]), router.at(&["10.0.2.1/24"]))?;
    /// router.forward()?;
    /// a.route("default", "10.0.1.1")?;
    /// b.route("default", "10.0.2.1")?;
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net.ipv4.ip_forward", "1")?;
        match self.sysctl("net.ipv6.conf.all.forwarding", "1") {
            // A kernel without IPv6.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            set => set,
        }
    }

    /// Sets a sysctl of the node, `net.ipv4.ip_forward` for instance.
    ///
    /// # Errors
    ///
    /// [`Invalid`](crate::ErrorKind::Invalid) where it is not one of `net`: the others are
    /// the machine's. Otherwise what writing its file failed with: `ENOENT` where there is
    /// none, `EINVAL` for a value that it does not take.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// lab.node("host")?.sysctl("net.ipv4.ip_local_port_range", "40000 40999")?;
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let attempt = || format!("cannot set sysctl {name} of node `{}`", self.name());
        let file = name.replace('.', "/");
        let is_plain = file.split('/').all(|part| !part.is_empty());
        if !file.starts_with("net/") || !is_plain {
            return Err(Error::invalid(attempt(), "its name begins with `net.`"));
        }
        let path = Path::new("/proc/sys").join(file);
        let written = self.run(|| fs::write(&path, value))?;
        written.map_err(|cause| Error::kernel(attempt(), cause))
    }

    pub(crate) fn change(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.with_netlink(|netlink| netlink.change(request, flags))
    }

    fn with_netlink<T>(&self, f: impl FnOnce(&mut Netlink) -> T) -> T {
        // A request that panicked has left no more than an answer, which is passed over.
        f(&mut (self.0.netlink.lock()).unwrap_or_else(PoisonError::into_inner))
    }

    /// The next name of the kind: `eth0`.
    pub(crate) fn next_device(&self, kind: &str) -> String {
        format!("{kind}{}", self.0.devices.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn index_of(&self, device: &str) -> io::Result<u32> {
        self.with_netlink(|netlink| netlink.link(device).map(|link| link.header.index))
    }

    pub(crate) fn set_up(&self, index: u32, up: bool) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        set_flags(&mut message, up);
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    pub(crate) fn add_addr(&self, index: u32, addr: Cidr) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = addr.family();
        message.header.prefix_len = addr.length;
        message.header.index = index;
        message.attributes = vec![
            AddressAttribute::Local(addr.addr),
            AddressAttribute::Address(addr.addr),
        ];
        if addr.addr.is_ipv6() {
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            message.attributes.push(flags);
        }
        let request = RouteNetlinkMessage::NewAddress(message);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Waits until the kernel has noticed that a device has a carrier: until then a bridge
    /// drops what comes in.
    pub(crate) fn wait_for_carrier(&self, device: &str) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let link = self.with_netlink(|netlink| netlink.link(device))?;
            if (link.attributes).contains(&LinkAttribute::OperState(State::Up)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // Before Linux 6.8 the kernel looks by itself, once a second.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Puts a qdisc in the place of the device's own.
    pub(crate) fn set_qdisc(&self, request: RouteNetlinkMessage) -> io::Result<()> {
        self.change(request, NLM_F_CREATE | NLM_F_REPLACE)
    }
}

pub(crate) fn set_flags(message: &mut LinkMessage, up: bool) {
    message.header.change_mask = LinkFlags::Up;
    if up {
        message.header.flags = LinkFlags::Up;
    }
}
