//! `#[in_netns(fresh, link = ...)]`.

use std::io;
use std::net::{TcpListener, TcpStream};

use netns_exec::{Executor, Netns, in_netns};
use netns_exec_tests::{eventually, here, panic_text};

use super::{assert_ping, assert_tcp};

#[test]
#[in_netns(fresh, link = peer)]
fn peer_is_reached_on_port_80_from_the_tests_own_address() {
    let home = Netns::home().expect("own process").id();
    let there = peer.run(here).expect("a worker");
    assert!(here() != home && there != home && there != here());
    for (addr, own) in [
        (peer.addr(), peer.own_addr()),
        (peer.addr_v6(), peer.own_addr_v6()),
    ] {
        let bind = || TcpListener::bind((addr, 80));
        let listener = peer.run(bind).expect("a worker").expect("80 is free");
        TcpStream::connect((addr, 80)).expect("a way to it");
        let (_, client) = listener.accept().expect("it has connected");
        assert_eq!(client.ip(), own);
    }
}

#[in_netns(link = other, fresh)]
#[test]
fn peer_has_the_name_that_it_was_given_and_a_link() -> io::Result<()> {
    other.link().down()?;
    let error = TcpStream::connect((other.addr(), 80)).expect_err("no way");
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENETUNREACH));
    other.link().up()?;
    assert_tcp(other, other, "192.0.2.2");
    assert_ping(other, "192.0.2.1");
    Ok(())
}

#[in_netns(fresh, link = peer, executor = executor)]
fn with_arguments<T: Send>(executor: &Executor, f: impl FnOnce(Netns, Netns) -> T + Send) -> T {
    let own = Netns::current().expect("own namespace");
    f(own, peer.netns().clone())
}

#[test]
fn both_namespaces_are_gone_afterwards_and_after_a_panic() {
    let executor = Executor::new().expect("an executor");
    let weak = |own: Netns, peer: Netns| [own.downgrade(), peer.downgrade()];
    let mut left = with_arguments(&executor, weak).to_vec();
    let text = panic_text(|| {
        with_arguments(&executor, |own, peer| {
            left.extend(weak(own, peer));
            panic!("half way")
        })
    });
    assert_eq!(text, "half way");
    assert_eq!(left.len(), 4);
    eventually("the namespaces are gone", || {
        left.iter().all(|netns| netns.upgrade().is_none())
    });
}
