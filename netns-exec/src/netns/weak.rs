//! Naming a namespace without keeping it alive.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::identify::id_of;
use super::{Inner, Netns, NetnsId, Origin};
use crate::home::Home;
use crate::sys::has_run_out;
use crate::sys::netns::FileHandle;

/// Names a network namespace without keeping it alive.
///
/// Made by [`Netns::downgrade`]. It holds no file descriptor: when the last
/// name, socket, thread and [`Netns`] of the namespace is gone, the kernel
/// takes the namespace down, and [`upgrade`](WeakNetns::upgrade) says so.
///
/// Two of them are equal when they name the same namespace, dead or alive.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::Netns;
///
/// let weak = Netns::create("blue")?.downgrade();
/// assert!(weak.upgrade().is_some()); // the name keeps it alive
/// Netns::delete("blue")?;
/// assert!(weak.upgrade().is_none());
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone)]
pub struct WeakNetns {
    /// The way without a system call, while this process has a handle.
    inner: Weak<Inner>,
    id: NetnsId,
    label: Arc<str>,
    origin: Origin,
    /// `None` on kernels without file handles of namespaces.
    handle: Option<FileHandle>,
}

impl Netns {
    /// Makes a handle that names the namespace without keeping it alive.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// let here = Netns::current()?;
    /// assert_eq!(here.downgrade().upgrade(), Some(here));
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn downgrade(&self) -> WeakNetns {
        WeakNetns {
            inner: Arc::downgrade(&self.inner),
            id: self.inner.id,
            label: Arc::clone(&self.inner.label),
            origin: self.inner.origin,
            handle: FileHandle::of(self.as_fd()).ok(),
        }
    }
}

impl WeakNetns {
    /// Opens the namespace again, or returns `None` when it is gone.
    ///
    /// While a [`Netns`] that this was made from, or a clone of it, exists in
    /// this process, this is as cheap as a clone and always succeeds. Later it
    /// reopens the namespace by its file handle (open_by_handle_at(2), Linux
    /// 6.18), which takes `CAP_SYS_ADMIN` in the user namespace that owns it,
    /// unless it is that of the calling thread. On older kernels, without that
    /// privilege, or when the process has no file descriptor to spare, `None`
    /// comes although the namespace may live on.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Netns;
    ///
    /// let netns = Netns::new()?;
    /// let weak = netns.downgrade();
    /// assert!(weak.upgrade().is_some());
    /// drop(netns);
    /// assert!(weak.upgrade().is_none()); // nothing referred to it any more
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn upgrade(&self) -> Option<Netns> {
        self.reopen().ok().flatten().map(Netns::for_user)
    }

    /// As [`upgrade`](WeakNetns::upgrade), for the library itself (see [`Netns::kept`]),
    /// and tells a namespace that is gone from one for which there is no descriptor.
    ///
    /// # Errors
    ///
    /// `EMFILE`, `ENFILE` or `ENOMEM`.
    pub(crate) fn reopen(&self) -> io::Result<Option<Netns>> {
        if let Some(inner) = self.inner.upgrade() {
            return Ok(Some(Netns::of_inner(inner)));
        }
        let Some(handle) = self.handle else {
            return Ok(None);
        };
        // A namespace that died has no file any more (ESTALE), even where its
        // inode number belongs to another one by now. But the kernel says the
        // same of one that lives, to a thread that lacks the privilege.
        let fd = handle.open().or_else(|error| match Home::get() {
            Ok(home) if !has_run_out(&error) => home.call(move || handle.open()),
            _ => Err(error),
        });
        let fd = match fd {
            Ok(fd) => fd,
            Err(error) if has_run_out(&error) => return Err(error),
            Err(_) => return Ok(None),
        };
        let id = id_of(fd.as_fd()).ok().filter(|id| *id == self.id);
        Ok(id.map(|id| Netns::from_parts(fd, id, Arc::clone(&self.label), self.origin)))
    }

    /// Notes, for handles that exist now, that the namespace has no name any more.
    pub(crate) fn note_lost_name(&self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.lost_name.store(true, Ordering::Relaxed);
        }
    }

    /// Returns the namespace's never-reused id.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// let here = Netns::current()?;
    /// assert_eq!(here.downgrade().id(), here.id());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Returns what people call the namespace; see [`Netns::label`].
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::Netns;
    ///
    /// assert_eq!(Netns::home()?.downgrade().label(), "home");
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn label(&self) -> &str {
        &self.label
    }
}

impl fmt::Display for WeakNetns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl fmt::Debug for WeakNetns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeakNetns({}, id {})", self.label, self.id)
    }
}

impl PartialEq for WeakNetns {
    fn eq(&self, other: &WeakNetns) -> bool {
        self.id == other.id
    }
}

impl Eq for WeakNetns {}

impl Hash for WeakNetns {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}
