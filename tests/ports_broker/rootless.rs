//! What a rootless daemon does with a broker, in the process that it takes: the
//! one test that runs beside others cannot enter a user namespace, which wants a
//! process without threads. `main.rs` starts this program in a "host"
//! namespace, with the name of what is to be shown.
//!
//! It speaks with the test line by line: `say` is awaited there, and `wait` is
//! ended from there.

use std::env;
use std::fmt::Display;
use std::fs;
use std::future::Future;
use std::io::{self, BufRead, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use netns_exec::ports::{
    Allocator, Broker, Budget, ErrorKind, Fallback, Gate, GateState, Lease, Ports, Protocol, Stage,
    Start,
};
use netns_exec::{Executor, Netns};
use netns_exec_tests::ports::{V4, V4_ANY, V6, netns as child_netns, taken};
use netns_exec_tests::{
    OnlyHere, eventually, fds_of_this_process, is_cloexec, threads_of_this_process, wait_for_exit,
};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getgid, getuid};

use Protocol::{Tcp, Udp};

#[global_allocator]
static ALLOCATOR: OnlyHere = OnlyHere::everywhere();

fn main() {
    ALLOCATOR.stay_here();
    let name = env::args().nth(1).expect("the name of what is to be shown");
    match &*name {
        "lease" => lease(),
        "privileged" => privileged(),
        "contention" => contention(),
        "dynamic" => dynamic(),
        "broker-killed" => broker_killed(),
        "no-room" => no_room(),
        "cancel" => cancel(),
        "adopt" => adopt(),
        other => panic!("{other}?"),
    }
}

fn say(line: impl Display) {
    println!("{line}");
    io::stdout().flush().expect("the test reads");
}

/// Waits for a line of the test's.
fn wait() -> String {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).expect("a line");
    line.trim().to_owned()
}

/// A daemon with its child namespace.
struct Daemon {
    executor: Executor,
    ports: Allocator,
    child: Netns,
}

impl Daemon {
    /// Becomes root of a user namespace, in a network namespace of its own.
    fn inside() -> Daemon {
        assert_eq!(threads_of_this_process(), 1);
        let (uid, gid) = (getuid(), getgid());
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).expect("a user may");
        fs::write("/proc/self/setgroups", "deny").expect("once");
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).expect("once");
        fs::write("/proc/self/gid_map", format!("0 {gid} 1")).expect("once");
        let executor = Executor::new().expect("no privilege is needed");
        let child = Netns::current().expect("this thread is somewhere");
        child.set_loopback_up().expect("it is ours");
        Daemon {
            ports: Allocator::starting_at(&executor, Start::Beginning),
            executor,
            child,
        }
    }

    fn tcp(
        &self,
        broker: &Broker,
        range: std::ops::RangeInclusive<u16>,
    ) -> Result<Lease, netns_exec::ports::Error> {
        self.request(broker, Tcp)
            .ports(Ports::Range(range))
            .acquire()
    }

    /// On the host, and in the child. An ordinary user's broker has no filters.
    fn request(&self, broker: &Broker, protocol: Protocol) -> netns_exec::ports::Request {
        self.ports
            .request(protocol)
            .on_broker(broker, [V4, V6])
            .on(&self.child, [V4_ANY])
            .gate(Gate::Drop {
                otherwise: Fallback::Queue,
            })
    }

    /// How many TCP ports are in use in the child.
    fn in_child(&self) -> usize {
        taken(&self.executor, &self.child, Tcp).len()
    }
}

/// The test has 20000 on the host; 20001 is taken here.
fn lease() {
    let broker = Broker::spawn().expect("it takes no privilege");
    say(broker.pid());
    let daemon = Daemon::inside();
    let _rival = TcpListener::bind((V4, 20001)).expect("no other process is here");
    let lease = daemon.tcp(&broker, 20000..=20009).expect("a free port");
    assert_eq!(lease.port(), 20002);
    let netns: Vec<_> = (lease.members().iter())
        .map(|member| member.endpoint().netns())
        .collect();
    assert_eq!(netns, [broker.netns(), broker.netns(), daemon.child.id()]);
    assert_ne!(broker.netns(), daemon.child.id());
    assert!(lease.members().iter().all(|m| is_cloexec(m.as_fd())));
    lease.activate().expect("nothing needs a privilege");
    // To the test on the host, which connects.
    say(lease.port());
    let (members, hold) = lease.split();
    let mut members = members.into_iter();
    for _ in 0..2 {
        let member = members.next().expect("two on the host");
        let (stream, _) = TcpListener::from(OwnedFd::from(member))
            .accept()
            .expect("the test connects");
        drop(stream);
    }
    TcpStream::connect((V4, 20002)).expect("it listens here, too");
    drop((members, hold));
    say("dropped");
    wait();

    // UDP just as well, and without a filter no client is let in.
    let udp = daemon.request(&broker, Udp).ports(Ports::Exact(20000));
    let udp = udp.acquire().expect("tcp says nothing about udp");
    assert!(
        udp.members()
            .iter()
            .all(|m| m.gate() == GateState::Dropping)
    );
    // Its own errors, too.
    let nowhere = IpAddr::from([192, 0, 2, 1]);
    let request = daemon.ports.request(Tcp).on_broker(&broker, [nowhere]);
    let request = request.gate(Gate::Queue).ports(Ports::Exact(20000));
    let error = request.acquire().expect_err("there is no such address");
    assert_eq!(error.raw_os_error(), Some(Errno::EADDRNOTAVAIL as i32));
    assert_eq!(error.stage(), Some(Stage::Bind));
    assert_eq!(error.endpoint().map(|e| e.netns()), Some(broker.netns()));
    let low = daemon.request(&broker, Tcp).ports(Ports::Exact(80));
    let error = low.acquire().expect_err("the host is not ours");
    assert_eq!(error.raw_os_error(), Some(Errno::EACCES as i32));
    assert_eq!(error.endpoint().map(|e| e.netns()), Some(broker.netns()));
}

