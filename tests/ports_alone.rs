//! Leases of ports, in processes of their own: with other privileges, other
//! limits, or children.
//!
//! Apart from the others because these start processes: between fork and exec a
//! child has a copy of every socket, and so owns for a moment what a test beside
//! it has just given back.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use netns_exec::ports::{
    Allocator, ErrorKind, Fallback, Gate, GateState, Ports, Protocol, Stage, Start,
};
use netns_exec::{Executor, Netns};
use netns_exec_tests::ports::{V4, World, netns, refused, rival, taken};
use netns_exec_tests::{Alone, TempNetns, alone, is_cloexec, note};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};

use Protocol::{Tcp, Udp};

netns_exec::rootless::test_harness!(own_net);

#[test]
fn limit_on_open_files_is_fatal_and_leaves_nothing() {
    alone!(Alone::AsIs);
    let w = World::new();
    // Starts the workers, so that only sockets are wanting.
    drop(w.both(Tcp, Ports::Exact(33000)).unwrap());
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
    let mut files = Vec::new();
    for spare in 0..2 {
        // The library's own threads may close a file of theirs at any time, so
        // that the first try finds room; the room ends.
        let error = (0..64).find_map(|_| {
            while let Ok(file) = File::open("/dev/null") {
                files.push(file);
            }
            files.truncate(files.len() - spare);
            w.both(Tcp, Ports::Range(33000..=33099)).err()
        });
        let error = error.expect("there is no room for two sockets");
        assert_eq!(error.kind(), ErrorKind::Socket);
        assert_eq!(error.stage(), Some(Stage::Socket));
        assert_eq!(error.raw_os_error(), Some(Errno::EMFILE as i32));
        assert_eq!(error.counts().tried, 0);
    }
    // With two the walk goes on, though it would rather have had more.
    files.truncate(files.len() - 1);
    drop(w.both(Tcp, Ports::Range(33000..=33099)).unwrap());
    drop(files);
    w.assert_empty();
}

#[test]
fn low_ports_are_denied_to_an_ordinary_user_and_passed_over_in_a_range() {
    alone!(Alone::OrdinaryUser);
    let executor = Executor::new().unwrap();
    let ports = Allocator::starting_at(&executor, Start::Beginning);
    let here = Netns::current().unwrap();
    let request = |choice: Ports<'_>| {
        let request = ports
            .request(Udp)
            .on(&here, [IpAddr::from([127, 86, 1, 1])]);
        request.ports(choice).acquire()
    };
    let error = refused(request(Ports::Exact(1000)));
    assert_eq!(error.kind(), ErrorKind::Socket);
    assert_eq!(error.stage(), Some(Stage::Bind));
    assert_eq!(error.raw_os_error(), Some(Errno::EACCES as i32));
    assert!(
        error.to_string().contains("CAP_NET_BIND_SERVICE"),
        "{error}"
    );

    let error = refused(request(Ports::Range(1000..=1003)));
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert_eq!((error.counts().tried, error.counts().denied), (4, 4));

    let lease = request(Ports::Range(1022..=1024)).unwrap();
    assert_eq!(lease.port(), 1024);
}

#[test]
fn namespace_that_cannot_be_entered_is_named() {
    alone!(Alone::OrdinaryUser, TempNetns::new().name(), Stdio::null());
    let executor = Executor::new().unwrap();
    let ports = Allocator::new(&executor);
    let label = note().expect("the name of the namespace");
    let netns = Netns::open(&label).expect("opening takes no privilege");
    let here = Netns::current().unwrap();
    let request = ports
        .request(Udp)
        .on(&here, [IpAddr::from([127, 86, 1, 3])]);
    let request = request.on(&netns, [V4]).ports(Ports::Range(33000..=33009));
    let error = refused(request.acquire());
    assert_eq!(error.kind(), ErrorKind::Namespace);
    assert_eq!(error.raw_os_error(), Some(Errno::EPERM as i32));
    assert!(error.to_string().contains(&label), "{error}");
    let source = std::error::Error::source(&error).expect("the executor's error");
    assert!(source.is::<netns_exec::Error>());
    assert_eq!(ports.leased(), []);
}

