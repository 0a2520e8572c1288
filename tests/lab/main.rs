//! The lab: networks of namespaces for tests. As root and as an ordinary user alike.

mod faults;
mod gone;
mod many;
mod peer;
mod shape;
mod topologies;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use netns_exec_lab::{Lab, Link, Node};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

netns_exec::rootless::test_harness!(own_net);

/// Long enough for every machine, and never waited for where all is well.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two nodes with a link, of both families.
fn pair() -> (Node, Node, Link) {
    let lab = Lab::new().expect("an executor");
    let [a, b] = lab.nodes(["a", "b"]).expect("two namespaces");
    let link = lab.link(
        a.at(&["10.0.0.1/24", "fd00::1/64"]),
        b.at(&["10.0.0.2/24", "fd00::2/64"]),
    );
    (a, b, link.expect("a veth pair"))
}

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Has `server` say something to `client` by TCP.
#[track_caller]
fn assert_tcp(client: &Node, server: &Node, at: &str) {
    let bind = || TcpListener::bind((addr(at), 0));
    let listener = server.run(bind).expect("a worker").expect("its address");
    let to = listener.local_addr().expect("bound");
    let serving = server.spawn(move || -> std::io::Result<SocketAddr> {
        let (mut stream, from) = listener.accept()?;
        stream.write_all(b"hello")?;
        Ok(from)
    });
    let said = client.run(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    });
    let said = said.expect("a worker").expect("a way to the server");
    assert_eq!(said, "hello");
    let served = serving.expect("a worker").join().expect("no panic");
    served.expect("a client");
}

/// Sends an echo request, and waits for the reply.
#[track_caller]
fn assert_ping(from: &Node, to: &str) {
    // For ICMP of groups, of which 0 is the test's wherever it runs.
    from.sysctl("net.ipv4.ping_group_range", "0 0")
        .expect("its own sysctl");
    let to = addr(to);
    let answer = from.run(|| ping(to)).expect("a worker");
    let answer = answer.unwrap_or_else(|errno| panic!("no answer of {to}: {errno}"));
    let reply = if to.is_ipv4() { 0 } else { 129 };
    assert_eq!((answer[0], &answer[8..]), (reply, &b"ping"[..]), "{to}");
}

fn ping(to: IpAddr) -> nix::Result<Vec<u8>> {
    let (family, protocol, request) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    let packet = [&[request, 0, 0, 0, 0, 0, 0, 1], &b"ping"[..]].concat();
    let to = SockaddrStorage::from(SocketAddr::new(to, 0));
    sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
    let mut answer = vec![0; 64];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(length);
    drop::<OwnedFd>(socket);
    Ok(answer)
}

/// A UDP socket of a node, that does not wait for ever.
#[track_caller]
fn udp(node: &Node, at: &str) -> UdpSocket {
    let bind = || UdpSocket::bind((addr(at), 0));
    let socket = node.run(bind).expect("a worker").expect("its address");
    (socket.set_read_timeout(Some(PATIENCE))).expect("it is not zero");
    socket
}
