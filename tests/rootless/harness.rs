//! `rootless::test_harness!`: this very binary, run as `cargo test` and as
//! cargo-nextest run it, by a user without any privilege.

use std::net::TcpListener;
use std::thread;

use netns_exec::{Netns, in_netns};
use netns_exec_tests::{here, refuse_own_mounts};

use super::{text, this_binary};

/// What runs there: tests with a namespace, a name and a port of their own.
mod fixture {
    use super::*;

    #[test]
    #[in_netns(fresh)]
    fn serves_on_port_80() {
        TcpListener::bind("127.0.0.1:80").expect("each has its own");
    }

    #[test]
    #[in_netns(fresh)]
    fn serves_on_port_80_as_well() {
        TcpListener::bind("[::1]:80").expect("each has its own");
    }

    #[test]
    fn has_names_of_its_own() {
        let name = netns_exec_tests::TempNetns::new();
        assert_ne!(name.netns().id(), here());
        assert!(Netns::open(name.name()).is_ok());
    }
}

const FIXTURE: [&str; 3] = [
    "harness::fixture::has_names_of_its_own",
    "harness::fixture::serves_on_port_80",
    "harness::fixture::serves_on_port_80_as_well",
];

/// All tests in one process with several threads.
#[test]
fn whole_binary_runs_as_an_ordinary_user() {
    let (_binary, mut command) = this_binary();
    command.args(["harness::fixture", "--test-threads", "3"]);
    let output = command.output().expect("setpriv of util-linux");
    let out = text(&output.stdout);
    assert!(
        output.status.success() && out.contains("3 passed"),
        "{out}\n{}",
        text(&output.stderr)
    );
    // Said where it failed only.
    assert_eq!(text(&output.stderr), "");
}

/// A process for each test, all at once: it lists them, and runs each by its name.
#[test]
fn processes_for_one_test_each_run_beside_each_other() {
    let (_binary, mut list) = this_binary();
    let list = list.args(["--list", "--format", "terse"]).output();
    let list = text(&list.expect("setpriv of util-linux").stdout);
    let names = (list.lines())
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| name.starts_with("harness::fixture"));
    let names: Vec<&str> = names.collect();
    assert_eq!(names, FIXTURE);

    let run = |name: &str| {
        let (_binary, mut command) = this_binary();
        let output = command.args(["--exact", name, "--nocapture"]).output();
        let output = output.expect("setpriv of util-linux");
        let out = text(&output.stdout);
        assert!(
            output.status.success() && out.contains("1 passed"),
            "{name}: {out}\n{}",
            text(&output.stderr)
        );
    };
    thread::scope(|scope| {
        for name in names.iter().cycle().take(12) {
            scope.spawn(|| run(name));
        }
    });
}

/// They are listed, and fail with a reason.
#[test]
fn system_that_forbids_it_is_told_about_once() {
    let (_binary, mut command) = this_binary();
    refuse_own_mounts(&mut command);
    let output = command.args(["--list"]).output();
    let output = output.expect("setpriv of util-linux");
    assert!(output.status.success() && text(&output.stdout).contains(FIXTURE[0]));

    let (_binary, mut command) = this_binary();
    refuse_own_mounts(&mut command);
    let output = command.args(["--exact", FIXTURE[1]]).output();
    let output = output.expect("setpriv of util-linux");
    assert!(!output.status.success());
    let err = text(&output.stderr);
    assert_eq!(err.matches("stay without privilege").count(), 1, "{err}");
    assert!(err.contains("seccomp"), "{err}");
}
