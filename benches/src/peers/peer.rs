//! What a peer is, and what it is built from.

use netns_exec::{Executor, Netns};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::work::Work;

/// On which side of the comparison a peer stands.
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

/// A means to get work done in a namespace, ready to be called.
pub trait Peer: Send + Sync {
    /// Does `work` `times` times, one after the other, each waited for.
    fn repeat(&self, work: Work, times: u32);

    /// The inode of the namespace that its work runs in; `None` for floors.
    fn netns_inode(&self) -> Option<u64>;

    /// Makes ready for a turn of calls from the calling thread.
    fn begin(&self) {}

    /// Ends the turn: what spins goes to sleep.
    fn end(&self) {}
}

/// A peer that takes jobs without waiting for them.
pub trait Flood: Send + Sync {
    /// Hands over `jobs` jobs from each of `spawners` threads and returns when all of
    /// them have run. One spawner is the calling thread.
    fn flood(&self, jobs: u32, spawners: u32);
}

/// What peers are built from.
pub struct Setup<'a> {
    /// The namespace to be in.
    pub netns: &'a Netns,
    /// Its name under /run/netns, if it has one.
    pub name: Option<&'a str>,
    /// Where our own contestants run: one for all of them, as in a program.
    pub executor: &'a Executor,
}

/// How a peer is built for a namespace.
pub type Build = fn(&Setup<'_>) -> Result<Box<dyn Peer>>;

/// Builds a [`Flood`].
pub type BuildFlood = fn(&Setup<'_>) -> Result<Box<dyn Flood>>;
