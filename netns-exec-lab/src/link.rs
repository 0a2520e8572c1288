//! What joins two nodes, or many.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use crate::cidr::Cidr;
use crate::error::{Error, ErrorKind, Result};
use crate::node::{End, Node, set_flags};

/// Two devices that are one cable: what goes into one comes out of the other.
///
/// It loses nothing, and takes no time but the machine's. It stays when this value is
/// dropped, and goes with the first of its nodes.
///
/// # Examples
///
/// ```no_run
/// # let lab = netns_exec_lab::Lab::new()?;
/// # let (client, server) = (lab.node("client")?, lab.node("server")?);
/// let link = lab.link(client.at(&["10.0.0.1/24"]), server.at(&["10.0.0.2/24"]))?;
/// link.down()?; // the cable is pulled
/// link.up()?;
/// # Ok::<(), netns_exec_lab::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Link([Port; 2]);

#[derive(Clone, Debug)]
struct Port {
    node: Node,
    device: String,
    index: u32,
}

impl Port {
    fn failed(&self, doing: &str) -> impl Fn(io::Error) -> Error {
        let attempt = format!(
            "cannot {doing} `{}` of node `{}`",
            self.device,
            self.node.name()
        );
        move |cause| Error::kernel(attempt.clone(), cause)
    }
}

/// A device about to be made: a name, and what stands beside it in the message.
struct Plan<'a> {
    node: &'a Node,
    device: String,
    mtu: Option<u32>,
    addrs: Vec<Cidr>,
}

impl<'a> Plan<'a> {
    fn of(end: End<'a>) -> Result<Plan<'a>> {
        let addrs = end.addrs.iter().map(|addr| Cidr::parse(addr));
        let device = match end.device {
            Some(name) => named(name)?,
            None => end.node.next_device("eth"),
        };
        Ok(Plan {
            node: end.node,
            device,
            mtu: end.mtu,
            addrs: addrs.collect::<Result<_>>()?,
        })
    }

    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        (message.attributes).push(LinkAttribute::IfName(self.device.clone()));
        message.attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        message
    }

    /// Brings the device up that was made, and gives it its addresses.
    fn finish(&self) -> io::Result<Port> {
        let index = self.node.index_of(&self.device)?;
        self.node.set_up(index, true)?;
        for addr in &self.addrs {
            self.node.add_addr(index, *addr)?;
        }
        Ok(Port {
            node: self.node.clone(),
            device: self.device.clone(),
            index,
        })
    }
}

fn named(name: String) -> Result<String> {
    const LONGEST: usize = 15;
    let is_plain = |c: char| c.is_ascii_graphic() && c != '/' && c != ':' && c != '%';
    if name.is_empty() || name.len() > LONGEST || !name.chars().all(is_plain) || name == "lo" {
        return Err(Error::invalid(
            format!("`{name}` cannot be the name of a device"),
            "1 to 15 letters, digits and signs, no space, slash, colon or percent sign, and not `lo`",
        ));
    }
    Ok(name)
}

/// Makes a veth pair across two namespaces by one request, and brings it up by others: a
/// veth that has no peer yet cannot be up (`ENOTCONN`).
fn join(first: &Plan<'_>, second: &Plan<'_>, bridge: Option<u32>) -> io::Result<[Port; 2]> {
    let mut peer = second.message();
    let netns = second.node.netns().as_fd().as_raw_fd();
    peer.attributes.push(LinkAttribute::NetNsFd(netns));
    let mut message = first.message();
    message
        .attributes
        .extend(bridge.map(LinkAttribute::Controller));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let request = RouteNetlinkMessage::NewLink(message);
    first.node.change(request, NLM_F_CREATE | NLM_F_EXCL)?;
    let ports = [first.finish()?, second.finish()?];
    for port in &ports {
        port.node.wait_for_carrier(&port.device)?;
    }
    Ok(ports)
}

impl Link {
    pub(crate) fn new(first: End<'_>, second: End<'_>) -> Result<Link> {
        let attempt = format!(
            "cannot link nodes `{}` and `{}`",
            first.node.name(),
            second.node.name()
        );
        let (first, second) = (Plan::of(first)?, Plan::of(second)?);
        match join(&first, &second, None) {
            Ok(ports) => Ok(Link(ports)),
            Err(cause) => Err(Error::kernel(attempt, cause)),
        }
    }

