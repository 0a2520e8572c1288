//! Workers that idle: when they leave, and that no call notices.

use std::fs;
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use netns_exec_tests::{Gate, Over, eventually, fresh, here, within};

use super::with_idle;

const SOON: Option<Duration> = Some(Duration::from_millis(1));

#[test]
fn idle_workers_end_and_start_again_unnoticed() {
    let executor = with_idle(SOON);
    let netns = fresh();
    for round in 1..=20 {
        assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
        assert_eq!(
            executor.spawn(&netns, here).unwrap().join().unwrap(),
            netns.id()
        );
        eventually("the worker has left", || executor.stats().workers == 0);
        assert_eq!(executor.stats().done, 2 * round);
    }
}

#[test]
fn calls_race_with_workers_that_leave_and_none_is_lost() {
    within("calls race with idle workers", || {
        let executor = with_idle(Some(Duration::from_micros(1)));
        let spaces = [fresh(), fresh()];
        let count = AtomicU32::new(0);
        thread::scope(|scope| {
            for number in 0..6_u32 {
                let (executor, spaces, count) = (&executor, &spaces, &count);
                scope.spawn(move || {
                    for round in 0..300 {
                        let netns = &spaces[(number + round) as usize % 2];
                        let job = || count.fetch_add(1, Ordering::Relaxed);
                        match (number + round) % 3 {
                            0 => drop(executor.run(netns, job).unwrap()),
                            1 => executor.spawn(netns, || ()).unwrap().join().unwrap(),
                            _ => executor.scope(|scope| drop(scope.spawn(netns, job).unwrap())),
                        }
                    }
                });
            }
        });
        assert_eq!(count.load(Ordering::Relaxed), 6 * 200);
        assert_eq!(executor.stats().done, 6 * 300);
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn worker_with_work_in_flight_is_not_idle() {
    let executor = with_idle(SOON);
    let (long, other) = (fresh(), fresh());
    let gate = Gate::new();
    let pass = gate.pass();
    let handle = executor.spawn(&long, move || {
        pass.stop();
        thread::current().id()
    });
    gate.wait_for(1);
    let queued = executor.spawn(&long, || thread::current().id()).unwrap();
    // Time enough for others to come and go.
    for _ in 0..5 {
        executor.run(&other, || ()).unwrap();
        eventually("the other worker has left", || {
            executor.stats().workers == 1
        });
    }
    gate.open();
    assert_eq!(handle.unwrap().join().unwrap(), queued.join().unwrap());
}

#[test]
fn worker_that_waits_for_its_own_job_elsewhere_is_not_idle() {
    let executor = with_idle(SOON);
    let (a, b) = (fresh(), fresh());
    let gate = Gate::new();
    thread::scope(|scope| {
        let caller = scope.spawn(|| {
            executor
                .run(&a, || {
                    let before = thread::current().id();
                    executor.run(&b, || gate.pass().stop()).unwrap();
                    (before, thread::current().id())
                })
                .unwrap()
        });
        gate.wait_for(1);
        let other = fresh();
        executor.run(&other, || ()).unwrap();
        eventually("only the two are left", || executor.stats().workers == 2);
        gate.open();
        let (before, after) = caller.join().unwrap();
        assert_eq!(before, after);
    });
}

#[test]
fn no_idle_timeout_means_never() {
    let (forever, brief) = (with_idle(None), with_idle(SOON));
    let netns = fresh();
    let first = forever.run(&netns, || thread::current().id()).unwrap();
    for _ in 0..5 {
        brief.run(&netns, || ()).unwrap();
        eventually("the other executor's worker has left", || {
            brief.stats().workers == 0
        });
    }
    assert_eq!(
        forever.run(&netns, || thread::current().id()).unwrap(),
        first
    );
}

#[test]
fn times_out_of_range_are_times_that_never_come() {
    within("times out of range", || {
        let executor = with_idle(Some(Duration::MAX));
        let (a, b) = (fresh(), fresh());
        // Nested, so that a worker stands in and idles afterwards.
        let back = || executor.run(&a, here).unwrap();
        let id = executor.run(&a, || executor.run(&b, back).unwrap());
        assert_eq!(id.unwrap(), a.id());
        let handle = executor.spawn(&a, || 1).unwrap();
        assert_eq!(handle.join_timeout(Duration::MAX).unwrap().unwrap(), 1);
        executor.shutdown(Some(Duration::MAX)).unwrap();
    });
}

#[test]
fn totals_are_exact_while_workers_come_and_go() {
    let executor = with_idle(Some(Duration::from_micros(1)));
    let netns = fresh();
    let made = AtomicU32::new(0);
    let over = Over::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            let _over = over.comes_with_drop();
            for _ in 0..1000 {
                executor.run(&netns, || ()).unwrap();
                made.fetch_add(1, Ordering::SeqCst);
            }
        });
        while !over.has_come() {
            let at_least = u64::from(made.load(Ordering::SeqCst));
            let done = executor.stats().done;
            // The caller is one call ahead of its count at most.
            let at_most = u64::from(made.load(Ordering::SeqCst)) + 1;
            assert!(
                (at_least..=at_most).contains(&done),
                "{at_least} {done} {at_most}"
            );
        }
    });
    assert_eq!(executor.stats().done, 1000);
}

/// How much memory of the mapping that has `address` in it is resident, in KiB.
fn resident_around(address: usize) -> usize {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_it = false;
    for line in maps.lines() {
        let bounds = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).ok();
        if let Some((Some(from), Some(to))) = bounds.map(|(from, to)| (number(from), number(to))) {
            is_it = (from..to).contains(&address);
        } else if is_it && let Some(rss) = line.strip_prefix("Rss:") {
            return rss.trim().trim_end_matches(" kB").parse().unwrap();
        }
    }
    panic!("{address:x} is nowhere");
}

#[test]
fn idle_worker_gives_back_the_stack_that_a_job_needed() {
    const MUCH: usize = 1 << 20;

    let executor = with_idle(None);
    let netns = fresh();
    let job = || {
        let bytes = [1_u8; MUCH];
        let here = black_box(&bytes).as_ptr().addr();
        (here + MUCH, resident_around(here))
    };
    for _ in 0..3 {
        let (stack, resident) = executor.run(&netns, job).unwrap();
        assert!(resident >= MUCH / 1024, "the job has needed {resident} KiB");
        eventually("the stack is given back", || resident_around(stack) < 64);
    }
}
