//! `netns-exec ls`: what of it is shown, and how.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use netns_exec_tests::{TempNetns, ip, unique_name, within};
use serde_json::Value;

use super::{Who, command, in_own_run, json, output, text};

/// Makes `blue` with two devices and an address, and `red`.
const MAKE: &str = "ip netns add red && ip netns add blue && \
     ip -n blue link add left type veth peer right && ip -n blue addr add 10.1.2.3/24 dev left && \
     ip -n blue link set left up && ip -n red link set lo up && ";

#[test]
fn links_and_addresses_are_shown_where_they_are_asked_for() {
    for who in [Who::Root, Who::OrdinaryUser] {
        let script = format!(
            "{MAKE} \"$0\" ls --no-header --wide --links --addresses --filter name=blue; \
             \"$0\" ls --no-header --wide --filter name=blue; \
             \"$0\" ls --json --addresses --filter name=red"
        );
        let shown = in_own_run(who, &script);
        let said = text(&shown.stdout);
        let mut lines = said.lines();
        let first = lines.next().expect("a row");
        for part in ["right(down)", "left", "lo(down)", "10.1.2.3/24"] {
            assert!(first.contains(part), "{who:?}: no {part} in {first}");
        }
        let second = lines.next().expect("a row");
        assert!(
            !second.contains("left") && !second.contains("10.1"),
            "{second}"
        );
        let rest: Vec<_> = lines.collect();
        let report: Value = serde_json::from_str(&rest.join("\n")).expect("JSON");
        let links = &report["namespaces"][0]["links"];
        assert_eq!(links[0]["name"], "lo");
        assert_eq!(links[0]["up"], true);
        assert_eq!(links[0]["addresses"][0], "127.0.0.1/8");
    }
}

#[test]
fn table_with_links_fits_the_terminal() {
    // The one alone: others have names and addresses as wide as they like.
    let script = format!("{MAKE} COLUMNS=60 \"$0\" ls --links --addresses --filter name=blue");
    let shown = in_own_run(Who::Root, &script);
    let said = text(&shown.stdout);
    assert!(
        said.contains("LINKS") && said.contains("10.1.2.3/24"),
        "{said}"
    );
    for line in said.lines() {
        assert!(line.chars().count() <= 60, "{line}");
    }
}

/// Its devices are not the caller's to see, so nothing is made up.
#[test]
fn namespace_that_may_not_be_entered_has_a_question_mark() {
    let blue = TempNetns::new();
    let program = netns_exec_tests::Binary::reachable_by_all(super::PROGRAM.as_ref());
    let mut user = netns_exec_tests::as_ordinary_user();
    let filter = format!("name={}", blue.name());
    let shown = (user.arg(&program.path).current_dir("/"))
        .args(["ls", "--json", "--links", "--filter", &filter])
        .output()
        .expect("setpriv of util-linux");
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let report = json(&shown);
    assert_eq!(report["namespaces"][0]["links"], Value::Null);
    let shown = output(&["ls", "--json", "--filter", &filter]);
    assert_eq!(json(&shown)["namespaces"][0].get("links"), None);
}

/// The names that `ls` shows with these arguments, of `web-2`, `web-1` and `db`, which
/// have three processes, one and none.
fn names(args: &str) -> Vec<String> {
    // Those of other tests are seen in the mounts of their processes.
    let prefix = format!("{}-", unique_name());
    let make = "for name in web-2 web-1 db; do ip netns add $p$name; done; \
         ip -n ${p}db link set lo up; ip netns exec ${p}web-1 sleep 60 & \
         ip netns exec ${p}web-2 sh -c 'sleep 60 & sleep 60 & echo; wait' > /run/up & \
         count() { ip netns pids $p$1 | wc -l; }; \
         until [ $(count web-2) = 3 ] && [ $(count web-1) = 1 ]; do sleep 0.01; done; ";
    let script = format!(
        "p={prefix}; {make} \"$0\" ls --json --filter \"name=$p*\" {args}; \
         kill $(ip netns pids ${{p}}web-1) $(ip netns pids ${{p}}web-2)"
    );
    let shown = in_own_run(Who::Root, &script);
    let report = json(&shown);
    let rows = report["namespaces"].as_array().expect("an array").iter();
    rows.map(|row| row["names"][0].as_str().expect("a name"))
        .map(|name| name.strip_prefix(&prefix).expect("ours").to_owned())
        .collect()
}

#[test]
fn filters_hold_all_at_once() {
    assert_eq!(names("--sort name"), ["db", "web-1", "web-2"]);
    assert_eq!(
        names("--sort name --filter 'name=*web-*'"),
        ["web-1", "web-2"]
    );
    assert_eq!(
        names("--filter 'name=*web-*' --filter 'name=*1'"),
        ["web-1"]
    );
    assert_eq!(
        names("--filter process=sleep --sort name"),
        ["web-1", "web-2"]
    );
    assert_eq!(names("--filter process=sh"), ["web-2"]);
    assert_eq!(names("--filter 'address=127.*'"), ["db"]);
    assert_eq!(names("--filter process="), ["db"]);
    assert!(names("--filter name=nothing-like-it").is_empty());
}

#[test]
fn rows_are_sorted_by_any_column() {
    let ids = |args: &[&str]| {
        let report = json(&output(&[&["ls", "--json"], args].concat()));
        let rows = report["namespaces"].as_array().expect("an array").clone();
        // Those that could not be opened have none, and come last.
        let ids = rows.iter().filter_map(|row| row["id"].as_u64());
        ids.collect::<Vec<_>>()
    };
    let (_blue, _red) = (TempNetns::new(), TempNetns::new());
    for args in [&[][..], &["--sort", "id"]] {
        assert!(ids(args).is_sorted(), "{args:?}");
    }
    assert!(ids(&["--reverse"]).iter().rev().is_sorted());
    assert_eq!(names("--sort processes"), ["web-2", "web-1", "db"]);
    assert_eq!(
        names("--sort processes --reverse"),
        ["db", "web-1", "web-2"]
    );
    assert_eq!(names("--sort name --reverse"), ["web-2", "web-1", "db"]);
}

#[test]
fn filter_or_key_that_is_none_is_refused() {
    for args in [
        &["ls", "--filter", "name"][..],
        &["ls", "--filter", "colour=blue"],
        &["ls", "--sort", "colour"],
        &["ls", "--watch=0"],
        &["ls", "--watch=x"],
    ] {
        let shown = output(args);
        assert_eq!(shown.status.code(), Some(2), "{args:?}");
        assert!(text(&shown.stderr).contains("error: "), "{args:?}");
    }
}

#[test]
fn watch_shows_what_has_changed_and_ends_with_its_reader() {
    let blue = TempNetns::new();
    let filter = format!("name={}", blue.name());
    let mut child = command(&[
        "ls",
        "--json",
        "--links",
        "--watch=0.05",
        "--filter",
        &filter,
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::null())
    .spawn()
    .expect("the program was built");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    within("a change", move || {
        let mut links = || {
            let line = lines.next().expect("one more").expect("a line");
            let report: Value = serde_json::from_str(&line).expect("JSON, one object a line");
            report["namespaces"][0]["links"]
                .as_array()
                .expect("links")
                .len()
        };
        assert_eq!(links(), 1);
        ip(&[
            "-n",
            blue.name(),
            "link",
            "add",
            "one",
            "type",
            "veth",
            "peer",
            "other",
        ]);
        while links() != 3 {}
        drop(lines);
        let status = child.wait().expect("it is ours");
        assert_eq!(status.code(), Some(0));
    });
}
