//! PLACEHOLDER, replaced by the real executor: a thread per call, same signatures.
#![allow(missing_docs)]
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::guard::Guard;
use crate::netns::Netns;
use crate::sys;

#[derive(Clone)]
pub struct Executor {}
pub struct Builder {}
pub struct Pinned {
    ns: Netns,
}
pub struct JoinHandle<T>(std::thread::JoinHandle<Result<T>>);
pub struct Scope<'s, 'env> {
    _m: PhantomData<(&'s (), &'env ())>,
}
#[non_exhaustive]
#[derive(Debug)]
pub enum TrySpawnError<F> {
    Full(F),
    Failed(Error, F),
}

impl Executor {
    pub fn new() -> Result<Executor> {
        Ok(Executor {})
    }
    pub fn builder() -> Builder {
        Builder {}
    }
    pub fn global() -> &'static Executor {
        static G: OnceLock<Executor> = OnceLock::new();
        G.get_or_init(|| Executor {})
    }
    pub fn run<T: Send>(&self, ns: &Netns, f: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|s| {
            s.spawn(|| {
                sys::netns::enter(ns)
                    .map_err(|e| Error::kernel(format!("cannot enter netns `{ns}`"), e))?;
                Ok(f())
            })
            .join()
            .unwrap_or_else(|p| std::panic::resume_unwind(p))
        })
    }
    pub fn spawn<T: Send + 'static>(
        &self,
        ns: &Netns,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let ns = ns.clone();
        Ok(JoinHandle(std::thread::spawn(move || {
            sys::netns::enter(&ns)
                .map_err(|e| Error::kernel(format!("cannot enter netns `{ns}`"), e))?;
            Ok(f())
        })))
    }
    pub fn try_spawn<F, T>(&self, ns: &Netns, f: F) -> Result<JoinHandle<T>, TrySpawnError<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.spawn(ns, f).map_err(|_| unreachable!("placeholder"))
    }
    pub fn pin(&self, ns: &Netns) -> Result<Pinned> {
        Ok(Pinned { ns: ns.clone() })
    }
    pub fn retire(&self, _ns: &Netns) -> Result<()> {
        Ok(())
    }
    pub fn shutdown(self, _timeout: Option<Duration>) -> Result<()> {
        Ok(())
    }
}
impl Pinned {
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        Executor {}.run(&self.ns, f)
    }
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        Executor {}.spawn(&self.ns, f)
    }
}
impl Builder {
    pub fn workers_per_netns(self, _n: usize) -> Self {
        self
    }
    pub fn guard(self, _g: Guard) -> Self {
        self
    }
    pub fn build(self) -> Result<Executor> {
        Ok(Executor {})
    }
}
impl<T> JoinHandle<T> {
    pub fn join(self) -> Result<T> {
        self.0
            .join()
            .unwrap_or_else(|p| Err(Error::panicked("job panicked", p)))
    }
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
    pub fn cancel(&self) -> bool {
        false
    }
}
impl<T> Future for JoinHandle<T> {
    type Output = Result<T>;
    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Err(Error::new(Kind::Cancelled, "placeholder")))
    }
}
pub fn run<T: Send>(ns: &Netns, f: impl FnOnce() -> T + Send) -> Result<T> {
    Executor::global().run(ns, f)
}
pub fn spawn<T: Send + 'static>(
    ns: &Netns,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    Executor::global().spawn(ns, f)
}
