//! Leases of ports, each promise on real namespaces.

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::Netns;
use netns_exec::ports::{
    Budget, Cancel, Error, ErrorKind, Gate, GateState, Lease, Ports, Protocol, Stage,
};
use netns_exec_tests::TempNetns;
use netns_exec_tests::ports::{
    BOUND, LISTEN, Rival, TIME_WAIT, V4, V4_ANY, V6, V6_ANY, World, block_on, refused, rival,
    set_sysctl, sockets, taken,
};
use nix::errno::Errno;

use Protocol::{Tcp, Udp};

fn listener(lease: Lease) -> TcpListener {
    let (mut members, _hold) = lease.split();
    OwnedFd::from(members.remove(0)).into()
}

// Ownership

#[test]
fn lease_owns_its_port_in_every_namespace_and_family() {
    let w = World::new();
    let lease = w
        .ports
        .request(Tcp)
        .on(&w.child, [V4])
        .on(&w.host, [V6_ANY, V4_ANY])
        .ports(Ports::Exact(33000))
        .acquire()
        .unwrap();
    assert_eq!(lease.port(), 33000);
    // In the order asked for.
    let asked = [
        (w.child.id(), V4),
        (w.host.id(), V6_ANY),
        (w.host.id(), V4_ANY),
    ];
    let members = lease.members().iter();
    let got: Vec<_> = members
        .map(|member| (member.endpoint().netns(), member.endpoint().addr()))
        .collect();
    assert_eq!(got, asked);

    for (netns, addr) in [(&w.child, V4), (&w.host, V4), (&w.host, V6)] {
        for reuse in [false, true] {
            let rival = Rival {
                reuse,
                ..Rival::default()
            };
            let rival = rival.take(&w.executor, netns, Tcp, addr, 33000);
            assert_eq!(rival.err(), Some(Errno::EADDRINUSE));
        }
    }
    lease.activate().unwrap();
    for (netns, addr) in [(&w.child, V4), (&w.host, V4), (&w.host, V6)] {
        w.connect(netns, SocketAddr::new(addr, 33000)).unwrap();
    }
    drop(lease);
    w.rival(&w.child, 33000);
}

#[test]
fn rollback_leaves_nothing_in_any_namespace() {
    let w = World::new();
    let _rival = w.rival(&w.child, 33000);
    let error = refused(w.both(Tcp, Ports::Exact(33000)));
    assert_eq!(error.kind(), ErrorKind::Socket);
    assert_eq!(error.raw_os_error(), Some(Errno::EADDRINUSE as i32));
    assert_eq!(error.stage(), Some(Stage::Bind));
    assert_eq!(error.port(), Some(33000));
    let endpoint = error.endpoint().expect("a member failed");
    assert_eq!(endpoint.netns(), w.child.id());
    assert_eq!((endpoint.addr(), endpoint.protocol()), (V4, Tcp));
    let source = std::error::Error::source(&error).expect("the errno");
    let source = source
        .downcast_ref::<std::io::Error>()
        .expect("an I/O error");
    assert_eq!(source.kind(), IoErrorKind::AddrInUse);

    assert_eq!(sockets(&w.executor, &w.host, Tcp), []);
    assert_eq!(w.ports.leased(), []);
    drop(_rival);
    w.assert_empty();
}

#[test]
fn dropped_lease_leaves_nothing_in_any_namespace() {
    let w = World::new();
    for protocol in [Tcp, Udp] {
        let lease = w.both(protocol, Ports::Exact(33000)).unwrap();
        assert_eq!(taken(&w.executor, &w.child, protocol).len(), 1);
        assert_eq!(w.ports.leased().len(), 2);
        drop(lease);
        w.assert_empty();
    }
}

/// The situation of moby #53153 is the second of these three.
#[test]
fn port_in_use_in_any_namespace_moves_on_to_the_next() {
    let w = World::new();
    let _child = w.rival(&w.child, 33000);
    let _host = w.rival(&w.host, 33001);
    let _both = (w.rival(&w.host, 33002), w.rival(&w.child, 33002));
    let lease = w.both(Tcp, Ports::Range(33000..=33003)).unwrap();
    assert_eq!(lease.port(), 33003);
    let ours = [SocketAddr::new(V4, 33003)];
    let seen = taken(&w.executor, &w.host, Tcp);
    assert_eq!(seen.len(), 3);
    assert!(seen.contains(&ours[0]));
}

