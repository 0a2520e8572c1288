//! Sockets made ahead of use.

mod awaited;
mod builder;

pub use builder::StockBuilder;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::keeper;
use super::shelf::{self, Shelf};
use super::socket::Spec;
use crate::error::{Error, Kind, Result};
use crate::executor::{Pinned, current, spare};
use crate::netns::NetnsId;
use crate::netns::watch::Subscription;
use crate::sys::{self, has_run_out};

/// A kind of socket that a [`SocketStock`] has.
///
/// # Examples
///
/// ```
/// use netns_exec::{Executor, Netns};
/// use netns_exec::net::{SocketKind, SocketStock};
///
/// let stock = SocketStock::builder()
///     .kinds([SocketKind::Tcp4, SocketKind::Tcp6])
///     .build(&Executor::new()?, &Netns::current()?)?;
/// let peer: std::net::SocketAddr = "192.0.2.1:443".parse().unwrap();
/// let socket = stock.take(match peer.is_ipv4() {
///     true => SocketKind::Tcp4,
///     false => SocketKind::Tcp6,
/// })?;
/// # let _ = socket;
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
    /// Made by a closure, see [`StockBuilder::custom`].
    Custom(&'static str),
}

impl SocketKind {
    fn spec(self) -> Option<Spec> {
        Some(match self {
            SocketKind::Tcp4 => Spec::TCP4,
            SocketKind::Tcp6 => Spec::TCP6,
            SocketKind::Udp4 => Spec::UDP4,
            SocketKind::Udp6 => Spec::UDP6,
            SocketKind::Custom(_) => return None,
        })
    }
}

type Make = Arc<dyn Fn() -> io::Result<OwnedFd> + Send + Sync>;

/// How sockets of one kind are made.
#[derive(Clone)]
struct Maker {
    kind: SocketKind,
    make: Make,
}

impl Maker {
    /// Makes a socket in the calling thread's namespace.
    fn make(&self) -> io::Result<OwnedFd> {
        let socket = (self.make)()?;
        if self.kind.spec().is_none() {
            sys::socket::set_cloexec(&socket)?;
        }
        Ok(socket)
    }
}

/// Sockets of one namespace, made ahead of use: for a proxy that opens a socket for each
/// connection.
///
/// To open a socket in another namespace takes a trip: two changes of the thread's
/// namespace, or a hand-over to a worker and back. But a socket stays in the namespace
/// that it was made in, whichever thread uses it. So a worker makes some ahead, and
/// taking one is a pop from a lock-free queue.
///
/// What is taken was never bound or connected, is closed on exec, and is an [`OwnedFd`],
/// which the standard library's types, socket2's and every runtime's are made from.
///
/// # How it fills and empties
///
/// * [Built](StockBuilder::build), it is filled by the namespace's worker, which stays
///   for it, as with a [`Pinned`]. The caller that takes the socket after
///   which there are no more than the [low mark](StockBuilder::marks) wakes that worker,
///   which fills up to the high one; there is one refill at a time, and it lets calls
///   that wait for the worker go first.
/// * Empty, it has a worker make the socket on the spot, and a refill begins.
/// * It closes what it has when nothing was taken for the
///   [idle time](StockBuilder::idle_timeout), and when the process has run out of
///   descriptors: then each stock of the process does so.
/// * Sockets keep their namespace alive, as threads do. So it closes them as soon as the
///   namespace loses its last name, or is [retired](crate::Executor::retire), or the executor
///   shut down, and has no more made ahead from then on: sockets are made on the spot
///   for as long as there is a namespace to make them in. A namespace that never had a
///   name lives as long as the stock has sockets of it.
/// * All stocks of a process together have no more sockets than a
///   [limit](SocketStock::set_process_limit).
///
/// Clones share one stock. The last one's drop closes its sockets.
///
/// # Examples
///
/// ```no_run
/// use std::net::TcpStream;
/// use netns_exec::{Executor, Netns};
/// use netns_exec::net::{SocketKind, SocketStock};
///
/// let (executor, blue) = (Executor::new()?, Netns::open("blue")?);
/// let stock = SocketStock::builder()
///     .kinds([SocketKind::Tcp4, SocketKind::Tcp6])
///     .nonblocking(true)
///     .build(&executor, &blue)?;
/// let socket = stock.take(SocketKind::Tcp4)?;
/// // `socket2::Socket::from(socket)`, or for tokio
/// // `TcpSocket::from_std_stream(TcpStream::from(socket)).connect(peer).await?`.
/// let socket = TcpStream::from(socket);
/// # let _ = socket;
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone)]
pub struct SocketStock {
    inner: Arc<Inner>,
}

struct Inner {
    shelf: Arc<Shelf>,
    makers: Arc<[Maker]>,
    idle: Option<Duration>,
    /// Until the drop.
    subscription: Option<Subscription>,
    pinned: Pinned,
}

