//! A job that keeps its worker busy.

use netns_exec::{Executor, JoinHandle, Netns};

use crate::Gate;

/// A job that runs, and goes on until it is let go: by a call, or by the drop of
/// this.
pub struct Held {
    /// The job's handle.
    pub job: JoinHandle<()>,
    /// What the job waits at.
    pub gate: Gate,
}

impl Held {
    /// Sends the job to `netns`, and returns when it runs there.
    ///
    /// # Panics
    ///
    /// When it is refused, or does not run within a minute.
    #[track_caller]
    pub fn new(executor: &Executor, netns: &Netns) -> Held {
        let gate = Gate::new();
        let pass = gate.pass();
        let job = executor.spawn(netns, move || pass.stop());
        let job = job.expect("the executor takes a job");
        gate.wait_for(1);
        Held { job, gate }
    }

    /// Lets the job go on to its end.
    pub fn open(&self) {
        self.gate.open();
    }

    /// Lets the job go on, and waits for its end.
    ///
    /// # Panics
    ///
    /// When it did not end well.
    #[track_caller]
    pub fn end(self) {
        self.gate.open();
        self.job.join().expect("the job returns");
    }
}
