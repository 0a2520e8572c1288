//! Leases against rivals, and against each other.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;

use netns_exec::ports::{Allocator, ErrorKind, Gate, Lease, Ports, Protocol, Stage};
use netns_exec::{Executor, Netns};
use netns_exec_tests::Over;
use netns_exec_tests::ports::{Rival, V4, V4_ANY, V6, netns, rival, taken};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use Protocol::{Tcp, Udp};

const EADDRINUSE: Option<i32> = Some(nix::errno::Errno::EADDRINUSE as i32);

/// Rivals bind and listen on the very port, with `SO_REUSEADDR` as servers
/// set it, so that we lose at bind at times and at listen at others. Goes on
/// until both were seen, and until we have won, too.
#[test]
fn rival_is_noticed_at_bind_and_at_listen() {
    let executor = Executor::new().unwrap();
    // Theirs, because a rival keeps its worker busy throughout.
    let theirs = Executor::new().unwrap();
    let (host, child) = (netns(), netns());
    let ports = Allocator::new(&executor);
    let addr = SocketAddr::new(V4, 33000);
    let over = Over::default();
    let (mut won, mut at_bind, mut at_listen) = (0, 0, 0);
    thread::scope(|scope| {
        let _over = over.comes_with_drop();
        for netns in [&host, &child] {
            scope.spawn(|| {
                let rival = Rival {
                    reuse: true,
                    ..Rival::default()
                };
                theirs.run(netns, || {
                    while !over.has_come() {
                        drop(rival.take_here(Tcp, addr));
                    }
                })
            });
        }
        for _ in 0..200_000 {
            let request = ports.request(Tcp).on(&host, [V4]).on(&child, [V4]);
            let request = request.gate(Gate::Queue).ports(Ports::Exact(33000));
            match request.acquire() {
                Ok(_) => won += 1,
                Err(error) if error.kind() != ErrorKind::Socket => break,
                Err(error) if error.raw_os_error() != EADDRINUSE => break,
                Err(error) => match error.stage() {
                    Some(Stage::Bind) => at_bind += 1,
                    Some(Stage::Listen) => at_listen += 1,
                    _ => break,
                },
            }
            if won > 0 && at_bind > 0 && at_listen > 0 {
                break;
            }
        }
    });
    assert!(
        won > 0 && at_bind > 0 && at_listen > 0,
        "won {won}, lost {at_bind} at bind and {at_listen} at listen"
    );
    assert_eq!(taken(&executor, &host, Tcp), BTreeSet::new());
    assert_eq!(taken(&executor, &child, Tcp), BTreeSet::new());
    assert_eq!(ports.leased(), []);
}

/// Two allocators know nothing of each other, so only the kernel decides
/// between them.
#[test]
fn two_allocators_never_lease_one_port() {
    let executor = Executor::new().unwrap();
    let (host, child) = (netns(), netns());
    let start = Barrier::new(4);
    let acquire = || {
        let ports = Allocator::new(&executor);
        start.wait();
        let lease = |_| {
            let request = ports.request(Tcp).on(&host, [V4]).on(&child, [V4]);
            request.ports(Ports::Range(33000..=33099)).acquire()
        };
        (0..25).map(lease).collect::<Result<Vec<_>, _>>().unwrap()
    };
    let leases: Vec<Lease> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(acquire)).collect();
        let leases = threads.into_iter().map(|thread| thread.join().unwrap());
        leases.flatten().collect()
    });
    let distinct: BTreeSet<u16> = leases.iter().map(Lease::port).collect();
    assert_eq!(distinct.len(), 100);
}

/// moby #52903: ten requests at once, and each port is busy half of the time.
#[test]
fn requests_at_once_all_find_a_port_of_their_own_in_a_half_full_range() {
    let executor = Executor::new().unwrap();
    let (host, child) = (netns(), netns());
    let ports = Allocator::new(&executor);
    let _busy: Vec<_> = (33000..33100)
        .step_by(2)
        .map(|port| rival(&executor, &host, Tcp, V4_ANY, port))
        .collect();
    for _ in 0..10 {
        let start = Barrier::new(10);
        let acquire = || {
            start.wait();
            let request = ports.request(Tcp).on(&child, [V4, V6]).on(&host, [V4_ANY]);
            request.ports(Ports::Range(33000..=33099)).acquire()
        };
        let leases: Vec<Lease> = thread::scope(|scope| {
            let threads: Vec<_> = (0..10).map(|_| scope.spawn(acquire)).collect();
            let leases = threads.into_iter().map(|thread| thread.join().unwrap());
            leases.collect::<Result<_, _>>().unwrap()
        });
        let distinct: BTreeSet<u16> = leases.iter().map(Lease::port).collect();
        assert_eq!(distinct.len(), 10);
        assert!(distinct.iter().all(|port| port % 2 == 1));
    }
}

#[test]
fn table_equals_the_kernels_list_after_many_leases_from_many_threads() {
    // A thousand leases of two sockets each are kept.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let executor = Executor::new().unwrap();
    let ports = Allocator::new(&executor);
    let (first, second) = (netns(), netns());
    let rivals: Vec<_> = [(&first, 20_000), (&second, 20_001), (&first, 20_500)]
        .into_iter()
        .map(|(netns, port)| (netns.id(), port, rival(&executor, netns, Tcp, V4, port)))
        .collect();
    let lease_500 = |thread: usize| {
        let mut kept = Vec::new();
        for n in 0..500 {
            let protocol = if (thread + n).is_multiple_of(3) {
                Udp
            } else {
                Tcp
            };
            let addr = if usize::is_multiple_of(n, 5) {
                V4_ANY
            } else {
                V4
            };
            let request = ports.request(protocol).on(&first, [addr]);
            let request = request.on(&second, [V4]);
            let request = request.ports(Ports::Range(20_000..=22_999));
            kept.push(request.acquire().unwrap());
            if !usize::is_multiple_of(n, 4) {
                kept.swap_remove((n * 7) % kept.len());
            }
        }
        kept
    };
    let leases: Vec<Lease> = thread::scope(|scope| {
        let lease_500 = &lease_500;
        let threads: Vec<_> = (0..8)
            .map(|thread| scope.spawn(move || lease_500(thread)))
            .collect();
        let leases = threads.into_iter().map(|thread| thread.join().unwrap());
        leases.flatten().collect()
    });
    assert_eq!(leases.len(), 8 * 125);

    let in_table = |netns: &Netns, protocol| -> BTreeSet<SocketAddr> {
        let leased = ports.leased().into_iter();
        leased
            .filter(|entry| (entry.netns, entry.protocol) == (netns.id(), protocol))
            .map(|entry| SocketAddr::new(entry.addr, entry.port))
            .collect()
    };
    for netns in [&first, &second] {
        for protocol in [Tcp, Udp] {
            let mut in_kernel = taken(&executor, netns, protocol);
            for (_, port, _) in rivals.iter().filter(|rival| rival.0 == netns.id()) {
                if protocol == Tcp {
                    assert!(in_kernel.remove(&SocketAddr::new(V4, *port)));
                }
            }
            assert_eq!(in_table(netns, protocol), in_kernel);
        }
    }
    drop(leases);
    assert_eq!(ports.leased(), []);
    assert_eq!(taken(&executor, &second, Udp), BTreeSet::new());
}
