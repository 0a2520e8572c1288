//! What a broker with a policy hands out, and what not, whatever it is asked for.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use netns_exec::ports::{
    Allocator, Broker, ErrorKind, Fallback, Gate, GateState, Policy, Ports, Protocol, Request,
    Stage, Start,
};
use netns_exec::{Executor, Netns};
use netns_exec_tests::ports::{V4, V4_ANY, netns, refused, rival};
use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, Shutdown, SockaddrStorage, connect, recv, send, setsockopt, shutdown, sockopt,
};
use nix::sys::time::TimeVal;

use Protocol::{Tcp, Udp};

use super::{ALLOCATOR, turn};

struct World {
    executor: Executor,
    ports: Allocator,
    host: Netns,
    broker: Broker,
}

impl World {
    fn new(policy: Policy) -> World {
        let (executor, host) = (Executor::new().unwrap(), netns());
        ALLOCATOR.stay_here();
        let spawned = executor.run(&host, || Broker::spawn_with(policy));
        World {
            broker: spawned.unwrap().unwrap(),
            ports: Allocator::starting_at(&executor, Start::Beginning),
            executor,
            host,
        }
    }

    fn request(&self, protocol: Protocol, addr: IpAddr) -> Request {
        let request = self.ports.request(protocol).on_broker(&self.broker, [addr]);
        request.gate(Gate::Queue).ports(Ports::Range(20000..=30000))
    }
}

#[test]
fn broker_serves_the_ports_and_addresses_of_its_policy_and_no_others() {
    let _turn = turn();
    let policy = Policy::new()
        .ports(25000..=25002)
        .ports(80..=80)
        .addrs([V4, V4_ANY]);
    let w = World::new(policy);
    let _rivals = [25000, 25001].map(|port| rival(&w.executor, &w.host, Tcp, V4, port));
    for protocol in [Tcp, Udp] {
        let free = if protocol == Tcp { 25002 } else { 25000 };
        let lease = w
            .request(protocol, V4)
            .ports(Ports::Range(25000..=25009))
            .acquire();
        let lease = lease.unwrap();
        assert_eq!(lease.port(), free);
        lease.activate().unwrap();
    }
    // The three are found among ten thousand.
    let lease = w.request(Udp, V4_ANY).acquire().unwrap();
    assert!((25000..=25002).contains(&lease.port()));
    assert_eq!(
        w.request(Tcp, V4)
            .ports(Ports::Exact(80))
            .acquire()
            .unwrap()
            .port(),
        80
    );

    let error = refused(w.request(Tcp, V4).ports(Ports::Exact(24999)).acquire());
    assert_eq!(error.stage(), Some(Stage::Bind));
    assert_eq!(error.raw_os_error(), Some(Errno::EACCES as i32));
    assert!(error.to_string().contains("policy"), "{error}");
    let elsewhere = Ipv4Addr::new(127, 0, 0, 2).into();
    let error = refused(w.request(Tcp, elsewhere).acquire());
    assert_eq!(error.raw_os_error(), Some(Errno::EPERM as i32));
    assert!(error.to_string().contains("policy"), "{error}");
    assert_eq!(error.counts().tried, 1);
    let error = refused(w.request(Tcp, V4).free_bind(true).acquire());
    assert_eq!(error.raw_os_error(), Some(Errno::EOPNOTSUPP as i32));

    let request = w
        .request(Tcp, V4)
        .ports(Ports::DynamicOfBroker { of: &w.broker });
    let error = refused(request.acquire());
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
}

/// The check is the broker's: a client that does not know of it is refused.
#[test]
fn unbound_socket_is_not_had_from_a_broker_with_a_policy_by_any_message() {
    let _turn = turn();
    let w = World::new(Policy::new().ports(25000..=25002));
    let socket = w.broker.try_clone_socket().unwrap();
    let mut spec = vec![0, 0, 4, 0, 127, 0, 0, 1];
    spec.resize(20, 0);
    let ask = |message: &[u8]| {
        send(socket.as_raw_fd(), message, MsgFlags::empty()).unwrap();
        let mut answer = vec![0; 64 * 1024];
        let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        answer.truncate(len);
        answer
    };
    ask(&super::head(7, super::HELLO, 0, 0));
    let answer = ask(&[super::head(8, super::VEND, 0, 1), spec.clone()].concat());
    // With a fault, and without a descriptor.
    assert_eq!(answer[8..12], [super::VEND, 2, 0, 0]);
    let ports = [24000_u16, 24999].map(u16::to_ne_bytes).concat();
    let answer = ask(&[super::head(9, super::BIND, 0, 0), spec, ports].concat());
    assert_ne!(answer[8], super::BIND);
}

#[test]
fn listener_of_a_broker_that_hands_out_no_other_cannot_connect() {
    let _turn = turn();
    let w = World::new(Policy::new().accept_only(true));
    let _secret = rival(&w.executor, &w.host, Tcp, V4, 34000);
    let gate = Gate::Drop {
        otherwise: Fallback::Refuse,
    };
    for gate in [Gate::Queue, gate] {
        let lease = w.request(Tcp, V4).gate(gate).acquire().unwrap();
        assert_ne!(lease.members()[0].gate(), GateState::Dropping);
        lease.activate().unwrap();
        let addr = lease.members()[0].local_addr();
        let (mut members, _hold) = lease.split();
        let listener: TcpListener = OwnedFd::from(members.remove(0)).into();
        let client = w
            .executor
            .run(&w.host, || std::net::TcpStream::connect(addr));
        client.unwrap().unwrap();
        listener.accept().unwrap();
        shutdown(listener.as_raw_fd(), Shutdown::Both).unwrap();
        setsockopt(&listener, sockopt::SendTimeout, &TimeVal::new(0, 300_000)).unwrap();
        let secret = SockaddrStorage::from(std::net::SocketAddr::new(V4, 34000));
        assert_eq!(
            connect(listener.as_raw_fd(), &secret),
            Err(Errno::EINPROGRESS)
        );
    }
    let error = refused(w.request(Udp, V4).acquire());
    assert_eq!(error.raw_os_error(), Some(Errno::EPERM as i32));
    let error = refused(w.request(Tcp, V4).gate(Gate::default()).acquire());
    assert_eq!(error.stage(), Some(Stage::Filter));
}
