//! A thread of one's own behind a std channel: boxed closures go there, and a
//! channel per call brings the result back.

use std::sync::mpsc;

use super::channel_worker::{DEPTH, GONE, Job, Worker};
use super::peer::{Flood, Peer, Setup};
use super::ship::{Post, Poster, Ship, Shipper};
use crate::Result;

struct Std(Worker<mpsc::SyncSender<Job>>);

impl Std {
    fn new(setup: &Setup<'_>) -> Result<Std> {
        let (jobs, received) = mpsc::sync_channel::<Job>(DEPTH);
        Ok(Std(Worker::start(setup.netns, jobs, received)?))
    }
}

pub(super) fn call(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(Std::new(setup)?)))
}

pub(super) fn flood(setup: &Setup<'_>) -> Result<Box<dyn Flood>> {
    Ok(Box::new(Poster(Std::new(setup)?)))
}

impl Ship for Std {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = mpsc::sync_channel(1);
        self.post(move || {
            // Fails when the caller is gone, and it is not: it waits below.
            let _ = reply.send(f());
        });
        answer.recv().expect(GONE)
    }
}

impl Post for Std {
    fn post(&self, f: impl FnOnce() + Send + 'static) {
        self.0.jobs().send(Box::new(f)).expect(GONE);
    }
}
