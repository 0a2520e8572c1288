//! Leases on addresses of devices, and under a limit on open files.
//!
//! Apart from the others because these start processes, see `ports/main.rs`.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use netns_exec::ports::{Budget, ErrorKind, Ports, Protocol, Stage};
use netns_exec_tests::ports::{World, refused, rival, taken};
use netns_exec_tests::{Alone, Over, TempNetns, alone, ip};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{getsockopt, sockopt};

use Protocol::{Tcp, Udp};

netns_exec::rootless::test_harness!(own_net);

/// A namespace with two ends of a cable in it.
fn with_cable() -> TempNetns {
    let netns = TempNetns::new();
    netns.set_loopback_up().unwrap();
    let name = netns.name();
    ip(&[
        "-n", name, "link", "add", "left", "type", "veth", "peer", "right",
    ]);
    for end in ["left", "right"] {
        ip(&["-n", name, "link", "set", end, "up"]);
    }
    netns
}

#[test]
fn address_is_waited_for_while_it_is_tentative() {
    let w = World::new();
    let netns = with_cable();
    let mut addr = 0;
    // A fresh address each time: its detection takes a second or two.
    let mut request = || {
        addr += 1;
        let text = format!("fd00::{addr}");
        ip(&[
            "-n",
            netns.name(),
            "addr",
            "add",
            &format!("{text}/64"),
            "dev",
            "left",
        ]);
        let request = w.ports.request(Tcp).on(&netns, [text.parse().unwrap()]);
        request.ports(Ports::Exact(33000))
    };
    let error = refused(request().acquire());
    assert_eq!(error.raw_os_error(), Some(Errno::EADDRNOTAVAIL as i32));
    assert_eq!(error.counts().tried, 1);

    let waits = Arc::new(AtomicUsize::new(0));
    let count = waits.clone();
    let request_that_waits = request()
        .retry_for(Duration::from_secs(60))
        .on_wait(move |error| {
            assert_eq!(error.raw_os_error(), Some(Errno::EADDRNOTAVAIL as i32));
            count.fetch_add(1, Ordering::Relaxed);
        });
    request_that_waits.acquire().unwrap();
    assert!(waits.load(Ordering::Relaxed) > 0);

    let budget = Budget::Laps {
        laps: u32::MAX,
        pause: Duration::from_millis(10),
    };
    let request = request().ports(Ports::Range(33000..=33099)).budget(budget);
    assert_eq!(request.acquire().unwrap().port(), 33000);
}

#[test]
fn link_local_address_is_that_of_the_device_named() {
    let w = World::new();
    let netns = with_cable();
    let name = netns.name();
    for end in ["left", "right"] {
        ip(&[
            "-n",
            name,
            "addr",
            "add",
            "fe80::77/64",
            "dev",
            end,
            "nodad",
        ]);
    }
    let link_local: IpAddr = "fe80::77".parse().unwrap();
    let request = |device| {
        let request = w.ports.request(Udp).on_device(&netns, device, [link_local]);
        request.ports(Ports::Range(33000..=33009))
    };
    let left = request("left").acquire().unwrap();
    let right = request("right").acquire().unwrap();
    for (lease, device) in [(left, "left"), (right, "right")] {
        let bound = getsockopt(&lease.members()[0], sockopt::BindToDevice).unwrap();
        assert_eq!(bound.to_string_lossy(), device);
    }
    let error = refused(request("absent").acquire());
    assert_eq!(error.stage(), Some(Stage::Option));
    assert_eq!(error.raw_os_error(), Some(Errno::ENODEV as i32));
    for senseless in ["", "a/b", "much-too-long-a-name", "a b"] {
        let error = refused(request(senseless).acquire());
        assert_eq!(error.kind(), ErrorKind::Invalid, "{senseless}");
    }
}

#[test]
fn walk_over_many_addresses_leaves_descriptors_to_the_rest_of_the_process() {
    alone!(Alone::AsIs);
    let w = World::new();
    let addrs: Vec<IpAddr> = (1..=30)
        .map(|n| Ipv4Addr::new(127, 0, 1, n).into())
        .collect();
    // Each port is in use at another address, so that each costs many sockets.
    let busy = |port: u16| addrs[usize::from(port) % addrs.len()];
    let _busy: Vec<_> = (21000..21060)
        .map(|port| rival(&w.executor, &w.host, Tcp, busy(port), port))
        .collect();
    setrlimit(Resource::RLIMIT_NOFILE, 250, 250).unwrap();
    let over = Over::default();
    let refusals = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let _over = over.comes_with_drop();
        // Wants few of them, again and again.
        scope.spawn(|| {
            while !over.has_come() {
                let open = |_| File::open("/dev/null");
                let files: Result<Vec<File>, _> = (0..40).map(open).collect();
                refusals.lock().unwrap().extend(files.err());
            }
        });
        for _ in 0..10 {
            let request = w.ports.request(Tcp).on(&w.host, addrs.iter().copied());
            let lease = request.ports(Ports::Range(21000..=21060)).acquire();
            assert_eq!(lease.unwrap().port(), 21060);
        }
    });
    assert_eq!(refusals.into_inner().unwrap().len(), 0);
    assert_eq!(taken(&w.executor, &w.host, Udp).len(), 0);
}
