//! The command `netns-exec`, as a user meets it.
#![allow(
    clippy::disallowed_methods,
    reason = "as ../clippy.toml says of the tests of the library: to see what comes of it"
)]

mod audit;
mod bench;
mod exec;
mod exec_terminal;
mod lease;
mod lease_command;
mod libnetwork_1113;
mod run;
mod tables;

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

netns_exec::rootless::test_harness!(own_net);

/// The command. It stands here and not with the other fixtures because cargo
/// names the program to the tests of its own package only.
const PROGRAM: &str = env!("CARGO_BIN_EXE_netns-exec");

/// The command with these arguments, and nothing to read.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs the command.
#[track_caller]
fn output(args: &[&str]) -> Output {
    command(args).output().expect("the program was built")
}

/// Runs a script as root of a user namespace of its own, with the program as `$0`.
#[track_caller]
fn output_in_user_namespace(script: &str) -> Output {
    netns_exec_tests::require_root();
    Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", script, PROGRAM])
        .stdin(Stdio::null())
        .output()
        .expect("unshare of util-linux")
}

#[track_caller]
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("plain text")
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

/// What a failure looks like: one line, with who speaks, why, and the cure; and
/// nothing to be taken for a result.
#[track_caller]
fn assert_fails(output: &Output, status: i32, parts: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("netns-exec: "), "{said}");
    assert_eq!(text(&output.stdout), "", "{said}");
    for part in parts {
        assert!(said.contains(part), "no `{part}` in: {said}");
    }
}

/// The state of a process, see proc_pid_stat(5); `None` once it has ended.
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = stat.rsplit(')').next()?.trim_start().chars().next()?;
    (!matches!(state, 'Z' | 'X')).then_some(state)
}
