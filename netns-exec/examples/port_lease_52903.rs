//! The failure of moby #52903, and what a lease makes of it.
//!
//! A rootless daemon publishes a port: it picks one that is free in its own
//! namespace, and then takes the same number in the host's. The host has
//! programs of its own, and where one of them has that port, the container does
//! not start, though a hundred other ports would have done.
//!
//! Here a namespace plays the host: other programs come and go in it, and in the
//! child, so that each of a hundred ports is busy for a given part of the time. A
//! hundred requests, ten at once, want one port number in both. A request counts as
//! lost when the kernel says `EADDRINUSE` and nothing else; any other error fails
//! the example, as does a row outside of its bounds.
//!
//! Then the same across the border that makes the daemon rootless: a process in a
//! user and a network namespace of its own, which reaches the host by a broker.
//! And last the loss that a bind does not show: two sockets with `SO_REUSEADDR`
//! bind one port, and the second to listen finds it in use.
//!
//! ```console
//! $ cargo run --example port_lease_52903
//! ```
//!
//! Without privileges it starts itself again in a user namespace of its own.

#![allow(clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::ports::{Allocator, Broker, Budget, Gate, Lease, Ports, Protocol, Stage};
use netns_exec::{CommandExt as _, Executor, Netns};

/// Below the ports of outgoing connections, so that no client is in the way.
const LOW: u16 = 20_000;
const HIGH: u16 = 20_099;
const REQUESTS: usize = 100;
const AT_ONCE: usize = 10;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How to come by a port.
#[derive(Clone, Copy)]
enum Strategy {
    /// As the daemon did: lease in the child, then try the host, so many times.
    Tries(usize),
    /// One lease on both.
    Lease(Budget),
}

/// What became of some requests.
#[derive(Default)]
struct Tally {
    succeeded: usize,
    /// `EADDRINUSE`.
    in_use: usize,
    /// Anything else: a fault of the example or of the library.
    other: Vec<String>,
}

impl Tally {
    fn add(&mut self, outcome: Outcome<()>) {
        match outcome {
            Ok(()) => self.succeeded += 1,
            Err(error) if is_in_use(&*error) => self.in_use += 1,
            Err(error) => self.other.push(error.to_string()),
        }
    }

    /// Whether so many succeeded, and the others for the one reason there is.
    fn is(&self, expected: &RangeInclusive<usize>) -> bool {
        expected.contains(&self.succeeded)
            && self.other.is_empty()
            && self.succeeded + self.in_use == REQUESTS
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>9}{:>8}{:>7}",
            self.succeeded,
            self.in_use,
            self.other.len()
        )
    }
}

fn is_in_use(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<netns_exec::ports::Error>() {
        return error.is_in_use();
    }
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Runs a hundred requests, `at_once` at a time.
fn hundred(at_once: usize, one: impl Fn() -> Outcome<()> + Sync) -> Tally {
    let together = Barrier::new(at_once);
    let requester = || {
        let round = |_| {
            together.wait();
            one()
        };
        (0..REQUESTS / at_once).map(round).collect::<Vec<_>>()
    };
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(requester)).collect();
        for thread in threads {
            for outcome in thread.join().expect("no panic") {
                tally.add(outcome);
            }
        }
    });
    tally
}

struct World {
    executor: Executor,
    ports: Allocator,
    host: Netns,
    child: Netns,
}

impl World {
    fn new() -> Outcome<World> {
        let executor = Executor::new()?;
        let (host, child) = (Netns::new()?, Netns::new()?);
        host.set_loopback_up()?;
        child.set_loopback_up()?;
        Ok(World {
            ports: Allocator::new(&executor),
            executor,
            host,
            child,
        })
    }

    fn lease(&self, budget: Budget) -> Outcome<Lease> {
        let request = self.ports.request(Protocol::Tcp);
        let request = request.on(&self.child, [LOOPBACK.into()]);
        let request = request.on(&self.host, [LOOPBACK.into()]);
        let request = request.ports(Ports::Range(LOW..=HIGH)).budget(budget);
        Ok(request.acquire()?)
    }

