//! Clocks: clock_gettime(2).
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

/// Nanoseconds of the monotonic clock: now, or at the last tick of the kernel's timer,
/// which is several times faster to ask for.
#[inline]
pub(crate) fn monotonic(coarse: bool) -> u64 {
    let clock = match coarse {
        true => libc::CLOCK_MONOTONIC_COARSE,
        false => libc::CLOCK_MONOTONIC,
    };
    let mut now = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: `now` has room for what is written.
    let refused = unsafe { libc::clock_gettime(clock, now.as_mut_ptr()) };
    assert_eq!(refused, 0, "Linux has these clocks");
    // SAFETY: written, because it was not refused.
    let now = unsafe { now.assume_init_ref() };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
