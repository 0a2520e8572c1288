//! The threads: where they are, where they come from, what they look like.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{Executor, Netns};
use netns_exec_tests::{
    Alone, GUARDS, TempName, alone, blocked_signals, blocked_signals_of, eventually, fresh, here,
    ip, netns_link_of, netns_link_of_this_thread, require_root, status_of, tid, tids, within,
};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::Pid;

/// Where a thread of this process is, as all other threads see it.
fn link_of_thread(tid: i32) -> Option<String> {
    let link = fs::read_link(format!("/proc/self/task/{tid}/ns/net")).ok()?;
    Some(link.to_str().unwrap().to_owned())
}

/// Where all threads of this process are.
fn links_of_all_threads() -> Vec<String> {
    tids().into_iter().filter_map(link_of_thread).collect()
}

/// All signals but SIGKILL and SIGSTOP, which cannot be blocked, the two that libc
/// keeps for itself, and those that a thread's own fault raises.
fn all_signals() -> u64 {
    let open = [4, 5, 7, 8, 9, 11, 19, 31, 32, 33];
    !open.map(|signal| 1_u64 << (signal - 1)).iter().sum::<u64>()
}

#[test]
fn two_hundred_threads_call_into_sixteen_namespaces_and_never_move() {
    let executor = Executor::new().unwrap();
    let spaces: Vec<_> = (0..16).map(|_| fresh()).collect();
    let links: Vec<_> = spaces.iter().map(netns_link_of).collect();
    let home = netns_link_of_this_thread();
    let start = Barrier::new(200);
    thread::scope(|scope| {
        for number in 0..200 {
            let (executor, spaces, links) = (&executor, &spaces, &links);
            let (home, start) = (&home, &start);
            scope.spawn(move || {
                let me = tid();
                start.wait();
                assert_eq!(netns_link_of_this_thread(), *home, "before");
                for round in 0..40 {
                    let at = (number * 7 + round * 3) % 16;
                    let (there, caller, worker) = executor
                        .run(&spaces[at], || {
                            (netns_link_of_this_thread(), link_of_thread(me), tid())
                        })
                        .unwrap();
                    assert_eq!(there, links[at]);
                    assert_eq!(caller.as_ref(), Some(home), "during");
                    assert_ne!(worker, me);
                    assert_eq!(netns_link_of_this_thread(), *home, "after");
                }
            });
        }
        // Meanwhile, every thread in one of the namespaces is a worker.
        start_watch(&executor, &links);
    });
    assert_eq!(executor.stats().done, 200 * 40);
    assert_eq!(executor.stats().workers, 16);

    executor.shutdown(None).unwrap();
    let links: HashSet<_> = links.into_iter().collect();
    assert!(
        !links_of_all_threads()
            .iter()
            .any(|link| links.contains(link))
    );
}

/// Looks again and again, until all calls are done.
fn start_watch(executor: &Executor, links: &[String]) {
    eventually("all calls are done", || {
        let there = links_of_all_threads();
        let inside = there.iter().filter(|link| links.contains(link)).count();
        assert!(inside <= 16, "one worker for each namespace: {inside}");
        executor.stats().done == 200 * 40
    });
}

#[test]
fn after_shutdown_no_thread_is_left_in_any_namespace() {
    for guard in GUARDS {
        let executor = Executor::builder()
            .workers_per_netns(3)
            .guard(guard)
            .build()
            .unwrap();
        let spaces = [fresh(), fresh(), fresh()];
        let all = Barrier::new(9);
        executor.scope(|scope| {
            for netns in spaces.iter().cycle().take(9) {
                drop(scope.spawn(netns, || all.wait()).unwrap());
            }
        });
        let nested = || executor.run(&spaces[1], || executor.run(&spaces[0], here));
        executor.run(&spaces[0], nested).unwrap().unwrap().unwrap();
        let links = spaces.each_ref().map(netns_link_of);
        assert!(links_of_all_threads().contains(&links[0]));
        executor.shutdown(None).unwrap();
        let left = links_of_all_threads();
        assert!(!left.iter().any(|link| links.contains(link)), "{guard:?}");
    }
}

