//! What happens around a call: how long ago the last one was, and what else
//! the CPUs are doing.

use std::thread;
use std::time::{Duration, Instant};

/// What the caller does between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// Nothing: it calls back to back.
    None,
    /// It sleeps, so its own CPU may go idle too.
    ///
    /// The kernel adds its timer slack (50 us by default), for all peers alike.
    Sleep(Duration),
    /// It computes, so only the worker's CPU goes idle.
    Busy(Duration),
}

impl Gap {
    /// Lets the gap pass on the calling thread.
    pub fn pass(self) {
        match self {
            Gap::None => {}
            Gap::Sleep(time) => thread::sleep(time),
            Gap::Busy(time) => {
                let start = Instant::now();
                while start.elapsed() < time {
                    std::hint::black_box(start);
                }
            }
        }
    }
}

/// One row of conditions under which calls are timed.
#[derive(Clone, Copy, Debug)]
pub struct Regime {
    /// As the tables and `--only` know it.
    pub name: &'static str,
    /// What the caller does between two calls.
    pub gap: Gap,
    /// Whether every CPU also runs something else.
    pub hogs: bool,
}

const fn regime(name: &'static str, gap: Gap, hogs: bool) -> Regime {
    Regime { name, gap, hogs }
}

const SHORT: Duration = Duration::from_micros(100);
const LONG: Duration = Duration::from_millis(1);

/// Calls back to back.
pub const HOT: Regime = regime("hot", Gap::None, false);
/// One millisecond asleep between calls: what a daemon mostly does.
pub const SLEEP_1MS: Regime = regime("sleep 1ms", Gap::Sleep(LONG), false);

/// All regimes, in the order of the tables.
pub const ALL: [Regime; 6] = [
    HOT,
    regime("sleep 100us", Gap::Sleep(SHORT), false),
    SLEEP_1MS,
    regime("busy 100us", Gap::Busy(SHORT), false),
    regime("busy 1ms", Gap::Busy(LONG), false),
    regime("hogs, sleep 1ms", Gap::Sleep(LONG), true),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_last_at_least_as_long_as_they_say() {
        for gap in [Gap::Sleep(SHORT), Gap::Busy(SHORT)] {
            let start = Instant::now();
            gap.pass();
            assert!(start.elapsed() >= SHORT, "{gap:?}");
        }
    }
}
