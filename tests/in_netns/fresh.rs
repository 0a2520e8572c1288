//! `fresh`: a namespace for one call, and for one test.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;

use netns_exec::{Netns, in_netns};
use netns_exec_tests::{TempNetns, eventually, here, panic_text};
use rstest::rstest;

use super::home;

#[in_netns(fresh)]
fn in_fresh<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    f()
}

#[test]
fn fresh_namespace_is_another_at_each_call_and_has_loopback_up() {
    let visit = || {
        let listener = TcpListener::bind("127.0.0.1:4711").expect("a port that is free");
        TcpStream::connect("127.0.0.1:4711").expect("loopback is up");
        drop(listener);
        here()
    };
    let (first, second) = (in_fresh(visit), in_fresh(visit));
    assert_ne!(first, second);
    assert_ne!(first, here());
}

#[test]
fn fresh_namespace_is_gone_afterwards() {
    let weak = in_fresh(|| Netns::current().expect("own namespace").downgrade());
    assert_gone(&weak);
}

#[test]
fn fresh_namespace_is_gone_after_a_panic() {
    let slot = Mutex::new(None);
    let text = panic_text(|| {
        in_fresh(|| {
            *slot.lock().expect("not poisoned") =
                Some(Netns::current().expect("own namespace").downgrade());
            panic!("half way");
        })
    });
    assert_eq!(text, "half way");
    assert_gone(
        &slot
            .into_inner()
            .expect("not poisoned")
            .expect("the body began"),
    );
}

/// The kernel takes a namespace down some time after its last reference.
#[track_caller]
fn assert_gone(weak: &netns_exec::WeakNetns) {
    eventually("the namespace is gone", || weak.upgrade().is_none());
}

/// The attribute as a test's fixture, above and below `#[test]`.
#[test]
#[in_netns(fresh)]
fn test_above_the_attribute_runs_in_the_namespace() {
    assert_ne!(here(), home());
}

#[in_netns(fresh)]
#[test]
fn test_below_the_attribute_runs_in_the_namespace() {
    assert_ne!(here(), home());
}

#[test]
#[in_netns(fresh)]
fn test_that_returns_a_result_runs_in_the_namespace() -> io::Result<()> {
    assert_ne!(here(), home());
    TcpListener::bind("127.0.0.1:4711")?;
    Ok(())
}

#[test]
#[should_panic(expected = "seen by the harness")]
#[in_netns(fresh)]
fn should_panic_above_the_attribute_sees_the_panic() {
    assert_ne!(here(), home());
    panic!("seen by the harness");
}

#[in_netns(fresh)]
#[test]
#[should_panic(expected = "seen by the harness")]
fn should_panic_below_the_attribute_sees_the_panic() {
    assert_ne!(here(), home());
    panic!("seen by the harness");
}

#[rstest]
#[case(1, "a")]
#[case(2, "bb")]
#[in_netns(fresh)]
fn rstest_above_the_attribute_passes_its_cases(#[case] length: usize, #[case] text: &str) {
    assert_ne!(here(), home());
    assert_eq!(text.len(), length);
}

#[in_netns(fresh)]
#[rstest]
#[case(1, "a")]
#[case(2, "bb")]
fn rstest_below_the_attribute_passes_its_cases(#[case] length: usize, #[case] text: &str) {
    assert_ne!(here(), home());
    assert_eq!(text.len(), length);
}

#[rstest::fixture]
fn named() -> TempNetns {
    TempNetns::new()
}

#[in_netns(ns = named)]
#[rstest]
fn rstest_fixture_serves_as_the_target(named: TempNetns, #[values(1, 2)] round: u8) {
    assert!(round > 0);
    assert_eq!(here(), named.netns().id());
}
