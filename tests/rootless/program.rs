//! What a rootless program does, in a process that it takes: a user namespace is for
//! the whole process. The tests start this with the name of what is to be shown, as an
//! ordinary user.

use std::env;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::process;
use std::thread;

use netns_exec::ports::{Allocator, Gate, Policy, Ports, Protocol};
use netns_exec::rootless::{self, Setup};
use netns_exec::{Executor, Netns};
use netns_exec_tests::{here, threads_of_this_process};
use nix::unistd::{getgid, getuid};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    println!("main of {} with {}", process::id(), arguments.join(" "));
    match &*arguments[0] {
        "enter" => enter(),
        "again" => again(),
        "threads" => threads(),
        "broker" => broker(false),
        "broker-threads" => broker(true),
        "detached" => detached(),
        "error" => error(),
        other => panic!("{other}?"),
    }
    println!("done");
}

/// Everything that root does with namespaces.
fn use_namespaces() {
    assert_eq!((getuid().as_raw(), getgid().as_raw()), (0, 0));
    let executor = Executor::new().expect("an executor");
    let fresh = Netns::new().expect("root makes namespaces");
    fresh.set_loopback_up().expect("root sets links up");
    let serve = || TcpListener::bind((Ipv4Addr::LOCALHOST, 80)).map(drop);
    executor.run(&fresh, serve).expect("a worker").expect("80");

    assert_eq!(Netns::list().expect("a folder of its own"), []);
    let blue = Netns::create("blue").expect("a name of its own");
    assert_eq!(Netns::open("blue").expect("it is there"), blue);
    Netns::delete("blue").expect("it is ours");
}

fn enter() {
    let home = here();
    let entered = rootless::enter().expect("this system lets users have namespaces");
    assert!(entered.is_new() && entered.broker().is_none());
    assert_eq!(here(), home, "the network namespace stays");
    use_namespaces();
    let maps = ["uid_map", "gid_map"].map(|map| fs::read_to_string(format!("/proc/self/{map}")));
    for map in maps {
        let map = map.expect("/proc is there");
        assert_eq!(map.split_whitespace().nth(2), Some("1"), "one id: {map}");
    }
}

/// A second call finds the privilege.
fn again() {
    assert!(rootless::enter().expect("a user may").is_new());
    let user = fs::read_link("/proc/self/ns/user").expect("/proc is there");
    assert!(!rootless::enter().expect("nothing to do").is_new());
    let after = fs::read_link("/proc/self/ns/user").expect("/proc is there");
    assert_eq!(after, user);
}

/// As under a runtime that has its threads before `main` gets there.
fn threads() {
    let is_first = threads_of_this_process() == 1 && getuid().as_raw() != 0;
    let parked = thread::spawn(thread::park);
    let entered = rootless::enter().expect("a user may, and it executes itself again");
    assert!(!is_first, "not in the first life");
    assert!(entered.is_new());
    assert!(env::var_os("NETNS_EXEC_ROOTLESS").is_none());
    use_namespaces();
    parked.thread().unpark();
    parked.join().expect("no panic");
}

fn broker(with_threads: bool) {
    let host = here();
    let parked = with_threads.then(|| thread::spawn(thread::park));
    let low = Ipv4Addr::LOCALHOST;
    let policy = Policy::new().ports(40_000..=40_999);
    let entered = Setup::new().own_net(policy).enter().expect("a user may");
    let broker = entered.broker().expect("asked for");
    assert_ne!(broker.netns(), here());
    // What was executed again has left the host already.
    assert!(with_threads || broker.netns() == host);
    use_namespaces();

    let executor = Executor::new().expect("an executor");
    let request = |ports| {
        Allocator::new(&executor)
            .request(Protocol::Tcp)
            .on_broker(broker, [IpAddr::from(low)])
            .gate(Gate::Queue)
            .ports(ports)
            .acquire()
    };
    let lease = request(Ports::Range(40_000..=40_099)).expect("the policy has it");
    lease.activate().expect("the socket is ours");
    request(Ports::Exact(30_000)).expect_err("the policy has it not");
    let here = Netns::current().expect("own namespace");
    here.set_loopback_up().expect("it is ours");
    TcpStream::connect((low, lease.port())).expect_err("it is on the host");
    if let Some(parked) = parked {
        parked.thread().unpark();
        parked.join().expect("no panic");
    }
}

/// A daemon in a user namespace, in the network namespace of the host, that detaches
/// only what it serves.
fn detached() {
    let before = here();
    rootless::enter().expect("a user may");
    let host = Netns::home().expect("own process");
    assert_eq!(host.id(), before);
    let executor = Executor::new().expect("an executor");
    let served = Netns::new().expect("root makes namespaces");
    served.set_loopback_up().expect("it is ours");

    // In, once, from a thread that ends there; the host's is never entered.
    let inside = executor.run(&served, here).expect("one way in");
    assert_eq!(inside, served.id());
    assert!(
        host.set_loopback_up().is_err() || loopback_was_up(),
        "the host's stays"
    );
    let denied = thread::scope(|scope| scope.spawn(|| there_and_back(&served, &host)).join());
    let denied = denied.expect("no panic").expect_err("no way back");
    assert_eq!(denied.raw_os_error(), Some(nix::libc::EPERM));

    // A job at home, from outside and from inside of another one.
    assert_eq!(executor.run(&host, here).expect("nothing to enter"), before);
    let nested = executor.run(&served, || executor.run(&host, here));
    assert_eq!(nested.expect("a worker").expect("a worker of home"), before);
    // A server for the host whose client is in what is served.
    let listener = executor
        .run(&served, || TcpListener::bind((Ipv4Addr::LOCALHOST, 80)))
        .expect("a worker")
        .expect("80 is free there");
    assert_eq!(listener.local_addr().expect("bound").port(), 80);
    let client = executor.run(&served, || TcpStream::connect((Ipv4Addr::LOCALHOST, 80)));
    client.expect("a worker").expect("it listens there");
    // A child of home and one of what is served.
    let children = [&host, &served].map(|netns| {
        use netns_exec::CommandExt;
        let mut link = process::Command::new("readlink");
        let output = link.arg("/proc/self/ns/net").output_in(netns);
        let output = output.expect("a child there").stdout;
        String::from_utf8(output).expect("a link")
    });
    assert_ne!(children[0], children[1]);
    // The second executor begins where the first one was.
    drop(executor);
    let executor = Executor::new().expect("another executor");
    assert_eq!(executor.run(&served, here).expect("in again"), served.id());
}

fn loopback_was_up() -> bool {
    fs::read_to_string("/sys/class/net/lo/operstate").is_ok_and(|state| state.trim() != "down")
}

fn there_and_back(there: &Netns, back: &Netns) -> std::io::Result<()> {
    use nix::sched::{CloneFlags, setns};
    setns(there, CloneFlags::CLONE_NEWNET).expect("it is ours");
    setns(back, CloneFlags::CLONE_NEWNET).map_err(Into::into)
}

/// Says why it cannot, and that nothing has changed.
fn error() {
    let before = ["user", "mnt", "net"].map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")));
    let error = rootless::enter().expect_err("the test forbids it");
    println!("error: {error}");
    let after = ["user", "mnt", "net"].map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")));
    for (before, after) in before.into_iter().zip(after) {
        assert_eq!(
            before.expect("/proc is there"),
            after.expect("/proc is there")
        );
    }
}
