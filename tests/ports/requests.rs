//! Requests: which make sense, from where they come, and how they are given up.

use std::thread;
use std::time::Duration;

use netns_exec::ports::{Budget, Cancel, ErrorKind, Gate, Ports, Protocol};
use netns_exec_tests::TempNetns;
use netns_exec_tests::ports::{V4, V4_ANY, V6, V6_ANY, World, refused};
use pollster::block_on;

use Protocol::{Tcp, Udp};

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
