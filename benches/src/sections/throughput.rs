//! What many callers get done in one namespace, and how fast jobs can be
//! handed over that no caller waits for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::peers::{Entry, Flood, FloodEntry, Group, OUR_SPAWN, OURS, Peer};
use crate::sections::at_once::at_once;
use crate::sections::contest::{Contest, Contestant, Filter};
use crate::work::Work;

/// How many callers there are.
pub const CALLERS: [usize; 3] = [1, 2, 8];

/// The scene of so many callers.
pub fn scene(callers: usize, work: Work) -> String {
    let plural = if callers == 1 { "" } else { "s" };
    match work {
        Work::Empty => format!("{callers} caller{plural}"),
        Work::Socket => format!("{callers} caller{plural}, socket"),
    }
}

/// The section's name.
pub const SECTION: &str = "throughput";

/// Whether `filter` asks for `entry` in any scene.
pub fn is_wanted(entry: &Entry, filter: &Filter) -> bool {
    let is_asked =
        |scene: &CallScene| filter.matches(SECTION, &scene.name, entry.group, entry.label);
    takes_part(entry) && call_scenes().iter().any(is_asked)
}

/// A scene of this section.
struct CallScene {
    name: String,
    work: Work,
    callers: usize,
    /// Whether busy processes share the CPUs.
    hogs: bool,
}

/// One for each number of callers and each kind of work, and one beside busy processes.
fn call_scenes() -> Vec<CallScene> {
    let call_scene = |work, callers, hogs| CallScene {
        name: scene(callers, work) + if hogs { ", hogs" } else { "" },
        work,
        callers,
        hogs,
    };
    let by_work = |work| (CALLERS.into_iter()).map(move |callers| call_scene(work, callers, false));
    (by_work(Work::Empty))
        .chain(by_work(Work::Socket))
        .chain([call_scene(Work::Empty, 8, true)])
        .collect()
}

fn takes_part(entry: &Entry) -> bool {
    entry.opens_sockets && entry.group != Group::Floor
}

/// One contest for each scene.
pub fn contests<'a>(peers: &'a [(Entry, Box<dyn Peer>)], time: Duration) -> Vec<Contest<'a>> {
    (call_scenes().into_iter())
        .map(|scene| Contest {
            section: SECTION,
            scene: scene.name,
            hogs: scene.hogs,
            floor: "",
            ours: OURS,
            contestants: (peers.iter())
                .filter(|(entry, _)| takes_part(entry))
                .map(|(entry, peer)| {
                    let turn = move || vec![turn(peer.as_ref(), scene.work, scene.callers, time)];
                    Contestant::new(entry.label, entry.group, turn)
                })
                .collect(),
        })
        .collect()
}

/// Nanoseconds a call, over all callers together.
fn turn(peer: &dyn Peer, work: Work, callers: usize, time: Duration) -> f64 {
    let stop = AtomicBool::new(false);
    let call = |()| {
        let mut calls = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            peer.repeat(work, 4);
            calls += 4;
        }
        calls
    };
    let for_a_while = || {
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    };
    let (calls, took) = at_once(callers, || peer.repeat(work, 1), call, for_a_while);
    took.as_nanos() as f64 / calls.iter().sum::<u64>() as f64
}

/// The section of jobs that no caller waits for.
pub const SPAWN: &str = "spawn";

/// A scene of that section.
pub struct SpawnScene {
    /// The scene's name.
    pub name: &'static str,
    /// How many threads hand over jobs.
    spawners: u32,
    /// Whether busy processes share the CPUs.
    hogs: bool,
}

const fn spawn_scene(name: &'static str, spawners: u32, hogs: bool) -> SpawnScene {
    SpawnScene {
        name,
        spawners,
        hogs,
    }
}

/// The scenes of jobs that no caller waits for.
pub const SPAWN_SCENES: [SpawnScene; 5] = [
    spawn_scene("spawn", 1, false),
    spawn_scene("spawn from 2 threads", 2, false),
    spawn_scene("spawn from 8 threads", 8, false),
    spawn_scene("spawn, hogs", 1, true),
    spawn_scene("spawn from 8 threads, hogs", 8, true),
];

/// The contests of jobs that no caller waits for: `jobs` in a turn, from all threads
/// together.
pub fn spawn_contests<'a>(
    floods: &'a [(FloodEntry, Box<dyn Flood>)],
    jobs: u32,
) -> Vec<Contest<'a>> {
    (SPAWN_SCENES.into_iter())
        .map(|scene| spawn_contest(floods, jobs / scene.spawners, scene))
        .collect()
}

fn spawn_contest<'a>(
    floods: &'a [(FloodEntry, Box<dyn Flood>)],
    each: u32,
    scene: SpawnScene,
) -> Contest<'a> {
    let spawners = scene.spawners;
    Contest {
        section: SPAWN,
        scene: scene.name.into(),
        hogs: scene.hogs,
        floor: "",
        ours: OUR_SPAWN,
        contestants: (floods.iter())
            .map(|(entry, flood)| {
                let turn = move || {
                    let start = Instant::now();
                    flood.flood(each, spawners);
                    vec![start.elapsed().as_nanos() as f64 / f64::from(each * spawners)]
                };
                Contestant::new(entry.label, entry.group, turn)
            })
            .collect(),
    }
}