#[test]
fn mute_rival_with_reuseaddr_cannot_listen_once_the_port_is_leased() {
    let w = World::new();
    let mute = Rival {
        reuse: true,
        mute: true,
        ..Rival::default()
    };
    let bound = mute.take(&w.executor, &w.host, Tcp, V4, 33000).unwrap();
    let lease = w.host(Tcp, V4, Ports::Exact(33000)).unwrap();
    let late = nix::sys::socket::listen(&bound, nix::sys::socket::Backlog::MAXALLOWABLE);
    assert_eq!(late, Err(Errno::EADDRINUSE));
    drop(lease);
}

#[test]
fn rival_that_listens_with_reuseaddr_is_seen() {
    let w = World::new();
    let listening = Rival {
        reuse: true,
        ..Rival::default()
    };
    let _rival = listening
        .take(&w.executor, &w.host, Tcp, V4, 33000)
        .unwrap();
    let error = refused(w.host(Tcp, V4, Ports::Exact(33000)));
    assert_eq!(error.raw_os_error(), Some(Errno::EADDRINUSE as i32));
}

#[test]
fn datagrams_cannot_be_stolen_with_reuseaddr() {
    let w = World::new();
    let lease = w.host(Udp, V4, Ports::Exact(33000)).unwrap();
    let thief = Rival {
        reuse: true,
        ..Rival::default()
    };
    for addr in [V4, V4_ANY] {
        let theft = thief.take(&w.executor, &w.host, Udp, addr, 33000);
        assert_eq!(theft.err(), Some(Errno::EADDRINUSE));
    }
    drop(lease);
    // The same thief, had the victim set it too.
    let _victim = thief.take(&w.executor, &w.host, Udp, V4, 33000).unwrap();
    thief.take(&w.executor, &w.host, Udp, V4, 33000).unwrap();
}

// Errors that end the walk, and those that do not

#[test]
fn missing_address_is_tried_exactly_once() {
    let w = World::new();
    let absent = IpAddr::from([192, 0, 2, 1]);
    for protocol in [Tcp, Udp] {
        let error = refused(w.host(protocol, absent, Ports::Range(33000..=33099)));
        assert_eq!(error.kind(), ErrorKind::Socket);
        assert_eq!(error.stage(), Some(Stage::Bind));
        assert_eq!(error.raw_os_error(), Some(Errno::EADDRNOTAVAIL as i32));
        assert_eq!(error.counts().tried, 1);
    }
    w.assert_empty();
}

#[test]
fn failure_in_the_second_namespace_frees_the_first() {
    let w = World::new();
    let request = w.ports.request(Udp).on(&w.host, [V4_ANY]);
    let request = request.on(&w.child, [IpAddr::from([192, 0, 2, 1])]);
    let error = refused(request.ports(Ports::Range(33000..=33099)).acquire());
    assert_eq!(error.endpoint().map(|e| e.netns()), Some(w.child.id()));
    assert_eq!(error.counts().tried, 1);
    w.assert_empty();
}

#[test]
fn kernel_without_sctp_is_a_typed_error_and_one_with_it_sends_all_streams() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let w = World::new();
    let outcome = w.host(Protocol::Sctp, V4, Ports::Range(33000..=33099));
    let probe = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Sctp,
    );
    match probe {
        Ok(_) => {
            let lease = outcome.unwrap();
            assert_eq!(lease.port(), 33000);
            assert_eq!(lease.members()[0].gate(), GateState::Dropping);
            lease.activate().unwrap();
            drop(lease);
            w.host(Protocol::Sctp, V4, Ports::Exact(33000)).unwrap();
        }
        Err(errno) => {
            assert_eq!(errno, Errno::EPROTONOSUPPORT);
            let error = refused(outcome);
            assert_eq!(error.kind(), ErrorKind::Socket);
            assert_eq!(error.stage(), Some(Stage::Socket));
            assert_eq!(error.raw_os_error(), Some(Errno::EPROTONOSUPPORT as i32));
            assert_eq!(error.counts().tried, 0);
            assert!(error.to_string().contains("sctp"), "{error}");
        }
    }
    w.assert_empty();
}

