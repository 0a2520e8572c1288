//! How workers are woken: by notification, by futex, and by one after the other.
#![allow(unsafe_code)]

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{Executor, Netns};
use netns_exec_tests::{
    Alone, Gate, Over, alone, end_thread, eventually, fresh, sleeps_in, sleeps_of, sleeps_soundly,
    tid, tids_named, within,
};
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};

use super::with_idle;

/// How many of the executor's workers are woken by notification, of how many.
fn rung(executor: &Executor) -> (usize, usize) {
    let stats = executor.stats();
    let rung = stats.per_netns.iter().map(|netns| netns.rung).sum();
    (rung, stats.workers)
}

/// Calls in every way, with the worker hot, asleep for a moment and asleep for long.
fn call_in_every_way(executor: &Executor, netns: &Netns) {
    for n in 0..200 {
        assert_eq!(executor.run(netns, || n).unwrap(), n);
    }
    for pause in [100, 1_000, 30_000] {
        for n in 0..5 {
            thread::sleep(Duration::from_micros(pause));
            assert_eq!(executor.run(netns, || n).unwrap(), n);
            thread::sleep(Duration::from_micros(pause));
            assert_eq!(executor.spawn(netns, move || n).unwrap().join().unwrap(), n);
        }
    }
    // A job that is longer than any spin, with others behind it.
    thread::scope(|scope| {
        for n in 0..8 {
            scope.spawn(move || {
                let job = || {
                    thread::sleep(Duration::from_millis(1));
                    n
                };
                for _ in 0..10 {
                    assert_eq!(executor.run(netns, job).unwrap(), n);
                }
            });
        }
    });
}

/// The call that a worker sleeps in whose caller slept, with an operation that no kernel
/// has.
const TRAP: i64 = libc::SYS_prctl;

/// Has the worker of `netns` sleep in its trap, with nothing to do.
fn have_it_trapped(executor: &Executor, netns: &Netns) {
    // Not after a call that went through the queue, as the first one does, or whose caller
    // had no need to sleep.
    eventually("the worker sleeps in its trap", || {
        let worker = executor.run(netns, tid).unwrap();
        eventually("the worker sleeps", || sleeps_soundly(worker));
        sleeps_in(worker) == Some(TRAP)
    });
}

#[test]
fn worker_that_has_been_idle_for_long_is_woken_as_cheaply_as_before() {
    let (executor, netns) = (with_idle(None), fresh());
    have_it_trapped(&executor, &netns);
    for _ in 0..3 {
        let job = || (tid(), sleeps_of(tid()).unwrap());
        let (worker, before) = executor.run(&netns, job).unwrap();
        // After the call, and once more when it has seen to itself.
        eventually("it has been idle for long", || {
            sleeps_of(worker).unwrap() >= before + 2 && sleeps_in(worker) == Some(TRAP)
        });
    }
    // The queue has had all of its jobs.
    let worker = executor.spawn(&netns, tid).unwrap().join().unwrap();
    eventually("it waits for callers", || sleeps_in(worker) == Some(TRAP));
}

#[test]
fn thread_that_listens_is_not_woken_by_each_call_after_a_pause() {
    /// How often it looks while calls come.
    const TICK: Duration = Duration::from_millis(5);

    alone!(Alone::AsIs);
    let (executor, netns) = (with_idle(None), fresh());
    have_it_trapped(&executor, &netns);
    let ear = tids_named("netns-guard")[0];
    for _ in 0..3 {
        eventually("it listens", || {
            sleeps_in(ear) == Some(libc::SYS_epoll_wait) && sleeps_soundly(ear)
        });
        let (start, before) = (Instant::now(), sleeps_of(ear).unwrap());
        let mut pauses = 0;
        for _ in 0..300 {
            let apart = Instant::now();
            thread::sleep(Duration::from_micros(100));
            executor.run(&netns, || ()).unwrap();
            pauses += u128::from(apart.elapsed() > TICK / 2);
        }
        let (woken, ticks) = (
            sleeps_of(ear).unwrap() - before,
            start.elapsed().as_millis() / TICK.as_millis(),
        );
        assert!(
            u128::from(woken) < 8 + ticks + 4 * pauses,
            "woken {woken} times in {ticks} ticks, and {pauses} pauses of the machine's"
        );
    }
}

