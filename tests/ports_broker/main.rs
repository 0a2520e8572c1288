//! Leases of a process that cannot enter the host's namespace any more, by way
//! of a broker that it left there. The process is `rootless.rs`; the "host" is a
//! namespace of the test's own.
//!
//! A binary of its own for its allocator, which a broker must never use, and
//! because these tests take turns.

mod lost;
mod policy;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use netns_exec::ports::{Allocator, Broker, ErrorKind, Fallback, Gate, Ports, Protocol, Stage};
use netns_exec::{CommandExt as _, Executor, Netns};
use netns_exec_tests::ports::{Rival, V4, V6, netns, rival, set_sysctl, taken};
use netns_exec_tests::{Binary, OnlyHere, Over, as_ordinary_user, is_cloexec, wait_for_exit};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, setsockopt,
    socketpair, sockopt,
};
use nix::sys::time::TimeVal;
use proptest::collection::vec;
use proptest::prelude::*;

use Protocol::{Tcp, Udp};

netns_exec::rootless::test_harness!(own_net);

#[global_allocator]
static ALLOCATOR: OnlyHere = OnlyHere::everywhere();

fn spawn() -> Broker {
    ALLOCATOR.stay_here();
    Broker::spawn().expect("it takes no privilege")
}

/// One test at a time: a process that is being started has copies of all
/// sockets for a moment, and with them the ports that another test gives up.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `rootless.rs` on a "host" of its own.
struct Daemon {
    process: Child,
    says: BufReader<ChildStdout>,
    _binary: Binary,
}

#[derive(Clone, Copy, PartialEq)]
enum User {
    Root,
    /// User 65534, without a capability.
    Ordinary,
}

impl Daemon {
    fn start(show: &str, user: User, host: &Netns) -> Daemon {
        Daemon::start_with(show, user, host, |_| Stdio::piped())
    }

    fn start_with(
        show: &str,
        user: User,
        host: &Netns,
        stdin: impl FnOnce(&mut Command) -> Stdio,
    ) -> Daemon {
        let binary = Binary::reachable_by_all(Path::new(env!("CARGO_BIN_EXE_rootless")));
        let mut command = match user {
            User::Root => Command::new(&binary.path),
            User::Ordinary => {
                let mut command = as_ordinary_user();
                command.arg(&binary.path);
                command
            }
        };
        let stdin = stdin(&mut command);
        let command = command.arg(show).current_dir("/");
        let command = command.stdin(stdin).stdout(Stdio::piped());
        let mut process = command.spawn_in(host).expect("setpriv of util-linux");
        let says = BufReader::new(process.stdout.take().expect("piped"));
        Daemon {
            process,
            says,
            _binary: binary,
        }
    }

    /// Awaits a line.
    #[track_caller]
    fn hear<T: std::str::FromStr>(&mut self) -> T {
        let mut line = String::new();
        self.says.read_line(&mut line).expect("a line");
        let heard = line.trim().parse();
        heard.unwrap_or_else(|_| panic!("it said {line:?}"))
    }

    #[track_caller]
    fn hear_that(&mut self, what: &str) {
        assert_eq!(self.hear::<String>(), what);
    }

    /// Ends its wait.
    fn go_on(&mut self) {
        let stdin = self.process.stdin.as_mut().expect("piped");
        writeln!(stdin).expect("it reads");
    }

    /// It finds everything as it should be.
    #[track_caller]
    fn ends_well(mut self) {
        let status = self.process.wait().expect("a child");
        assert!(status.success(), "{status}");
    }

