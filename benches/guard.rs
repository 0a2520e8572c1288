//! What does the guard cost a call, what does it cost the start of a worker, and
//! what does an audit cost?
//!
//! The baseline is `Guard::Off`. `hot` is back to back; `parked` waits a
//! millisecond before each call, so that the worker sleeps; `start` is the first
//! call into a namespace that has no worker yet, together with its retirement.
//! An audit has no baseline but itself with a tenth of the threads.
//! `cargo bench -p benches --bench guard`; needs root.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use netns_exec::audit::Process;
use netns_exec::{Executor, Guard, Netns};

const GUARDS: [(&str, Guard); 3] = [
    ("off", Guard::Off),
    ("seal", Guard::Seal),
    ("detect", Guard::Detect),
];

const POSSIBLE: &str = "root may do all of this";

fn executor(guard: Guard) -> Executor {
    let executor = Executor::builder().guard(guard).build().expect(POSSIBLE);
    assert_eq!(executor.guard(), guard);
    executor
}

fn call(criterion: &mut Criterion) {
    let netns = Netns::new().expect(POSSIBLE);
    for (name, gap) in [("hot", None), ("parked", Some(Duration::from_millis(1)))] {
        let mut group = criterion.benchmark_group(format!("guard/{name}"));
        for (label, guard) in GUARDS {
            let pinned = executor(guard).pin(&netns).expect(POSSIBLE);
            let call = || pinned.run(|| black_box(7)).expect(POSSIBLE);
            call();
            group.bench_function(label, |bencher| match gap {
                None => bencher.iter(call),
                Some(gap) => bencher.iter_custom(|calls| after_each(gap, calls, call)),
            });
        }
        group.finish();
    }
}

/// The time of `calls` calls, without that of the gap before each.
fn after_each<T>(gap: Duration, calls: u64, call: impl Fn() -> T) -> Duration {
    let timed = |_| {
        thread::sleep(gap);
        let start = Instant::now();
        black_box(call());
        start.elapsed()
    };
    (0..calls).map(timed).sum()
}

fn start(criterion: &mut Criterion) {
    let netns = Netns::new().expect(POSSIBLE);
    let mut group = criterion.benchmark_group("guard/start");
    for (label, guard) in GUARDS {
        let executor = executor(guard);
        group.bench_function(label, |bencher| {
            bencher.iter(|| {
                executor.run(&netns, || black_box(7)).expect(POSSIBLE);
                executor.retire(&netns).expect(POSSIBLE);
            });
        });
    }
    group.finish();
}

/// A look at every thread of the process, with this many more than it has.
fn audit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("guard/audit");
    for threads in [10, 100, 1000] {
        let (over, waiting) = (Barrier::new(threads + 1), Barrier::new(threads + 1));
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    waiting.wait();
                    over.wait();
                });
            }
            waiting.wait();
            group.bench_function(threads.to_string(), |bencher| {
                bencher.iter(|| Process::this().expect(POSSIBLE));
            });
            over.wait();
        });
    }
    group.finish();
}

criterion_group!(benches, call, start, audit);
criterion_main!(benches);
