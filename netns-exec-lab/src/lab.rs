//! What all nodes of a test have in common.

use netns_exec::Executor;

use crate::error::Result;
use crate::link::{Bridge, Link};
use crate::node::{End, Node};

/// A network of namespaces, for one test.
///
/// It holds nothing but an executor: nodes, links and bridges live as long as the nodes'
/// handles do. Any number of labs can be in a process, and in as many threads; they know
/// nothing of each other, and all may use the same addresses.
///
/// # Examples
///
/// ```no_run
/// use netns_exec_lab::Lab;
///
/// let lab = Lab::new()?;
/// let [client, server] = lab.nodes(["client", "server"])?;
/// lab.link(
///     client.at(&["10.0.0.1/24", "fd00::1/64"]),
///     server.at(&["10.0.0.2/24", "fd00::2/64"]),
/// )?;
/// # Ok::<(), netns_exec_lab::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lab {
    executor: Executor,
}

impl Lab {
    /// Makes a lab without nodes, with an executor of its own.
    ///
    /// Eight jobs at a time run in each node, so that a server there does not keep its
    /// clients waiting; their guard is [`Guard::Seal`](netns_exec::Guard::Seal), which
    /// refuses them threads. [`with_executor`](Lab::with_executor) takes another one.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`](netns_exec::Builder::build).
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec_lab::Lab;
    ///
    /// // One for each test: they may run beside each other.
    /// let (one, other) = (Lab::new()?, Lab::new()?);
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    pub fn new() -> Result<Lab> {
        let executor = Executor::builder().workers_per_netns(8).build()?;
        Ok(Lab { executor })
    }

    /// Makes a lab whose nodes' jobs run on workers of `executor`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Guard};
    /// use netns_exec_lab::Lab;
    ///
    /// // Jobs of the tests start threads, and join them.
    /// let executor = Executor::builder()
    ///     .workers_per_netns(4)
    ///     .guard(Guard::Detect)
    ///     .build()?;
    /// let lab = Lab::with_executor(&executor);
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    #[must_use]
    pub fn with_executor(executor: &Executor) -> Lab {
        Lab {
            executor: executor.clone(),
        }
    }

    /// Makes a node: a new namespace with its loopback up, and a name for messages.
    ///
    /// # Errors
    ///
    /// [`Namespace`](crate::ErrorKind::Namespace) without the privilege to make one: call
    /// [`rootless::enter`](netns_exec::rootless::enter), or use
    /// [`rootless::test_harness!`](netns_exec::rootless::test_harness).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// let hosts = (0..20).map(|n| lab.node(&format!("host-{n}"))).collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(hosts[7].name(), "host-7");
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    pub fn node(&self, name: &str) -> Result<Node> {
        Node::new(name, &self.executor)
    }

    /// Makes a node for each name.
    ///
    /// # Errors
    ///
    /// As [`node`](Lab::node).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// let [client, router, server] = lab.nodes(["client", "router", "server"])?;
    /// # let _ = (client, router, server);
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    pub fn nodes<const N: usize>(&self, names: [&str; N]) -> Result<[Node; N]> {
        let nodes: Vec<Node> = (names.into_iter())
            .map(|name| self.node(name))
            .collect::<Result<_>>()?;
        Ok(nodes.try_into().expect("one for each name"))
    }

    /// Joins two nodes, by a veth pair that is up, has its addresses and passes packets
    /// when this returns. Two ends of one node are fine.
    ///
    /// # Errors
    ///
    /// [`Invalid`](crate::ErrorKind::Invalid) for what is no address with a length, or no
    /// name of a device. Otherwise what the kernel says: `EEXIST` for a name or an address
    /// that the node has already, `EINVAL` for an MTU that a veth cannot have. What was
    /// made until then stays, and goes with its node.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// # let [client, server] = lab.nodes(["client", "server"])?;
    /// lab.link(client.at(&["fd00::1/64"]), server.at(&["fd00::2/64"]))?;
    /// // At once: no wait for a carrier, nor for duplicate address detection.
    /// server.run(|| std::net::TcpListener::bind("[fd00::2]:80"))??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn link(&self, first: End<'_>, second: End<'_>) -> Result<Link> {
        Link::new(first, second)
    }

    /// Makes a bridge, in a node of its own with that name, to
    /// [attach](Bridge::attach) nodes to.
    ///
    /// # Errors
    ///
    /// As [`node`](Lab::node), and what the kernel says: `EOPNOTSUPP` where it was built
    /// without bridges.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # let lab = netns_exec_lab::Lab::new()?;
    /// # let [client, server] = lab.nodes(["client", "server"])?;
    /// let lan = lab.bridge("lan")?;
    /// lan.attach(client.at(&["10.0.0.1/24"]))?;
    /// lan.attach(server.at(&["10.0.0.2/24"]))?;
    /// # Ok::<(), netns_exec_lab::Error>(())
    /// ```
    pub fn bridge(&self, name: &str) -> Result<Bridge> {
        Bridge::new(self.node(name)?)
    }
}
