//! Children in a namespace: `CommandExt`.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::thread;

use netns_exec::{CommandExt, Executor, Netns, run};
use netns_exec_tests::{
    Alone, alone, fresh, handed_over, netns_link_of, netns_link_of_this_thread, to_hand_over,
};

netns_exec::rootless::test_harness!(own_net);

const EPERM: i32 = 1;
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

fn where_am_i() -> Command {
    let mut command = Command::new("readlink");
    command.arg("/proc/self/ns/net");
    command
}

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn signal(child: &Child, name: &str) {
    let status = sh(&format!("kill -{name} {}", child.id())).status();
    assert!(status.expect("a shell").success());
}

/// Waits until the child has written the line "up".
fn wait_until_up(child: &mut Child) {
    let mut line = String::new();
    let stdout = child.stdout.as_mut().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    assert_eq!(line, "up\n");
}

#[test]
fn child_is_in_the_namespace_and_the_caller_stays() {
    let (ns, before) = (fresh(), netns_link_of_this_thread());
    let output = where_am_i().output_in(&ns).expect("output");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        netns_link_of(&ns)
    );
    assert!(output.status.success());

    let mut child = where_am_i()
        .stdout(Stdio::piped())
        .spawn_in(&ns)
        .expect("child");
    let mut text = String::new();
    child
        .stdout
        .take()
        .expect("piped")
        .read_to_string(&mut text)
        .expect("text");
    assert_eq!(text.trim(), netns_link_of(&ns));
    assert!(child.wait().expect("status").success());

    let check = format!(
        "test \"$(readlink /proc/self/ns/net)\" = '{}'",
        netns_link_of(&ns)
    );
    assert!(sh(&check).status_in(&ns).expect("status").success());

    assert_ne!(before, netns_link_of(&ns));
    for task in fs::read_dir("/proc/self/task").expect("own tasks") {
        let link = task.expect("a task").path().join("ns/net");
        // A thread of another test may have ended meanwhile.
        if let Ok(target) = fs::read_link(link) {
            assert_ne!(target.to_string_lossy(), netns_link_of(&ns));
        }
    }
    assert_eq!(netns_link_of_this_thread(), before);
}

#[test]
fn one_command_goes_to_different_namespaces_in_turn() {
    let (red, blue) = (fresh(), fresh());
    let mut command = where_am_i();
    for ns in [&red, &blue, &red] {
        let output = command.output_in(ns).expect("output");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            netns_link_of(ns)
        );
    }
    command.stdout(Stdio::piped());
    for ns in [&blue, &red] {
        let child = command.spawn_in(ns).expect("child");
        let output = child.wait_with_output().expect("output");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            netns_link_of(ns)
        );
    }
    // Started the ordinary way, it is an ordinary command again.
    let output = command.output().expect("output");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        netns_link_of_this_thread()
    );
}

#[test]
fn job_starts_children_in_its_own_and_in_other_namespaces() {
    let (red, blue) = (fresh(), fresh());
    let texts = run(&red, || {
        [&red, &blue].map(|ns| {
            let output = where_am_i().output_in(ns).expect("output");
            let child = where_am_i()
                .stdout(Stdio::piped())
                .spawn_in(ns)
                .expect("child");
            let spawned = child.wait_with_output().expect("output");
            assert_eq!(output.stdout, spawned.stdout);
            String::from_utf8(output.stdout).expect("plain text")
        })
    });
    let texts = texts.expect("the job ran");
    assert_eq!(texts[0].trim(), netns_link_of(&red));
    assert_eq!(texts[1].trim(), netns_link_of(&blue));
}

#[test]
fn child_of_a_job_has_no_signal_blocked_and_dies_on_sigterm() {
    let ns = fresh();
    let (masks, mut child) = run(&ns, || {
        let masks = sh("grep -h SigBlk /proc/self/status")
            .output_in(&ns)
            .expect("output");
        let child = sh("echo up; exec sleep 60")
            .stdout(Stdio::piped())
            .spawn_in(&ns);
        (masks.stdout, child.expect("child"))
    })
    .expect("the job ran");
    let masks = String::from_utf8(masks).expect("plain text");
    assert_eq!(masks.trim(), "SigBlk:\t0000000000000000");

    wait_until_up(&mut child);
    signal(&child, "TERM");
    assert_eq!(child.wait().expect("status").signal(), Some(SIGTERM));
}