impl SocketStock {
    /// Configures a stock.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// use netns_exec::net::{SocketKind, SocketStock};
    ///
    /// # let (executor, blue) = (Executor::new()?, Netns::open("blue")?);
    /// let stock = SocketStock::builder().kinds([SocketKind::Udp4]).build(&executor, &blue)?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn builder() -> StockBuilder {
        StockBuilder::new()
    }

    /// Takes a socket.
    ///
    /// # Blocking
    ///
    /// Takes no lock and waits for nothing when there is a socket. Otherwise as
    /// [`Executor::run`](crate::Executor::run), for the time of socket(2). The caller that
    /// finds the stock low wakes the worker; where a job has spoiled that one, a thread at
    /// home waits for the next.
    ///
    /// # Errors
    ///
    /// * [`is_invalid_input`](crate::Error::is_invalid_input) for a kind that the stock
    ///   was not built with.
    /// * When it is empty: as [`Pinned::run`]; and the errno of
    ///   socket(2). `EMFILE` comes only when there was nothing left to close.
    ///
    /// # Panics
    ///
    /// When it is empty: with the panic of a [`custom`](StockBuilder::custom) closure.
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
    ///     .build(&Executor::new()?, &Netns::current()?)?;
    /// let socket = UdpSocket::from(stock.take(SocketKind::Udp4)?);
    /// assert!(stock.take(SocketKind::Tcp6).unwrap_err().is_invalid_input());
    /// # let _ = socket;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    #[inline]
    pub fn take(&self, kind: SocketKind) -> Result<OwnedFd> {
        let index = self.index(kind)?;
        match self.pop(index) {
            Some(socket) => Ok(socket),
            None => self.make(index),
        }
    }

    /// Fills it up to the high mark, as far as the limits allow, and waits for that: for
    /// a proxy that wants its first connections to be fast as well.
    ///
    /// # Blocking
    ///
    /// As [`Executor::run`](crate::Executor::run), for the time that the sockets take.
    ///
    /// # Errors
    ///
    /// As [`Pinned::run`]; and the errno when a socket could not be made. The other kinds
    /// are filled nevertheless.
    ///
    /// # Panics
    ///
    /// With the panic of a [`custom`](StockBuilder::custom) closure.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::net::{SocketKind, SocketStock};
    /// # fn f(stock: &SocketStock) -> netns_exec::Result<()> {
    /// stock.fill()?;
    /// assert!(stock.on_hand(SocketKind::Tcp4) > 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn fill(&self) -> Result<()> {
        let inner = &self.inner;
        let filled = (inner.pinned).run(|| inner.makers.fill(&inner.shelf, || false))?;
        inner.makers.keep(&inner.shelf, inner.idle);
        let filled = filled.map_err(|(index, cause)| inner.failed(index, cause));
        filled.map(drop)
    }

    /// Tells how many sockets of a kind it has just now.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::net::{SocketKind, SocketStock};
    /// # fn f(stock: &SocketStock) {
    /// println!("{} of {}", stock.on_hand(SocketKind::Tcp4), SocketStock::process_total());
    /// # }
    /// ```
    pub fn on_hand(&self, kind: SocketKind) -> usize {
        self.index(kind)
            .map_or(0, |index| self.inner.shelf.count(index))
    }

    /// Returns the namespace's id.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Netns, net::SocketStock};
    /// # fn f(stock: &SocketStock, blue: &Netns) {
    /// assert_eq!(stock.id(), blue.id());
    /// # }
    /// ```
    pub fn id(&self) -> NetnsId {
        self.inner.pinned.id()
    }

    /// Tells how many sockets all stocks of this process have just now.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::net::SocketStock;
    ///
    /// assert_eq!(SocketStock::process_total(), 0);
    /// ```
    pub fn process_total() -> usize {
        shelf::total()
    }

    /// Sets how many sockets all stocks of this process have together at most. Default: a
    /// quarter of the limit of open files (`RLIMIT_NOFILE`) that holds when the first one
    /// is made.
    ///
    /// Stocks that have more already keep it until it is taken.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::net::SocketStock;
    ///
    /// SocketStock::set_process_limit(4096);
    /// ```
    pub fn set_process_limit(sockets: usize) {
        shelf::set_limit(sockets);
    }

    #[inline]
    fn index(&self, kind: SocketKind) -> Result<usize> {
        // In a copy of the process the sockets are the parent's as well.
        current::check_may_wait()?;
        let mut makers = self.inner.makers.iter();
        let index = makers.position(|maker| maker.kind == kind);
        index.ok_or_else(|| {
            let what = format!("invalid kind of socket: the stock was not built with {kind:?}");
            Error::new(Kind::Invalid, what)
        })
    }

    #[inline]
    fn pop(&self, index: usize) -> Option<OwnedFd> {
        let shelf = &self.inner.shelf;
        let socket = shelf.take(index)?;
        if shelf.is_low(index) {
            self.inner.refill(index);
        }
        Some(socket)
    }

    #[cold]
    fn make(&self, index: usize) -> Result<OwnedFd> {
        let inner = &self.inner;
        let make = || inner.pinned.run(|| inner.makers[index].make());
        let before = spare::given_up();
        let mut made = make()?;
        if (made.as_ref()).is_err_and(has_run_out) && spare::run_out(before) {
            made = make()?;
        }
        // Not before: the worker turns to the caller that waits first.
        inner.refill(index);
        made.map_err(|cause| inner.failed(index, cause))
    }
}