    fn kill(mut self) {
        self.process.kill().expect("a child");
        self.process.wait().expect("a child");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A "host", and an executor that can look into it.
fn host() -> (Executor, Netns) {
    (Executor::new().unwrap(), netns())
}

#[test]
fn ordinary_user_leases_a_port_on_the_host_and_in_the_child() {
    let _turn = turn();
    let (executor, host) = host();
    let _rival = rival(&executor, &host, Tcp, V4, 20000);
    let mut daemon = Daemon::start("lease", User::Ordinary, &host);
    let broker: u32 = daemon.hear();
    let port: u16 = daemon.hear();
    let seen = taken(&executor, &host, Tcp);
    let of_lease = [(V4, port).into(), (V6, port).into()];
    assert!(of_lease.iter().all(|addr| seen.contains(addr)), "{seen:?}");
    for addr in [V4, V6] {
        let connect = || TcpStream::connect((addr, port));
        executor.run(&host, connect).unwrap().unwrap();
    }
    daemon.hear_that("dropped");
    // A listener would not get a port with a connection in TIME_WAIT.
    let free = Rival {
        reuse: true,
        ..Rival::default()
    };
    free.take(&executor, &host, Tcp, V4, port).unwrap();
    daemon.go_on();
    daemon.ends_well();
    wait_for_exit(broker);
    assert_eq!(taken(&executor, &host, Udp).len(), 0);
}

#[test]
fn broker_of_root_binds_low_ports_and_filters_packets() {
    let _turn = turn();
    let (executor, host) = host();
    let _rivals = [80, 81].map(|port| rival(&executor, &host, Tcp, V4, port));
    let mut daemon = Daemon::start("privileged", User::Root, &host);
    let broker: u32 = daemon.hear();
    let status = fs::read_to_string(format!("/proc/{broker}/status")).unwrap();
    // CAP_NET_BIND_SERVICE and CAP_NET_ADMIN.
    assert_eq!(field(&status, "CapPrm"), "0000000000001400");
    let port: u16 = daemon.hear();
    assert_eq!(port, 82);
    let connect = || TcpStream::connect((V4, port));
    executor.run(&host, connect).unwrap().unwrap();
    daemon.go_on();
    daemon.hear_that("dropped");
    assert!(!taken(&executor, &host, Tcp).contains(&(V6, port).into()));
    daemon.go_on();
    daemon.ends_well();
}

#[test]
fn walk_goes_on_whichever_side_is_in_the_way() {
    let _turn = turn();
    let (executor, host) = host();
    let even = (20000..20100).step_by(2);
    let many = 30000..30400;
    let _rivals: Vec<_> = even
        .chain(many)
        .map(|port| rival(&executor, &host, Tcp, V4, port))
        .collect();
    Daemon::start("contention", User::Ordinary, &host).ends_well();
}

#[test]
fn dynamic_range_and_reserved_ports_are_those_of_the_host_at_the_time() {
    let _turn = turn();
    let (executor, host) = host();
    let range = "net/ipv4/ip_local_port_range";
    let reserved = "net/ipv4/ip_local_reserved_ports";
    set_sysctl(&executor, &host, range, "40000 40019");
    // More than fits into a small buffer.
    let even: Vec<_> = (40000..40020)
        .step_by(2)
        .map(|port: u16| port.to_string())
        .collect();
    set_sysctl(&executor, &host, reserved, &even.join(","));
    let mut daemon = Daemon::start("dynamic", User::Ordinary, &host);
    daemon.hear_that("ready");
    set_sysctl(&executor, &host, range, "41000 41009");
    daemon.go_on();
    daemon.ends_well();
}

#[test]
fn killed_broker_is_an_error_and_costs_no_lease() {
    let _turn = turn();
    let (executor, host) = host();
    let mut daemon = Daemon::start("broker-killed", User::Ordinary, &host);
    let port: u16 = daemon.hear();
    let connect = || TcpStream::connect((V4, port));
    executor.run(&host, connect).unwrap().unwrap();
    daemon.go_on();
    daemon.ends_well();
    assert!(!taken(&executor, &host, Tcp).contains(&(V6, port).into()));
}

#[test]
fn descriptors_without_room_are_an_error_and_not_lost() {
    let _turn = turn();
    let (_, host) = host();
    Daemon::start("no-room", User::Ordinary, &host).ends_well();
}

#[test]
fn cancelled_request_and_killed_process_leave_nothing_on_the_host() {
    let _turn = turn();
    let (executor, host) = host();
    let rivals: Vec<_> = (20000..20010)
        .map(|port| rival(&executor, &host, Tcp, V4, port))
        .collect();
    let mut daemon = Daemon::start("cancel", User::Ordinary, &host);
    daemon.hear_that("cancelled");
    assert_eq!(taken(&executor, &host, Tcp).len(), 10);
    drop(rivals);
    daemon.go_on();
    let port: u16 = daemon.hear();
    assert_eq!(taken(&executor, &host, Tcp).len(), 2);
    daemon.kill();
    assert_eq!(taken(&executor, &host, Tcp).len(), 0);
    rival(&executor, &host, Tcp, V4, port);
}

/// The other way to be rootless: a process outside starts us inside.
#[test]
fn broker_can_be_handed_to_a_process_that_is_born_inside() {
    let _turn = turn();
    let (executor, host) = host();
    let _rival = rival(&executor, &host, Tcp, V4, 20000);
    let broker = executor.run(&host, spawn).unwrap();
    assert_eq!(broker.netns(), host.id());
    let socket = broker.try_clone_socket().unwrap();
    assert!(is_cloexec(socket.as_fd()));
    let mut daemon = Daemon::start_with("adopt", User::Root, &host, |command| {
        let program = command.get_program().to_owned();
        *command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--net"])
            .arg(program);
        command.arg0("unshare");
        Stdio::from(socket)
    });
    let port: u16 = daemon.hear();
    assert_eq!(port, 20001);
    let connect = || TcpStream::connect((V4, port));
    executor.run(&host, connect).unwrap().unwrap();
    // It is theirs now.
    let ports = Allocator::new(&executor);
    let request = ports.request(Tcp).on_broker(&broker, [V4]);
    let error = request.ports(Ports::Exact(20002)).acquire().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Broker);
    assert!(error.to_string().contains("out of order"), "{error}");
    daemon.kill();
    let pid = broker.pid();
    drop(broker);
    wait_for_exit(pid);
    assert_eq!(taken(&executor, &host, Tcp).len(), 1);
}

#[test]
fn something_that_is_no_broker_is_not_adopted() {
    let _turn = turn();
    let error = Broker::adopt(File::open("/dev/null").unwrap().into()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Broker);
    let (ours, theirs) = pair();
    drop(theirs);
    let error = Broker::adopt(ours).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Broker);
    assert!(error.to_string().contains("the broker is gone"), "{error}");
}

