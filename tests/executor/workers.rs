//! Several workers: how many there are, and which namespaces they serve.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use netns_exec::{Builder, Executor, Netns, TrySpawnError};
use netns_exec_tests::{Gate, Held, Over, TempNetns, eventually, fresh, here, tid, within};

use super::{use_until_idle, with_workers};

// workers_per_netns

#[test]
fn as_many_jobs_as_workers_run_at_the_same_time() {
    within("jobs that wait for each other", || {
        for workers in [2, 3, 5, 8] {
            let executor = with_workers(workers);
            let netns = fresh();
            for _ in 0..30 {
                let all = Arc::new(Barrier::new(workers));
                let spawn = |_| {
                    let all = Arc::clone(&all);
                    executor
                        .spawn(&netns, move || all.wait().is_leader())
                        .unwrap()
                };
                let handles: Vec<_> = (0..workers).map(spawn).collect();
                let leaders = handles.into_iter().map(|h| h.join().unwrap());
                assert_eq!(leaders.filter(|leader| *leader).count(), 1);
            }
            assert_eq!(executor.stats().workers, workers);
        }
    });
}

#[test]
fn callers_of_run_meet_on_as_many_workers() {
    within("callers that wait for each other", || {
        let executor = with_workers(4);
        let netns = fresh();
        for _ in 0..50 {
            let all = Barrier::new(4);
            thread::scope(|scope| {
                for number in 0..4 {
                    let (executor, netns, all) = (&executor, &netns, &all);
                    scope.spawn(move || {
                        if number % 2 == 0 {
                            executor.run(netns, || all.wait()).unwrap();
                        } else {
                            executor.scope(|s| {
                                s.spawn(netns, || all.wait()).unwrap().join().unwrap();
                            });
                        }
                    });
                }
            });
        }
        assert_eq!(executor.stats().workers, 4);
    });
}

#[test]
fn one_slow_job_does_not_hold_up_the_others() {
    within("jobs beside a slow one", || {
        let executor = with_workers(2);
        let netns = fresh();
        for _ in 0..100 {
            let gate = Gate::new();
            let pass = gate.pass();
            let slow = executor.spawn(&netns, move || pass.stop()).unwrap();
            for _ in 0..5 {
                executor.run(&netns, || ()).unwrap();
                executor.spawn(&netns, || ()).unwrap().join().unwrap();
            }
            gate.open();
            slow.join().unwrap();
        }
    });
}

#[test]
fn workers_start_when_they_are_needed() {
    let executor = with_workers(8);
    let netns = fresh();
    for _ in 0..10 {
        executor.run(&netns, || ()).unwrap();
    }
    // Nearly always 1: a caller that finds the worker just turning to a job may start
    // another.
    let workers = executor.stats().workers;
    assert!(workers < 8, "{workers}");
}

// max_workers

#[test]
fn all_cpus_stands_for_as_many_workers_as_there_are_cpus() {
    // Whichever CPU the caller is bound to: workers go where the main thread may.
    let cpus = thread::available_parallelism().unwrap().get();
    let builder = Executor::builder().workers_per_netns(Builder::ALL_CPUS);
    let executor = netns_exec_tests::on_a_thread(|| {
        let mut one = nix::sched::CpuSet::new();
        let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
        let first = (0..nix::sched::CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap());
        one.set(first.unwrap()).unwrap();
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).unwrap();
        builder.build().unwrap()
    });
    let netns = fresh();
    let held: Vec<_> = (0..cpus).map(|_| Held::new(&executor, &netns)).collect();
    let queued = executor.spawn(&netns, || ()).unwrap();
    assert_eq!(executor.stats().workers, cpus);
    drop(held);
    queued.join().unwrap();
}

fn with_max(workers: usize) -> Executor {
    let builder = Executor::builder().max_workers(workers);
    builder.idle_timeout(None).build().unwrap()
}

fn is_served(executor: &Executor, netns: &Netns) -> bool {
    let stats = executor.stats();
    stats
        .per_netns
        .iter()
        .any(|one| one.id == netns.id() && one.workers > 0)
}

#[test]
fn least_recently_used_idle_worker_makes_room() {
    within("calls at the limit of workers", || {
        let executor = with_max(2);
        let (a, b, c) = (fresh(), fresh(), fresh());
        for netns in [&a, &b, &a] {
            use_until_idle(&executor, netns);
        }
        executor.run(&c, || ()).unwrap();
        assert!(is_served(&executor, &a) && is_served(&executor, &c));
        assert!(!is_served(&executor, &b), "used longest ago");
        assert_eq!(executor.stats().workers, 2);
        for _ in 0..30 {
            for netns in [&a, &b, &c] {
                assert_eq!(executor.run(netns, here).unwrap(), netns.id());
                assert!(executor.stats().workers <= 2);
            }
        }
    });
}

/// Calls the only worker of `netns`, and returns when it has settled down to sleep: its
/// thread.
#[test]
fn caller_waits_when_all_workers_are_busy() {
    within("a call at the limit of workers", || {
        let executor = with_max(1);
        let (busy, other) = (fresh(), fresh());
        let held = Held::new(&executor, &busy);
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| sender.send(executor.run(&other, here).unwrap()).unwrap());
            let early = receiver.recv_timeout(Duration::from_millis(50));
            assert!(early.is_err(), "there is no room");
            held.open();
            assert_eq!(receiver.recv().unwrap(), other.id());
        });
        held.end();
        assert_eq!(executor.stats().workers, 1);
    });
}

