//! What a soak came to.

use std::fmt::Write;

use serde::Serialize;

use super::rest::Figures;
use super::tally::Done;
use crate::failure::Failure;
use crate::output;
use crate::setting::Setting;

/// Memory that comes and goes with what the allocator keeps, and with the stacks that libc
/// keeps for threads to come.
const ROOM: i64 = 8 << 20;
/// The same of what is allocated: each thread has some freed blocks at hand, which count.
const ROOM_IN_HEAP: i64 = 1 << 20;

#[derive(Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) setting: Setting,
    pub(super) seed: u64,
    pub(super) seconds: f64,
    pub(super) soakers: usize,
    #[serde(flatten)]
    pub(super) done: Done,
    /// Since the end of the warm-up; `None` when it was not to be had.
    pub(super) growth: Option<Figures>,
    pub(super) violations: u64,
    /// The first of them.
    pub(super) found: Vec<String>,
    pub(super) ok: bool,
}

impl Report {
    /// What of the growth is a violation.
    pub(super) fn grown(growth: Figures) -> Option<String> {
        let heap = growth.heap.unwrap_or(0);
        let grown = growth.memory > ROOM
            || heap > ROOM_IN_HEAP
            || growth.descriptors > 0
            || growth.threads > 0;
        grown.then(|| {
            format!(
                "{} bytes of memory, {heap} of them allocated, {} descriptors, {} threads more \
                 than after the warm-up",
                growth.memory, growth.descriptors, growth.threads
            )
        })
    }

    pub(super) fn show(&self) -> Result<(), Failure> {
        let done = &self.done;
        let mut text = format!(
            "{:.0} seconds, {} threads, seed {}\n\n",
            self.seconds, self.soakers, self.seed
        );
        let rows = [
            ("jobs", done.jobs),
            ("  that panicked", done.panicked),
            ("  cancelled in time", done.cancelled),
            ("  refused a thread", done.refused),
            ("  that moved their thread", done.escaped),
            ("  that left a thread", done.left),
            ("futures", done.futures),
            ("threads beside the pool", done.threads),
            ("sockets from stocks", done.sockets),
            ("leases", done.leases),
            ("children", done.children),
            ("namespaces", done.namespaces),
            ("executors", done.executors),
            ("audits", done.audits),
            ("faults injected", done.faults),
            ("  attempts that failed over them", done.failed_over_faults),
            ("violations", self.violations),
        ];
        for (what, count) in rows {
            let _ = writeln!(text, "{what:<34}{count:>12}");
        }
        match self.growth {
            Some(growth) => {
                let memory = growth.memory / 1024;
                let _ = writeln!(text, "{:<34}{memory:>12} KiB", "memory growth");
                if let Some(heap) = growth.heap {
                    let heap = heap / 1024;
                    let _ = writeln!(text, "{:<34}{heap:>12} KiB", "  of what is allocated");
                }
                let _ = writeln!(
                    text,
                    "{:<34}{:>12}",
                    "descriptor growth", growth.descriptors
                );
                let _ = write!(text, "{:<34}{:>12}", "thread growth", growth.threads);
            }
            None => text.push_str("growth: ended before it could be measured"),
        }
        for violation in &self.found {
            let _ = write!(text, "\nviolation: {violation}");
        }
        output::line(text)
    }
}
