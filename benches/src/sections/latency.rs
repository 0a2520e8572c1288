//! How long one call takes, from one caller, by regime.

use std::convert::Infallible;
use std::time::Duration;

use netns_exec_measure::{Extent, apart, back_to_back};

use crate::conditions::cpus;
use crate::conditions::regime::{self, Gap, Regime};
use crate::peers::{Entry, FUTEX, Group, OURS, Peer, SPIN};
use crate::sections::contest::{Contest, Contestant, Filter};
use crate::work::Work;

/// The section's name.
pub const SECTION: &str = "latency";

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How long a turn back to back lasts.
    pub hot: Duration,
    /// Calls per turn 100 us apart.
    pub short_gaps: u32,
    /// Calls per turn 1 ms apart.
    pub long_gaps: u32,
}

/// Whether `filter` asks for `entry` in any scene.
pub fn is_wanted(entry: &Entry, filter: &Filter) -> bool {
    scenes().any(|(regime, work)| {
        takes_part(entry, regime, work)
            && filter.matches(SECTION, &scene(regime, work), entry.group, entry.label)
    }) || BOUND.into_iter().any(|regime| {
        bound_takes_part(entry, regime)
            && filter.matches(SECTION, &bound_scene(regime), entry.group, entry.label)
    })
}

/// Every regime with an empty closure, and two with a socket.
fn scenes() -> impl Iterator<Item = (Regime, Work)> {
    let empty = regime::ALL.map(|regime| (regime, Work::Empty));
    let socket = [regime::HOT, regime::SLEEP_1MS].map(|regime| (regime, Work::Socket));
    empty.into_iter().chain(socket)
}

fn scene(regime: Regime, work: Work) -> String {
    match work {
        Work::Empty => regime.name.to_owned(),
        Work::Socket => format!("{}, socket", regime.name),
    }
}

fn takes_part(entry: &Entry, regime: Regime, work: Work) -> bool {
    // Two threads that spin are no floor for peers that sleep, and with hogs
    // they only measure the scheduler's time slice.
    (work == Work::Empty || entry.opens_sockets) && (entry.label != SPIN || regime.gap == Gap::None)
}

/// Calls from a thread that may run on one CPU only, and whose worker may run on all.
const BOUND: [Regime; 2] = [regime::HOT, regime::SLEEP_1MS];

fn bound_scene(regime: Regime) -> String {
    format!("{}, caller bound", regime.name)
}

fn bound_takes_part(entry: &Entry, regime: Regime) -> bool {
    entry.group != Group::Peer && takes_part(entry, regime, Work::Empty)
}

fn bound_contest<'a>(
    peers: &'a [(Entry, Box<dyn Peer>)],
    regime: Regime,
    effort: Effort,
) -> Contest<'a> {
    Contest {
        scene: bound_scene(regime),
        contestants: (peers.iter())
            .filter(|(entry, _)| bound_takes_part(entry, regime))
            .map(|(entry, peer)| {
                let turn = move || bound_turn(peer.as_ref(), regime.gap, effort);
                Contestant::new(entry.label, entry.group, turn)
            })
            .collect(),
        ..contest(peers, regime, Work::Empty, effort)
    }
}

fn bound_turn(peer: &dyn Peer, gap: Gap, effort: Effort) -> Vec<f64> {
    const OURS: &str = "CPUs we were on are still ours";
    let cpus = cpus::allowed().expect(OURS);
    // The floor on one CPU takes the first, as it does with callers that are free.
    cpus::restrict_to(&cpus[..1]).expect(OURS);
    let samples = turn(peer, gap, Work::Empty, effort);
    cpus::restrict_to(&cpus).expect(OURS);
    samples
}

/// The scenes: every regime with an empty closure, and two with a socket, and two
/// from a caller that is bound to a CPU.
pub fn contests<'a>(peers: &'a [(Entry, Box<dyn Peer>)], effort: Effort) -> Vec<Contest<'a>> {
    scenes()
        .map(|(regime, work)| contest(peers, regime, work, effort))
        .chain(BOUND.map(|regime| bound_contest(peers, regime, effort)))
        .collect()
}

fn contest<'a>(
    peers: &'a [(Entry, Box<dyn Peer>)],
    regime: Regime,
    work: Work,
    effort: Effort,
) -> Contest<'a> {
    Contest {
        section: SECTION,
        scene: scene(regime, work),
        hogs: regime.hogs,
        floor: match regime.gap {
            Gap::None => SPIN,
            _ => FUTEX,
        },
        ours: OURS,
        contestants: (peers.iter())
            .filter(|(entry, _)| takes_part(entry, regime, work))
            .map(|(entry, peer)| {
                let turn = move || turn(peer.as_ref(), regime.gap, work, effort);
                Contestant::new(entry.label, entry.group, turn)
            })
            .collect(),
    }
}

/// One turn; returns nanoseconds a call.
pub fn turn(peer: &dyn Peer, gap: Gap, work: Work, effort: Effort) -> Vec<f64> {
    peer.begin();
    let timed = match gap {
        Gap::None => back_to_back(effort.hot / 4, effort.hot, |calls| {
            peer.repeat(work, calls);
            Ok(())
        }),
        Gap::Sleep(time) | Gap::Busy(time) => {
            let calls = if time < Duration::from_millis(1) {
                effort.short_gaps
            } else {
                effort.long_gaps
            };
            apart(
                Extent::Calls(calls),
                || gap.pass(),
                || {
                    peer.repeat(work, 1);
                    Ok(())
                },
            )
        }
    };
    let Ok::<_, Infallible>(samples) = timed;
    peer.end();
    samples
}
