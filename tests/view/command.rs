//! Children with a view: `CommandExt::view`.

use std::process::Command;

use netns_exec::{CommandExt, run};
use netns_exec_tests::{TempNetns, netns_link_of};

use super::{Files, facts, read};

facts! {
    child_sees_its_namespace,
    command_is_as_before_when_it_is_started_without,
    prepared_command_has_the_view_however_it_is_started,
    sealed_job_starts_children_with_a_view_of_any_namespace,
    missing_program_is_told_from_a_view_that_was_refused,
}

const SCRIPT: &str = "readlink /proc/self/ns/net; cat /etc/hosts; ls /sys/class/net; \
                      test -d /sys/fs/cgroup && grep -c : /proc/net/dev";

fn sh() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT]);
    command
}

fn viewed(netns: &TempNetns) -> String {
    format!("{}\nblue's\nlo\n1\n", netns_link_of(netns))
}

fn prepare() -> (Files, TempNetns) {
    let (files, blue) = (Files::new(), TempNetns::new());
    files.write(blue.name(), "hosts", "blue's\n");
    (files, blue)
}

fn child_sees_its_namespace() {
    let (files, blue) = prepare();
    let mounts = || read("/proc/thread-self/mountinfo").lines().count();
    let before = mounts();
    let output = sh().view(files.view()).output_in(&blue).expect("output");
    assert_eq!(String::from_utf8_lossy(&output.stdout), viewed(&blue));
    let child = (sh().stdout(std::process::Stdio::piped()))
        .view(files.view())
        .spawn_in(&blue);
    let output = child.expect("child").wait_with_output().expect("output");
    assert_eq!(String::from_utf8_lossy(&output.stdout), viewed(&blue));
    let status = Command::new("true").view(files.view()).status_in(&blue);
    assert!(status.expect("status").success());
    // Names of other tests come and go, in pairs at most.
    assert!(mounts().abs_diff(before) < 50);
}

fn command_is_as_before_when_it_is_started_without() {
    let (files, blue) = prepare();
    let mut command = Command::new("cat");
    command.arg("/etc/hosts");
    for _ in 0..2 {
        let output = command.view(files.view()).output_in(&blue);
        assert_eq!(output.expect("output").stdout, b"blue's\n");
        let output = command.output_in(&blue).expect("output");
        assert_eq!(output.stdout, read("/etc/hosts").as_bytes());
        let output = command.output().expect("output");
        assert_eq!(output.stdout, read("/etc/hosts").as_bytes());
    }
}

fn prepared_command_has_the_view_however_it_is_started() {
    let (files, blue) = prepare();
    let mut command = sh();
    let prepared = command.view(files.view());
    let output = { prepared }.in_netns(&blue).expect("a view").output();
    assert_eq!(
        String::from_utf8_lossy(&output.expect("output").stdout),
        viewed(&blue)
    );
    let output = command.output().expect("output");
    assert_eq!(String::from_utf8_lossy(&output.stdout), viewed(&blue));
}

fn sealed_job_starts_children_with_a_view_of_any_namespace() {
    let (files, blue) = prepare();
    let red = TempNetns::new();
    for place in [&red, &blue] {
        let output = run(place, || sh().view(files.view()).output_in(&blue));
        let output = output.expect("the job ran").expect("output");
        assert_eq!(String::from_utf8_lossy(&output.stdout), viewed(&blue));
    }
    // And from one that has a view itself.
    let output = (files.executor()).run(&blue, || sh().view(files.view()).output_in(&blue));
    let output = output.expect("the job ran").expect("output");
    assert_eq!(String::from_utf8_lossy(&output.stdout), viewed(&blue));
}

fn missing_program_is_told_from_a_view_that_was_refused() {
    let (files, blue) = prepare();
    let mut command = Command::new("/no/such/program");
    let error = command.view(files.view()).spawn_in(&blue);
    let error = error.expect_err("no such program");
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().contains("cannot execute"), "{error}");
}
