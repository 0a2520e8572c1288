//! Handles to network namespaces.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::home::Home;
use crate::sys;

/// The kernel's never-reused number of a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId(u64);

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A cheap, clonable handle to one network namespace.
#[derive(Clone)]
pub struct Netns {
    inner: Arc<Inner>,
}

struct Inner {
    fd: OwnedFd,
    id: NetnsId,
    label: Box<str>,
}

impl Netns {
    /// Opens the namespace of the calling thread.
    pub fn current() -> Result<Netns> {
        let fd = sys::netns::of_this_thread()
            .map_err(|e| Error::kernel("cannot open the current netns", e))?;
        Netns::label_fd(fd, None)
    }

    /// Makes a fresh namespace.
    pub fn new() -> Result<Netns> {
        let fd = Home::get()?
            .visit(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
                sys::netns::of_this_thread()
            })
            .and_then(|r| r)
            .map_err(|e| Error::kernel("cannot create a netns", e))?;
        Netns::label_fd(fd, None)
    }

    fn label_fd(fd: OwnedFd, label: Option<String>) -> Result<Netns> {
        let id = sys::netns::id(&fd).map_err(|e| Error::kernel("cannot read the netns id", e))?;
        let label = label.unwrap_or_else(|| format!("netns:{id}"));
        Ok(Netns {
            inner: Arc::new(Inner {
                fd,
                id: NetnsId(id),
                label: label.into(),
            }),
        })
    }

    /// Returns the namespace's never-reused id.
    pub fn id(&self) -> NetnsId {
        self.inner.id
    }

    /// Returns what people call it.
    pub fn label(&self) -> &str {
        &self.inner.label
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Netns({}, id {})", self.label(), self.id())
    }
}

impl PartialEq for Netns {
    fn eq(&self, other: &Netns) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Netns {}

impl Hash for Netns {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id().hash(state);
    }
}
