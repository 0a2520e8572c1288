//! `netns-exec soak`, for a moment.

use std::fs;
use std::process::{Child, Output, Stdio};

use netns_exec_tests::{eventually, require_root, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Who, command, in_own_run, json, text};

/// Starts it, and returns it with the beginning of its names.
fn start(args: &[&str]) -> (Child, String) {
    require_root();
    let child = command(&[&["soak", "--json"], args].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let names = format!("netns-exec-soak-{}-", child.id());
    (child, names)
}

/// Waits for its end and returns what it found, which is nothing.
#[track_caller]
fn assert_clean(output: &Output) -> Value {
    let report: Value = json(output);
    assert!(
        output.status.success(),
        "{report:#}\n{}",
        text(&output.stderr)
    );
    assert_eq!(text(&output.stderr), "");
    assert_eq!(report["violations"], 0, "{report:#}");
    assert_eq!(report["ok"], true);
    report
}

fn names_with(beginning: &str) -> usize {
    let Ok(folder) = fs::read_dir("/run/netns") else {
        return 0;
    };
    folder
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(beginning))
        .count()
}

#[test]
fn soak_does_everything_and_finds_nothing() {
    let (child, names) = start(&["--seconds", "3", "--seed", "15"]);
    let output = within("a soak", || child.wait_with_output().expect("a child"));
    let report = assert_clean(&output);
    for key in [
        "jobs",
        "panicked",
        "futures",
        "threads",
        "sockets",
        "leases",
        "children",
        "namespaces",
        "faults",
        "audits",
    ] {
        assert!(report[key].as_u64() > Some(0), "{key} of {report:#}");
    }
    assert_eq!(report["seed"], 15);
    assert!(
        report["growth"]["descriptors"].as_i64() <= Some(0),
        "{report:#}"
    );
    assert_eq!(names_with(&names), 0);
}

#[test]
fn interrupted_soak_ends_in_order() {
    let (child, names) = start(&["--minutes", "100"]);
    eventually("it has begun", || names_with(&names) > 1);
    let pid = Pid::from_raw(child.id().cast_signed());
    kill(pid, Signal::SIGINT).expect("a child");
    let output = within("a soak", || child.wait_with_output().expect("a child"));
    let report = assert_clean(&output);
    assert_eq!(report["growth"], Value::Null);
    assert_eq!(names_with(&names), 0);
}

#[test]
fn ordinary_user_can_soak() {
    let script = "\"$0\" soak --seconds 1 --namespaces 3 --json && ls -A /run/netns 1>&2";
    assert_clean(&in_own_run(Who::OrdinaryUser, script));
}

#[test]
fn time_that_is_none_is_misuse() {
    for args in [
        &["--seconds=0"][..],
        &["--minutes=0"],
        &["--seconds=1", "--minutes=1"],
        &["--namespaces=1"],
    ] {
        let output = super::output(&[&["soak"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}
