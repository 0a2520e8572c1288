//! The sockets of a lease: what passes their gates, and what they are.

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use netns_exec::Netns;
use netns_exec::ports::{ErrorKind, Gate, GateState, Lease, Ports, Protocol, Stage};
use netns_exec_tests::ports::{
    BOUND, LISTEN, Rival, TIME_WAIT, V4, V4_ANY, V6_ANY, World, refused, set_sysctl, sockets,
};
use nix::errno::Errno;

use Protocol::{Tcp, Udp};

fn listener(lease: Lease) -> TcpListener {
    let (mut members, _hold) = lease.split();
    OwnedFd::from(members.remove(0)).into()
}

// Traffic

#[test]
fn connection_is_made_only_after_activate() {
    let w = World::new();
    let lease = w.host(Tcp, V4, Ports::Exact(33000)).unwrap();
    assert_eq!(lease.members()[0].gate(), GateState::Dropping);
    let addr = lease.members()[0].local_addr();
    let early = w.executor.run(&w.host, || {
        TcpStream::connect_timeout(&addr, Duration::from_millis(100))
    });
    assert_eq!(early.unwrap().unwrap_err().kind(), IoErrorKind::TimedOut);

    // This one goes on trying, and gets through at its next SYN.
    let (started, has_started) = mpsc::channel();
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            w.executor.run(&w.host, || {
                started.send(()).unwrap();
                TcpStream::connect(addr).and_then(|mut stream| stream.write_all(b"hello"))
            })
        });
        has_started.recv().unwrap();
        lease.activate().unwrap();
        lease.activate().expect("a second time it does nothing");
        assert_eq!(lease.members()[0].gate(), GateState::Open);
        client.join().unwrap().unwrap().unwrap();
    });
    let (mut stream, _) = listener(lease).accept().unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn datagrams_are_dropped_until_activate() {
    let w = World::new();
    let lease = w.host(Udp, V4, Ports::Exact(33000)).unwrap();
    let addr = lease.members()[0].local_addr();
    let send = |text: &'static [u8]| {
        let sent = w.executor.run(&w.host, || {
            UdpSocket::bind("127.0.0.1:0")?.send_to(text, addr)
        });
        sent.unwrap().unwrap();
    };
    send(b"early");
    lease.activate().unwrap();
    send(b"late");
    let (mut members, _hold) = lease.split();
    let socket = UdpSocket::from(OwnedFd::from(members.remove(0)));
    let mut buffer = [0; 16];
    let len = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"late");
}

#[test]
fn queueing_gate_lets_connections_wait() {
    let w = World::new();
    let request = w.ports.request(Tcp).on(&w.host, [V4]).gate(Gate::Queue);
    let lease = request.ports(Ports::Exact(33000)).acquire().unwrap();
    assert_eq!(lease.members()[0].gate(), GateState::Queueing);
    w.connect(&w.host, lease.members()[0].local_addr()).unwrap();
    lease.activate().unwrap();
    listener(lease).accept().unwrap();
}

#[test]
fn refusing_gate_owns_the_port_without_listening() {
    let w = World::new();
    let request = || {
        let request = w
            .ports
            .request(Tcp)
            .on(&w.host, [V4])
            .on(&w.child, [V4_ANY]);
        request
            .gate(Gate::Refuse)
            .ports(Ports::Range(33000..=33001))
    };
    let lease = request().acquire().unwrap();
    assert_eq!(lease.members()[1].gate(), GateState::Refusing);
    assert_eq!(sockets(&w.executor, &w.host, Tcp)[0].state, BOUND);
    let addr = lease.members()[0].local_addr();
    let early = w.connect(&w.host, addr).unwrap_err();
    assert_eq!(early.kind(), IoErrorKind::ConnectionRefused);
    for reuse in [false, true] {
        let rival = Rival {
            reuse,
            ..Rival::default()
        };
        let rival = rival.take(&w.executor, &w.host, Tcp, V4, 33000);
        assert_eq!(rival.err(), Some(Errno::EADDRINUSE));
    }
    lease.activate().unwrap();
    assert_eq!(sockets(&w.executor, &w.host, Tcp)[0].state, LISTEN);
    w.connect(&w.host, addr).unwrap();
    drop(lease);

    // Even a rival that has only bound is in the way of this gate.
    let mute = Rival {
        reuse: true,
        mute: true,
        ..Rival::default()
    };
    let _mute = mute.take(&w.executor, &w.host, Tcp, V4, 33001).unwrap();
    assert_eq!(request().acquire().unwrap().port(), 33000);
}