#[test]
fn workers_are_woken_by_notification_where_the_kernel_can() {
    let (executor, netns) = (with_idle(None), fresh());
    let (calls, of) = (executor.clone(), netns.clone());
    within("calls", move || call_in_every_way(&calls, &of));
    assert_eq!(
        rung(&executor),
        (1, 1),
        "Linux 6.6 or later, and descriptors to spare"
    );
}

#[test]
fn workers_of_a_process_that_is_listened_to_are_woken_by_futex() {
    alone!(Alone::Listened);
    let (executor, netns) = (with_idle(None), fresh());
    let (calls, of) = (executor.clone(), netns.clone());
    within("calls", move || call_in_every_way(&calls, &of));
    assert_eq!(rung(&executor), (0, 1));
}

/// As a container's filter does to calls that it does not know, and may to any other.
#[test]
fn workers_whose_trap_is_refused_by_another_filter_are_woken_by_futex() {
    alone!(Alone::WithoutTraps);
    let (executor, netns) = (with_idle(None), fresh());
    let (calls, of) = (executor.clone(), netns.clone());
    within("calls", move || call_in_every_way(&calls, &of));
    assert_eq!(rung(&executor), (0, 1));
}

#[test]
fn workers_leave_half_of_the_descriptors_to_the_process() {
    alone!(Alone::AsIs);
    setrlimit(Resource::RLIMIT_NOFILE, 96, 96).unwrap();
    let executor = with_idle(None);
    let spaces: Vec<_> = (0..20).map(|_| fresh()).collect();
    for netns in &spaces {
        executor.run(netns, || ()).unwrap();
    }
    let (rung, workers) = rung(&executor);
    assert!(
        workers == 20 && (8..20).contains(&rung),
        "{rung} of {workers}"
    );
    within("calls of both kinds", move || {
        for _ in 0..20 {
            for netns in &spaces {
                executor.run(netns, || ()).unwrap();
            }
        }
    });
}

#[test]
fn listener_that_is_closed_behind_our_back_takes_no_call_its_worker() {
    alone!(Alone::AsIs);
    let (executor, netns) = (with_idle(None), fresh());
    within("calls", move || {
        have_it_trapped(&executor, &netns);
        take_listeners_away();
        for n in 0..100 {
            assert_eq!(executor.run(&netns, || n).unwrap(), n);
        }
    });
}

#[test]
fn listener_that_is_closed_behind_our_back_takes_no_caller_its_result() {
    alone!(Alone::AsIs);
    let (executor, netns) = (with_idle(None), fresh());
    within("calls", move || {
        have_it_trapped(&executor, &netns);
        let gate = Gate::new();
        let pass = gate.pass();
        let (caller, its_tid) = mpsc::channel();
        thread::scope(|scope| {
            let (executor, netns) = (&executor, &netns);
            scope.spawn(move || {
                caller.send(tid()).unwrap();
                executor.run(netns, move || pass.stop()).unwrap();
            });
            let caller = its_tid.recv().unwrap();
            gate.wait_for(1);
            eventually("the caller waits for a trap", || {
                sleeps_in(caller) == Some(libc::SYS_ioctl)
            });
            take_listeners_away();
            gate.open();
        });
        for n in 0..100 {
            assert_eq!(executor.run(&netns, || n).unwrap(), n);
        }
    });
}

/// The thread that hears of them has a descriptor of its own.
#[test]
fn listener_that_is_closed_behind_our_back_takes_no_refusal_its_error() {
    alone!(Alone::AsIs);
    let (executor, netns) = (with_idle(None), fresh());
    within("calls", move || {
        have_it_trapped(&executor, &netns);
        take_listeners_away();
        for _ in 0..3 {
            let job = || thread::Builder::new().spawn(|| ()).map(drop);
            let error = executor.run(&netns, job).unwrap().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
        }
    });
}

/// As a daemon does that closes all descriptors, and opens others, which get the numbers.
fn take_listeners_away() {
    let other = fs::File::open("/dev/null").unwrap();
    let mut taken = 0;
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        if fs::read_link(&path).is_ok_and(|link| link.to_string_lossy().contains("seccomp")) {
            let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            // SAFETY: the test takes the library's descriptor on purpose.
            assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), number) }, number);
            taken += 1;
        }
    }
    assert!(taken > 0, "the worker has one");
}

