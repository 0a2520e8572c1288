//! What happens in an executor, for those who measure it.

use std::time::Duration;

use crate::netns::NetnsId;

/// What has happened in an executor: see [`Builder::on_event`](crate::Builder::on_event).
///
/// A [thread beside the pool](crate::Executor::thread) is no worker, and what it runs is a
/// job: it is told of when that has ended.
///
/// # Examples
///
/// ```
/// use netns_exec::{Event, Executor};
///
/// let executor = Executor::builder()
///     .on_event(|event| match event {
///         Event::WorkerStarted { label, .. } => println!("{label}: a worker has started"),
///         Event::JobEnded { label, panicked: true, .. } => eprintln!("{label}: a job panicked"),
///         Event::WorkerRetired { label, unfit: true, .. } => eprintln!("{label}: a job did harm"),
///         _ => {}
///     })
///     .build()?;
/// # Ok::<(), netns_exec::Error>(())
/// ```
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
        /// The guard found its thread unfit for anything else.
        unfit: bool,
        /// How many jobs it has done.
        done: u64,
    },
}

impl Event<'_> {
    pub(super) fn label(&self) -> &str {
        let (Event::WorkerStarted { label, .. }
        | Event::JobEnded { label, .. }
        | Event::WorkerRetired { label, .. }) = *self;
        label
    }

    /// The same, with this for what people call the namespace: it may be kept for longer.
    pub(super) fn labelled(self, label: &str) -> Event<'_> {
        match self {
            Event::WorkerStarted { netns, .. } => Event::WorkerStarted { netns, label },
            Event::JobEnded {
                netns,
                queued,
                ran,
                panicked,
                refused,
                ..
            } => Event::JobEnded {
                netns,
                label,
                queued,
                ran,
                panicked,
                refused,
            },
            Event::WorkerRetired {
                netns,
                idle,
                unfit,
                done,
                ..
            } => Event::WorkerRetired {
                netns,
                label,
                idle,
                unfit,
                done,
            },
        }
    }
}
