//! What a stock does that may take a trip to a worker, as futures.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Makers, SocketKind, SocketStock, StockBuilder};
use crate::error::{Error, Result};
use crate::executor::{Executor, spare};
use crate::home::aside;
use crate::netns::Netns;
use crate::sys::has_run_out;

impl SocketStock {
    /// As [`take`](SocketStock::take), to be awaited.
    ///
    /// # Errors
    ///
    /// As [`take`](SocketStock::take). A panic of a [`custom`](StockBuilder::custom)
    /// closure is one as well.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::net::{SocketKind, SocketStock};
    /// # async fn f(stock: &SocketStock) -> netns_exec::Result<()> {
    /// let socket = stock.take_async(SocketKind::Tcp4).await?;
    /// # let _ = socket;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn take_async(&self, kind: SocketKind) -> Result<OwnedFd> {
        let index = self.index(kind)?;
        if let Some(socket) = self.pop(index) {
            return Ok(socket);
        }
        let attempt = || {
            let maker = self.inner.makers[index].clone();
            self.inner.pinned.spawn_async(move || maker.make())
        };
        let before = spare::given_up();
        let mut made = attempt().await?.await?;
        if (made.as_ref()).is_err_and(has_run_out) {
            // Closing takes time.
            let errand = aside::errand(move || spare::run_out(before));
            if let Ok(errand) = errand
                && errand.await.is_ok_and(|given_up| given_up)
            {
                made = attempt().await?.await?;
            }
        }
        self.inner.refill(index);
        made.map_err(|cause| self.inner.failed(index, cause))
    }

    /// As [`fill`](SocketStock::fill), to be awaited.
    ///
    /// # Errors
    ///
    /// As [`fill`](SocketStock::fill). A panic of a [`custom`](StockBuilder::custom)
    /// closure is one as well.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::net::{SocketKind, SocketStock};
    /// # async fn f(stock: &SocketStock) -> netns_exec::Result<()> {
    /// stock.fill_async().await?;
    /// assert!(stock.on_hand(SocketKind::Tcp4) > 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn fill_async(&self) -> Result<()> {
        let inner = &self.inner;
        let (makers, shelf, idle) = (
            Arc::clone(&inner.makers),
            Arc::clone(&inner.shelf),
            inner.idle,
        );
        let fill = move || {
            let filled = makers.fill(&shelf, || false);
            makers.keep(&shelf, idle);
            filled
        };
        let filled = inner.pinned.spawn_async(fill).await?.await?;
        let filled = filled.map_err(|(index, cause)| inner.failed(index, cause));
        filled.map(drop)
    }
}

impl StockBuilder {
    /// As [`build`](StockBuilder::build), to be awaited.
    ///
    /// Nothing happens before it is polled. Any runtime will do.
    ///
    /// # Errors
    ///
    /// As [`build`](StockBuilder::build).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn f() -> netns_exec::Result<()> {
    /// use netns_exec::{Executor, Netns};
    /// use netns_exec::net::{SocketKind, SocketStock};
    ///
    /// let (executor, pod) = (Executor::new()?, Netns::open("pod")?);
    /// let builder = SocketStock::builder().kinds([SocketKind::Tcp4]).nonblocking(true);
    /// let stock = builder.build_async(&executor, &pod).await?;
    /// let socket = stock.take_async(SocketKind::Tcp4).await?;
    /// # let _ = socket;
    /// # Ok(())
    /// # }
    /// ```
    pub fn build_async(
        self,
        executor: &Executor,
        netns: &Netns,
    ) -> impl Future<Output = Result<SocketStock>> + Send + use<> {
        let (executor, netns) = (executor.clone(), netns.clone());
        async move {
            let makers = self.makers()?;
            let pinned = executor.pin_async(&netns).await?;
            let failed = |cause| Error::kernel("cannot have the stock watched", cause);
            // It may have to read what is mounted.
            let build = move || self.build_on(pinned, &netns, makers);
            aside::errand(build)
                .map_err(failed)?
                .await
                .map_err(failed)?
        }
    }
}