    /// Connects to a lease in both namespaces.
    fn reach(&self, lease: &Lease) -> Outcome<()> {
        lease.activate()?;
        for (member, netns) in lease.members().iter().zip([&self.child, &self.host]) {
            let listener = TcpListener::from(member.try_clone()?);
            let addr = member.local_addr();
            let client = self.executor.run(netns, || TcpStream::connect(addr))??;
            let from = client.local_addr()?;
            let (mut server, peer) = listener.accept()?;
            if peer != from {
                return Err(format!("{addr} in {netns} was reached by {peer}").into());
            }
            // The client closes first: a server in TIME_WAIT would make its
            // port look busy to programs that do not set SO_REUSEADDR.
            drop(client);
            server.read_to_end(&mut Vec::new())?;
        }
        Ok(())
    }

    /// What the daemon did: a port that is free in the child, and then a try in
    /// the host, which nothing makes up for.
    fn tries(&self, tries: usize) -> Outcome<(Lease, TcpListener)> {
        let mut last = None;
        for _ in 0..tries {
            let request = self.ports.request(Protocol::Tcp);
            let request = request.on(&self.child, [LOOPBACK.into()]);
            let lease = request.ports(Ports::Range(LOW..=HIGH)).acquire()?;
            let addr = SocketAddr::from((LOOPBACK, lease.port()));
            match self.executor.run(&self.host, || TcpListener::bind(addr))? {
                Ok(listener) => return Ok((lease, listener)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.ok_or("no try")?.into())
    }

    /// A hundred requests for a port in both.
    fn requests(&self, strategy: Strategy, at_once: usize) -> Tally {
        let leased = Mutex::new(BTreeSet::new());
        hundred(at_once, || {
            let (lease, _listener) = match strategy {
                Strategy::Lease(budget) => (self.lease(budget)?, None),
                Strategy::Tries(tries) => {
                    let (lease, listener) = self.tries(tries)?;
                    (lease, Some(listener))
                }
            };
            let port = lease.port();
            if !leased.lock().unwrap().insert(port) {
                return Err(format!("port {port} is shared").into());
            }
            if matches!(strategy, Strategy::Lease(_)) {
                self.reach(&lease)?;
            }
            // Before it is given back, and to another request.
            leased.lock().unwrap().remove(&port);
            Ok(())
        })
    }

    /// Runs `f` while other programs come and go in both namespaces, so that each
    /// port is busy for so many percent of the time.
    fn with_busy<T>(&self, host: u64, child: u64, f: impl FnOnce() -> T) -> Outcome<T> {
        // Theirs: they keep their worker for as long as they run.
        let theirs = Executor::new()?;
        let over = AtomicBool::new(false);
        let set_up = Barrier::new(3);
        thread::scope(|scope| {
            let programs = [(&self.host, host), (&self.child, child)].map(|(netns, percent)| {
                let (theirs, over, set_up) = (&theirs, &over, &set_up);
                scope.spawn(move || theirs.run(netns, || come_and_go(percent, set_up, over)))
            });
            set_up.wait();
            let result = f();
            over.store(true, Ordering::Relaxed);
            for programs in programs {
                programs.join().expect("no panic")?;
            }
            Ok(result)
        })
    }

    /// A hundred requests by a process in a user and a network namespace of its
    /// own, which a broker connects with the host.
    fn across_a_user_namespace(&self) -> Outcome<Tally> {
        let broker = self.executor.run(&self.host, Broker::spawn)??;
        let this = std::env::current_exe()?;
        let mut daemon = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "--"])
            .arg(this)
            .arg("inside")
            .stdin(broker.try_clone_socket()?)
            .stdout(Stdio::piped())
            .spawn_in(&self.child)?;
        let mut says = BufReader::new(daemon.stdout.take().expect("piped")).lines();
        let mut hear = || {
            says.next()
                .unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
        };
        let mut tally = Tally {
            succeeded: hear()?.parse()?,
            in_use: hear()?.parse()?,
            other: Vec::new(),
        };
        let port: u16 = hear()?.parse()?;
        // Of the lease that it has now, the host's side.
        let connect = || TcpStream::connect((LOOPBACK, port));
        drop(self.executor.run(&self.host, connect)??);
        while let Ok(error) = hear() {
            tally.other.push(error);
        }
        match daemon.wait()? {
            status if status.success() => Ok(tally),
            status => Err(format!("the process inside: {status}").into()),
        }
    }

