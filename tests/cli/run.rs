//! The `netns-exec` command, as a user meets it.
// As the tests of the library: see tests/clippy.toml.
#![allow(clippy::disallowed_methods)]

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use netns_exec_tests::{Binary, TempNetns, as_ordinary_user, require_root, unique_name};
use serde_json::Value;

use super::{
    PROGRAM, Who, assert_fails, command, in_own_run, json, output, output_in_user_namespace, text,
};

const SIGTERM: i32 = 15;

#[track_caller]
fn assert_demo_went_well(output: &Output, namespaces: usize, jobs: u64) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = json(output);
    let rows = report["namespaces"].as_array().expect("an array");
    assert_eq!(rows.len(), namespaces);
    for key in ["id", "ttl"] {
        let distinct: HashSet<u64> = rows
            .iter()
            .map(|row| row[key].as_u64().expect(key))
            .collect();
        assert_eq!(distinct.len(), namespaces, "{key} is a namespace's own");
    }
    let sum: u64 = rows
        .iter()
        .map(|row| row["jobs"].as_u64().expect("jobs"))
        .sum();
    assert_eq!((sum, report["jobs"].as_u64()), (jobs, Some(jobs)));
    for latency in [
        &report["call_ns"],
        &report["hand_over_ns"],
        &rows[0]["call_ns"],
    ] {
        let at = |key: &str| latency[key].as_u64().expect("nanoseconds");
        assert!(0 < at("p50") && at("p50") <= at("p99"));
    }
    assert!(rows.iter().all(|row| row["misplaced"] == 0));
    assert_eq!(report["left_by_setns"], 1);
    assert_eq!(report["misplaced_jobs"], 0);
    assert_eq!(report["stray_threads"], 0);
    assert!(report["looks"].as_u64() > Some(0));
    assert!(report["seconds"].as_f64() > Some(0.0));
    assert_eq!(report["ok"], true);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    assert_eq!(report["kernel"], release.trim());
    report
}

#[test]
fn demo_as_root_places_every_job() {
    require_root();
    let output = output(&[
        "demo",
        "--namespaces",
        "3",
        "--jobs",
        "900",
        "--threads",
        "5",
        "--json",
    ]);
    let report = assert_demo_went_well(&output, 3, 900);
    assert_eq!(report["uid"], 0);
    assert_eq!(report["user_namespace"], false);
    assert_eq!(report["threads"], 5);
    assert_eq!(
        text(&output.stderr),
        "",
        "no progress bar without a terminal"
    );
}

#[test]
fn demo_as_an_ordinary_user_enters_a_user_namespace_by_itself() {
    require_root();
    let program = Binary::reachable_by_all(Path::new(PROGRAM));
    let run = |args: &[&str]| {
        as_ordinary_user()
            .arg(&program.path)
            .args(["demo", "--namespaces", "2", "--jobs", "200"])
            .args(args)
            .current_dir("/")
            .output()
            .expect("setpriv of util-linux")
    };
    let report = assert_demo_went_well(&run(&["--json"]), 2, 200);
    assert_eq!(report["uid"], 65534);
    assert_eq!(report["user_namespace"], true);

    let shown = run(&[]);
    let shown = text(&shown.stdout);
    assert!(
        shown.contains("as user 65534, root in a user namespace"),
        "{shown}"
    );
}

#[test]
fn demo_shows_people_what_was_proven() {
    require_root();
    let output = output(&["demo", "--namespaces", "2", "--jobs", "100"]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}");
    for part in [
        "as root",
        "(pool-worker) is in netns:",
        "2 namespaces",
        "NETNS ID",
        "misplaced jobs  0",
        "stray threads   0",
    ] {
        assert!(shown.contains(part), "no `{part}` in:\n{shown}");
    }
}

#[test]
fn demo_without_user_namespaces_names_the_cure() {
    // The limit of a user namespace of the test's own; the system's stays.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces
        exec setpriv --bounding-set -sys_admin --inh-caps -all \"$0\" demo";
    assert_fails(
        &output_in_user_namespace(script),
        2,
        &[
            "user namespace",
            "no space left",
            "root",
            "max_user_namespaces",
        ],
    );
}

