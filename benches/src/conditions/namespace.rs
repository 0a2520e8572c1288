//! The namespaces that are measured in.

use std::os::fd::{AsFd, AsRawFd};

use netns_exec::Netns;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;

use crate::Result;

/// Moves the calling thread, for peers that do so.
pub fn enter(netns: impl AsFd) -> nix::Result<()> {
    setns(netns, CloneFlags::CLONE_NEWNET)
}

/// What a pool runs on each of its threads before anything else.
pub fn enter_first(netns: &Netns) -> impl Fn() + Send + Sync + 'static {
    let netns = netns.clone();
    move || enter(&netns).expect("the namespace can be entered")
}

/// A namespace with a name, since `ip netns exec` knows no others.
pub struct Named {
    name: String,
    netns: Netns,
}

impl Named {
    /// Makes one as `ip netns add` does.
    ///
    /// # Errors
    ///
    /// Without `CAP_SYS_ADMIN`.
    pub fn new() -> Result<Named> {
        let name = format!("netns-exec-bench-{}", std::process::id());
        let netns = Netns::create(&name)?;
        Ok(Named { name, netns })
    }

    /// Its name under /run/netns.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The handle to it.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Err(cause) = Netns::delete(&self.name) {
            eprintln!("netns `{}` is left behind: {cause}", self.name);
        }
    }
}

/// The inode that threads in `netns` see as theirs, see [`crate::work::own_netns_inode`].
pub fn inode(netns: &Netns) -> Result<u64> {
    Ok(fstat(netns)?.st_ino)
}

/// A path to `netns` that works within this process and for its children.
pub fn path(netns: &Netns) -> String {
    format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        netns.as_fd().as_raw_fd()
    )
}
