//! Sockets made ahead of use: whose they are, when they are made, when they go.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use netns_exec::net::{SocketKind, SocketStock};
use netns_exec::{Executor, Guard, Netns};
use netns_exec_tests::{
    Alone, Gate, Held, TempNetns, alone, eventually, fds_of_this_process, fresh, here, is_cloexec,
    netns_cookie_of, panic_text, threads_named, threads_of_this_process, within,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockaddrStorage, connect, getsockname, getsockopt, sockopt};

const ALL: [SocketKind; 4] = [
    SocketKind::Tcp4,
    SocketKind::Tcp6,
    SocketKind::Udp4,
    SocketKind::Udp6,
];

fn stock(executor: &Executor, netns: &Netns) -> SocketStock {
    let builder = SocketStock::builder().kinds(ALL).marks(4, 16);
    builder.build(executor, netns).unwrap()
}

fn full(stock: &SocketStock) -> SocketStock {
    stock.fill().unwrap();
    stock.clone()
}

/// That a socket is of the namespace, by what the kernel says, and as good as new.
#[track_caller]
fn assert_new(socket: &OwnedFd, netns: &Netns) {
    assert_eq!(netns_cookie_of(socket.as_fd()), u64::from(netns.id()));
    assert_eq!(Netns::of_socket(socket).unwrap(), *netns);
    assert!(is_cloexec(socket.as_fd()));
    let addr: SockaddrStorage = getsockname(socket.as_raw_fd()).unwrap();
    let port = addr.as_sockaddr_in().map(|addr| addr.port());
    let port = port.or_else(|| addr.as_sockaddr_in6().map(|addr| addr.port()));
    assert_eq!(port, Some(0), "never bound");
}

#[test]
fn what_is_taken_is_new_and_of_the_namespace() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let stock = stock(&executor, &netns);
    assert_eq!(stock.id(), netns.id());
    for warm in [true, false] {
        if warm {
            stock.fill().unwrap();
        }
        for kind in ALL {
            // More than it ever has: made on the spot as well.
            let sockets: Vec<_> = (0..20).map(|_| stock.take(kind).unwrap()).collect();
            for socket in &sockets {
                assert_new(socket, &netns);
                let tcp = matches!(kind, SocketKind::Tcp4 | SocketKind::Tcp6);
                let kind_of = getsockopt(socket, sockopt::SockType).unwrap();
                assert_eq!(kind_of == nix::sys::socket::SockType::Stream, tcp);
                let addr: SockaddrStorage = getsockname(socket.as_raw_fd()).unwrap();
                let v4 = matches!(kind, SocketKind::Tcp4 | SocketKind::Udp4);
                let family = addr.as_sockaddr_in().map(|_| AddressFamily::Inet);
                assert_eq!(family.is_some(), v4);
            }
        }
    }
}

#[test]
fn socket_connects_in_its_namespace_from_any_thread() {
    let (executor, netns) = (Executor::new().unwrap(), TempNetns::with_loopback());
    let listener = executor.run(&netns, || TcpListener::bind("127.0.0.1:0"));
    let listener = listener.unwrap().unwrap();
    let stock = full(&stock(&executor, &netns));
    let socket = stock.take(SocketKind::Tcp4).unwrap();
    let addr = SockaddrStorage::from(listener.local_addr().unwrap());
    connect(socket.as_raw_fd(), &addr).unwrap();
    TcpStream::from(socket).write_all(b"hello").unwrap();
    let mut text = String::new();
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");

    let udp = UdpSocket::from(stock.take(SocketKind::Udp4).unwrap());
    udp.connect("127.0.0.1:9").unwrap();
    assert!(udp.local_addr().unwrap().ip().is_loopback());
}

#[test]
fn warm_take_runs_no_job() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let stock = full(&stock(&executor, &netns));
    eventually("what filled it is over", || {
        executor.stats().per_netns[0].running == 0
    });
    let held = Held::new(&executor, &netns);
    let done = executor.stats().done;
    // Down to the mark, with the only worker busy.
    let taken: Vec<_> = (0..11)
        .map(|_| stock.take(SocketKind::Tcp4).unwrap())
        .collect();
    assert_eq!(stock.on_hand(SocketKind::Tcp4), 5);
    assert_eq!((executor.stats().done, executor.stats().queued), (done, 0));
    // One more, and a refill is asked for: once, however many are taken.
    for _ in 0..5 {
        stock.take(SocketKind::Tcp4).unwrap();
    }
    assert_eq!(executor.stats().queued, 1);
    held.end();
    eventually("it is full again", || stock.on_hand(SocketKind::Tcp4) == 16);
    drop(taken);
}

