//! Walks over sockets that are opened right here, by openers that lack something.

use super::*;

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::executor::Executor;
use crate::netns::{Netns, NetnsId};
use crate::ports::lease::Member;
use crate::ports::opener::OpenReply;
use crate::ports::request::Request;
use crate::ports::socket::{Fault, hook};
use crate::ports::{Allocator, ErrorKind, Gate, Ports, Protocol, Stage, Start};

/// Opens sockets right here, and counts how often it is asked.
struct Here {
    netns: Netns,
    trips: AtomicUsize,
}

impl Here {
    fn new() -> Arc<Here> {
        Arc::new(Here {
            netns: Netns::current().expect("this thread is somewhere"),
            trips: AtomicUsize::new(0),
        })
    }

    fn trips(&self) -> usize {
        self.trips.load(Ordering::Relaxed)
    }
}

impl Opener for Here {
    fn netns(&self) -> NetnsId {
        self.netns.id()
    }

    fn label(&self) -> &str {
        self.netns.label()
    }

    fn open(&self, request: &OpenRequest, _: &Patience) -> Result<OpenReply, Error> {
        self.trips.fetch_add(1, Ordering::Relaxed);
        Ok(request.fill())
    }

    fn is_tentative(&self, _: Ipv6Addr) -> Result<bool, Error> {
        Ok(false)
    }
}

/// An address of loopback that no other test uses.
fn addr(n: u8) -> IpAddr {
    IpAddr::from([127, 86, 120, n])
}

fn allocator() -> Allocator {
    let executor = Executor::new().expect("an executor needs no privilege");
    Allocator::starting_at(&executor, Start::Beginning)
}

fn request(
    here: &Arc<Here>,
    protocol: Protocol,
    addrs: &[IpAddr],
    range: RangeInclusive<u16>,
) -> Request {
    allocator()
        .request(protocol)
        .on_opener(here.clone(), addrs.iter().copied())
        .ports(Ports::Range(range))
        .gate(Gate::Queue)
}

#[test]
fn walk_over_busy_ports_takes_one_round_trip() {
    let here = Here::new();
    let _busy: Vec<_> = (20000..20050)
        .map(|port| TcpListener::bind((addr(1), port)).expect("a free port"))
        .collect();
    // The second member is the contended one, and is soon tried first.
    let addrs = [addr(2), addr(1)];
    let lease = request(&here, Protocol::Tcp, &addrs, 20000..=20050)
        .budget(Budget::Tries(51))
        .acquire()
        .expect("the last port is free");
    assert_eq!(lease.port(), 20050);
    // One, and another for the socket that the first port cost.
    assert_eq!(here.trips(), 2);
}

#[test]
fn kernel_finds_the_port_that_a_walk_would_find_late() {
    let here = Here::new();
    let range = crate::ports::dynamic::LocalPorts::read().range;
    let (low, high) = (*range.start(), range.start() + 300);
    assert!(
        high <= *range.end(),
        "this machine has a narrow range: {range:?}"
    );
    let busy: Vec<_> = (low..high)
        .map(|port| TcpListener::bind((addr(3), port)).expect("a free port"))
        .collect();
    let mut walk = Walk::new(request(&here, Protocol::Tcp, &[addr(3)], low..=high).into_plan());
    let lease = walk.range(&Span::new(low..=high)).expect("one is free");
    assert_eq!(lease.port(), high);
    let tried = walk.counts.tried;
    assert!(tried < 100, "{tried} of {} were tried", busy.len());
}

#[test]
fn missing_protocol_is_asked_for_once() {
    let here = Here::new();
    let request = request(&here, Protocol::Sctp, &[addr(4)], 20000..=20050);
    match request.acquire() {
        Ok(lease) => assert_eq!(lease.port(), 20000),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Socket);
            assert_eq!(error.stage(), Some(Stage::Socket));
            assert_eq!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT));
            assert_eq!(error.counts().tried, 0);
        }
    }
    assert_eq!(here.trips(), 1);
}

#[test]
fn undecided_port_is_waited_for_and_not_passed_over() {
    let here = Here::new();
    let allocator = allocator();
    let request = || {
        allocator
            .request(Protocol::Tcp)
            .on_opener(here.clone(), [addr(5)])
            .ports(Ports::Range(20000..=20000))
            .gate(Gate::Queue)
    };
    let other = Walk::new(request().into_plan());
    let holds = &other.plan.holds;
    let bindings = other.attempts.bindings();
    let claim = holds.claim(20000, bindings, Duration::ZERO);
    let claim = claim.expect("an empty table");
    let waiting = std::thread::spawn({
        let request = request();
        move || request.acquire()
    });
    // It has fetched its socket, so the next thing it meets is the claim.
    while here.trips() == 0 {
        std::thread::yield_now();
    }
    drop(claim);
    let lease = waiting
        .join()
        .expect("no panic")
        .expect("the claim was given up");
    assert_eq!(lease.port(), 20000);
}

