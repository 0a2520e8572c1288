//! What a call costs when there are many namespaces, and each call goes to
//! another.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use netns_exec::{Executor, Netns};
use netns_exec_measure::Extent;
use rand::RngExt;

use crate::Result;
use crate::conditions::namespace::inode;
use crate::conditions::regime::Gap;
use crate::peers::{CATALOGUE, Entry, FUTEX_ONE_CPU, Group, OURS, Peer, Setup};
use crate::sections::contest::{Contest, Contestant, Filter};
use crate::work::Work;

/// The section's name.
pub const SECTION: &str = "namespaces";

/// The scene of so many namespaces.
pub fn scene(namespaces: usize) -> String {
    format!(
        "{namespaces} namespace{}",
        if namespaces == 1 { "" } else { "s" }
    )
}

/// What the caller does between two calls to namespaces drawn by lot; with ten
/// namespaces or more every worker is asleep then, even back to back.
const GAPS: [(&str, Gap); 3] = [
    ("", Gap::None),
    (", sleep 1ms", Gap::Sleep(Duration::from_millis(1))),
    (", busy 100us", Gap::Busy(Duration::from_micros(100))),
];

/// One of each kind for every namespace.
pub struct Fleet {
    entry: Entry,
    peers: Vec<Box<dyn Peer>>,
}

/// Whether `filter` asks for a peer in any of `sizes`.
pub fn is_wanted(sizes: &[usize], filter: &Filter) -> bool {
    (CATALOGUE.iter()).any(|entry| takes_part(entry, sizes, filter))
}

fn takes_part(entry: &Entry, sizes: &[usize], filter: &Filter) -> bool {
    entry.scales && (sizes.iter()).any(|size| is_asked(entry, *size, filter))
}

fn is_asked(entry: &Entry, size: usize, filter: &Filter) -> bool {
    GAPS.iter().any(|(gap, _)| {
        let scene = scene(size) + gap;
        filter.matches(SECTION, &scene, entry.group, entry.label)
    })
}

/// Builds the fleets that `filter` asks for in any of `sizes`.
///
/// # Errors
///
/// When a peer cannot be built, or is not where it should be.
pub fn build(
    namespaces: &[Netns],
    executor: &Executor,
    sizes: &[usize],
    filter: &Filter,
) -> Result<Vec<Fleet>> {
    (CATALOGUE.into_iter())
        .filter(|entry| {
            let is_floor = entry.scales && entry.group == Group::Floor;
            is_floor || takes_part(entry, sizes, filter)
        })
        .map(|entry| {
            let build = |netns: &Netns| {
                let setup = Setup {
                    netns,
                    name: None,
                    executor,
                };
                let peer = (entry.build)(&setup)?;
                if entry.group != Group::Floor && peer.netns_inode() != Some(inode(netns)?) {
                    return Err(format!("`{}` is not in {netns}", entry.label).into());
                }
                Ok(peer)
            };
            let peers = namespaces.iter().map(build).collect::<Result<_>>()?;
            Ok(Fleet { entry, peers })
        })
        .collect()
}

/// Contests for each number of namespaces.
pub fn contests<'a>(fleets: &'a [Fleet], sizes: &[usize], time: Duration) -> Vec<Contest<'a>> {
    (sizes.iter())
        .flat_map(|&size| GAPS.map(|gap| (size, gap)))
        .map(|(size, (name, gap))| Contest {
            section: SECTION,
            scene: scene(size) + name,
            hogs: false,
            floor: FUTEX_ONE_CPU,
            ours: OURS,
            contestants: (fleets.iter())
                .map(|fleet| {
                    let turn = move || turn(&fleet.peers[..size], gap, time);
                    Contestant::new(fleet.entry.label, fleet.entry.group, turn)
                })
                .collect(),
        })
        .collect()
}

/// Calls, each to a namespace drawn by lot. Back to back, a sample is the mean of a
/// few, so that the clock is lost in it; apart, it is one call, and there are ten.
fn turn(peers: &[Box<dyn Peer>], gap: Gap, time: Duration) -> Vec<f64> {
    // Each floor would bind this thread to the same CPU: one does.
    peers[0].begin();
    let samples = match gap {
        Gap::None => back_to_back(peers, time),
        Gap::Sleep(_) | Gap::Busy(_) => apart(peers, gap),
    };
    peers[0].end();
    samples
}

fn apart(peers: &[Box<dyn Peer>], gap: Gap) -> Vec<f64> {
    const CALLS: u32 = 10;
    let mut rng = rand::rng();
    let Ok::<_, Infallible>(samples) = netns_exec_measure::apart(
        Extent::Calls(CALLS),
        || gap.pass(),
        || {
            peers[rng.random_range(0..peers.len())].repeat(Work::Empty, 1);
            Ok(())
        },
    );
    samples
}

fn back_to_back(peers: &[Box<dyn Peer>], time: Duration) -> Vec<f64> {
    const BATCH: usize = 16;
    let mut rng = rand::rng();
    let lots: Vec<usize> = (0..4096)
        .map(|_| rng.random_range(0..peers.len()))
        .collect();
    let mut samples = Vec::new();
    let start = Instant::now();
    for lots in lots.chunks_exact(BATCH).cycle() {
        let sample = Instant::now();
        for &lot in lots {
            peers[lot].repeat(Work::Empty, 1);
        }
        samples.push(sample.elapsed().as_nanos() as f64 / BATCH as f64);
        if start.elapsed() > time {
            break;
        }
    }
    samples
}
