//! Children of sealed jobs inherit the filter, and have their threads: their code lies
//! elsewhere than this program's. Two tests see to it that nothing but the addresses can
//! let them: no thread of the library answers for the filter there. The third has a child
//! whose addresses are this program's own.

use std::env;
use std::io::{self, Read, Write};
use std::process::{Child, Stdio};
use std::thread;

use netns_exec::Guard;
use netns_exec_tests::{Alone, alone, fresh, in_a_copy, rerun, this_test};

use crate::{executor, is_refused_a_thread};

/// Set for the child, which is this program once more.
const IS_CHILD: &str = "NETNS_EXEC_TEST_CHILD_WITH_THREADS";

/// To be called by a job: its child, by the standard library, which says on standard output
/// that it is there and waits for the end of its input.
fn child_of_this_thread(test: &str) -> Child {
    rerun(test)
        .env(IS_CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the seal lets jobs have children")
}

/// What the child does.
fn have_threads() {
    println!("ready");
    io::stdout().flush().expect("the parent reads");
    io::stdin().read_to_end(&mut Vec::new()).expect("a pipe");
    let threads: Vec<_> = (0..4)
        .map(|n| thread::Builder::new().spawn(move || n))
        .collect::<io::Result<_>>()
        .expect("a child may create threads");
    let sum: i32 = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert_eq!(sum, 6);
}

/// Waits until the child is in its test.
fn wait_until_ready(child: &mut Child) {
    let out = child.stdout.as_mut().expect("a pipe");
    let mut seen = Vec::new();
    while !seen.ends_with(b"ready\n") {
        let mut byte = [0];
        assert_eq!(
            out.read(&mut byte).expect("a pipe"),
            1,
            "it has ended before"
        );
        seen.push(byte[0]);
    }
}

fn assert_has_threads(child: Child) {
    let output = child.wait_with_output().expect("it is ours");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && out.contains("1 passed"),
        "{output:?}"
    );
}

#[test]
fn child_has_its_threads_where_the_filter_refuses_by_itself() {
    if env::var_os(IS_CHILD).is_some() {
        return have_threads();
    }
    // Another program listens, so that ours cannot.
    alone!(Alone::Listened);
    let (executor, netns, test) = (executor(Guard::Seal), fresh(), this_test!());
    let job = || (is_refused_a_thread(), child_of_this_thread(test));
    let (refused, mut child) = executor.run(&netns, job).unwrap();
    assert!(refused, "the seal is on, and without a listener");
    wait_until_ready(&mut child);
    assert_has_threads(child);
}

#[test]
fn child_that_outlives_the_executor_has_its_threads() {
    if env::var_os(IS_CHILD).is_some() {
        return have_threads();
    }
    alone!(Alone::AsIs);
    let (executor, netns, test) = (executor(Guard::Seal), fresh(), this_test!());
    let mut child = executor.run(&netns, || child_of_this_thread(test)).unwrap();
    wait_until_ready(&mut child);
    // The listener goes with the worker: a call that would ask it is ENOSYS then.
    executor.shutdown(None).unwrap();
    assert_has_threads(child);
}

/// The thread that listens tells it from the worker.
#[test]
fn copy_that_a_job_makes_by_fork_has_its_threads() {
    alone!(Alone::AsIs);
    let (executor, netns) = (executor(Guard::Seal), fresh());
    let refused_where_it_was_made = executor.run(&netns, || {
        in_a_copy("a thread", || {
            let thread = thread::Builder::new().spawn(|| 7).expect("no refusal");
            assert_eq!(thread.join().expect("no panic"), 7);
        });
        is_refused_a_thread()
    });
    assert!(refused_where_it_was_made.expect("a worker"));
    assert_eq!(executor.stats().refused, 1, "the copy was refused nothing");
}
