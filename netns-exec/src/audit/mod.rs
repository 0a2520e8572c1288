//! Who is in which network namespace, and what keeps one alive.
//!
//! [`Process`] judges the threads of one process, this or another: a thread
//! that is neither in the namespace of its process's main thread nor a worker
//! is a *stray*, and what it does happens in a network that its code did not mean. That is
//! what `ls -l /proc/PID/task/*/ns/net` would show, told by ids that are never
//! reused. [`holders()`] says why a namespace that was deleted is still there;
//! [`namespaces`] finds all of them.
//!
//! An audit is read from /proc while everything goes on. Threads that end
//! meanwhile are left out. What may not be read is [`Verdict::Unknown`] or
//! [unreadable](Holders::unreadable), never left out: reading about other
//! users' processes takes `CAP_SYS_PTRACE`. Processes that /proc does not show
//! (`hidepid`, another pid namespace) are left out without a word: an audit
//! cannot know of them.
//!
//! # What a worker is known by
//!
//! A thread inherits its name, signal mask, filters and capabilities from the one
//! that makes it, so none of these tells a worker from a thread that a job left.
//! Each copy of this library publishes its threads instead: number, start time and
//! the id of the namespace that it serves, in memory that shows in
//! `/proc/PID/maps` as `/memfd:netns-exec:roster:1`. The last number is the version
//! of the format, which `src/sys/published.rs` describes. An audit reads it through
//! `/proc/PID/mem`, for which Yama's `ptrace_scope` may ask for `CAP_SYS_PTRACE`;
//! without, threads in other namespaces are [`Verdict::Unknown`]. What a process
//! publishes of itself is believed: an audit finds mistakes, not lies.
//!
//! # Examples
//!
//! A test that ends with this proves that no thread was left anywhere:
//!
//! ```
//! use netns_exec::audit::Process;
//!
//! let audit = Process::this()?;
//! assert_eq!(audit.strays().count(), 0, "{audit}");
//! # Ok::<(), netns_exec::Error>(())
//! ```

mod found;
mod holders;
mod proc;
mod process;
mod spaces;
mod thread;

pub use found::{Hold, Holder, Holders, Namespace, Namespaces, Unreadable};
pub use holders::{holders, namespaces};
#[cfg(any(test, fuzzing))]
/// For `crate::fuzz`.
pub(crate) fn fuzz_status(text: &str) {
    proc::fuzz(text);
}

pub use process::Process;
pub use thread::{Thread, Verdict};