/// The usual layout of a rootless daemon: root in a user namespace of its own,
/// in the host's network namespace, which it does not own, with children in
/// network namespaces that it does.
#[test]
fn rootless_daemon_with_detached_children_needs_nobody_else() {
    alone!(Alone::DetachedChildren);
    let executor = Executor::new().unwrap();
    let ports = Allocator::starting_at(&executor, Start::Beginning);
    let (host, child) = (Netns::current().unwrap(), netns());
    let addr = IpAddr::from([127, 86, 1, 4]);
    let acquire = |choice: Ports<'_>, otherwise| {
        let request = ports.request(Tcp).on(&host, [addr]).on(&child, [V4]);
        let gate = Gate::Drop { otherwise };
        request.ports(choice).gate(gate).acquire()
    };
    // Another program on the host, and another in the child.
    let _host = TcpListener::bind((addr, 33000)).unwrap();
    let _child = rival(&executor, &child, Tcp, V4, 33001);
    let lease = acquire(Ports::Range(33000..=33009), Fallback::Queue).unwrap();
    assert_eq!(lease.port(), 33002);
    let gates = [0, 1].map(|index: usize| lease.members()[index].gate());
    assert_eq!(gates, [GateState::Queueing, GateState::Dropping]);
    lease.activate().unwrap();
    TcpStream::connect((addr, 33002)).unwrap();
    let connect = || TcpStream::connect((V4, 33002));
    executor.run(&child, connect).unwrap().unwrap();

    // The host is not ours: no filter there, and no low port.
    let error = refused(acquire(Ports::Exact(33003), Fallback::Fail));
    assert_eq!(error.stage(), Some(Stage::Filter));
    assert_eq!(error.endpoint().map(|e| e.netns()), Some(host.id()));
    let error = refused(acquire(Ports::Exact(1000), Fallback::Queue));
    assert_eq!(error.raw_os_error(), Some(Errno::EACCES as i32));
    assert_eq!(error.endpoint().map(|e| e.netns()), Some(host.id()));
    drop(lease);
    assert_eq!(taken(&executor, &child, Tcp).len(), 1);
}

#[test]
fn ordinary_user_chooses_what_to_do_without_the_filter() {
    alone!(Alone::OrdinaryUser);
    let executor = Executor::new().unwrap();
    let ports = Allocator::new(&executor);
    let here = Netns::current().unwrap();
    let addr = IpAddr::from([127, 86, 1, 2]);
    let acquire = |protocol, otherwise| {
        let request = ports.request(protocol).on(&here, [addr]);
        let request = request.ports(Ports::Range(33000..=33009));
        request.gate(Gate::Drop { otherwise }).acquire()
    };
    let error = refused(acquire(Tcp, Fallback::Fail));
    assert_eq!(error.kind(), ErrorKind::Socket);
    assert_eq!(error.stage(), Some(Stage::Filter));
    assert_eq!(error.raw_os_error(), Some(Errno::EPERM as i32));
    assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");

    let lease = acquire(Tcp, Fallback::Queue).unwrap();
    assert_eq!(lease.members()[0].gate(), GateState::Queueing);
    TcpStream::connect(lease.members()[0].local_addr()).unwrap();

    let lease = acquire(Tcp, Fallback::Refuse).unwrap();
    assert_eq!(lease.members()[0].gate(), GateState::Refusing);
    TcpStream::connect(lease.members()[0].local_addr()).unwrap_err();
    lease.activate().unwrap();
    TcpStream::connect(lease.members()[0].local_addr()).unwrap();

    // For UDP the filter needs no privilege.
    let lease = acquire(Udp, Fallback::Fail).unwrap();
    assert_eq!(lease.members()[0].gate(), GateState::Dropping);
    lease.activate().unwrap();
}

#[test]
fn sockets_are_closed_on_exec() {
    alone!(Alone::AsIs);
    let w = World::new();
    for protocol in [Tcp, Udp] {
        let lease = w.both(protocol, Ports::Exact(33000)).unwrap();
        assert!(
            lease
                .members()
                .iter()
                .all(|member| is_cloexec(member.as_fd()))
        );
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("coreutils");
        // Only what comes back shows that the exec is over.
        let mut echo = [0];
        (child.stdin.as_mut().expect("piped"))
            .write_all(b"x")
            .unwrap();
        (child.stdout.as_mut().expect("piped"))
            .read_exact(&mut echo)
            .unwrap();
        drop(lease);
        // The child lives, and what it inherited would own the port still.
        drop(w.both(protocol, Ports::Exact(33000)).unwrap());
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