    /// Returns the names of the two devices, in the order of the ends.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// # let (a, b) = (lab.node("a")?, lab.node("b")?);
    /// let link = lab.link(a.at(&[]).device("wan"), b.at(&[]))?;
    /// assert_eq!(link.devices(), ["wan", "eth0"]);
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    #[must_use]
    pub fn devices(&self) -> [&str; 2] {
        [&self.0[0].device, &self.0[1].device]
    }

    /// Takes the first end down, and with it the carrier of both: the cable is pulled. IPv6
    /// addresses of the first end go, as the kernel takes them; those of IPv4 stay.
    ///
    /// # Errors
    ///
    /// `ENODEV` where the device has been deleted.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io::Read;
    /// # use std::net::TcpStream;
    /// # use netns_exec_lab::Link;
    /// # fn f(link: &Link, mut stream: TcpStream) -> netns_exec_lab::Result<()> {
    /// link.down()?;
    /// // What is sent now is lost, and the program under test should notice.
    /// assert!(stream.read(&mut [0]).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn down(&self) -> Result<()> {
        let [first, _] = &self.0;
        (first.node.set_up(first.index, false)).map_err(first.failed("take down"))
    }

    /// Brings the first end up again, and waits for the carrier of both.
    ///
    /// # Errors
    ///
    /// As [`down`](Link::down).
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec_lab::Link;
    /// # fn f(link: &Link) -> netns_exec_lab::Result<()> {
    /// // A link that flaps.
    /// for _ in 0..10 {
    ///     link.down()?;
    ///     link.up()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn up(&self) -> Result<()> {
        let [first, _] = &self.0;
        (first.node.set_up(first.index, true)).map_err(first.failed("bring up"))?;
        for port in &self.0 {
            (port.node.wait_for_carrier(&port.device)).map_err(port.failed("see a carrier on"))?;
        }
        Ok(())
    }

    /// Has every packet take as long as this, each way, by the qdisc netem. It loses none:
    /// as many wait as there is memory for.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where the kernel was built without
    /// netem (`CONFIG_NET_SCH_NETEM`), as those of small virtual machines often are;
    /// nothing has changed then. [`rate`](Link::rate) needs another qdisc, which may be
    /// there.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// # let (a, b) = (lab.node("a")?, lab.node("b")?);
    /// let link = lab.link(a.at(&["10.0.0.1/24"]), b.at(&["10.0.0.2/24"]))?;
    /// match link.delay(Duration::from_millis(20)) {
    ///     Err(error) if error.is_unsupported() => eprintln!("without delay: {error}"),
    ///     delayed => delayed?,
    /// }
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    pub fn delay(&self, delay: Duration) -> Result<()> {
        /// `TCA_NETEM_LATENCY64`: nanoseconds.
        const LATENCY: u16 = 10;
        let nanoseconds = i64::try_from(delay.as_nanos())
            .map_err(|_| Error::invalid("cannot delay a link", "no longer than 292 years"))?;
        // struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter.
        let mut options = [0_u32, u32::MAX, 0, 0, 0, 0].map(u32::to_ne_bytes).concat();
        options.extend(attribute(LATENCY, &nanoseconds.to_ne_bytes()));
        self.set_qdisc("netem", "delay", &options)
    }

    /// Has no more than so many bits go through in a second, each way, by the qdisc tbf:
    /// what comes faster waits, up to 64 MiB of it, and so takes its time.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where the kernel was built without
    /// tbf (`CONFIG_NET_SCH_TBF`); [`Invalid`](crate::ErrorKind::Invalid) below 8 bits or
    /// beyond 34 Gbit/s.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// # let (a, b) = (lab.node("a")?, lab.node("b")?);
    /// let link = lab.link(a.at(&["10.0.0.1/24"]), b.at(&["10.0.0.2/24"]))?;
    /// link.rate(10_000_000)?;
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    pub fn rate(&self, bits_per_second: u64) -> Result<()> {
        const PARAMETERS: u16 = 1; // TCA_TBF_PARMS
        const BURST: u16 = 6; // TCA_TBF_BURST
        const QUEUE: u32 = 64 << 20;
        /// What goes through at once; at least a packet, whatever the MTU.
        const AT_ONCE: u32 = 1 << 16;
        let rate = u32::try_from(bits_per_second / 8)
            .ok()
            .filter(|rate| *rate > 0);
        let Some(rate) = rate else {
            let attempt = format!("cannot limit a link to {bits_per_second} bits a second");
            return Err(Error::invalid(attempt, "from 8 to 34359738360"));
        };
        // struct tc_tbf_qopt: struct tc_ratespec of the rate and of its peak, limit,
        // buffer, mtu.
        let mut parameters = vec![0, 1, 0, 0, 0, 0, 0, 0]; // of Ethernet
        parameters.extend(rate.to_ne_bytes());
        parameters.extend([0; 12]);
        parameters.extend(QUEUE.to_ne_bytes());
        parameters.extend([0; 8]);
        let mut options = attribute(PARAMETERS, &parameters);
        options.extend(attribute(BURST, &AT_ONCE.to_ne_bytes()));
        self.set_qdisc("tbf", "limit the rate of", &options)
    }

    fn set_qdisc(&self, kind: &str, doing: &str, options: &[u8]) -> Result<()> {
        for port in &self.0 {
            let request = qdisc(port.index, kind, options);
            port.node.set_qdisc(request).map_err(|cause| {
                let error = port.failed(doing)(cause);
                match error.raw_os_error() {
                    // No such qdisc, and no module that has it.
                    Some(libc::ENOENT | libc::EOPNOTSUPP) => {
                        Error::new(ErrorKind::Unsupported, format!("{error}"), None).hint(format!(
                            "this kernel has no qdisc {kind}: CONFIG_NET_SCH_{}=y or =m",
                            kind.to_uppercase()
                        ))
                    }
                    _ => error,
                }
            })?;
        }
        Ok(())
    }
}

