//! Copies of the test's process.
#![expect(unsafe_code, reason = "fork(2)")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork};

/// Calls `f` in a copy of this process made by fork(2), which must come to its end there.
/// What `f` takes from where it is is still there in the original.
#[track_caller]
pub fn in_a_copy(what: &str, f: impl FnOnce()) {
    assert_ended_well(begin_copy(f), what);
}

/// The same, and does not wait for its end.
pub fn begin_copy(f: impl FnOnce()) -> Pid {
    // SAFETY: the copy calls what is tested, and leaves without running anything of
    // the test harness.
    match unsafe { fork() }.expect("a copy") {
        ForkResult::Child => {
            alarm::set(20);
            let ended = catch_unwind(AssertUnwindSafe(f));
            // SAFETY: ends the copy at once.
            unsafe { libc::_exit(i32::from(ended.is_err())) }
        }
        ForkResult::Parent { child } => child,
    }
}

/// Waits until a copy has ended.
#[track_caller]
pub fn assert_ended_well(copy: Pid, what: &str) {
    let status = waitpid(copy, None).expect("a child of this process");
    assert_eq!(status, WaitStatus::Exited(copy, 0), "{what} in a copy");
}