#[test]
fn exec_in_one_namespace_becomes_the_command() {
    let blue = TempNetns::new();
    let script = "echo $$; readlink /proc/self/ns/net; cat; printf 'no newline'; exit 42";
    let mut child = command(&["exec", blue.name(), "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let pid = child.id();
    let mut stdin = child.stdin.take().expect("piped");
    stdin
        .write_all(b"through stdin\n")
        .expect("the child reads");
    drop(stdin);
    let output = child.wait_with_output().expect("output");
    let there = Command::new("ip")
        .args([
            "netns",
            "exec",
            blue.name(),
            "readlink",
            "/proc/self/ns/net",
        ])
        .output()
        .expect("iproute2");
    let there = text(&there.stdout);
    assert_eq!(
        text(&output.stdout),
        format!("{pid}\n{there}through stdin\nno newline")
    );
    assert_eq!(output.status.code(), Some(42));
}

#[test]
fn exec_takes_names_paths_and_pids() {
    let blue = TempNetns::new();
    let mut resident = command(&[
        "exec",
        blue.name(),
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 60",
    ])
    .stdout(Stdio::piped())
    .spawn()
    .expect("the program was built");
    let mut line = String::new();
    BufReader::new(resident.stdout.as_mut().expect("piped"))
        .read_line(&mut line)
        .expect("a line");
    let where_is = |target: &str| {
        let output = output(&["exec", target, "--", "readlink", "/proc/self/ns/net"]);
        text(&output.stdout).to_owned()
    };
    let by_name = where_is(blue.name());
    assert!(by_name.starts_with("net:["));
    assert_eq!(where_is(&format!("/run/netns/{}", blue.name())), by_name);
    assert_eq!(where_is(&format!("pid:{}", resident.id())), by_name);
    resident.kill().expect("still there");
    resident.wait().expect("status");
}

#[test]
fn exec_passes_on_a_signal_as_it_is_or_as_128_more() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let script = "kill -TERM $$";
    let one = output(&["exec", blue.name(), "--", "sh", "-c", script]);
    assert_eq!(one.status.signal(), Some(SIGTERM));
    let two = output(&["exec", blue.name(), red.name(), "--", "sh", "-c", script]);
    assert_eq!(two.status.code(), Some(128 + SIGTERM));
    let said = text(&two.stderr);
    assert!(
        said.contains("`sh` was ended by SIGTERM") && said.contains(red.name()),
        "{said}"
    );
}

#[test]
fn exec_status_tells_own_failures_from_those_of_the_command() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let missing = unique_name();
    let (blue, red) = (blue.name(), red.name());

    assert_fails(
        &output(&["exec", &missing, "--", "true"]),
        125,
        &[&missing, "ip netns list"],
    );
    assert_fails(
        &output(&["exec", "pid:x", "--", "true"]),
        125,
        &["`x`", "pid:4711"],
    );
    assert_fails(
        &output(&["exec", "/etc/passwd", "--", "true"]),
        125,
        &["/etc/passwd"],
    );
    assert_fails(
        &output(&["exec", blue, "--", "/etc/passwd"]),
        126,
        &["permission denied"],
    );
    assert_fails(
        &output(&["exec", blue, "--", "/no/such"]),
        127,
        &["`/no/such`", "no such file"],
    );

    let several = output(&["exec", blue, red, "--", "/no/such"]);
    assert_eq!(several.status.code(), Some(127));
    let said = text(&several.stderr);
    assert!(said.contains(blue) && said.contains(red), "{said}");
    assert_eq!(
        output(&["exec", blue, red, "--", "/etc/passwd"])
            .status
            .code(),
        Some(126)
    );

    // Usage: the low numbers are the command's.
    for usage in [
        &["exec"][..],
        &["exec", blue],
        &["exec", "--all", blue, "--", "true"],
    ] {
        assert_eq!(output(usage).status.code(), Some(125));
    }
    assert_eq!(output(&["demo", "--jobs", "none"]).status.code(), Some(2));
    assert_eq!(output(&["no-such-subcommand"]).status.code(), Some(2));
}

#[test]
fn exec_starts_nothing_unless_all_namespaces_are_there() {
    let blue = TempNetns::new();
    let output = output(&["exec", blue.name(), &unique_name(), "--", "echo", "ran"]);
    assert_fails(&output, 125, &["cannot open netns"]);
}

#[test]
fn exec_as_an_ordinary_user_says_what_is_missing() {
    let blue = TempNetns::new();
    let program = Binary::reachable_by_all(Path::new(PROGRAM));
    let output = as_ordinary_user()
        .arg(&program.path)
        .args(["exec", blue.name(), "--", "true"])
        .current_dir("/")
        .output()
        .expect("setpriv of util-linux");
    assert_fails(
        &output,
        125,
        &["cannot enter netns", blue.name(), "CAP_SYS_ADMIN"],
    );
}

#[test]
fn exec_in_several_prefixes_every_line_of_both_streams() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let script =
        "readlink /proc/self/ns/net; printf 'bytes \\377\\000\\n\\npartial'; echo oops >&2; cat";
    let output = output(&["exec", blue.name(), red.name(), "--", "sh", "-c", script]);
    assert!(output.status.success());

    let (blue, red) = (blue.name(), red.name());
    let of = |stream: &[u8], name: &str| -> Vec<Vec<u8>> {
        let prefix = format!("{name}: ").into_bytes();
        let lines = stream.split_inclusive(|&byte| byte == b'\n');
        lines
            .filter_map(|line| Some(line.strip_prefix(&prefix[..])?.to_vec()))
            .collect()
    };
    let mut places = HashSet::new();
    for name in [blue, red] {
        let lines = of(&output.stdout, name);
        assert!(places.insert(lines[0].clone()) && lines[0].starts_with(b"net:["));
        assert_eq!(lines[1..], [&b"bytes \xff\0\n"[..], b"\n", b"partial\n"]);
        assert_eq!(of(&output.stderr, name), [b"oops\n"]);
    }
    assert_eq!(
        output.stdout.iter().filter(|&&byte| byte == b'\n').count(),
        8
    );
}