// Budgets

#[test]
fn exhausted_range_says_what_became_of_its_ports() {
    let w = World::new();
    let _leased = w.host(Tcp, V4, Ports::Exact(33001)).unwrap();
    let _rivals = [33000, 33002, 33003].map(|port| w.rival(&w.host, port));
    let error = refused(w.host(Tcp, V4, Ports::Range(33000..=33003)));
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    let counts = error.counts();
    assert_eq!((counts.tried, counts.leased), (3, 1));
    assert_eq!((counts.reserved, counts.denied), (0, 0));
    assert_eq!(error.raw_os_error(), Some(Errno::EADDRINUSE as i32));
    assert_eq!(error.endpoint().map(|e| e.netns()), Some(w.host.id()));
    let source = std::error::Error::source(&error).expect("the last failure");
    assert!(source.is::<Error>());
    assert!(error.to_string().contains("33000-33003"), "{error}");
}

#[test]
fn number_of_tries_bounds_the_walk() {
    let w = World::new();
    let _rivals = [33000, 33001].map(|port| w.rival(&w.host, port));
    let request = |tries| {
        let request = w.ports.request(Tcp).on(&w.host, [V4]);
        let request = request.ports(Ports::Range(33000..=33009));
        request.budget(Budget::Tries(tries)).acquire()
    };
    let error = refused(request(2));
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert_eq!(error.counts().tried, 2);
    assert_eq!(request(3).unwrap().port(), 33002);
}

#[test]
fn laps_find_a_port_that_is_freed_meanwhile() {
    let w = World::new();
    let request = |laps| {
        let request = w.ports.request(Tcp).on(&w.host, [V4]);
        let pause = Duration::from_millis(1);
        let request = request.ports(Ports::Range(33000..=33001));
        request.budget(Budget::Laps { laps, pause }).acquire()
    };
    let rivals = [33000, 33001].map(|port| w.rival(&w.host, port));
    assert_eq!(refused(request(3)).counts().tried, 6);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| request(u32::MAX));
        // Dropped while the walk goes round, or before: both will do.
        drop(rivals);
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn deadline_ends_the_laps() {
    let w = World::new();
    let _rival = w.rival(&w.host, 33000);
    let end = Instant::now() + Duration::from_millis(50);
    let request = w.ports.request(Tcp).on(&w.host, [V4]);
    let request = request.ports(Ports::Range(33000..=33000));
    let error = refused(request.budget(Budget::Deadline(end)).acquire());
    assert!(Instant::now() >= end);
    assert_eq!(error.kind(), ErrorKind::Deadline);
    assert!(error.counts().tried >= 2, "{error}");
    assert_eq!(error.raw_os_error(), Some(Errno::EADDRINUSE as i32));
}

#[test]
fn exact_port_is_tried_once_or_for_a_while() {
    let w = World::new();
    let rival = w.rival(&w.child, 33000);
    let error = refused(w.both(Tcp, Ports::Exact(33000)));
    assert_eq!(error.counts().tried, 1);

    let request = |time| {
        let request = w.ports.request(Tcp).on(&w.host, [V4]).on(&w.child, [V4]);
        request.ports(Ports::Exact(33000)).retry_for(time).acquire()
    };
    let error = refused(request(Duration::from_millis(30)));
    assert_eq!(error.kind(), ErrorKind::Socket);
    assert!(error.counts().tried >= 2, "{error}");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| request(Duration::from_secs(3600)));
        drop(rival);
        assert_eq!(waiting.join().unwrap().unwrap().port(), 33000);
    });
}

#[test]
fn retry_waits_for_another_lease_to_end() {
    let w = World::new();
    let first = w.both(Tcp, Ports::Exact(33000)).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let request = w.ports.request(Tcp).on(&w.host, [V4]);
            let request = request.ports(Ports::Exact(33000));
            request.retry_for(Duration::from_secs(3600)).acquire()
        });
        drop(first);
        waiting.join().unwrap().unwrap();
    });
}

// The table

