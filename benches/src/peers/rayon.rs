//! A rayon pool of one thread, started inside the namespace.

use super::peer::{Flood, Peer, Setup};
use super::ship::{Post, Poster, Ship, Shipper};
use crate::Result;
use crate::conditions::namespace::enter_first;

struct Rayon(::rayon::ThreadPool);

impl Rayon {
    fn new(setup: &Setup<'_>) -> Result<Rayon> {
        let first = enter_first(setup.netns);
        let pool = ::rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .start_handler(move |_| first())
            .build()?;
        Ok(Rayon(pool))
    }
}

pub(super) fn call(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(Rayon::new(setup)?)))
}

pub(super) fn flood(setup: &Setup<'_>) -> Result<Box<dyn Flood>> {
    Ok(Box::new(Poster(Rayon::new(setup)?)))
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
