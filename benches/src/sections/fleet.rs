//! What a call costs when there are many namespaces, and each call goes to
//! another.

use std::time::{Duration, Instant};

use netns_exec::{Executor, Netns};
use rand::RngExt;

use crate::Result;
use crate::conditions::namespace::inode;
use crate::peers::{CATALOGUE, Entry, OURS, Peer, Setup};
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
    let wanted = |size: &usize| filter.matches(SECTION, &scene(*size), entry.group, entry.label);
    entry.scales && sizes.iter().any(wanted)
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
        .filter(|entry| takes_part(entry, sizes, filter))
        .map(|entry| {
            let build = |netns: &Netns| {
                let setup = Setup {
                    netns,
                    name: None,
                    executor,
                };
                let peer = (entry.build)(&setup)?;
                if peer.netns_inode() != Some(inode(netns)?) {
                    return Err(format!("`{}` is not in {netns}", entry.label).into());
                }
                Ok(peer)
            };
            let peers = namespaces.iter().map(build).collect::<Result<_>>()?;
            Ok(Fleet { entry, peers })
        })
        .collect()
}

/// One contest for each number of namespaces.
pub fn contests<'a>(fleets: &'a [Fleet], sizes: &[usize], time: Duration) -> Vec<Contest<'a>> {
    (sizes.iter())
        .map(|&size| Contest {
            section: SECTION,
            scene: scene(size),
            hogs: false,
            floor: "",
            ours: OURS,
            contestants: (fleets.iter())
                .map(|fleet| {
                    let turn = move || turn(&fleet.peers[..size], time);
                    Contestant::new(fleet.entry.label, fleet.entry.group, turn)
                })
                .collect(),
        })
        .collect()
}

/// Calls, back to back, each to a namespace drawn by lot; a sample is the mean
/// of a few, so that the clock is lost in it.
fn turn(peers: &[Box<dyn Peer>], time: Duration) -> Vec<f64> {
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