    /// Fights rivals over one port until each side has won, and has lost at each
    /// step.
    fn fight(&self) -> Outcome<Fight> {
        let theirs = Executor::new()?;
        let addr = SocketAddr::from((LOOPBACK, LOW));
        let over = AtomicBool::new(false);
        let end = Instant::now() + Duration::from_secs(60);
        let mut fight = Fight::default();
        thread::scope(|scope| {
            for netns in [&self.host, &self.child] {
                scope.spawn(|| {
                    // With SO_REUSEADDR, as std sets it.
                    let rival = || drop(TcpListener::bind(addr));
                    theirs.run(netns, || {
                        while !over.load(Ordering::Relaxed) {
                            rival();
                        }
                    })
                });
            }
            while !fight.is_decided() && Instant::now() < end {
                let request = self.ports.request(Protocol::Tcp).gate(Gate::Queue);
                let request = request.on(&self.host, [LOOPBACK.into()]);
                let request = request.on(&self.child, [LOOPBACK.into()]);
                match request.ports(Ports::Exact(LOW)).acquire() {
                    Ok(_) => fight.won += 1,
                    Err(error) => match (error.is_in_use(), error.stage()) {
                        (true, Some(Stage::Bind)) => fight.at_bind += 1,
                        (true, Some(Stage::Listen)) => fight.at_listen += 1,
                        _ => fight.other.push(error.to_string()),
                    },
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        Ok(fight)
    }
}

/// How often one port was won, and where it was lost.
#[derive(Default)]
struct Fight {
    won: u32,
    at_bind: u32,
    at_listen: u32,
    other: Vec<String>,
}

impl Fight {
    fn is_decided(&self) -> bool {
        !self.other.is_empty() || self.won > 0 && self.at_bind > 0 && self.at_listen > 0
    }
}

/// Other programs, in the namespace of the calling thread.
fn come_and_go(percent: u64, set_up: &Barrier, over: &AtomicBool) {
    let toss = |port: u16| {
        let busy = random() % 100 < percent;
        // Where a lease has the port, the program goes without.
        busy.then(|| TcpListener::bind((LOOPBACK, port)).ok())
            .flatten()
    };
    let mut listeners: Vec<_> = (LOW..=HIGH).map(toss).collect();
    set_up.wait();
    while !over.load(Ordering::Relaxed) {
        let index = random() as usize % listeners.len();
        // The old program ends before the new one begins.
        listeners[index] = None;
        listeners[index] = toss(LOW + index as u16);
        thread::sleep(Duration::from_micros(100));
    }
}

/// The process inside: standard input leads to the broker.
fn inside() -> Outcome<bool> {
    let broker = Broker::adopt(io::stdin().as_fd().try_clone_to_owned()?)?;
    let ports = Allocator::new(&Executor::new()?);
    let child = Netns::current()?;
    child.set_loopback_up()?;
    // Its own namespace is as busy as the host.
    let busy: Vec<TcpListener> = (LOW..=HIGH)
        .filter(|_| random() % 100 < 30)
        .map(|port| TcpListener::bind((LOOPBACK, port)))
        .collect::<Result<_, _>>()?;
    let lease = || {
        let request = ports.request(Protocol::Tcp).gate(Gate::Queue);
        let request = request.on_broker(&broker, [LOOPBACK.into()]);
        let request = request.on(&child, [LOOPBACK.into()]);
        request.ports(Ports::Range(LOW..=HIGH)).acquire()
    };
    let tally = hundred(AT_ONCE, || {
        lease()?.activate()?;
        Ok(())
    });
    println!("{}\n{}", tally.succeeded, tally.in_use);
    let lease = lease()?;
    lease.activate()?;
    println!("{}", lease.port());
    TcpListener::from(lease.members()[0].try_clone()?).accept()?;
    for error in tally.other {
        println!("{error}");
    }
    drop(busy);
    Ok(true)
}

/// xorshift64: every run is the same but for the timing.
fn random() -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(0x5290_3531_53aa_55aa);
    let step = |mut x: u64| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        Some(x)
    };
    let before = STATE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    before.expect("the step always succeeds") >> 16
}

/// moby #53153: of the next ports one is taken in the host only.
fn next_port_is_taken_in_the_host(world: &World) -> Outcome<bool> {
    let first = world.lease(Budget::WalkOnce)?;
    let next = if first.port() == HIGH {
        LOW
    } else {
        first.port() + 1
    };
    let addr = SocketAddr::from((LOOPBACK, next));
    let bind = || TcpListener::bind(addr);
    let _listener = world.executor.run(&world.host, bind)??;
    let second = world.lease(Budget::WalkOnce)?;
    println!(
        "moby #53153: {} leased, {next} is taken in the host only, and the next lease is {}",
        first.port(),
        second.port()
    );
    Ok(second.port() != next)
}

/// Prints a row, and tells whether it is within its bounds.
fn row(
    busy: (u64, u64),
    at_once: usize,
    name: &str,
    tally: &Tally,
    expected: RangeInclusive<usize>,
) -> bool {
    println!(
        "{:>4}%{:>6}%{at_once:>9}  {name:<34}{tally}",
        busy.0, busy.1
    );
    let good = tally.is(&expected);
    if !good {
        println!(
            "        expected {expected:?} to succeed; other errors: {:?}",
            tally.other
        );
    }
    good
}

fn run() -> Outcome<bool> {
    let world = World::new()?;
    let mut good = next_port_is_taken_in_the_host(&world)?;
    println!("\nmoby #52903: {REQUESTS} requests for a port in host and child, of {LOW}-{HIGH}");
    println!(
        "{:>5}{:>7}{:>9}  {:<34}{:>9}{:>8}{:>7}",
        "host", "child", "at once", "", "succeed", "in use", "other"
    );
    let laps = Budget::Laps {
        laps: 50,
        pause: Duration::from_millis(1),
    };
    let tries = Strategy::Tries;
    let walk = Strategy::Lease(Budget::WalkOnce);
    let laps = Strategy::Lease(laps);
    let cases = [
        ((50, 0), AT_ONCE, "one try in the host", tries(1), 25..=75),
        (
            (50, 0),
            AT_ONCE,
            "ten tries in the host",
            tries(10),
            90..=100,
        ),
        ((50, 0), AT_ONCE, "a lease, one walk", walk, 100..=100),
        ((30, 30), AT_ONCE, "one try in the host", tries(1), 30..=90),
        ((30, 30), AT_ONCE, "a lease, one walk", walk, 100..=100),
        ((90, 0), 1, "one try in the host", tries(1), 0..=30),
        ((90, 0), 1, "ten tries in the host", tries(10), 0..=90),
        ((90, 0), 1, "a lease, one walk", walk, 99..=100),
        // Ten ports are free on average, and ten requests may want them at the
        // same moment.
        ((90, 0), AT_ONCE, "a lease, up to 50 walks", laps, 99..=100),
    ];
    for (busy, at_once, name, strategy, expected) in cases {
        let requests = || world.requests(strategy, at_once);
        let tally = world.with_busy(busy.0, busy.1, requests)?;
        good &= row(busy, at_once, name, &tally, expected);
    }
    let tally = world.with_busy(30, 0, || world.across_a_user_namespace())??;
    let name = "a lease, through a broker";
    good &= row((30, 30), AT_ONCE, name, &tally, 100..=100);

    let Fight {
        won,
        at_bind,
        at_listen,
        other,
    } = world.fight()?;
    println!(
        "\none port, against programs that bind and listen as fast as they can: won {won}, lost \
         {at_bind} at bind and {at_listen} at listen, other errors: {other:?}"
    );
    Ok(good && won > 0 && at_bind > 0 && at_listen > 0 && other.is_empty())
}

fn main() -> ExitCode {
    let is_inside = std::env::args().nth(1).is_some_and(|arg| arg == "inside");
    match if is_inside { inside() } else { run() } {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if is_permission_denied(&*error) && std::env::args().len() == 1 => {
            println!("no privilege here: again, in a user namespace of our own\n");
            let this = std::env::current_exe().expect("this program has a path");
            let error = Command::new("unshare")
                .args(["--user", "--map-root-user", "--net", "--"])
                .arg(this)
                .arg("again")
                .exec();
            eprintln!("cannot run unshare: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_permission_denied(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<netns_exec::Error>();
    error.is_some_and(netns_exec::Error::is_permission_denied)
}
