//! How many allocations a call makes, on both sides of it.

use serde::{Deserialize, Serialize};

use crate::conditions::quiet;
use crate::peers::{Entry, Flood, FloodEntry, Group, Peer};
use crate::work::Work;
use crate::{Result, alloc};

/// The section's name.
pub const SECTION: &str = "allocations";

/// How many allocations a call makes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Allocations {
    /// `call` or `spawn`.
    pub scene: String,
    /// The peer.
    pub label: String,
    /// On which side.
    pub group: Group,
    /// Allocations for each, over all threads.
    pub each: f64,
}

const CALLS: u32 = 1000;

/// Counts those of a call that is waited for.
///
/// # Errors
///
/// When another thread keeps running: it might allocate too.
pub fn of_call(entry: &Entry, peer: &dyn Peer) -> Result<Allocations> {
    Ok(Allocations {
        scene: "call".into(),
        label: entry.label.into(),
        group: entry.group,
        each: each(|calls| peer.repeat(Work::Empty, calls))?,
    })
}

/// Counts those of a job that its caller does not wait for.
///
/// # Errors
///
/// When another thread keeps running: it might allocate too.
pub fn of_spawn(entry: &FloodEntry, flood: &dyn Flood) -> Result<Allocations> {
    Ok(Allocations {
        scene: "spawn".into(),
        label: entry.label.into(),
        group: entry.group,
        each: each(|jobs| flood.flood(jobs, 1))?,
    })
}

fn each(calls: impl Fn(u32)) -> Result<f64> {
    // What is made once, at the first call, is not what a call costs.
    calls(CALLS);
    quiet::wait(&[])?;
    // What a thread of ours makes now and then, such as the one that keeps the time of idle
    // workers, is no call's either: to the hundredth.
    let each = alloc::count(|| calls(CALLS)) as f64 / f64::from(CALLS);
    Ok((each * 100.0).round() / 100.0)
}