#[test]
fn empty_stock_is_as_good_as_run() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let builder = SocketStock::builder().kinds([SocketKind::Udp4]).marks(0, 1);
    let stock = builder.build(&executor, &netns).unwrap();
    for _ in 0..200 {
        assert_new(&stock.take(SocketKind::Udp4).unwrap(), &netns);
    }
    // Awaited, too, from wherever there is a socket or none.
    for _ in 0..50 {
        let socket = pollster::block_on(stock.take_async(SocketKind::Udp4));
        assert_new(&socket.unwrap(), &netns);
    }
}

#[test]
fn each_socket_is_taken_once_whoever_takes() {
    within("many takers", || {
        let builder = Executor::builder().workers_per_netns(2);
        let (executor, netns) = (builder.build().unwrap(), fresh());
        let stock = &stock(&executor, &netns);
        let takers = 8;
        let taken: Vec<OwnedFd> = thread::scope(|scope| {
            let take = |turn: usize| stock.take(ALL[turn % 4]).unwrap();
            let threads: Vec<_> = (0..takers)
                .map(|_| scope.spawn(move || (0..60).map(take).collect::<Vec<_>>()))
                .collect();
            let sockets = threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap());
            sockets.collect()
        });
        let inodes: HashSet<_> = (taken.iter())
            .map(|socket| nix::sys::stat::fstat(socket).unwrap().st_ino)
            .collect();
        assert_eq!(inodes.len(), takers * 60, "no socket is there twice");
        for socket in &taken {
            assert_new(socket, &netns);
        }
    });
}

#[test]
fn there_is_one_refill_at_a_time_and_calls_go_first() {
    let builder = Executor::builder().workers_per_netns(4);
    let (executor, netns) = (builder.build().unwrap(), fresh());
    let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&at_once), Arc::clone(&most));
    let make = move || {
        let (at_once, most) = &counts;
        most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(1));
        at_once.fetch_sub(1, Ordering::SeqCst);
        UdpSocket::bind("0.0.0.0:0").map(OwnedFd::from)
    };
    let builder = SocketStock::builder().custom("slow", make).marks(900, 1000);
    let stock = builder.build(&executor, &netns).unwrap();
    let kind = SocketKind::Custom("slow");
    eventually("some are there", || stock.on_hand(kind) > 5);
    for _ in 0..5 {
        // Each of them asks for a refill, if there is none under way.
        stock.take(kind).unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
    drop(stock);

    // With one worker: a call does not wait for the end of the refill.
    let executor = Executor::new().unwrap();
    let make = || {
        thread::sleep(Duration::from_millis(1));
        UdpSocket::bind("0.0.0.0:0").map(OwnedFd::from)
    };
    let builder = SocketStock::builder().custom("slow", make);
    let stock = (builder.marks(30_000, 60_000).build(&executor, &netns)).unwrap();
    for round in 1..=5 {
        eventually("it is being filled", || stock.on_hand(kind) > 2 * round);
        within_reason(&executor, &netns);
    }
}

/// With a minute's work before it, a call would take that long.
fn within_reason(executor: &Executor, netns: &Netns) {
    let begun = std::time::Instant::now();
    assert_eq!(executor.run(netns, here).unwrap(), netns.id());
    assert!(begun.elapsed() < Duration::from_secs(10), "{begun:?}");
}

#[test]
fn stock_does_not_keep_a_deleted_namespace() {
    for guard in [Guard::Seal, Guard::Off] {
        for busy in [false, true] {
            let netns = TempNetns::new();
            let executor = Executor::builder().guard(guard).idle_timeout(None);
            let executor = executor.build().unwrap();
            let builder = SocketStock::builder().kinds(ALL).idle_timeout(None);
            let stock = full(&builder.build(&executor, &netns).unwrap());
            // A worker that never rests does not look after the name itself.
            let held = busy.then(|| Held::new(&executor, &netns));
            let weak = netns.downgrade();
            netns.delete();
            eventually("it has emptied itself", || {
                ALL.iter().all(|kind| stock.on_hand(*kind) == 0)
            });
            drop(held);
            eventually("the namespace is gone", || weak.upgrade().is_none());
            let error = stock.take(SocketKind::Tcp4).unwrap_err();
            assert!(error.is_not_found(), "{error}");
            let error = pollster::block_on(stock.take_async(SocketKind::Tcp4)).unwrap_err();
            assert!(error.is_not_found(), "{error}");
        }
    }
}

