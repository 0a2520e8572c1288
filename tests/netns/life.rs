//! How long a namespace lives, and what keeps it alive.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use netns_exec::Netns;
use netns_exec_tests::{Sleeper, TempNetns, ip, require_root, try_ip};

use super::wait_until_dead;

/// Waits until the peer of a veth pair is gone from `name`.
fn wait_until_gone(name: &str, device: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while try_ip(&["-n", name, "link", "show", "dev", device])
        .status
        .success()
    {
        assert!(Instant::now() < deadline, "{device} is still in {name}");
    }
}

#[test]
fn weak_handle_pins_nothing() {
    let doomed = TempNetns::new();
    let witness = TempNetns::new();
    let (doomed_name, witness_name) = (doomed.name().to_owned(), witness.name().to_owned());
    ip(&[
        "-n",
        &witness_name,
        "link",
        "add",
        "near",
        "type",
        "veth",
        "peer",
        "name",
        "far",
        "netns",
        &doomed_name,
    ]);
    let weak = doomed.downgrade();
    let copy = weak.clone();
    assert_eq!(weak.upgrade().as_ref(), Some(doomed.netns()));

    Netns::delete(&doomed_name).unwrap();
    assert!(weak.upgrade().is_some(), "the handle still pins it");
    drop(doomed);

    wait_until_dead(&weak);
    assert_eq!(copy.upgrade(), None);
    wait_until_gone(&witness_name, "near");
    assert_eq!(weak.label(), doomed_name);
    assert_eq!(weak, copy);
}

#[test]
fn weak_handle_finds_what_lives_on_without_us() {
    let temp = TempNetns::new();
    let name = temp.name().to_owned();
    let sleeper = Sleeper::in_named(&name);
    let weak = temp.downgrade();
    let id = temp.id();
    temp.delete();

    let again = weak.upgrade().expect("a process is in it");
    assert_eq!(again.id(), id);
    assert_eq!(again.label(), name);
    drop(again);
    drop(sleeper);
    wait_until_dead(&weak);
}

#[test]
fn weak_handle_of_a_dead_namespace_is_never_one_that_came_later() {
    require_root();
    for _ in 0..8 {
        let old = Netns::new().unwrap();
        let weak = old.downgrade();
        drop(old);
        wait_until_dead(&weak);
        // One of these may well have the old one's inode number.
        let new: Vec<_> = (0..16).map(|_| Netns::new().unwrap()).collect();
        assert_eq!(weak.upgrade(), None);
        assert!(new.iter().all(|new| new.downgrade() != weak));
    }
}

#[test]
fn unnamed_namespace_has_no_name_and_dies_with_its_last_handle() {
    require_root();
    let netns = Netns::new().unwrap();
    let twin = netns.clone();
    assert_eq!(netns.label(), format!("netns:{}", netns.id()));
    assert!(!Netns::list().unwrap().contains(&netns));
    let weak = netns.downgrade();
    drop(netns);
    assert!(weak.upgrade().is_some());
    drop(twin);
    wait_until_dead(&weak);
}

#[test]
fn loopback_carries_traffic_once_it_is_up() {
    require_root();
    let netns = Netns::new().unwrap();
    let connect = || {
        netns_exec::run(&netns, || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            TcpStream::connect(listener.local_addr()?).map(drop)
        })
        .unwrap()
    };
    assert!(connect().is_err());
    netns.set_loopback_up().unwrap();
    connect().unwrap();
    netns.set_loopback_up().unwrap();
    connect().unwrap();
}