impl Inner {
    /// Has the worker make more sockets, if it is time for that.
    fn refill(self: &Arc<Self>, index: usize) {
        if self.shelf.is_low(index) {
            self.send_refill();
        }
    }

    fn send_refill(self: &Arc<Self>) {
        if !self.shelf.begin_refill() {
            return;
        }
        let refill = Refill {
            shelf: Arc::clone(&self.shelf),
            makers: Arc::clone(&self.makers),
            idle: self.idle,
            stock: Arc::downgrade(self),
            has_run: false,
        };
        // Refused, it is the next caller's to try again.
        self.pinned.send(move || refill.run());
    }

    fn failed(&self, index: usize, cause: io::Error) -> Error {
        let (kind, label) = (self.makers[index].kind, self.pinned.label());
        Error::kernel(
            format!("cannot make a {kind:?} socket in netns `{label}`"),
            cause,
        )
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let subscription = self.subscription.take();
        if current::check_may_wait().is_err() {
            // In a copy of the process there is no watch, and its lock may be held.
            std::mem::forget(subscription);
            return;
        }
        drop(subscription);
        self.shelf.close();
        keeper::forget(&self.shelf);
    }
}

/// The job that fills a stock. Its drop, be it unrun, lets another one begin.
struct Refill {
    shelf: Arc<Shelf>,
    makers: Arc<[Maker]>,
    idle: Option<Duration>,
    stock: Weak<Inner>,
    has_run: bool,
}

impl Refill {
    fn run(mut self) {
        self.has_run = true;
        // What fails rests for a while; callers that find the stock empty are told why.
        let filled = self.makers.fill(&self.shelf, current::is_wanted);
        self.makers.keep(&self.shelf, self.idle);
        let stock = self.stock.upgrade();
        drop(self);
        if let (Ok(Filled::InPart), Some(stock)) = (filled, stock) {
            // Behind the calls that wait for this worker.
            stock.send_refill();
        }
    }
}

impl Drop for Refill {
    fn drop(&mut self) {
        // One that was refused would be refused again.
        if self.shelf.end_refill()
            && self.has_run
            && let Some(stock) = self.stock.upgrade()
        {
            stock.send_refill();
        }
    }
}

/// How far a stock has been filled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filled {
    All,
    /// The worker had something else to do.
    InPart,
}

trait Makers {
    /// Makes sockets until there are enough, or `stop` says so. With an error, the kind
    /// that it was of: its others are filled all the same.
    fn fill(&self, shelf: &Shelf, stop: impl Fn() -> bool) -> Result<Filled, (usize, io::Error)>;

    /// Sees to it that what was made is closed again when it is not used.
    fn keep(&self, shelf: &Arc<Shelf>, idle: Option<Duration>);
}

impl Makers for [Maker] {
    fn fill(&self, shelf: &Shelf, stop: impl Fn() -> bool) -> Result<Filled, (usize, io::Error)> {
        let (mut failure, mut panic) = (Ok(()), None);
        for (index, maker) in self.iter().enumerate() {
            while shelf.has_room(index) && shelf::total() < shelf::limit() {
                match catch_unwind(AssertUnwindSafe(|| maker.make())) {
                    Ok(Ok(socket)) => {
                        if !shelf.put(index, socket) {
                            break;
                        }
                    }
                    Ok(Err(cause)) => {
                        shelf.rest(index);
                        if has_run_out(&cause) {
                            spare::run_out(spare::given_up());
                            return Err((index, cause));
                        }
                        failure = Err((index, cause));
                    }
                    Err(payload) => {
                        shelf.rest(index);
                        panic = Some(payload);
                    }
                }
                if stop() {
                    return Ok(Filled::InPart);
                }
            }
        }
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        failure.map(|()| Filled::All)
    }

    fn keep(&self, shelf: &Arc<Shelf>, idle: Option<Duration>) {
        if let Some(idle) = idle
            && !keeper::keep(shelf, idle)
        {
            // Without a thread that would close them they are not kept.
            shelf.empty();
        }
    }
}

impl fmt::Debug for SocketStock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_hand = |index| self.inner.shelf.count(index);
        let makers = self.inner.makers.iter().enumerate();
        f.debug_struct("SocketStock")
            .field("netns", &self.inner.pinned.label())
            .field(
                "on_hand",
                &makers
                    .map(|(index, maker)| (maker.kind, on_hand(index)))
                    .collect::<Vec<_>>(),
            )
            .finish_non_exhaustive()
    }
}
