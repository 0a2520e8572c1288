//! The failure of moby #52903, and what a lease makes of it.
//!
//! A rootless daemon publishes a port: it picks one that is free in its own
//! namespace, and then takes the same number in the host's. The host has
//! programs of its own, and where one of them has that port, the container does
//! not start, though a hundred other ports would have done.
//!
//! Here a namespace plays the host: other programs come and go in it, so that
//! each of a hundred ports is busy for a given part of the time. A hundred
//! requests, ten at once, want one port number in the host and in the child.
//!
//! ```console
//! $ cargo run --example port_lease_52903
//! ```
//!
//! Without privileges it starts itself again in a user namespace of its own.
// A program of its own, with threads of its own.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::error::Error;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use netns_exec::ports::{Allocator, Budget, Lease, Ports, Protocol};
use netns_exec::{Executor, Netns};

/// Below the ports of outgoing connections, so that no client is in the way.
const LOW: u16 = 20_000;
const HIGH: u16 = 20_099;
const REQUESTS: usize = 100;
const AT_ONCE: usize = 10;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How to come by a port.
#[derive(Clone, Copy)]
enum Way {
    /// As the daemon did: lease in the child, then try the host, so many times.
    Tries(usize),
    /// One lease on both.
    Lease(Budget),
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
        let loopback = [Ipv4Addr::LOCALHOST.into()];
        let request = self.ports.request(Protocol::Tcp);
        let request = request.on(&self.child, loopback).on(&self.host, loopback);
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
            let request = request.on(&self.child, [Ipv4Addr::LOCALHOST.into()]);
            let lease = request.ports(Ports::Range(LOW..=HIGH)).acquire()?;
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, lease.port()));
            match self.executor.run(&self.host, || TcpListener::bind(addr))? {
                Ok(listener) => return Ok((lease, listener)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.ok_or("no try")?.into())
    }

    /// A hundred requests, `at_once` at a time; returns how many succeeded, and
    /// one of the errors.
    fn requests(&self, way: Way, at_once: usize) -> Outcome<(usize, Option<String>)> {
        let leased = Mutex::new(BTreeSet::new());
        let together = Barrier::new(at_once);
        let one = || -> Outcome<()> {
            let (lease, _listener) = match way {
                Way::Lease(budget) => (self.lease(budget)?, None),
                Way::Tries(tries) => {
                    let (lease, listener) = self.tries(tries)?;
                    (lease, Some(listener))
                }
            };
            let port = lease.port();
            if !leased.lock().unwrap().insert(port) {
                return Err(format!("port {port} is shared").into());
            }
            if matches!(way, Way::Lease(_)) {
                self.reach(&lease)?;
            }
            // Before it is given back, and to another claimant.
            leased.lock().unwrap().remove(&port);
            Ok(())
        };
        let outcomes: Vec<Outcome<()>> = thread::scope(|scope| {
            let requester = || {
                let round = |_| {
                    together.wait();
                    one()
                };
                (0..REQUESTS / at_once).map(round).collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(requester)).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("no panic");
            threads.into_iter().flat_map(join).collect()
        });
        let good = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let error = outcomes.into_iter().find_map(Result::err);
        Ok((good, error.map(|error| error.to_string())))
    }

    /// Runs `f` while other programs come and go in the host, so that each port
    /// is busy for `percent` of the time.
    fn with_busy_host<T>(&self, percent: u64, f: impl FnOnce() -> T) -> Outcome<T> {
        // Theirs: they keep their worker for as long as they run.
        let theirs = Executor::new()?;
        let over = AtomicBool::new(false);
        let set_up = Barrier::new(2);
        thread::scope(|scope| {
            let programs = scope.spawn(|| {
                theirs.run(&self.host, || {
                    let toss = |port: u16| {
                        let busy = random() % 100 < percent;
                        // Where a lease has the port, the program goes without.
                        busy.then(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
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
                })
            });
            set_up.wait();
            let result = f();
            over.store(true, Ordering::Relaxed);
            programs.join().expect("no panic")?;
            Ok(result)
        })
    }
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
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, next));
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

fn run() -> Outcome<bool> {
    let world = World::new()?;
    let mut good = next_port_is_taken_in_the_host(&world)?;
    println!("\nmoby #52903: {REQUESTS} requests for a port in child and host, of {LOW}-{HIGH}");
    println!(
        "{:>6}  {:>7}  {:<34}{:>9}",
        "busy", "at once", "", "succeed"
    );
    let laps = Budget::Laps {
        laps: 50,
        pause: Duration::from_millis(1),
    };
    let walk = Way::Lease(Budget::WalkOnce);
    let cases = [
        (50, AT_ONCE, "one try in the host", Way::Tries(1), 25..=75),
        (
            50,
            AT_ONCE,
            "ten tries in the host",
            Way::Tries(10),
            0..=100,
        ),
        (50, AT_ONCE, "a lease, one walk", walk, 100..=100),
        (90, 1, "one try in the host", Way::Tries(1), 0..=30),
        (90, 1, "ten tries in the host", Way::Tries(10), 0..=90),
        (90, 1, "a lease, one walk", walk, 99..=100),
        // Ten ports are free on average, and ten requests may want them at the
        // same moment.
        (
            90,
            AT_ONCE,
            "a lease, up to 50 walks",
            Way::Lease(laps),
            99..=100,
        ),
    ];
    for (percent, at_once, name, way, expected) in cases {
        let run = || world.requests(way, at_once);
        let (succeeded, error) = world.with_busy_host(percent, run)??;
        println!("{percent:>5}%  {at_once:>7}  {name:<34}{succeeded:>9}");
        if !expected.contains(&succeeded) {
            println!("        expected {expected:?}; one of the errors: {error:?}");
            good = false;
        }
    }
    Ok(good)
}

fn main() -> ExitCode {
    match run() {
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