#[test]
fn second_exact_request_names_address_and_port() {
    let w = World::new();
    let lease = w.both(Tcp, Ports::Exact(33000)).unwrap();
    let error = refused(w.host(Tcp, V4_ANY, Ports::Exact(33000)));
    assert_eq!(error.kind(), ErrorKind::AlreadyLeased);
    assert_eq!(error.port(), Some(33000));
    // Not the one asked for, but the one in the way.
    assert_eq!(error.endpoint().map(|e| e.addr()), Some(V4));
    assert_eq!(error.counts().tried, 0);
    let text = error.to_string();
    assert!(
        text.contains("33000") && text.contains("127.0.0.1"),
        "{text}"
    );
    drop(lease);
    w.host(Tcp, V4_ANY, Ports::Exact(33000)).unwrap();
}

#[test]
fn tcp_says_nothing_of_udp() {
    let w = World::new();
    let _tcp = w.both(Tcp, Ports::Exact(33000)).unwrap();
    let _udp = w.both(Udp, Ports::Exact(33000)).unwrap();
}

#[test]
fn wildcard_and_specific_address_exclude_each_other_in_the_kernel_too() {
    let w = World::new();
    for (theirs, ours) in [(V4, V4_ANY), (V4_ANY, V4), (V6, V6_ANY), (V6_ANY, V6)] {
        for protocol in [Tcp, Udp] {
            let _rival = rival(&w.executor, &w.host, protocol, theirs, 33000);
            let error = refused(w.host(protocol, ours, Ports::Exact(33000)));
            assert_eq!(error.raw_os_error(), Some(Errno::EADDRINUSE as i32));
        }
    }
}

#[test]
fn families_are_independent_and_a_dual_stack_rival_has_both() {
    let w = World::new();
    let v4 = w.host(Tcp, V4_ANY, Ports::Exact(33000)).unwrap();
    let v6 = w.host(Tcp, V6_ANY, Ports::Exact(33000)).unwrap();
    drop((v4, v6));
    let both = Rival {
        dual_stack: true,
        ..Rival::default()
    };
    let _rival = both.take(&w.executor, &w.host, Tcp, V6_ANY, 33000).unwrap();
    for addr in [V4, V4_ANY, V6, V6_ANY] {
        let error = refused(w.host(Tcp, addr, Ports::Exact(33000)));
        assert_eq!(
            error.raw_os_error(),
            Some(Errno::EADDRINUSE as i32),
            "{addr}"
        );
    }
}

#[test]
fn mapped_address_is_the_ipv4_address_it_maps() {
    let w = World::new();
    let mapped = IpAddr::from(Ipv6Addr::from([0, 0, 0, 0, 0, 0xffff, 0x7f00, 1]));
    let lease = w.host(Tcp, mapped, Ports::Exact(33000)).unwrap();
    assert_eq!(lease.members()[0].local_addr(), SocketAddr::new(V4, 33000));
    let error = refused(w.host(Tcp, V4, Ports::Exact(33000)));
    assert_eq!(error.kind(), ErrorKind::AlreadyLeased);
}

#[test]
fn cursor_goes_on_from_the_last_lease_and_no_release_moves_it() {
    let w = World::new();
    let next = |range| w.host(Tcp, V4, Ports::Range(range)).unwrap();
    assert_eq!(next(33000..=33003).port(), 33000);
    let kept = next(33000..=33003);
    assert_eq!(kept.port(), 33001);
    assert_eq!(next(33000..=33003).port(), 33002);
    // Another range has a cursor of its own.
    assert_eq!(next(33000..=33004).port(), 33000);
    assert_eq!(next(33000..=33003).port(), 33003);
    assert_eq!(next(33000..=33003).port(), 33000);
    assert_eq!(next(33000..=33003).port(), 33002, "33001 is leased");
    drop(kept);
    assert_eq!(next(33000..=33003).port(), 33003);
}