/// A request for a qdisc at the root of a device, with options as the kernel reads them.
fn qdisc(index: u32, kind: &str, options: &[u8]) -> RouteNetlinkMessage {
    const TCA_OPTIONS: u16 = 2;
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.attributes = vec![
        TcAttribute::Kind(kind.to_owned()),
        TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options.to_vec())),
    ];
    RouteNetlinkMessage::NewQueueDiscipline(message)
}

/// `struct nlattr` and its value, which is a multiple of four bytes long.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("no value here is long");
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
}

/// A switch: every end that is attached to it hears every other.
///
/// It is in a namespace of its own. Spanning tree is off, so that a port forwards from
/// the beginning.
///
/// # Examples
///
/// ```no_run
/// # let lab = netns_exec_lab::Lab::new()?;
/// let lan = lab.bridge("lan")?;
/// for n in 1..=20 {
///     let host = lab.node(&format!("host-{n}"))?;
///     lan.attach(host.at(&[&format!("10.0.0.{n}/24")]))?;
/// }
/// # Ok::<(), netns_exec_lab::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Bridge {
    node: Node,
    index: u32,
}

impl Bridge {
    const DEVICE: &str = "br0";

    pub(crate) fn new(node: Node) -> Result<Bridge> {
        let make = || {
            let mut message = LinkMessage::default();
            set_flags(&mut message, true);
            message.attributes = vec![
                LinkAttribute::IfName(Bridge::DEVICE.to_owned()),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
            ];
            let request = RouteNetlinkMessage::NewLink(message);
            node.change(request, NLM_F_CREATE | NLM_F_EXCL)?;
            node.index_of(Bridge::DEVICE)
        };
        match make() {
            Ok(index) => Ok(Bridge { node, index }),
            Err(cause) => {
                let attempt = format!("cannot make bridge `{}`", node.name());
                Err(Error::kernel(attempt, cause))
            }
        }
    }

    /// Returns the node that the bridge is in, to give it an address or to listen there.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// assert_eq!(lab.bridge("lan")?.node().name(), "lan");
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Joins a node to the bridge, and waits until the port forwards. The first of the
    /// link's two devices is the bridge's.
    ///
    /// # Errors
    ///
    /// As [`Lab::link`](crate::Lab::link).
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec_lab::{Bridge, Node};
    /// # fn f(lan: &Bridge, host: &Node) -> netns_exec_lab::Result<()> {
    /// let port = lan.attach(host.at(&["10.0.0.1/24"]))?;
    /// println!("{} of the bridge is {} of the host", port.devices()[0], port.devices()[1]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn attach(&self, end: End<'_>) -> Result<Link> {
        let attempt = format!(
            "cannot attach node `{}` to bridge `{}`",
            end.node.name(),
            self.node.name()
        );
        let second = Plan::of(end)?;
        let first = Plan {
            node: &self.node,
            device: self.node.next_device("port"),
            mtu: second.mtu,
            addrs: Vec::new(),
        };
        match join(&first, &second, Some(self.index)) {
            Ok(ports) => Ok(Link(ports)),
            Err(cause) => Err(Error::kernel(attempt, cause)),
        }
    }
}