#[test]
fn stock_of_a_namespace_that_lost_its_name_makes_on_the_spot() {
    let (netns, executor) = (TempNetns::new(), Executor::new().unwrap());
    let kept = netns.netns().clone();
    netns.delete();
    let stock = stock(&executor, &kept);
    eventually("it has heard of it", || {
        stock.fill().unwrap();
        stock.on_hand(SocketKind::Udp6) == 0
    });
    for _ in 0..10 {
        assert_new(&stock.take(SocketKind::Udp6).unwrap(), &kept);
        assert_eq!(stock.on_hand(SocketKind::Udp6), 0, "nothing is made ahead");
    }
}

#[test]
fn retired_namespace_has_its_stock_emptied() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let (one, other) = (
        full(&stock(&executor, &netns)),
        full(&stock(&executor, &netns)),
    );
    let elsewhere = fresh();
    let third = full(&stock(&executor, &elsewhere));
    let others = Executor::new().unwrap();
    let fourth = full(&stock(&others, &netns));
    executor.retire(&netns).unwrap();
    for stock in [&one, &other] {
        assert!(ALL.iter().all(|kind| stock.on_hand(*kind) == 0));
        assert_new(&stock.take(SocketKind::Tcp4).unwrap(), &netns);
    }
    assert!(third.on_hand(SocketKind::Tcp4) > 0, "another namespace's");
    assert!(fourth.on_hand(SocketKind::Tcp4) > 0, "another executor's");
    let weak = netns.downgrade();
    executor.retire(&netns).unwrap();
    drop(netns);
    others.shutdown(None).unwrap();
    eventually("the namespace is gone", || weak.upgrade().is_none());
}

#[test]
fn stock_of_an_executor_that_was_shut_down_is_empty() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let stock = full(&stock(&executor, &netns));
    executor.shutdown(None).unwrap();
    assert!(ALL.iter().all(|kind| stock.on_hand(*kind) == 0));
    assert!(stock.take(SocketKind::Tcp4).unwrap_err().is_shut_down());
    assert!(stock.fill().unwrap_err().is_shut_down());
}

#[test]
fn unused_stock_empties_itself_and_leaves_no_thread() {
    alone!(Alone::AsIs);
    let netns = fresh();
    let executor = Executor::new().unwrap();
    let idle = |timeout| {
        let builder = SocketStock::builder().kinds(ALL).marks(1, 8);
        builder.idle_timeout(Some(timeout)).build(&executor, &netns)
    };
    let stock = full(&idle(Duration::from_millis(50)).unwrap());
    let on_hand = || -> usize { ALL.iter().map(|kind| stock.on_hand(*kind)).sum() };
    let keeper = || threads_named("netns-stocks") > 0;
    for _ in 0..3 {
        eventually("it is empty", || on_hand() == 0);
        eventually("its keeper is gone", || !keeper());
        assert_eq!(SocketStock::process_total(), 0);
        assert_new(&stock.take(SocketKind::Tcp4).unwrap(), &netns);
        eventually("it is filled again", || on_hand() > 8);
        eventually("its keeper is back", keeper);
    }
    // One that is used is not emptied, however short the time.
    let used = full(&idle(Duration::from_millis(400)).unwrap());
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        drop(used.take(SocketKind::Udp4).unwrap());
        thread::sleep(Duration::from_millis(10));
        assert!(used.on_hand(SocketKind::Udp6) == 8, "all kinds stay");
    }
    drop((stock, used));
    eventually("its keeper is gone", || !keeper());
}

#[test]
fn dropped_stock_leaves_nothing_behind() {
    alone!(Alone::AsIs);
    let netns = fresh();
    let cycle = || {
        let executor = Executor::new().unwrap();
        let stock = full(&stock(&executor, &netns));
        let clone = stock.clone();
        drop(stock);
        assert!(clone.on_hand(SocketKind::Tcp4) > 0);
        drop(clone);
        drop(executor);
    };
    cycle();
    let now = || (threads_of_this_process(), fds_of_this_process());
    // The harness's two, and the home thread, which stays.
    eventually("the first has gone", || threads_of_this_process() == 3);
    let before = now();
    for _ in 0..20 {
        cycle();
    }
    eventually("all is as it was", || now() == before);
}

