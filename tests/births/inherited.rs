//! What a thread that is created at home has of the thread that asked for it.

use std::fs;
use std::thread;

use netns_exec_tests::{Alone, alone, blocked_signals, blocked_signals_of, fresh, status_of, tid};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, getpid};

use super::executor;

fn of_main() -> u64 {
    blocked_signals_of(getpid().as_raw()).expect("the main thread is there")
}

fn mask_of_a_thread() -> u64 {
    thread::spawn(blocked_signals).join().expect("no panic")
}

#[test]
fn signal_mask_is_the_main_threads_and_not_the_workers() {
    alone!(Alone::AsIs);
    let (executor, netns) = (executor(), fresh());
    let (worker, thread) = executor
        .run(&netns, || (blocked_signals(), mask_of_a_thread()))
        .unwrap();
    assert_eq!(thread, of_main());
    assert_ne!(thread, worker);
}

#[test]
fn signal_mask_that_the_job_has_set_is_the_threads() {
    let (executor, netns) = (executor(), fresh());
    let (before, asked, thread) = executor
        .run(&netns, || {
            let before = SigSet::thread_get_mask().expect("a mask");
            SigSet::all().thread_set_mask().expect("any mask");
            let found = (blocked_signals(), mask_of_a_thread());
            before.thread_set_mask().expect("any mask");
            (blocked_signals(), found.0, found.1)
        })
        .unwrap();
    assert_ne!(before, asked);
    assert_eq!(thread, asked);
}

#[test]
fn privileges_and_filters_are_homes() {
    let (executor, netns) = (executor(), fresh());
    let own = |key| status_of(tid(), key);
    let keys = [
        "CapEff",
        "CapPrm",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
    ];
    let of_home = thread::spawn(move || keys.map(own))
        .join()
        .expect("no panic");
    let (of_worker, of_thread) = executor
        .run(&netns, move || {
            let thread = thread::spawn(move || keys.map(own));
            (keys.map(own), thread.join().expect("no panic"))
        })
        .unwrap();
    assert_eq!(of_thread, of_home);
    assert_ne!(of_worker, of_home);
}

#[test]
fn thread_without_a_name_is_called_what_the_process_is() {
    let (executor, netns) = (executor(), fresh());
    let name = || fs::read_to_string("/proc/thread-self/comm").expect("procfs");
    let names = executor.run(&netns, || {
        let named = thread::Builder::new().name("mine".to_owned());
        let named = named.spawn(name).expect("a thread may be had");
        [thread::spawn(name), named].map(|thread| thread.join().expect("no panic"))
    });
    let main = fs::read_to_string("/proc/self/comm").expect("procfs");
    assert_eq!(names.unwrap(), [main, "mine\n".to_owned()]);
}

#[test]
fn what_the_job_did_to_its_own_thread_stays_there() {
    alone!(Alone::AsIs);
    let (executor, netns) = (executor(), fresh());
    let cpus = || sched_getaffinity(Pid::from_raw(0)).expect("a set");
    let home = cpus();
    let found = executor.run(&netns, move || {
        let mut one = CpuSet::new();
        let first = (0..CpuSet::count()).find(|cpu| home.is_set(*cpu).unwrap_or(false));
        one.set(first.expect("one at least")).expect("in range");
        sched_setaffinity(Pid::from_raw(0), &one).expect("a CPU that it has");
        thread::spawn(cpus).join().expect("no panic")
    });
    assert_eq!(found.unwrap(), home);
}

/// Too large for any machine's address space.
const TOO_LARGE: usize = 1 << 46;

#[test]
fn thread_that_cannot_be_had_fails_with_the_errno_that_it_has_at_home() {
    let (executor, netns) = (executor(), fresh());
    let errno = || {
        let thread = thread::Builder::new().stack_size(TOO_LARGE).spawn(|| ());
        thread.expect_err("no machine has that").raw_os_error()
    };
    let at_home = errno();
    assert!(at_home.is_some());
    assert_eq!(executor.run(&netns, errno).unwrap(), at_home);
    // It is not the worker's fault, nor the home thread's.
    let next = executor.run(&netns, || thread::spawn(|| 1).join().expect("no panic"));
    assert_eq!(next.unwrap(), 1);
}

#[test]
fn limit_on_threads_is_told_with_its_errno_and_the_closure_is_dropped_in_the_job() {
    alone!(Alone::LimitedRoot);
    let (executor, netns) = (executor(), fresh());
    executor.run(&netns, || ()).unwrap();
    struct Where(std::sync::mpsc::Sender<i32>);
    impl Drop for Where {
        fn drop(&mut self) {
            let _ = self.0.send(tid());
        }
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC).expect("a limit");
    setrlimit(Resource::RLIMIT_NPROC, 1, hard).expect("less is allowed");
    let (sender, receiver) = std::sync::mpsc::channel();
    let (worker, error) = executor
        .run(&netns, move || {
            let dropped = Where(sender);
            let thread = thread::Builder::new().spawn(move || drop(dropped));
            (tid(), thread.map(drop).expect_err("beyond the limit"))
        })
        .unwrap();
    setrlimit(Resource::RLIMIT_NPROC, soft, hard).expect("as before");
    assert_eq!(error.raw_os_error(), Some(nix::libc::EAGAIN));
    assert_eq!(receiver.recv().expect("dropped once"), worker);
    let next = executor.run(&netns, || thread::spawn(|| 1).join().expect("no panic"));
    assert_eq!(next.unwrap(), 1);
}
