//! What a request for a port can ask for beyond one number at some addresses.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use netns_exec::ports::{Budget, ErrorKind, Gate, Ports, Protocol};
use netns_exec_tests::ports::{V4, V4_ANY, V6, V6_ANY, World, refused, rival};
use nix::errno::Errno;
use nix::sys::socket::{
    Shutdown, SockaddrStorage, connect, getsockopt, setsockopt, shutdown, sockopt,
};
use nix::sys::time::TimeVal;

use Protocol::{Tcp, Udp};

// Several protocols, several ports

#[test]
fn one_number_is_leased_for_tcp_and_udp_where_both_are_free() {
    let w = World::new();
    let busy = (33000..33019).map(|port| match port % 2 {
        0 => rival(&w.executor, &w.host, Tcp, V4, port),
        _ => rival(&w.executor, &w.child, Udp, V4, port),
    });
    let _busy: Vec<_> = busy.collect();
    let request = || {
        let request = w.ports.request(Tcp).protocols([Tcp, Udp, Tcp]);
        let request = request.on(&w.host, [V4]).on(&w.child, [V4]);
        request.ports(Ports::Range(33000..=33019))
    };
    let mut lease = request().acquire().unwrap();
    assert_eq!(lease.port(), 33019);
    assert_eq!(lease.protocols(), [Tcp, Udp]);
    let got: Vec<_> = (lease.members().iter())
        .map(|member| (member.endpoint().netns(), member.endpoint().protocol()))
        .collect();
    let (host, child) = (w.host.id(), w.child.id());
    assert_eq!(got, [(host, Tcp), (host, Udp), (child, Tcp), (child, Udp)]);
    let error = refused(request().acquire());
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert!(error.to_string().contains("tcp+udp"), "{error}");

    // One address is one thing to give back.
    assert!(lease.release(host, V4));
    assert_eq!(w.ports.leased().len(), 2);
    assert!(w.host(Udp, V4, Ports::Exact(33019)).is_ok());
    drop((lease, _busy));
    w.assert_empty();
}

