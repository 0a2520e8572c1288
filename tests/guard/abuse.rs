//! Jobs that leave their worker's surroundings in a mess without leaving the
//! namespace: the next job runs right, and in the right place. What they do
//! sticks to the process, so every test is a process of its own.

use std::env;
use std::fs::{self, File};
use std::hint::black_box;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;

use netns_exec::{CommandExt, Executor, Guard, Netns};
use netns_exec_tests::{
    Alone, GUARDS, Gate, alone, blocked_signals_of, eventually, fresh, here, is_alone, rerun,
    strays_in, this_test, tid,
};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use super::executor;

/// A job that follows another: where it should be, with room, and able to start
/// children and calls.
#[track_caller]
fn assert_next_runs_right(executor: &Executor, netns: &Netns, other: &Netns) {
    let inside = executor.clone();
    let (place, nested, status) = executor
        .run(netns, || {
            let nested = inside.run(other, here).expect("a nested call");
            let status = Command::new("true").status_in(netns).expect("a child");
            (here(), nested, status)
        })
        .expect("a job");
    assert_eq!((place, nested), (netns.id(), other.id()));
    assert!(status.success());
}

#[test]
fn signals_that_a_job_unblocked_are_blocked_again_when_it_is_over() {
    alone!(Alone::AsIs);
    for guard in GUARDS {
        let (executor, netns, other) = (executor(guard), fresh(), fresh());
        let (worker, before) = executor
            .run(&netns, || (tid(), blocked_signals_of(tid())))
            .unwrap();
        executor
            .run(&netns, || {
                let none = SigSet::empty();
                pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&none), None).unwrap();
            })
            .unwrap();
        // When it has nothing more to do, at the latest.
        eventually("the worker blocks them again", || {
            blocked_signals_of(worker) == before
        });
        assert_next_runs_right(&executor, &netns, &other);
        assert_eq!(executor.run(&netns, tid).unwrap(), worker, "{guard:?}");
    }
}

#[test]
fn job_that_changes_the_working_directory_harms_no_worker() {
    alone!(Alone::AsIs);
    let folder = env::temp_dir().join(netns_exec_tests::unique_name());
    for guard in GUARDS {
        let (executor, netns, other) = (executor(guard), fresh(), fresh());
        fs::create_dir(&folder).unwrap();
        executor
            .run(&netns, || env::set_current_dir(&folder).unwrap())
            .unwrap();
        // It is the process's, as everywhere; the library does not take it back.
        assert_eq!(env::current_dir().unwrap(), folder);
        fs::remove_dir(&folder).unwrap();
        assert_next_runs_right(&executor, &netns, &other);
        env::set_current_dir("/").unwrap();
    }
}

/// Panics when dropped.
struct Trap;

impl Drop for Trap {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

#[test]
fn panic_in_a_drop_is_the_jobs_own() {
    alone!(Alone::AsIs);
    for guard in GUARDS {
        let (executor, netns, other) = (executor(guard), fresh(), fresh());
        let worker = executor.run(&netns, tid).unwrap();
        let trap = Trap;
        let captured = executor.spawn(&netns, move || drop(trap)).unwrap().join();
        assert!(captured.unwrap_err().is_panic(), "{guard:?}");
        // A result without a handle is dropped on the worker.
        drop(executor.spawn(&netns, || Trap).unwrap());
        assert_next_runs_right(&executor, &netns, &other);
        assert_eq!(executor.run(&netns, tid).unwrap(), worker, "{guard:?}");
    }
}

#[test]
fn job_that_takes_all_descriptors_leaves_a_working_worker() {
    alone!(Alone::AsIs);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 128, hard).unwrap();
    for guard in GUARDS {
        let (executor, netns, other) = (executor(guard), fresh(), fresh());
        let worker = executor.run(&netns, tid).unwrap();
        let hoard = executor.run(&netns, || {
            let mut hoard = Vec::new();
            loop {
                match File::open("/dev/null") {
                    Ok(file) => hoard.push(file),
                    Err(error) => return (hoard, error.raw_os_error()),
                }
            }
        });
        let (hoard, errno) = hoard.unwrap();
        assert_eq!(errno, Some(Errno::EMFILE as i32));
        // With none left, the worker goes on.
        assert_eq!(executor.run(&netns, tid).unwrap(), worker, "{guard:?}");
        let joined = executor.spawn(&netns, tid).unwrap().join();
        assert_eq!(joined.unwrap(), worker, "{guard:?}");
        // A job that has threads, of which `Detect` must find out what became.
        if guard == Guard::Detect {
            let scoped = || thread::scope(|scope| scope.spawn(tid).join().unwrap());
            executor.run(&netns, scoped).expect("they have ended");
        }
        // Another namespace may have to wait until there are some again.
        if let Err(error) = executor.run(&other, tid) {
            assert_eq!(error.raw_os_error(), Some(Errno::EMFILE as i32), "{error}");
            assert_ne!(guard, Guard::Seal, "sealing takes no descriptor: {error}");
        }
        drop(hoard);
        assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
        assert_next_runs_right(&executor, &netns, &other);
    }
}

/// Starts threads until no more can be had.
fn all_threads(gate: &Gate) -> (Vec<thread::JoinHandle<()>>, io::Error) {
    let mut threads = Vec::new();
    loop {
        let pass = gate.pass();
        match thread::Builder::new().spawn(move || pass.stop()) {
            Ok(thread) => threads.push(thread),
            Err(error) => return (threads, error),
        }
    }
}

