//! All that is measured, a file each: the floors, what people use today, and us.

mod catalogue;
mod channel_worker;
mod commands;
mod crossbeam_channel;
mod floor_line;
mod futex_floor;
mod netns_rs;
mod ours;
mod peer;
mod rayon;
mod setns_in_place;
mod ship;
mod spin_floor;
mod std_channel;
mod thread_per_call;
mod tokio;

pub use catalogue::{
    BORROWED, CATALOGUE, CROSSBEAM, CROSSBEAM_SPAWN, Entry, FLOODS, FUTEX, FUTEX_ONE_CPU,
    FloodEntry, IN_PLACE, NETNS_RS, OUR_BATCH, OUR_SPAWN, OURS, PINNED, RAYON, RAYON_SPAWN,
    SPAWN_JOIN, SPIN, STD_CHANNEL, STD_SPAWN, THREAD_PER_CALL, TOKIO,
};
pub use ours::woken_by;
pub use peer::{Build, BuildFlood, Flood, Group, Peer, Setup};