#[test]
fn ports_in_a_row_are_leased_together_or_not_at_all() {
    let w = World::new();
    let _busy = [33002, 33005].map(|port| w.rival(&w.child, port));
    let other = w.host(Tcp, V4_ANY, Ports::Exact(33009)).unwrap();
    let request = |ports| {
        let request = w.ports.request(Tcp).on(&w.host, [V4]).on(&w.child, [V4]);
        request.ports(ports).block(3)
    };
    let lease = request(Ports::Range(33000..=33011)).acquire().unwrap();
    assert_eq!(lease.ports(), 33006..=33008);
    let addrs: Vec<_> = (lease.members().iter())
        .map(|member| member.local_addr().port())
        .collect();
    assert_eq!(addrs, [33006, 33007, 33008, 33006, 33007, 33008]);
    assert_eq!(w.ports.leased().len(), 7);
    lease.activate().unwrap();
    w.connect(&w.child, (V4, 33008).into()).unwrap();
    // None of the next three that begin in the range is whole.
    let error = refused(request(Ports::Range(33000..=33011)).acquire());
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    // The one in use is named, and not the first of the block.
    let error = refused(request(Ports::Exact(33000)).acquire());
    assert_eq!(error.port(), Some(33002));
    let error = refused(request(Ports::Exact(33007)).acquire());
    assert_eq!(error.kind(), ErrorKind::AlreadyLeased);
    assert_eq!(error.port(), Some(33007));
    drop((lease, other));
    assert_eq!(
        request(Ports::Exact(33006)).acquire().unwrap().port(),
        33006
    );

    for (word, request) in [
        ("no ports", request(Ports::Exact(1)).block(0)),
        ("in a row", request(Ports::Range(33000..=33001))),
        ("in a row", request(Ports::Exact(65534))),
        ("no protocol", request(Ports::Exact(1)).protocols([])),
    ] {
        let error = refused(request.acquire());
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn every_family_is_both_where_both_are_there() {
    let w = World::new();
    let request = w.ports.request(Tcp).on_every_family(&w.host);
    let lease = request.ports(Ports::Exact(33000)).acquire().unwrap();
    let addrs: Vec<_> = (lease.members().iter())
        .map(|member| member.endpoint().addr())
        .collect();
    assert_eq!(addrs, [V4_ANY, V6_ANY]);
}

// Options of sockets

#[test]
fn packet_info_can_be_left_out() {
    let w = World::new();
    let request = w.ports.request(Udp).on(&w.host, [V4_ANY, V6_ANY]);
    let request = request.ports(Ports::Exact(33000)).packet_info(false);
    let lease = request.acquire().unwrap();
    let [v4, v6] = lease.members() else {
        panic!("two members");
    };
    assert!(!getsockopt(v4, sockopt::Ipv4PacketInfo).unwrap());
    assert!(!getsockopt(v6, sockopt::Ipv6RecvPacketInfo).unwrap());
}

#[test]
fn absent_address_can_be_bound_on_request() {
    let w = World::new();
    for absent in ["192.0.2.1", "2001:db8::1"] {
        let absent: IpAddr = absent.parse().unwrap();
        let request = || {
            let request = w.ports.request(Tcp).on(&w.host, [absent]);
            request.ports(Ports::Exact(33000))
        };
        let error = refused(request().retry_for(Duration::from_secs(3600)).acquire());
        assert_eq!(error.raw_os_error(), Some(Errno::EADDRNOTAVAIL as i32));
        assert_eq!(error.counts().tried, 1);
        request().free_bind(true).acquire().unwrap();
    }
}

// What a listener can be made to do

/// Shuts a listener down and connects it: what a process that was handed it, and
/// has no other way out of its namespace, could do.
fn escape(listener: &OwnedFd, to: SocketAddr) -> nix::Result<()> {
    shutdown(listener.as_raw_fd(), Shutdown::Both)?;
    setsockopt(listener, sockopt::SendTimeout, &TimeVal::new(0, 300_000))?;
    connect(listener.as_raw_fd(), &SockaddrStorage::from(to))
}

#[test]
fn accept_only_listener_serves_and_connects_to_nothing() {
    let w = World::new();
    // Two, for a pair of ports is in use for a while after its connection.
    let _secrets = [34000, 34001].map(|port| w.rival(&w.host, port));
    for (port, gate) in [
        (33000, Gate::default()),
        (33001, Gate::Queue),
        (33002, Gate::Refuse),
    ] {
        let acquire = |port, accept_only| {
            let request = w.ports.request(Tcp).on(&w.host, [V4, V6]).gate(gate);
            let request = request.ports(Ports::Exact(port)).accept_only(accept_only);
            let lease = request.acquire().unwrap();
            lease.activate().unwrap();
            let (mut members, hold) = lease.split();
            (OwnedFd::from(members.remove(0)), members, hold)
        };
        let (plain, ..) = acquire(port + 100, false);
        escape(&plain, (V4, 34000).into()).expect("this is what the option is against");
        drop(plain);

        let (listener, ..) = acquire(port, true);
        let listener = TcpListener::from(listener);
        let mut client = w.connect(&w.host, (V4, port).into()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"ping").unwrap();
        let mut text = [0; 4];
        server.read_exact(&mut text).unwrap();
        server.write_all(&text).unwrap();
        client.read_exact(&mut text).unwrap();
        drop(client);
        let escaped = escape(&OwnedFd::from(listener), (V4, 34001).into());
        assert_eq!(escaped, Err(Errno::EINPROGRESS), "{gate:?}");
    }
    let request = w.ports.request(Tcp).on(&w.host, [V4]).accept_only(true);
    let error = refused(
        request
            .protocols([Tcp, Udp])
            .ports(Ports::Exact(1))
            .acquire(),
    );
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn request_that_waits_says_what_for() {
    let w = World::new();
    let rival = Mutex::new(Some(w.rival(&w.host, 33000)));
    let rival = Arc::new(rival);
    let theirs = rival.clone();
    let request = w.ports.request(Tcp).on(&w.host, [V4]);
    let request = request
        .ports(Ports::Exact(33000))
        .retry_for(Duration::from_secs(3600));
    // The rival goes when the request is known to wait for it.
    let request = request.on_wait(move |error| {
        assert!(error.is_in_use(), "{error}");
        theirs.lock().unwrap().take();
    });
    request.acquire().unwrap();
    assert!(rival.lock().unwrap().is_none());

    let _rival = w.rival(&w.host, 33000);
    let said = Arc::new(AtomicUsize::new(0));
    let count = said.clone();
    let request = w.ports.request(Tcp).on(&w.host, [V4]);
    let pause = Duration::ZERO;
    let request = request.budget(Budget::Laps { laps: 3, pause });
    let request = request
        .ports(Ports::Range(33000..=33000))
        .on_wait(move |error| {
            assert_eq!(error.kind(), ErrorKind::Exhausted);
            count.fetch_add(1, Ordering::Relaxed);
        });
    assert_eq!(refused(request.acquire()).counts().tried, 3);
    assert_eq!(said.load(Ordering::Relaxed), 2);
}

#[test]
fn udp_and_tcp_of_one_lease_both_reach_their_clients() {
    let w = World::new();
    let request = w.ports.request(Tcp).protocols([Tcp, Udp]);
    let request = request.on(&w.host, [V4]).ports(Ports::Range(33000..=33009));
    let lease = request.acquire().unwrap();
    lease.activate().unwrap();
    let addr = lease.members()[0].local_addr();
    let (mut members, _hold) = lease.split();
    let udp = UdpSocket::from(OwnedFd::from(members.remove(1)));
    w.executor
        .run(&w.host, || {
            TcpStream::connect(addr).unwrap();
            UdpSocket::bind("127.0.0.1:0")
                .unwrap()
                .send_to(b"x", addr)
                .unwrap();
        })
        .unwrap();
    udp.recv(&mut [0; 1]).unwrap();
    assert!(udp.as_fd().as_raw_fd() > 2);
}
