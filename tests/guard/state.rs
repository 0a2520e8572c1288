//! What a job leaves on its thread beside threads and namespaces of the network, and
//! that the next job finds none of it.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::sync::mpsc;
use std::thread;

use netns_exec::{Executor, Guard, Netns};
use netns_exec_tests::{Gate, eventually, fresh, here};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Pid, getpid, gettid};

fn executor(guard: Guard) -> Executor {
    let executor = Executor::builder()
        .guard(guard)
        .workers_per_netns(1)
        // No worker is to go because its time has come.
        .idle_timeout(None)
        .build();
    executor.expect("root may have every guard")
}

fn tid() -> Pid {
    gettid()
}

/// A job that leaves its thread altered: its caller is told, and nothing else runs there.
#[track_caller]
fn assert_retired(guard: Guard, leave: impl FnOnce() + Send, word: &str) {
    let (executor, netns) = (executor(guard), fresh());
    let worker = executor.run(&netns, tid).unwrap();
    let error = executor.run(&netns, leave).expect_err("it is told");
    assert!(error.is_escaped(), "{guard:?}: {error}");
    assert!(error.to_string().contains(word), "{guard:?}: {error}");
    let next = executor.run(&netns, || (here(), tid())).unwrap();
    assert_eq!(next.0, netns.id());
    assert_ne!(next.1, worker, "{guard:?}: {word}");
}

/// The same where a look after each job would be too dear.
#[track_caller]
fn assert_retired_when_idle(guard: Guard, leave: impl FnOnce() + Send) {
    let (executor, netns) = (executor(guard), fresh());
    let worker = executor.run(&netns, tid).unwrap();
    executor.run(&netns, leave).unwrap();
    eventually("the worker is retired", || executor.stats().workers == 0);
    assert_ne!(executor.run(&netns, tid).unwrap(), worker, "{guard:?}");
}

#[test]
fn descriptor_table_or_working_directory_of_its_own_retires_the_worker() {
    for guard in [Guard::Detect, Guard::Off] {
        let files = || unshare(CloneFlags::CLONE_FILES).unwrap();
        assert_retired(guard, files, "descriptor table");
    }
    let fs = || unshare(CloneFlags::CLONE_FS).unwrap();
    assert_retired(Guard::Detect, fs, "working directory");
    assert_retired_when_idle(Guard::Off, fs);
}

#[test]
fn job_behind_one_that_took_a_descriptor_table_is_served_by_a_successor() {
    for guard in [Guard::Detect, Guard::Off] {
        let (executor, netns) = (executor(guard), fresh());
        let gate = Gate::new();
        let pass = gate.pass();
        let leaves = executor.spawn(&netns, move || {
            pass.stop();
            unshare(CloneFlags::CLONE_FILES).unwrap();
        });
        gate.wait_for(1);
        // The worker sees to its own successor, for this one.
        let next = executor.spawn(&netns, here).unwrap();
        gate.open();
        assert!(leaves.unwrap().join().unwrap_err().is_escaped());
        assert_eq!(next.join().unwrap(), netns.id(), "{guard:?}");
    }
}

#[test]
fn namespace_of_another_kind_retires_the_worker() {
    for kind in [
        CloneFlags::CLONE_NEWUTS,
        CloneFlags::CLONE_NEWIPC,
        CloneFlags::CLONE_NEWCGROUP,
    ] {
        assert_retired(Guard::Detect, move || unshare(kind).unwrap(), "namespace");
        assert_retired_when_idle(Guard::Off, move || unshare(kind).unwrap());
    }
}

#[test]
fn user_or_capabilities_of_its_own_retire_the_worker() {
    for guard in [Guard::Detect, Guard::Off] {
        assert_retired_when_idle(guard, netns_exec_tests::drop_sys_admin);
    }
}

fn name_of(netns: &Netns, executor: &Executor) -> String {
    let read = || fs::read_to_string(format!("/proc/self/task/{}/comm", tid()));
    executor.run(netns, read).unwrap().unwrap()
}

#[test]
fn name_that_a_job_gave_its_thread_is_taken_back_when_the_worker_idles() {
    for guard in [Guard::Seal, Guard::Detect, Guard::Off] {
        let (executor, netns) = (executor(guard), fresh());
        let before = name_of(&netns, &executor);
        let rename = || -> io::Result<Pid> {
            let tid = tid();
            fs::write(format!("/proc/self/task/{tid}/comm"), "of-a-job")?;
            Ok(tid)
        };
        let worker = executor.run(&netns, rename).unwrap().unwrap();
        eventually("the name is back", || {
            let path = format!("/proc/{}/task/{worker}/comm", getpid());
            fs::read_to_string(path).unwrap() == before
        });
        assert_eq!(executor.run(&netns, tid).unwrap(), worker);
    }
}

#[test]
fn threads_that_share_everything_are_left_alone() {
    for guard in [Guard::Detect, Guard::Off] {
        let (executor, netns) = (executor(guard), fresh());
        let worker = executor.run(&netns, tid).unwrap();
        for _ in 0..20 {
            let job = || thread::scope(|scope| scope.spawn(tid).join().unwrap());
            executor.run(&netns, job).unwrap();
        }
        assert_eq!(executor.run(&netns, tid).unwrap(), worker);
    }
}

/// Stops the destructors of a thread's thread-locals until the test goes on.
struct Lingers(mpsc::Sender<()>, mpsc::Receiver<()>);

impl Drop for Lingers {
    fn drop(&mut self) {
        self.0.send(()).expect("the test waits");
        let _ = self.1.recv();
    }
}

thread_local! {
    static LINGERS: RefCell<Option<Lingers>> = const { RefCell::new(None) };
}

#[test]
fn job_is_not_blamed_for_a_worker_whose_thread_locals_are_being_destroyed() {
    let (netns, leaving, detecting) = (fresh(), executor(Guard::Off), executor(Guard::Detect));
    let ((sender, destroying), (end, ended)) = (mpsc::channel(), mpsc::channel());
    let lingers = Lingers(sender, ended);
    leaving
        .run(&netns, move || LINGERS.set(Some(lingers)))
        .unwrap();
    thread::scope(|scope| {
        scope.spawn(|| leaving.shutdown(None).unwrap());
        destroying.recv().expect("its worker leaves");
        let job = || thread::scope(|scope| scope.spawn(tid).join().unwrap());
        let result = detecting.run(&netns, job).map(drop);
        let strays = detecting.audit().map(|audit| {
            let ours = |stray: &netns_exec::audit::Thread| stray.netns_id() == Some(netns.id());
            audit.strays().filter(|stray| ours(stray)).count()
        });
        drop(end);
        result.expect("its own thread has ended");
        assert_eq!(strays.unwrap(), 0);
    });
}
