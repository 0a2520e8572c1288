//! What does a view cost the start of a worker and of a child, how does that grow with
//! what is mounted, and does a call pay for it?
//!
//! The baseline is the same without a view. `start` is the first call into a namespace
//! that has no worker yet, together with its retirement; a mount namespace is a copy of
//! the mount table, so it is measured beside 0, 100 and 1000 more names, which are a mount
//! each. `child` is true(1), once without a view, once with one, and once as `ip netns exec`
//! starts it. `cargo bench -p benches --bench view`; needs root.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::process::Command;

use criterion::{Criterion, criterion_group, criterion_main};
use netns_exec::{CommandExt, Executor, Netns, View};

const POSSIBLE: &str = "root may do all of this";

/// A name of a namespace, taken away on drop.
struct Name(String);

impl Name {
    fn new(number: usize) -> (Name, Netns) {
        let name = format!("nxb-view-{}-{number}", std::process::id());
        let netns = Netns::create(&name).expect(POSSIBLE);
        (Name(name), netns)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = Netns::delete(&self.0);
    }
}

fn executors() -> [(&'static str, Executor); 2] {
    let viewed = Executor::builder().view(View::new()).build();
    [
        ("plain", Executor::new().expect(POSSIBLE)),
        ("view", viewed.expect(POSSIBLE)),
    ]
}

fn start(criterion: &mut Criterion) {
    let (_name, netns) = Name::new(0);
    let mut names = Vec::new();
    for more in [0, 100, 1000] {
        names.extend((names.len()..more).map(|number| Name::new(number + 1).0));
        let mut group = criterion.benchmark_group(format!("view/start beside {more} names"));
        for (label, executor) in executors() {
            group.bench_function(label, |bencher| {
                bencher.iter(|| {
                    executor.run(&netns, || black_box(7)).expect(POSSIBLE);
                    executor.retire(&netns).expect(POSSIBLE);
                });
            });
        }
        group.finish();
    }
}

fn call(criterion: &mut Criterion) {
    let netns = Netns::new().expect(POSSIBLE);
    let mut group = criterion.benchmark_group("view/call");
    for (label, executor) in executors() {
        let pinned = executor.pin(&netns).expect(POSSIBLE);
        group.bench_function(label, |bencher| {
            bencher.iter(|| pinned.run(|| black_box(7)).expect(POSSIBLE));
        });
    }
    group.finish();
}

fn child(criterion: &mut Criterion) {
    let (name, netns) = Name::new(0);
    let mut group = criterion.benchmark_group("view/child");
    group.bench_function("plain", |bencher| {
        bencher.iter(|| Command::new("true").status_in(&netns).expect(POSSIBLE));
    });
    group.bench_function("view", |bencher| {
        let start = || Command::new("true").view(View::new()).status_in(&netns);
        bencher.iter(|| start().expect(POSSIBLE));
    });
    group.bench_function("ip netns exec", |bencher| {
        let start = || {
            Command::new("ip")
                .args(["netns", "exec", &name.0, "true"])
                .status()
        };
        bencher.iter(|| start().expect("iproute2"));
    });
    group.finish();
}

criterion_group!(benches, call, start, child);
criterion_main!(benches);
