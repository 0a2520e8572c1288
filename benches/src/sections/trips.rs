//! Sockets of other namespaces: from a stock, from all namespaces of a host, and by
//! many callers at once, each beside setns in place.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Instant;

use netns_exec::net::{SocketKind, SocketStock};
use netns_exec::{Builder, Executor, Netns};

use crate::Result;
use crate::conditions::namespace::enter;
use crate::peers::{Group, IN_PLACE, OURS, woken_by};
use crate::sections::at_once::at_once;
use crate::sections::contest::{Contest, Contestant, Filter};
use crate::work::open_socket;

/// The section of sockets from a stock.
pub const STOCK: &str = "stock";
/// The section of visits to all namespaces.
pub const VISITS: &str = "visits";
/// The section of many callers of a namespace with as many workers as CPUs.
pub const CROWD: &str = "crowd";

/// The one scene of [`STOCK`].
pub const ONE_SOCKET: &str = "one socket";
/// The one scene of [`CROWD`].
pub const EIGHT_CALLERS: &str = "8 callers, socket";

/// A stock that has what is taken from it.
pub const FULL_STOCK: &str = "SocketStock, full";
/// A stock that is refilled while it is taken from as fast as that goes.
pub const BUSY_STOCK: &str = "SocketStock, busy";
/// A stock that makes a socket when it is asked for one.
pub const EMPTY_STOCK: &str = "SocketStock, empty";
/// All namespaces by one call.
pub const BROADCAST: &str = "Executor::broadcast";
/// All namespaces by a job each, all started before the first is waited for.
pub const SCOPE: &str = "Executor::scope";
/// A stock of many callers.
pub const SHARED_STOCK: &str = "SocketStock, shared";
/// A worker for each CPU.
pub const ALL_CPUS: &str = "Executor::run, ALL_CPUS";

/// The scene of a visit to so many namespaces.
pub fn scene(namespaces: usize) -> String {
    format!("visit {namespaces}")
}

/// Whether `filter` asks for any contestant of `section` in `scene`.
pub fn is_wanted(section: &str, scene: &str, filter: &Filter) -> bool {
    let labels: &[&str] = match section {
        STOCK => &[OURS, FULL_STOCK, BUSY_STOCK, EMPTY_STOCK],
        VISITS => &[OURS, SCOPE, BROADCAST],
        _ => &[OURS, ALL_CPUS, SHARED_STOCK],
    };
    let is_asked = |group, label| filter.matches(section, scene, group, label);
    is_asked(Group::Peer, IN_PLACE) || labels.iter().any(|label| is_asked(Group::Ours, label))
}

/// Where the turns are taken.
pub struct Ground {
    executor: Executor,
    all_cpus: Executor,
    netns: Netns,
    home: OwnedFd,
    full: SocketStock,
    busy: SocketStock,
    empty: SocketStock,
    shared: SocketStock,
}

impl Ground {
    /// Makes a namespace, with workers and stocks.
    ///
    /// # Errors
    ///
    /// Without `CAP_SYS_ADMIN`.
    pub fn new() -> Result<Ground> {
        let executor = Executor::builder().idle_timeout(None).build()?;
        let all_cpus = Executor::builder()
            .idle_timeout(None)
            .workers_per_netns(Builder::ALL_CPUS)
            .build()?;
        let netns = Netns::new()?;
        let stock = |executor, low, high| {
            let builder = SocketStock::builder().kinds([SocketKind::Udp4]);
            builder.marks(low, high).build(executor, &netns)
        };
        let full = stock(&executor, 16, 512)?;
        let busy = stock(&executor, 64, 128)?;
        let empty = stock(&executor, 0, 1)?;
        let shared = stock(&all_cpus, 256, 1024)?;
        Ok(Ground {
            home: home()?,
            executor,
            all_cpus,
            netns,
            full,
            busy,
            empty,
            shared,
        })
    }

    /// What wakes the workers of the namespaces visited.
    pub fn woken_by(&self) -> Option<String> {
        woken_by(&self.executor)
    }

