//! The common pair: a test's own namespace, and one other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use netns_exec::{Executor, Netns};

use crate::lab::Lab;
use crate::link::Link;
use crate::node::Node;

/// The other end of a link that a test was given by `#[in_netns(fresh, link = peer)]`.
///
/// The test's body runs in a fresh namespace, and `peer` is a node that a link joins it
/// to; the name is the test's choice. Both ends have an address of each family.
///
/// # Examples
///
/// ```no_run
/// use std::net::{TcpListener, TcpStream};
///
/// use netns_exec::in_netns;
///
/// netns_exec::rootless::test_harness!();
///
/// #[test]
/// #[in_netns(fresh, link = peer)]
/// fn server_is_reached_on_port_80() {
///     let listener = peer.run(|| TcpListener::bind((peer.addr(), 80))).unwrap().unwrap();
///     TcpStream::connect((peer.addr(), 80)).unwrap();
///     let (_, client) = listener.accept().unwrap();
///     assert_eq!(client.ip(), peer.own_addr());
/// }
/// # fn main() {}
/// ```
#[derive(Clone, Debug)]
pub struct Peer {
    node: Node,
    link: Link,
}

/// Of the networks for examples, RFC 5737 and RFC 3849.
const OWN: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(192, 0, 2, 1), addr_v6(1));
const PEERS: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(192, 0, 2, 2), addr_v6(2));

const fn addr_v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)
}

impl Peer {
    /// Returns the peer's IPv4 address.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::in_netns;
    ///
    /// #[in_netns(fresh, link = peer)]
    /// fn test() -> std::io::Result<()> {
    ///     let server = peer.run(|| std::net::TcpListener::bind((peer.addr(), 80)))??;
    ///     assert_eq!(server.local_addr()?.ip(), peer.addr());
    ///     Ok(())
    /// }
    /// ```
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        PEERS.0.into()
    }

    /// Returns the peer's IPv6 address.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::in_netns;
    /// #[in_netns(fresh, link = peer)]
    /// fn test() {
    ///     std::net::TcpStream::connect((peer.addr_v6(), 80)).unwrap_err();
    /// }
    /// ```
    #[must_use]
    pub fn addr_v6(&self) -> IpAddr {
        PEERS.1.into()
    }

    /// Returns the IPv4 address of the test's own end.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::in_netns;
    ///
    /// #[in_netns(fresh, link = peer)]
    /// fn test() -> std::io::Result<()> {
    ///     // The body's own server, and the peer as its client.
    ///     let server = std::net::TcpListener::bind((peer.own_addr(), 80))?;
    ///     peer.run(|| std::net::TcpStream::connect((peer.own_addr(), 80)))??;
    ///     server.accept().map(drop)
    /// }
    /// ```
    #[must_use]
    pub fn own_addr(&self) -> IpAddr {
        OWN.0.into()
    }

    /// Returns the IPv6 address of the test's own end.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::in_netns;
    /// #[in_netns(fresh, link = peer)]
    /// fn test() {
    ///     std::net::UdpSocket::bind((peer.own_addr_v6(), 53)).unwrap();
    /// }
    /// ```
    #[must_use]
    pub fn own_addr_v6(&self) -> IpAddr {
        OWN.1.into()
    }

    /// Returns the link, whose first end is the test's own.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::in_netns;
    /// #[in_netns(fresh, link = peer)]
    /// fn test() {
    ///     peer.link().down().unwrap();
    /// }
    /// ```
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }
}

/// A peer is used as the [`Node`] that it is: to run something there.
impl Deref for Peer {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

/// What the macro calls: runs `body` in a fresh namespace with a link to a peer.
#[doc(hidden)]
pub fn run_linked<T: Send>(
    executor: &Executor,
    body: impl FnOnce(&Peer) -> T + Send,
) -> netns_exec::Result<T> {
    // The peer's jobs are served by many: a server there must not keep its client waiting.
    let lab = Lab::new()?;
    let [own, node] = lab.nodes(["test", "peer"])?;
    let ends = [(&own, OWN), (&node, PEERS)]
        .map(|(node, (v4, v6))| (node, [format!("{v4}/24"), format!("{v6}/64")]));
    let [(_, first), (_, second)] = &ends;
    let [first, second] = [first, second].map(|[v4, v6]| [v4.as_str(), v6.as_str()]);
    let link = lab.link(own.at(&first), node.at(&second))?;
    let peer = Peer { node, link };
    let _retired = Retired {
        netns: own.netns(),
        executor,
    };
    executor.run(own.netns(), || body(&peer))
}

/// Retires the worker that ran the body, also when that panicked: otherwise the namespace
/// would live on until the worker has idled away.
struct Retired<'a> {
    netns: &'a Netns,
    executor: &'a Executor,
}

impl Drop for Retired<'_> {
    fn drop(&mut self) {
        // Nothing is to be done about a failure but to wait for the idle time.
        let _ = self.executor.retire(self.netns);
    }
}