#[test]
fn child_of_a_job_may_start_threads_and_gain_privileges() {
    let ns = fresh();
    let status = run(&ns, || {
        sh("grep -q '^Seccomp:[[:space:]]0$' /proc/self/status && unshare --net true")
            .status_in(&ns)
    });
    assert!(status.expect("the job ran").expect("status").success());
}

#[test]
fn child_with_a_parent_death_signal_outlives_the_worker() {
    const SCRIPT: &str = "echo up; exec sleep 60";
    let start = |command: &mut Command| {
        command
            .args(["--pdeathsig", "KILL", "sh", "-c", SCRIPT])
            .stdout(Stdio::piped());
    };

    let ns = fresh();
    let executor = Executor::new().expect("an executor");
    let mut child = executor
        .run(&ns, || {
            let mut command = Command::new("setpriv");
            start(&mut command);
            let mut child = command.spawn_in(&ns).expect("child");
            wait_until_up(&mut child);
            child
        })
        .expect("the job ran");
    executor.shutdown(None).expect("the worker ended");

    // The same child of a thread that ends is killed: this is what it is spared.
    let mut orphan = thread::spawn(move || {
        let mut command = Command::new("setpriv");
        start(&mut command);
        let mut child = command.spawn().expect("child");
        wait_until_up(&mut child);
        child
    })
    .join()
    .expect("no panic");
    assert_eq!(orphan.wait().expect("status").signal(), Some(SIGKILL));

    assert!(
        child.try_wait().expect("status").is_none(),
        "died with the worker"
    );
    signal(&child, "TERM");
    assert_eq!(child.wait().expect("status").signal(), Some(SIGTERM));
}

#[test]
fn missing_program_is_not_found_and_the_command_lives_on() {
    let (red, blue) = (fresh(), fresh());
    let dir = env::temp_dir().join(format!("netns-exec-process-{}", std::process::id()));
    fs::create_dir(&dir).expect("a folder of our own");
    let program = dir.join("program");
    let mut command = Command::new(&program);

    let error = command.spawn_in(&red).expect_err("no such program");
    assert!(error.is_not_found(), "{error}");
    assert!(!error.is_permission_denied(), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("cannot execute") && text.contains("/program`"),
        "{text}"
    );
    assert!(text.contains(red.label()), "{text}");
    assert!(
        command
            .output_in(&red)
            .expect_err("nor here")
            .is_not_found()
    );
    assert!(
        command
            .status_in(&red)
            .expect_err("nor here")
            .is_not_found()
    );

    std::os::unix::fs::symlink("/bin/sh", &program).expect("a program");
    command.args(["-c", "readlink /proc/self/ns/net; exit 7"]);
    let output = command.output_in(&blue).expect("output");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        netns_link_of(&blue)
    );
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(command.get_program(), program.as_os_str());

    fs::remove_dir_all(&dir).expect("own folder");
}

#[test]
fn file_that_is_not_executable_is_permission_denied_and_not_a_failure_to_enter() {
    let error = Command::new("/etc/passwd")
        .spawn_in(&fresh())
        .expect_err("not a program");
    assert!(error.is_permission_denied(), "{error}");
    assert!(error.to_string().contains("cannot execute"), "{error}");
}

#[test]
fn ordinary_user_gets_no_further_than_home() {
    alone!(Alone::OrdinaryUser, "", to_hand_over(&fresh()));
    let ns = handed_over();
    let mut command = Command::new("true");
    for error in [
        command.spawn_in(&ns).map(drop),
        command.output_in(&ns).map(drop),
        command.status_in(&ns).map(drop),
    ] {
        let error = error.expect_err("setns(2) needs CAP_SYS_ADMIN");
        assert!(error.is_permission_denied(), "{error}");
        assert_eq!(error.raw_os_error(), Some(EPERM));
        let text = error.to_string();
        assert!(
            text.contains("cannot enter netns") && text.contains("CAP_SYS_ADMIN"),
            "{text}"
        );
    }
    // The command is intact, and no privilege is needed to stay where one is.
    let home = Netns::home().expect("home");
    assert!(command.status_in(&home).expect("status").success());
    let prepared = Command::new("true").in_netns(&home).status();
    assert!(prepared.expect("status").success());
    let prepared = Command::new("true").in_netns(&ns).status();
    assert_eq!(prepared.expect_err("as above").raw_os_error(), Some(EPERM));
}

