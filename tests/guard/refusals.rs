//! What a job is told of what the seal refused to it, and what it is not told: the
//! refusals are counted, and no text is read.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use netns_exec::{CommandExt, Error, Executor, Guard, Netns};
use netns_exec_tests::{Alone, alone, eventually, fresh, threads_named};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::executor;

const CURE: &str = "Builder::prewarm";

/// How a job that panics ended, by `spawn` and by `run`.
fn panic_of(
    executor: &Executor,
    netns: &Netns,
    job: impl Fn() + Send + Sync + Clone + 'static,
) -> Error {
    let ran = catch_unwind(AssertUnwindSafe(|| executor.run(netns, &job)));
    assert!(ran.is_err(), "`run` goes on with the panic: {ran:?}");
    let joined = executor.spawn(netns, job).unwrap().join();
    joined.expect_err("the job panicked")
}

#[test]
fn panic_over_an_eperm_of_anything_else_is_a_panic_and_no_more() {
    let (executor, netns) = (executor(Guard::Seal), fresh());
    netns.set_loopback_up().unwrap();
    let rules =
        "add table ip t; add chain ip t o { type filter hook output priority 0; policy drop; }";
    let nft = Command::new("nft").arg(rules).status_in(&netns);
    assert!(
        nft.is_ok_and(|status| status.success()),
        "this test drops packets with nft: install nftables"
    );
    let jobs: [fn(); 5] = [
        || panic!("{:?}", io::Error::from_raw_os_error(Errno::EPERM as i32)),
        || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"x", "127.0.0.1:9").unwrap();
        },
        || panic!("expected ok, got: Operation not permitted (os error 1)"),
        || panic!("cannot spawn a thread of the pool: EPERM, ENOSYS"),
        || panic_any(io::Error::from_raw_os_error(Errno::EPERM as i32)),
    ];
    for job in jobs {
        let error = panic_of(&executor, &netns, job);
        assert!(error.is_panic() && !error.is_refused(), "{error}");
        assert!(!error.to_string().contains("guard"), "{error}");
    }
}

#[test]
fn refusal_is_told_with_whatever_the_job_panics_with() {
    let (executor, netns) = (executor(Guard::Seal), fresh());
    let jobs: [fn(); 3] = [
        || drop(thread::Builder::new().spawn(|| ()).unwrap()),
        || {
            let refused = thread::Builder::new().spawn(|| ());
            assert!(refused.is_err());
            panic!("there is no errno in here");
        },
        || {
            let _ = thread::Builder::new().spawn(|| ());
            panic_any(17_u32);
        },
    ];
    for job in jobs {
        let error = panic_of(&executor, &netns, job);
        assert!(error.is_panic() && error.is_refused(), "{error}");
        assert_eq!(error.to_string().matches(CURE).count(), 1, "{error}");
        assert!(error.into_panic().is_ok());
    }
}

#[test]
fn refusal_of_one_job_is_not_told_to_the_next() {
    let (executor, netns) = (executor(Guard::Seal), fresh());
    executor
        .run(&netns, || {
            assert!(thread::Builder::new().spawn(|| ()).is_err())
        })
        .expect("it lived with that");
    let error = panic_of(&executor, &netns, || panic!("for a reason of its own"));
    assert!(!error.is_refused(), "{error}");
}

#[test]
fn cure_is_given_once_however_deep_errors_nest() {
    let (executor, netns, other) = (executor(Guard::Seal), fresh(), fresh());
    let inner = executor.clone();
    // A job that fails like another one, itself refused threads.
    let refused = move || {
        let innermost = || drop(thread::spawn(|| ()));
        let error = inner.spawn(&other, innermost).unwrap().join().unwrap_err();
        assert!(error.is_refused());
        assert!(thread::Builder::new().spawn(|| ()).is_err());
        error
    };
    let [display, debug, payload] = [refused.clone(), refused.clone(), refused];
    let errors = [
        panic_of(&executor, &netns, move || panic!("{}", display())),
        panic_of(&executor, &netns, move || {
            panic!("called unwrap: {:?}", debug())
        }),
        panic_of(&executor, &netns, move || panic_any(payload())),
        panic_of(&executor, &netns, {
            let executor = executor.clone();
            let netns = netns.clone();
            move || {
                let job = || drop(thread::spawn(|| ()));
                let error = executor.spawn(&netns, job).unwrap().join().unwrap_err();
                let _ = thread::Builder::new().spawn(|| ());
                panic_any(error);
            }
        }),
    ];
    for error in errors {
        assert!(error.is_panic() && error.is_refused(), "{error}");
        assert_eq!(error.to_string().matches(CURE).count(), 1, "{error}");
        assert_eq!(format!("{error:?}").matches(CURE).count(), 1, "{error:?}");
        let error = io::Error::from(error);
        assert_eq!(error.to_string().matches(CURE).count(), 1, "{error}");
    }
}

#[test]
fn sealed_job_keeps_the_processs_files_and_working_directory() {
    let (executor, netns) = (executor(Guard::Seal), fresh());
    for flags in [CloneFlags::CLONE_FILES, CloneFlags::CLONE_FS] {
        let refused = executor.run(&netns, || unshare(flags)).unwrap();
        assert_eq!(refused, Err(Errno::EPERM));
    }
    // And its children have their own, whatever they do before they exec.
    let status = executor.run(&netns, || {
        Command::new("unshare").args(["--mount", "true"]).status()
    });
    assert!(status.unwrap().unwrap().success());
}

/// The listeners in this process's descriptor table.
fn listeners() -> usize {
    let links = fs::read_dir("/proc/self/fd").expect("procfs");
    let link = |fd: io::Result<fs::DirEntry>| fs::read_link(fd.ok()?.path()).ok();
    let is_listener = |link: &PathBuf| link.to_string_lossy().contains("seccomp");
    links.filter_map(link).filter(is_listener).count()
}

#[test]
fn refusals_are_counted_by_one_thread_that_ends_with_the_last_sealed_worker() {
    alone!(Alone::AsIs);
    for _ in 0..2 {
        let (executor, other, netns) = (executor(Guard::Seal), executor(Guard::Seal), fresh());
        assert_eq!(threads_named("netns-guard"), 0, "there is no worker yet");
        executor.run(&netns, || ()).unwrap();
        let spaces: Vec<_> = (0..10).map(|_| fresh()).collect();
        for netns in &spaces {
            other.run(netns, || ()).unwrap();
        }
        assert_eq!(listeners(), 11, "one a worker, for its callers");
        assert_eq!(threads_named("netns-guard"), 1);
        executor.shutdown(None).unwrap();
        let error = panic_of(&other, &netns, || drop(thread::spawn(|| ())));
        assert!(error.is_refused(), "{error}");
        other.shutdown(None).unwrap();
        eventually("the thread ends", || threads_named("netns-guard") == 0);
        assert_eq!(listeners(), 0, "they go with their workers");
    }
}

#[test]
fn namespace_of_the_first_sealed_worker_is_let_go_while_others_are_sealed() {
    // A child that another test starts has all our descriptors until it executes
    // its program, and so keeps namespaces alive.
    alone!(Alone::AsIs);
    let (executor, first, second) = (executor(Guard::Seal), fresh(), fresh());
    executor.run(&first, || ()).unwrap();
    executor.run(&second, || ()).unwrap();
    executor.retire(&first).unwrap();
    let weak = first.downgrade();
    drop(first);
    assert!(weak.upgrade().is_none(), "nothing of the guard's is in it");
    executor.run(&second, || ()).unwrap();
}