/// Of a broker that was root's.
fn privileged() {
    let broker = Broker::spawn().expect("it takes no privilege");
    say(broker.pid());
    let daemon = Daemon::inside();
    let low = |ports| {
        let request = daemon.request(&broker, Tcp).ports(ports);
        request.gate(Gate::default()).acquire()
    };
    // 80 and 81 are the test's.
    let error = low(Ports::Exact(80)).expect_err("a rival has it");
    assert_eq!(error.raw_os_error(), Some(Errno::EADDRINUSE as i32));
    assert_eq!(error.stage(), Some(Stage::Bind));
    let lease = low(Ports::Range(80..=89)).expect("the broker may");
    assert_eq!(lease.port(), 82);
    let gates = lease.members().iter().map(|member| member.gate());
    assert!(gates.into_iter().all(|gate| gate == GateState::Dropping));
    lease.activate().expect("the owner of the socket may");
    say(lease.port());
    wait();
    drop(lease);
    say("dropped");
    wait();
}

/// The test has the even ports on the host, and 400 more from 30000.
fn contention() {
    let broker = Broker::spawn().expect("it takes no privilege");
    let daemon = Daemon::inside();
    let _odd: Vec<_> = (20001..20100)
        .step_by(4)
        .map(|port| TcpListener::bind((V4, port)).expect("no other process is here"))
        .collect();
    // 20003, 20007, ... are left: one for each of 25 threads.
    let lease = || daemon.tcp(&broker, 20000..=20099).expect("there are 25");
    let leases: Vec<Lease> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..25).map(|_| scope.spawn(lease)).collect();
        let leases = threads.into_iter().map(|t| t.join().expect("no panic"));
        leases.collect()
    });
    let mut ports: Vec<u16> = leases.iter().map(Lease::port).collect();
    ports.sort_unstable();
    assert_eq!(ports, (20003..20100).step_by(4).collect::<Vec<_>>());
    let error = daemon
        .tcp(&broker, 20000..=20099)
        .expect_err("none is left");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert_eq!((error.counts().leased, error.counts().tried), (25, 75));
    drop(leases);

    // After 32 in a row it is the broker that walks: not 400 tries.
    let lease = daemon.tcp(&broker, 30000..=30400).expect("the last one");
    assert_eq!(lease.port(), 30400);
    drop(lease);
    let budget = Budget::Tries(400);
    let request = daemon.request(&broker, Tcp).budget(budget);
    let error = request.ports(Ports::Range(30000..=30400)).acquire();
    assert_eq!(error.expect_err("only ours count").counts().tried, 400);
    assert_eq!(daemon.in_child(), 25);
}

/// On the host 40000-40019 are dynamic, of which the even ones are reserved.
fn dynamic() {
    let broker = Broker::spawn().expect("it takes no privilege");
    let daemon = Daemon::inside();
    let lease = || {
        let of = &broker;
        let request = daemon.request(&broker, Tcp);
        request.ports(Ports::DynamicOfBroker { of }).acquire()
    };
    let leases: Vec<_> = (0..10).map(|_| lease().expect("ten are left")).collect();
    let ports: Vec<_> = leases.iter().map(Lease::port).collect();
    assert_eq!(ports, (40001..40020).step_by(2).collect::<Vec<_>>());
    let error = lease().expect_err("none is left");
    assert_eq!((error.counts().reserved, error.counts().leased), (10, 10));
    // The range of the child, and what is reserved anywhere.
    let of = &daemon.child;
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    let reserved = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let write = |path, text| fs::write(path, text).expect("the child is ours");
    daemon
        .executor
        .run(of, || write(range, "40000 40021"))
        .expect("a worker");
    daemon
        .executor
        .run(of, || write(reserved, "40020"))
        .expect("a worker");
    let request = daemon.request(&broker, Tcp).ports(Ports::Dynamic { of });
    assert_eq!(request.acquire().expect("one is left").port(), 40021);
    say("ready");
    // The test changes the settings.
    wait();
    assert_eq!(lease().expect("the range has moved").port(), 41000);
}

