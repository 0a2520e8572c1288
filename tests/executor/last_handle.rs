//! Namespaces without a name, whose workers idle when the last handle goes: nothing
//! could come back to them, and they are let go at once. No timeout helps here: idle
//! workers of these executors stay for ever.

use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use netns_exec::{CommandExt, Executor, Netns, WeakNetns};
use netns_exec_tests::{GUARDS, Gate, Held, TempNetns, eventually, fresh, here, within};
use nix::unistd::gettid;

use super::with_idle;

/// One end of a veth in a namespace that is to go, and the other end in one that stays.
struct Wired {
    netns: Netns,
    outside: TempNetns,
}

impl Wired {
    fn new() -> Wired {
        let (netns, outside) = (fresh(), TempNetns::new());
        let mut command = Command::new("ip");
        command.args(["link", "add", "near", "type", "veth"]);
        command.args(["peer", "name", "far", "netns", outside.name()]);
        assert!(command.status_in(&netns).unwrap().success());
        Wired { netns, outside }
    }

    /// Drops the handle. What is left tells whether the namespace is still there,
    /// without a handle of its own.
    fn let_go(self) -> impl Fn() -> bool {
        drop(self.netns);
        let outside = self.outside;
        move || {
            let mut command = Command::new("ip");
            let links = command.args(["-o", "link"]).output_in(&outside);
            String::from_utf8(links.unwrap().stdout)
                .unwrap()
                .contains("far@")
        }
    }
}

#[track_caller]
fn assert_without_workers(executor: &Executor) {
    eventually("the workers are gone", || executor.stats().workers == 0);
}

/// First the workers: the handle that a look makes counts as a user's, too.
#[track_caller]
fn assert_let_go(executor: &Executor, weak: &WeakNetns) {
    assert_without_workers(executor);
    // Their threads may be a moment from their end.
    eventually("the namespace is gone", || weak.upgrade().is_none());
}

#[test]
fn unnamed_namespace_goes_with_its_last_handle_though_workers_idle_in_it() {
    for guard in GUARDS {
        let wired = Wired::new();
        let builder = || Executor::builder().guard(guard).idle_timeout(None);
        // Several executors, and several workers of one.
        let executors = [
            builder().build().unwrap(),
            builder().workers_per_netns(3).build().unwrap(),
            builder().build().unwrap(),
        ];
        for executor in &executors {
            let held: Vec<_> = (0..3).map(|_| executor.spawn(&wired.netns, here)).collect();
            for job in held {
                assert_eq!(job.unwrap().join().unwrap(), wired.netns.id());
            }
        }
        let is_there = wired.let_go();
        eventually("the namespace and its devices are gone", || !is_there());
        for executor in &executors {
            assert_without_workers(executor);
        }
    }
}

#[test]
fn jobs_that_run_or_wait_are_done_there_first() {
    within("jobs of a namespace without handles", || {
        let executor = with_idle(None);
        let netns = fresh();
        let (id, weak) = (netns.id(), netns.downgrade());
        let held = Held::new(&executor, &netns);
        let behind: Vec<_> = (0..20)
            .map(|_| executor.spawn(&netns, here).unwrap())
            .collect();
        drop(netns);
        assert!(weak.upgrade().is_some(), "a job runs in it");
        held.end();
        for job in behind {
            assert_eq!(job.join().unwrap(), id);
        }
        assert_let_go(&executor, &weak);
        assert_eq!(executor.stats().done, 21);
    });
}

#[test]
fn job_may_drop_the_last_handle_of_its_own_namespace() {
    within("drop of a handle in a job", || {
        let executor = with_idle(None);
        let netns = fresh();
        let (id, weak) = (netns.id(), netns.downgrade());
        let gate = Gate::new();
        let pass = gate.pass();
        let job = executor.spawn(&netns.clone(), move || {
            pass.stop();
            drop(netns);
            here()
        });
        gate.open();
        assert_eq!(job.unwrap().join().unwrap(), id);
        assert_let_go(&executor, &weak);
    });
}

#[test]
fn pin_holds_the_workers_and_its_drop_lets_them_go() {
    let executor = with_idle(None);
    let netns = fresh();
    let (id, weak) = (netns.id(), netns.downgrade());
    let pinned = executor.pin(&netns).unwrap();
    let worker = pinned.run(gettid).unwrap();
    drop(netns);
    let second = pinned.clone();
    drop(pinned);
    assert_eq!(second.run(here).unwrap(), id);
    assert_eq!(second.run(gettid).unwrap(), worker, "the same one");
    drop(second);
    assert_let_go(&executor, &weak);
}

#[test]
fn handle_that_was_made_again_holds_the_workers_when_the_pin_goes() {
    let executor = with_idle(None);
    let netns = fresh();
    let weak = netns.downgrade();
    let pinned = executor.pin(&netns).unwrap();
    let worker = pinned.run(gettid).unwrap();
    drop(netns);
    let again = weak.upgrade().expect("the worker is in it");
    drop(pinned);
    assert_eq!(executor.run(&again, gettid).unwrap(), worker);
    drop(again);
    assert_let_go(&executor, &weak);
}