#[test]
fn port_that_binds_and_cannot_listen_is_passed_over_and_leaves_nothing() {
    let here = Here::new();
    let rivals = Rc::new(RefCell::new(Vec::new()));
    hook::after_bind({
        let rivals = rivals.clone();
        // As fast as can be, and with SO_REUSEADDR, as std sets it.
        move |at| {
            if at.port() < 20003 {
                rivals.borrow_mut().extend(TcpListener::bind(at));
            }
        }
    });
    let addrs = [addr(6), addr(7)];
    let request = || request(&here, Protocol::Tcp, &addrs, 20000..=20003);
    let lease = request().acquire().expect("the last one is free");
    assert_eq!(lease.port(), 20003);
    assert_eq!(rivals.borrow().len(), 6);
    drop(lease);
    let error = request().ports(Ports::Range(20000..=20002)).acquire();
    let error = error.expect_err("the rivals listen");
    assert_eq!(error.stage(), Some(Stage::Bind));

    rivals.borrow_mut().clear();
    let error = request().ports(Ports::Exact(20000)).acquire();
    let error = error.expect_err("a rival comes between");
    assert_eq!(error.stage(), Some(Stage::Listen));
    assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
    // No socket of ours is left in the way of either address.
    rivals.borrow_mut().clear();
    for addr in addrs {
        TcpListener::bind((addr, 20000)).expect("nothing is left");
    }
}

#[test]
fn datagram_that_comes_right_after_the_bind_meets_the_filter() {
    let here = Here::new();
    let client = Rc::new(UdpSocket::bind((addr(8), 0)).expect("a free port"));
    hook::after_bind({
        let client = client.clone();
        move |at| {
            client.send_to(b"early", at).expect("loopback");
        }
    });
    let request = request(&here, Protocol::Udp, &[addr(8)], 20000..=20000);
    let lease = request
        .gate(Gate::default())
        .acquire()
        .expect("a free port");
    lease.activate().expect("the filter goes");
    let at = lease.members()[0].local_addr();
    client.send_to(b"late", at).expect("loopback");
    let (mut members, _hold) = lease.split();
    let socket = UdpSocket::from(OwnedFd::from(members.remove(0)));
    let mut text = [0; 8];
    let len = socket.recv(&mut text).expect("a datagram");
    assert_eq!(&text[..len], b"late");
}

/// A kernel without IPv6.
struct OnlyV4(Arc<Here>);

impl Opener for OnlyV4 {
    fn netns(&self) -> NetnsId {
        self.0.netns()
    }

    fn label(&self) -> &str {
        self.0.label()
    }

    fn open(&self, request: &OpenRequest, patience: &Patience) -> Result<OpenReply, Error> {
        let mut request = request.clone();
        let missing = request.specs.iter().position(|spec| spec.addr.is_ipv6());
        request.specs.truncate(missing.unwrap_or(usize::MAX));
        let mut reply = self.0.open(&request, patience)?;
        if missing.is_some() {
            let cause = std::io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
            reply.fault = Some(Fault {
                stage: Stage::Socket,
                cause,
            });
        }
        Ok(reply)
    }

    fn is_tentative(&self, _: Ipv6Addr) -> Result<bool, Error> {
        Ok(false)
    }
}

#[test]
fn family_that_is_missing_is_left_out_where_it_was_not_named() {
    let opener = Arc::new(OnlyV4(Here::new()));
    let request = |protocols: &[Protocol]| {
        let request = allocator().request(Protocol::Tcp);
        request
            .protocols(protocols.iter().copied())
            .ports(Ports::Range(20000..=20050))
            .gate(Gate::Queue)
    };
    let both = [Protocol::Tcp, Protocol::Udp];
    for protocols in [&both[..1], &both] {
        let lease = request(protocols).on_families_of(opener.clone()).acquire();
        let lease = lease.expect("there is IPv4");
        let addrs = lease.members().iter().map(Member::local_addr);
        assert!(addrs.clone().all(|addr| addr.is_ipv4()));
        assert_eq!(addrs.count(), protocols.len());
    }
    let named = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let error = request(&both).on_opener(opener, named).acquire();
    let error = error.expect_err("it was named");
    assert_eq!(error.raw_os_error(), Some(libc::EAFNOSUPPORT));
}

/// Has room for one socket of each member at a time.
struct Scarce {
    here: Arc<Here>,
    refusals: AtomicUsize,
}

impl Opener for Scarce {
    fn netns(&self) -> NetnsId {
        self.here.netns()
    }

    fn label(&self) -> &str {
        self.here.label()
    }

    fn open(&self, request: &OpenRequest, patience: &Patience) -> Result<OpenReply, Error> {
        let mut request = request.clone();
        let is_surplus = request.specs.len() > 2;
        request.specs.truncate(2);
        let mut reply = self.here.open(&request, patience)?;
        if is_surplus {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            reply.fault = Some(Fault {
                stage: Stage::Socket,
                cause: std::io::Error::from_raw_os_error(libc::EMFILE),
            });
        }
        Ok(reply)
    }

    fn is_tentative(&self, _: Ipv6Addr) -> Result<bool, Error> {
        Ok(false)
    }
}

#[test]
fn limit_that_leaves_one_socket_each_is_met_once() {
    let opener = Arc::new(Scarce {
        here: Here::new(),
        refusals: AtomicUsize::new(0),
    });
    // Each port is in use at the other address, so each costs a socket.
    let addrs = [addr(9), addr(10)];
    let busy = |port: u16| TcpListener::bind((addrs[usize::from(port % 2)], port));
    let _busy: Vec<_> = (20000..20050)
        .map(|port| busy(port).expect("a free port"))
        .collect();
    let request = allocator().request(Protocol::Tcp).gate(Gate::Queue);
    let request = request.on_opener(opener.clone(), addrs);
    let lease = request.ports(Ports::Range(20000..=20050)).acquire();
    assert_eq!(lease.expect("the last is free").port(), 20050);
    assert_eq!(opener.refusals.load(Ordering::Relaxed), 1);
}