#[test]
fn exec_in_several_never_mixes_lines() {
    const LINES: usize = 3000;
    let names = [TempNetns::new(), TempNetns::new(), TempNetns::new()];
    let text_of_line = "x".repeat(5000);
    // Both streams of all three go to one pipe; a line is longer than the pipe
    // takes at once.
    let script = format!(
        "yes {text_of_line} | head -{LINES} & yes {text_of_line} | head -{LINES} >&2; wait"
    );
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = command(&["exec", names[0].name(), names[1].name(), names[2].name()]);
    command.args(["--", "sh", "-c", &script]);
    command
        .stdout(writer.try_clone().expect("a copy"))
        .stderr(writer);
    let mut child = command.spawn().expect("the program was built");
    drop(command);

    let mut count = 0;
    for line in BufReader::new(reader).lines() {
        let line = line.expect("plain text");
        let (name, rest) = line.split_once(": ").expect("a prefix");
        assert!(names.iter().any(|known| known.name() == name), "{name}");
        assert_eq!(rest, text_of_line);
        count += 1;
    }
    assert!(child.wait().expect("status").success());
    assert_eq!(count, 2 * LINES * names.len());
}

#[test]
fn exec_in_several_ends_with_the_highest_status() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    red.set_loopback_up().expect("loopback up");
    let script = "if ip -o link show up | grep -q lo; then exit 3; fi";
    for names in [[blue.name(), red.name()], [red.name(), blue.name()]] {
        let output = output(&["exec", names[0], names[1], "--", "sh", "-c", script]);
        assert_fails(&output, 3, &["`sh` ended with status 3", red.name()]);
    }
}

#[test]
fn exec_in_several_passes_signals_on_to_all() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let script = "trap 'kill $!; echo got it; exit 9' TERM; sleep 60 & echo up; wait";
    let mut child = command(&["exec", blue.name(), red.name(), "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program was built");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("more").expect("plain text");
    assert!(next().ends_with(": up") && next().ends_with(": up"));
    let kill = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(kill.expect("kill").success());
    let told: HashSet<String> = [next(), next()].into();
    assert_eq!(
        told,
        [&blue, &red]
            .map(|ns| format!("{}: got it", ns.name()))
            .into()
    );
    assert!(lines.next().is_none());
    assert_eq!(child.wait().expect("status").code(), Some(9));
}

#[test]
fn exec_in_several_ends_when_its_reader_does() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let mut child = command(&["exec", blue.name(), red.name(), "--", "yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let mut line = String::new();
    let mut reader = BufReader::new(child.stdout.take().expect("piped"));
    reader.read_line(&mut line).expect("a line");
    assert!(line.ends_with(": y\n"), "{line}");
    drop(reader);
    let output = child.wait_with_output().expect("output");
    assert_eq!(
        output.status.code(),
        Some(128 + 13),
        "SIGPIPE, as in a shell"
    );
    assert_eq!(text(&output.stderr), "", "that is nothing to report");
}

#[test]
fn exec_runs_once_in_a_namespace_that_is_named_twice() {
    let blue = TempNetns::new();
    let path = format!("/run/netns/{}", blue.name());
    let output = output(&["exec", blue.name(), &path, "--", "echo", "here"]);
    assert_eq!(text(&output.stdout), "here\n");
}

#[test]
fn exec_all_means_all_named_namespaces() {
    // Other tests make and delete names all the time.
    let in_empty_run = |script| in_own_run(Who::Root, script);
    let output =
        in_empty_run("ip netns add blue && ip netns add red && \"$0\" exec --all -- echo hello");
    let shown: HashSet<&str> = text(&output.stdout).lines().collect();
    assert_eq!(
        shown,
        ["blue: hello", "red: hello"].into(),
        "{}",
        text(&output.stderr)
    );
    assert!(output.status.success());

    // As with `ip -all netns exec`.
    let output = in_empty_run("\"$0\" exec --all -- echo hello");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("", ""));
}

#[test]
fn help_has_examples_that_begin_with_the_command() {
    let all = output(&["--help"]);
    assert!(all.status.success());
    for subcommand in [
        "demo",
        "exec",
        "shell",
        "create",
        "delete",
        "ls",
        "identify",
        "pids",
        "monitor",
        "audit",
        "bench",
        "completions",
        "man",
    ] {
        assert!(text(&all.stdout).contains(subcommand));
        let help = output(&[subcommand, "--help"]);
        let help = text(&help.stdout);
        let example = format!("Examples:\n  netns-exec {subcommand}");
        assert!(help.contains(&example), "{help}");
    }
    for usage in [&[][..], &["exec", "--help"]] {
        assert!(!output(usage).stdout.is_empty() || !output(usage).stderr.is_empty());
    }
    // As fingers that know iproute2 have it.
    for alias in ["add", "del", "list", "show"] {
        assert!(output(&[alias, "--help"]).status.success(), "{alias}");
    }
}

#[test]
fn closed_pipe_is_no_crash() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = command(&["completions", "bash"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .and_then(|child| child.wait_with_output())
        .expect("the program was built");
    assert_eq!(text(&output.stderr), "");
}