#[test]
fn all_stocks_of_a_process_share_a_limit() {
    alone!(Alone::AsIs);
    SocketStock::set_process_limit(20);
    let executor = Executor::new().unwrap();
    let spaces = [fresh(), fresh(), fresh()];
    let stocks: Vec<_> = (spaces.iter())
        .map(|netns| full(&stock(&executor, netns)))
        .collect();
    assert_eq!(SocketStock::process_total(), 20);
    for (stock, netns) in stocks.iter().zip(&spaces) {
        let taken: Vec<_> = (0..40)
            .map(|turn| stock.take(ALL[turn % 4]).unwrap())
            .collect();
        taken.iter().for_each(|socket| assert_new(socket, netns));
        assert!(SocketStock::process_total() <= 20);
    }
    // None at all is a limit as well.
    SocketStock::set_process_limit(0);
    for _ in 0..100 {
        stocks[0].take(SocketKind::Tcp4).unwrap();
    }
    assert_eq!(stocks[0].on_hand(SocketKind::Tcp4), 0);
}

/// The next descriptor's number is one too many.
fn limit_files() -> impl Drop {
    struct Limit(u64, u64);
    impl Drop for Limit {
        fn drop(&mut self) {
            setrlimit(Resource::RLIMIT_NOFILE, self.0, self.1).unwrap();
        }
    }
    let before = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    setrlimit(Resource::RLIMIT_NOFILE, next.try_into().unwrap(), before.1).unwrap();
    Limit(before.0, before.1)
}

#[test]
fn process_without_descriptors_has_those_of_its_stocks() {
    alone!(Alone::AsIs);
    let builder = Executor::builder().idle_timeout(None);
    let (executor, netns, other) = (builder.build().unwrap(), fresh(), fresh());
    let stock = full(&stock(&executor, &netns));
    let without = full(&stock_of(&executor, &netns, SocketKind::Udp4));
    let limit = limit_files();
    // There is one of this kind.
    let first = stock.take(SocketKind::Tcp4).unwrap();
    // None of this one, once they have been taken: then all are closed for it.
    let taken: Vec<_> = (0..200)
        .map_while(|_| without.take(SocketKind::Udp4).ok())
        .collect();
    assert!(taken.len() > 16, "{}", taken.len());
    assert_eq!(SocketStock::process_total(), 0);
    let error = without.take(SocketKind::Udp4).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EMFILE), "{error}");
    drop(limit);
    assert_new(&first, &netns);
    drop((first, taken));

    // A worker that is to be born has them, too.
    eventually("it rests no longer", || {
        stock.fill().is_ok() && stock.on_hand(SocketKind::Tcp4) == 16
    });
    let limit = limit_files();
    assert_eq!(executor.run(&other, || 5).unwrap(), 5);
    drop(limit);
    assert_eq!(executor.run(&other, here).unwrap(), other.id());
    assert_eq!(executor.stats().workers, 2, "no worker had to end for it");
}

fn stock_of(executor: &Executor, netns: &Netns, kind: SocketKind) -> SocketStock {
    let builder = SocketStock::builder().kinds([kind]).marks(0, 16);
    builder.build(executor, netns).unwrap()
}

#[test]
fn closure_makes_what_the_library_does_not_know() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let make = || {
        assert_ne!(here(), Netns::home().unwrap().id());
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        // As a careless one would leave it.
        nix::fcntl::fcntl(
            &socket,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )?;
        Ok(socket.into())
    };
    let fails = || Err(io::Error::from_raw_os_error(nix::libc::EPROTONOSUPPORT));
    let builder = SocketStock::builder()
        .custom("fails", fails)
        .custom("panics", || panic!("no such protocol"))
        .custom("udp", make)
        .marks(1, 4);
    let stock = builder.build(&executor, &netns).unwrap();
    let custom = SocketKind::Custom("udp");
    // One kind that fails, or panics, is no reason for the others to be missing.
    for _ in 0..20 {
        let socket = stock.take(custom).unwrap();
        assert_eq!(netns_cookie_of(socket.as_fd()), u64::from(netns.id()));
        assert!(is_cloexec(socket.as_fd()));
    }
    let error = stock.take(SocketKind::Custom("fails")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EPROTONOSUPPORT));
    let text = panic_text(|| stock.take(SocketKind::Custom("panics")));
    assert_eq!(text, "no such protocol");
    eventually("it is filled after all", || stock.on_hand(custom) > 1);
    let error = stock.take(SocketKind::Custom("unheard of")).unwrap_err();
    assert!(error.is_invalid_input(), "{error}");
    assert!(stock.take(SocketKind::Tcp4).unwrap_err().is_invalid_input());
}

