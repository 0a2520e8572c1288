//! Host names as a namespace has them: its files, and its name servers.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{Executor, Netns, net};
use netns_exec_tests::late::{never_blocks, slow_to_start};
use netns_exec_tests::{Alone, TempNetns, alone, eventually, within};
use nix::mount::{MsFlags, mount};
use pollster::block_on;

/// The files that `ip netns exec` puts in the place of those of /etc.
struct Etc(PathBuf);

impl Etc {
    fn of(netns: &TempNetns) -> Etc {
        let folder = PathBuf::from("/etc/netns").join(netns.name());
        fs::create_dir_all(&folder).unwrap();
        Etc(folder)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        // If it was the last.
        let _ = fs::remove_dir("/etc/netns");
    }
}

/// How a server answers, for the name and the type (1 or 28) of a question.
type Answers = fn(&str, u16) -> Answer;

enum Answer {
    Is(Vec<IpAddr>),
    NoSuchName,
    Failure,
    /// By UDP; what follows by TCP.
    TooLong(Vec<IpAddr>),
    Silence,
}

/// A name server that listens at an address of a namespace, and counts what it is asked.
fn serve(netns: &Netns, addr: &str, answers: Answers) -> Arc<AtomicUsize> {
    let addr = SocketAddr::new(addr.parse().unwrap(), 53);
    let asked = Arc::new(AtomicUsize::new(0));
    let udp = net::udp_bind(netns, addr).unwrap();
    let tcp = net::tcp_listen(netns, addr).unwrap();
    let counted = Arc::clone(&asked);
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
            counted.fetch_add(1, Ordering::Relaxed);
            if let Some(reply) = reply(&buffer[..length], answers, true) {
                let _ = udp.send_to(&reply, peer);
            }
        }
    });
    thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut question).unwrap();
            let reply = reply(&question, answers, false).unwrap();
            let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length[..], &reply].concat()).unwrap();
        }
    });
    asked
}