#[test]
fn caller_with_descriptors_of_its_own_is_served() {
    alone!(Alone::AsIs);
    let (executor, netns) = (with_idle(None), fresh());
    have_it_trapped(&executor, &netns);
    within("calls", move || {
        thread::scope(|scope| {
            scope.spawn(|| {
                unshare(CloneFlags::CLONE_FILES).unwrap();
                // SAFETY: the thread's own table, of which it uses nothing.
                let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
                assert_eq!(closed, 0);
                for n in 0..100 {
                    thread::sleep(Duration::from_micros(200));
                    assert_eq!(executor.run(&netns, || n).unwrap(), n);
                }
            });
        });
        assert_eq!(executor.run(&netns, || 1).unwrap(), 1);
    });
}

#[test]
fn caller_that_sleeps_has_its_result_before_the_next_job_has_ended() {
    let (executor, netns) = (with_idle(None), fresh());
    within("the calls", move || {
        for _ in 0..3 {
            have_it_trapped(&executor, &netns);
            let (first, next) = (Gate::new(), Gate::new());
            let pass = first.pass();
            thread::scope(|scope| {
                let caller = scope.spawn(|| executor.run(&netns, move || pass.stop()).unwrap());
                first.wait_for(1);
                let pass = next.pass();
                let behind = executor.spawn(&netns, move || pass.stop()).unwrap();
                first.open();
                next.wait_for(1);
                caller.join().unwrap();
                next.open();
                behind.join().unwrap();
            });
        }
    });
}

/// What workers sleep in, made by a job: it does not know what its worker says with it.
#[test]
fn trap_that_a_job_makes_is_a_call_that_there_is_not_and_wakes_no_caller() {
    const OPERATION: libc::c_ulong = 0x2e7e_2e7e;
    let (executor, netns) = (with_idle(None), fresh());
    let job = |argument: libc::c_ulong| {
        // SAFETY: integers are passed; there is no such operation.
        let made = unsafe { libc::syscall(TRAP, OPERATION, argument, 0_u64, 0_u64, 0_u64) };
        assert_eq!(made, -1, "nothing answers it");
        std::io::Error::last_os_error().raw_os_error()
    };
    within("the calls", move || {
        for argument in 0..4 {
            // Its caller sleeps, and receives; no caller does.
            have_it_trapped(&executor, &netns);
            let errno = executor.run(&netns, || job(argument)).unwrap();
            assert_eq!(errno, Some(libc::EINVAL));
            let spawned = executor.spawn(&netns, move || job(argument)).unwrap();
            assert_eq!(spawned.join().unwrap(), Some(libc::EINVAL));
        }
    });
}

#[test]
fn calls_go_on_in_a_process_that_is_stopped_and_goes_on() {
    alone!(Alone::AsIs);
    let (calls, netns) = (with_idle(None), fresh());
    within("calls", move || {
        let over = Over::default();
        thread::scope(|scope| {
            let _over = over.comes_with_drop();
            for pause in [0, 1_000] {
                let (executor, netns, over) = (&calls, &netns, &over);
                scope.spawn(move || {
                    while !over.has_come() {
                        thread::sleep(Duration::from_micros(pause));
                        executor.run(netns, || ()).unwrap();
                    }
                });
            }
            const STOP: &str = "for i in 1 2 3 4 5 6; do kill -STOP $0; sleep 0.02; kill -CONT $0; sleep 0.02; done";
            let me = std::process::id().to_string();
            let stopped = Command::new("sh").args(["-c", STOP, &me]).status();
            let done = || calls.stats().done;
            let so_far = done();
            eventually("calls go on", || done() > so_far + 20);
            assert!(stopped.unwrap().success());
        });
    });
}

#[test]
fn job_that_ends_its_thread_is_an_error_and_no_wait_for_ever() {
    alone!(Alone::AsIs);
    let (executor, netns) = (with_idle(None), fresh());
    within("calls", move || {
        have_it_trapped(&executor, &netns);
        let ended = executor.run(&netns, end_thread);
        let error = ended.unwrap_err();
        assert!(error.to_string().contains("exit(2)"), "{error}");
        for _ in 0..10 {
            executor.run(&netns, || ()).unwrap();
        }
        let stats = executor.stats();
        assert_eq!((stats.workers, stats.running), (1, 0), "{stats:?}");
        executor.shutdown(None).unwrap();
    });
}
