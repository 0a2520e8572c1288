//! Children hold up no thread but the caller that waits for them.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt as _, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;

use netns_exec::{CommandExt, Executor, Netns};
use netns_exec_tests::{Alone, alone, eventually, fresh, here, status_of, tids, within};

/// A command whose children wait, before they execute it, for a byte from the pipe.
#[allow(unsafe_code)]
fn slow() -> (Command, std::io::PipeWriter, std::io::PipeReader) {
    let (mut gate, key) = std::io::pipe().unwrap();
    let (arrived, mut arrives) = std::io::pipe().unwrap();
    let mut command = Command::new("true");
    let wait = move || {
        arrives.write_all(b"!")?;
        gate.read_exact(&mut [0])
    };
    // SAFETY: the closure makes two system calls.
    unsafe { command.pre_exec(wait) };
    (command, key, arrived)
}

type Start = fn(&mut Command, &Netns) -> bool;

const STARTS: [Start; 3] = [
    |command, netns| command.spawn_in(netns).unwrap().wait().unwrap().success(),
    |command, netns| command.status_in(netns).unwrap().success(),
    |command, netns| command.output_in(netns).unwrap().status.success(),
];

#[test]
fn child_that_takes_its_time_before_exec_holds_up_no_birth_visit_or_other_child() {
    for start in STARTS {
        let (mut command, mut key, mut arrived) = slow();
        let netns = fresh();
        let starter = {
            let netns = netns.clone();
            thread::spawn(move || start(&mut command, &netns))
        };
        arrived.read_exact(&mut [0]).unwrap();
        within("the others go on", move || {
            let executor = Executor::new().unwrap();
            assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
            let other = Netns::new().unwrap();
            other.check_enter().unwrap();
            for start in STARTS {
                assert!(start(&mut Command::new("true"), &other));
            }
        });
        key.write_all(b"!").unwrap();
        assert!(starter.join().unwrap());
    }
}

#[test]
fn job_that_waits_for_a_child_leaves_its_namespace_to_others() {
    for start in STARTS {
        let (mut command, mut key, mut arrived) = slow();
        let (netns, executor) = (fresh(), Executor::new().unwrap());
        let starter = {
            let (netns, executor) = (netns.clone(), executor.clone());
            thread::spawn(move || executor.run(&netns.clone(), move || start(&mut command, &netns)))
        };
        arrived.read_exact(&mut [0]).unwrap();
        within("another job of the namespace is served", move || {
            assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
        });
        key.write_all(b"!").unwrap();
        assert!(starter.join().unwrap().unwrap());
    }
}

fn forkers() -> usize {
    let is_forker = |tid: &i32| status_of(*tid, "Name").is_some_and(|name| name == "netns-fork");
    tids().iter().filter(|tid| is_forker(tid)).count()
}

fn mortal() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "sh", "-c", "echo up; exec sleep 60"]);
    command.stdout(Stdio::piped());
    command
}

fn wait_until_up(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "up\n");
}

/// `PR_SET_PDEATHSIG` follows the thread that forked, and so that one stays; one that
/// has no children left does not, unless it is the last.
#[test]
fn threads_that_fork_stay_for_their_children_and_no_longer() {
    alone!(Alone::AsIs);
    const AT_ONCE: usize = 8;
    let netns = fresh();
    // As many forkers: each child is held before it executes its program.
    let children: Vec<_> = thread::scope(|scope| {
        let (tell, told) = channel();
        let threads: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let (tell, netns) = (tell.clone(), &netns);
                scope.spawn(move || {
                    let (mut gate, key) = std::io::pipe().unwrap();
                    let mut command = mortal();
                    #[allow(unsafe_code)]
                    // SAFETY: the closure makes one system call.
                    unsafe {
                        command.pre_exec(move || gate.read_exact(&mut [0]))
                    };
                    tell.send(key).unwrap();
                    command.spawn_in(netns).unwrap()
                })
            })
            .collect();
        let keys: Vec<_> = (0..AT_ONCE).map(|_| told.recv().unwrap()).collect();
        eventually("all fork at once", || forkers() == AT_ONCE);
        for mut key in keys {
            key.write_all(b"!").unwrap();
        }
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let mut children = children;
    for child in &mut children {
        wait_until_up(child);
    }
    // More forks than there are forkers: each of them has been idle.
    for _ in 0..4 * AT_ONCE {
        assert!(
            Command::new("true")
                .spawn_in(&netns)
                .unwrap()
                .wait()
                .unwrap()
                .success()
        );
    }
    for child in &mut children {
        assert_eq!(child.try_wait().unwrap(), None, "its forker has ended");
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
    eventually("the forkers without children end", || {
        Command::new("true")
            .spawn_in(&netns)
            .unwrap()
            .wait()
            .unwrap();
        forkers() == 1
    });
}
