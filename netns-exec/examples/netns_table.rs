//! A collector that reads /proc/net of every namespace of the host, and prints a table.
//!
//! Today: exporters run `ip netns exec`, a process for each namespace and each scrape, and
//! see only those with a name; or they call setns(2) on a pool's thread, and read
//! /proc/net, which is that of the main thread, so that every line of the table says the
//! same.
//!
//! Here the audit says which namespaces there are, whatever keeps them, and one job in each
//! reads what /proc shows to a thread of that namespace, all in parallel. One that takes
//! long can be given up: its row says so, the others are there.
//!
//! `cargo run --example netns_table`; needs root.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::time::Duration;

use netns_exec::audit::{self, Hold, Namespace};
use netns_exec::{Executor, JoinHandle, Netns};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// A row of the table.
#[derive(Debug)]
struct Row {
    devices: usize,
    received: u64,
    sent: u64,
    tcp: usize,
    udp: usize,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>7} {:>12} {:>12} {:>5} {:>5}",
            self.devices, self.received, self.sent, self.tcp, self.udp
        )
    }
}

/// Reads the tables of the namespace that the calling thread is in.
fn read() -> io::Result<Row> {
    // Not /proc/net, nor /proc/self/net: both are the main thread's.
    let table = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let count = |name: &str| table(name).map_or(0, |text| text.lines().skip(1).count());
    let dev = table("dev")?;
    let devices = dev.lines().skip(2).filter_map(|line| line.split_once(':'));
    let mut row = Row {
        devices: 0,
        received: 0,
        sent: 0,
        tcp: count("tcp") + count("tcp6"),
        udp: count("udp") + count("udp6"),
    };
    for (_, figures) in devices {
        let mut figures = figures.split_whitespace().map(|n| n.parse().unwrap_or(0));
        row.devices += 1;
        row.received += figures.next().unwrap_or(0);
        row.sent += figures.nth(7).unwrap_or(0);
    }
    Ok(row)
}

/// A handle to a namespace that the audit has found: by its name, or by a thread in it, which
/// may be the only one of its process there.
fn open(namespace: &Namespace) -> Option<Netns> {
    let by_name = namespace
        .names()
        .iter()
        .find_map(|name| Netns::open(name).ok());
    by_name.or_else(|| {
        let threads = namespace
            .holders()
            .iter()
            .filter_map(|held| match held.hold() {
                Hold::Thread { tid, .. } => Some(*tid),
                _ => None,
            });
        // It may have ended, or be somewhere else by now.
        threads
            .filter_map(|tid| Netns::from_pid(tid).ok())
            .find(|netns| Some(netns.id()) == namespace.id())
    })
}

fn row(job: netns_exec::Result<JoinHandle<io::Result<Row>>>) -> Outcome<Row> {
    match job?.join_timeout(Duration::from_secs(1)) {
        Ok(row) => Ok(row??),
        Err(_unfinished) => Err("takes too long".into()),
    }
}

fn main() -> Outcome {
    let executor = Executor::new()?;
    // Something to see, on a host that has no containers.
    let extra = Netns::new()?;
    executor.run(&extra, || ())?;

    let found = audit::namespaces()?;
    let opened: Vec<_> = found.namespaces().iter().map(|it| (it, open(it))).collect();
    // All at once; each namespace has a thread of its own meanwhile.
    let jobs: Vec<_> = (opened.iter())
        .map(|(_, netns)| netns.as_ref().map(|netns| executor.spawn(netns, read)))
        .collect();
    println!(
        "{:<24} {:>7} {:>12} {:>12} {:>5} {:>5}",
        "NAMESPACE", "DEVICES", "RX", "TX", "TCP", "UDP"
    );
    let mut rows = 0;
    for ((namespace, _), job) in opened.iter().zip(jobs) {
        let name = match namespace.names().first() {
            Some(name) => name.clone(),
            None => format!("net:[{}]", namespace.inode()),
        };
        match job.map(row) {
            None => println!("{name:<24} no thread is in it, and it has no name"),
            Some(Ok(row)) => {
                println!("{name:<24} {row}");
                rows += 1;
            }
            // It has gone meanwhile, or hangs: the other rows are there all the same.
            Some(Err(error)) => println!("{name:<24} {error}"),
        }
    }
    match rows {
        0 | 1 => Err("not even the two namespaces that are there".into()),
        _ => Ok(()),
    }
}
