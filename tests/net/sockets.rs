//! One socket at a time: in the right namespace, wherever it is bound and used.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netns_exec::{Executor, Netns, net};
use netns_exec_tests::{
    Alone, Held, TempNetns, alone, drop_all_capabilities, fresh, ip, is_cloexec, netns_cookie_of,
    on_a_thread, within,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use pollster::block_on;

pub(super) const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[track_caller]
fn assert_of(socket: &impl AsFd, netns: &Netns, nonblocking: bool) {
    let socket = socket.as_fd();
    assert_eq!(netns_cookie_of(socket), u64::from(netns.id()));
    assert!(is_cloexec(socket));
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL).unwrap());
    assert_eq!(flags.contains(OFlag::O_NONBLOCK), nonblocking);
}

#[test]
fn every_kind_is_of_its_namespace_however_it_is_made() {
    let netns = TempNetns::with_loopback();
    let executor = Executor::new().unwrap();
    let pinned = executor.pin(&netns).unwrap();
    fn all(place: impl net::Place + Copy, netns: &Netns, nonblocking: bool) {
        // An audit by another process may have the last one's listener open for a moment.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("agent\0{}", NEXT.fetch_add(1, Ordering::Relaxed));
        assert_of(&net::tcp_listen(place, LOCAL).unwrap(), netns, nonblocking);
        assert_of(&net::udp_bind(place, LOCAL).unwrap(), netns, nonblocking);
        let v6 = (Ipv6Addr::LOCALHOST, 0);
        assert_of(&net::tcp_listen(place, v6).unwrap(), netns, nonblocking);
        assert_of(&net::udp_bind(place, v6).unwrap(), netns, nonblocking);
        let listener = net::unix_abstract(place, &name).unwrap();
        assert_of(&listener, netns, nonblocking);
        let stream = net::unix_abstract_connect(place, &name).unwrap();
        assert_of(&stream, netns, nonblocking);
        for socket in [
            net::raw(place, Ipv4Addr::UNSPECIFIED, libc::IPPROTO_ICMP),
            net::raw(place, Ipv6Addr::UNSPECIFIED, libc::IPPROTO_ICMPV6),
            net::packet(place, 0x0800, "lo"),
            net::packet(place, 0x0800, None),
            net::netlink(place, libc::NETLINK_ROUTE, 1),
        ] {
            assert_of(&socket.unwrap(), netns, nonblocking);
        }
    }
    all(netns.netns(), &netns, false);
    all((&executor, netns.netns()), &netns, false);
    all(&pinned, &netns, false);
    all(net::nonblocking(&pinned), &netns, true);
    on_a_thread(|| all(net::nonblocking(netns.netns()), &netns, true));
    executor
        .run(&fresh(), || all(&pinned, &netns, false))
        .unwrap();
    executor
        .run(&netns, || all(&pinned, &netns, false))
        .unwrap();
}

#[test]
fn awaited_sockets_are_of_the_namespace_and_do_not_block() {
    let netns = TempNetns::with_loopback();
    let place = netns.netns();
    block_on(async {
        let listener = net::tcp_listen_async(place, LOCAL).await.unwrap();
        assert_of(&listener, place, true);
        let addr = listener.local_addr().unwrap();
        let stream = net::tcp_connect_async(place, addr, None).await.unwrap();
        assert_of(&stream, place, true);
        assert_eq!(stream.peer_addr().unwrap(), addr);
        assert_of(
            &net::udp_bind_async(place, LOCAL).await.unwrap(),
            place,
            true,
        );
        let unix = net::unix_abstract_async(place, "a").await.unwrap();
        assert_of(&unix, place, true);
        let stream = net::unix_abstract_connect_async(place, "a").await;
        assert_of(&stream.unwrap(), place, true);
        let any = Ipv4Addr::UNSPECIFIED;
        let sockets: [OwnedFd; 3] = [
            net::raw_async(place, any, 1).await.unwrap(),
            net::packet_async(place, 0x0806, "lo").await.unwrap(),
            net::netlink_async(place, 0, 0).await.unwrap(),
        ];
        sockets
            .iter()
            .for_each(|socket| assert_of(socket, place, true));
        let error = net::tcp_connect_async(place, ([127, 0, 0, 1], 1), None).await;
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    });
    fn is_send<F: Future + Send>(future: F) -> F {
        future
    }
    block_on(is_send(net::tcp_listen_async(place, LOCAL))).unwrap();
    block_on(is_send(net::packet_async(place, 1, "lo"))).unwrap();
}

#[test]
fn listener_and_stream_meet_in_the_namespace_alone() {
    let netns = TempNetns::with_loopback();
    let listener = net::tcp_listen(netns.netns(), LOCAL).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut stream = net::tcp_connect(netns.netns(), addr, Duration::from_secs(20)).unwrap();
    stream.write_all(b"hello").unwrap();
    drop(stream);
    let mut text = String::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "hello");
    let elsewhere = TempNetns::with_loopback();
    let error = net::tcp_connect(elsewhere.netns(), addr, None).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    let text = error.to_string();
    assert!(
        text.contains(elsewhere.name()) && text.contains(&addr.to_string()),
        "{text}"
    );
}

#[test]
fn abstract_names_are_each_namespaces_own() {
    let (a, b) = (fresh(), fresh());
    let _in_a = net::unix_abstract(&a, "name").unwrap();
    let error = net::unix_abstract(&a, "name").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
    assert!(error.to_string().contains("@name"), "{error}");
    let error = net::unix_abstract_connect(&b, "name").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    let _in_b = net::unix_abstract(&b, "name").unwrap();
    let long = net::unix_abstract(&b, [b'x'; 108]).unwrap_err();
    assert_eq!(long.raw_os_error(), Some(libc::ENAMETOOLONG));
    net::unix_abstract(&b, [b'x'; 107]).unwrap();
}

