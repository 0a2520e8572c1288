//! Delay, rate, and a cable that is pulled.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use netns_exec_lab::ErrorKind;

use super::{assert_ping, assert_tcp, pair};

#[test]
fn delay_is_there_or_an_error_says_that_this_kernel_has_none() {
    const DELAY: Duration = Duration::from_millis(30);
    let (a, _b, link) = pair();
    match link.delay(DELAY) {
        Ok(()) => {
            let start = Instant::now();
            assert_ping(&a, "10.0.0.2");
            // There and back.
            assert!(start.elapsed() >= 2 * DELAY, "{:?}", start.elapsed());
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.is_unsupported());
            let text = error.to_string();
            assert!(text.contains("CONFIG_NET_SCH_NETEM"), "{text}");
            assert!(text.contains("`eth0` of node `a`"), "{text}");
            // And nothing has changed.
            assert_ping(&a, "10.0.0.2");
        }
    }
}

#[test]
fn rate_makes_a_transfer_take_its_time_and_loses_nothing() {
    const BYTES: usize = 600_000;
    let (a, b, link) = pair();
    let listener = b.run(|| TcpListener::bind("10.0.0.2:80"));
    let listener = listener.expect("a worker").expect("80 is free");
    let transfer = || {
        let start = Instant::now();
        let connect = || TcpStream::connect("10.0.0.2:80");
        let mut sender = a.run(connect).expect("a worker").expect("it listens");
        let (mut receiver, _) = listener.accept().expect("it has connected");
        let writing = a.spawn(move || sender.write_all(&[7; BYTES]));
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).expect("all of it");
        assert_eq!(received.len(), BYTES);
        let written = writing.expect("a worker").join().expect("no panic");
        written.expect("it was received");
        start.elapsed()
    };
    transfer();
    // A megabyte a second.
    match link.rate(8_000_000) {
        Ok(()) => {
            let limited = transfer();
            assert!(limited > Duration::from_millis(400), "{limited:?}");
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            let text = error.to_string();
            assert!(text.contains("CONFIG_NET_SCH_TBF"), "{text}");
        }
    }
    for bits in [0, 7, u64::MAX] {
        let error = link.rate(bits).expect_err("no rate");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}

#[test]
fn cable_that_is_pulled_and_plugged_in_again_works_again() {
    let (a, b, link) = pair();
    assert_tcp(&a, &b, "10.0.0.2");
    link.down().expect("it is there");
    let refused = a.run(|| TcpStream::connect("10.0.0.2:80"));
    let error = refused.expect("a worker").expect_err("no way");
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENETUNREACH));
    link.up().expect("it is there");
    assert_tcp(&a, &b, "10.0.0.2");
    assert_tcp(&b, &a, "10.0.0.1");
}
