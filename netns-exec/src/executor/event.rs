//! What happens in an executor, for those who measure it.

use std::time::Duration;

use crate::netns::NetnsId;

/// What has happened in an executor: see [`Builder::on_event`](crate::Builder::on_event).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A worker has started, and serves.
    #[non_exhaustive]
    WorkerStarted {
        /// The namespace that it is in.
        netns: NetnsId,
        /// What people call that.
        label: &'a str,
    },
    /// A job is over. Its owner has been told before.
    #[non_exhaustive]
    JobEnded {
        /// The namespace that it ran in.
        netns: NetnsId,
        /// What people call that.
        label: &'a str,
        /// How long it waited in the queue; zero for a call that found a free worker.
        queued: Duration,
        /// How long it ran, with the drop of what was left of it.
        ran: Duration,
        /// It has panicked.
        panicked: bool,
        /// How often the guard has refused it something.
        refused: u64,
    },
    /// A worker has left, and runs no more jobs.
    #[non_exhaustive]
    WorkerRetired {
        /// The namespace that it was in.
        netns: NetnsId,
        /// What people call that.
        label: &'a str,
        /// It had nothing to do for as long as the executor allows.
        idle: bool,
        /// How many jobs it has done.
        done: u64,
    },
}
