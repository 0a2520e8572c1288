//! Everybody who is measured: the floors, what people use today, and us.

mod channels;
mod commands;
mod floors;
mod in_place;
mod ours;
mod pools;
mod ship;

use netns_exec::{Executor, Netns};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::work::Work;

/// On which side a contestant stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// What the hardware and the kernel allow at best; enters no namespace.
    Floor,
    /// This library.
    Ours,
    /// What people use today.
    Peer,
}

impl Group {
    /// As `--only` and the tables know it.
    pub fn name(self) -> &'static str {
        match self {
            Group::Floor => "floor",
            Group::Ours => "ours",
            Group::Peer => "peer",
        }
    }
}

/// One way to get work done in a namespace, ready to be called.
pub trait Peer: Send + Sync {
    /// Does `work` `times` times, one after the other, each waited for.
    fn repeat(&self, work: Work, times: u32);

    /// The inode of the namespace that its work runs in; `None` for floors.
    fn place(&self) -> Option<u64>;

    /// Makes ready for a turn of calls from the calling thread.
    fn begin(&self) {}

    /// Ends the turn: what spins goes to sleep.
    fn end(&self) {}
}

/// One that also takes jobs that nobody waits for.
pub trait Flood: Send + Sync {
    /// Hands over `jobs` jobs and returns when all of them have run.
    fn flood(&self, jobs: u32);
}

/// What peers are built from.
pub struct Site<'a> {
    /// The namespace to be in.
    pub netns: &'a Netns,
    /// Its name under /run/netns, if it has one.
    pub name: Option<&'a str>,
    /// Where our own contestants run: one for all of them, as in a program.
    pub executor: &'a Executor,
}

/// How a peer is built for a namespace.
pub type Build = fn(&Site<'_>) -> Result<Box<dyn Peer>>;

/// A line of the catalogue.
#[derive(Clone, Copy)]
pub struct Entry {
    /// As the tables and `--only` know it.
    pub label: &'static str,
    /// On which side it stands.
    pub group: Group,
    /// Whether it can do [`Work::Socket`].
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

/// Everybody.
pub const CATALOGUE: [Entry; 16] = [
    floor(SPIN, floors::spin),
    floor(FUTEX, floors::futex),
    floor("futex ping-pong, one CPU", floors::futex_on_one_cpu),
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
    entry(IN_PLACE, Group::Peer, in_place::there_and_back),
    entry(NETNS_RS, Group::Peer, in_place::netns_rs),
    entry(THREAD_PER_CALL, Group::Peer, in_place::thread_per_call),
    entry(STD_CHANNEL, Group::Peer, channels::std),
    entry(CROSSBEAM, Group::Peer, channels::crossbeam),
    entry(RAYON, Group::Peer, pools::rayon),
    Entry {
        // A thousand of it are two thousand threads and a thousand epolls.
        scales: false,
        ..entry(TOKIO, Group::Peer, pools::tokio)
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

/// Builds a [`Flood`].
pub type BuildFlood = fn(&Site<'_>) -> Result<Box<dyn Flood>>;

/// A line of the catalogue of those who take jobs that nobody waits for.
#[derive(Clone, Copy)]
pub struct FloodEntry {
    /// As the tables and `--only` know it.
    pub label: &'static str,
    /// On which side it stands.
    pub group: Group,
    /// Builds it.
    pub build: BuildFlood,
}

/// Our own way to hand over a job that nobody waits for.
pub const OUR_SPAWN: &str = "Executor::spawn";

/// The same, many at a time.
pub const OUR_BATCH: &str = "Executor::spawn_batch, 64";

/// What most daemons use for it.
pub const STD_SPAWN: &str = "sync_channel + Box";

const fn flood(label: &'static str, group: Group, build: BuildFlood) -> FloodEntry {
    FloodEntry {
        label,
        group,
        build,
    }
}

/// Everybody who takes jobs that nobody waits for.
pub const FLOODS: [FloodEntry; 6] = [
    flood(OUR_SPAWN, Group::Ours, ours::flood),
    flood(OUR_BATCH, Group::Ours, ours::batches),
    flood(STD_SPAWN, Group::Peer, channels::std_flood),
    flood("crossbeam + Box", Group::Peer, channels::crossbeam_flood),
    flood("rayon spawn_fifo", Group::Peer, pools::rayon_flood),
    flood(TOKIO, Group::Peer, pools::tokio_flood),
];