#[test]
fn workers_mask_every_signal_under_every_guard() {
    let netns = fresh();
    for guard in GUARDS {
        let executor = Executor::builder().guard(guard).build().unwrap();
        let mask = executor.run(&netns, blocked_signals).unwrap();
        assert_eq!(mask, all_signals(), "{mask:x}");
    }
    assert_ne!(blocked_signals(), all_signals(), "and callers keep theirs");
}

#[test]
fn threads_of_the_library_that_are_no_workers_mask_signals_and_are_at_home() {
    alone!(Alone::AsIs);
    let before = tids();
    let executor = Executor::new().unwrap();
    let netns = TempName::new();
    let netns = Netns::create(&netns).unwrap();
    executor.run(&netns, || ()).unwrap();
    eventually("its worker idles", || executor.stats().running == 0);
    executor.retire(&netns).unwrap();
    let home = netns_link_of_this_thread();
    for tid in tids().difference(&before) {
        let name = status_of(*tid, "Name");
        // It may be one that is just ending, where libc masks those that are its own as well.
        if blocked_signals_of(*tid).is_some_and(|mask| mask != all_signals()) {
            eventually(
                &format!("only a thread that ends masks others: {name:?}"),
                || blocked_signals_of(*tid).is_none(),
            );
        }
        if let Some(link) = link_of_thread(*tid) {
            assert_eq!(link, home, "{:?}", status_of(*tid, "Name"));
        }
    }
}

#[test]
fn names_are_readable_in_ps() {
    alone!(Alone::FreshRun);
    let blue = Netns::create("blue").unwrap();
    let long = Netns::create("a-name-that-is-much-too-long").unwrap();
    let executor = Executor::new().unwrap();
    let ps = || {
        let pid = std::process::id().to_string();
        let output = Command::new("ps")
            .args(["-L", "-o", "comm=", "-p", &pid])
            .output();
        String::from_utf8(output.expect("the tests need ps(1)").stdout).unwrap()
    };
    let has = |name: &str| ps().lines().any(|line| line.trim() == name);
    executor.run(&blue, || ()).unwrap();
    assert!(has("ns:blue/0"), "{}", ps());
    executor.run(&long, || ()).unwrap();
    assert!(has("ns:a-name-tha/1"), "{}", ps());
    let name = executor.run(&blue, || thread::current().name().map(str::to_owned));
    assert_eq!(name.unwrap().as_deref(), Some("ns:blue/0"));

    let other = Executor::builder().name_prefix("vpn").build().unwrap();
    other.run(&blue, || ()).unwrap();
    assert!(has("vpn:blue/0"), "{}", ps());
}

#[test]
fn workers_inherit_nothing_from_a_caller_that_is_first_and_odd() {
    alone!(Alone::AsIs);
    require_root();
    let name = TempName::new();
    // Not with this library, which has not been used here yet.
    ip(&["netns", "add", &name]);
    let file = fs::File::open(format!("/run/netns/{}", &*name)).unwrap();
    let home = netns_link_of_this_thread();
    let cpus = sched_getaffinity(Pid::from_raw(0)).unwrap();
    within("a caller in another namespace", move || {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGUSR1);
        mask.thread_swap_mask(SigmaskHow::SIG_SETMASK).unwrap();
        let first = (0..CpuSet::count()).find(|&cpu| cpus.is_set(cpu).unwrap());
        let mut one = CpuSet::new();
        one.set(first.unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
        let away = netns_link_of_this_thread();
        assert_ne!(away, home);

        let executor = Executor::new().unwrap();
        let there = Netns::current().unwrap();
        let elsewhere = Netns::new().unwrap();
        let at_home = Netns::home().unwrap();
        assert_eq!(netns_link_of(&there), away);
        assert_eq!(netns_link_of(&at_home), home);
        for netns in [&there, &elsewhere, &at_home] {
            let look = || {
                let affinity = sched_getaffinity(Pid::from_raw(0)).unwrap();
                (netns_link_of_this_thread(), blocked_signals(), affinity)
            };
            let (link, mask, affinity) = executor.run(netns, look).unwrap();
            assert_eq!(link, netns_link_of(netns));
            assert_eq!(mask, all_signals());
            assert_eq!(affinity, cpus);
        }
        // And the caller is what it was.
        assert_eq!(netns_link_of_this_thread(), away);
        assert_eq!(SigSet::thread_get_mask().unwrap(), mask);
        assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), one);
        executor.shutdown(None).unwrap();
    });
}

