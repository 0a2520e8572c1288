//! What a namespace of a lab costs.

use std::time::{Duration, Instant};

use netns_exec_lab::Lab;

use super::{assert_ping, assert_tcp};

/// From nothing to a node that can talk. Of the fastest tenth, because other tests, and
/// other users of the machine, have the rest wait for a CPU.
#[test]
fn hundred_namespaces_on_a_bridge_take_less_than_ten_milliseconds_each() {
    const EACH: Duration = Duration::from_millis(10);
    let lab = Lab::new().expect("an executor");
    let lan = lab.bridge("lan").expect("a bridge");
    let mut nodes = Vec::new();
    let mut times = Vec::new();
    for n in 1..=100 {
        let start = Instant::now();
        let node = lab.node(&format!("node-{n}")).expect("a namespace");
        let addrs = [format!("10.0.0.{n}/24"), format!("fd00::{n}/64")];
        (lan.attach(node.at(&[&addrs[0], &addrs[1]]))).expect("a port");
        times.push(start.elapsed());
        nodes.push(node);
    }
    times.sort();
    let [tenth, median, last] = [10, 50, 99].map(|n| times[n]);
    println!("a node on a bridge: tenth {tenth:?}, median {median:?}, last {last:?}");
    assert!(
        tenth < EACH,
        "tenth {tenth:?}, median {median:?}, last {last:?}"
    );
    assert_tcp(&nodes[0], &nodes[99], "10.0.0.100");
    assert_ping(&nodes[99], "fd00::1");
}
