//! `netns-exec create`, `delete`, `identify` and `pids`: what `ip netns` calls add, delete,
//! identify and pids.

use std::os::fd::AsFd;
use std::process::Command;

use netns_exec::{Executor, Netns};
use netns_exec_tests::{
    Sleeper, TempName, TempNetns, as_ordinary_user, ip, names_by_ip, unique_name,
};
use nix::sched::{CloneFlags, setns};

use super::{Who, assert_fails, in_own_run, json, output, text};

#[test]
fn created_names_are_those_of_ip_netns() {
    let (blue, red) = (TempName::new(), TempName::new());
    let made = output(&["create", "--up", &blue, &red]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_eq!((text(&made.stdout), text(&made.stderr)), ("", ""));
    let names = names_by_ip();
    assert!(names.contains(&blue.0) && names.contains(&red.0));
    assert!(ip(&["-n", &blue, "-o", "link", "show", "lo"]).contains("UP"));

    let again = output(&["add", &blue]);
    assert_fails(&again, 2, &["cannot create netns", "delete it first"]);
    assert!(output(&["delete", &blue, &red]).status.success());
    let names = names_by_ip();
    assert!(!names.contains(&blue.0) && !names.contains(&red.0));
}

#[test]
fn loopback_is_down_unless_it_is_to_be_up() {
    let blue = TempName::new();
    assert!(output(&["create", &blue]).status.success());
    assert!(!ip(&["-n", &blue, "-o", "link", "show", "lo"]).contains("UP"));
}

#[test]
fn names_that_cannot_be_are_refused_and_those_before_stay() {
    for name in ["", "a/b", ".."] {
        assert_fails(&output(&["create", name]), 2, &["cannot create netns"]);
        assert_fails(&output(&["delete", name]), 2, &["cannot delete netns"]);
    }
    let blue = TempName::new();
    assert_fails(&output(&["create", &blue, "a/b"]), 2, &["has no slash"]);
    assert!(names_by_ip().contains(&blue.0));
    // What can be deleted is, and the other is told.
    let missing = unique_name();
    let parts = ["cannot delete netns", missing.as_str(), "ip netns list"];
    assert_fails(&output(&["del", &missing, &blue]), 2, &parts);
    assert!(!names_by_ip().contains(&blue.0));
    for args in [&["create"][..], &["delete"], &["delete", "--all", "x"]] {
        assert_eq!(output(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn all_names_are_deleted_at_once() {
    for who in [Who::Root, Who::OrdinaryUser] {
        let script = "\"$0\" delete --all && \"$0\" create blue red && ls /run/netns && \
             \"$0\" delete --all && ls /run/netns && echo empty";
        let shown = in_own_run(who, script);
        assert_eq!(
            text(&shown.stdout),
            "blue\nred\nempty\n",
            "{}",
            text(&shown.stderr)
        );
    }
}

#[test]
fn ordinary_user_is_told_what_names_take() {
    let name = unique_name();
    let program = netns_exec_tests::Binary::reachable_by_all(super::PROGRAM.as_ref());
    let run = |args: &[&str]| {
        let mut command = as_ordinary_user();
        command.arg(&program.path).args(args).current_dir("/");
        command.output().expect("setpriv of util-linux")
    };
    assert_fails(&run(&["create", &name]), 2, &["cannot create netns"]);
    let blue = TempNetns::new();
    assert_fails(&run(&["delete", blue.name()]), 2, &["CAP_SYS_ADMIN"]);
    assert!(names_by_ip().contains(&blue.name().to_owned()));
}

#[test]
fn namespace_of_a_process_and_of_a_thread_is_identified() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let process = Sleeper::in_named(blue.name());
    let shown = output(&["identify", &process.pid().to_string()]);
    assert_eq!(text(&shown.stdout), format!("{}\n", blue.name()));
    let by_ip = ip(&["netns", "identify", &process.pid().to_string()]);
    assert_eq!(text(&shown.stdout), by_ip);

    // A thread that is elsewhere than its process.
    let executor = Executor::new().expect("an executor");
    let pinned = executor.pin(&red).expect("root may enter");
    let tid = pinned.run(netns_exec_tests::tid).expect("the job ran");
    let shown = output(&["identify", &tid.to_string()]);
    assert_eq!(text(&shown.stdout), format!("{}\n", red.name()));

    let report = json(&output(&["identify", "--json", &tid.to_string()]));
    assert_eq!(report["version"], 1);
    assert_eq!(report["pid"], tid);
    assert_eq!(report["netns_id"], u64::from(red.id()));
    assert_eq!(report["names"], serde_json::json!([red.name()]));
}

#[test]
fn every_name_of_a_namespace_is_told_and_of_none_nothing() {
    let shown = in_own_run(
        Who::Root,
        "ip netns add blue && ln -s blue /run/netns/also && echo decoy > /run/netns/file && \
         ip netns exec blue \"$0\" identify; ip netns delete blue; \"$0\" identify; echo $?",
    );
    assert_eq!(
        text(&shown.stdout),
        "also\nblue\n0\n",
        "{}",
        text(&shown.stderr)
    );
}

#[test]
fn number_that_no_process_has_is_refused() {
    let gone = "4194304"; // beyond the largest there can be
    assert_fails(
        &output(&["identify", gone]),
        2,
        &["no process or thread", gone],
    );
    for id in ["0", "x", "-1"] {
        assert_eq!(output(&["identify", id]).status.code(), Some(2), "{id}");
    }
}

#[test]
fn processes_of_a_namespace_are_listed_as_ip_lists_them() {
    let blue = TempNetns::new();
    let shown = output(&["pids", blue.name()]);
    assert_eq!(text(&shown.stdout), "");
    let processes = [
        Sleeper::in_named(blue.name()),
        Sleeper::in_named(blue.name()),
    ];
    let shown = output(&["pids", blue.name()]);
    let mut by_ip: Vec<u32> = (ip(&["netns", "pids", blue.name()]).lines())
        .map(|pid| pid.parse().expect("a number"))
        .collect();
    by_ip.sort_unstable();
    let ours: Vec<u32> = (text(&shown.stdout).lines())
        .map(|pid| pid.parse().expect("a number"))
        .collect();
    assert_eq!(ours, by_ip);
    assert!(
        processes
            .iter()
            .all(|process| ours.contains(&process.pid()))
    );
    // By any way to name it.
    let path = format!("/run/netns/{}", blue.name());
    let pid = format!("pid:{}", processes[0].pid());
    for target in [path, pid] {
        assert_eq!(output(&["pids", &target]).stdout, shown.stdout);
    }
}

#[test]
fn worker_is_a_thread_of_its_namespace_and_makes_its_process_none() {
    let blue = TempNetns::new();
    let executor = Executor::new().expect("an executor");
    let pinned = executor.pin(&blue).expect("root may enter");
    let tid = pinned.run(netns_exec_tests::tid).expect("the job ran");
    assert_eq!(text(&output(&["pids", blue.name()]).stdout), "");
    let shown = output(&["pids", "--threads", blue.name()]);
    assert_eq!(text(&shown.stdout), format!("{tid}\n"));
    let report = json(&output(&["pids", "--json", blue.name()]));
    assert_eq!(report["netns_id"], u64::from(blue.id()));
    let process = &report["processes"][0];
    assert_eq!(process["pid"], std::process::id());
    assert_eq!(process["is_home"], false);
    assert_eq!(process["tids"], serde_json::json!([tid]));
}

#[test]
fn namespace_that_is_not_there_has_no_processes() {
    let missing = unique_name();
    assert_fails(
        &output(&["pids", &missing]),
        2,
        &[&missing, "ip netns list"],
    );
    assert_eq!(output(&["pids"]).status.code(), Some(2));
}

/// The command's own process may be in any namespace.
#[test]
fn identify_without_a_number_is_about_the_command() {
    let blue = TempNetns::new();
    let target: &Netns = &blue;
    let mut command = Command::new(super::PROGRAM);
    let here = std::thread::scope(|scope| {
        let there = scope.spawn(move || {
            setns(target.as_fd(), CloneFlags::CLONE_NEWNET).expect("root may enter");
            command
                .arg("identify")
                .output()
                .expect("the program was built")
        });
        there.join().expect("no panic")
    });
    assert_eq!(text(&here.stdout), format!("{}\n", blue.name()));
}
