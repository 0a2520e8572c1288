//! `rootless::enter`, in a program of its own.

use std::path::Path;

use netns_exec_tests::{Binary, as_ordinary_user, refuse_mount, refuse_own_mounts};

use super::{run, run_after, succeeded};

#[test]
fn ordinary_user_makes_and_enters_namespaces() {
    succeeded(&run("enter"));
}

#[test]
fn second_call_finds_the_privilege() {
    succeeded(&run("again"));
}

#[test]
fn root_stays_as_it_is() {
    // In the user namespace that this process is root of, of its own or not.
    netns_exec_tests::require_root();
    let before = std::fs::read_link("/proc/self/ns/user").expect("/proc is there");
    let entered = netns_exec::rootless::enter().expect("nothing to do");
    assert!(!entered.is_new());
    let after = std::fs::read_link("/proc/self/ns/user").expect("/proc is there");
    assert_eq!(before, after);
}

#[test]
fn process_with_threads_executes_itself_once_more() {
    let out = succeeded(&run("threads"));
    let mains: Vec<&str> = (out.lines())
        .filter(|line| line.starts_with("main of"))
        .collect();
    // The same process, with the same arguments, and then no more.
    assert_eq!(mains.len(), 2, "{out}");
    assert_eq!(mains[0], mains[1]);
}

#[test]
fn broker_of_the_host_side_is_there_when_asked_for() {
    succeeded(&run("broker"));
}

#[test]
fn broker_survives_the_second_execution() {
    succeeded(&run("broker-threads"));
}

#[test]
fn detached_layout_enters_one_way_and_is_served_at_home() {
    succeeded(&run("detached"));
}

#[test]
fn sysctl_that_allows_none_is_named_and_nothing_has_changed() {
    // The limit of a user namespace around the program; the system's stays.
    for limit in ["user", "mnt"] {
        let script = format!(
            "exec unshare --user --map-root-user sh -c '
                echo 0 > /proc/sys/user/max_{limit}_namespaces
                exec setpriv --bounding-set -all --inh-caps -all \"$0\" \"$@\"' \"$0\" \"$@\""
        );
        let out = succeeded(&run_after(&script, "error"));
        let limit = format!("user.max_{limit}_namespaces is 0");
        assert!(out.contains(&limit) && out.contains("sysctl -w"), "{out}");
    }
}

#[test]
fn id_that_the_outer_namespace_does_not_map_is_said_to_be() {
    // A user namespace without any map: the ids of this process are of no use in it.
    let script = "exec unshare --user \"$0\" \"$@\"";
    let output = run_after(script, "enter");
    // With every capability in the namespace it need not enter another one, and then has
    // no ids to be root by.
    assert!(!output.status.success());
    let script = "exec unshare --user setpriv --bounding-set -all --inh-caps -all \"$0\" \"$@\"";
    let out = succeeded(&run_after(script, "error"));
    assert!(out.contains("subuid"), "{out}");
}

/// By a filter that refuses the namespace, and by one that lets it be made first: then,
/// too, the process is where it was.
#[test]
fn seccomp_filter_is_named_and_nothing_has_changed() {
    let program = Path::new(env!("CARGO_BIN_EXE_rootless_program"));
    for refuse in [refuse_own_mounts, refuse_mount] {
        let binary = Binary::reachable_by_all(program);
        let mut command = as_ordinary_user();
        command.arg(&binary.path).arg("error").current_dir("/");
        refuse(&mut command);
        let out = succeeded(&command.output().expect("setpriv of util-linux"));
        assert!(out.contains("seccomp=unconfined"), "{out}");
        assert!(out.contains("operation not permitted"), "{out}");
    }
}