/// By RFC 1035, section 4.
fn reply(question: &[u8], answers: Answers, udp: bool) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    while question[at] > 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8(question[at + 1..end].to_vec()).unwrap());
        at = end;
    }
    let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
    let (code, truncated, ips) = match answers(&labels.join(".").to_ascii_lowercase(), kind) {
        Answer::Is(ips) => (0, false, ips),
        Answer::NoSuchName => (3, false, vec![]),
        Answer::Failure => (2, false, vec![]),
        Answer::TooLong(_) if udp => (0, true, vec![]),
        Answer::TooLong(ips) => (0, false, ips),
        Answer::Silence => return None,
    };
    let ips: Vec<_> = ips
        .into_iter()
        .filter(|ip| ip.is_ipv4() == (kind == 1))
        .collect();
    let mut reply = question[..at + 5].to_vec();
    reply[2] |= 0x80 | if truncated { 2 } else { 0 };
    reply[3] = 0x80 | code;
    reply[6..8].copy_from_slice(&(ips.len() as u16).to_be_bytes());
    reply[8..12].fill(0);
    for ip in ips {
        let bytes = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        // The name of the question; the type; IN; a minute.
        reply.extend([0xc0, 12]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1, 0, 0, 0, 60, 0, bytes.len() as u8]);
        reply.extend(bytes);
    }
    Some(reply)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn names_are_those_of_the_namespaces_own_server_and_files() {
    let (blue, green) = (TempNetns::with_loopback(), TempNetns::with_loopback());
    let (etc_blue, etc_green) = (Etc::of(&blue), Etc::of(&green));
    etc_blue.write("resolv.conf", "nameserver 127.0.0.53\nsearch example\n");
    etc_blue.write("hosts", "192.0.2.1 printer printer.example\n");
    etc_green.write("resolv.conf", "nameserver ::1\n");
    let asked = serve(&blue, "127.0.0.53", |name, _| match name {
        "db.example" => Answer::Is(ips(&["192.0.2.7", "192.0.2.8", "2001:db8::7"])),
        _ => Answer::NoSuchName,
    });
    serve(&green, "::1", |name, _| match name {
        "db.example" => Answer::Is(ips(&["198.51.100.1"])),
        _ => Answer::NoSuchName,
    });
    let in_blue = |host| net::resolve(blue.netns(), host);
    let all = ips(&["2001:db8::7", "192.0.2.7", "192.0.2.8"]);
    assert_eq!(in_blue("db.example").unwrap(), all);
    // By the search list, with and without it.
    assert_eq!(in_blue("db").unwrap(), all);
    assert_eq!(in_blue("DB.Example.").unwrap(), all);
    assert!(in_blue("db.").unwrap_err().is_not_found());
    let in_green = net::resolve(green.netns(), "db.example").unwrap();
    assert_eq!(in_green, ips(&["198.51.100.1"]));
    assert!(
        net::resolve(green.netns(), "db")
            .unwrap_err()
            .is_not_found()
    );

    // Without a question: the namespace's hosts, its loopback, an address.
    let before = asked.load(Ordering::Relaxed);
    assert_eq!(in_blue("Printer").unwrap(), ips(&["192.0.2.1"]));
    assert_eq!(in_blue("localhost").unwrap(), ips(&["::1", "127.0.0.1"]));
    assert_eq!(in_blue("2001:db8::1").unwrap(), ips(&["2001:db8::1"]));
    for name in ["", ".", "a..b", "größe", "a b", &"x".repeat(64)] {
        assert!(in_blue(name).unwrap_err().is_invalid_input(), "{name:?}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), before);

    // However it is asked for.
    let executor = Executor::new().unwrap();
    let pinned = executor.pin(&blue).unwrap();
    assert_eq!(net::resolve(&pinned, "db").unwrap(), all);
    let inside = executor.run(&blue, || net::resolve(&pinned, "db").unwrap());
    assert_eq!(inside.unwrap(), all);
    assert_eq!(block_on(net::resolve_async(&pinned, "db")).unwrap(), all);
    let error = block_on(net::resolve_async(&pinned, "nothing")).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("nothing") && text.contains(blue.name()),
        "{text}"
    );
    // A handle that does not know the name.
    let by_path = Netns::from_path(format!("/run/netns/{}", blue.name())).unwrap();
    assert_eq!(
        net::resolve(&by_path, "printer").unwrap(),
        ips(&["192.0.2.1"])
    );
}

#[test]
fn without_files_of_its_own_it_has_those_of_the_host() {
    alone!(Alone::FreshRun);
    // Only this process sees it: `/run` is its own, and so are its mounts.
    let none: Option<&str> = None;
    for (file, text) in [
        ("resolv.conf", "nameserver 127.0.0.2\n"),
        ("hosts", "192.0.2.99 of-the-host\n"),
    ] {
        fs::write(format!("/run/{file}"), text).unwrap();
        let source = format!("/run/{file}");
        let target = format!("/etc/{file}");
        mount(Some(&*source), &*target, none, MsFlags::MS_BIND, none).unwrap();
    }
    let netns = TempNetns::with_loopback();
    serve(&netns, "127.0.0.2", |_, _| Answer::Is(ips(&["192.0.2.2"])));
    assert_eq!(
        net::resolve(netns.netns(), "any.example").unwrap(),
        ips(&["192.0.2.2"])
    );
    assert_eq!(
        net::resolve(netns.netns(), "of-the-host").unwrap(),
        ips(&["192.0.2.99"])
    );
    // Its own come first, and one that has no such file falls back.
    let etc = Etc::of(&netns);
    etc.write("resolv.conf", "nameserver 127.0.0.3\n");
    serve(&netns, "127.0.0.3", |_, _| Answer::Is(ips(&["192.0.2.3"])));
    assert_eq!(
        net::resolve(netns.netns(), "any.example").unwrap(),
        ips(&["192.0.2.3"])
    );
    assert_eq!(
        net::resolve(netns.netns(), "of-the-host").unwrap(),
        ips(&["192.0.2.99"])
    );
}

#[test]
fn server_that_is_silent_or_cannot_tell_is_followed_by_the_next() {
    let netns = TempNetns::with_loopback();
    let etc = Etc::of(&netns);
    etc.write(
        "resolv.conf",
        "nameserver 127.0.0.9\nnameserver 127.0.0.2\nnameserver 127.0.0.3\n\
         options timeout:1 attempts:1\n",
    );
    // The first does not listen.
    serve(&netns, "127.0.0.2", |name, _| match name {
        "silent.example" => Answer::Silence,
        _ => Answer::Failure,
    });
    serve(&netns, "127.0.0.3", |name, kind| match (name, kind) {
        ("half.example", 28) => Answer::Failure,
        ("nobody.example", _) => Answer::Silence,
        _ => Answer::Is(ips(&["192.0.2.3"])),
    });
    let begun = Instant::now();
    for name in ["silent.example", "failing.example", "half.example"] {
        let found = net::resolve(netns.netns(), name).unwrap();
        assert_eq!(found, ips(&["192.0.2.3"]), "{name}");
    }
    assert!(begun.elapsed() >= Duration::from_secs(1));
    within("a look-up that is not answered", move || {
        etc.write(
            "resolv.conf",
            "nameserver 127.0.0.3\noptions timeout:1 attempts:1\n",
        );
        let error = net::resolve(netns.netns(), "nobody.example").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ETIMEDOUT), "{error}");
        etc.write("resolv.conf", "nameserver 127.0.0.9\noptions attempts:1\n");
        let error = net::resolve(netns.netns(), "x.example").unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(nix::libc::ECONNREFUSED),
            "{error}"
        );
    });
}

