//! Namespaces whose workers are sent away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use netns_exec::Executor;
use netns_exec_tests::{
    Alone, Gate, Held, Over, TempNetns, alone, eventually, fresh, here, ip, try_ip, within,
};

use super::with_idle;

#[test]
fn namespace_is_gone_after_retire_and_so_is_its_veth_peer() {
    // A child that another test starts has all our descriptors until it executes
    // its program, and so keeps namespaces alive.
    alone!(Alone::AsIs);
    let outer = TempNetns::new();
    let inner = TempNetns::new();
    ip(&[
        "-n",
        outer.name(),
        "link",
        "add",
        "outer0",
        "type",
        "veth",
        "peer",
        "name",
        "inner0",
        "netns",
        inner.name(),
    ]);
    let executor = with_idle(None);
    executor.run(&inner, || ()).unwrap();
    let pinned = executor.pin(&inner).unwrap();
    let netns = inner.netns().clone();
    let weak = netns.downgrade();
    inner.delete();
    let peer = || {
        try_ip(&["-n", outer.name(), "link", "show", "outer0"])
            .status
            .success()
    };
    assert!(peer(), "our handle is a reference");
    executor.retire(&netns).unwrap();
    assert_eq!(executor.stats().workers, 0);
    drop(netns);
    assert_eq!(weak.upgrade(), None, "nothing of ours is left, at once");
    eventually("the kernel has taken the veth pair down", || !peer());
    assert!(pinned.run(|| ()).unwrap_err().is_not_found());
}

#[test]
fn retire_lets_running_and_queued_jobs_end() {
    within("retire of a busy namespace", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let ran = Arc::new(AtomicU32::new(0));
        let held = Held::new(&executor, &netns);
        let count = Arc::clone(&ran);
        drop(executor.spawn(&netns, move || count.fetch_add(1, Ordering::SeqCst)));
        let retire = thread::spawn({
            let (executor, netns) = (executor.clone(), netns.clone());
            move || executor.retire(&netns).unwrap()
        });
        // Out of the list, although its worker is still at work.
        eventually("retiring has begun", || {
            executor.stats().per_netns.is_empty()
        });
        assert!(!retire.is_finished());
        held.open();
        retire.join().unwrap();
        held.end();
        assert_eq!(ran.load(Ordering::SeqCst), 1);
        assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
    });
}

#[test]
fn second_retire_waits_as_long_as_the_first() {
    within("two retire at once", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let gate = Gate::new();
        let pass = gate.pass();
        let over = Arc::new(AtomicBool::new(false));
        let set = Arc::clone(&over);
        let running = executor.spawn(&netns, move || {
            pass.stop();
            set.store(true, Ordering::SeqCst);
        });
        gate.wait_for(1);
        thread::scope(|scope| {
            let retire = || {
                executor.retire(&netns).unwrap();
                assert!(over.load(Ordering::SeqCst), "its worker is still at work");
            };
            scope.spawn(retire);
            eventually("retiring has begun", || {
                executor.stats().per_netns.is_empty()
            });
            scope.spawn(retire);
            gate.open();
        });
        running.unwrap().join().unwrap();
    });
}

#[test]
fn retire_ends_although_others_go_on_calling() {
    within("retire of a namespace in use", || {
        let executor = with_idle(None);
        let netns = fresh();
        let over = Over::default();
        let calls = AtomicU32::new(0);
        thread::scope(|scope| {
            let _over = over.comes_with_drop();
            for number in 0..3 {
                let (executor, netns, over, calls) = (&executor, &netns, &over, &calls);
                scope.spawn(move || {
                    while !over.has_come() {
                        let id = match number {
                            0 => executor.spawn(netns, here).unwrap().join(),
                            _ => executor.run(netns, here),
                        };
                        assert_eq!(id.unwrap(), netns.id());
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..100 {
                let before = calls.load(Ordering::Relaxed);
                eventually("calls are made", || calls.load(Ordering::Relaxed) > before);
                executor.retire(&netns).unwrap();
            }
        });
        assert_eq!(
            executor.stats().done,
            u64::from(calls.load(Ordering::Relaxed))
        );
    });
}

#[test]
fn retiring_what_has_no_workers_is_nothing() {
    let executor = Executor::new().unwrap();
    executor.retire(&fresh()).unwrap();
}

#[test]
fn jobs_of_a_namespace_on_its_way_out_are_in_the_totals() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    executor.run(&netns, || ()).unwrap();
    let held = Held::new(&executor, &netns);
    thread::scope(|scope| {
        scope.spawn(|| executor.retire(&netns).unwrap());
        eventually("retiring has begun", || {
            executor.stats().per_netns.is_empty()
        });
        let stats = executor.stats();
        assert_eq!((stats.workers, stats.running, stats.done), (1, 1, 1));
        held.open();
    });
    held.end();
    let stats = executor.stats();
    assert_eq!((stats.workers, stats.running, stats.done), (0, 0, 2));
}