#[test]
fn command_that_changes_its_user_says_where_to_start_it() {
    let ns = fresh();
    let mut command = where_am_i();
    command.uid(65534).gid(65534);
    let error = command
        .output_in(&ns)
        .expect_err("the child has another user by then");
    assert!(
        error.is_permission_denied() && error.to_string().contains("inside a job"),
        "{error}"
    );

    let output = run(&ns, || command.output())
        .expect("the job ran")
        .expect("output");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        netns_link_of(&ns)
    );
}

#[test]
fn output_larger_than_a_pipe_is_captured_while_home_serves_others() {
    let (ns, other) = (fresh(), fresh());
    const SIZE: usize = 3 << 20;
    let script = format!("head -c {SIZE} /dev/zero; head -c {SIZE} /dev/zero >&2; cat");
    // The child waits for the end of a pipe that is closed only after the home
    // thread has started another child.
    let (gate, key) = std::io::pipe().expect("a pipe");
    let mut command = sh(&script);
    command.stdin(gate);
    let output = thread::scope(|scope| {
        let output = scope.spawn(|| command.output_in(&ns));
        let status = Command::new("true").status_in(&other).expect("status");
        assert!(status.success());
        drop(key);
        output.join().expect("no panic").expect("output")
    });
    assert_eq!((output.stdout.len(), output.stderr.len()), (SIZE, SIZE));
    assert!(output.status.success());
}

#[test]
fn stdio_is_as_with_the_standard_library() {
    let ns = fresh();
    // `output` gives no input: `cat` would wait for ever on an inherited one.
    let output = Command::new("cat").output_in(&ns).expect("output");
    assert!(output.stdout.is_empty() && output.status.success());
    // What the command says about itself goes before the defaults.
    let output = sh("echo gone; echo kept >&2")
        .stdout(Stdio::null())
        .output_in(&ns);
    let output = output.expect("output");
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b""[..], &b"kept\n"[..])
    );
    assert_eq!(sh("exit 5").status_in(&ns).expect("status").code(), Some(5));
}

#[test]
fn prepared_command_enters_however_it_is_started() {
    let (red, blue) = (fresh(), fresh());
    let mut command = where_am_i();
    let text = |command: &mut Command| {
        let output = command.output().expect("output");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(text(command.in_netns(&red)), netns_link_of(&red));
    assert_eq!(text(&mut command), netns_link_of(&red));
    let output = command.output_in(&blue).expect("output");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        netns_link_of(&blue)
    );
    assert_eq!(text(command.in_netns(&blue)), netns_link_of(&blue));
    assert_eq!(netns_link_of_this_thread(), text(&mut where_am_i()));
}

#[test]
fn used_command_keeps_no_namespace_alive() {
    let ns = fresh();
    // Alive to the end, as a dead one's inode number would be given to another.
    let mut resident = Command::new("sleep")
        .arg("60")
        .spawn_in(&ns)
        .expect("child");
    let mut command = Command::new("true");
    assert!(command.status_in(&ns).expect("status").success());
    let mut pinning = Command::new("true");
    pinning.in_netns(&ns);

    let open = |text: &str| {
        let fds = fs::read_dir("/proc/self/fd").expect("own fds");
        fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy() == text)
            .count()
    };
    let text = netns_link_of(&ns);
    drop(ns);
    assert_eq!(open(&text), 1, "a prepared command holds its namespace");
    drop(pinning);
    assert_eq!(open(&text), 0, "a started one does not");
    assert!(command.status().expect("status").success());
    resident.kill().expect("still there");
    resident.wait().expect("status");
}
