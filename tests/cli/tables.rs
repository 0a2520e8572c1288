//! What `netns-exec ls` and `audit` show, and what they say they do not.

use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use netns_exec::Netns;
use netns_exec_tests::{TempNetns, refuse_fstatfs, require_root, within};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use super::{PROGRAM, Who, in_own_run, output, text};

fn run(mut command: Command) -> Output {
    command.stdin(Stdio::null());
    within("the program", move || {
        command.output().expect("the program was built")
    })
}

/// A thread of this process that is left in `netns` until the sender is dropped.
fn stray(netns: &Netns) -> Sender<()> {
    let (stay, told) = channel();
    let (arrived, arrival) = channel();
    let netns = netns.clone();
    thread::spawn(move || {
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).expect("root may enter");
        arrived.send(()).expect("the test waits");
        let _: Result<(), _> = told.recv();
    });
    arrival.recv().expect("the thread has entered");
    stay
}

#[test]
fn table_fits_80_columns_unless_it_is_to_be_wide() {
    let make = "for name in blue red a-namespace-with-a-name-of-some-length; do \
                ip netns add $name; done;";
    let shown = in_own_run(Who::Root, &format!("{make} \"$0\" ls"));
    let table = text(&shown.stdout);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    for line in table.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    for name in ["blue", "red", "a-namespace-with-a-name-of-some-length"] {
        assert!(table.contains(name), "{table}");
    }
    let narrow = in_own_run(Who::Root, &format!("{make} COLUMNS=62 \"$0\" ls"));
    let narrow = text(&narrow.stdout);
    assert!(
        narrow.lines().all(|line| line.chars().count() <= 62),
        "{narrow}"
    );
    assert!(
        narrow.contains("THREADS") && !narrow.contains("INODE"),
        "{narrow}"
    );

    let wide = in_own_run(Who::Root, &format!("{make} COLUMNS=20 \"$0\" ls --wide"));
    let wide = text(&wide.stdout);
    for heading in [
        "ID",
        "INODE",
        "NAMES",
        "PROCESSES",
        "THREADS",
        "FDS",
        "SOCKETS",
        "MOUNTS",
    ] {
        assert!(wide.contains(heading), "{wide}");
    }
}

#[test]
fn without_a_header_every_line_is_a_namespace() {
    let shown = in_own_run(Who::Root, "ip netns add blue && \"$0\" ls --no-header");
    let lines: Vec<&str> = text(&shown.stdout).lines().collect();
    assert!(
        lines.iter().any(|line| line.contains(" blue ")),
        "{lines:?}"
    );
    for line in lines {
        let first = line.split_whitespace().next().expect("an id");
        // One of another mount namespace may not be opened.
        assert!(first == "?" || first.parse::<u64>().is_ok(), "{line}");
    }
}

#[test]
fn audit_of_the_host_shows_processes_with_a_stray_and_no_others() {
    let netns = TempNetns::new();
    let stay = stray(&netns);
    let own = std::process::id();
    let shown = output(&["audit"]);
    assert_eq!(shown.status.code(), Some(1), "{}", text(&shown.stderr));
    let said = text(&shown.stdout);
    let row = said.lines().find(|line| line.contains(netns.name()));
    assert!(row.is_some_and(|row| row.contains("stray")), "{said}");

    let shown = output(&["audit", "--json"]);
    let report: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    let processes = report["processes"].as_array().expect("an array");
    assert!(processes.iter().any(|process| process["pid"] == own));
    assert!(report["audited"].as_u64() > Some(processes.len() as u64));
    for process in processes {
        let mut threads = process["threads"].as_array().expect("an array").iter();
        assert!(
            threads.any(|thread| thread["verdict"] == "stray"),
            "{process}"
        );
    }
    drop(stay);
}

#[test]
fn what_a_filter_refuses_is_said_and_not_left_out() {
    require_root();
    for args in [
        &["ls"][..],
        &["ls", "--no-header"],
        &["ls", "--wide", "--holders"],
    ] {
        let mut command = Command::new(PROGRAM);
        command.args(args);
        refuse_fstatfs(&mut command);
        let shown = run(command);
        let said = text(&shown.stderr);
        assert!(
            said.contains("not even this process can be read") && said.contains("not permitted"),
            "{said}"
        );
    }
}

#[test]
fn capability_that_is_missing_is_named_with_the_processes() {
    require_root();
    for args in [&["ls"][..], &["audit"]] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command.args(["--bounding-set", "-all", "--inh-caps", "-all"]);
        // Where an ordinary user may execute it.
        command
            .args(["sh", "-c", "exec /proc/self/fd/0 \"$@\"", "sh"])
            .args(args);
        let program = std::fs::File::open(PROGRAM).expect("the program was built");
        command.stdin(program).current_dir("/");
        let shown = within("the program", move || command.output().expect("setpriv"));
        let said = text(&shown.stderr);
        assert!(said.contains("CAP_SYS_PTRACE: run as root"), "{said}");
        assert!(said.contains("of 1 ("), "{said}");
        assert!(!said.contains(": 1 processes"), "{said}");
    }
}
