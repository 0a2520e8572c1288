//! The namespaces that are measured in.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::thread;

use netns_exec::Netns;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;

use crate::Result;

/// Moves the calling thread, for peers that do so.
pub fn enter(netns: impl AsFd) -> nix::Result<()> {
    setns(netns, CloneFlags::CLONE_NEWNET)
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
    /// Without iproute2 or `CAP_SYS_ADMIN`.
    pub fn new() -> Result<Named> {
        let name = format!("netns-exec-bench-{}", std::process::id());
        ip(&["netns", "add", &name])?;
        match open(&format!("/run/netns/{name}")) {
            Ok(netns) => Ok(Named { name, netns }),
            Err(cause) => {
                ip(&["netns", "del", &name])?;
                Err(cause)
            }
        }
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
        if let Err(cause) = ip(&["netns", "del", &self.name]) {
            eprintln!("netns `{}` is left behind: {cause}", self.name);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`ip {}` failed: {}", arguments.join(" "), said.trim()).into())
}

/// Opens the namespace at `path`, on a thread that ends in it.
///
/// # Errors
///
/// When there is none, or it may not be entered.
pub fn open(path: &str) -> Result<Netns> {
    let file = File::open(path)?;
    let opened = thread::scope(|scope| {
        let visitor = scope.spawn(|| {
            enter(&file).map_err(|e| e.to_string())?;
            Netns::current().map_err(|e| e.to_string())
        });
        visitor.join().expect("the visitor does not panic")
    });
    Ok(opened?)
}

/// The inode that threads in `netns` see as theirs, see [`crate::work::place`].
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
