//! `netns-exec lease` as a process among others: what its command gets, what ends
//! it, and what it says meanwhile.
// As the tests of the library: see tests/clippy.toml.
#![allow(clippy::disallowed_methods)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use netns_exec::Executor;
use netns_exec::ports::Protocol;
use netns_exec_tests::ports::{V4, rival, taken};
use netns_exec_tests::{TempNetns, eventually};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use Protocol::{Tcp, Udp};

use super::{PROGRAM, assert_fails, command, text};

fn lease(args: &[&str]) -> Command {
    command(&[&["lease"], args].concat())
}

/// A namespace, and how to say "its 127.0.0.1".
fn host() -> (TempNetns, String) {
    let host = TempNetns::with_loopback();
    let on = format!("{},127.0.0.1", host.name());
    (host, on)
}

/// A script with the program as `$0` and the place as `$1`.
fn script(text: &str, on: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", text, PROGRAM, on]).stdin(Stdio::null());
    command
}

fn is_free(netns: &TempNetns, protocol: Protocol) -> bool {
    let executor = Executor::new().expect("an executor");
    taken(&executor, netns, protocol).is_empty()
}

#[test]
fn standard_output_is_the_commands_alone() {
    let (_host, on) = host();
    for json in [false, true] {
        let mut args = vec!["--tcp", "33000", "--on", &on];
        args.extend(json.then_some("--json"));
        let output = lease(&[&args[..], &["--", "echo", "mine"]].concat()).output();
        let output = output.expect("the program was built");
        assert_eq!(text(&output.stdout), "mine\n");
        match json {
            false => assert_eq!(text(&output.stderr), "33000\n"),
            true => {
                let shown: Value = serde_json::from_slice(&output.stderr).expect("a document");
                assert_eq!(shown["members"][0]["gate"], "queue");
            }
        }
    }
}

#[test]
fn one_document_names_every_member_with_protocol_and_port() {
    let (host, on) = host();
    let args = [
        "--tcp-udp",
        "33000-33009",
        "--block",
        "2",
        "--on",
        &on,
        "--json",
    ];
    let mut child = lease(&args)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it was built");
    let mut reader = BufReader::new(child.stdout.take().expect("piped"));
    let mut document = String::new();
    while !document.ends_with("\n}\n") {
        reader.read_line(&mut document).expect("a line");
    }
    let shown: Value = serde_json::from_str(&document).expect("one document");
    assert_eq!(shown["protocol"], "tcp+udp");
    let first = shown["port"].as_u64().expect("a number");
    assert_eq!(shown["ports"], serde_json::json!([first, first + 1]));
    let members = shown["members"].as_array().expect("an array");
    let members: Vec<_> = (members.iter())
        .map(|member| {
            assert_eq!(member["netns"], host.name());
            assert_eq!(member["addr"], "127.0.0.1");
            (
                member["protocol"].as_str().unwrap(),
                member["port"].as_u64().unwrap(),
            )
        })
        .collect();
    let all = ["tcp", "udp"].map(|protocol| [(protocol, first), (protocol, first + 1)]);
    assert_eq!(members, all.concat());
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    assert!(child.wait().expect("a child").success());
    assert!(is_free(&host, Tcp) && is_free(&host, Udp));
}

#[test]
fn command_inherits_no_stale_socket_activation_of_the_starter() {
    let (_host, on) = host();
    let mut command = lease(&["--tcp", "33000", "--on", &on, "--", "env"]);
    command
        .env("LISTEN_PIDFDID", "4711")
        .env("LISTEN_FDS", "7")
        .env("LISTEN_PID", "1");
    let output = command.output().expect("the program was built");
    let env = text(&output.stdout);
    assert!(!env.contains("LISTEN_PIDFDID"), "{env}");
    assert!(env.contains("LISTEN_FDS=1\n"), "{env}");
}

#[test]
fn command_is_not_blamed_for_a_hand_over_that_failed() {
    let (_host, on) = host();
    // Sockets go to 3 and above: with 20 of them 23 is not allowed.
    let addrs: String = (1..=20).map(|n| format!(",127.0.0.{n}")).collect();
    let place = on.split(',').next().expect("the name").to_owned() + &addrs;
    for limit in 20..23 {
        let text = format!(
            "exec prlimit --nofile={limit}:100 \"$0\" lease --tcp 33000 --on \"$1\" -- true"
        );
        let output = script(&text, &place)
            .output()
            .expect("prlimit of util-linux");
        assert_eq!(
            output.status.code(),
            Some(125),
            "{}",
            self::text(&output.stderr)
        );
    }
}

#[test]
fn udp_sockets_of_a_command_bring_no_messages_that_it_did_not_ask_for() {
    let (_host, on) = host();
    // IPPROTO_IP is 0, IP_PKTINFO 8.
    let look = "import socket; s = socket.socket(fileno=3); print(s.getsockopt(0, 8))";
    for (asked, value) in [(None, "0\n"), (Some("--packet-info"), "1\n")] {
        let mut args = vec!["--udp", "33000", "--on", &on];
        args.extend(asked);
        args.extend(["--", "python3", "-c", look]);
        let output = lease(&args).output().expect("the program was built");
        assert_eq!(text(&output.stdout), value, "{}", text(&output.stderr));
    }
}

