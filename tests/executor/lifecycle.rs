//! How workers come and go, and how an executor ends.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{Executor, Netns, TrySpawnError};
use netns_exec_tests::{
    Alone, Gate, Pass, TempNetns, alone, eventually, fresh, here, ip, sleeps_soundly, try_ip,
    within,
};

fn with_idle(timeout: Option<Duration>) -> Executor {
    Executor::builder().idle_timeout(timeout).build().unwrap()
}

const SOON: Option<Duration> = Some(Duration::from_millis(1));

/// Sends a message when it is dropped.
struct Bell(mpsc::Sender<&'static str>, &'static str);

impl Drop for Bell {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

// Idle

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

// Several workers

#[test]
fn as_many_jobs_as_workers_run_at_the_same_time() {
    within("jobs that wait for each other", || {
        for workers in [2, 3, 5, 8] {
            let executor = Executor::builder()
                .workers_per_netns(workers)
                .build()
                .unwrap();
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
        let executor = Executor::builder().workers_per_netns(4).build().unwrap();
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
        let executor = Executor::builder().workers_per_netns(2).build().unwrap();
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
    let executor = Executor::builder().workers_per_netns(8).build().unwrap();
    let netns = fresh();
    for _ in 0..10 {
        executor.run(&netns, || ()).unwrap();
    }
    // Nearly always 1: who finds the worker just turning to a job may start another.
    let workers = executor.stats().workers;
    assert!(workers < 8, "{workers}");
}

// max_workers

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

/// Calls the only worker of `netns`, and returns when it has settled down to sleep.
fn use_until_idle(executor: &Executor, netns: &Netns) {
    let tid = executor.run(netns, || nix::unistd::gettid().as_raw());
    let tid = tid.unwrap();
    eventually("the worker sleeps", || sleeps_soundly(tid));
}

#[test]
fn caller_waits_when_all_workers_are_busy() {
    within("a call at the limit of workers", || {
        let executor = with_max(1);
        let (busy, other) = (fresh(), fresh());
        let gate = Gate::new();
        let pass = gate.pass();
        let running = executor.spawn(&busy, move || pass.stop()).unwrap();
        gate.wait_for(1);
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| sender.send(executor.run(&other, here).unwrap()).unwrap());
            let early = receiver.recv_timeout(Duration::from_millis(50));
            assert!(early.is_err(), "there is no room");
            gate.open();
            assert_eq!(receiver.recv().unwrap(), other.id());
        });
        running.join().unwrap();
        assert_eq!(executor.stats().workers, 1);
    });
}

#[test]
fn caller_that_waits_for_room_hears_of_the_shutdown() {
    within("a call at the limit of workers", || {
        let executor = with_max(1);
        let (busy, other) = (fresh(), fresh());
        let gate = Gate::new();
        let pass = gate.pass();
        let running = executor.spawn(&busy, move || pass.stop()).unwrap();
        gate.wait_for(1);
        let clone = executor.clone();
        let waiting = thread::spawn(move || clone.run(&other, here));
        let closer = thread::spawn(move || executor.shutdown(None));
        let error = waiting.join().unwrap().unwrap_err();
        assert!(error.is_shut_down(), "{error}");
        gate.open();
        running.join().unwrap();
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

// retire

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
        let gate = Gate::new();
        let pass = gate.pass();
        let ran = Arc::new(AtomicU32::new(0));
        let running = executor.spawn(&netns, move || pass.stop()).unwrap();
        gate.wait_for(1);
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
        gate.open();
        retire.join().unwrap();
        running.join().unwrap();
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
        let stop = AtomicBool::new(false);
        let calls = AtomicU32::new(0);
        thread::scope(|scope| {
            for number in 0..3 {
                let (executor, netns, stop, calls) = (&executor, &netns, &stop, &calls);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
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
            stop.store(true, Ordering::Relaxed);
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

// Identity

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
    // Inline, by whichever handle.
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

// Statistics of what comes and goes

#[test]
fn totals_are_exact_while_workers_come_and_go() {
    let executor = with_idle(Some(Duration::from_micros(1)));
    let netns = fresh();
    let made = AtomicU32::new(0);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..1000 {
                executor.run(&netns, || ()).unwrap();
                made.fetch_add(1, Ordering::SeqCst);
            }
            over.store(true, Ordering::SeqCst);
        });
        while !over.load(Ordering::SeqCst) {
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

#[test]
fn jobs_of_a_namespace_on_its_way_out_are_in_the_totals() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let gate = Gate::new();
    executor.run(&netns, || ()).unwrap();
    let running = busy(&executor, &netns, gate.pass());
    gate.wait_for(1);
    thread::scope(|scope| {
        scope.spawn(|| executor.retire(&netns).unwrap());
        eventually("retiring has begun", || {
            executor.stats().per_netns.is_empty()
        });
        let stats = executor.stats();
        assert_eq!((stats.workers, stats.running, stats.done), (1, 1, 1));
        gate.open();
    });
    running.join().unwrap();
    let stats = executor.stats();
    assert_eq!((stats.workers, stats.running, stats.done), (0, 0, 2));
}

// The end of an executor

#[test]
fn dropping_the_last_handle_drains_and_joins() {
    // A child that another test starts has all our descriptors until it executes
    // its program, and so keeps namespaces alive.
    alone!(Alone::AsIs);
    let netns = fresh();
    let count = Arc::new(AtomicU32::new(0));
    let executor = Executor::builder().queue_depth(1000).build().unwrap();
    let clone = executor.clone();
    let gate = Gate::new();
    let pass = gate.pass();
    drop(executor.spawn(&netns, move || pass.stop()));
    gate.wait_for(1);
    for _ in 0..500 {
        let count = Arc::clone(&count);
        drop(executor.spawn(&netns, move || count.fetch_add(1, Ordering::SeqCst)));
    }
    drop(clone);
    assert_eq!(count.load(Ordering::SeqCst), 0, "not the last");
    gate.open();
    drop(executor);
    assert_eq!(count.load(Ordering::SeqCst), 500);
    let weak = netns.downgrade();
    drop(netns);
    assert_eq!(weak.upgrade(), None, "the workers' threads are gone");
}

#[test]
fn pinned_is_a_handle_too() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let pinned = executor.pin(&netns).unwrap();
    drop(executor);
    assert_eq!(pinned.run(here).unwrap(), netns.id());
}

#[test]
fn handles_are_good_after_the_executor_is_gone() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let handle = executor.spawn(&netns, || 5).unwrap();
    drop(executor);
    assert!(handle.is_finished());
    assert_eq!(handle.join().unwrap(), 5);
}

#[test]
fn dropped_inside_one_of_its_jobs_it_runs_what_was_accepted() {
    within("an executor dropped inside its job", || {
        let netns = fresh();
        let executor = Executor::new().unwrap();
        let (sender, receiver) = mpsc::channel();
        let gate = Gate::new();
        let (pass, last) = (gate.pass(), executor.clone());
        let first = executor.spawn(&netns, move || {
            pass.stop();
            drop(last);
            7
        });
        gate.wait_for(1);
        let queued = executor.spawn(&netns, || 8).unwrap();
        let bell = Bell(sender, "rung");
        drop(executor.spawn(&netns, move || drop(bell)));
        drop(executor);
        gate.open();
        // Run or reported as cancelled: never left without an answer.
        assert_eq!(first.unwrap().join().unwrap(), 7);
        match queued.join() {
            Ok(value) => assert_eq!(value, 8),
            Err(error) => assert!(error.is_cancelled(), "{error}"),
        }
        assert_eq!(receiver.recv(), Ok("rung"));
        let weak = netns.downgrade();
        drop(netns);
        eventually("the worker has left", || weak.upgrade().is_none());
    });
}

#[test]
fn dropped_by_what_a_job_captured_or_returned_it_does_not_deadlock() {
    within("an executor dropped on its worker", || {
        let netns = fresh();
        for _ in 0..20 {
            // With the closure of a job, with its result, with a cancelled one.
            let executor = Executor::new().unwrap();
            let last = executor.clone();
            let (sender, receiver) = mpsc::channel();
            let bell = Bell(sender, "over");
            drop(executor.spawn(&netns, move || {
                let _bell = bell;
                last
            }));
            drop(executor);
            assert_eq!(receiver.recv(), Ok("over"));

            let executor = Executor::new().unwrap();
            let gate = Gate::new();
            let pass = gate.pass();
            drop(executor.spawn(&netns, move || pass.stop()));
            gate.wait_for(1);
            let last = executor.clone();
            let queued = executor.spawn(&netns, move || drop(last)).unwrap();
            drop(executor);
            assert!(queued.cancel());
            assert!(queued.join().unwrap_err().is_cancelled());
            gate.open();
        }
        let weak = netns.downgrade();
        drop(netns);
        eventually("all workers have left", || weak.upgrade().is_none());
    });
}

#[test]
fn dropped_inside_a_nested_job_it_does_not_deadlock() {
    within("an executor dropped inside a nested job", || {
        let (a, b) = (fresh(), fresh());
        let executor = Executor::new().unwrap();
        let last = executor.clone();
        let (aa, bb) = (a.clone(), b.clone());
        let handle = executor.spawn(&a, move || {
            let inner = last.clone();
            let (to_drop, again) = (last.clone(), last.clone());
            drop(last);
            let id = inner.run(&bb, move || {
                drop(to_drop);
                again.run(&aa, here).unwrap()
            });
            drop(inner);
            id.unwrap()
        });
        drop(executor);
        // The rest of the executor may be closed before the nested calls begin:
        // then they are refused, and the job panics over that.
        match handle.unwrap().join() {
            Ok(id) => assert_eq!(id, a.id()),
            Err(error) => panic!("handles were left, so nothing was closed: {error}"),
        }
    });
}

#[test]
fn handle_dropped_unjoined_lets_its_job_run() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let (sender, receiver) = mpsc::channel();
    for _ in 0..3 {
        let sender = sender.clone();
        drop(executor.spawn(&netns, move || sender.send(here()).unwrap()));
        assert_eq!(receiver.recv(), Ok(netns.id()));
    }
}

#[test]
fn shutdown_runs_what_was_accepted_and_refuses_the_rest_through_all_handles() {
    let executor = Executor::new().unwrap();
    let (netns, other) = (fresh(), fresh());
    let clone = executor.clone();
    let pinned = executor.pin(&netns).unwrap();
    let handles: Vec<_> = (0..50)
        .map(|n| executor.spawn(&netns, move || n).unwrap())
        .collect();
    executor.shutdown(None).unwrap();
    for (n, handle) in handles.into_iter().enumerate() {
        assert_eq!(handle.join().unwrap(), n);
    }
    for netns in [&netns, &other] {
        assert!(clone.run(netns, || ()).unwrap_err().is_shut_down());
        assert!(clone.spawn(netns, || ()).unwrap_err().is_shut_down());
        assert!(clone.pin(netns).unwrap_err().is_shut_down());
        match clone.try_spawn(netns, || 4) {
            Err(TrySpawnError::Failed(error, f)) => {
                assert!(error.is_shut_down(), "{error}");
                assert_eq!(f(), 4);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(pinned.run(|| ()).unwrap_err().is_shut_down());
    assert!(pinned.spawn(|| ()).unwrap_err().is_shut_down());
    let stats = clone.stats();
    assert_eq!((stats.workers, stats.done), (0, 50));
    clone.clone().shutdown(None).unwrap();
    clone.shutdown(Some(Duration::ZERO)).unwrap();
}

fn busy(executor: &Executor, netns: &Netns, pass: Pass) -> netns_exec::JoinHandle<u32> {
    let spawned = executor.spawn(netns, move || {
        pass.stop();
        1
    });
    spawned.unwrap()
}

#[test]
fn shutdown_with_a_limit_returns_in_time_and_cancels_what_has_not_started() {
    within("shutdown with a time limit", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let gate = Gate::new();
        let running = busy(&executor, &netns, gate.pass());
        gate.wait_for(1);
        let ran = Arc::new(AtomicU32::new(0));
        let queued: Vec<_> = (0..10)
            .map(|_| {
                let ran = Arc::clone(&ran);
                executor
                    .spawn(&netns, move || ran.fetch_add(1, Ordering::SeqCst))
                    .unwrap()
            })
            .collect();
        let begin = Instant::now();
        // The last handle: its drop must not wait either.
        let error = executor
            .shutdown(Some(Duration::from_millis(50)))
            .unwrap_err();
        assert!(error.is_timed_out(), "{error}");
        assert!(begin.elapsed() >= Duration::from_millis(50));
        assert!(!running.is_finished());
        gate.open();
        assert_eq!(running.join().unwrap(), 1, "a job that runs is let end");
        for handle in queued {
            let error = handle.join().unwrap_err();
            assert!(error.is_cancelled(), "{error}");
        }
        assert_eq!(ran.load(Ordering::SeqCst), 0);
        let weak = netns.downgrade();
        drop(netns);
        eventually("the worker has left", || weak.upgrade().is_none());
    });
}

#[test]
fn run_that_waits_in_the_queue_is_cancelled_by_the_limit() {
    within("shutdown with a time limit", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let gate = Gate::new();
        let running = busy(&executor, &netns, gate.pass());
        gate.wait_for(1);
        thread::scope(|scope| {
            let clone = executor.clone();
            let netns = &netns;
            let caller = scope.spawn(move || clone.run(netns, || unreachable!("cancelled")));
            eventually("the call is queued", || executor.stats().queued == 1);
            executor.shutdown(Some(Duration::ZERO)).unwrap_err();
            gate.open();
            let result: Result<(), _> = caller.join().unwrap();
            assert!(result.unwrap_err().is_cancelled());
        });
        running.join().unwrap();
    });
}

#[test]
fn limit_holds_for_jobs_of_namespaces_retired_before() {
    within("shutdown after retire", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let gate = Gate::new();
        let running = busy(&executor, &netns, gate.pass());
        gate.wait_for(1);
        let retire = thread::spawn({
            let (executor, netns) = (executor.clone(), netns.clone());
            move || executor.retire(&netns)
        });
        eventually("retiring has begun", || {
            executor.stats().per_netns.is_empty()
        });
        let error = executor
            .shutdown(Some(Duration::from_millis(20)))
            .unwrap_err();
        assert!(error.is_timed_out(), "{error}");
        gate.open();
        running.join().unwrap();
        retire.join().unwrap().unwrap();
    });
}

#[test]
fn limit_holds_for_the_second_who_shuts_down() {
    within("two shut down", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let gate = Gate::new();
        let running = busy(&executor, &netns, gate.pass());
        gate.wait_for(1);
        let clone = executor.clone();
        let first = thread::spawn(move || clone.shutdown(None));
        eventually("closing has begun", || {
            executor.stats().per_netns.is_empty()
        });
        let error = executor
            .shutdown(Some(Duration::from_millis(20)))
            .unwrap_err();
        assert!(error.is_timed_out(), "{error}");
        gate.open();
        running.join().unwrap();
        first.join().unwrap().unwrap();
    });
}

#[test]
fn sender_that_waits_for_room_at_shutdown_gets_an_answer() {
    within("senders at shutdown", || {
        for _ in 0..30 {
            let executor = Executor::builder().queue_depth(1).build().unwrap();
            let netns = fresh();
            let gate = Gate::new();
            let running = busy(&executor, &netns, gate.pass());
            gate.wait_for(1);
            let senders: Vec<_> = (0..4)
                .map(|_| {
                    let (executor, netns) = (executor.clone(), netns.clone());
                    thread::spawn(move || executor.spawn(&netns, || 3)?.join())
                })
                .collect();
            eventually("the queue is full", || executor.stats().queued == 1);
            let closer = thread::spawn(move || executor.shutdown(None));
            gate.open();
            running.join().unwrap();
            closer.join().unwrap().unwrap();
            for sender in senders {
                match sender.join().unwrap() {
                    Ok(value) => assert_eq!(value, 3),
                    Err(error) => assert!(error.is_shut_down(), "{error}"),
                }
            }
        }
    });
}

#[test]
fn many_executors_come_and_go_without_a_trace() {
    // A child that another test starts has all our descriptors until it executes
    // its program, and so keeps namespaces alive.
    alone!(Alone::AsIs);
    let netns = fresh();
    for _ in 0..50 {
        let executor = Executor::builder().workers_per_netns(2).build().unwrap();
        let handles = [(); 4].map(|()| executor.spawn(&netns, here).unwrap());
        drop(executor);
        for handle in handles {
            assert_eq!(handle.join().unwrap(), netns.id());
        }
    }
    let weak = netns.downgrade();
    drop(netns);
    assert_eq!(weak.upgrade(), None);
}
