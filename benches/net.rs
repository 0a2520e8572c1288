//! What does a socket of another namespace cost without a trip, and a visit to all
//! namespaces of a host in one?
//!
//! The baseline is setns there, socket(2), setns back in place: for each socket, and
//! for one namespace after the other. All contestants have a turn in every round, and
//! the ratios are taken within a round. What is made is closed outside of the time.
//! `cargo bench -p benches --bench net`; needs root. With `--smoke` a short run.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use benches::Result;
use benches::conditions::namespace::enter;
use benches::work::open_socket;
use netns_exec::net::{SocketKind, SocketStock};
use netns_exec::{Builder, Executor, Netns};
use netns_exec_measure::Rounds;

/// Takes one turn: nanoseconds for each socket, several samples.
type Turn<'a> = Box<dyn FnMut() -> Vec<f64> + 'a>;

fn main() -> Result<()> {
    // criterion's word for a short run, too.
    let smoke = std::env::args().any(|argument| ["--smoke", "--test"].contains(&&*argument));
    let rounds = if smoke { 2 } else { 15 };
    stock(rounds)?;
    visits(rounds, 100)?;
    if !smoke {
        visits(rounds, 1000)?;
    }
    callers(rounds)
}

/// Interleaves the turns and prints each beside the first.
fn contest(title: &str, rounds: usize, mut turns: Vec<(&str, Turn<'_>)>) {
    let mut figures: Vec<_> = turns.iter().map(|_| Rounds::default()).collect();
    for _ in 0..rounds {
        for ((_, turn), figures) in turns.iter_mut().zip(&mut figures) {
            figures.push_round(&turn());
        }
    }
    println!("{title}");
    for ((label, _), own) in turns.iter().zip(&figures) {
        let (Some(typical), Some(ratio)) = (own.typical(), own.ratio_to(&figures[0])) else {
            continue;
        };
        println!(
            "  {label:<44} {:>9.0} ns   {:>6.3} times the baseline ({:.3}-{:.3})",
            typical.median, ratio.median, ratio.min, ratio.max
        );
    }
}

/// `count` calls, each timed by itself; what they made is dropped afterwards.
fn each(count: usize, mut call: impl FnMut() -> OwnedFd) -> Vec<f64> {
    let mut made = Vec::with_capacity(count);
    let samples = (0..count).map(|_| {
        let begun = Instant::now();
        let socket = call();
        let took = begun.elapsed().as_nanos() as f64;
        made.push(socket);
        took
    });
    samples.collect()
}

fn in_place(netns: &Netns, home: &OwnedFd) -> OwnedFd {
    enter(netns).expect("the namespace can be entered");
    let socket = open_socket();
    enter(home).expect("there is a way back");
    socket
}

fn home() -> Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

fn stock(rounds: usize) -> Result<()> {
    const TAKEN: usize = 200;
    let (executor, netns, home) = (Executor::new()?, Netns::new()?, home()?);
    let pinned = executor.pin(&netns)?;
    let build = |low, high| {
        let builder = SocketStock::builder().kinds([SocketKind::Udp4]);
        builder.marks(low, high).build(&executor, &netns)
    };
    let (warm, refilled, empty) = (build(16, 512)?, build(64, 128)?, build(0, 1)?);
    let take = |stock: &SocketStock| stock.take(SocketKind::Udp4).expect("it can be made");
    let turns: Vec<(_, Turn<'_>)> = vec![
        (
            "setns, socket, setns in place",
            Box::new(|| each(TAKEN, || in_place(&netns, &home))),
        ),
        (
            "run, socket",
            Box::new(|| each(TAKEN, || pinned.run(open_socket).expect("it runs"))),
        ),
        (
            "stock, warm",
            Box::new(|| {
                warm.fill().expect("it can be filled");
                each(TAKEN, || take(&warm))
            }),
        ),
        (
            "stock, taken from as fast as it goes",
            Box::new(|| each(TAKEN, || take(&refilled))),
        ),
        (
            "stock, empty",
            Box::new(|| {
                SocketStock::set_process_limit(0);
                let samples = each(TAKEN, || take(&empty));
                SocketStock::set_process_limit(4096);
                samples
            }),
        ),
    ];
    contest("one socket of another namespace", rounds, turns);
    Ok(())
}

/// Nanoseconds for each namespace; what was made is dropped afterwards.
fn visit<T>(spaces: &[Netns], visit: impl FnOnce() -> T) -> Vec<f64> {
    let begun = Instant::now();
    let made = visit();
    let took = begun.elapsed().as_nanos() as f64 / spaces.len() as f64;
    drop(made);
    vec![took]
}

fn visits(rounds: usize, count: usize) -> Result<()> {
    let (executor, home) = (Executor::builder().idle_timeout(None).build()?, home()?);
    let spaces = (0..count)
        .map(|_| Netns::new())
        .collect::<Result<Vec<_>, _>>()?;
    // The workers are there.
    drop(executor.broadcast(&spaces, |_| ()));
    let turns: Vec<(_, Turn<'_>)> = vec![
        (
            "setns, socket, setns one after the other",
            Box::new(|| {
                visit(&spaces, || {
                    let sockets = spaces.iter().map(|netns| in_place(netns, &home));
                    sockets.collect::<Vec<_>>()
                })
            }),
        ),
        (
            "broadcast",
            Box::new(|| visit(&spaces, || executor.broadcast(&spaces, |_| open_socket()))),
        ),
        (
            "scope, spawn each, join each",
            Box::new(|| {
                visit(&spaces, || {
                    executor.scope(|scope| {
                        let spawn = |netns| scope.spawn(netns, open_socket).expect("accepted");
                        let handles: Vec<_> = spaces.iter().map(spawn).collect();
                        let sockets = handles.into_iter().map(|handle| handle.join());
                        sockets.collect::<Vec<_>>()
                    })
                })
            }),
        ),
        (
            "run, one after the other",
            Box::new(|| {
                visit(&spaces, || {
                    let sockets = spaces.iter().map(|netns| executor.run(netns, open_socket));
                    sockets.collect::<Vec<_>>()
                })
            }),
        ),
    ];
    contest(
        &format!("a socket in each of {count} namespaces"),
        rounds,
        turns,
    );
    Ok(())
}

/// Eight callers open sockets in one namespace.
fn callers(rounds: usize) -> Result<()> {
    const CALLERS: usize = 8;
    const EACH: usize = 500;
    let netns = Netns::new()?;
    let all = |call: &(dyn Fn(&OwnedFd) -> OwnedFd + Sync)| {
        let start = Barrier::new(CALLERS + 1);
        thread::scope(|scope| {
            for _ in 0..CALLERS {
                scope.spawn(|| {
                    let home = home().expect("/proc is mounted");
                    start.wait();
                    for _ in 0..EACH {
                        drop(call(&home));
                    }
                    start.wait();
                });
            }
            start.wait();
            let begun = Instant::now();
            start.wait();
            vec![begun.elapsed().as_nanos() as f64 / (CALLERS * EACH) as f64]
        })
    };
    let one = Executor::new()?;
    let cpus = Executor::builder()
        .workers_per_netns(Builder::ALL_CPUS)
        .build()?;
    let builder = SocketStock::builder().kinds([SocketKind::Udp4]);
    let stock = builder.marks(256, 1024).build(&cpus, &netns)?;
    let run = |executor: &Executor| executor.run(&netns, open_socket).expect("it runs");
    let turns: Vec<(_, Turn<'_>)> = vec![
        (
            "setns, socket, setns in place",
            Box::new(|| all(&|home| in_place(&netns, home))),
        ),
        ("run, one worker", Box::new(|| all(&|_| run(&one)))),
        ("run, workers = CPUs", Box::new(|| all(&|_| run(&cpus)))),
        (
            "stock",
            Box::new(|| all(&|_| stock.take(SocketKind::Udp4).expect("it can be made"))),
        ),
    ];
    contest(
        "eight callers open and close sockets in one namespace",
        rounds,
        turns,
    );
    Ok(())
}
