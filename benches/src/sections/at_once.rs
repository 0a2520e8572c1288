//! Callers that begin at once.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Each of `callers` gets ready, waits for the others and calls; `meanwhile` is done here from
/// when all are ready.
///
/// Tells what calls came to, and how long it was from when the first caller began to when
/// the last was done. The callers look at the clock themselves: the thread that waits for
/// them gets a CPU milliseconds after they do where none of them gives one away.
pub(crate) fn at_once<R, T: Send>(
    callers: usize,
    ready: impl Fn() -> R + Sync,
    call: impl Fn(R) -> T + Sync,
    meanwhile: impl FnOnce(),
) -> (Vec<T>, Duration) {
    let start = Barrier::new(callers + 1);
    thread::scope(|scope| {
        let caller = || {
            let ready = ready();
            start.wait();
            let begun = Instant::now();
            let came_to = call(ready);
            (came_to, begun, Instant::now())
        };
        let callers: Vec<_> = (0..callers).map(|_| scope.spawn(caller)).collect();
        start.wait();
        meanwhile();

        let ended: Vec<_> = (callers.into_iter())
            .map(|caller| caller.join().expect("a caller does not panic"))
            .collect();
        let first = ended.iter().map(|(_, begun, _)| *begun).min();
        let last = ended.iter().map(|(_, _, done)| *done).max();
        let took = last
            .zip(first)
            .map_or(Duration::ZERO, |(last, first)| last - first);
        (
            ended.into_iter().map(|(came_to, ..)| came_to).collect(),
            took,
        )
    })
}