// The process

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    status.lines().find_map(line).unwrap().trim()
}

fn links(pid: u32) -> Vec<String> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let link = |fd: std::io::Result<fs::DirEntry>| fs::read_link(fd.unwrap().path()).unwrap();
    let mut links: Vec<_> = fds.map(|fd| link(fd).display().to_string()).collect();
    links.sort_unstable();
    links
}

#[test]
fn broker_keeps_no_descriptor_and_no_privilege_that_it_does_not_need() {
    let _turn = turn();
    // The numbers in between are free for what the broker keeps.
    let mut open: Vec<_> = (0..60).map(|_| File::open("/dev/null").unwrap()).collect();
    drop(open.drain(10..50));
    let broker = spawn();
    let links = links(broker.pid());
    assert_eq!(
        links[..2],
        [
            "/proc/sys/net/ipv4/ip_local_port_range",
            "/proc/sys/net/ipv4/ip_local_reserved_ports",
        ]
    );
    assert!(links[2].starts_with("socket:"), "{links:?}");
    assert_eq!(links.len(), 3, "{links:?}");

    let proc = |name| format!("/proc/{}/{name}", broker.pid());
    let status = fs::read_to_string(proc("status")).unwrap();
    for caps in ["CapPrm", "CapEff"] {
        assert_eq!(field(&status, caps), "0000000000001400");
    }
    for caps in ["CapInh", "CapAmb"] {
        assert_eq!(field(&status, caps), "0000000000000000");
    }
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    assert_eq!(field(&status, "Seccomp"), "2");
    assert_eq!(field(&status, "Threads"), "1");
    assert_eq!(field(&status, "Name"), "netns-broker");
    // SIGTERM and all the others but SIGKILL, SIGSTOP, and two of the C library.
    let blocked = u64::from_str_radix(field(&status, "SigBlk"), 16).unwrap();
    assert_eq!(blocked.count_ones(), 60, "{blocked:x}");
    assert_eq!(fs::read_link(proc("cwd")).unwrap(), Path::new("/"));
}

#[test]
fn broker_ends_with_its_last_clone_and_leaves_no_zombie() {
    let _turn = turn();
    let broker = spawn();
    let path = format!("/proc/{}", broker.pid());
    let clone = broker.clone();
    drop(broker);
    assert!(fs::exists(&path).unwrap());
    drop(clone);
    assert!(!fs::exists(&path).unwrap());
}

