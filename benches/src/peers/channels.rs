//! A thread of one's own with a channel to it: boxed closures there, a channel
//! per call back.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use netns_exec::Netns;

use super::ship::{Post, Poster, Ship, Shipper};
use super::{Flood, Peer, Site};
use crate::Result;
use crate::conditions::namespace::enter;

type Job = Box<dyn FnOnce() + Send>;

/// As long as the queue of our own workers.
const DEPTH: usize = 64;

/// One half of a channel of jobs and the thread at its other end.
struct Worker<S> {
    /// `None` only while it is dropped: the thread ends when nobody can send.
    jobs: Option<S>,
    thread: Option<JoinHandle<()>>,
}

impl<S> Worker<S> {
    fn start(
        netns: &Netns,
        jobs: S,
        received: impl IntoIterator<Item = Job> + Send + 'static,
    ) -> Result<Worker<S>> {
        let netns = netns.clone();
        let thread = thread::Builder::new()
            .name("peer/channel".into())
            .spawn(move || {
                enter(&netns).expect("the namespace can be entered");
                for job in received {
                    job();
                }
            })?;
        Ok(Worker {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    fn jobs(&self) -> &S {
        self.jobs.as_ref().expect("taken in drop only")
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // Its panic was shown when it happened, and ended the bench.
            let _ = thread.join();
        }
    }
}

const GONE: &str = "the worker serves until it is dropped";

struct Std(Worker<mpsc::SyncSender<Job>>);

impl Std {
    fn new(site: &Site<'_>) -> Result<Std> {
        let (jobs, received) = mpsc::sync_channel::<Job>(DEPTH);
        Ok(Std(Worker::start(site.netns, jobs, received)?))
    }
}

pub(super) fn std(site: &Site<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(Std::new(site)?)))
}

pub(super) fn std_flood(site: &Site<'_>) -> Result<Box<dyn Flood>> {
    Ok(Box::new(Poster(Std::new(site)?)))
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

struct Crossbeam(Worker<crossbeam_channel::Sender<Job>>);

impl Crossbeam {
    fn new(site: &Site<'_>) -> Result<Crossbeam> {
        let (jobs, received) = crossbeam_channel::bounded::<Job>(DEPTH);
        Ok(Crossbeam(Worker::start(site.netns, jobs, received)?))
    }
}

pub(super) fn crossbeam(site: &Site<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(Crossbeam::new(site)?)))
}

pub(super) fn crossbeam_flood(site: &Site<'_>) -> Result<Box<dyn Flood>> {
    Ok(Box::new(Poster(Crossbeam::new(site)?)))
}

impl Ship for Crossbeam {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = crossbeam_channel::bounded(1);
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