#[test]
fn long_answer_comes_by_tcp() {
    let netns = TempNetns::with_loopback();
    let etc = Etc::of(&netns);
    etc.write("resolv.conf", "nameserver 127.0.0.1\noptions no-aaaa\n");
    fn many() -> Vec<IpAddr> {
        let ip = |n: u8| IpAddr::from([192, 0, 2, n]);
        (0..=255).map(ip).collect()
    }
    serve(&netns, "127.0.0.1", |_, _| Answer::TooLong(many()));
    assert_eq!(net::resolve(netns.netns(), "big.example").unwrap(), many());
}

#[test]
fn worker_is_free_while_a_name_server_is_waited_for() {
    let netns = TempNetns::with_loopback();
    let etc = Etc::of(&netns);
    etc.write(
        "resolv.conf",
        "nameserver 127.0.0.1\noptions timeout:2 attempts:1 no-aaaa\n",
    );
    let asked = serve(&netns, "127.0.0.1", |_, _| Answer::Silence);
    let executor = Executor::new().unwrap();
    let place = (&executor, netns.netns());
    thread::scope(|scope| {
        let look_up = scope.spawn(|| net::resolve(place, "x.example"));
        eventually("it is asked", || asked.load(Ordering::Relaxed) > 0);
        for _ in 0..100 {
            executor.run(&netns, || ()).unwrap();
        }
        assert!(!look_up.is_finished());
        assert_eq!(executor.stats().workers, 1);
        assert!(look_up.join().unwrap().is_err());
    });
}

#[test]
fn silent_name_server_keeps_no_runtime_waiting() {
    let prepare = || {
        let netns = TempNetns::with_loopback();
        let etc = Etc::of(&netns);
        let options = "options timeout:1 attempts:1 no-aaaa";
        etc.write("resolv.conf", &format!("nameserver 127.0.0.1\n{options}\n"));
        serve(&netns, "127.0.0.1", |_, _| Answer::Silence);
        (slow_to_start(), netns, etc)
    };
    never_blocks("resolve_async", prepare, |prepared| async move {
        let (executor, netns, _etc) = prepared;
        let found = net::resolve_async((&executor, netns.netns()), "x.example").await;
        let error = found.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ETIMEDOUT), "{error}");
    });
}
