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

        let mut came_to = Vec::with_capacity(callers.len());
        let mut span: Option<(Instant, Instant)> = None;
        for caller in callers {
            let (one, begun, done) = caller.join().expect("a caller does not panic");
            came_to.push(one);
            span = Some(span.map_or((begun, done), |(first, last)| {
                (first.min(begun), last.max(done))
            }));
        }
        let took = span.map_or(Duration::ZERO, |(first, last)| last - first);
        (came_to, took)
    })
}
