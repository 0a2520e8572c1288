//! The handle itself.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::fstat;

use super::identify::id_of;
use super::users::Users;
use super::{NetnsId, why};
use crate::error::{Error, Result};
use crate::sys;

/// A cheap, clonable handle to one network namespace.
///
/// It holds an open file of the namespace (close-on-exec, shared by all
/// clones) and so keeps the namespace alive: a deleted one, with the devices
/// in it, lives until the last handle is dropped. [`downgrade`](Netns::downgrade)
/// makes a handle that does not.
///
/// With the last handle of a namespace that this process made without a name, or that
/// has lost its name, the workers go that idle in it, without a wait: no later call
/// could be for them. Jobs that wait or run there, and a [`Pinned`](crate::Pinned), keep
/// it until they end.
///
/// A handle means the namespace, not the name. When `blue` is deleted and made
/// anew, a handle from before still means the old one. Two handles are equal,
/// and hash alike, when they mean the same namespace, however they came about:
/// by name, pid, path, socket or file descriptor.
///
/// `Display` writes the [`label`](Netns::label), `Debug` the id too.
///
/// # Examples
///
/// ```
/// use netns_exec::Netns;
///
/// let here = Netns::current()?;
/// let by_pid = Netns::from_pid(std::process::id())?;
/// let by_path = Netns::from_path("/proc/self/ns/net")?;
/// assert_eq!(by_pid, by_path);
/// println!("{here:?}");
/// # Ok::<(), netns_exec::Error>(())
/// ```
///
/// See network_namespaces(7) and ip-netns(8).
#[derive(Clone)]
pub struct Netns {
    /// Its users, of whom the owner of this handle is one; see [`kept`](Netns::kept).
    /// Dropped first: what is called then finds the namespace as it was.
    users: Option<Arc<Users>>,
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    /// On nsfs, of type `CLONE_NEWNET`, close-on-exec.
    fd: OwnedFd,
    pub(super) id: NetnsId,
    /// The number in `net:[4026532177]`: 0 when it could not be asked for.
    pub(super) inode: u64,
    pub(super) label: Arc<str>,
    pub(super) origin: Origin,
    /// It was found without a name since. The holders that it still has want it as it is.
    pub(super) lost_name: AtomicBool,
}

/// How a namespace came to this process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Found,
    /// This process made it and gave it a name.
    Named,
    /// This process made it and gave it none.
    Unnamed,
}

impl Netns {
    /// `fd` must be an open network namespace and `id` its id. No user has the handle
    /// as yet.
    pub(super) fn from_parts(fd: OwnedFd, id: NetnsId, label: Arc<str>, origin: Origin) -> Netns {
        let inode = fstat(&fd).map_or(0, |stat| stat.st_ino);
        Netns::of_inner(Arc::new(Inner {
            fd,
            id,
            inode,
            label,
            origin,
            lost_name: AtomicBool::new(false),
        }))
    }

    /// As [`from_parts`](Netns::from_parts).
    pub(super) fn of_inner(inner: Arc<Inner>) -> Netns {
        Netns { users: None, inner }
    }

    /// Counts the handle, and its clones, as a user's.
    pub(crate) fn for_user(mut self) -> Netns {
        let unnamed = self.inner.origin == Origin::Unnamed;
        self.users = Users::of(self.id(), unnamed);
        self
    }

    /// A handle for the library itself. It keeps the namespace, but not the workers
    /// that idle there.
    pub(crate) fn kept(&self) -> Netns {
        Netns::of_inner(Arc::clone(&self.inner))
    }

    /// Notes how this process made the namespace. To be called on the handle that was
    /// just made.
    pub(super) fn made(mut self, origin: Origin) -> Netns {
        let inner = Arc::get_mut(&mut self.inner);
        inner.expect("the only handle").origin = origin;
        self.for_user()
    }

    /// Tells whether it is known that the namespace had a name, whether or not it
    /// still has: this process named it, it was opened by a name that is gone, or the
    /// loss was noted.
    pub(crate) fn had_name(&self) -> bool {
        self.lost_name()
            || self.inner.origin == Origin::Named
            || sys::netns::is_detached(self.as_fd())
    }

    /// Tells whether the deletion watch has seen the namespace lose its last name.
    pub(crate) fn lost_name(&self) -> bool {
        self.inner.lost_name.load(Ordering::Relaxed)
    }

    /// Wraps what is known to be a network namespace; without a label it is
    /// called by its id.
    pub(super) fn wrap(fd: OwnedFd, label: Option<&str>, attempt: &str) -> Result<Netns> {
        let id = id_of(fd.as_fd()).map_err(|cause| {
            if let Some(error) = why::no_proc(attempt, &cause) {
                return error;
            }
            Error::kernel(format!("{attempt}: cannot read the namespace's id"), cause)
                .hint("before Linux 6.18 that takes the privilege to enter it; Linux 5.14 at least")
        })?;
        let label = match label {
            Some(label) => label.into(),
            None => format!("netns:{id}").into(),
        };
        Ok(Netns::from_parts(fd, id, label, Origin::Found).for_user())
    }

    /// Returns the namespace's never-reused id.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// assert_eq!(Netns::current()?.id(), Netns::current()?.id());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn id(&self) -> NetnsId {
        self.inner.id
    }

    /// Returns what people call the namespace: `blue`, `pid 4711`, the path it
    /// was opened by, `home`, or `netns:42` with its id where it has no name.
    ///
    /// It tells where the handle came from and takes no part in comparisons.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// let pid = std::process::id();
    /// assert_eq!(Netns::from_pid(pid)?.label(), format!("pid {pid}"));
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn label(&self) -> &str {
        &self.inner.label
    }

    /// The same, as the handle was made.
    pub(crate) fn known_inode(&self) -> u64 {
        self.inner.inode
    }

    /// The number in `net:[4026532177]`. It is reused as soon as the namespace
    /// is gone, so it may be compared only while `self` is held.
    pub(crate) fn inode(&self) -> Result<u64> {
        fstat(self.as_fd())
            .map(|stat| stat.st_ino)
            .map_err(|errno| Error::kernel(format!("cannot inspect netns `{self}`"), errno))
    }
}

impl AsFd for Netns {
    /// The open namespace, for setns(2), `IFLA_NET_NS_FD` and the like. It is
    /// shared by all clones of the handle.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
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
