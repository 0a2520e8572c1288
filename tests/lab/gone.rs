//! Nothing of a lab is left, however its test ends.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use netns_exec::{Netns, WeakNetns};
use netns_exec_lab::Lab;
use netns_exec_tests::{eventually, is_alone, panic_text, rerun, this_test, tid};

use super::pair;

#[track_caller]
fn assert_gone(weak: &[WeakNetns]) {
    let is_gone = || weak.iter().all(|netns| netns.upgrade().is_none());
    eventually("the namespaces are gone", is_gone);
}

#[test]
fn namespaces_go_with_the_last_handle() {
    let (a, b, link) = pair();
    let weak = [&a, &b].map(|node| node.netns().downgrade());
    drop(link);
    let clone = a.clone();
    drop((a, b));
    assert!(weak[0].upgrade().is_some());
    assert_gone(&weak[1..]);
    drop(clone);
    assert_gone(&weak);
}

#[test]
fn namespaces_go_after_a_panic() {
    let mut weak = Vec::new();
    let text = panic_text(|| {
        let lab = Lab::new().expect("an executor");
        let lan = lab.bridge("lan").expect("a bridge");
        let host = lab.node("host").expect("a namespace");
        lan.attach(host.at(&["10.0.0.1/24"])).expect("a port");
        weak.extend([&host, lan.node()].map(|node| node.netns().downgrade()));
        host.run(|| panic!("half way")).expect("a worker")
    });
    assert_eq!(text, "half way");
    assert_gone(&weak);
}

#[test]
fn namespaces_go_with_a_process_that_is_killed() {
    if is_alone(this_test!()) {
        let (a, b, _link) = pair();
        for node in [&a, &b] {
            println!("tid {}", node.run(tid).expect("a worker"));
        }
        // Until it is killed.
        loop {
            std::thread::park();
        }
    }
    let mut child = rerun(this_test!()).stdout(Stdio::piped()).spawn();
    let child = child.as_mut().expect("this program can be started");
    let lines = BufReader::new(child.stdout.take().expect("piped above")).lines();
    let tids = lines.filter_map(|line| line.ok()?.split_once("tid ")?.1.parse().ok());
    let weak: Vec<WeakNetns> = (tids.take(2))
        .map(|tid| Netns::from_pid(tid).expect("a worker of its").downgrade())
        .collect();
    assert_eq!(weak.len(), 2);
    assert!(weak.iter().all(|netns| netns.upgrade().is_some()));
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    assert_gone(&weak);
}