#[test]
fn signal_that_was_ignored_from_the_start_ends_no_hold() {
    let (host, on) = host();
    // As nohup(1) does; the shell becomes the lease.
    let text = "trap '' HUP INT; exec \"$0\" lease --tcp 33000 --on \"$1\"";
    let mut child = script(text, &on)
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh");
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    stdout.read_line(&mut String::new()).expect("the port");
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        kill(pid, signal).expect("it runs");
    }
    // Delivered in the order of their numbers: one that ended it would be first.
    kill(pid, Signal::SIGSTOP).expect("it runs");
    eventually("it has stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| stat.contains(") T "))
    });
    kill(pid, Signal::SIGCONT).expect("it runs");
    assert_eq!(child.try_wait().expect("a child"), None);
    assert!(!is_free(&host, Tcp));
    kill(pid, Signal::SIGTERM).expect("it runs");
    assert_eq!(child.wait().expect("a child").code(), Some(0));
}

#[test]
fn lease_ends_with_its_parent_where_asked() {
    let (host, on) = host();
    for command in ["", "-- sleep 1000"] {
        // The shell waits for it, and is killed.
        let text = format!(
            "\"$0\" lease --tcp 33000 --on \"$1\" --die-with-parent {command} 2>&1; exit 0"
        );
        let mut shell = script(&text, &on)
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let mut stdout = BufReader::new(shell.stdout.take().expect("piped"));
        stdout.read_line(&mut String::new()).expect("the port");
        assert!(!is_free(&host, Tcp));
        shell.kill().expect("it runs");
        shell.wait().expect("a child");
        eventually("the port is free", || is_free(&host, Tcp));
        // Its end of the pipe is closed, so it has ended.
        stdout.read_to_end(&mut Vec::new()).expect("the end");
    }
}

#[test]
fn hold_waits_for_a_busy_port_and_says_so_once() {
    let (host, on) = host();
    let executor = Executor::new().expect("an executor");
    let addr = SocketAddr::new(V4, 33000);
    for choice in ["33000", "33000-33000"] {
        let busy = rival(&executor, &host, Tcp, V4, 33000);
        let args = [
            "--tcp",
            choice,
            "--on",
            &on,
            "--retry-for",
            "60",
            "--",
            "true",
        ];
        let mut child = lease(&args)
            .stderr(Stdio::piped())
            .spawn()
            .expect("it was built");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut said = String::new();
        stderr.read_line(&mut said).expect("a line");
        assert!(said.starts_with("netns-exec: waiting: "), "{said}");
        assert!(said.contains(&addr.to_string()), "{said}");
        drop(busy);
        assert!(child.wait().expect("a child").success());
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).expect("text");
        assert_eq!(rest, "33000\n");
    }
    let _busy = rival(&executor, &host, Tcp, V4, 33000);
    let args = ["--tcp", "33000", "--on", &on];
    let output = lease(&args).output().expect("the program was built");
    assert_fails(&output, 1, &["in use"]);
}

#[test]
fn wait_is_shown_on_a_terminal_and_cleared_after() {
    let (host, on) = host();
    let executor = Executor::new().expect("an executor");
    let busy = rival(&executor, &host, Tcp, V4, 33000);
    let pty = openpty(None, None).expect("a terminal");
    let args = [
        "--tcp",
        "33000",
        "--on",
        &on,
        "--retry-for",
        "60",
        "--",
        "true",
    ];
    let mut child = (lease(&args).env("TERM", "xterm").stderr(pty.slave))
        .spawn()
        .expect("it was built");
    let mut screen = File::from(pty.master);
    let mut shown = String::new();
    let mut read_on = |shown: &mut String| {
        let mut buffer = [0; 4096];
        // EIO when the last process on it has gone.
        let len = screen.read(&mut buffer).unwrap_or(0);
        shown.push_str(&String::from_utf8_lossy(&buffer[..len]));
        len > 0
    };
    // Drawn again and again, on one line.
    while shown.matches("waiting: cannot bind").count() < 2 {
        assert!(read_on(&mut shown), "{shown:?}");
    }
    assert!(!shown.contains('\n'), "{shown:?}");
    drop(busy);
    while read_on(&mut shown) {}
    assert!(child.wait().expect("a child").success());
    let last = shown.rsplit('\r').find(|part| !part.trim().is_empty());
    assert!(last.is_some_and(|last| last.contains("33000")), "{shown:?}");
}

#[test]
fn link_local_address_is_given_with_its_device() {
    let (_host, on) = host();
    let on = format!("{}%lo", on);
    let output = lease(&["--tcp", "33000", "--on", &on, "--", "true"]).output();
    assert!(output.expect("the program was built").status.success());
    let missing = on.replace("%lo", "%absent");
    let output = lease(&["--tcp", "33000", "--on", &missing]).output();
    assert_fails(
        &output.expect("the program was built"),
        2,
        &["no such device"],
    );
}
