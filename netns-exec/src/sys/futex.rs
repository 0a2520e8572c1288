//! Waiting on a word of memory: futex(2), private to the process.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while `*word == expected`; returns `false` when `timeout` ran out.
///
/// Returns early for no reason now and then, so call it in a loop.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> bool {
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    let timeout = (timeout.as_ref()).map_or(ptr::null(), |t| t as *const libc::timespec);
    // SAFETY: `word` is borrowed for the whole call; `timeout` is null or points
    // at a timespec that lives in this frame.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            expected,
            timeout,
        )
    };
    rc == 0 || nix::errno::Errno::last() != nix::errno::Errno::ETIMEDOUT
}

/// Wakes up to `count` threads that sleep on `word`.
///
/// Takes a pointer because the word may be gone by now: a waiter that sees the
/// value it waits for returns without waiting for the wake-up. The kernel uses
/// the address as a name only; at worst a stranger wakes for no reason.
pub(crate) fn wake(word: *const AtomicU32, count: i32) {
    // SAFETY: FUTEX_WAKE does not read the word.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word,
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            count,
        );
    }
}
