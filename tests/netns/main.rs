//! Namespace handles: where they come from, what they mean, what they refuse.

mod callers;
mod conversions;
mod handles;
mod life;
mod names;
mod owned;
mod reasons;

use netns_exec::WeakNetns;
use netns_exec_tests::eventually;

/// Waits until the namespace has died: a child that another test just forked
/// holds copies of our descriptors until it has called exec.
#[track_caller]
fn wait_until_dead(weak: &WeakNetns) {
    eventually("the namespace has died", || weak.upgrade().is_none());
}