#[test]
fn releasing_one_of_two_addresses_leaves_the_other_leased() {
    let w = World::new();
    let mut lease = w.both(Tcp, Ports::Exact(33000)).unwrap();
    assert!(lease.release(w.host.id(), V4));
    assert_eq!(sockets(&w.executor, &w.host, Tcp), []);
    assert_eq!(lease.members().len(), 1);
    let newer = w.host(Tcp, V4, Ports::Exact(33000)).unwrap();
    let error = refused(w.both(Tcp, Ports::Exact(33000)));
    assert_eq!(error.kind(), ErrorKind::AlreadyLeased);

    // What was released twice, or is released by the drop, is not the newer one.
    assert!(!lease.release(w.host.id(), V4));
    let (members, mut hold) = lease.split();
    assert!(!hold.release(w.host.id(), V4));
    drop((members, hold));
    let left = w.ports.leased();
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].netns, left[0].port), (w.host.id(), 33000));
    drop(newer);
    w.assert_empty();
}

#[test]
fn hold_outlives_the_sockets_it_was_split_from() {
    let w = World::new();
    let (members, hold) = w.both(Tcp, Ports::Exact(33000)).unwrap().split();
    drop(members);
    assert_eq!(sockets(&w.executor, &w.host, Tcp), []);
    let error = refused(w.both(Tcp, Ports::Exact(33000)));
    assert_eq!(error.kind(), ErrorKind::AlreadyLeased);
    drop(hold);
    w.both(Tcp, Ports::Exact(33000)).unwrap();
}

#[test]
fn revoked_lease_owns_nothing_though_a_copy_of_its_socket_lives() {
    let w = World::new();
    let lease = w.host(Tcp, V4, Ports::Exact(33000)).unwrap();
    let copy = lease.members()[0].try_clone().unwrap();
    drop(lease);
    let error = refused(w.host(Tcp, V4, Ports::Exact(33000)));
    assert_eq!(
        error.raw_os_error(),
        Some(Errno::EADDRINUSE as i32),
        "a copy owns it"
    );
    drop(copy);

    let lease = w.host(Tcp, V4, Ports::Exact(33000)).unwrap();
    let copy = lease.members()[0].try_clone().unwrap();
    lease.revoke();
    let newer = w.host(Tcp, V4, Ports::Exact(33000)).unwrap();
    let listen = nix::sys::socket::listen(&copy, nix::sys::socket::Backlog::MAXALLOWABLE);
    assert_eq!(listen, Err(Errno::EADDRINUSE));
    drop(newer);
}

// Dynamic ranges

/// What std reads first are 32 bytes, and these files are read only once.
#[test]
fn long_list_of_reserved_ports_is_read_whole() {
    let w = World::new();
    let even = (40000..40020).step_by(2).map(|port: u16| port.to_string());
    let even = even.collect::<Vec<_>>().join(",");
    let sysctl = [
        ("ip_local_port_range", "40000 40019"),
        ("ip_local_reserved_ports", &even),
    ];
    for (name, value) in sysctl {
        set_sysctl(&w.executor, &w.host, &format!("net/ipv4/{name}"), value);
    }
    let lease = || w.host(Tcp, V4, Ports::Dynamic { of: &w.host });
    let leases: Vec<_> = (0..10).map(|_| lease().unwrap()).collect();
    assert!(leases.iter().all(|lease| lease.port() % 2 == 1));
    assert_eq!(refused(lease()).counts().reserved, 10);
}

#[test]
fn dynamic_range_is_that_of_the_named_namespace_less_what_any_member_reserves() {
    let w = World::new();
    let set = |netns, name, value| {
        set_sysctl(&w.executor, netns, &format!("net/ipv4/{name}"), value);
    };
    set(&w.host, "ip_local_port_range", "40000 40004");
    set(&w.host, "ip_local_reserved_ports", "40000");
    set(&w.child, "ip_local_port_range", "50000 50004");
    set(&w.child, "ip_local_reserved_ports", "40001-40002,50000");
    let lease = w.both(Tcp, Ports::Dynamic { of: &w.host }).unwrap();
    assert_eq!(lease.port(), 40003);
    let lease = w.both(Tcp, Ports::Dynamic { of: &w.child }).unwrap();
    assert_eq!(lease.port(), 50001);
    drop(lease);

    // Nothing is remembered.
    set(&w.child, "ip_local_reserved_ports", "40000-40003");
    let next = w.both(Tcp, Ports::Dynamic { of: &w.host }).unwrap();
    assert_eq!(next.port(), 40004);
    set(&w.child, "ip_local_reserved_ports", "40000-40004");
    let error = refused(w.both(Tcp, Ports::Dynamic { of: &w.host }));
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert_eq!((error.counts().reserved, error.counts().tried), (5, 0));
    set(&w.host, "ip_local_port_range", "41000 41001");
    set(&w.host, "ip_local_reserved_ports", "");
    let lease = w.both(Tcp, Ports::Dynamic { of: &w.host }).unwrap();
    assert_eq!(lease.port(), 41000);
}

