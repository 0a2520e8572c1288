//! The same as `std_channel` with the faster channel.

use ::crossbeam_channel::{Sender, bounded};

use super::channel_worker::{DEPTH, GONE, Job, Worker};
use super::peer::{Flood, Peer, Setup};
use super::ship::{Post, Poster, Ship, Shipper};
use crate::Result;

struct Crossbeam(Worker<Sender<Job>>);

impl Crossbeam {
    fn new(setup: &Setup<'_>) -> Result<Crossbeam> {
        let (jobs, received) = bounded::<Job>(DEPTH);
        Ok(Crossbeam(Worker::start(setup.netns, jobs, received)?))
    }
}

pub(super) fn call(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(Crossbeam::new(setup)?)))
}

pub(super) fn flood(setup: &Setup<'_>) -> Result<Box<dyn Flood>> {
    Ok(Box::new(Poster(Crossbeam::new(setup)?)))
}

impl Ship for Crossbeam {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = bounded(1);
        self.post(move || {
            // Fails when the caller is gone, and it is not: it waits below.
            let _ = reply.send(f());
        });
        answer.recv().expect(GONE)
    }
}

impl Post for Crossbeam {
    fn post(&self, f: impl FnOnce() + Send + 'static) {
        self.0.jobs().send(Box::new(f)).expect(GONE);
    }
}