/// The other threads hold locks at any time, that of the allocator above all.
#[test]
fn broker_can_be_spawned_beside_threads_that_allocate() {
    let _turn = turn();
    let (executor, host) = host();
    let over = Over::default();
    thread::scope(|scope| {
        let _over = over.comes_with_drop();
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.has_come() {
                    let text = vec![String::from("something on the heap"); 100];
                    assert_eq!(std::hint::black_box(text).len(), 100);
                }
            });
        }
        for _ in 0..50 {
            let broker = executor.run(&host, spawn).unwrap();
            let ports = Allocator::new(&executor);
            for addr in [V4, V6] {
                let request = ports.request(Tcp).on_broker(&broker, [addr]);
                let dynamic = Ports::DynamicOfBroker { of: &broker };
                request.ports(dynamic).acquire().unwrap();
            }
        }
    });
}

/// Every step that a broker can take, under the allocator that forbids one.
#[test]
fn broker_serves_every_protocol_family_and_gate() {
    let _turn = turn();
    let (executor, host) = host();
    let _rival = rival(&executor, &host, Tcp, V4, 20000);
    let broker = executor.run(&host, spawn).unwrap();
    let ports = Allocator::new(&executor);
    let gates = [
        Gate::Queue,
        Gate::Refuse,
        Gate::Drop {
            otherwise: Fallback::Fail,
        },
    ];
    for protocol in [Tcp, Udp, Protocol::Sctp] {
        for (gate, port) in gates.into_iter().zip(20001..) {
            let request = ports.request(protocol).on_broker(&broker, [V4, V6]);
            let request = request.gate(gate).ports(Ports::Exact(port));
            match request.acquire() {
                Ok(lease) => assert_eq!(lease.members().len(), 2),
                Err(error) if protocol == Protocol::Sctp => {
                    assert_eq!(error.stage(), Some(Stage::Socket), "{error}");
                }
                Err(error) => {
                    assert_eq!((protocol, gate), (Udp, Gate::Refuse), "{error}");
                    assert_eq!(error.kind(), ErrorKind::Invalid);
                }
            }
        }
    }
    let request = ports.request(Tcp).on_broker(&broker, [V4]);
    let error = request.ports(Ports::Exact(20000)).acquire().unwrap_err();
    assert_eq!(error.stage(), Some(Stage::Bind));
    // 100 addresses are more than one message holds.
    let addrs = (1..=100).map(|n| std::net::IpAddr::from([127, 0, 1, n]));
    let request = ports.request(Tcp).on_broker(&broker, addrs);
    let lease = request
        .ports(Ports::Range(20000..=20009))
        .acquire()
        .unwrap();
    assert_eq!(lease.members().len(), 100);
}

// The protocol, with bytes of our own: "nxb1", number, kind, flags, count, 0.

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
}

fn head(seq: u32, kind: u8, flags: u8, count: u8) -> Vec<u8> {
    [&b"nxb1"[..], &seq.to_ne_bytes(), &[kind, flags, count, 0]].concat()
}

const HELLO: u8 = 1;
const VEND: u8 = 2;
const BIND: u8 = 3;
const MALFORMED: u8 = 6;

/// A real broker, and the raw socket that leads to it.
struct Raw {
    broker: Broker,
    socket: OwnedFd,
}

impl Raw {
    fn new() -> Raw {
        let broker = spawn();
        let socket = broker.try_clone_socket().unwrap();
        let patience = TimeVal::new(10, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).unwrap();
        Raw { broker, socket }
    }

