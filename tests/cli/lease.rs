//! `netns-exec lease`, as a user meets it.
// As the tests of the library: see tests/clippy.toml.
#![allow(clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};

use netns_exec::ports::Protocol;
use netns_exec::{Executor, Netns};
use netns_exec_tests::TempNetns;
use netns_exec_tests::ports::{LISTEN, V4, V6_ANY, rival, set_sysctl, sockets, taken};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use Protocol::{Tcp, Udp};

use super::{assert_fails, command, text};

fn lease(args: &[&str]) -> Command {
    command(&[&["lease"], args].concat())
}

fn output(args: &[&str]) -> Output {
    lease(args).output().expect("the program was built")
}

fn executor() -> Executor {
    Executor::new().expect("an executor")
}

/// A lease that runs, with what it writes.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    fn start(args: &[&str]) -> Running {
        let mut command = lease(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program was built");
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        Running {
            child,
            stdout: BufReader::new(stdout),
            stderr: BufReader::new(stderr),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn line_of_stderr(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).expect("it runs");
    }

    /// Closes its standard input, and returns its status.
    fn end(mut self) -> Option<i32> {
        drop(self.child.stdin.take());
        self.child.wait().expect("a child of ours").code()
    }
}

#[track_caller]
fn assert_listening(executor: &Executor, netns: &Netns, addrs: &[SocketAddr]) {
    let seen = sockets(executor, netns, Tcp);
    assert!(seen.iter().all(|socket| socket.state == LISTEN), "{seen:?}");
    let seen: Vec<_> = seen.iter().map(|socket| socket.addr).collect();
    assert_eq!(seen, addrs);
}

#[test]
fn command_gets_listening_sockets_by_the_socket_activation_convention() {
    let (executor, host, child) = (
        executor(),
        TempNetns::with_loopback(),
        TempNetns::with_loopback(),
    );
    let on_host = format!("{},127.0.0.1,::", host.name());
    let on_child = format!("/run/netns/{},127.0.0.1", child.name());
    let script = "test \"$LISTEN_PID\" = $$ && echo $LISTEN_FDS $LISTEN_FDNAMES && \
                  readlink /proc/$$/fd/3 && readlink /proc/$$/fd/4 && \
                  readlink /proc/$$/fd/5 && cat && exit 7";
    let args = ["--tcp", "33000-33099", "--on", &on_host, "--on", &on_child];
    let mut running = Running::start(&[&args[..], &["--", "sh", "-c", script]].concat());
    let port: u16 = running.line_of_stderr().parse().expect("the port");
    let names = format!("3 {0}:{0}:/run/netns/{1}", host.name(), child.name());
    assert_eq!(running.line(), names);
    for _ in 0..3 {
        assert!(running.line().starts_with("socket:["));
    }
    let (v4, v6) = (SocketAddr::new(V4, port), SocketAddr::new(V6_ANY, port));
    assert_listening(&executor, &host, &[v4, v6]);
    assert_listening(&executor, &child, &[v4]);
    // Clients come through to the command.
    let connect = || std::net::TcpStream::connect(v4);
    executor.run(&child, connect).unwrap().unwrap();

    assert_eq!(running.end(), Some(7));
    assert_listening(&executor, &host, &[]);
}

#[test]
fn port_is_held_until_a_signal_comes() {
    let (executor, host, child) = (
        executor(),
        TempNetns::with_loopback(),
        TempNetns::with_loopback(),
    );
    let on = [host.name(), child.name()].map(|name| format!("{name},127.0.0.1"));
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let args = ["--udp", "33000", "--on", &on[0], "--on", &on[1]];
        let mut running = Running::start(&args);
        assert_eq!(running.line(), "33000");
        let ours = [SocketAddr::new(V4, 33000)].into();
        assert_eq!(taken(&executor, &host, Udp), ours);
        assert_eq!(taken(&executor, &child, Udp), ours);
        running.signal(signal);
        assert_eq!(running.end(), Some(0), "{signal}");
        assert_eq!(taken(&executor, &host, Udp), [].into());
    }
}

