//! A named namespace that goes with its owner.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::ops::Deref;

use super::Netns;
use crate::error::Result;

/// A named namespace that goes with its owner: see [`Netns::create_owned`].
///
/// It stands for its [`Netns`] wherever that is borrowed. When it is dropped, by a panic
/// too, it takes the name away as [`Netns::delete`] does, and is one reference less. The
/// namespace itself goes with the last one: an [`Executor`](crate::Executor)'s idle workers
/// notice that the name has gone and leave.
///
/// A name that has come to mean another namespace meanwhile is left alone.
///
/// # Blocking
///
/// The drop waits for umount2(2) and unlink(2), which is a matter of microseconds; async
/// code that cannot afford it calls [`keep`](OwnedNetns::keep) and
/// [`Netns::delete_async`].
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Netns, OwnedNetns};
///
/// /// The sandbox of one test: gone with it, whether that passes or panics.
/// struct Sandbox {
///     netns: OwnedNetns,
/// }
/// let sandbox = Sandbox { netns: Netns::create_owned("test-4711")? };
/// sandbox.netns.set_loopback_up()?;
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[must_use = "dropped at once, it takes its name away again"]
pub struct OwnedNetns {
    netns: Netns,
    /// Empty once it is not ours to delete.
    name: OsString,
}

impl Netns {
    /// Makes a namespace with a name, as [`create`](Netns::create) does, that goes with what
    /// this returns.
    ///
    /// For a test, or a process that makes namespaces for itself. A process that is killed
    /// drops nothing, and leaves the name.
    ///
    /// # Errors
    ///
    /// As [`create`](Netns::create).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::{Executor, Netns};
    ///
    /// let blue = Netns::create_owned("blue")?;
    /// blue.set_loopback_up()?;
    /// Executor::global().run(&blue, || std::net::TcpListener::bind("127.0.0.1:80"))??;
    /// drop(blue);
    /// assert!(Netns::open("blue").unwrap_err().is_not_found());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create_owned(name: impl AsRef<OsStr>) -> Result<OwnedNetns> {
        let name = name.as_ref();
        Ok(OwnedNetns {
            netns: Netns::create_os(name)?,
            name: name.to_owned(),
        })
    }
}

impl OwnedNetns {
    /// Returns the name, as `ip netns` knows it.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// assert_eq!(netns_exec::Netns::create_owned("blue")?.name(), "blue");
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Gives the name up to whatever else deletes it, and returns the handle.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use netns_exec::Netns;
    ///
    /// let blue = Netns::create_owned("blue")?.keep();
    /// assert_eq!(Netns::open("blue")?, blue);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn keep(mut self) -> Netns {
        self.name.clear();
        self.netns.clone()
    }

    /// Takes the name away, and says how that went.
    ///
    /// # Errors
    ///
    /// As [`Netns::delete`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// netns_exec::Netns::create_owned("blue")?.delete()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn delete(mut self) -> Result<()> {
        let name = std::mem::take(&mut self.name);
        Netns::delete_os(name)
    }
}

impl Deref for OwnedNetns {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

impl Drop for OwnedNetns {
    fn drop(&mut self) {
        if self.name.is_empty() {
            return;
        }
        // It may have been deleted, and made anew, by others.
        let is_ours = Netns::open_os(&self.name).is_ok_and(|there| there == self.netns);
        if is_ours && let Err(error) = Netns::delete_os(&self.name) {
            tracing::warn!(name = %self.name.display(), %error, "name of a network namespace stays");
        }
    }
}

impl fmt::Debug for OwnedNetns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnedNetns").field(&self.netns).finish()
    }
}
