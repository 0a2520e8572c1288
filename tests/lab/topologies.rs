//! Links, routers, bridges: what is joined can talk, and nothing else.

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec_lab::{Lab, Node};

use super::{assert_ping, assert_tcp, pair, udp};

#[test]
fn linked_nodes_talk_in_both_families_as_soon_as_the_call_returns() {
    let (a, b, _) = pair();
    for to in ["10.0.0.2", "fd00::2"] {
        assert_tcp(&a, &b, to);
        assert_ping(&a, to);
    }
    for to in ["10.0.0.1", "fd00::1"] {
        assert_tcp(&b, &a, to);
        assert_ping(&b, to);
    }
    assert_ping(&a, "127.0.0.1");
}

#[test]
fn nothing_is_lost_on_a_link() {
    let (a, b, _) = pair();
    let (sender, receiver) = (udp(&a, "10.0.0.1"), udp(&b, "10.0.0.2"));
    let to = receiver.local_addr().expect("bound");
    // As many as a socket's buffer takes, again and again.
    let mut expected = 0_u32;
    for _ in 0..200 {
        for number in expected..expected + 50 {
            (sender.send_to(&number.to_ne_bytes(), to)).expect("room");
        }
        for number in expected..expected + 50 {
            let mut bytes = [0; 4];
            receiver.recv(&mut bytes).expect("it comes");
            assert_eq!(u32::from_ne_bytes(bytes), number);
        }
        expected += 50;
    }
}

#[test]
fn router_forwards_and_without_it_there_is_no_way() {
    let lab = Lab::new().expect("an executor");
    let [client, router, server] = (lab.nodes(["client", "router", "server"])).expect("three");
    lab.link(
        client.at(&["10.0.1.2/24", "fd01::2/64"]),
        router.at(&["10.0.1.1/24", "fd01::1/64"]),
    )
    .expect("a veth pair");
    lab.link(
        server.at(&["10.0.2.2/24", "fd02::2/64"]),
        router.at(&["10.0.2.1/24", "fd02::1/64"]),
    )
    .expect("a veth pair");
    let connect = |to: &str| {
        let to: SocketAddr = to.parse().expect("an address");
        client
            .run(move || TcpStream::connect(to))
            .expect("a worker")
    };
    for to in ["10.0.2.2:80", "[fd02::2]:80"] {
        let error = connect(to).expect_err("there is no route");
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENETUNREACH), "{to}");
    }
    for (node, v4, v6) in [
        (&client, "10.0.1.1", "fd01::1"),
        (&server, "10.0.2.1", "fd02::1"),
    ] {
        node.route("default", v4).expect("a neighbour");
        node.route("default", v6).expect("a neighbour");
    }
    router.forward().expect("its own sysctls");
    for to in ["10.0.2.2", "fd02::2"] {
        assert_tcp(&client, &server, to);
        assert_ping(&client, to);
    }
    // One network of it only.
    let other = lab.node("other").expect("a namespace");
    (lab.link(other.at(&["10.0.3.2/24"]), router.at(&["10.0.3.1/24"]))).expect("a veth pair");
    other.route("10.0.2.0/24", "10.0.3.1").expect("a neighbour");
    assert_tcp(&server, &other, "10.0.3.2");
}

#[test]
fn every_node_of_a_bridge_talks_to_the_next_at_once() {
    let lab = Lab::new().expect("an executor");
    let lan = lab.bridge("lan").expect("a bridge");
    let mut times = Vec::new();
    let hosts: Vec<(Node, [String; 2])> = (1..=12)
        .map(|n| {
            let addrs = [format!("10.0.0.{n}/24"), format!("fd00::{n}/64")];
            let host = lab.node(&format!("host-{n}")).expect("a namespace");
            (lan.attach(host.at(&[&addrs[0], &addrs[1]]))).expect("a port");
            // The first thing that is done. What a port drops is sent again, but a second
            // later.
            if n > 1 {
                let start = Instant::now();
                assert_ping(&host, "10.0.0.1");
                assert_ping(&host, "fd00::1");
                times.push(start.elapsed());
            }
            (host, addrs)
        })
        .collect();
    times.sort();
    // Without a wait it is all of them; on a loaded machine it may be some.
    let quick = times[times.len() / 4];
    assert!(quick < Duration::from_millis(500), "{times:?}");
    for (client, server) in hosts.iter().zip(hosts.iter().skip(1)) {
        for addr in &server.1 {
            let addr = addr.split('/').next().expect("at least one");
            assert_tcp(&client.0, &server.0, addr);
        }
    }
    assert_eq!(lan.node().name(), "lan");
}

#[test]
fn labs_beside_each_other_use_the_same_addresses() {
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(linked_nodes_talk_in_both_families_as_soon_as_the_call_returns);
        }
    });
}

#[test]
fn devices_have_the_names_and_sizes_that_were_asked_for() {
    let lab = Lab::new().expect("an executor");
    let [a, b] = lab.nodes(["a", "b"]).expect("two namespaces");
    let first = lab.link(a.at(&[]).device("wan").mtu(1280), b.at(&[]));
    let second = lab.link(b.at(&[]), a.at(&[]));
    assert_eq!(first.expect("a veth pair").devices(), ["wan", "eth0"]);
    assert_eq!(second.expect("a veth pair").devices(), ["eth1", "eth0"]);
    let shown = |node: &Node, args: &[&str]| {
        let ip = || netns_exec_tests::ip(args);
        node.run(ip).expect("a worker")
    };
    assert!(shown(&a, &["link", "show", "wan"]).contains("mtu 1280"));
    assert!(shown(&b, &["link", "show", "eth1"]).contains("LOWER_UP"));
}

#[test]
fn both_ends_may_be_of_one_node() {
    let lab = Lab::new().expect("an executor");
    let node = lab.node("node").expect("a namespace");
    let link = lab.link(node.at(&["10.0.0.1/32"]), node.at(&["10.0.0.2/32"]));
    assert_eq!(link.expect("a veth pair").devices(), ["eth0", "eth1"]);
}
