//! What makes and deletes namespaces and waits for it, as futures.

use std::ffi::OsStr;
use std::future::Future;
use std::io;

use super::Netns;
use crate::error::{Error, Result};
use crate::home::aside;

impl Netns {
    /// Makes a namespace without a name, and is awaited where [`new`](Netns::new) blocks.
    ///
    /// Any runtime will do. Nothing happens before it is polled; when it is dropped half
    /// way, so is the namespace.
    ///
    /// # Errors
    ///
    /// As [`new`](Netns::new).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn f() -> netns_exec::Result<()> {
    /// use netns_exec::Netns;
    ///
    /// let netns = Netns::new_async().await?;
    /// netns.set_loopback_up_async().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn new_async() -> impl Future<Output = Result<Netns>> + Send + 'static {
        aside("cannot create a netns".to_owned(), Netns::new)
    }

    /// Makes a namespace with a name, and is awaited where [`create`](Netns::create) blocks.
    ///
    /// Nothing happens before it is polled. When it is dropped half way, the name is taken
    /// away again, a moment later.
    ///
    /// # Errors
    ///
    /// As [`create`](Netns::create).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn f() -> netns_exec::Result<()> {
    /// use netns_exec::Netns;
    ///
    /// let blue = Netns::create_async("blue").await?;
    /// Netns::delete_async("blue").await?;
    /// # drop(blue);
    /// # Ok(())
    /// # }
    /// ```
    pub fn create_async(
        name: impl AsRef<OsStr>,
    ) -> impl Future<Output = Result<Netns>> + Send + 'static {
        let name = name.as_ref().to_owned();
        let attempt = format!("cannot create netns `{}`", name.display());
        async move {
            // Owned until it is here: a future that has been dropped takes nothing.
            let owned = aside(attempt, move || Netns::create_owned(name)).await?;
            Ok(owned.keep())
        }
    }

    /// Takes a name away, and is awaited where [`delete`](Netns::delete) blocks.
    ///
    /// Nothing happens before it is polled; after that it is done, awaited or not.
    ///
    /// # Errors
    ///
    /// As [`delete`](Netns::delete).
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::Netns;
    /// # async fn f() -> netns_exec::Result<()> {
    /// match Netns::delete_async("blue").await {
    ///     Err(error) if error.is_not_found() => {}
    ///     deleted => deleted?,
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn delete_async(
        name: impl AsRef<OsStr>,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let name = name.as_ref().to_owned();
        let attempt = format!("cannot delete netns `{}`", name.display());
        aside(attempt, move || Netns::delete_os(name))
    }

    /// Brings the loopback device up, and is awaited where
    /// [`set_loopback_up`](Netns::set_loopback_up) blocks.
    ///
    /// Nothing happens before it is polled; after that it is done, awaited or not.
    ///
    /// # Errors
    ///
    /// As [`set_loopback_up`](Netns::set_loopback_up).
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::Netns;
    /// # async fn f() -> netns_exec::Result<()> {
    /// let sandbox = Netns::new_async().await?;
    /// sandbox.set_loopback_up_async().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_loopback_up_async(&self) -> impl Future<Output = Result<()>> + Send + use<> {
        let netns = self.clone();
        let attempt = format!("cannot bring lo up in netns `{netns}`");
        aside(attempt, move || netns.set_loopback_up())
    }
}

async fn aside<T: Send + 'static>(
    attempt: String,
    f: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let failed = |cause: io::Error| {
        let is_limit = cause.raw_os_error() == Some(libc::EAGAIN);
        let error = Error::kernel(attempt.clone(), cause);
        match is_limit {
            true => error.hint("no thread could be started: see `ulimit -u` and pids.max"),
            false => error,
        }
    };
    aside::errand(f).map_err(failed)?.await.map_err(failed)?
}
