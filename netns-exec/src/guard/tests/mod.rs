//! Each mechanism on raw threads and real namespaces. They stay in the crate
//! because a guard can be installed on a thread without an executor only here.

use std::fs;
use std::process::Command;
use std::sync::Barrier;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::geteuid;

use super::detect::{Detect, Recording};
use super::*;
use crate::home::roster;
use crate::netns::Netns;

mod detect;
mod keep_admin;
mod off;
mod seal;

/// Runs `f` on a thread in a new network namespace, signed in as its worker.
fn in_new_netns<T: Send>(f: impl FnOnce(Registration) -> T + Send) -> T {
    assert!(
        geteuid().is_root(),
        "this test makes network namespaces: run it as root, e.g. with \
         CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='sudo -E'"
    );
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            let netns = Netns::current().expect("the new namespace");
            f(roster::sign_in(netns.id()))
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `f` on a sealed thread in a new network namespace.
fn sealed<T: Send>(f: impl FnOnce(&mut ThreadGuard) -> T + Send) -> T {
    let policy = Policy::prepare(Guard::Seal).expect("root can seal");
    in_new_netns(|registration| {
        let mut guard = policy.install(registration).expect("what was tried works");
        f(&mut guard)
    })
}

/// A line of the calling thread's `/proc` status.
fn status(key: &str) -> String {
    let status = fs::read_to_string("/proc/thread-self/status").expect("procfs");
    let line = (status.lines())
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .expect("such a line");
    line.trim().to_owned()
}

/// What a thread is refused with that must not be created.
fn refusal() -> Option<i32> {
    let error = thread::Builder::new().spawn(|| {}).err()?;
    error.raw_os_error()
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("the program can be started");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn roster_knows_a_thread_until_it_has_ended() {
    let netns = Netns::current().expect("procfs").id();
    for (sign_in, serves) in [
        (
            Box::new(move || roster::sign_in(netns)) as Box<dyn Fn() -> Registration + Send>,
            Some(netns),
        ),
        (Box::new(roster::sign_in_visitor), None),
    ] {
        let (sender, receiver) = channel();
        let (end, ended) = channel::<()>();
        let thread = thread::spawn(move || {
            let registration = sign_in();
            sender.send(sys::thread::tid()).expect("the test waits");
            ended.recv().expect("the test tells");
            drop(registration);
            // The destructors of its thread-locals, say.
            sender.send(0).expect("the test waits");
            ended.recv().expect("the test tells");
        });
        let tid = receiver.recv().expect("it has signed in");
        assert_eq!(roster::netns_of(tid), serves);
        assert!(roster::not_signed_in(&[tid]).is_empty());
        let started = sys::task::alive_since(tid).expect("procfs");
        let started = started.expect("it waits");
        assert!(!roster::is_leaving(tid, started));
        end.send(()).expect("it waits");
        receiver.recv().expect("it has signed out");
        assert!(roster::contains(tid), "it is still there");
        assert!(roster::is_leaving(tid, started));
        // The next thread that has its number.
        assert!(!roster::is_leaving(tid, started + 1));
        assert_eq!(roster::not_signed_in(&[tid]), [tid]);
        end.send(()).expect("it waits");
        thread.join().expect("no panic");
        sys::thread::wait_gone(tid);
        assert!(!roster::contains(tid));
        assert_eq!(roster::not_signed_in(&[tid]), [tid]);
    }
}
