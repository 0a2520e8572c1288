//! What does a port lease cost over the bare system calls, and how long does it
//! take to find one of the last free ports of a range?
//!
//! The baseline of the first group is bind, listen and close on a thread that is
//! in the namespace; that of the second is a walk with a socket per try, there
//! too. `cargo bench -p benches --bench ports`; needs root.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use netns_exec::__private::fill_and_empty_port_table;
use netns_exec::ports::{Allocator, Broker, Budget, Gate, Ports, Protocol, Start};
use netns_exec::{Executor, Netns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const ADDR: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn netns() -> Netns {
    let netns = Netns::new().expect("root may make a namespace");
    netns.set_loopback_up().expect("root may set its links up");
    netns
}

fn executor() -> Executor {
    Executor::new().expect("an executor needs nothing")
}

fn lease(criterion: &mut Criterion) {
    let executor = executor();
    let ports = Allocator::new(&executor);
    let (host, child) = (netns(), netns());
    let range = 33000..=33999;
    let mut group = criterion.benchmark_group("ports/lease");
    group.bench_function("bare bind, listen, close", |bencher| {
        let job = || bencher.iter(|| TcpListener::bind((ADDR, 33000)).expect("it is free"));
        executor.run(&host, job).expect("the namespace is there");
    });
    for (label, gate) in [("queue", Gate::Queue), ("drop", Gate::default())] {
        group.bench_function(BenchmarkId::new("one namespace", label), |bencher| {
            bencher.iter(|| {
                let request = ports.request(Protocol::Tcp).on(&host, [ADDR]).gate(gate);
                let request = request.ports(Ports::Range(range.clone()));
                request.acquire().expect("ports are free")
            });
        });
        group.bench_function(BenchmarkId::new("two namespaces", label), |bencher| {
            bencher.iter(|| {
                let request = ports.request(Protocol::Tcp).on(&host, [ADDR]);
                let request = request.on(&child, [ADDR]).gate(gate);
                let request = request.ports(Ports::Range(range.clone()));
                request.acquire().expect("ports are free")
            });
        });
    }
    group.finish();
}

/// Listeners on all ports of a range but the last.
fn fill(executor: &Executor, netns: &Netns, range: RangeInclusive<u16>) -> Vec<TcpListener> {
    let bind = |port| TcpListener::bind((ADDR, port)).expect("the namespace is new");
    let fill = || (*range.start()..*range.end()).map(bind).collect();
    executor.run(netns, fill).expect("the namespace is there")
}

fn nearly_full(criterion: &mut Criterion) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("up to the hard limit");
    let executor = executor();
    let mut group = criterion.benchmark_group("ports/one free of");
    for size in [100_u16, 1_000, 10_000] {
        // Where the kernel can be asked, and where it cannot.
        for (range_of, low) in [("dynamic range", 40_000), ("elsewhere", 20_000)] {
            let netns = netns();
            let range = low..=low + size - 1;
            let _busy = fill(&executor, &netns, range.clone());
            let lease = |budget| {
                // A new one each time, or the cursor would know the way.
                let ports = Allocator::starting_at(&executor, Start::Beginning);
                let request = ports.request(Protocol::Tcp).on(&netns, [ADDR]);
                let request = request.gate(Gate::Queue).budget(budget);
                let request = request.ports(Ports::Range(range.clone()));
                request.acquire().expect("the last one is free")
            };
            let label = BenchmarkId::new(format!("lease, {range_of}"), size);
            group.bench_function(label, |bencher| {
                bencher.iter(|| lease(Budget::WalkOnce));
            });
            if range_of == "dynamic range" {
                // What a number of tries is a limit on, the kernel is not asked.
                let tries = Budget::Tries(u32::from(size));
                group.bench_function(BenchmarkId::new("lease, walk only", size), |bencher| {
                    bencher.iter(|| lease(tries));
                });
                group.bench_function(BenchmarkId::new("socket per try", size), |bencher| {
                    let walk = || {
                        let free = |port| TcpListener::bind((ADDR, port)).ok();
                        range.clone().find_map(free).expect("the last one is free")
                    };
                    let job = || bencher.iter(walk);
                    executor.run(&netns, job).expect("the namespace is there");
                });
            }
        }
    }
    group.finish();
}

fn table(criterion: &mut Criterion) {
    let netns = Netns::current().expect("this thread is somewhere");
    let mut group = criterion.benchmark_group("ports/table");
    let range = 1..=u16::MAX;
    group.throughput(Throughput::Elements(u64::from(u16::MAX)));
    group.bench_function("allocate and free a full range", |bencher| {
        bencher.iter(|| fill_and_empty_port_table(netns.id(), black_box(range.clone())));
    });
    group.finish();
}

/// The same as `lease` and `nearly_full`, with the sockets from another process.
fn broker(criterion: &mut Criterion) {
    let executor = executor();
    let host = netns();
    let broker = executor.run(&host, Broker::spawn);
    let broker = broker.expect("a worker").expect("a process");
    let lease = |ports: &Allocator, range: RangeInclusive<u16>| {
        let request = ports.request(Protocol::Tcp).on_broker(&broker, [ADDR]);
        let request = request.gate(Gate::Queue).ports(Ports::Range(range));
        request.acquire().expect("ports are free")
    };
    let mut group = criterion.benchmark_group("ports/broker");
    group.bench_function("lease", |bencher| {
        let ports = Allocator::new(&executor);
        bencher.iter(|| lease(&ports, 33000..=33999));
    });
    let full = 20_000..=20_999;
    let _busy = fill(&executor, &host, full.clone());
    group.bench_function(BenchmarkId::new("one free of", 1_000), |bencher| {
        bencher.iter(|| {
            let ports = Allocator::starting_at(&executor, Start::Beginning);
            lease(&ports, full.clone())
        });
    });
    group.finish();
}

criterion_group!(benches, lease, nearly_full, table, broker);
criterion_main!(benches);
