//! The links and addresses of a namespace, as a thread sees them that goes there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netns_exec::audit::{Hold, Namespace};
use netns_exec::{Executor, Netns};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;
use serde::Serialize;

use crate::failure::Failure;

/// A network device.
#[derive(Serialize)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) up: bool,
    /// With the length of the prefix: `10.0.0.1/24`.
    pub(super) addresses: Vec<String>,
}

/// Looks into each of them; `None` for one that cannot be opened or entered.
pub(super) fn look_into(namespaces: &[Namespace]) -> Result<Vec<Option<Vec<Link>>>, Failure> {
    let executor = Executor::new()?;
    let look = |namespace: &Namespace| {
        let netns = open(namespace)?;
        let links = executor.run(&netns, links).ok()?;
        // It would idle in a namespace that is of no more interest.
        let _ = executor.retire(&netns);
        links
    };
    Ok(namespaces.iter().map(look).collect())
}

/// Opens a namespace by whatever holds it.
fn open(namespace: &Namespace) -> Option<Netns> {
    let by_name = |name: &String| Netns::open(name).ok();
    let is_it = |netns: &Netns| Some(netns.id()) == namespace.id();
    let named = namespace.names().iter().filter_map(by_name).find(is_it);
    named.or_else(|| {
        let paths = namespace.holders().iter().filter_map(|holder| {
            let pid = holder.pid();
            match holder.hold() {
                Hold::Thread { tid, .. } => Some(format!("/proc/{pid}/task/{tid}/ns/net")),
                Hold::Fd { fd, .. } => Some(format!("/proc/{pid}/fd/{fd}")),
                Hold::Mount { path, .. } => Some(format!("/proc/{pid}/root{}", path.display())),
                _ => None,
            }
        });
        // Not all of them: they may be many, and what refuses one refuses the next.
        let mut opened = paths.take(8).filter_map(|path| Netns::from_path(path).ok());
        opened.find(is_it)
    })
}

/// The links of the calling thread's namespace, in the kernel's order.
fn links() -> Option<Vec<Link>> {
    let mut links: Vec<Link> = Vec::new();
    for entry in getifaddrs().ok()? {
        let at = links
            .iter()
            .position(|link| link.name == entry.interface_name);
        let at = at.unwrap_or_else(|| {
            links.push(Link {
                name: entry.interface_name.clone(),
                up: entry.flags.contains(InterfaceFlags::IFF_UP),
                addresses: Vec::new(),
            });
            links.len() - 1
        });
        if let Some(address) = entry.address.as_ref().and_then(ip_of) {
            let mask = entry.netmask.as_ref().and_then(ip_of);
            let prefix = mask.map_or(String::new(), |mask| format!("/{}", ones(mask)));
            links[at].addresses.push(format!("{address}{prefix}"));
        }
    }
    Some(links)
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn ones(mask: IpAddr) -> u32 {
    match mask {
        IpAddr::V4(mask) => Ipv4Addr::to_bits(mask).count_ones(),
        IpAddr::V6(mask) => Ipv6Addr::to_bits(mask).count_ones(),
    }
}
