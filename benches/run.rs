//! How much does a resident worker save over a thread per call, and how near
//! does it come to setns there and back in place?
//!
//! The baseline is `thread per call`. Calls come back to back: the other
//! regimes, in which a parked worker loses to setns in place, are in `compare`.
//! `cargo bench -p benches --bench run`; needs root.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use benches::peers::{CATALOGUE, IN_PLACE, OURS, PINNED, SPAWN_JOIN, Setup, THREAD_PER_CALL};
use benches::work::Work;
use criterion::{Criterion, criterion_group, criterion_main};
use netns_exec::{Executor, Netns};

fn run(criterion: &mut Criterion) {
    let netns = Netns::new().expect("root may make a namespace");
    let executor = Executor::new().expect("an executor needs nothing");
    let setup = Setup {
        netns: &netns,
        name: None,
        executor: &executor,
    };
    for (group, work) in [("empty", Work::Empty), ("socket", Work::Socket)] {
        let mut group = criterion.benchmark_group(format!("run/{group}"));
        for label in [OURS, PINNED, SPAWN_JOIN, IN_PLACE, THREAD_PER_CALL] {
            let entry = CATALOGUE.iter().find(|entry| entry.label == label);
            let build = entry.expect("it is in the catalogue").build;
            let peer = build(&setup).expect("it can be built in a fresh namespace");
            group.bench_function(label, |bencher| bencher.iter(|| peer.repeat(work, 1)));
        }
        group.finish();
    }
}

criterion_group!(benches, run);
criterion_main!(benches);
