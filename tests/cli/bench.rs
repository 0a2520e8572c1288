//! `netns-exec bench`, as a user meets it. What the figures are is for the
//! bench to say; here they only have to be there.
// As the tests of the library: see tests/clippy.toml.
#![allow(clippy::disallowed_methods)]

use std::process::Output;

use netns_exec_tests::{TempNetns, here, require_root, unique_name};
use serde_json::Value;

use super::{assert_fails, json, output_in_user_namespace, text};

fn output(args: &[&str]) -> Output {
    super::output(&[&["bench"], args].concat())
}

/// Checks that all figures of a report are there, and returns it.
#[track_caller]
fn assert_complete(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    let report: Value = json(output);
    assert_eq!(report["version"], 1);
    let regimes = report["regimes"].as_array().expect("an array");
    let names: Vec<_> = regimes.iter().map(|regime| &regime["regime"]).collect();
    assert_eq!(names, ["hot", "parked"]);
    for regime in regimes {
        let ways = regime["ways"].as_array().expect("an array");
        let names: Vec<_> = ways.iter().map(|way| &way["way"]).collect();
        let expected = [
            "pinned_run",
            "executor_run",
            "setns_in_place",
            "thread_per_call",
        ];
        assert_eq!(names, expected);
        for way in ways {
            for key in ["p50_ns", "p99_ns", "to_setns", "to_thread"] {
                assert!(way[key].as_f64() > Some(0.0), "{key} of {way}");
            }
            assert!(way["samples"].as_u64() >= report["rounds"].as_u64());
        }
        assert_eq!(ways[2]["to_setns"], 1.0);
        assert_eq!(ways[3]["to_thread"], 1.0);
    }
    for key in ["cpus", "rounds", "seconds"] {
        assert!(report[key].as_f64() > Some(0.0), "{key}");
    }
    let woken_by = report["woken_by"].as_str().expect("a word");
    assert!(["bell", "futex"].contains(&woken_by), "{woken_by}");
    report
}

#[test]
fn every_way_is_timed_in_the_namespace_that_was_named() {
    let blue = TempNetns::new();
    let path = format!("/run/netns/{}", blue.name());
    for target in [blue.name(), &path] {
        let output = output(&[target, "--seconds", "0.01", "--json"]);
        let report = assert_complete(&output);
        assert_eq!(report["netns"]["name"], target);
        assert_eq!(report["netns"]["id"], blue.id().as_u64());
        assert_eq!(report["user_namespace"], false);
        assert_eq!(report["uid"], 0);
    }
}

#[test]
fn without_a_name_the_namespace_is_a_new_one() {
    require_root();
    let report = assert_complete(&output(&["--seconds", "0.01", "--json"]));
    assert_eq!(report["netns"]["name"], Value::Null);
    assert_ne!(report["netns"]["id"], here().as_u64());
}

#[test]
fn people_are_told_who_is_faster() {
    let blue = TempNetns::new();
    let output = output(&[blue.name(), "--seconds", "0.01"]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for part in [
        blue.name(),
        "as root",
        "Pinned::run",
        "Executor::run",
        "setns in place",
        "thread per call",
        "p50",
        "p99",
        "\nhot: ",
        "\nparked: ",
    ] {
        assert!(shown.contains(part), "no `{part}` in:\n{shown}");
    }
    // Which of them it is, is the machine's to say; the text has to agree.
    let setns_won = ["hot: setns in place is", "parked: setns in place is"]
        .iter()
        .any(|verdict| shown.contains(verdict));
    assert_eq!(
        shown.contains("Where setns in place is faster, a worker buys safety"),
        setns_won,
        "{shown}"
    );
}

#[test]
fn namespace_that_is_none_is_refused() {
    let missing = unique_name();
    assert_fails(&output(&[&missing]), 2, &[&missing, "ip netns list"]);
    assert_fails(&output(&["pid:x"]), 2, &["`x`", "pid:4711"]);
    assert_fails(&output(&["/etc/passwd", "--json"]), 2, &["/etc/passwd"]);
}

#[test]
fn time_that_is_none_is_misuse() {
    for seconds in ["0", "-1", "NaN", "301", "soon"] {
        let output = output(&[&format!("--seconds={seconds}")]);
        assert_eq!(output.status.code(), Some(2), "{seconds}");
        assert!(text(&output.stderr).contains("--seconds"), "{seconds}");
    }
}

#[test]
fn without_the_privilege_a_new_namespace_is_made_in_a_user_namespace() {
    let output = output_in_user_namespace(
        "exec setpriv --bounding-set -sys_admin --inh-caps -all \"$0\" bench --seconds 0.01 --json",
    );
    assert_eq!(assert_complete(&output)["user_namespace"], true);
}

#[test]
fn without_the_privilege_and_without_user_namespaces_the_cure_is_named() {
    // The limit of a user namespace of the test's own; the system's stays.
    let output = output_in_user_namespace(
        "echo 0 > /proc/sys/user/max_user_namespaces
        exec setpriv --bounding-set -sys_admin --inh-caps -all \"$0\" bench",
    );
    assert_fails(
        &output,
        2,
        &["user namespace", "root", "max_user_namespaces"],
    );
}

#[test]
fn namespace_that_may_not_be_entered_is_refused_with_the_cure() {
    let blue = TempNetns::new();
    let path = format!("/run/netns/{}", blue.name());
    let foreign = output_in_user_namespace(&format!("exec \"$0\" bench {path}"));
    assert_fails(
        &foreign,
        2,
        &[&path, "operation not permitted", "enter that one"],
    );

    let own = "exec setpriv --bounding-set -sys_admin --inh-caps -all \
               \"$0\" bench /proc/self/ns/net --seconds 0.01";
    assert_fails(
        &output_in_user_namespace(own),
        2,
        &["in place", "operation not permitted", "run this as root"],
    );
}

#[test]
fn no_way_back_is_told_with_a_cure_that_works() {
    // By SIGPIPE, of which shells say nothing.
    let bench = |command: &str| {
        output_in_user_namespace(&format!(
            "unshare --net sh -c 'echo $$; exec sleep 60' | {{
                read -r pid
                {command} bench pid:$pid --seconds 0.01 --json
                status=$?
                kill -PIPE $pid
                exit $status
            }}"
        ))
    };
    assert_fails(
        &bench("\"$0\""),
        2,
        &["cannot come back", "unshare --net netns-exec bench"],
    );
    assert_complete(&bench("unshare --net \"$0\""));
}