#[test]
fn caller_that_waits_for_room_hears_of_the_shutdown() {
    within("a call at the limit of workers", || {
        let executor = with_max(1);
        let (busy, other) = (fresh(), fresh());
        let held = Held::new(&executor, &busy);
        let clone = executor.clone();
        let waiting = thread::spawn(move || clone.run(&other, here));
        let closer = thread::spawn(move || executor.shutdown(None));
        let error = waiting.join().unwrap().unwrap_err();
        assert!(error.is_shut_down(), "{error}");
        held.end();
        closer.join().unwrap().unwrap();
    });
}

#[test]
fn try_spawn_that_found_no_room_finds_it_later() {
    let executor = with_max(1);
    let (a, b) = (fresh(), fresh());
    executor.run(&a, || ()).unwrap();
    let mut f = Some(here);
    eventually("the idle worker has made room", || {
        match executor.try_spawn(&b, f.take().unwrap()) {
            Ok(handle) => handle.join().unwrap() == b.id(),
            Err(error @ TrySpawnError::Full(_)) => {
                f = Some(error.into_closure());
                false
            }
            Err(error) => panic!("{error}"),
        }
    });
}

#[test]
fn one_worker_makes_room_for_one_caller() {
    let executor = with_max(3);
    let (busy, wanted) = (fresh(), fresh());
    let held = Held::new(&executor, &busy);
    let idle = [fresh(), fresh()];
    let tids = [&idle[0], &idle[1]].map(|netns| use_until_idle(&executor, netns));
    // Its caller does not wait, and asks again and again.
    let mut f = Some(here);
    eventually("an idle worker has made room", || {
        (0..10_000).any(|_| match executor.try_spawn(&wanted, f.take().unwrap()) {
            Ok(handle) => handle.join().unwrap() == wanted.id(),
            Err(error) => {
                f = Some(error.into_closure());
                false
            }
        })
    });
    assert!(!is_served(&executor, &idle[0]), "idle for longest");
    assert_eq!(executor.run(&idle[1], tid).unwrap(), tids[1]);
    held.end();
}

#[test]
fn caller_gets_room_from_a_worker_that_is_called_without_a_pause() {
    within("a call beside a hot loop", || {
        let executor = with_max(1);
        let (hot, other) = (fresh(), fresh());
        let (over, calls) = (Over::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            let _over = over.comes_with_drop();
            scope.spawn(|| {
                while !over.has_come() {
                    executor.run(&hot, || ()).unwrap();
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
            for _ in 0..10 {
                let before = calls.load(Ordering::Relaxed);
                eventually("the loop is hot", || {
                    calls.load(Ordering::Relaxed) > before + 200
                });
                assert_eq!(executor.run(&other, here).unwrap(), other.id());
            }
        });
    });
}

#[test]
fn pinned_workers_are_not_chosen_to_make_room() {
    within("calls beside a pinned namespace", || {
        let executor = with_max(2);
        let (kept, a, b) = (fresh(), fresh(), fresh());
        let pinned = executor.pin(&kept).unwrap();
        let first = pinned.run(|| thread::current().id()).unwrap();
        for _ in 0..20 {
            executor.run(&a, || ()).unwrap();
            executor.run(&b, || ()).unwrap();
        }
        assert_eq!(pinned.run(|| thread::current().id()).unwrap(), first);
    });
}

#[test]
fn many_callers_share_few_workers() {
    within("many namespaces, few workers", || {
        let executor = with_max(3);
        let spaces: Vec<_> = (0..9).map(|_| fresh()).collect();
        thread::scope(|scope| {
            for number in 0..12 {
                let (executor, spaces) = (&executor, &spaces);
                scope.spawn(move || {
                    for round in 0..40 {
                        let netns = &spaces[(number * 5 + round) % 9];
                        assert_eq!(executor.run(netns, here).unwrap(), netns.id());
                    }
                });
            }
        });
        assert!(executor.stats().workers <= 3);
        assert_eq!(executor.stats().done, 12 * 40);
    });
}

// Which namespace is which

#[test]
fn name_pid_and_descriptor_of_one_namespace_share_its_workers() {
    let temp = TempNetns::new();
    let mut child = Command::new("ip")
        .args([
            "netns",
            "exec",
            temp.name(),
            "sh",
            "-c",
            "echo up; exec cat",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let path = format!("/run/netns/{}", temp.name());
    let handles = [
        Netns::open(temp.name()).unwrap(),
        Netns::from_pid(child.id()).unwrap(),
        Netns::from_fd(OwnedFd::from(File::open(&path).unwrap())).unwrap(),
        Netns::from_path(&path).unwrap(),
    ];
    drop(child.stdin.take());
    child.wait().unwrap();
    let executor = Executor::new().unwrap();
    let threads = handles.each_ref().map(|netns| {
        let run = executor.run(netns, || thread::current().id()).unwrap();
        let spawned = executor.spawn(netns, || thread::current().id()).unwrap();
        assert_eq!(spawned.join().unwrap(), run);
        run
    });
    assert!(threads.iter().all(|thread| *thread == threads[0]));
    assert_eq!(executor.stats().workers, 1);
    assert_eq!(executor.stats().per_netns.len(), 1);
    // Inline, by any of the handles.
    let [one, two, ..] = &handles;
    let inner = || executor.run(two, || thread::current().id()).unwrap();
    assert_eq!(executor.run(one, inner).unwrap(), threads[0]);
}

#[test]
fn name_made_anew_is_served_by_others_and_the_old_handle_means_the_old_one() {
    let temp = TempNetns::new();
    let old = temp.netns().clone();
    let executor = Executor::new().unwrap();
    let before = executor.run(&old, here).unwrap();
    Netns::delete(temp.name()).unwrap();
    let new = Netns::create(temp.name()).unwrap();
    for _ in 0..10 {
        assert_eq!(executor.run(&old, here).unwrap(), before);
        assert_eq!(executor.run(&new, here).unwrap(), new.id());
    }
    assert_ne!(before, new.id());
}