#[test]
fn json_tells_namespace_address_and_gate_of_every_member() {
    let host = TempNetns::with_loopback();
    let mut running = Running::start(&["--tcp", "33000", "--on", host.name(), "--json"]);
    let mut document = String::new();
    while !document.ends_with("\n}\n") {
        document = document + &running.line() + "\n";
    }
    let report: Value = serde_json::from_str(&document).expect("one JSON document");
    assert_eq!(report["protocol"], "tcp");
    assert_eq!(report["port"], 33000);
    let members = report["members"].as_array().expect("an array");
    let addrs: Vec<_> = members.iter().map(|member| &member["addr"]).collect();
    assert_eq!(addrs, ["0.0.0.0", "::"]);
    for member in members {
        assert_eq!(member["netns"], host.name());
        assert_eq!(member["netns_id"], host.id().as_u64());
        assert_eq!(member["gate"], "drop");
    }
    running.signal(Signal::SIGTERM);
    running.end();
}

#[test]
fn port_in_use_is_told_from_a_failure_and_passed_over_in_a_range() {
    let (executor, host) = (executor(), TempNetns::with_loopback());
    let _rival = rival(&executor, &host, Tcp, V4, 33000);
    let on = format!("{},127.0.0.1", host.name());
    let args = ["--tcp", "33000", "--on", &on];
    assert_fails(
        &output(&args),
        1,
        &["cannot bind", "33000", "in use", host.name()],
    );
    let range = ["--tcp", "33000-33000", "--on", &on];
    assert_fails(&output(&range), 1, &["no free tcp port", "1 tried"]);
    let retry = [&args[..], &["--retry-for", "0.05"]].concat();
    assert_fails(&output(&retry), 1, &["in use"]);
    let with_command = [&args[..], &["--", "true"]].concat();
    assert_fails(&output(&with_command), 125, &["in use"]);

    let range = ["--tcp", "33000-33001", "--on", &on, "--", "true"];
    let mut ports = String::new();
    for _ in 0..2 {
        let output = output(&range);
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stderr.as_slice().read_to_string(&mut ports).unwrap();
    }
    assert_eq!(ports, "33001\n33001\n");
}

#[test]
fn dynamic_range_is_that_of_the_first_namespace() {
    let (executor, host, child) = (
        executor(),
        TempNetns::with_loopback(),
        TempNetns::with_loopback(),
    );
    let range = "net/ipv4/ip_local_port_range";
    set_sysctl(&executor, &host, range, "40000 40001");
    let args = [
        "--tcp",
        "dynamic",
        "--on",
        host.name(),
        "--on",
        child.name(),
    ];
    let output = output(&[&args[..], &["--", "true"]].concat());
    let port: u16 = text(&output.stderr).trim().parse().expect("a port");
    assert!((40000..=40001).contains(&port), "{port}");
}

#[test]
fn misuse_is_refused_with_a_reason() {
    let host = TempNetns::with_loopback();
    let name = host.name();
    let twice = [name, name].join(",127.0.0.1,");
    for (args, status, part) in [
        (vec!["--on", name], 2, "--tcp"),
        (
            vec!["--tcp", "1", "--udp", "1", "--on", name],
            2,
            "cannot be used",
        ),
        (vec!["--tcp", "1"], 2, "--on"),
        (vec!["--tcp", "http", "--on", name], 2, "33000-33099"),
        (vec!["--tcp", "1", "--on", &twice], 2, "not an IP address"),
        (vec!["--tcp", "0", "--on", name], 2, "port 0"),
        (vec!["--tcp", "2-1", "--on", name], 2, "inverted"),
        (vec!["--tcp", "1", "--on", name, "--on", name], 2, "twice"),
        (
            vec!["--tcp", "1", "--on", "no-such-netns"],
            2,
            "no-such-netns",
        ),
        (
            vec!["--tcp", "1", "--on", "no-such-netns", "--", "true"],
            125,
            "no-such-netns",
        ),
        (
            vec!["--tcp", "1", "--on", name, "--", "/no/such/command"],
            127,
            "/no/such",
        ),
        (
            vec!["--tcp", "1", "--on", name, "--", "/etc/passwd"],
            126,
            "/etc/passwd",
        ),
    ] {
        let output = output(&args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: {said}");
    }
}
