//! All peers by name: what is measured, and what is looked up in the results.

use super::peer::{Build, BuildFlood, Group};
use super::{
    commands, crossbeam_channel, futex_floor, netns_rs, ours, rayon, setns_in_place, spin_floor,
    std_channel, thread_per_call, tokio,
};

/// A line of the catalogue.
#[derive(Clone, Copy)]
pub struct Entry {
    /// As the tables and `--only` know it.
    pub label: &'static str,
    /// On which side it stands.
    pub group: Group,
    /// Whether it can do [`Work::Socket`](crate::work::Work::Socket).
    pub opens_sockets: bool,
    /// Whether it stands in the comparison by number of namespaces.
    pub scales: bool,
    /// Builds it.
    pub build: Build,
}

/// The floor of the hot regime.
pub const SPIN: &str = "spin ping-pong";
/// The floor of every other regime.
pub const FUTEX: &str = "futex ping-pong";
/// What no hand-over to a thread that sleeps can beat by much: two context switches.
pub const FUTEX_ONE_CPU: &str = "futex ping-pong, one CPU";
/// The shortest program with this library, and what all others are held against.
pub const OURS: &str = "Executor::run";
/// Ours with the look-up done beforehand.
pub const PINNED: &str = "Pinned::run";
/// Ours with the closure writing to its caller's stack.
pub const BORROWED: &str = "Pinned::run, borrowed";
/// Ours as a task of its own.
pub const SPAWN_JOIN: &str = "spawn + join";
/// What careful people write.
pub const IN_PLACE: &str = "setns there and back";
/// What the crate netns-rs does.
pub const NETNS_RS: &str = "netns-rs run";
/// What others write.
pub const THREAD_PER_CALL: &str = "thread per call";
/// The shape most daemons have.
pub const STD_CHANNEL: &str = "sync_channel + Box + reply";
/// The same with the faster channel.
pub const CROSSBEAM: &str = "crossbeam + Box + reply";
/// A pool that was born in the namespace.
pub const RAYON: &str = "rayon install";
/// A runtime that was born in the namespace.
pub const TOKIO: &str = "tokio spawn_blocking";

const fn entry(label: &'static str, group: Group, build: Build) -> Entry {
    Entry {
        label,
        group,
        opens_sockets: true,
        scales: true,
        build,
    }
}

const fn floor(label: &'static str, build: Build) -> Entry {
    Entry {
        opens_sockets: false,
        scales: false,
        ..entry(label, Group::Floor, build)
    }
}

/// All peers, in the order of the tables.
pub const CATALOGUE: [Entry; 16] = [
    floor(SPIN, spin_floor::call),
    floor(FUTEX, futex_floor::call),
    Entry {
        scales: true,
        ..floor(FUTEX_ONE_CPU, futex_floor::on_one_cpu)
    },
    entry(OURS, Group::Ours, ours::executor),
    entry(PINNED, Group::Ours, ours::pinned),
    Entry {
        scales: false,
        ..entry(BORROWED, Group::Ours, ours::borrowed)
    },
    Entry {
        scales: false,
        ..entry(SPAWN_JOIN, Group::Ours, ours::spawn_join)
    },
    entry(IN_PLACE, Group::Peer, setns_in_place::call),
    entry(NETNS_RS, Group::Peer, netns_rs::call),
    entry(THREAD_PER_CALL, Group::Peer, thread_per_call::call),
    entry(STD_CHANNEL, Group::Peer, std_channel::call),
    entry(CROSSBEAM, Group::Peer, crossbeam_channel::call),
    entry(RAYON, Group::Peer, rayon::call),
    Entry {
        // A thousand of it are two thousand threads and a thousand epolls.
        scales: false,
        ..entry(TOKIO, Group::Peer, tokio::call)
    },
    Entry {
        opens_sockets: false,
        scales: false,
        ..entry("ip netns exec", Group::Peer, commands::ip)
    },
    Entry {
        opens_sockets: false,
        scales: false,
        ..entry("nsenter", Group::Peer, commands::nsenter)
    },
];

/// A line of the catalogue of floods.
#[derive(Clone, Copy)]
pub struct FloodEntry {
    /// As the tables and `--only` know it.
    pub label: &'static str,
    /// On which side it stands.
    pub group: Group,
    /// Builds it.
    pub build: BuildFlood,
}

/// Our own hand-over of a job that its caller does not wait for.
pub const OUR_SPAWN: &str = "Executor::spawn";

/// The same, many at a time.
pub const OUR_BATCH: &str = "Executor::spawn_batch, 64";

/// What most daemons use for it.
pub const STD_SPAWN: &str = "sync_channel + Box";

/// The same with the faster channel.
pub const CROSSBEAM_SPAWN: &str = "crossbeam + Box";

/// A pool that was born in the namespace.
pub const RAYON_SPAWN: &str = "rayon spawn_fifo";

const fn flood(label: &'static str, group: Group, build: BuildFlood) -> FloodEntry {
    FloodEntry {
        label,
        group,
        build,
    }
}

/// All peers that take jobs without waiting for them.
pub const FLOODS: [FloodEntry; 6] = [
    flood(OUR_SPAWN, Group::Ours, ours::flood),
    flood(OUR_BATCH, Group::Ours, ours::batches),
    flood(STD_SPAWN, Group::Peer, std_channel::flood),
    flood(CROSSBEAM_SPAWN, Group::Peer, crossbeam_channel::flood),
    flood(RAYON_SPAWN, Group::Peer, rayon::flood),
    flood(TOKIO, Group::Peer, tokio::flood),
];
