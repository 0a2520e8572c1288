//! What a stock is to have, and its beginning.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Inner, Make, Maker, SocketKind, SocketStock};
use crate::error::{Error, Kind, Result};
use crate::executor::{Executor, Pinned, spare};
use crate::net::shelf::Shelf;
use crate::netns::{Netns, watch};

/// Configures a [`SocketStock`].
///
/// # Examples
///
/// ```no_run
/// # use netns_exec::{Executor, Netns};
/// # let (executor, blue) = (Executor::new()?, Netns::open("blue")?);
/// use std::time::Duration;
/// use netns_exec::net::{SocketKind, SocketStock};
///
/// let stock = SocketStock::builder()
///     .kinds([SocketKind::Udp4])
///     .marks(32, 256)
///     .idle_timeout(Some(Duration::from_secs(5)))
///     .build(&executor, &blue)?;
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[must_use = "a builder does nothing before `build`"]
pub struct StockBuilder {
    kinds: Vec<(SocketKind, Option<Make>)>,
    low: usize,
    high: usize,
    idle: Option<Duration>,
    nonblocking: bool,
}

impl StockBuilder {
    pub(super) fn new() -> StockBuilder {
        StockBuilder {
            kinds: Vec::new(),
            low: 16,
            high: 64,
            idle: Some(Duration::from_secs(30)),
            nonblocking: false,
        }
    }

