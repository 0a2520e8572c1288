//! Pools of others, started inside the namespace.

use std::time::Duration;

use netns_exec::Netns;

use super::ship::{Post, Poster, Ship, Shipper};
use super::{Flood, Peer, Site};
use crate::Result;
use crate::conditions::namespace::enter;

/// What a pool runs on each of its threads before anything else.
fn enter_first(netns: &Netns) -> impl Fn() + Send + Sync + 'static {
    let netns = netns.clone();
    move || enter(&netns).expect("the namespace can be entered")
}

struct Rayon(rayon::ThreadPool);

impl Rayon {
    fn new(site: &Site<'_>) -> Result<Rayon> {
        let first = enter_first(site.netns);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .start_handler(move |_| first())
            .build()?;
        Ok(Rayon(pool))
    }
}

pub(super) fn rayon(site: &Site<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(Rayon::new(site)?)))
}

pub(super) fn rayon_flood(site: &Site<'_>) -> Result<Box<dyn Flood>> {
    Ok(Box::new(Poster(Rayon::new(site)?)))
}

impl Ship for Rayon {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.0.install(f)
    }
}

impl Post for Rayon {
    fn post(&self, f: impl FnOnce() + Send + 'static) {
        self.0.spawn_fifo(f);
    }
}

struct Tokio(tokio::runtime::Runtime);

impl Tokio {
    fn new(site: &Site<'_>) -> Result<Tokio> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            // Longer than any run: it must not leave between two turns.
            .thread_keep_alive(Duration::from_secs(24 * 3600))
            .on_thread_start(enter_first(site.netns))
            .build()?;
        Ok(Tokio(runtime))
    }
}

pub(super) fn tokio(site: &Site<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(Tokio::new(site)?)))
}

pub(super) fn tokio_flood(site: &Site<'_>) -> Result<Box<dyn Flood>> {
    Ok(Box::new(Poster(Tokio::new(site)?)))
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
