//! What happens in an executor, reported to the `metrics` facade.

use metrics::{Label, Unit};

use super::builder::Builder;
use super::event::Event;

/// The names under which things are reported: see [`Builder::metrics`].
mod name {
    pub(super) const QUEUED: &str = "netns_exec_job_queued_seconds";
    pub(super) const RAN: &str = "netns_exec_job_ran_seconds";
    pub(super) const PANICKED: &str = "netns_exec_jobs_panicked_total";
    pub(super) const REFUSED: &str = "netns_exec_refusals_total";
    pub(super) const WORKERS: &str = "netns_exec_workers";
    pub(super) const STARTED: &str = "netns_exec_workers_started_total";
    pub(super) const RETIRED: &str = "netns_exec_workers_retired_total";
}

impl Builder {
    /// Reports what the executor does to the `metrics` facade, and so to whatever
    /// recorder the program has installed.
    ///
    /// | name | kind | what |
    /// |---|---|---|
    /// | `netns_exec_job_queued_seconds` | histogram | how long a job waited in the queue; zero for a call that found a free worker |
    /// | `netns_exec_job_ran_seconds` | histogram | how long it ran; its count is the number of jobs |
    /// | `netns_exec_jobs_panicked_total` | counter | jobs that have panicked |
    /// | `netns_exec_refusals_total` | counter | what the guard has refused to jobs that have ended; what it refuses to one that never does is in [`Stats::refused`](crate::Stats::refused) |
    /// | `netns_exec_workers` | gauge | workers that serve |
    /// | `netns_exec_workers_started_total` | counter | workers that have started |
    /// | `netns_exec_workers_retired_total` | counter | those that have left, with the label `why`: `idle`, `told` (retirement, room for others, shutdown) or `unfit` |
    ///
    /// The figures of all executors that do so are added up. They are those of the
    /// [events](Builder::on_event), and reported where and when these are told.
    /// Install the recorder before: descriptions are given to it in this call.
    ///
    /// # Examples
    ///
    /// ```
    /// // After, for instance, `metrics_exporter_prometheus::PrometheusBuilder::install`.
    /// let executor = netns_exec::Executor::builder().metrics().build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn metrics(self) -> Self {
        describe();
        self.on_event(|event| report(event, &[]))
    }

    /// Reports as [`metrics`](Builder::metrics), each figure with the label `netns`: what
    /// people call the namespace.
    ///
    /// For programs whose namespaces are few, or stay: a recorder keeps what it was told of each
    /// label, and a namespace without a name has one that is never used again.
    ///
    /// # Examples
    ///
    /// ```
    /// let executor = netns_exec::Executor::builder().metrics_by_netns().build()?;
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn metrics_by_netns(self) -> Self {
        describe();
        self.on_event(|event| {
            report(event, &[Label::new("netns", event.label().to_owned())]);
        })
    }
}

fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};

    describe_histogram!(
        name::QUEUED,
        Unit::Seconds,
        "time that jobs waited in a queue"
    );
    describe_histogram!(name::RAN, Unit::Seconds, "time that jobs ran");
    describe_counter!(name::PANICKED, Unit::Count, "jobs that have panicked");
    describe_counter!(
        name::REFUSED,
        Unit::Count,
        "what the guard has refused to jobs"
    );
    describe_gauge!(name::WORKERS, Unit::Count, "workers that serve");
    describe_counter!(name::STARTED, Unit::Count, "workers that have started");
    describe_counter!(name::RETIRED, Unit::Count, "workers that have left");
}

fn report(event: &Event<'_>, labels: &[Label]) {
    use metrics::{counter, gauge, histogram};

    let labels = || labels.to_vec();
    match *event {
        Event::WorkerStarted { .. } => {
            counter!(name::STARTED, labels()).increment(1);
            gauge!(name::WORKERS, labels()).increment(1);
        }
        Event::JobEnded {
            queued,
            ran,
            panicked,
            refused,
            ..
        } => {
            histogram!(name::QUEUED, labels()).record(queued);
            histogram!(name::RAN, labels()).record(ran);
            if panicked {
                counter!(name::PANICKED, labels()).increment(1);
            }
            if refused > 0 {
                counter!(name::REFUSED, labels()).increment(refused);
            }
        }
        Event::WorkerRetired { idle, unfit, .. } => {
            let why = match (idle, unfit) {
                (_, true) => "unfit",
                (true, _) => "idle",
                _ => "told",
            };
            let mut of_this_kind = labels();
            of_this_kind.push(Label::from_static_parts("why", why));
            counter!(name::RETIRED, of_this_kind).increment(1);
            gauge!(name::WORKERS, labels()).decrement(1);
        }
    }
}