#[test]
fn panic_of_a_closure_is_an_error_where_it_is_awaited() {
    let builder = SocketStock::builder().custom("panics", || panic!("{}", 7));
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    pollster::block_on(async {
        let stock = builder.build_async(&executor, &netns).await.unwrap();
        let taken = stock.take_async(SocketKind::Custom("panics")).await;
        assert!(taken.unwrap_err().is_panic());
        stock.fill_async().await.unwrap();
    });
}

#[test]
fn sockets_block_unless_they_are_not_to() {
    let (executor, netns) = (Executor::new().unwrap(), TempNetns::with_loopback());
    let builder = SocketStock::builder().kinds([SocketKind::Udp4]);
    let stock = builder.nonblocking(true).build(&executor, &netns).unwrap();
    for _ in 0..2 {
        let socket = UdpSocket::from(stock.take(SocketKind::Udp4).unwrap());
        nix::sys::socket::bind(
            socket.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::from(([127, 0, 0, 1], 0))),
        )
        .unwrap();
        let error = socket.recv(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        stock.fill().unwrap();
    }
}

#[test]
fn worker_that_a_job_spoiled_is_replaced_and_the_stock_goes_on() {
    let netns = TempNetns::new();
    let builder = Executor::builder().guard(Guard::Off).idle_timeout(None);
    let (executor, elsewhere) = (builder.build().unwrap(), fresh());
    let builder = SocketStock::builder().kinds(ALL).idle_timeout(None);
    let stock = full(&builder.marks(4, 16).build(&executor, &netns).unwrap());
    let moved = executor.run(&netns, || {
        nix::sched::setns(&elsewhere, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    });
    drop(moved);
    for _ in 0..40 {
        assert_new(&stock.take(SocketKind::Tcp6).unwrap(), &netns);
    }
    stock.fill().unwrap();
    let weak = netns.downgrade();
    netns.delete();
    eventually("it has emptied itself", || {
        ALL.iter().all(|kind| stock.on_hand(*kind) == 0)
    });
    eventually("the namespace is gone", || weak.upgrade().is_none());
}

#[test]
fn refill_that_cannot_be_sent_is_sent_by_a_later_caller() {
    let executor = Executor::builder().queue_depth(1).build().unwrap();
    let netns = fresh();
    let stock = full(&stock(&executor, &netns));
    let gate = Gate::new();
    let pass = gate.pass();
    let job = executor.spawn(&netns, move || pass.stop()).unwrap();
    gate.wait_for(1);
    let queued = executor.spawn(&netns, || ()).unwrap();
    for left in (0..16).rev() {
        stock.take(SocketKind::Tcp4).unwrap();
        assert_eq!(stock.on_hand(SocketKind::Tcp4), left);
    }
    gate.open();
    job.join().unwrap();
    queued.join().unwrap();
    stock.take(SocketKind::Tcp4).unwrap();
    eventually("it is filled", || stock.on_hand(SocketKind::Tcp4) == 16);
}

#[test]
fn builder_refuses_nonsense() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let tcp4 = || SocketStock::builder().kinds([SocketKind::Tcp4]);
    for builder in [
        SocketStock::builder(),
        tcp4().kinds([SocketKind::Tcp4]),
        tcp4().kinds([SocketKind::Custom("nothing makes it")]),
        tcp4().marks(5, 5),
        tcp4().marks(6, 5),
        tcp4().marks(0, 0),
        tcp4().marks(0, 70_000),
    ] {
        let text = format!("{builder:?}");
        let error = builder.build(&executor, &netns).unwrap_err();
        assert!(error.is_invalid_input(), "{text}: {error}");
    }
    let error = pollster::block_on(SocketStock::builder().build_async(&executor, &netns));
    assert!(error.unwrap_err().is_invalid_input());
    assert_eq!(executor.stats().workers, 0);
}