    fn send(&self, message: &[u8]) {
        send(self.socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    fn answer(&self) -> Vec<u8> {
        let mut answer = vec![0; 64 * 1024];
        let len = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        answer.truncate(len);
        answer
    }

    /// Whatever was sent was answered by a refusal, of which this is the reason.
    fn reason(&self) -> u8 {
        let answer = self.answer();
        assert_eq!((answer.len(), answer[8]), (13, MALFORMED), "{answer:?}");
        answer[12]
    }

    /// It still serves as if nothing had happened.
    #[track_caller]
    fn is_well(&self) {
        self.send(&head(7, HELLO, 0, 0));
        assert_eq!(self.answer()[..12], head(7, HELLO, 0, 0));
        assert_eq!(links(self.broker.pid()).len(), 3);
    }
}

const TRUNCATED: u8 = 0;
const OVERSIZED: u8 = 1;
const MAGIC: u8 = 2;
const KIND: u8 = 3;
const VALUE: u8 = 4;
const ORDER: u8 = 5;
const DESCRIPTORS: u8 = 6;

#[test]
fn broker_refuses_what_is_malformed_and_serves_on() {
    let _turn = turn();
    let raw = Raw::new();
    let hello = head(1, HELLO, 0, 0);
    let mut spec = vec![0, 0, 4, 0, 127, 0, 0, 1];
    spec.resize(20, 0);
    let bind = |ports: [u16; 2]| {
        let ports = ports.map(u16::to_ne_bytes).concat();
        [&head(8, BIND, 0, 0)[..], &spec, &ports].concat()
    };
    let cases = [
        (hello[..1].to_vec(), TRUNCATED),
        (hello[..11].to_vec(), TRUNCATED),
        ([&hello[..], &[0]].concat(), OVERSIZED),
        (vec![0; 100_000], OVERSIZED),
        ([b"nxb2", &hello[4..]].concat(), MAGIC),
        (head(1, 0, 0, 0), KIND),
        (head(1, MALFORMED, 0, 0), KIND),
        (head(1, HELLO, 1, 0), VALUE),
        (head(8, VEND, 0, 1), TRUNCATED),
        ([&head(8, VEND, 0, 0)[..], &spec].concat(), OVERSIZED),
        (head(8, VEND, 0, 65), VALUE),
        ([&head(8, VEND, 0, 1)[..], &[9; 20]].concat(), VALUE),
        (bind([0, 5]), VALUE),
        (bind([5, 4]), VALUE),
        // Of another number than is next.
        (head(9, VEND, 1, 0), ORDER),
        (head(7, VEND, 1, 0), ORDER),
    ];
    raw.is_well();
    for (message, reason) in cases {
        raw.send(&message);
        assert_eq!(raw.reason(), reason, "{message:?}");
        raw.is_well();
    }
    // What is right is still done.
    raw.send(&head(8, VEND, 1, 0));
    assert_eq!(raw.answer()[..12], head(8, VEND, 1, 0));
}

#[test]
fn broker_wants_a_hello_first() {
    let _turn = turn();
    // Its own has been said by `spawn`, with the number 1.
    let raw = Raw::new();
    raw.send(&head(1, VEND, 1, 0));
    assert_eq!(raw.reason(), ORDER);
    raw.send(&head(3, VEND, 1, 0));
    assert_eq!(raw.reason(), ORDER);
    raw.send(&head(2, VEND, 1, 0));
    assert_eq!(raw.answer()[8], VEND);
    raw.is_well();
}

#[test]
fn broker_takes_no_descriptors() {
    let _turn = turn();
    let raw = Raw::new();
    let hello = head(2, HELLO, 0, 0);
    let null = File::open("/dev/null").unwrap();
    let fds = [null.as_raw_fd(); 100];
    let rights = [ControlMessage::ScmRights(&fds)];
    let iov = [IoSlice::new(&hello)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(raw.socket.as_raw_fd(), &iov, &rights, flags, None).unwrap();
    assert_eq!(raw.reason(), DESCRIPTORS);
    raw.is_well();
}

#[test]
fn broker_ends_with_an_empty_message_and_with_its_socket() {
    let _turn = turn();
    let raw = Raw::new();
    raw.send(&[]);
    wait_for_exit(raw.broker.pid());

    // With an answer that its client has not read.
    let raw = Raw::new();
    raw.send(&head(1, HELLO, 0, 0));
    let pid = raw.broker.pid();
    drop(raw);
    wait_for_exit(pid);
}

#[test]
fn noise_does_not_harm_a_broker() {
    let _turn = turn();
    let raw = Raw::new();
    let messages = (any::<bool>(), 0..8_u8, vec(any::<u8>(), 1..200));
    let mut runner = proptest::test_runner::TestRunner::default();
    let test = |(with_head, kind, mut message): (bool, u8, Vec<u8>)| {
        raw.is_well();
        if with_head {
            message.splice(..0, head(8, kind, 0, message[0] % 3));
        }
        raw.send(&message);
        // Closed at once, if there are sockets in it.
        prop_assert!(raw.answer().len() >= 12);
        Ok(())
    };
    runner.run(&messages, test).unwrap();
    raw.is_well();
}