    /// Adds kinds of sockets.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns, net::SocketStock};
    ///
    /// // Without one there is nothing to make.
    /// let error = SocketStock::builder().kinds([]).build(&Executor::new()?, &Netns::current()?);
    /// assert!(error.unwrap_err().is_invalid_input());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = SocketKind>) -> Self {
        self.kinds
            .extend(kinds.into_iter().map(|kind| (kind, None)));
        self
    }

    /// Adds a kind of its own, which is taken as [`SocketKind::Custom`] of `name`.
    ///
    /// `make` makes one socket, in the namespace of the thread that calls it: it runs on
    /// a worker. Whether the socket blocks is its own choice.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let (executor, blue) = (Executor::new()?, Netns::open("blue")?);
    /// use netns_exec::net::{SocketKind, SocketStock};
    ///
    /// let stock = SocketStock::builder()
    ///     .custom("seqpacket", || {
    ///         let (one, _other) = std::os::unix::net::UnixDatagram::pair()?;
    ///         Ok(one.into())
    ///     })
    ///     .build(&executor, &blue)?;
    /// let socket = stock.take(SocketKind::Custom("seqpacket"))?;
    /// # let _ = socket;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn custom(
        mut self,
        name: &'static str,
        make: impl Fn() -> io::Result<OwnedFd> + Send + Sync + 'static,
    ) -> Self {
        let make: Make = Arc::new(make);
        self.kinds.push((SocketKind::Custom(name), Some(make)));
        self
    }

    /// Sets at how many sockets of a kind more are made, and how many there are then.
    /// Default: 16 and 64.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::net::{SocketKind, SocketStock};
    ///
    /// // For bursts of two hundred connections.
    /// let stock = SocketStock::builder().kinds([SocketKind::Tcp4]).marks(64, 256);
    /// # let _ = stock;
    /// ```
    pub fn marks(mut self, low: usize, high: usize) -> Self {
        (self.low, self.high) = (low, high);
        self
    }

    /// Sets for how long sockets are kept of which none is taken. It may be a quarter
    /// more. `None`: for ever. Default: 30 seconds.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use netns_exec::net::{SocketKind, SocketStock};
    ///
    /// // A quiet namespace keeps no descriptors for long.
    /// let stock = SocketStock::builder()
    ///     .kinds([SocketKind::Tcp4])
    ///     .idle_timeout(Some(Duration::from_secs(1)));
    /// # let _ = stock;
    /// ```
    pub fn idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.idle = timeout;
        self
    }

    /// Has the sockets not block (`O_NONBLOCK`), as runtimes want them. Default: they do.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::UdpSocket;
    /// use netns_exec::{Executor, Netns};
    /// use netns_exec::net::{SocketKind, SocketStock};
    ///
    /// let stock = SocketStock::builder()
    ///     .kinds([SocketKind::Udp4])
    ///     .nonblocking(true)
    ///     .build(&Executor::new()?, &Netns::current()?)?;
    /// let socket = UdpSocket::from(stock.take(SocketKind::Udp4)?);
    /// assert!(socket.recv(&mut [0; 9]).is_err()); // at once
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn nonblocking(mut self, nonblocking: bool) -> Self {
        self.nonblocking = nonblocking;
        self
    }

    /// Builds the stock, and has it filled.
    ///
    /// # Blocking
    ///
    /// Blocks while the namespace's first worker starts, and not for the sockets.
    ///
    /// # Errors
    ///
    /// * [`is_invalid_input`](crate::Error::is_invalid_input) without a kind, for one that
    ///   is there twice or has no closure, and for marks that are out of order or over
    ///   65,536.
    /// * As [`Executor::pin`]; and when it cannot be heard of the namespace's deletion: no
    ///   `/proc`, no descriptor left.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns};
    /// use netns_exec::net::{SocketKind, SocketStock};
    ///
    /// let stock = SocketStock::builder()
    ///     .kinds([SocketKind::Tcp4])
    ///     .build(&Executor::new()?, &Netns::current()?)?;
    /// // Filled beside the caller; this waits for it.
    /// stock.fill()?;
    /// assert_eq!(stock.on_hand(SocketKind::Tcp4), 64);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn build(self, executor: &Executor, netns: &Netns) -> Result<SocketStock> {
        let makers = self.makers()?;
        self.build_on(executor.pin(netns)?, netns, makers)
    }

    pub(super) fn build_on(
        self,
        pinned: Pinned,
        netns: &Netns,
        makers: Arc<[Maker]>,
    ) -> Result<SocketStock> {
        let shelf = Arc::new(Shelf::new(makers.len(), self.low, self.high));
        let pool = pinned.executor().registry().pool();
        let spare: Weak<Shelf> = Arc::downgrade(&shelf);
        let watched = Weak::clone(&spare);
        spare::enlist(pool.key, netns.id(), spare);
        let close = move || {
            if let Some(shelf) = watched.upgrade() {
                shelf.close();
            }
        };
        let subscription = watch::on_lost_name(netns, netns.had_name(), close)?;
        let stock = SocketStock {
            inner: Arc::new(Inner {
                shelf,
                makers,
                idle: self.idle,
                subscription: Some(subscription),
                pinned,
            }),
        };
        stock.inner.send_refill();
        Ok(stock)
    }

    /// How each kind is made, if all that was asked for makes sense.
    pub(super) fn makers(&self) -> Result<Arc<[Maker]>> {
        const MOST: usize = 1 << 16;
        let nonsense = |what: String| Error::new(Kind::Invalid, format!("invalid stock: {what}"));
        let (low, high) = (self.low, self.high);
        if self.kinds.is_empty() {
            return Err(nonsense("it has no kind of sockets".to_owned()));
        }
        if low >= high {
            let what = format!("the low mark, {low}, is not below the high one, {high}");
            return Err(nonsense(what));
        }
        if high > MOST {
            return Err(nonsense("its high mark is over 65,536".to_owned()));
        }
        let maker = |(index, (kind, make)): (usize, &(SocketKind, Option<Make>))| {
            if self.kinds[..index].iter().any(|(other, _)| other == kind) {
                return Err(nonsense(format!("{kind:?} is there twice")));
            }
            let nonblocking = self.nonblocking;
            let make = match (make, kind.spec()) {
                (Some(make), _) => Arc::clone(make),
                (None, Some(spec)) => Arc::new(move || spec.open(nonblocking)),
                (None, None) => return Err(nonsense(format!("{kind:?} has no closure"))),
            };
            Ok(Maker { kind: *kind, make })
        };
        self.kinds.iter().enumerate().map(maker).collect()
    }
}

impl fmt::Debug for StockBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.kinds.iter().map(|(kind, _)| kind).collect();
        f.debug_struct("StockBuilder")
            .field("kinds", &kinds)
            .field("marks", &(self.low, self.high))
            .field("idle_timeout", &self.idle)
            .field("nonblocking", &self.nonblocking)
            .finish()
    }
}
