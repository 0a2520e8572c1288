//! The seal that leaves jobs `CAP_SYS_ADMIN`.

use std::process::Command;
use std::thread;

use netns_exec::{Executor, Guard, Netns};
use netns_exec_tests::{RawThread, fresh, here, next_bpf_program, status_of, tid};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

use super::executor;

/// Whether the calling thread has the capability.
fn has_sys_admin() -> bool {
    const CAP_SYS_ADMIN: u64 = 21;
    let effective = status_of(tid(), "CapEff").unwrap();
    u64::from_str_radix(&effective, 16).unwrap() >> CAP_SYS_ADMIN & 1 == 1
}

#[test]
fn jobs_have_the_capability_and_what_it_is_kept_for() {
    let netns = fresh();
    let (keeping, sealed) = (executor(Guard::KeepAdmin), executor(Guard::Seal));
    assert_eq!(keeping.guard(), Guard::KeepAdmin);
    assert!(keeping.run(&netns, has_sys_admin).unwrap());
    assert!(!sealed.run(&netns, has_sys_admin).unwrap());
    // As at home, where a container's profile may refuse it.
    let at_home = next_bpf_program();
    assert_eq!(keeping.run(&netns, next_bpf_program).unwrap(), at_home);
    assert_eq!(
        sealed.run(&netns, next_bpf_program).unwrap(),
        Err(Errno::EPERM)
    );
}

/// Tries what the guard refuses, and tells the errno.
type Attempt = Box<dyn Fn() -> Option<i32> + Sync>;

fn attempts(elsewhere: &Netns) -> [(&'static str, Attempt); 8] {
    let elsewhere = elsewhere.clone();
    let refused = |flags| move || unshare(flags).err().map(|errno| errno as i32);
    [
        (
            "setns",
            Box::new(move || {
                let moved = setns(&elsewhere, CloneFlags::CLONE_NEWNET);
                moved.err().map(|errno| errno as i32)
            }),
        ),
        ("net", Box::new(refused(CloneFlags::CLONE_NEWNET))),
        ("mnt", Box::new(refused(CloneFlags::CLONE_NEWNS))),
        ("uts", Box::new(refused(CloneFlags::CLONE_NEWUTS))),
        ("files", Box::new(refused(CloneFlags::CLONE_FILES))),
        ("fs", Box::new(refused(CloneFlags::CLONE_FS))),
        (
            "std",
            Box::new(|| {
                let started = thread::Builder::new().spawn(|| ());
                started.err().and_then(|error| error.raw_os_error())
            }),
        ),
        (
            "raw",
            Box::new(|| {
                RawThread::start()
                    .err()
                    .and_then(|error| error.raw_os_error())
            }),
        ),
    ]
}

#[test]
fn jobs_can_neither_move_nor_breed_all_the_same() {
    let (netns, elsewhere) = (fresh(), fresh());
    let executor = executor(Guard::KeepAdmin);
    let worker = executor.run(&netns, tid).unwrap();
    for (what, attempt) in attempts(&elsewhere) {
        let (errno, place, on) = executor.run(&netns, || (attempt(), here(), tid())).unwrap();
        assert_eq!(errno, Some(Errno::EPERM as i32), "{what}");
        assert_eq!((place, on), (netns.id(), worker), "{what}");
    }
    // Other tests of this process have strays of their own.
    let ours = [Some(netns.id()), Some(elsewhere.id())];
    let audit = executor.audit().unwrap();
    let strays = audit
        .strays()
        .filter(|stray| ours.contains(&stray.netns_id()));
    assert_eq!(strays.count(), 0);
}

#[test]
fn children_of_a_job_may_go_where_they_want() {
    let netns = fresh();
    let executor = executor(Guard::KeepAdmin);
    let moved = || {
        Command::new("unshare")
            .args(["--net", "true"])
            .status()
            .unwrap()
    };
    assert!(executor.run(&netns, moved).unwrap().success());
}

#[test]
fn refusals_are_counted_whatever_the_job_makes_of_them() {
    for guard in [Guard::Seal, Guard::KeepAdmin] {
        let executor: Executor = executor(guard);
        let netns = fresh();
        executor.run(&netns, || ()).unwrap();
        assert_eq!(executor.stats().refused, 0);
        let refused = executor.run(&netns, || thread::Builder::new().spawn(|| ()).is_err());
        assert!(refused.unwrap());
        assert_eq!(executor.stats().refused, 1, "{guard:?}");
        let handle = executor.spawn(&netns, || {
            assert!(unshare(CloneFlags::CLONE_FILES).is_err());
            thread::spawn(|| ()).join().unwrap();
        });
        assert!(handle.unwrap().join().unwrap_err().is_refused());
        assert_eq!(executor.stats().refused, 3, "{guard:?}");
        // Workers that have left have been counted.
        executor.retire(&netns).unwrap();
        assert_eq!(executor.stats().refused, 3, "{guard:?}");
    }
}
