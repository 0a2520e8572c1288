//! Copies of the test's process.
#![expect(unsafe_code, reason = "fork(2)")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, alarm, fork};

/// Calls `f` in a copy of this process made by fork(2), which must come to its end there.
/// What `f` takes from where it is is still there in the original.
#[track_caller]
pub fn in_a_copy(what: &str, f: impl FnOnce()) {
    // SAFETY: the copy calls what is tested, and leaves without running anything of
    // the test harness.
    match unsafe { fork() }.expect("a copy") {
        ForkResult::Child => {
            alarm::set(20);
            let ended = catch_unwind(AssertUnwindSafe(f));
            // SAFETY: ends the copy at once.
            unsafe { libc::_exit(i32::from(ended.is_err())) }
        }
        ForkResult::Parent { child } => {
            let status = waitpid(child, None).expect("a child of this process");
            assert_eq!(status, WaitStatus::Exited(child, 0), "{what} in a copy");
        }
    }
}
