//! Whether a call keeps the thread of a runtime: by how late a timer is there.

use std::cell::Cell;
use std::fs;
use std::future::Future;
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::Executor;
use tokio::runtime::{Builder, Runtime};

use crate::Gate;

/// How late the timer of a runtime with one thread may be, and how often it rings.
const LATE: Duration = Duration::from_millis(10);
const TICK: Duration = Duration::from_millis(5);

/// How long what is waited for is to take: far longer than a timer may be late.
pub const LONG: Duration = Duration::from_millis(60);

/// A runtime with one thread.
pub fn current_thread() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().build().expect("a runtime")
}

/// Drives what `scenario` makes on a runtime with one thread, beside a timer that rings all
/// the time. What the thread waits for a CPU does not count. A lock whose holder waits for
/// one does: once in time out of a few is enough, since what blocks does so each time.
///
/// # Panics
///
/// When the timer has been kept waiting.
#[track_caller]
pub fn never_blocks<P, F: Future<Output = ()>>(
    what: &str,
    prepare: impl Fn() -> P,
    scenario: impl Fn(P) -> F,
) {
    let mut worst = Vec::new();
    for _ in 0..32 {
        let prepared = prepare();
        let late = current_thread().block_on(async {
            LATE_BY.set(Duration::ZERO);
            let ticks = tokio::spawn(async {
                loop {
                    let (begin, before) = (Instant::now(), without_cpu());
                    tokio::time::sleep(TICK).await;
                    let excused = self::without_cpu() - before;
                    let late = begin.elapsed().saturating_sub(TICK + excused);
                    LATE_BY.set(LATE_BY.get().max(late));
                }
            });
            // So that the timer has begun.
            tokio::time::sleep(TICK).await;
            scenario(prepared).await;
            tokio::time::sleep(TICK * 2).await;
            ticks.abort();
            LATE_BY.get()
        });
        if late < LATE {
            return;
        }
        worst.push(late);
    }
    panic!("{what}: a timer on the same thread was late by {worst:?}");
}

/// For how long the calling thread could have run and had no CPU, so far: see "schedstats"
/// in the kernel's documentation. Nothing where the kernel does not count it.
fn without_cpu() -> Duration {
    let counts = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = counts.split_whitespace().nth(1);
    Duration::from_nanos(nanos.map_or(0, |nanos| nanos.parse().unwrap_or(0)))
}

thread_local! {
    static LATE_BY: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Opens a gate when the runtime's clock says so.
pub fn open_later(gate: Gate) {
    tokio::spawn(async move {
        tokio::time::sleep(LONG).await;
        gate.open();
    });
}

/// An executor whose workers take long to be there.
///
/// # Panics
///
/// When it cannot be built.
pub fn slow_to_start() -> Executor {
    let builder = Executor::builder().on_worker_start(|_| {
        thread::sleep(LONG);
        Ok(())
    });
    builder.build().expect("an executor")
}
