//! One turn: calls that are timed, back to back or apart.

use std::time::{Duration, Instant};

/// A sample of calls back to back lasts at least this long, so that reading the
/// clock is lost in it.
const SAMPLE: Duration = Duration::from_micros(4);
const MAX_BATCH: u32 = 256;

/// Calls before the clock counts when they are [`apart`]: enough for caches, and
/// for workers that adapt to see that calls have become rare.
const WARM_UP: u32 = 4;

/// How much of a turn there is.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// So many calls, besides those that warm up.
    Calls(u32),
    /// For so long, the calls that warm up included; one call is made in any case.
    Time(Duration),
}

/// Times calls back to back for `length`, after a `warm_up` that finds out how
/// many calls make a sample; `repeat` makes as many as it is told.
///
/// Returns nanoseconds a call, one sample at least. Each is the mean of as many
/// calls as take 4 us: the 99th percentile of what is faster than that is one of
/// short means.
///
/// # Errors
///
/// Those of `repeat`, at once.
pub fn back_to_back<E>(
    warm_up: Duration,
    length: Duration,
    mut repeat: impl FnMut(u32) -> Result<(), E>,
) -> Result<Vec<f64>, E> {
    let mut batch = 1;
    let warming = Instant::now();
    while warming.elapsed() < warm_up {
        let start = Instant::now();
        repeat(batch)?;
        if start.elapsed() < SAMPLE {
            batch = (batch * 2).min(MAX_BATCH);
        }
    }
    let mut samples = Vec::new();
    let turn = Instant::now();
    while samples.is_empty() || turn.elapsed() < length {
        let start = Instant::now();
        repeat(batch)?;
        samples.push(start.elapsed().as_nanos() as f64 / f64::from(batch));
    }
    Ok(samples)
}

/// Times calls with a `pause` before each, which does not count.
///
/// Returns the nanoseconds of each call that came after those that warm up.
///
/// # Errors
///
/// Those of `call`, at once.
pub fn apart<E>(
    extent: Extent,
    mut pause: impl FnMut(),
    mut call: impl FnMut() -> Result<(), E>,
) -> Result<Vec<f64>, E> {
    let turn = Instant::now();
    for _ in 0..WARM_UP {
        pause();
        call()?;
    }
    let mut samples = Vec::new();
    loop {
        let more = match extent {
            Extent::Calls(calls) => samples.len() < calls as usize,
            Extent::Time(length) => samples.is_empty() || turn.elapsed() < length,
        };
        if !more {
            return Ok(samples);
        }
        pause();
        let start = Instant::now();
        call()?;
        samples.push(start.elapsed().as_nanos() as f64);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn turn_brings_a_sample_even_without_time() {
        let mut calls = 0;
        let Ok(samples) = back_to_back(Duration::ZERO, Duration::ZERO, |batch| {
            calls += batch;
            Ok::<(), Infallible>(())
        });
        assert_eq!((samples.len(), calls), (1, 1));
    }

    #[test]
    fn fast_calls_are_timed_in_batches() {
        let mut largest = 0;
        let Ok(_) = back_to_back(Duration::from_millis(1), Duration::ZERO, |batch| {
            largest = largest.max(batch);
            Ok::<(), Infallible>(())
        });
        assert!(largest > 1);
    }

    #[test]
    fn calls_apart_are_counted_without_those_that_warm_up() {
        for (extent, samples) in [
            (Extent::Calls(3), 3),
            (Extent::Calls(0), 0),
            (Extent::Time(Duration::ZERO), 1),
        ] {
            let (mut pauses, mut calls) = (0, 0);
            let counted = apart(
                extent,
                || pauses += 1,
                || {
                    calls += 1;
                    Ok::<(), Infallible>(())
                },
            );
            let Ok(counted) = counted;
            assert_eq!(counted.len(), samples);
            assert_eq!((pauses, calls), (calls, samples as u32 + WARM_UP));
        }
    }

    #[test]
    fn error_ends_the_turn_at_once() {
        let mut calls = 0;
        let failed = back_to_back(Duration::ZERO, Duration::from_secs(60), |_| {
            calls += 1;
            Err("no worker")
        });
        assert_eq!((failed, calls), (Err("no worker"), 1));
    }
}
