//! The executor through its public API, against the real kernel.

use std::sync::atomic::{AtomicUsize, Ordering};

use netns_exec::{Executor, Netns, NetnsId};

fn here() -> NetnsId {
    Netns::current().expect("the current netns").id()
}

#[test]
fn run_borrows_and_runs_in_the_namespace() {
    let executor = Executor::new().unwrap();
    let netns = Netns::new().unwrap();
    let mut seen = Vec::new();
    executor.run(&netns, || seen.push(here())).unwrap();
    assert_eq!(seen, [netns.id()]);
    assert_ne!(here(), netns.id());
}

#[test]
fn hundred_thousand_runs() {
    let executor = Executor::new().unwrap();
    let netns = Netns::new().unwrap();
    let count = AtomicUsize::new(0);
    let t = std::time::Instant::now();
    for _ in 0..100_000 {
        executor
            .run(&netns, || count.fetch_add(1, Ordering::Relaxed))
            .unwrap();
    }
    eprintln!("{:?} per run", t.elapsed() / 100_000);
    let t = std::time::Instant::now();
    let handles: Vec<_> = (0..100_000)
        .map(|i| executor.spawn(&netns, move || i).unwrap())
        .collect();
    eprintln!("{:?} per spawn", t.elapsed() / 100_000);
    for (i, h) in handles.into_iter().enumerate() {
        assert_eq!(h.join().unwrap(), i);
    }
    eprintln!("{:?}", executor.stats());
}

#[test]
fn nested_from_both_ends() {
    let executor = Executor::new().unwrap();
    let (a, b) = (Netns::new().unwrap(), Netns::new().unwrap());
    fn nest(executor: &Executor, a: &Netns, b: &Netns, depth: u32) {
        assert_eq!(executor.run(a, here).unwrap(), a.id());
        if depth > 0 {
            executor.run(a, || nest(executor, b, a, depth - 1)).unwrap();
        }
    }
    std::thread::scope(|s| {
        s.spawn(|| nest(&executor, &a, &b, 64));
        s.spawn(|| nest(&executor, &b, &a, 64));
    });
    eprintln!("{:?}", executor.stats());
}

#[test]
fn two_hundred_threads() {
    let executor = Executor::new().unwrap();
    let spaces: Vec<_> = (0..16).map(|_| Netns::new().unwrap()).collect();
    std::thread::scope(|s| {
        for t in 0..200 {
            let (executor, spaces) = (&executor, &spaces);
            s.spawn(move || {
                for i in 0..100 {
                    let ns = &spaces[(t * 7 + i * 3) % 16];
                    assert_eq!(executor.run(ns, here).unwrap(), ns.id());
                }
            });
        }
    });
    eprintln!("{:?}", executor.stats().done);
    executor.shutdown(None).unwrap();
}
