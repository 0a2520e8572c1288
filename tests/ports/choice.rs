//! Which ports are there to choose from: the table of leases, dynamic ranges.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use netns_exec::ports::{ErrorKind, Ports, Protocol};
use netns_exec_tests::ports::{
    Rival, V4, V4_ANY, V6, V6_ANY, World, refused, rival, set_sysctl, sockets,
};
use nix::errno::Errno;

use Protocol::{Tcp, Udp};

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
