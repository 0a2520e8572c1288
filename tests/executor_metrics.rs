//! What the `metrics` facade is told: its recorder is one for the whole process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use netns_exec::{Builder, Executor, Guard};
use netns_exec_tests::{Alone, alone, eventually, fresh};
use nix::sched::{CloneFlags, unshare};

netns_exec::rootless::test_harness!(own_net);

/// What was reported under a name, with its labels.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    described: BTreeMap<String, Option<Unit>>,
    sums: BTreeMap<String, f64>,
    recorded: BTreeMap<String, Vec<f64>>,
}

struct Figure(Log, String);

impl Figure {
    fn add(&self, value: f64) {
        let mut seen = self.0.0.lock().unwrap();
        *seen.sums.entry(self.1.clone()).or_default() += value;
    }
}

impl CounterFn for Figure {
    fn increment(&self, value: u64) {
        self.add(value as f64);
    }
    fn absolute(&self, _: u64) {
        unreachable!("figures are counted up")
    }
}

impl GaugeFn for Figure {
    fn increment(&self, value: f64) {
        self.add(value);
    }
    fn decrement(&self, value: f64) {
        self.add(-value);
    }
    fn set(&self, _: f64) {
        unreachable!("figures of several executors are added up")
    }
}

impl HistogramFn for Figure {
    fn record(&self, value: f64) {
        let mut seen = self.0.0.lock().unwrap();
        seen.recorded.entry(self.1.clone()).or_default().push(value);
    }
}

impl Log {
    fn figure(&self, key: &Key) -> Arc<Figure> {
        let labels = key
            .labels()
            .map(|label| format!("{{{}={}}}", label.key(), label.value()));
        let name = labels.fold(key.name().to_owned(), |name, label| name + &label);
        Arc::new(Figure(self.clone(), name))
    }

    fn describe(&self, name: KeyName, unit: Option<Unit>) {
        self.0
            .lock()
            .unwrap()
            .described
            .insert(name.as_str().to_owned(), unit);
    }

    fn sum(&self, name: &str) -> f64 {
        let seen = self.0.lock().unwrap();
        seen.sums.get(name).copied().unwrap_or_default()
    }

    fn recorded(&self, name: &str) -> Vec<f64> {
        let seen = self.0.lock().unwrap();
        seen.recorded.get(name).cloned().unwrap_or_default()
    }
}

impl Recorder for Log {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(name, unit);
    }
    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(name, unit);
    }
    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(name, unit);
    }
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.figure(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.figure(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.figure(key))
    }
}

fn installed() -> Log {
    let log = Log::default();
    metrics::set_global_recorder(log.clone()).expect("the first");
    log
}

fn reporting(guard: Guard, how: impl FnOnce(Builder) -> Builder) -> Executor {
    how(Executor::builder().guard(guard)).build().unwrap()
}

#[test]
fn jobs_refusals_and_workers_are_reported_in_sum() {
    alone!(Alone::AsIs);
    let log = installed();
    let executor = reporting(Guard::Seal, Builder::metrics);
    let spaces = [fresh(), fresh()];
    for netns in &spaces {
        executor.run(netns, || ()).unwrap();
        let spawned = executor.spawn(netns, || panic!("of a job")).unwrap();
        let ended: Result<(), _> = spawned.join();
        assert!(ended.unwrap_err().is_panic());
        executor
            .run(netns, || drop(std::thread::Builder::new().spawn(|| ())))
            .unwrap();
    }
    eventually("two workers serve", || log.sum("netns_exec_workers") == 2.0);
    executor.shutdown(None).unwrap();
    assert_eq!(log.sum("netns_exec_workers"), 0.0);
    assert_eq!(log.sum("netns_exec_workers_started_total"), 2.0);
    assert_eq!(log.sum("netns_exec_workers_retired_total{why=told}"), 2.0);
    assert_eq!(log.sum("netns_exec_jobs_panicked_total"), 2.0);
    assert_eq!(log.sum("netns_exec_refusals_total"), 2.0);
    let seconds = log.recorded("netns_exec_job_ran_seconds");
    assert_eq!(seconds.len(), 6);
    assert!(
        seconds.iter().all(|time| (0.0..60.0).contains(time)),
        "{seconds:?}"
    );
    assert_eq!(log.recorded("netns_exec_job_queued_seconds").len(), 6);
    let seen = log.0.lock().unwrap();
    assert_eq!(seen.described.len(), 7);
    assert_eq!(
        seen.described["netns_exec_job_ran_seconds"],
        Some(Unit::Seconds)
    );
}

#[test]
fn figures_can_be_told_apart_by_namespace() {
    alone!(Alone::AsIs);
    let log = installed();
    let executor = reporting(Guard::Seal, Builder::metrics_by_netns);
    let (blue, red) = (fresh(), fresh());
    executor.run(&blue, || ()).unwrap();
    for _ in 0..3 {
        executor.run(&red, || ()).unwrap();
    }
    executor.shutdown(None).unwrap();
    for (netns, jobs) in [(blue, 1), (red, 3)] {
        let of = |name: &str| format!("{name}{{netns={}}}", netns.label());
        assert_eq!(log.recorded(&of("netns_exec_job_ran_seconds")).len(), jobs);
        assert_eq!(log.sum(&of("netns_exec_workers_started_total")), 1.0);
        assert_eq!(log.sum(&of("netns_exec_workers")), 0.0);
    }
}

#[test]
fn worker_that_a_job_has_moved_is_not_counted_for_ever() {
    alone!(Alone::AsIs);
    let log = installed();
    let executor = reporting(Guard::Off, Builder::metrics);
    let netns = fresh();
    let moved = executor
        .spawn(&netns, || unshare(CloneFlags::CLONE_NEWNET))
        .unwrap();
    assert!(moved.join().unwrap_err().is_escaped());
    eventually("its retirement is told", || {
        log.sum("netns_exec_workers_retired_total{why=unfit}") == 1.0
    });
    executor.shutdown(None).unwrap();
    eventually("no worker is left", || log.sum("netns_exec_workers") == 0.0);
    assert_eq!(log.recorded("netns_exec_job_ran_seconds").len(), 1);
}
