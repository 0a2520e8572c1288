//! How long one call takes, from one caller, by regime.

use std::time::{Duration, Instant};

use crate::conditions::regime::{self, Gap, Regime};
use crate::peers::{Entry, FUTEX, OURS, Peer, SPIN};
use crate::sections::contest::{Contest, Contestant};
use crate::work::Work;

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

/// Calls before the clock counts in a regime with gaps: enough for caches, and
/// for whoever adapts to adapt.
const WARM_UP: u32 = 4;

/// A sample lasts at least this long, so that reading the clock is lost in it.
const SAMPLE: Duration = Duration::from_micros(4);
const MAX_BATCH: u32 = 256;

/// The scenes: every regime with an empty closure, and two with a socket.
pub fn contests<'a>(peers: &'a [(Entry, Box<dyn Peer>)], effort: Effort) -> Vec<Contest<'a>> {
    let empty = regime::ALL.map(|regime| (regime, Work::Empty));
    let socket = [regime::HOT, regime::SLEEP_1MS].map(|regime| (regime, Work::Socket));
    (empty.into_iter().chain(socket))
        .map(|(regime, work)| contest(peers, regime, work, effort))
        .collect()
}

fn contest<'a>(
    peers: &'a [(Entry, Box<dyn Peer>)],
    regime: Regime,
    work: Work,
    effort: Effort,
) -> Contest<'a> {
    // Two threads that spin are no floor for anybody who sleeps, and with hogs
    // they only measure the scheduler's time slice.
    let takes_part = |entry: &Entry| {
        (work == Work::Empty || entry.opens_sockets)
            && (entry.label != SPIN || regime.gap == Gap::None)
    };
    Contest {
        section: "latency",
        scene: match work {
            Work::Empty => regime.name.to_owned(),
            Work::Socket => format!("{}, socket", regime.name),
        },
        hogs: regime.hogs,
        floor: match regime.gap {
            Gap::None => SPIN,
            _ => FUTEX,
        },
        ours: OURS,
        contestants: (peers.iter())
            .filter(|(entry, _)| takes_part(entry))
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
    let samples = match gap {
        Gap::None => back_to_back(peer, work, effort.hot),
        Gap::Sleep(time) | Gap::Busy(time) => {
            let calls = if time < Duration::from_millis(1) {
                effort.short_gaps
            } else {
                effort.long_gaps
            };
            apart(peer, work, gap, calls)
        }
    };
    peer.end();
    samples
}

/// Samples of as many calls as fill [`SAMPLE`]: the 99th percentile of what is
/// faster than that is one of short means.
fn back_to_back(peer: &dyn Peer, work: Work, time: Duration) -> Vec<f64> {
    let mut batch = 1;
    let warm_up = Instant::now();
    while warm_up.elapsed() < time / 4 {
        let start = Instant::now();
        peer.repeat(work, batch);
        if start.elapsed() < SAMPLE {
            batch = (batch * 2).min(MAX_BATCH);
        }
    }
    let mut samples = Vec::new();
    let turn = Instant::now();
    while samples.is_empty() || turn.elapsed() < time {
        samples.push(timed(peer, work, batch));
    }
    samples
}

fn apart(peer: &dyn Peer, work: Work, gap: Gap, calls: u32) -> Vec<f64> {
    for _ in 0..WARM_UP {
        gap.pass();
        peer.repeat(work, 1);
    }
    (0..calls)
        .map(|_| {
            gap.pass();
            timed(peer, work, 1)
        })
        .collect()
}

fn timed(peer: &dyn Peer, work: Work, calls: u32) -> f64 {
    let start = Instant::now();
    peer.repeat(work, calls);
    start.elapsed().as_nanos() as f64 / f64::from(calls)
}
