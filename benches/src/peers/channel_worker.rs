//! The thread at the other end of a channel of boxed closures.

use std::thread::{self, JoinHandle};

use netns_exec::Netns;

use crate::Result;
use crate::conditions::namespace::enter;

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// As long as the queue of our own workers.
pub(super) const DEPTH: usize = 64;

/// One half of a channel of jobs and the thread at its other end.
pub(super) struct Worker<S> {
    /// `None` only while it is dropped: the thread ends when the last sender has gone.
    jobs: Option<S>,
    thread: Option<JoinHandle<()>>,
}

impl<S> Worker<S> {
    pub(super) fn start(
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

    pub(super) fn jobs(&self) -> &S {
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

pub(super) const GONE: &str = "the worker serves until it is dropped";