fn affinity() -> CpuSet {
    sched_getaffinity(Pid::from_raw(0)).unwrap()
}

/// Calls a worker in all the rhythms in which its callers may move it to another
/// CPU, and checks that no job sees more or less than `cpus`.
fn jobs_see(cpus: CpuSet, executor: &Executor, netns: &Netns) {
    for gap in [0, 0, 0, 30, 100, 300, 1_000, 21_000] {
        let calls = if gap < 1_000 { 300 } else { 20 };
        for _ in 0..calls {
            assert_eq!(executor.run(netns, affinity).unwrap(), cpus, "gap {gap}");
            let start = Instant::now();
            if gap % 1_000 == 0 {
                thread::sleep(Duration::from_micros(gap));
            } else {
                while start.elapsed() < Duration::from_micros(gap) {}
            }
        }
    }
}

#[test]
fn jobs_may_run_on_all_cpus_wherever_the_caller_is() {
    let netns = fresh();
    let executor = Executor::new().unwrap();
    jobs_see(affinity(), &executor, &netns);
}

#[test]
fn cpus_that_a_job_chose_stay_chosen() {
    let netns = fresh();
    let executor = Executor::new().unwrap();
    let all = affinity();
    let cpus = (0..CpuSet::count()).filter(|&cpu| all.is_set(cpu).unwrap());
    for cpu in cpus.take(2) {
        let mut one = CpuSet::new();
        one.set(cpu).unwrap();
        let choose = || sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        executor.run(&netns, choose).unwrap();
        jobs_see(one, &executor, &netns);
    }
}

#[test]
fn caller_may_be_in_any_namespace_later_on() {
    let executor = Executor::new().unwrap();
    let (away, target) = (fresh(), fresh());
    let away_link = netns_link_of(&away);
    thread::scope(|scope| {
        scope.spawn(|| {
            setns(away.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            // The calling thread is there, and still no worker: nothing is inline.
            let (id, thread) = executor
                .run(&away, || (here(), thread::current().id()))
                .unwrap();
            assert_eq!(id, away.id());
            assert_ne!(thread, thread::current().id());
            assert_eq!(executor.run(&target, here).unwrap(), target.id());
            assert_eq!(netns_link_of_this_thread(), away_link);
        });
    });
}

#[test]
fn worker_has_workers_made_at_home() {
    let (a, b) = (fresh(), fresh());
    for guard in GUARDS {
        let executor = Executor::builder().guard(guard).build().unwrap();
        // Sealed, a worker could neither create a thread nor enter anything.
        let look = || (netns_link_of_this_thread(), blocked_signals());
        let seen = executor.run(&a, || executor.run(&b, look).unwrap());
        assert_eq!(seen.unwrap(), (netns_link_of(&b), all_signals()));
        // So can a job make an executor of its own, and namespaces.
        let seen = executor.run(&a, || {
            let own = Executor::new().unwrap();
            let made = Netns::new().unwrap();
            own.run(&made, here).unwrap() == made.id()
        });
        assert!(seen.unwrap(), "{guard:?}");
    }
}

#[test]
fn threads_that_jobs_leave_to_home_stay_there() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    let home = netns_link_of_this_thread();
    executor.run(&netns, || ()).unwrap();
    // A thread of the caller's, made while a job of its own is under way.
    let link = thread::scope(|scope| {
        let handle = executor.spawn(&netns, || ()).unwrap();
        let link = scope.spawn(netns_link_of_this_thread).join().unwrap();
        handle.join().unwrap();
        link
    });
    assert_eq!(link, home);
}