/// A namespace in which packets to 10.9.0.0/16 go nowhere.
pub(super) fn with_black_hole() -> TempNetns {
    let netns = TempNetns::with_loopback();
    let name = netns.name();
    ip(&["-n", name, "link", "add", "hole", "type", "veth"]);
    ip(&["-n", name, "link", "set", "hole", "arp", "off", "up"]);
    ip(&["-n", name, "addr", "add", "10.9.0.1/16", "dev", "hole"]);
    netns
}

#[test]
fn peer_that_does_not_answer_costs_the_timeout_and_no_worker() {
    let netns = with_black_hole();
    let executor = Executor::new().unwrap();
    let silent = SocketAddr::from(([10, 9, 0, 2], 80));
    let begun = Instant::now();
    let timeout = Duration::from_millis(300);
    let error = net::tcp_connect((&executor, netns.netns()), silent, timeout).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}");
    assert!(begun.elapsed() >= timeout);

    within("calls beside connections that hang", move || {
        let place = (&executor, netns.netns());
        std::thread::scope(|scope| {
            let hang = || net::tcp_connect(place, silent, Duration::from_secs(2)).unwrap_err();
            let hanging: Vec<_> = (0..10).map(|_| scope.spawn(hang)).collect();
            for _ in 0..100 {
                executor.run(&netns, || ()).unwrap();
            }
            assert!(hanging.iter().any(|thread| !thread.is_finished()));
            assert_eq!(executor.stats().workers, 1);
        });
        // Awaited, a worker waits, and another one stands in.
        let connect = net::tcp_connect_async(place, silent, Duration::from_secs(1));
        let mut connect = std::pin::pin!(connect);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(connect.as_mut().poll(&mut cx).is_pending());
        for _ in 0..20 {
            executor.run(&netns, || ()).unwrap();
        }
        assert!(block_on(connect).is_err());
    });
}

#[test]
fn connection_from_a_job_lets_others_run_in_its_namespace() {
    let netns = TempNetns::with_loopback();
    let executor = Executor::new().unwrap();
    within("a job that connects to another job", move || {
        let ran = executor.run(&netns, || {
            let listener = TcpListener::bind(LOCAL).unwrap();
            let addr = listener.local_addr().unwrap();
            let stream = net::tcp_connect((&executor, netns.netns()), addr, None);
            stream.unwrap().peer_addr().unwrap() == addr
        });
        assert!(ran.unwrap());
    });
}

#[test]
fn packet_socket_hears_one_device_only() {
    let netns = TempNetns::with_loopback();
    let name = netns.name();
    ip(&["-n", name, "link", "add", "quiet", "type", "veth"]);
    ip(&["-n", name, "link", "set", "quiet", "arp", "off", "up"]);
    let on_quiet = net::packet(net::nonblocking(netns.netns()), 0x0800, "quiet").unwrap();
    let on_lo = net::packet(netns.netns(), 0x0800, "lo").unwrap();
    let udp = net::udp_bind(netns.netns(), LOCAL).unwrap();
    udp.send_to(b"heard", udp.local_addr().unwrap()).unwrap();
    let mut frame = [0; 2048];
    let length = nix::unistd::read(&on_lo, &mut frame).unwrap();
    assert!(frame[..length].windows(5).any(|part| part == b"heard"));
    let error = nix::unistd::read(&on_quiet, &mut frame).unwrap_err();
    assert_eq!(error, nix::errno::Errno::EAGAIN);
    let error = net::packet(netns.netns(), 0x0800, "no-such-dev").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    assert!(error.to_string().contains("no-such-dev"), "{error}");
}

#[test]
fn netlink_socket_hears_of_its_namespace() {
    let netns = TempNetns::new();
    const LINKS: u32 = 1;
    let socket = net::netlink(netns.netns(), libc::NETLINK_ROUTE, LINKS).unwrap();
    ip(&[
        "-n",
        netns.name(),
        "link",
        "add",
        "heard-of",
        "type",
        "veth",
    ]);
    within("a message on the new device", move || {
        // The one on its peer comes first.
        let mut message = [0; 8192];
        loop {
            let length = nix::unistd::read(&socket, &mut message).unwrap();
            if message[..length].windows(8).any(|part| part == b"heard-of") {
                return;
            }
        }
    });
}

#[test]
fn errors_say_what_where_and_why() {
    let netns = TempNetns::with_loopback();
    let error = net::tcp_listen(netns.netns(), ([10, 1, 2, 3], 80)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    let text = error.to_string();
    assert!(text.contains("listen on tcp 10.1.2.3:80"), "{text}");
    assert!(
        text.contains(netns.name()) && text.contains("loopback"),
        "{text}"
    );

    alone!(Alone::AsIs);
    let pinned = Executor::new().unwrap().pin(&netns).unwrap();
    on_a_thread(|| {
        drop_all_capabilities();
        // The worker has them still.
        net::raw(&pinned, Ipv4Addr::UNSPECIFIED, 1).unwrap();
    });
}

#[test]
fn socket_that_is_not_to_block_does_not() {
    let netns = TempNetns::with_loopback();
    let listener = net::tcp_listen(net::nonblocking(netns.netns()), LOCAL).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let addr = listener.local_addr().unwrap();
    let place = net::nonblocking(netns.netns());
    let stream: TcpStream = net::tcp_connect(place, addr, None).unwrap();
    assert_eq!(
        (&stream).read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let executor = Executor::new().unwrap();
    let held = Held::new(&executor, &netns);
    // What needs no worker is not kept by a busy one of another executor.
    net::tcp_listen(place, LOCAL).unwrap();
    held.end();
}
