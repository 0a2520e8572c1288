//! What does a namespace of a lab cost, until it can talk, and what does a test pay for a
//! peer?
//!
//! The baseline is `namespace`: a bare one with its loopback up. What is timed includes
//! its end as far as the caller waits for that; the kernel takes namespaces down later.
//! `cargo bench -p benches --bench lab`; needs root, or a user namespace.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use netns_exec::{Netns, in_netns};
use netns_exec_lab::Lab;

fn lab(criterion: &mut Criterion) {
    netns_exec::rootless::enter().expect("root, or a user that may have namespaces");
    let lab = Lab::new().expect("an executor needs nothing");
    let mut group = criterion.benchmark_group("lab");
    group.bench_function("namespace", |bencher| {
        bencher.iter(|| {
            let netns = Netns::new().expect("a namespace");
            netns.set_loopback_up().expect("it is ours");
        });
    });
    group.bench_function("node", |bencher| {
        bencher.iter(|| lab.node("node").expect("a namespace"));
    });
    group.bench_function("link of two nodes", |bencher| {
        let nodes = || lab.nodes(["a", "b"]).expect("two namespaces");
        bencher.iter_batched(
            nodes,
            |[a, b]| {
                let link = lab.link(
                    a.at(&["10.0.0.1/24", "fd00::1/64"]),
                    b.at(&["10.0.0.2/24", "fd00::2/64"]),
                );
                (link.expect("a veth pair"), a, b)
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("node on a bridge", |bencher| {
        let lan = lab.bridge("lan").expect("a bridge");
        bencher.iter(|| {
            let node = lab.node("node").expect("a namespace");
            let addrs = ["10.0.0.1/24", "fd00::1/64"];
            lan.attach(node.at(&addrs)).expect("a port");
        });
    });
    group.bench_function("test with a peer", |bencher| bencher.iter(with_peer));
    group.finish();
}

#[in_netns(fresh, link = peer)]
fn with_peer() {
    assert!(peer.addr().is_ipv4());
}

criterion_group!(benches, lab);
criterion_main!(benches);
