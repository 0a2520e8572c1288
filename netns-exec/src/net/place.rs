//! Where a socket is made: whatever can run a closure in one namespace.

use crate::error::Result;
use crate::executor::{Executor, JoinHandle, Pinned};
use crate::netns::Netns;

/// A namespace and what runs closures in it: where a socket is made.
///
/// * `&Netns`: on the [global executor](Executor::global);
/// * `(&Executor, &Netns)`: on that executor;
/// * `&Pinned`: on workers that stay, found without a look-up;
/// * [`nonblocking`] of one of these: the socket does not block.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Executor, Netns, net};
///
/// let (executor, blue) = (Executor::new()?, Netns::open("blue")?);
/// let pinned = executor.pin(&blue)?;
/// let one = net::udp_bind(&blue, ([0, 0, 0, 0], 0))?;
/// let two = net::udp_bind((&executor, &blue), ([0, 0, 0, 0], 0))?;
/// let three = net::udp_bind(&pinned, ([0, 0, 0, 0], 0))?;
/// let four = net::udp_bind(net::nonblocking(&pinned), ([0, 0, 0, 0], 0))?;
/// # let _ = (one, two, three, four);
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub trait Place: sealed::Runs {}

impl<P: sealed::Runs> Place for P {}

pub(super) mod sealed {
    use super::*;

    pub trait Runs: Sync {
        fn run_there<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T>;

        fn spawn_there<T: Send + 'static>(
            &self,
            f: impl FnOnce() -> T + Send + 'static,
        ) -> impl Future<Output = Result<JoinHandle<T>>> + Send;

        fn name(&self) -> &str;

        fn is_nonblocking(&self) -> bool {
            false
        }
    }
}

use sealed::Runs;

impl Runs for Netns {
    fn run_there<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        Executor::global().run(self, f)
    }

    fn spawn_there<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<JoinHandle<T>>> + Send {
        Executor::global().spawn_async(self, f)
    }

    fn name(&self) -> &str {
        self.label()
    }
}

impl Runs for (&Executor, &Netns) {
    fn run_there<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.0.run(self.1, f)
    }

    fn spawn_there<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<JoinHandle<T>>> + Send {
        self.0.spawn_async(self.1, f)
    }

    fn name(&self) -> &str {
        self.1.label()
    }
}

impl Runs for Pinned {
    fn run_there<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.run(f)
    }

    fn spawn_there<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<JoinHandle<T>>> + Send {
        self.spawn_async(f)
    }

    fn name(&self) -> &str {
        self.label()
    }
}

impl<P: Runs> Runs for &P {
    fn run_there<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        (**self).run_there(f)
    }

    fn spawn_there<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<JoinHandle<T>>> + Send {
        (**self).spawn_there(f)
    }

    fn name(&self) -> &str {
        (**self).name()
    }

    fn is_nonblocking(&self) -> bool {
        (**self).is_nonblocking()
    }
}

/// A [`Place`] whose sockets do not block, see [`nonblocking`].
///
/// # Examples
///
/// ```no_run
/// use netns_exec::Netns;
/// use netns_exec::net::{self, NonBlocking};
///
/// /// All of this program's sockets go to a runtime.
/// fn place(netns: &Netns) -> NonBlocking<&Netns> {
///     net::nonblocking(netns)
/// }
/// let blue = Netns::open("blue")?;
/// let listener = net::tcp_listen(place(&blue), ([0, 0, 0, 0], 80))?;
/// # let _ = listener;
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct NonBlocking<P>(P);

/// Has the sockets that are made at `place` not block (`O_NONBLOCK`), as runtimes want
/// them.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Netns, net};
///
/// let blue = Netns::open("blue")?;
/// let listener = net::tcp_listen(net::nonblocking(&blue), ([127, 0, 0, 1], 80))?;
/// assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn nonblocking<P: Place>(place: P) -> NonBlocking<P> {
    NonBlocking(place)
}

impl<P: Runs> Runs for NonBlocking<P> {
    fn run_there<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.0.run_there(f)
    }

    fn spawn_there<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<JoinHandle<T>>> + Send {
        self.0.spawn_there(f)
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn is_nonblocking(&self) -> bool {
        true
    }
}