    /// Sockets one by one: in place, by a trip, and from the stock.
    pub fn stock(&self) -> Contest<'_> {
        let contestants = vec![
            Contestant::new(IN_PLACE, Group::Peer, || {
                one_by_one(|| in_place(&self.netns, &self.home))
            }),
            Contestant::new(OURS, Group::Ours, || {
                one_by_one(|| run(&self.executor, &self.netns))
            }),
            Contestant::new(FULL_STOCK, Group::Ours, move || {
                self.full.fill().expect("it can be filled");
                one_by_one(|| take(&self.full))
            }),
            Contestant::new(BUSY_STOCK, Group::Ours, move || {
                one_by_one(|| take(&self.busy))
            }),
            Contestant::new(EMPTY_STOCK, Group::Ours, move || {
                // Nothing is made ahead, so that each socket is made when it is asked for.
                SocketStock::set_process_limit(0);
                let samples = one_by_one(|| take(&self.empty));
                SocketStock::set_process_limit(4096);
                samples
            }),
        ];
        contest(STOCK, ONE_SOCKET.into(), contestants)
    }

    /// Eight callers that open and close sockets in one namespace.
    pub fn crowd(&self, each: usize) -> Contest<'_> {
        let contestants = vec![
            Contestant::new(IN_PLACE, Group::Peer, move || {
                by_a_crowd(each, |home| in_place(&self.netns, home))
            }),
            Contestant::new(OURS, Group::Ours, move || {
                by_a_crowd(each, |_| run(&self.executor, &self.netns))
            }),
            Contestant::new(ALL_CPUS, Group::Ours, move || {
                by_a_crowd(each, |_| run(&self.all_cpus, &self.netns))
            }),
            Contestant::new(SHARED_STOCK, Group::Ours, move || {
                by_a_crowd(each, |_| take(&self.shared))
            }),
        ];
        contest(CROWD, EIGHT_CALLERS.into(), contestants)
    }

    /// A socket in each of `namespaces`, whose workers are started here.
    pub fn visits<'a>(&'a self, namespaces: &'a [Netns]) -> Contest<'a> {
        let executor = &self.executor;
        drop(executor.broadcast(namespaces, |_| ()));
        let contestants = vec![
            Contestant::new(IN_PLACE, Group::Peer, move || {
                visit(namespaces, || {
                    let sockets = namespaces.iter().map(|netns| in_place(netns, &self.home));
                    sockets.collect::<Vec<_>>()
                })
            }),
            Contestant::new(OURS, Group::Ours, move || {
                visit(namespaces, || {
                    let sockets = namespaces.iter().map(|netns| run(executor, netns));
                    sockets.collect::<Vec<_>>()
                })
            }),
            Contestant::new(SCOPE, Group::Ours, move || {
                visit(namespaces, || {
                    executor.scope(|scope| {
                        let spawn = |netns| scope.spawn(netns, open_socket).expect("accepted");
                        let jobs: Vec<_> = namespaces.iter().map(spawn).collect();
                        let sockets = jobs.into_iter().map(|job| job.join().expect("it ran"));
                        sockets.collect::<Vec<_>>()
                    })
                })
            }),
            Contestant::new(BROADCAST, Group::Ours, move || {
                visit(namespaces, || {
                    executor.broadcast(namespaces, |_| open_socket())
                })
            }),
        ];
        contest(VISITS, scene(namespaces.len()), contestants)
    }
}

fn contest<'a>(
    section: &'static str,
    scene: String,
    contestants: Vec<Contestant<'a>>,
) -> Contest<'a> {
    Contest {
        section,
        scene,
        hogs: false,
        floor: "",
        ours: OURS,
        contestants,
    }
}

fn home() -> Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

fn run(executor: &Executor, netns: &Netns) -> OwnedFd {
    executor
        .run(netns, open_socket)
        .expect("the worker is there")
}

fn take(stock: &SocketStock) -> OwnedFd {
    stock.take(SocketKind::Udp4).expect("it can be made")
}

fn in_place(netns: &Netns, home: &OwnedFd) -> OwnedFd {
    enter(netns).expect("the namespace can be entered");
    let socket = open_socket();
    enter(home).expect("there is a way back");
    socket
}

/// Sockets, each timed by itself; all are closed afterwards.
fn one_by_one(mut open: impl FnMut() -> OwnedFd) -> Vec<f64> {
    const SOCKETS: usize = 200;
    let mut made = Vec::with_capacity(SOCKETS);
    let samples = (0..SOCKETS).map(|_| {
        let begun = Instant::now();
        let socket = open();
        let took = begun.elapsed().as_nanos() as f64;
        made.push(socket);
        took
    });
    samples.collect()
}

/// Nanoseconds for each namespace; what was made is dropped afterwards.
fn visit<T>(namespaces: &[Netns], visit: impl FnOnce() -> T) -> Vec<f64> {
    let begun = Instant::now();
    let made = visit();
    let took = begun.elapsed().as_nanos() as f64 / namespaces.len() as f64;
    drop(made);
    vec![took]
}

/// Nanoseconds a socket, over eight callers that each open and close `each`.
fn by_a_crowd(each: usize, open: impl Fn(&OwnedFd) -> OwnedFd + Sync) -> Vec<f64> {
    const CALLERS: usize = 8;
    let ready = || home().expect("/proc is mounted");
    let call = |home| (0..each).for_each(|_| drop(open(&home)));
    let (_, took) = at_once(CALLERS, ready, call, || ());
    vec![took.as_nanos() as f64 / (CALLERS * each) as f64]
}
