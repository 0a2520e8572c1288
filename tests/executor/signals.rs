//! Where the handlers of signals run that are sent to the process. Handlers are
//! the process's, so every test is a process of its own.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;

use netns_exec::audit::Verdict;
use netns_exec::{CommandExt, Executor, Guard, Netns};
use netns_exec_tests::{
    Alone, GUARDS, Gate, Held, SignalLog, alone, eventually, fresh, here, netns_link_of_this_thread,
};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::unistd::{Pid, getpid, gettid};

const TIMES: usize = 50;

/// Sends a signal to the process and waits until a handler has run.
fn send(log: &SignalLog, signal: Signal) {
    let before = log.caught();
    kill(getpid(), signal).unwrap();
    eventually("the handler has run", || log.caught() > before);
}

fn set_mask(signals: SigSet) {
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&signals), None).unwrap();
}

fn both() -> SigSet {
    [Signal::SIGTERM, Signal::SIGUSR1].into_iter().collect()
}

/// The threads of the library, workers and others.
fn own_threads(executor: &Executor) -> Vec<i32> {
    let audit = executor.audit().unwrap();
    let own = |name: &str| name.starts_with("ns:") || name.starts_with("netns-");
    let threads = (audit.threads().iter())
        .filter(|thread| thread.verdict() == Verdict::Worker || own(thread.name()));
    threads.map(|thread| thread.tid().cast_signed()).collect()
}

/// Workers that idle, one that runs a job until that is let go, one for home.
fn busy_executor(guard: Guard, namespaces: &[Netns]) -> (Executor, Held) {
    let executor = Executor::builder().guard(guard).build().unwrap();
    for netns in namespaces {
        executor.run(netns, here).unwrap();
    }
    executor.run(&Netns::home().unwrap(), here).unwrap();
    let held = Held::new(&executor, &namespaces[0]);
    (executor, held)
}

#[test]
fn handlers_never_run_on_a_worker() {
    alone!(Alone::AsIs);
    let log = SignalLog::start(&[Signal::SIGUSR1, Signal::SIGTERM]);
    for guard in GUARDS {
        let namespaces = [fresh(), fresh(), fresh()];
        let (executor, held) = busy_executor(guard, &namespaces);
        let workers = own_threads(&executor);
        assert!(workers.len() >= 5, "{workers:?}");

        for round in 0..TIMES {
            send(&log, Signal::SIGUSR1);
            send(&log, Signal::SIGTERM);
            // Workers that are just being born must not be hit either.
            if round % 10 == 0 {
                let passing = fresh();
                let job = executor.spawn(&passing, here).unwrap();
                send(&log, Signal::SIGUSR1);
                assert_eq!(job.join().unwrap(), passing.id());
                executor.retire(&passing).unwrap();
            }
        }
        for tid in log.tids() {
            assert!(!workers.contains(&tid), "{guard:?}: ran on {tid}");
        }
        held.open();
        executor.shutdown(None).unwrap();
    }
}

#[test]
fn signal_that_all_others_block_waits_for_them_instead_of_going_to_a_worker() {
    // The process of its own, with its main thread, begins with this mask.
    set_mask(both());
    alone!(Alone::AsIs);
    let log = SignalLog::start(&[Signal::SIGUSR1, Signal::SIGTERM]);
    for guard in GUARDS {
        let namespaces = [fresh(), fresh(), fresh()];
        let (executor, held) = busy_executor(guard, &namespaces);
        for _ in 0..TIMES {
            let before = log.caught();
            kill(getpid(), Signal::SIGUSR1).unwrap();
            kill(getpid(), Signal::SIGTERM).unwrap();
            // Workers that take anything would take it now.
            for netns in &namespaces[1..] {
                executor.run(netns, here).unwrap();
            }
            assert_eq!(log.caught(), before, "{guard:?}");
            set_mask(SigSet::empty());
            assert_eq!(log.caught(), before + 2, "{guard:?}");
            set_mask(both());
        }
        held.open();
    }
    let me = gettid().as_raw();
    assert_eq!(log.tids(), [me; 2 * TIMES * GUARDS.len()]);
}

#[test]
fn plain_command_in_a_job_inherits_what_the_docs_of_run_say_and_spawn_in_does_not() {
    let netns = fresh();
    for guard in GUARDS {
        let executor = Executor::builder().guard(guard).build().unwrap();
        let sleep = || {
            let mut command = Command::new("sleep");
            command.arg("600").stdout(Stdio::null());
            command
        };
        let (mut plain, mut ours) = executor
            .run(&netns, || {
                let plain = sleep().spawn().unwrap();
                (plain, sleep().spawn_in(&netns).unwrap())
            })
            .unwrap();
        for child in [&plain, &ours] {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        }
        let ended = ours.wait().unwrap();
        assert_eq!(ended.signal(), Some(Signal::SIGTERM as i32), "{guard:?}");
        // Sent first, and still pending.
        assert!(plain.try_wait().unwrap().is_none(), "{guard:?}");
        plain.kill().unwrap();
        let ended = plain.wait().unwrap();
        assert_eq!(ended.signal(), Some(Signal::SIGKILL as i32), "{guard:?}");
    }
}

#[test]
fn handler_runs_at_home_while_every_job_is_elsewhere() {
    alone!(Alone::AsIs);
    let log = SignalLog::start(&[Signal::SIGUSR1]);
    let home = netns_link_of_this_thread();
    let (netns, gate) = (fresh(), Gate::new());
    let executor = Executor::new().unwrap();
    thread::scope(|scope| {
        // Callers that wait for a job are at home; a handler may run on them.
        for _ in 0..8 {
            scope.spawn(|| executor.run(&netns, || gate.pass().stop()).unwrap());
        }
        gate.wait_for(1);
        for _ in 0..TIMES {
            send(&log, Signal::SIGUSR1);
        }
        for tid in log.tids() {
            let link = std::fs::read_link(format!("/proc/self/task/{tid}/ns/net")).unwrap();
            assert_eq!(link.to_str(), Some(home.as_str()), "ran on {tid}");
        }
        gate.open();
    });
}
