//! `netns-exec audit` and `netns-exec ls`, as a user meets them.
// As the tests of the library: see tests/clippy.toml.
#![allow(clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio, id};

use netns_exec::Netns;
use netns_exec_tests::{Alone, Parked, TempNetns, alone};
use serde_json::Value;

use super::{command, json, output, text};

/// `netns-exec audit PID --watch`; ends when dropped.
struct Watch {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(pid: &str) -> Watch {
        let mut process = command(&["audit", pid, "--watch", "--interval", "0.01", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let out = process.stdout.take().expect("piped above");
        Watch {
            process,
            lines: BufReader::new(out).lines(),
        }
    }

    /// What it says next: one document for each line.
    fn next(&mut self) -> Value {
        let line = self.lines.next().expect("it goes on").expect("text");
        serde_json::from_str(&line).expect("one JSON document")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Both halves in one test: a stray of this process is a stray for all.
#[test]
fn audit_finds_what_the_old_way_left_and_only_that() {
    let netns = TempNetns::new();
    let pid = id().to_string();

    let clean = output(&["audit", &pid]);
    assert_eq!(clean.status.code(), Some(0), "{}", text(&clean.stdout));
    assert!(text(&clean.stdout).contains("0 stray"));
    let empty = output(&["audit", netns.name(), "--json"]);
    assert_eq!(empty.status.code(), Some(0));
    assert_eq!(json(&empty)["processes"], Value::Array(Vec::new()));

    let mut watch = Watch::start(&pid);
    assert_eq!(watch.next()["strays"], 0);
    let stray = Parked::left_in(&netns, "\x1b[31mhelper");
    let changed = watch.next();
    assert_eq!(
        (&changed["version"], &changed["strays"]),
        (&1.into(), &1.into())
    );
    let path = format!("/run/netns/{}", netns.name());
    for subject in [&*pid, netns.name(), &path] {
        let found = output(&["audit", subject]);
        assert_eq!(
            found.status.code(),
            Some(1),
            "{subject}: {}",
            text(&found.stderr)
        );
        let said = text(&found.stdout);
        assert!(
            said.contains("1 stray") && said.contains(netns.name()),
            "{said}"
        );
        // The program that names a thread does not steer the terminal.
        assert!(
            !said.contains('\x1b') && said.contains("\\u{1b}[31mhelper"),
            "{said}"
        );

        let found = output(&["audit", subject, "--json"]);
        assert_eq!(found.status.code(), Some(1));
        let report = json(&found);
        assert_eq!(
            (&report["version"], &report["strays"]),
            (&1.into(), &1.into())
        );
        let process = &report["processes"][0];
        assert_eq!(process["pid"], id());
        let threads = process["threads"].as_array().expect("an array");
        let strays: Vec<_> = threads
            .iter()
            .filter(|row| row["verdict"] == "stray")
            .collect();
        assert_eq!(strays.len(), 1, "{report}");
        assert_eq!(strays[0]["netns_id"], u64::from(netns.id()));
        assert_eq!(strays[0]["label"], netns.name());
        let main = threads
            .iter()
            .find(|row| row["tid"] == id())
            .expect("the main thread");
        assert_eq!(
            (&main["verdict"], &main["netns_id"]),
            (&"home".into(), &process["home"])
        );
    }

    // Why is it still there?
    Netns::delete(netns.name()).expect("the name is there");
    let listed = output(&["ls", "--holders", "--json"]);
    assert_eq!(listed.status.code(), Some(0), "{}", text(&listed.stderr));
    let listed = json(&listed);
    let mut rows = listed["namespaces"].as_array().expect("an array").iter();
    let row = rows
        .find(|row| row["id"] == u64::from(netns.id()))
        .expect("it lives on");
    assert_eq!(
        (&row["threads"], &row["mounts"]),
        (&1.into(), &0.into()),
        "{row}"
    );
    assert_eq!(row["names"], Value::Array(Vec::new()));
    assert_eq!(
        (&row["processes"][0]["pid"], &row["processes"][0]["threads"]),
        (&id().into(), &1.into())
    );
    let mut holders = row["holders"].as_array().expect("asked for").iter();
    assert!(
        holders.any(|holder| holder["kind"] == "thread" && holder["pid"] == id()),
        "{row}"
    );
    drop(stray);
    // That the name went was a change, too.
    while watch.next()["strays"] != 0 {}
}

#[test]
fn ls_shows_names_and_holders_in_tables_too() {
    let netns = TempNetns::new();
    let listed = output(&["ls"]);
    assert_eq!(listed.status.code(), Some(0));
    assert!(text(&listed.stdout).contains(netns.name()));
    assert!(!text(&listed.stdout).contains("is held by"));
    let listed = output(&["ls", "--holders"]);
    let said = text(&listed.stdout);
    let mut lines = said
        .lines()
        .skip_while(|line| *line != format!("{} is held by", netns.name()));
    let holders: Vec<_> = lines
        .by_ref()
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .collect();
    let mount = format!("mount /run/netns/{}", netns.name());
    assert!(holders.iter().any(|line| line.contains(&mount)), "{said}");
    let ours = format!("process {} (", id());
    assert!(
        holders
            .iter()
            .any(|line| line.contains(&ours) && line.contains("fd ")),
        "{said}"
    );
}

#[test]
fn audit_of_nobody_is_a_failure_and_not_fine() {
    let mut child = Command::new("true").spawn().expect("it can be started");
    let pid = child.id().to_string();
    child.wait().expect("it is ours");
    for nobody in [
        &*pid,
        "no-such-netns",
        "99999999999999",
        "/run/no-such-netns",
    ] {
        let output = output(&["audit", nobody]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{nobody}: {said}");
        assert!(
            said.starts_with("netns-exec: ") && said.lines().count() == 1,
            "{said}"
        );
        assert!(said.contains(nobody), "{said}");
    }
}

#[test]
fn watch_ends_with_the_process() {
    let netns = TempNetns::new();
    // Sleeps until its input ends.
    let mut child = Command::new("ip")
        .args(["netns", "exec", netns.name(), "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("iproute2 is installed");
    let mut watch = Watch::start(&child.id().to_string());
    assert_eq!(watch.next()["processes"][0]["pid"], child.id());
    drop(child.stdin.take());
    child.wait().expect("it is ours");
    // Its end is no failure.
    let status = watch.process.wait().expect("it is ours");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn thread_that_a_job_left_is_told_from_its_worker() {
    alone!(Alone::AsIs);
    let netns = TempNetns::new();
    let executor = netns_exec::Executor::builder().guard(netns_exec::Guard::Off);
    let executor = executor.build().expect("it takes nothing");
    let (worker, left) = executor
        .run(&netns, || {
            let name = std::fs::read_to_string("/proc/thread-self/comm").expect("our own");
            let worker = nix::unistd::gettid().as_raw();
            (worker, Parked::here(name.trim_end()))
        })
        .expect("root may enter");

    let found = output(&["audit", netns.name()]);
    let said = text(&found.stdout);
    assert_eq!(found.status.code(), Some(1), "{said}");
    let words = format!(
        "thread {} is no worker, but seems to be a child of worker {worker}, whose name it has",
        left.tid()
    );
    assert!(said.contains(&words), "{said}");

    let found = output(&["audit", netns.name(), "--json"]);
    let report = json(&found);
    let mut processes = report["processes"].as_array().expect("an array").iter();
    let process = processes.find(|process| process["pid"] == id());
    let threads = process.expect("it has a worker there")["threads"].as_array();
    let origin_of = |tid: u64| {
        let mut threads = threads.expect("an array").iter();
        threads.find(|row| row["tid"] == tid).expect("it is there")["origin"].clone()
    };
    let origin = origin_of(left.tid().into());
    assert!(
        origin
            .as_str()
            .is_some_and(|origin| words.ends_with(origin)),
        "{report}"
    );
    assert_eq!(origin_of(u64::from(worker.unsigned_abs())), Value::Null);

    drop(left);
    let found = output(&["audit", netns.name()]);
    assert_eq!(found.status.code(), Some(0), "{}", text(&found.stdout));
}
