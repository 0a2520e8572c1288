//! A number is not a namespace: what enters proves where it is.

use std::fs::File;
use std::future::Future;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Wake, Waker};

use netns_exec::{CommandExt, Error, Executor, Guard, Netns, NetnsId};
use netns_exec_tests::{Alone, GUARDS, Gate, alone, fresh, here, on_a_thread};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};

/// Makes the number that `netns` holds mean what `other` does, or nothing: what a
/// program does that closes descriptors that it does not own.
#[allow(unsafe_code)]
fn replace(netns: &Netns, other: Option<&dyn AsRawFd>) {
    let number = netns.as_fd().as_raw_fd();
    let rc = match other {
        // SAFETY: the call takes integers. Of the descriptors' owners, the handle is
        // what this test is about, and finds out.
        Some(other) => unsafe { libc::dup3(other.as_raw_fd(), number, libc::O_CLOEXEC) },
        // SAFETY: as above.
        None => unsafe { libc::close(number) },
    };
    Errno::result(rc).expect("both are open");
}

/// An error's errno and text.
type Refusal = (Option<i32>, String);

fn of<T>(outcome: Result<T, Error>) -> Result<(), Refusal> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error) => Err((error.raw_os_error(), error.to_string())),
    }
}

/// Everything that enters a namespace, and what came of it.
fn all_that_enter(executor: &Executor, netns: &Netns) -> Vec<(&'static str, Result<(), Refusal>)> {
    let mut prepared = Command::new("true");
    let prepared = prepared.in_netns(netns).status();
    let prepared = prepared.map_err(|error| (error.raw_os_error(), error.to_string()));
    vec![
        ("run", of(executor.run(netns, || ()))),
        (
            "pin",
            of(executor.pin(netns).and_then(|pinned| pinned.run(|| ()))),
        ),
        ("check_enter", of(netns.check_enter())),
        ("set_loopback_up", of(netns.set_loopback_up())),
        ("spawn_in", of(Command::new("true").spawn_in(netns))),
        ("status_in", of(Command::new("true").status_in(netns))),
        ("output_in", of(Command::new("true").output_in(netns))),
        ("in_netns", prepared.map(drop)),
    ]
}

#[test]
fn descriptor_that_was_reused_behind_the_handle_is_an_error_and_no_other_namespace() {
    alone!(Alone::AsIs);
    let file = File::open("/dev/null").unwrap();
    for guard in GUARDS {
        let executor = Executor::builder().guard(guard).build().unwrap();
        let other = fresh();
        let other = other.as_fd().try_clone_to_owned().unwrap();
        for by in [Some(&other as &dyn AsRawFd), Some(&file), None] {
            // Never dropped: its number is not its own any more.
            let netns = std::mem::ManuallyDrop::new(fresh());
            replace(&netns, by);
            for (what, outcome) in all_that_enter(&executor, &netns) {
                let (errno, text) = outcome.expect_err(what);
                assert!(
                    matches!(errno, Some(libc::EBADF | libc::EINVAL)),
                    "{what}: {text}"
                );
                assert!(
                    what == "in_netns" || text.contains("behind the handle's back"),
                    "{what}: {text}"
                );
            }
        }
    }
}

/// Tells where it is woken.
struct Tells(Sender<NetnsId>);

impl Wake for Tells {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(here());
    }
}

/// The waker of a job that waits behind one that takes its worker elsewhere, in a
/// namespace that no other worker can enter.
#[test]
fn job_that_gets_no_worker_is_told_of_by_a_thread_that_no_job_has_moved() {
    alone!(Alone::AsIs);
    let executor = Executor::builder().guard(Guard::Detect).build().unwrap();
    // Never dropped: its number is not its own any more.
    let netns = std::mem::ManuallyDrop::new(fresh());
    let elsewhere = fresh();
    let gate = Gate::new();
    let (pass, moved) = (gate.pass(), elsewhere.clone());
    let leaves = executor.spawn(&netns, move || {
        pass.stop();
        setns(moved, CloneFlags::CLONE_NEWNET).unwrap();
    });
    gate.wait_for(1);
    let mut queued = executor.spawn(&netns, || ()).unwrap();
    let (tell, told) = channel();
    let waker = Waker::from(Arc::new(Tells(tell)));
    let pending = Pin::new(&mut queued).poll(&mut Context::from_waker(&waker));
    assert!(pending.is_pending());
    let other = File::open("/dev/null").unwrap();
    replace(&netns, Some(&other));
    gate.open();
    assert_eq!(told.recv().unwrap(), here(), "where the process is");
    assert!(queued.join().is_err(), "no worker came");
    let error = leaves.unwrap().join().unwrap_err();
    assert!(error.is_escaped(), "{error}");
}

/// The handle's number means one namespace to the thread that made it, and another one
/// to all others.
#[test]
fn handle_of_a_thread_with_a_descriptor_table_of_its_own_never_means_another_namespace() {
    alone!(Alone::AsIs);
    let executor = Executor::new().unwrap();
    // There is a home thread, of the process's table.
    let decoys: Vec<_> = (0..64).map(|_| fresh()).collect();
    executor.run(&decoys[0], || ()).unwrap();
    let leaked = on_a_thread(|| {
        unshare(CloneFlags::CLONE_FILES).unwrap();
        let numbers: Vec<_> = decoys.iter().map(|it| it.as_fd().as_raw_fd()).collect();
        let target = here_with_another_number(&numbers);
        for (what, outcome) in all_that_enter(&executor, &target) {
            if what == "in_netns" {
                // The child is a copy of this thread, and so has its table.
                outcome.unwrap();
                continue;
            }
            let (errno, text) = outcome.expect_err(what);
            assert_eq!(errno, Some(libc::EBADF), "{what}: {text}");
            assert!(text.contains("descriptor table"), "{what}: {text}");
        }
        // Nor does a descriptor come back that means something else here.
        let error = Netns::new().unwrap_err();
        assert!(error.to_string().contains("descriptor table"), "{error}");
        // Where the handle came from is another thread's business: the namespace is
        // compared there, too.
        target
    });
    let leaked = std::mem::ManuallyDrop::new(leaked);
    for (what, outcome) in all_that_enter(&executor, &leaked) {
        assert!(outcome.is_err(), "{what} went elsewhere");
    }
    assert_eq!(executor.run(&decoys[1], here).unwrap(), decoys[1].id());
}

/// A handle to a namespace under a number that means a decoy to others.
#[allow(unsafe_code)]
fn here_with_another_number(numbers: &[i32]) -> Netns {
    for &number in numbers {
        // SAFETY: closes descriptors in this thread's own table, which has no owner for
        // them: the decoys are dropped by another thread, in another table.
        unsafe { libc::close(number) };
    }
    // In this table that is the lowest number that is free.
    let netns = Netns::current().unwrap();
    assert!(numbers.contains(&netns.as_fd().as_raw_fd()));
    netns
}