#[test]
fn dynamic_range_may_be_of_a_namespace_that_is_no_member() {
    let w = World::new();
    set_sysctl(
        &w.executor,
        &w.child,
        "net/ipv4/ip_local_port_range",
        "40000 40004",
    );
    let lease = w.host(Tcp, V4, Ports::Dynamic { of: &w.child }).unwrap();
    assert_eq!(lease.port(), 40000);
}

#[test]
fn explicit_port_is_honoured_though_reserved() {
    let w = World::new();
    set_sysctl(
        &w.executor,
        &w.host,
        "net/ipv4/ip_local_reserved_ports",
        "33000-33001",
    );
    assert_eq!(w.both(Tcp, Ports::Exact(33000)).unwrap().port(), 33000);
    let lease = w.both(Tcp, Ports::Range(33000..=33009)).unwrap();
    assert_eq!(lease.port(), 33000);
}

#[test]
fn nearly_full_range_yields_its_last_port_inside_and_outside_of_the_kernels_own() {
    let w = World::new();
    set_sysctl(
        &w.executor,
        &w.child,
        "net/ipv4/ip_local_port_range",
        "40000 40499",
    );
    for (low, protocol) in [(40000, Tcp), (40000, Udp), (20000, Tcp), (39900, Udp)] {
        let free = low + 333;
        let _rivals: Vec<_> = (low..low + 500)
            .filter(|port| *port != free)
            .map(|port| rival(&w.executor, &w.child, protocol, V4, port))
            .collect();
        let lease = w.both(protocol, Ports::Range(low..=low + 499)).unwrap();
        assert_eq!(lease.port(), free);
        let error = refused(w.both(protocol, Ports::Range(low..=low + 499)));
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        assert_eq!((error.counts().tried, error.counts().leased), (499, 1));
    }
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
    // Whoever has a copy of the descriptor can spoil it: a socket that is
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

// Requests

#[test]
fn senseless_requests_are_refused_before_any_system_call() {
    let w = World::new();
    let sane = || {
        w.ports
            .request(Tcp)
            .on(&w.host, [V4])
            .ports(Ports::Exact(33000))
    };
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    let inverted = 33001..=33000;
    let laps = Budget::Laps {
        laps: 0,
        pause: Duration::ZERO,
    };
    let cases = [
        (
            "no members",
            w.ports.request(Tcp).ports(Ports::Exact(33000)),
        ),
        ("no address", sane().on(&w.child, [])),
        ("no ports", w.ports.request(Tcp).on(&w.host, [V4])),
        ("port 0", sane().ports(Ports::Exact(0))),
        ("port 0", sane().ports(Ports::Range(0..=10))),
        ("inverted", sane().ports(Ports::Range(inverted))),
        ("twice", sane().on(&w.host, [V4])),
        ("overlap", sane().on(&w.host, [V4_ANY])),
        ("overlap", sane().on(&w.child, [V6_ANY, V6])),
        ("budget", sane().budget(Budget::Tries(3))),
        (
            "retry_for",
            sane().ports(Ports::Range(1..=2)).retry_for(Duration::MAX),
        ),
        (
            "no try",
            sane().ports(Ports::Range(1..=2)).budget(Budget::Tries(0)),
        ),
        ("no try", sane().ports(Ports::Range(1..=2)).budget(laps)),
        (
            "udp",
            w.ports
                .request(Udp)
                .on(&w.host, [V4])
                .ports(Ports::Exact(1))
                .gate(Gate::Refuse),
        ),
    ];
    for (word, request) in cases {
        let error = refused(request.acquire());
        assert_eq!(error.kind(), ErrorKind::Invalid, "{word}: {error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
        assert_eq!(error.raw_os_error(), None);
    }
    // Neither of these is senseless.
    drop(sane().on(&w.host, [V6_ANY]).acquire().unwrap());
    drop(sane().on(&w.child, [V4_ANY]).acquire().unwrap());
}

#[test]
fn lease_can_be_acquired_and_waited_for_from_a_job_in_a_member() {
    let w = World::new();
    let first = w.both(Tcp, Ports::Exact(33000)).unwrap();
    let w = &w;
    thread::scope(|scope| {
        let job = || {
            let request = w.ports.request(Tcp).on(&w.host, [V4]).on(&w.child, [V4]);
            let request = request.ports(Ports::Exact(33000));
            request.retry_for(Duration::from_secs(3600)).acquire()
        };
        let waiting = scope.spawn(move || w.executor.run(&w.child, job));
        // While it waits its namespace is served, though it has but one worker.
        let request = w.ports.request(Udp).on(&w.child, [V4]);
        request.ports(Ports::Exact(33000)).acquire().unwrap();
        drop(first);
        let lease = waiting.join().unwrap().unwrap().unwrap();
        assert_eq!(lease.members().len(), 2);
    });
}

#[test]
fn lease_can_be_awaited_on_any_runtime() {
    let w = World::new();
    let request = || {
        let request = w.ports.request(Tcp).on(&w.host, [V4]).on(&w.child, [V4]);
        request.ports(Ports::Exact(33000))
    };
    let lease = block_on(request().acquire_async()).unwrap();
    assert_eq!(lease.port(), 33000);
    let error = refused(block_on(request().acquire_async()));
    assert_eq!(error.kind(), ErrorKind::AlreadyLeased);
    // And it may have to wait.
    thread::scope(|scope| {
        let retrying = request().retry_for(Duration::from_secs(3600));
        let waiting = scope.spawn(|| block_on(retrying.acquire_async()));
        drop(lease);
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn dropped_future_gives_everything_back() {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Waker};
    let w = World::new();
    let blocker = w.rival(&w.child, 33000);
    let request = || {
        let request = w.ports.request(Tcp).on(&w.host, [V4]).on(&w.child, [V4]);
        request
            .ports(Ports::Exact(33000))
            .retry_for(Duration::from_secs(3600))
    };
    let mut future = request().acquire_async();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut future).poll(&mut cx).is_pending());
    drop(future);
    drop(blocker);
    // Whether or not the first one had the port for a moment, it is free soon.
    block_on(request().acquire_async()).unwrap();
    w.assert_empty();

    // One that was never polled has done nothing.
    drop(request().acquire_async());
}

#[test]
fn cancelled_request_ends_and_gives_everything_back() {
    let w = World::new();
    let rival = w.rival(&w.child, 33000);
    let cancel = Cancel::new();
    let request = || {
        let request = w.ports.request(Tcp).on(&w.host, [V4]).on(&w.child, [V4]);
        request
            .ports(Ports::Exact(33000))
            .retry_for(Duration::from_secs(3600))
            .cancel(&cancel)
    };
    thread::scope(|scope| {
        let blocked = scope.spawn(|| request().acquire());
        let awaited = scope.spawn(|| block_on(request().acquire_async()));
        cancel.cancel();
        for waiting in [blocked, awaited] {
            let error = refused(waiting.join().unwrap());
            assert_eq!(error.kind(), ErrorKind::Cancelled);
        }
    });
    drop(rival);
    w.assert_empty();
}

#[test]
fn deleted_namespace_takes_its_members_along_and_no_other() {
    let w = World::new();
    let temp = TempNetns::new();
    temp.set_loopback_up().unwrap();
    let request = || {
        w.ports
            .request(Tcp)
            .on(&w.host, [V4])
            .ports(Ports::Exact(33000))
    };
    let lease = request().on(&temp, [V4]).acquire().unwrap();
    let id = temp.id();
    temp.delete();
    // The sockets hold on to it, and the handle is gone.
    assert_eq!(lease.members()[1].endpoint().netns(), id);
    lease.activate().unwrap();
    assert_eq!(
        refused(request().acquire()).kind(),
        ErrorKind::AlreadyLeased
    );
    drop(lease);
    request().acquire().unwrap();
}
