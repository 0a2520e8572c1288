//! Clocks: clock_gettime(2).
#![allow(unsafe_code)]

/// Nanoseconds of the monotonic clock: now, or at the last tick of the kernel's timer,
/// which is several times faster to ask for.
#[inline]
pub(crate) fn monotonic(coarse: bool) -> u64 {
    let clock = match coarse {
        true => libc::CLOCK_MONOTONIC_COARSE,
        false => libc::CLOCK_MONOTONIC,
    };
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // Not by nix, which gives what was read back as a copy that is waited for.
    // SAFETY: `now` is what is written.
    let refused = unsafe { libc::clock_gettime(clock, &raw mut now) };
    assert_eq!(refused, 0, "Linux has these clocks");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
