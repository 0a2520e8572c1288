//! What a thread of the soak keeps for some steps, so that the world changes under it.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use netns_exec::net::SocketStock;
use netns_exec::ports::Lease;
use netns_exec::{JoinHandle, Pinned, ThreadHandle, WeakNetns};

use super::faults::Since;

/// A job that is not joined yet, since when, and its runs, which are counted.
pub(super) type Spawned = (JoinHandle<()>, Since, Arc<AtomicU32>);

#[derive(Default)]
pub(super) struct Held {
    pub(super) spawned: Vec<Spawned>,
    /// With the inode of the namespace.
    pub(super) pins: Vec<(Pinned, WeakNetns, u64)>,
    pub(super) threads: Vec<(ThreadHandle<()>, Since, Arc<AtomicU32>)>,
    pub(super) stocks: Vec<(SocketStock, WeakNetns)>,
    pub(super) leases: Vec<Lease>,
}
