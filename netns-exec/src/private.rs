//! What is public for this repository's own use only, and may change with any
//! release: what the code that `#[in_netns]` writes calls (the macro's version is
//! tied to this crate's), and what the command and the benches share.

use std::future::Future;
use std::marker::PhantomData;
#[cfg(feature = "ports")]
use std::ops::RangeInclusive;
use std::panic::resume_unwind;
use std::path::Path;

use crate::error::{Error, Result};
use crate::executor::{Executor, JoinHandle};
use crate::netns::{Netns, NetnsId};
#[cfg(feature = "ports")]
use crate::ports;

pub use crate::error::reason;

pub fn open(name: impl AsRef<str>) -> Result<Netns> {
    Netns::open(name.as_ref())
}

pub fn from_path(path: impl AsRef<Path>) -> Result<Netns> {
    Netns::from_path(path)
}

pub fn from_pid(pid: u32) -> Result<Netns> {
    Netns::from_pid(pid)
}

/// A handle of our own, because the expression may borrow from an argument
/// that the body takes, or from a `self` that it changes.
pub fn netns(ns: &Netns) -> Result<Netns> {
    Ok(ns.clone())
}

/// As for [`netns`].
pub fn executor(executor: &Executor) -> Executor {
    executor.clone()
}

pub fn global_executor() -> &'static Executor {
    Executor::global()
}

/// Takes the namespace's `Result`, so that a failure to open it and one to
/// enter it end in the same place.
pub fn run<T: Send>(
    executor: &Executor,
    ns: Result<Netns>,
    body: impl FnOnce() -> T + Send,
) -> Result<T> {
    executor.run(&ns?, body)
}

/// Runs `body` in a namespace made for it, with the loopback up.
pub fn run_fresh<T: Send>(executor: &Executor, body: impl FnOnce() -> T + Send) -> Result<T> {
    let fresh = Fresh {
        ns: Netns::new()?,
        executor,
        waits: Waits::Yes,
    };
    fresh.ns.set_loopback_up()?;
    executor.run(&fresh.ns, body)
}

/// Retires the workers of a fresh namespace, also when the body panicked or is not awaited
/// any more: otherwise the namespace would live on until they have idled away.
struct Fresh<'a> {
    ns: Netns,
    executor: &'a Executor,
    waits: Waits,
}

/// Whether the caller waits until the workers are gone: not on a runtime's thread.
enum Waits {
    Yes,
    No,
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        let retired = match self.waits {
            Waits::Yes => self.executor.retire(&self.ns),
            Waits::No => self.executor.begin_retire(&self.ns),
        };
        if let Err(error) = retired {
            tracing::warn!(netns = self.ns.label(), %error, "fresh netns lives on");
        }
    }
}

/// Asks of an argument what the body of an `async fn` needs, where the argument is.
pub fn owned<T: Send + 'static>(_: &T) {}

/// The same of what it returns.
pub fn sendable<T: Send + 'static>() {}

/// As [`run`], for the body of an `async fn`.
pub async fn run_future<F>(executor: &Executor, ns: Result<Netns>, body: F) -> Result<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let mut body = Awaited(executor.spawn_future(&ns?, body));
    match (&mut body.0).await {
        // As in a plain function.
        Err(error) if error.is_panic() => {
            resume_unwind(error.into_panic().expect("a panic has a payload"))
        }
        outcome => outcome,
    }
}

/// As [`run_fresh`], for the body of an `async fn`: the namespace is awaited too.
pub async fn run_future_fresh<F>(executor: &Executor, body: F) -> Result<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let fresh = Fresh {
        ns: Netns::new_async().await?,
        executor,
        waits: Waits::No,
    };
    fresh.ns.set_loopback_up_async().await?;
    run_future(executor, Ok(fresh.ns.clone()), body).await
}

/// A body that is cancelled when its caller stops waiting.
struct Awaited<T>(JoinHandle<T>);

impl<T> Drop for Awaited<T> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Stands for the return type `T`, of which the macro sees only the tokens;
/// the compiler knows whether a failure can be returned through it.
///
/// `(&failure).end(error)` is [`ReturnFailure::end`] where `T` is a
/// `Result<_, E>` with `E: From<Error>`, because that takes one reference less
/// and method look-up tries it first, and [`PanicWithFailure::end`] otherwise:
/// for every other type, and where `T` is generic and nothing is known of it.
pub struct Failure<T>(PhantomData<fn() -> T>);

impl<T> Failure<T> {
    /// Takes the type from a value, for what cannot be written down: with
    /// `-> Result<impl Iterator, E>` the compiler still finds `Result`.
    pub fn of(_: &Result<T>) -> Self {
        Failure(PhantomData)
    }
}

pub trait ReturnFailure<T> {
    fn end(&self, error: Error) -> T;
}

impl<T, E: From<Error>> ReturnFailure<Result<T, E>> for Failure<Result<T, E>> {
    fn end(&self, error: Error) -> Result<T, E> {
        Err(E::from(error))
    }
}

pub trait PanicWithFailure<T> {
    fn end(&self, error: Error) -> T;
}

impl<T> PanicWithFailure<T> for &Failure<T> {
    /// The location is that of the annotated function, or of its caller where
    /// it is `#[track_caller]` itself.
    #[track_caller]
    fn end(&self, error: Error) -> T {
        panic!("{error}")
    }
}

/// For a benchmark: leases every port of a range in the logical table of an
/// allocator, without any socket, and gives all of them back.
#[cfg(feature = "ports")]
pub fn fill_and_empty_port_table(netns: NetnsId, range: RangeInclusive<u16>) {
    ports::fill_and_empty_table(netns, range);
}
