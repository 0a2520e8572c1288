//! Leases that other programs, small budgets, and the kernel's rules get in the
//! way of.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use netns_exec::ports::{Allocator, Budget, Error, Gate, Lease, Ports, Protocol, Start};
use netns_exec_tests::ports::{Rival, TIME_WAIT, V4, World, rival, sockets};
use nix::errno::Errno;

use Protocol::{Tcp, Udp};

// Budgets

/// Asks until there is a lease, and at most `most` times.
fn persist(most: usize, ask: impl Fn() -> Result<Lease, Error>) -> Option<usize> {
    (1..=most).find(|_| ask().is_ok())
}

#[test]
fn small_budget_gets_past_ports_in_use_by_asking_again() {
    let w = World::new();
    let _busy: Vec<_> = (33000..33010).map(|port| w.rival(&w.host, port)).collect();
    let ask = |budget| {
        let request = w.ports.request(Tcp).on(&w.host, [V4]);
        let request = request.ports(Ports::Range(33000..=33019));
        request.budget(budget).acquire()
    };
    // Two requests of five tries see the ten that are taken.
    assert_eq!(persist(3, || ask(Budget::Tries(5))), Some(3));
    // Over all that were ever asked for, a walk is a walk.
    for _ in 0..3 {
        persist(5, || ask(Budget::Tries(3))).expect("ten of twenty are free");
    }
}

#[test]
fn short_deadline_gets_past_ports_in_use_by_asking_again() {
    let w = World::new();
    let _busy: Vec<_> = (21000..21400)
        .map(|port| rival(&w.executor, &w.host, Udp, V4, port))
        .collect();
    let ask = || {
        let request = w.ports.request(Udp).on(&w.host, [V4]);
        let deadline = Instant::now() + Duration::from_micros(150);
        let request = request.ports(Ports::Range(21000..=21449));
        request.budget(Budget::Deadline(deadline)).acquire()
    };
    // Each gets a little further, however slow the machine is today.
    persist(20_000, ask).expect("fifty ports are free");
}

#[test]
fn no_free_port_is_out_of_reach_of_any_of_several_allocators() {
    let w = World::new();
    let mut free = BTreeSet::from([33007, 33023, 33039]);
    let _busy: Vec<_> = (33000..33040)
        .filter(|port| !free.contains(port))
        .map(|port| w.rival(&w.host, port))
        .collect();
    let allocators: Vec<Allocator> = (0..4)
        .map(|_| Allocator::starting_at(&w.executor, Start::Beginning))
        .collect();
    let mut kept = Vec::new();
    // Forty ports, two a time: twenty requests see all of them.
    for round in 0..3 * 21 {
        let ports = &allocators[round % allocators.len()];
        for _ in 0..allocators.len() {
            let request = ports.request(Tcp).on(&w.host, [V4]);
            let request = request.ports(Ports::Range(33000..=33039));
            if let Ok(lease) = request.budget(Budget::Tries(2)).acquire() {
                assert!(free.remove(&lease.port()), "{lease:?}");
                kept.push(lease);
            }
        }
    }
    assert_eq!(free, BTreeSet::new());
}

// TIME_WAIT

/// Serves one connection on a leased port, closes it first, and gives the port
/// back: what is left is a connection in TIME_WAIT.
fn serve_and_give_back(w: &World, lease: Lease) {
    lease.activate().unwrap();
    let addr = lease.members()[0].local_addr();
    let (mut members, hold) = lease.split();
    let listener: TcpListener = OwnedFd::from(members.remove(0)).into();
    let mut client = w.connect(&w.host, addr).unwrap();
    drop(listener.accept().unwrap());
    drop((listener, hold));
    client.read_to_end(&mut Vec::new()).unwrap();
    drop(client);
    let seen = sockets(&w.executor, &w.host, Tcp);
    let waits = |seen: &netns_exec_tests::ports::Seen| seen.addr == addr && seen.state == TIME_WAIT;
    assert!(seen.iter().any(waits), "{seen:?}");
}

#[test]
fn port_that_served_behind_a_refusing_gate_can_be_leased_again_at_once() {
    let w = World::new();
    for (gate, port) in [(Gate::Refuse, 33000), (Gate::Queue, 33001)] {
        let ask = || {
            let request = w.ports.request(Tcp).on(&w.host, [V4]);
            request.ports(Ports::Exact(port)).gate(gate).acquire()
        };
        serve_and_give_back(&w, ask().unwrap());
        let request = w.ports.request(Tcp).on(&w.host, [V4]);
        drop(request.ports(Ports::Exact(port)).acquire().unwrap());
        // As std's TcpListener does.
        let reuse = Rival {
            reuse: true,
            ..Rival::default()
        };
        let rival = reuse.take(&w.executor, &w.host, Tcp, V4, port);
        rival.unwrap_or_else(|errno| panic!("{gate:?}: {errno}"));
    }
}

#[test]
fn activated_refusing_gate_still_lets_no_rival_in() {
    let w = World::new();
    let request = w.ports.request(Tcp).on(&w.host, [V4]).gate(Gate::Refuse);
    let lease = request.ports(Ports::Exact(33000)).acquire().unwrap();
    lease.activate().unwrap();
    for reuse in [false, true] {
        let rival = Rival {
            reuse,
            mute: true,
            ..Rival::default()
        };
        let taken = rival.take(&w.executor, &w.host, Tcp, V4, 33000);
        assert_eq!(taken.err(), Some(Errno::EADDRINUSE));
    }
    w.connect(&w.host, SocketAddr::new(V4, 33000)).unwrap();
}

#[test]
fn deadline_that_was_in_time_looks_at_a_port_and_one_that_was_late_at_none() {
    let w = World::new();
    let ask = |left| {
        let request = w.ports.request(Tcp).on(&w.host, [V4]);
        let request = request.ports(Ports::Range(33000..=33009));
        let deadline = Instant::now() + left;
        request.budget(Budget::Deadline(deadline)).acquire()
    };
    let late = ask(Duration::ZERO).expect_err("its time has passed");
    assert!(late.is_timed_out(), "{late}");
    assert_eq!(late.counts().tried, 0);
    // Over by the time that there is a socket: the worker has to be started.
    let _busy: Vec<_> = (33000..33009).map(|port| w.rival(&w.host, port)).collect();
    w.executor.retire(&w.host).unwrap();
    let short = || ask(Duration::from_micros(20));
    persist(1000, short).expect("each looks at one, and the tenth is free");
}
