//! What a lease owns, what a walk for one meets, and how long it goes on.

use std::io::ErrorKind as IoErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::ports::{Budget, Error, ErrorKind, GateState, Ports, Protocol, Stage};
use netns_exec_tests::ports::{Rival, V4, V4_ANY, V6, V6_ANY, World, refused, sockets, taken};
use nix::errno::Errno;

use Protocol::{Tcp, Udp};

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
