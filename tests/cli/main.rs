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
mod ls;
mod monitor;
mod names;
mod pages;
mod run;
mod shell;
mod soak;
mod tables;
mod view;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use netns_exec_tests::{Binary, require_root, within};
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
    require_root();
    Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", script, PROGRAM])
        .stdin(Stdio::null())
        .output()
        .expect("unshare of util-linux")
}

/// Who runs a script.
#[derive(Clone, Copy, Debug)]
enum Who {
    Root,
    /// Root of user, network and mount namespaces of its own, and an ordinary user to
    /// everything else: `unshare -Urmn`.
    OrdinaryUser,
}

/// Runs a script, with the program as `$0`, where nothing has a name but what the script
/// makes, and where what it does to `/etc` is seen by nothing else.
#[track_caller]
fn in_own_run(who: Who, script: &str) -> Output {
    const OWN: &str = "mount -t tmpfs tmpfs /run && mkdir /run/etc \
         && cp /etc/passwd /etc/group /etc/nsswitch.conf /etc/hosts /etc/resolv.conf /run/etc \
         && mount -t tmpfs tmpfs /etc && cp /run/etc/* /etc && ";
    require_root();
    let program = Binary::reachable_by_all(Path::new(PROGRAM));
    let mut command = Command::new("setpriv");
    match who {
        Who::Root => command.arg("unshare"),
        Who::OrdinaryUser => command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .args(["unshare", "--user", "--map-root-user", "--net"]),
    };
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.args([&format!("{OWN}{script}")]).arg(&program.path);
    command.stdin(Stdio::null()).current_dir("/");
    command.env_remove("COLUMNS").env_remove("PS1");
    within("a script", move || {
        let output = command.output();
        drop(program);
        output.expect("setpriv and unshare of util-linux")
    })
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
