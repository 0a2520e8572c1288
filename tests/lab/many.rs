//! Many namespaces on one bridge. What each costs is benches/lab.rs.

use netns_exec_lab::Lab;

use super::{assert_ping, assert_tcp};

#[test]
fn hundred_namespaces_on_a_bridge_reach_each_other() {
    let lab = Lab::new().expect("an executor");
    let lan = lab.bridge("lan").expect("a bridge");
    let attach = |n| {
        let node = lab.node(&format!("node-{n}")).expect("a namespace");
        let addrs = [format!("10.0.0.{n}/24"), format!("fd00::{n}/64")];
        (lan.attach(node.at(&[&addrs[0], &addrs[1]]))).expect("a port");
        node
    };
    let nodes: Vec<_> = (1..=100).map(attach).collect();
    assert_tcp(&nodes[0], &nodes[99], "10.0.0.100");
    assert_ping(&nodes[99], "fd00::1");
}