#[test]
fn job_that_takes_all_threads_leaves_a_working_worker() {
    alone!(Alone::LimitedRoot);
    let (_, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
    setrlimit(Resource::RLIMIT_NPROC, 64.min(hard), hard).unwrap();
    for guard in GUARDS {
        let (executor, netns, other) = (executor(guard), fresh(), fresh());
        // Held, or it would be given up for the other one.
        let held = executor.pin(&netns).unwrap();
        let worker = executor.run(&netns, tid).unwrap();
        let gate = Gate::new();
        if guard == Guard::Seal {
            // It gets none in the first place, so another thread takes them all.
            let (threads, error) = executor.run(&netns, || all_threads(&gate)).unwrap();
            assert_eq!(threads.len(), 0);
            assert_eq!(error.raw_os_error(), Some(Errno::EPERM as i32), "{error}");
        }
        let (threads, error) = match guard {
            Guard::Off => executor.run(&netns, || all_threads(&gate)).unwrap(),
            _ => all_threads(&gate),
        };
        assert!(!threads.is_empty());
        assert_eq!(error.raw_os_error(), Some(Errno::EAGAIN as i32), "{error}");

        assert_eq!(executor.run(&netns, tid).unwrap(), worker, "{guard:?}");
        let error = executor.run(&other, here).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EAGAIN as i32), "{error}");
        assert!(error.to_string().contains("ulimit -u"), "{error}");
        assert_eq!(executor.run(&netns, tid).unwrap(), worker, "{guard:?}");

        gate.open();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_next_runs_right(&executor, &netns, &other);
        // Threads that end meanwhile would leave room where there is to be none.
        drop(held);
        executor.shutdown(None).unwrap();
    }
}

#[test]
fn job_that_takes_all_threads_is_reported_by_detect() {
    alone!(Alone::LimitedRoot);
    let (_, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
    setrlimit(Resource::RLIMIT_NPROC, 64.min(hard), hard).unwrap();
    let (executor, netns, other) = (executor(Guard::Detect), fresh(), fresh());
    let (gate, taken) = (Gate::new(), channel());
    let error = executor
        .run(&netns, || taken.0.send(all_threads(&gate).0).unwrap())
        .unwrap_err();
    assert!(error.is_left_threads(), "{error}");
    let threads = taken.1.recv().unwrap();
    let count = format!("{} thread(s)", threads.len());
    assert!(error.to_string().contains(&count), "{error}");
    // Its worker is gone, and no other can be had until there is room: that of
    // the one that left is enough.
    eventually("the worker has left", || executor.stats().workers == 0);
    gate.open();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_next_runs_right(&executor, &netns, &other);
}

/// Uses about a kilobyte of stack for each level.
fn descend(levels: usize) -> usize {
    let frame = black_box([levels as u8; 1024]);
    match levels {
        0 => 0,
        _ => descend(levels - 1) + usize::from(frame[levels % 1024] == levels as u8),
    }
}

#[test]
fn deep_stack_is_there_for_every_job() {
    alone!(Alone::AsIs);
    const LEVELS: usize = 40_000;
    for guard in GUARDS {
        let builder = Executor::builder().guard(guard).stack_size(128 << 20);
        let (executor, netns, other) = (builder.build().unwrap(), fresh(), fresh());
        for _ in 0..3 {
            assert_eq!(executor.run(&netns, || descend(LEVELS)).unwrap(), LEVELS);
        }
        assert_next_runs_right(&executor, &netns, &other);
    }
}

#[test]
fn stack_that_overflows_ends_the_process_with_the_workers_name() {
    if is_alone(this_test!()) {
        let builder = Executor::builder().stack_size(64 << 10);
        let executor = builder.name_prefix("deep").build().unwrap();
        executor.run(&fresh(), || descend(1 << 20)).unwrap();
        unreachable!("there is no such stack");
    }
    let output = rerun(this_test!()).output().unwrap();
    // Where the fault is blocked, the kernel ends the process without a word.
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.signal(),
        Some(Signal::SIGABRT as i32),
        "{said}"
    );
    assert!(
        said.contains("deep:") && said.contains("overflowed its stack"),
        "{said}"
    );
}

#[test]
fn jobs_of_one_namespace_do_not_inherit_from_each_other_under_fire() {
    alone!(Alone::AsIs);
    // All of it at once, from several sides.
    for guard in GUARDS {
        let (executor, netns, other) = (executor(guard), fresh(), fresh());
        thread::scope(|scope| {
            for side in 0..4 {
                let (executor, netns, other) = (&executor, &netns, &other);
                scope.spawn(move || {
                    for round in 0..25 {
                        match (side + round) % 4 {
                            0 => {
                                let trap = executor.spawn(netns, || panic!("{}", tid())).unwrap();
                                let trap: Result<(), _> = trap.join();
                                assert!(trap.unwrap_err().is_panic());
                            }
                            1 => drop(executor.spawn(netns, || Trap).unwrap()),
                            2 => {
                                let all = SigSet::empty();
                                let unblock =
                                    || pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&all), None);
                                executor.run(netns, unblock).unwrap().unwrap();
                            }
                            _ => assert_next_runs_right(executor, netns, other),
                        }
                    }
                });
            }
        });
        assert_next_runs_right(&executor, &netns, &other);
        let audit = executor.audit().unwrap();
        let strays = strays_in(&audit, [netns.id(), other.id()]);
        assert_eq!(strays, [0; 0], "{audit:?}");
    }
}
