//! What a namespace of a lab costs.

use std::time::{Duration, Instant};

use netns_exec_lab::Lab;

use super::{assert_ping, assert_tcp};

/// Of all work on the way to a node that can talk, and beside other tests: the median,
/// because now and then one waits for the machine.
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
    let (median, last) = (times[times.len() / 2], times[times.len() - 1]);
    println!("a node on a bridge: median {median:?}, longest {last:?}");
    assert!(median < EACH, "median {median:?}, longest {last:?}");
    assert_tcp(&nodes[0], &nodes[99], "10.0.0.100");
    assert_ping(&nodes[99], "fd00::1");
}
