//! Hooks run on threads of their own that are as the main thread is.

use std::sync::mpsc::channel;
use std::thread;

use netns_exec::{CommandExt, Executor, Netns};
use netns_exec_tests::{
    Alone, alone, blocked_signals_of, fresh, here, netns_link_of_this_thread, on_a_thread,
    panic_text, status_of, tid, within,
};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::{Pid, getpid};

#[test]
fn hook_runs_with_the_main_threads_mask_and_cpus_and_so_do_threads_and_children_of_its() {
    let main = getpid().as_raw();
    let (tell, told) = channel();
    on_a_thread(move || {
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).unwrap();
        let mut one = CpuSet::new();
        one.set(0).unwrap();
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        let hook = move || {
            let look = || {
                let mask = blocked_signals_of(tid()).unwrap();
                (mask, sched_getaffinity(Pid::from_raw(0)).unwrap(), tid())
            };
            let child = std::process::Command::new("grep")
                .args(["SigBlk", "/proc/self/status"])
                .output()
                .unwrap();
            let child = String::from_utf8(child.stdout).unwrap();
            tell.send((look(), thread::spawn(look).join().unwrap(), child))
                .unwrap();
        };
        Executor::builder().prewarm(hook).build().unwrap();
    });
    let (hook, started, child) = told.recv().unwrap();
    let mask = blocked_signals_of(main).unwrap();
    let cpus = sched_getaffinity(getpid()).unwrap();
    assert_eq!((hook.0, hook.1), (mask, cpus));
    assert_eq!((started.0, started.1), (mask, cpus));
    let child = child.trim().trim_start_matches("SigBlk:").trim().to_owned();
    assert_eq!(child, status_of(main, "SigBlk").unwrap());
    assert_ne!(hook.2, tid());
}

#[test]
fn hook_may_run_jobs_and_children_and_wait_for_them() {
    let (one, other) = (fresh(), fresh());
    let expected = (one.id(), other.id());
    let seen = within("the hook ends", move || {
        let first = Executor::new().unwrap();
        let (tell, told) = channel();
        let hook = move || {
            let ran = first
                .run(&one, || first.run(&other, here).unwrap())
                .unwrap();
            let status = std::process::Command::new("true").status_in(&one).unwrap();
            assert!(status.success());
            tell.send((first.run(&one, here).unwrap(), ran)).unwrap();
        };
        Executor::builder().prewarm(hook).build().unwrap();
        told.recv().unwrap()
    });
    assert_eq!(seen, expected);
}

#[test]
fn hook_of_an_executor_built_in_a_job_may_need_the_jobs_namespace() {
    let netns = fresh();
    within("the hook ends", move || {
        let executor = Executor::new().unwrap();
        executor
            .run(&netns, || {
                let (executor, netns) = (executor.clone(), netns.clone());
                let hook = move || executor.run(&netns, || ()).unwrap();
                Executor::builder().prewarm(hook).build().map(drop)
            })
            .unwrap()
            .unwrap();
    });
}

#[test]
fn hook_that_moves_its_thread_moves_nothing_else() {
    let (netns, elsewhere) = (fresh(), fresh());
    let before = netns_link_of_this_thread();
    let (tell, told) = channel();
    let executor = Executor::builder()
        .prewarm(move || setns(&elsewhere, CloneFlags::CLONE_NEWNET).unwrap())
        .prewarm(move || tell.send(netns_link_of_this_thread()).unwrap())
        .build()
        .unwrap();
    assert_eq!(told.recv().unwrap(), before, "the next hook is at home");
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
    assert_eq!(executor.run(&Netns::home().unwrap(), here).unwrap(), here());
}

#[test]
fn panic_of_a_hook_is_the_builders_and_the_library_goes_on() {
    let text = panic_text(|| {
        Executor::builder()
            .prewarm(|| panic!("from the hook"))
            .build()
    });
    assert_eq!(text, "from the hook");
    assert!(Executor::builder().prewarm(|| ()).build().is_ok());
}

#[test]
fn hooks_thread_is_gone_when_build_returns() {
    alone!(Alone::AsIs);
    let (tell, told) = channel();
    Executor::builder()
        .prewarm(move || tell.send(tid()).unwrap())
        .build()
        .unwrap();
    let tid = told.recv().unwrap();
    netns_exec_tests::eventually("it is gone", || status_of(tid, "Name").is_none());
}
