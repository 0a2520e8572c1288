//! What is done to the main thread of a test's own process, which waits for the tests.

use std::process::id;

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::end_thread;

/// Has the main thread do something, in a handler of `SIGUSR1`.
#[allow(unsafe_code)]
pub fn in_main_thread(handler: extern "C" fn(i32)) {
    let handler = SigHandler::Handler(handler);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handlers below make one system call each.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("it may be handled");
    let signal = libc::SIGUSR1;
    // SAFETY: numbers only.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, id(), id(), signal) };
    assert_eq!(sent, 0, "the main thread is there");
}

/// Ends the calling thread, and no other.
pub extern "C" fn end_this_thread(_signal: i32) {
    end_thread();
}

/// Moves the calling thread to a network namespace of its own, if it may.
#[allow(unsafe_code)]
pub extern "C" fn move_this_thread(_signal: i32) {
    // SAFETY: one number. Whether it worked shows in the process's namespace.
    unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWNET) };
}

/// Tells whether a process goes on without its main thread.
pub fn has_main_thread_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat"));
    stat.is_ok_and(|stat| stat.contains(") Z "))
}
