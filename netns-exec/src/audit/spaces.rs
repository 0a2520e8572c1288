//! The namespaces met during an audit, told apart although all that /proc
//! shows of them is a number that is reused.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::stat::fstat;

use super::proc::ProcDir;
use crate::netns::{Netns, NetnsId};
use crate::sys::mount_table::netns_mounts;

/// Enough for almost every machine, and few enough to leave descriptors to
/// others. Of namespaces beyond that, one that ends during the audit may be
/// taken for its successor.
const MOST_HELD: usize = 256;

/// By inode number. A namespace is held open from when it is first met to the
/// end of the audit, so that its number means it whenever it is met again.
#[derive(Default)]
pub(super) struct Spaces {
    met: BTreeMap<u64, Space>,
    held: usize,
}

struct Space {
    id: NetnsId,
    held: Option<Netns>,
}

impl Spaces {
    /// Tells which namespace the link at `path` leads to, by inode.
    pub(super) fn meet(&mut self, process: &ProcDir, path: &str) -> io::Result<u64> {
        let inode = process.netns_link(path)?;
        if self.met.contains_key(&inode) {
            return Ok(inode);
        }
        // It may lead elsewhere by now: what counts is what was opened.
        self.hold(process.file(path)?.into())
    }

    /// Adds an open namespace and returns its inode.
    pub(super) fn hold(&mut self, fd: OwnedFd) -> io::Result<u64> {
        let inode = fstat(&fd)?.st_ino;
        if !self.met.contains_key(&inode) {
            let netns = Netns::from_fd(fd)?;
            let id = netns.id();
            let held = (self.held < MOST_HELD).then_some(netns);
            self.held += usize::from(held.is_some());
            self.met.insert(inode, Space { id, held });
        }
        Ok(inode)
    }

    pub(super) fn contains(&self, inode: u64) -> bool {
        self.met.contains_key(&inode)
    }

    pub(super) fn id(&self, inode: u64) -> Option<NetnsId> {
        self.met.get(&inode).map(|space| space.id)
    }

    pub(super) fn inode_of_id(&self, id: u64) -> Option<u64> {
        let mut met = self.met.iter();
        met.find_map(|(inode, space)| (space.id.as_u64() == id).then_some(*inode))
    }

    /// Tells whether a descriptor of this process is the audit's own.
    pub(super) fn owns(&self, fd: RawFd) -> bool {
        let mut held = self.met.values().filter_map(|space| space.held.as_ref());
        held.any(|netns| netns.as_fd().as_raw_fd() == fd)
    }
}

/// What people call the namespaces that are mounted in this process's mount
/// namespace, by inode: `blue` for `/run/netns/blue`, otherwise the path.
pub(super) fn names() -> io::Result<HashMap<u64, Vec<String>>> {
    let mut names: HashMap<u64, Vec<String>> = HashMap::new();
    for mount in netns_mounts(Path::new("/proc/thread-self/mountinfo"))? {
        let name = (mount.target.strip_prefix("/run/netns")).unwrap_or(&mount.target);
        let name = name.to_string_lossy().into_owned();
        let names = names.entry(mount.inode).or_default();
        // Where /run/netns is mounted on itself, each shows twice.
        if !names.contains(&name) {
            names.push(name);
        }
    }
    // Names before paths.
    for names in names.values_mut() {
        names.sort_by_key(|name| (name.starts_with('/'), name.clone()));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_that_was_met_is_there_until_the_end_of_the_audit() {
        let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
        let weak = netns.downgrade();
        let mut spaces = Spaces::default();
        let fd = netns.as_fd().try_clone_to_owned().expect("a descriptor");
        let inode = spaces.hold(fd).expect("a network namespace");
        drop(netns);
        let again = weak.upgrade().expect("the audit holds it");
        assert_eq!(spaces.id(inode), Some(again.id()));
    }
}
