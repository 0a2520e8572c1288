//! A look-up by DNS goes to the server that the namespace's resolv.conf names.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use netns_exec::{CommandExt, Executor};
use netns_exec_tests::{TempNetns, ip, within};

use super::{Files, facts, look_up, read};

facts! {
    look_up_is_answered_by_the_server_in_the_namespace,
    each_namespace_asks_its_own_server_at_the_same_time,
    child_asks_the_server_in_the_namespace,
}

/// A DNS server inside a namespace that knows one answer.
struct Server {
    asked: Receiver<String>,
}

impl Server {
    /// Binds `address`, which the namespace's loopback gets, and answers until the test
    /// ends.
    fn start(
        executor: &Executor,
        netns: &TempNetns,
        address: Ipv4Addr,
        answer: Ipv4Addr,
    ) -> Server {
        ip(&[
            "-n",
            netns.name(),
            "addr",
            "add",
            &format!("{address}/32"),
            "dev",
            "lo",
        ]);
        let socket = executor.run(netns, || UdpSocket::bind((address, 53)));
        let socket = socket.expect("the job ran").expect("a port of its own");
        let (tell, asked) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((size, from)) = socket.recv_from(&mut buffer) {
                let (name, reply) = reply(&buffer[..size], answer);
                let _ = socket.send_to(&reply, from);
                let _ = tell.send(name);
            }
        });
        Server { asked }
    }

    fn was_asked_for(&self, name: &str) -> bool {
        self.asked.try_iter().any(|asked| asked == name)
    }
}

/// The name that is asked for, and a message (RFC 1035) that answers a question for an
/// A record, and says to any other that there is none.
fn reply(query: &[u8], answer: Ipv4Addr) -> (String, Vec<u8>) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).into_owned());
        at = end;
    }
    let question = &query[12..at + 5];
    let is_a = query[at + 1..at + 3] == [0, 1];
    let mut reply = query[..2].to_vec();
    // A response, recursion desired and available; one question.
    reply.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    reply.extend(question);
    if is_a {
        // The name is the question's; A, IN, a minute, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(answer.octets());
    }
    (labels.join("."), reply)
}

const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 53);

/// Gives a namespace a resolv.conf that names `server`, as the host's does not.
fn use_server(files: &Files, netns: &TempNetns, server: Ipv4Addr) {
    assert!(!read("/etc/resolv.conf").contains(&server.to_string()));
    let conf = format!("nameserver {server}\noptions timeout:2 attempts:2\n");
    files.write(netns.name(), "resolv.conf", &conf);
    files.write(netns.name(), "nsswitch.conf", "hosts: files dns\n");
}

fn look_up_is_answered_by_the_server_in_the_namespace() {
    let (files, blue) = (Files::new(), TempNetns::with_loopback());
    use_server(&files, &blue, RESOLVER);
    let answer = Ipv4Addr::new(10, 77, 1, 1);
    let plain = Executor::new().expect("an executor");
    let server = Server::start(&plain, &blue, RESOLVER, answer);
    let executor = files.executor();
    for host in ["dns.test", "dns.test.", "other.test"] {
        let found = within("a look-up", {
            let (executor, blue) = (executor.clone(), blue.netns().clone());
            move || executor.run(&blue, || look_up(host))
        });
        assert_eq!(
            found.expect("the job ran"),
            Some(IpAddr::V4(answer)),
            "{host}"
        );
        assert!(server.was_asked_for(host.trim_end_matches('.')));
    }
    // The process's own servers are none of this one.
    assert!(!server.was_asked_for("dns.test"));
}

fn each_namespace_asks_its_own_server_at_the_same_time() {
    const ROUNDS: usize = 20;
    let files = Files::new();
    let plain = Executor::new().expect("an executor");
    let all: Vec<_> = (1..=4_u8)
        .map(|n| {
            let netns = TempNetns::with_loopback();
            // Now the same address, now another one: glibc tells files apart, not servers.
            let server = Ipv4Addr::new(10, 77, n / 2, 53);
            use_server(&files, &netns, server);
            let answer = Ipv4Addr::new(10, 78, n, 1);
            let server = Server::start(&plain, &netns, server, answer);
            (netns, answer, server)
        })
        .collect();
    let executor = files.executor();
    thread::scope(|scope| {
        for (netns, answer, _) in &all {
            let (executor, netns) = (&executor, netns.netns());
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let found = executor.run(netns, || look_up("same.test"));
                    assert_eq!(found.expect("the job ran"), Some(IpAddr::V4(*answer)));
                }
            });
        }
    });
    for (.., server) in &all {
        assert!(server.was_asked_for("same.test"));
    }
}

fn child_asks_the_server_in_the_namespace() {
    let (files, blue) = (Files::new(), TempNetns::with_loopback());
    use_server(&files, &blue, RESOLVER);
    let plain = Executor::new().expect("an executor");
    let server = Server::start(&plain, &blue, RESOLVER, Ipv4Addr::new(10, 77, 1, 2));
    let mut getent = std::process::Command::new("getent");
    let output = (getent.args(["ahostsv4", "child.test"]))
        .view(files.view())
        .output_in(&blue);
    let text = String::from_utf8(output.expect("getent").stdout).expect("plain text");
    assert!(text.contains("10.77.1.2"), "{text}");
    let asked = server.asked.recv_timeout(Duration::from_secs(1));
    assert_eq!(asked.as_deref(), Ok("child.test"));
}
