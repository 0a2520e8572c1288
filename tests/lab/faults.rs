//! What cannot be, and what is said about it.

use netns_exec_lab::{ErrorKind, Lab};
use nix::libc;

use super::pair;

#[test]
fn addresses_and_names_that_are_none_are_refused_before_anything_is_made() {
    let lab = Lab::new().expect("an executor");
    let [a, b] = lab.nodes(["a", "b"]).expect("two namespaces");
    for addr in ["10.0.0.1", "10.0.0.1/33", "eth0", ""] {
        let error = lab.link(a.at(&[]), b.at(&[addr])).expect_err(addr);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("10.0.0.1/24"), "{error}");
    }
    for name in ["", "lo", "a/b", "a b", "much-too-long-for-it"] {
        let end = b.at(&[]).device(name);
        let error = lab.link(a.at(&[]), end).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    let devices = a.run(|| netns_exec_tests::ip(&["-o", "link"]));
    assert_eq!(devices.expect("a worker").lines().count(), 1);
}

#[test]
fn device_or_address_that_is_there_already_is_an_error_that_names_the_nodes() {
    let lab = Lab::new().expect("an executor");
    let [a, b] = lab.nodes(["a", "b"]).expect("two namespaces");
    let link = |first: &str, addrs: &[&str]| lab.link(a.at(addrs).device(first), b.at(&[]));
    link("wan", &["10.0.0.1/24"]).expect("a veth pair");
    let error = link("wan", &[]).expect_err("there is one");
    assert_eq!(error.kind(), ErrorKind::Kernel);
    assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
    let text = error.to_string();
    assert!(text.starts_with("cannot link nodes `a` and `b`"), "{text}");
    assert!(text.contains("file exists"), "{text}");
    let error = link("lan", &["10.0.0.5/24", "10.0.0.5/24"]).expect_err("twice");
    assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
}

#[test]
fn route_without_a_neighbour_is_the_kernels_error_and_two_families_are_ours() {
    let (a, _b, _link) = pair();
    let error = a.route("default", "10.9.9.9").expect_err("no neighbour");
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
    assert!(error.to_string().contains("on node `a`"), "{error}");
    for (to, via) in [
        ("10.1.0.0/16", "fd00::2"),
        ("10.1.0.0", "10.0.0.2"),
        ("default", "b"),
        ("everywhere", "10.0.0.2"),
    ] {
        let error = a.route(to, via).expect_err(to);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

#[test]
fn sysctls_of_the_machine_are_not_touched() {
    let (a, _b, _link) = pair();
    for name in ["kernel.hostname", "net", "net..ipv4", "net.ipv4.", "../net"] {
        let error = a.sysctl(name, "1").expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    let error = a.sysctl("net.ipv4.no_such", "1").expect_err("none");
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    let error = a.sysctl("net.ipv4.ip_default_ttl", "x");
    assert_eq!(
        error.expect_err("no number").raw_os_error(),
        Some(libc::EINVAL)
    );
}

#[test]
fn privilege_that_is_missing_is_said_with_the_cure() {
    use netns_exec_tests::{Alone, alone};
    alone!(Alone::OrdinaryUser);
    let lab = Lab::new().expect("an executor needs nothing");
    let error = lab.node("node").expect_err("no privilege");
    assert_eq!(error.kind(), ErrorKind::Namespace);
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
}
