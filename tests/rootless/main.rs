//! Without root: a program that enters a user namespace, tests that do before they
//! begin, and a daemon that stays in the host's network namespace.

mod enter;
mod harness;

use std::path::Path;
use std::process::{Command, Output};

use netns_exec_tests::{Binary, as_ordinary_user};

netns_exec::rootless::test_harness!(own_net);

/// Runs the program beside this file without any privilege.
fn run(scenario: &str) -> Output {
    run_after("exec \"$0\" \"$@\"", scenario)
}

/// As [`run`], by a script that makes preparations, of which the program is `$0`.
fn run_after(script: &str, scenario: &str) -> Output {
    let binary = Binary::reachable_by_all(Path::new(env!("CARGO_BIN_EXE_rootless_program")));
    let mut command = as_ordinary_user();
    command.args(["sh", "-c", script]).arg(&binary.path);
    let command = command.arg(scenario).current_dir("/");
    command.output().expect("setpriv of util-linux")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What it wrote.
#[track_caller]
fn succeeded(output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success() && out.ends_with("done\n"),
        "{}:\n{out}\n{err}",
        output.status
    );
    out
}

/// The test binary that this is, for a user without any privilege.
fn this_binary() -> (Binary, Command) {
    let this = std::env::current_exe().expect("this program has a path");
    let binary = Binary::reachable_by_all(&this);
    let mut command = as_ordinary_user();
    command.arg(&binary.path).current_dir("/");
    command.env_remove("NETNS_EXEC_TEST_HARNESS");
    (binary, command)
}