#[test]
fn activation_of_a_refusing_gate_can_fail_with_its_stage() {
    let w = World::new();
    let request = w.ports.request(Tcp).on(&w.host, [V4]).gate(Gate::Refuse);
    let lease = request.ports(Ports::Exact(33000)).acquire().unwrap();
    // The holder of a copy of the descriptor can spoil it: a socket that is
    // connected, here to itself, can listen no more.
    let copy = lease.members()[0].try_clone().unwrap();
    let addr = nix::sys::socket::SockaddrStorage::from(lease.members()[0].local_addr());
    nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&copy), &addr).unwrap();
    let error = lease.activate().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Socket);
    assert_eq!(error.stage(), Some(Stage::Listen));
    assert_eq!(error.raw_os_error(), Some(Errno::EINVAL as i32));
    assert_eq!(lease.members()[0].gate(), GateState::Refusing);
}

#[test]
fn time_wait_is_no_obstacle_and_a_client_on_the_port_is() {
    let w = World::new();
    let lease = w.host(Tcp, V4, Ports::Exact(33000)).unwrap();
    lease.activate().unwrap();
    let addr = lease.members()[0].local_addr();
    let mut client = w.connect(&w.host, addr).unwrap();
    let listener = listener(lease);
    // The server closes first, so that TIME_WAIT is on its side.
    drop(listener.accept().unwrap());
    drop(listener);
    client.read_to_end(&mut Vec::new()).unwrap();
    drop(client);
    let seen = sockets(&w.executor, &w.host, Tcp);
    assert!(
        seen.iter().any(|s| s.addr == addr && s.state == TIME_WAIT),
        "{seen:?}"
    );
    let plain = Rival::default().take(&w.executor, &w.host, Tcp, V4, 33000);
    assert_eq!(
        plain.err(),
        Some(Errno::EADDRINUSE),
        "without SO_REUSEADDR it is one"
    );
    drop(w.host(Tcp, V4, Ports::Exact(33000)).unwrap());

    // The port that an outgoing connection uses is not ours to have.
    let server = w.rival(&w.host, 33005);
    let client = w.connect(&w.host, SocketAddr::new(V4, 33005)).unwrap();
    let port = client.local_addr().unwrap().port();
    let error = refused(w.host(Tcp, V4, Ports::Exact(port)));
    assert_eq!(error.raw_os_error(), Some(Errno::EADDRINUSE as i32));
    drop(server);
}

// Descriptors

#[test]
fn backlog_is_the_most_that_the_namespace_allows() {
    let w = World::new();
    set_sysctl(&w.executor, &w.host, "net/core/somaxconn", "7777");
    set_sysctl(&w.executor, &w.child, "net/core/somaxconn", "77");
    let _lease = w.both(Tcp, Ports::Exact(33000)).unwrap();
    assert_eq!(sockets(&w.executor, &w.host, Tcp)[0].backlog, 7777);
    assert_eq!(sockets(&w.executor, &w.child, Tcp)[0].backlog, 77);
}

#[test]
fn sockets_stay_in_their_namespace_whichever_thread_uses_them() {
    let w = World::new();
    let lease = w.both(Udp, Ports::Exact(33000)).unwrap();
    for member in lease.members() {
        let netns = Netns::of_socket(member).unwrap();
        assert_eq!(netns.id(), member.endpoint().netns());
    }
}

#[test]
fn udp_sockets_tell_where_a_datagram_was_sent_to() {
    use nix::sys::socket::{getsockopt, sockopt};
    let w = World::new();
    let lease = w.ports.request(Udp).on(&w.host, [V4_ANY, V6_ANY]);
    let lease = lease.ports(Ports::Exact(33000)).acquire().unwrap();
    let [v4, v6] = lease.members() else {
        panic!("two members");
    };
    assert!(getsockopt(v4, sockopt::Ipv4PacketInfo).unwrap());
    assert!(getsockopt(v6, sockopt::Ipv6RecvPacketInfo).unwrap());
    assert!(getsockopt(v6, sockopt::Ipv6V6Only).unwrap());
    assert!(!getsockopt(v4, sockopt::ReuseAddr).unwrap());
}