fn broker_killed() {
    let broker = Broker::spawn().expect("it takes no privilege");
    let daemon = Daemon::inside();
    let before = daemon.tcp(&broker, 20000..=20009).expect("a free port");
    let open = sockets();
    kill(Pid::from_raw(broker.pid() as i32), Signal::SIGKILL).expect("it is ours");
    wait_for_exit(broker.pid());
    let error = daemon.tcp(&broker, 20000..=20009).expect_err("it is gone");
    assert_eq!(error.kind(), ErrorKind::Broker);
    assert_eq!(error.stage(), Some(Stage::Transfer));
    let text = error.to_string();
    assert!(text.contains("the broker is gone"), "{text}");
    // No claim is left, the line is closed, and what is ours stays ours.
    assert_eq!(daemon.ports.leased().len(), 3);
    assert_eq!(daemon.in_child(), 1);
    assert_eq!(sockets(), open - 1);
    before.activate().expect("leases need no broker");
    say(before.port());
    wait();
    drop(before);
    let request = daemon.ports.request(Tcp).on(&daemon.child, [V4]);
    let alone = request.ports(Ports::Exact(20000)).acquire();
    alone.expect("the child needs no broker");
    // Its end is noticed, and it is reaped.
    let path = format!("/proc/{}", broker.pid());
    assert!(fs::exists(&path).expect("/proc is mounted"));
    drop(broker);
    assert!(!fs::exists(&path).expect("/proc is mounted"));
}

/// The limit on open files is met while descriptors come in.
fn no_room() {
    let broker = Broker::spawn().expect("it takes no privilege");
    let daemon = Daemon::inside();
    drop(daemon.tcp(&broker, 20000..=20009).expect("a free port"));
    let (fds, open) = (fds_of_this_process(), sockets());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, fds as u64 + 40, hard).expect("lower is allowed");
    let copy = || io::stdin().as_fd().try_clone_to_owned().ok();
    let mut fill: Vec<OwnedFd> = std::iter::from_fn(copy).collect();
    fill.pop();
    // One of the two has room, and is closed again.
    let mut request = daemon.ports.request(Tcp).on_broker(&broker, [V4, V6]);
    request = request.gate(Gate::Queue).ports(Ports::Exact(20000));
    let error = request.acquire().expect_err("no room for both");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("as it was");
    assert_eq!(error.kind(), ErrorKind::Broker, "{error}");
    assert_eq!(error.stage(), Some(Stage::Transfer));
    assert_eq!(error.raw_os_error(), Some(Errno::EMFILE as i32));
    drop(fill);
    assert_eq!(sockets(), open);
    // The line is as good as before.
    daemon.tcp(&broker, 20000..=20009).expect("a free port");
}

/// How many sockets this process has.
fn sockets() -> usize {
    let fds = fs::read_dir("/proc/self/fd").expect("/proc is mounted");
    // One may be gone by now.
    let links = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    links
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .count()
}

/// The test has all of 20000-20009 on the host; 20010-20019 are taken here.
fn cancel() {
    let broker = Broker::spawn().expect("it takes no privilege");
    let daemon = Daemon::inside();
    let rivals: Vec<_> = (20010..20020)
        .map(|port| TcpListener::bind((V4, port)).expect("no other process is here"))
        .collect();
    drop(daemon.tcp(&broker, 20020..=20020).expect("a free port"));
    assert_eq!(daemon.in_child(), 10);
    let before = sockets();
    for _ in 0..20 {
        let budget = Budget::Deadline(Instant::now() + Duration::from_secs(3600));
        let request = daemon.request(&broker, Tcp).budget(budget);
        let request = request.ports(Ports::Range(20000..=20019));
        let mut future = Box::pin(request.acquire_async());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(future.as_mut().poll(&mut cx), Poll::Pending));
        eventually("it is in the middle", || sockets() >= before + 3);
        drop(future);
        eventually("nothing is left", || sockets() == before);
    }
    assert_eq!(daemon.in_child(), 10);
    assert_eq!(daemon.ports.leased(), []);
    drop(rivals);
    say("cancelled");
    wait();
    // The test has given them up, and so have we.
    let lease = daemon.tcp(&broker, 20000..=20009).expect("all are free");
    say(lease.port());
    // Ends here by SIGKILL, with a lease.
    wait();
    unreachable!("killed");
}

/// Started inside by the test, whose broker is our standard input.
fn adopt() {
    let socket = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("it is open");
    let broker = Broker::adopt(socket).expect("a broker");
    let executor = Executor::new().expect("no privilege is needed");
    let child = child_netns();
    let ports = Allocator::starting_at(&executor, Start::Beginning);
    let request = ports.request(Tcp).on_broker(&broker, [V4]).on(&child, [V4]);
    let lease = request.ports(Ports::Range(20000..=20009)).acquire();
    let lease = lease.expect("a free port");
    assert_eq!(lease.members()[0].gate(), GateState::Dropping);
    lease.activate().expect("the owner of the socket may");
    say(lease.port());
    // Ends by SIGKILL.
    loop {
        std::thread::park();
    }
}
