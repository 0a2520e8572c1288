//! What was done, and what was found to be wrong.

use std::fmt::Display;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The most violations that are told; all are counted.
const TOLD: usize = 20;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// How often what has been done.
        #[derive(Default)]
        pub(super) struct Counts {
            $($(#[$doc])* pub(super) $name: AtomicU64,)*
        }

        /// The same, for JSON.
        #[derive(serde::Serialize)]
        pub(super) struct Done {
            $($(#[$doc])* pub(super) $name: u64,)*
        }

        impl Counts {
            pub(super) fn read(&self) -> Done {
                Done { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counts! {
    /// Closures that ran, futures and threads beside the pool included.
    jobs,
    panicked,
    cancelled,
    /// Threads that a sealed job asked for.
    refused,
    /// Jobs that moved their thread.
    escaped,
    /// Jobs that left a thread behind.
    left,
    futures,
    /// Threads beside the pool.
    threads,
    /// Sockets from a stock.
    sockets,
    leases,
    children,
    /// Namespaces that were made.
    namespaces,
    /// Executors that were made and shut down in between.
    executors,
    audits,
    /// Moments without descriptors.
    faults,
    /// Attempts that came to nothing over these, with the errno that says so.
    failed_over_faults,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[derive(Default)]
pub(super) struct Tally {
    pub(super) counts: Counts,
    /// Closures that exist.
    pub(super) alive: AtomicI64,
    pub(super) violation_count: AtomicU64,
    violations: Mutex<Vec<String>>,
}

impl Tally {
    pub(super) fn violation(&self, text: impl Display) {
        count(&self.violation_count);
        let mut violations = (self.violations.lock()).unwrap_or_else(PoisonError::into_inner);
        if violations.len() < TOLD {
            violations.push(text.to_string());
        }
    }

    /// Notes a violation unless `holds`.
    pub(super) fn check(&self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.violation(text());
        }
    }

    pub(super) fn violations(&self) -> Vec<String> {
        (self.violations.lock())
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Goes along with a job: counts its runs, and whether it was dropped.
pub(super) struct Token {
    tally: Arc<Tally>,
    runs: Arc<AtomicU32>,
    inode: u64,
}

impl Token {
    /// For a job in the namespace with this inode.
    pub(super) fn new(tally: &Arc<Tally>, inode: u64) -> (Token, Arc<AtomicU32>) {
        tally.alive.fetch_add(1, Ordering::Relaxed);
        let runs = Arc::new(AtomicU32::new(0));
        let token = Token {
            tally: Arc::clone(tally),
            runs: Arc::clone(&runs),
            inode,
        };
        (token, runs)
    }

    /// To be called first thing in a job.
    pub(super) fn begin(&self) {
        count(&self.tally.counts.jobs);
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.look();
    }

    /// To be called where the job should be in place still.
    pub(super) fn look(&self) {
        let here = inode_here();
        self.tally.check(here == Some(self.inode), || {
            format!("a job of namespace {} was in {here:?}", self.inode)
        });
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.tally.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The inode of the namespace that the calling thread is in. Takes no descriptor.
pub(super) fn inode_here() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let there = std::fs::metadata("/proc/thread-self/ns/net").ok()?;
    Some(there.ino())
}
