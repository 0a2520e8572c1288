//! A tokio runtime with one blocking thread, started inside the namespace.

use std::time::Duration;

use super::peer::{Flood, Peer, Setup};
use super::ship::{Post, Poster, Ship, Shipper};
use crate::Result;
use crate::conditions::namespace::enter_first;

struct Tokio(::tokio::runtime::Runtime);

impl Tokio {
    fn new(setup: &Setup<'_>) -> Result<Tokio> {
        let runtime = ::tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            // Longer than any run: it must not leave between two turns.
            .thread_keep_alive(Duration::from_secs(24 * 3600))
            .on_thread_start(enter_first(setup.netns))
            .build()?;
        Ok(Tokio(runtime))
    }
}

pub(super) fn call(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(Tokio::new(setup)?)))
}

pub(super) fn flood(setup: &Setup<'_>) -> Result<Box<dyn Flood>> {
    Ok(Box::new(Poster(Tokio::new(setup)?)))
}

impl Ship for Tokio {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        (self.0.block_on(self.0.spawn_blocking(f))).expect("the closure does not panic")
    }
}

impl Post for Tokio {
    fn post(&self, f: impl FnOnce() + Send + 'static) {
        drop(self.0.spawn_blocking(f));
    }
}
