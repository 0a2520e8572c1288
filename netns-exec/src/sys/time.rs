//! Clocks: clock_gettime(2).

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock: now, or at the last tick of the kernel's timer,
/// which is several times faster to ask for.
pub(crate) fn monotonic(coarse: bool) -> u64 {
    let clock = match coarse {
        true => ClockId::CLOCK_MONOTONIC_COARSE,
        false => ClockId::CLOCK_MONOTONIC,
    };
    let now = clock_gettime(clock).expect("Linux has these clocks");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