#[test]
fn handles_that_came_about_otherwise_count_too() {
    type Another = fn(&Executor, &Netns) -> Netns;
    let others: [(&str, Another); 4] = [
        ("clone", |_, netns| netns.clone()),
        ("descriptor", |_, netns| {
            Netns::try_from(netns.as_fd()).unwrap()
        }),
        ("job", |executor, netns| {
            executor.run(netns, Netns::current).unwrap().unwrap()
        }),
        ("weak handle", |_, netns| {
            netns.downgrade().upgrade().unwrap()
        }),
    ];
    for (what, another) in others {
        let executor = with_idle(None);
        let netns = fresh();
        let weak = netns.downgrade();
        let other = another(&executor, &netns);
        let worker = executor.run(&netns, gettid).unwrap();
        drop(netns);
        assert_eq!(executor.run(&other, gettid).unwrap(), worker, "{what}");
        drop(other);
        assert_let_go(&executor, &weak);
    }
}

#[test]
fn namespace_that_lost_its_name_goes_with_its_last_handle() {
    let executor = with_idle(None);
    let named = TempNetns::new();
    let netns = named.netns().clone();
    let weak = netns.downgrade();
    executor.run(&netns, here).unwrap();
    named.delete();
    assert_without_workers(&executor);
    // The handle is as good as ever, and so are workers for it.
    let worker = executor.run(&netns, gettid).unwrap();
    assert_eq!(executor.run(&netns, gettid).unwrap(), worker);
    drop(netns);
    assert_let_go(&executor, &weak);
}

#[test]
fn workers_of_what_can_be_opened_again_stay() {
    let executor = with_idle(None);
    let named = TempNetns::new();
    let opened = || Netns::open(named.name()).unwrap();
    let worker = executor.run(&opened(), gettid).unwrap();
    let home = executor.run(&Netns::home().unwrap(), gettid).unwrap();
    for _ in 0..10 {
        assert_eq!(executor.run(&opened(), gettid).unwrap(), worker);
        assert_eq!(executor.run(&Netns::home().unwrap(), gettid).unwrap(), home);
    }
}

#[test]
fn handle_may_be_made_again_while_the_namespace_goes() {
    within("handles that come and go", || {
        for round in 0..20 {
            let executor = with_idle(None);
            let netns = fresh();
            let (id, weak) = (netns.id(), netns.downgrade());
            executor.run(&netns, here).unwrap();
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                let threads: Vec<_> = (0..2)
                    .map(|_| {
                        scope.spawn(|| {
                            // Each upgrade may be the first handle, and each drop the
                            // end of the last.
                            while let Some(netns) = weak.upgrade() {
                                assert_eq!(executor.run(&netns, here).unwrap(), id);
                                if stop.load(Ordering::Relaxed) {
                                    break;
                                }
                            }
                        })
                    })
                    .collect();
                drop(netns);
                if round % 2 == 0 {
                    thread::yield_now();
                }
                stop.store(true, Ordering::Relaxed);
                for thread in threads {
                    thread.join().unwrap();
                }
            });
            assert_let_go(&executor, &weak);
        }
    });
}

#[test]
fn call_with_a_handle_of_its_own_leaves_nothing_behind() {
    let executor = with_idle(None);
    let weak: Vec<_> = (0..20)
        .map(|_| {
            let netns = fresh();
            assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
            netns.downgrade()
        })
        .collect();
    for weak in &weak {
        assert_let_go(&executor, weak);
    }
    executor.shutdown(None).unwrap();
}

/// All that is awaited, or goes to many namespaces, keeps handles of the library's only.
#[test]
fn unnamed_namespace_goes_whichever_way_its_worker_came() {
    type Way = fn(&Executor, &Netns);
    let ways: [Way; 5] = [
        |executor, netns| executor.spawn_future(netns, async {}).join().unwrap(),
        |executor, netns| executor.spawn_local(netns, || async {}).join().unwrap(),
        |executor, netns| {
            let spawned = pollster::block_on(executor.spawn_async(netns, || ()));
            spawned.unwrap().join().unwrap();
        },
        |executor, netns| drop(pollster::block_on(executor.pin_async(netns)).unwrap()),
        |executor, netns| {
            let visited = executor.broadcast(std::slice::from_ref(netns), |_| ());
            assert!(visited.into_iter().all(|outcome| outcome.is_ok()));
        },
    ];
    for way in ways {
        let (executor, netns) = (with_idle(None), fresh());
        way(&executor, &netns);
        let weak = netns.downgrade();
        drop(netns);
        assert_let_go(&executor, &weak);
    }
}

/// A future holds its workers, and the namespace with them, until it is over.
#[test]
fn unnamed_namespace_stays_as_long_as_a_future_lives_there() {
    let (executor, netns) = (with_idle(None), fresh());
    let (id, weak) = (netns.id(), netns.downgrade());
    let (tell, told) = std::sync::mpsc::channel();
    let gate = std::sync::Arc::new(AtomicBool::new(false));
    let opened = std::sync::Arc::clone(&gate);
    let future = executor.spawn_future(
        &netns,
        std::future::poll_fn(move |cx| {
            if opened.load(Ordering::Acquire) {
                return std::task::Poll::Ready(here());
            }
            let _ = tell.send(cx.waker().clone());
            std::task::Poll::Pending
        }),
    );
    let waker = told.recv().unwrap();
    drop(netns);
    assert_eq!(executor.stats().workers, 1);
    gate.store(true, Ordering::Release);
    waker.wake();
    assert_eq!(future.join().unwrap(), id);
    assert_let_go(&executor, &weak);
}
