//! A process that goes on without its main thread, which is what workers are made to
//! be like.

use std::process::{exit, id};

use netns_exec::{Executor, Netns};
use netns_exec_tests::{
    end_this_thread, eventually, fresh, has_main_thread_ended, here, in_main_thread, is_alone,
    rerun, this_test,
};

/// Runs `f` after the main thread has ended, in a process of its own, which it ends.
fn without_main_thread(test: &str, before: impl FnOnce(), f: impl FnOnce()) {
    if !is_alone(test) {
        let output = rerun(test).output().expect("this program can be started");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {text}", output.status);
        assert!(text.contains("all as it should be"), "{text}");
        return;
    }
    before();
    in_main_thread(end_this_thread);
    eventually("the main thread ends", || has_main_thread_ended(id()));
    let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_ok();
    if fine {
        eprintln!("all as it should be");
    }
    exit(i32::from(!fine));
}

#[test]
fn first_use_after_the_main_thread_has_ended_is_an_error_with_a_cure() {
    let test = this_test!();
    without_main_thread(
        test,
        || (),
        || {
            let errors = [
                Executor::new().map(drop).unwrap_err(),
                Netns::new().map(drop).unwrap_err(),
            ];
            for error in errors {
                let text = error.to_string();
                assert!(text.contains("main thread has ended"), "{text}");
                assert!(text.contains("before it ends"), "{text}");
            }
            // What takes no thread of the library's works.
            Netns::current().unwrap();
        },
    );
}

#[test]
fn library_that_was_used_before_works_on_without_the_main_thread() {
    let test = this_test!();
    let executor = std::cell::OnceCell::new();
    without_main_thread(
        test,
        || drop(executor.set(Executor::new().unwrap())),
        || {
            let netns = fresh();
            let executor = executor.get().unwrap();
            assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
            let another = Executor::new().unwrap();
            assert_eq!(another.run(&netns, here).unwrap(), netns.id());
            netns.set_loopback_up().unwrap();
        },
    );
}
