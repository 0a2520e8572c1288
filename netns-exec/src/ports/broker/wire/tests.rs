//! Messages are read as they were written, and nothing else is read.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::frame::{GATE_STATES, GATES, MAGIC, MALFORMED, PROTOCOLS, STAGES, UNBOUND};
use super::*;
use crate::ports::error::Stage;
use crate::ports::gate::Gate;
use crate::ports::protocol::Protocol;
use crate::ports::socket::{Fault, Options, Spec};

fn specs() -> impl Strategy<Value = Spec> {
    let addr = prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from),
    ];
    (select(&PROTOCOLS[..]), addr, select(&GATES[..]))
        .prop_map(|(protocol, addr, gate)| Spec {
            protocol,
            addr,
            gate,
            options: Options::default(),
        })
        .prop_filter("there is no such socket", |spec| {
            (spec.protocol, spec.gate) != (Protocol::Udp, Gate::Refuse)
        })
}

fn ranges() -> impl Strategy<Value = RangeInclusive<u16>> {
    (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| a.min(b)..=a.max(b))
}

fn faults() -> impl Strategy<Value = Fault> {
    (select(&STAGES[..]), 1..4096).prop_map(|(stage, errno)| Fault {
        stage,
        cause: io::Error::from_raw_os_error(errno),
    })
}

fn fault_parts(fault: &Fault) -> (Stage, Option<i32>) {
    (fault.stage, fault.cause.raw_os_error())
}

/// Every proper beginning of a message, and the message with something
/// behind, is refused.
fn only_whole(message: &[u8], decode: impl Fn(&[u8]) -> Result<(), Malformed>) {
    assert_eq!(decode(message), Ok(()));
    // All of them would be slow for a bitmap.
    let near = message.len().saturating_sub(40);
    for end in (0..40.min(message.len())).chain(near..message.len()) {
        assert_eq!(decode(&message[..end]), Err(Malformed::Truncated), "{end}");
    }
    let longer = [message, &[0]].concat();
    assert_eq!(decode(&longer), Err(Malformed::Oversized));
}

fn only_whole_request(message: &[u8]) {
    assert!(message.len() <= MAX_REQUEST);
    only_whole(message, |message| decode_request(message).map(drop));
}

fn only_whole_reply(seq: u32, message: &[u8], fds: usize) {
    assert!(message.len() <= MAX_REPLY);
    only_whole(message, |message| decode_reply(seq, message, fds).map(drop));
    assert_eq!(
        decode_reply(seq, message, fds + 1).err(),
        Some(Malformed::Descriptors)
    );
    assert_eq!(
        decode_reply(seq.wrapping_add(1), message, fds).err(),
        Some(Malformed::Order)
    );
}

proptest! {
    #[test]
    fn vend_reads_as_it_was_written(
        seq: u32,
        wanted in vec(specs(), 0..=MAX_SPECS),
        settings: bool,
    ) {
        let mut message = Vec::new();
        put_vend(seq, &wanted, settings, &mut message);
        let Ok((read, BrokerRequest::Vend { specs, local_ports })) = decode_request(&message) else {
            panic!("{:?}", decode_request(&message));
        };
        prop_assert_eq!((read, local_ports), (seq, settings));
        prop_assert_eq!(specs.iter().collect::<Vec<_>>(), wanted);
        only_whole_request(&message);
        prop_assert_eq!(seq_of(&message), seq);
    }

    #[test]
    fn bind_reads_as_it_was_written(seq: u32, wanted in specs(), ports in ranges()) {
        let mut message = Vec::new();
        put_bind(seq, &wanted, &ports, &mut message);
        let Ok((read, BrokerRequest::Bind { spec, range })) = decode_request(&message) else {
            panic!("{:?}", decode_request(&message));
        };
        prop_assert_eq!((read, spec, range), (seq, wanted, ports));
        only_whole_request(&message);
    }

    #[test]
    fn answer_to_vend_reads_as_it_was_written(
        seq: u32,
        states in vec(select(&GATE_STATES[..]), 0..=MAX_SPECS),
        failure in proptest::option::of(faults()),
        settings in proptest::option::of((ranges(), vec(ranges(), 0..5))),
    ) {
        let settings = settings.map(|(range, reserved)| {
            let mut bitmap = NOTHING_RESERVED;
            for range in reserved.clone() {
                reserve(&mut bitmap, range);
            }
            (range, reserved, Box::new(bitmap))
        });
        let mut message = Vec::new();
        let settings_ref = settings.as_ref().map(|(range, _, bitmap)| (range, &**bitmap));
        put_vended(seq, states.iter().copied(), failure.as_ref(), settings_ref, &mut message);
        let reply = decode_reply(seq, &message, states.len());
        let Ok(BrokerReply::Vended { gates, fault, local_ports }) = reply else {
            panic!("{reply:?}");
        };
        prop_assert_eq!(gates, states.clone());
        prop_assert_eq!(fault.as_ref().map(fault_parts), failure.as_ref().map(fault_parts));
        prop_assert_eq!(local_ports.is_some(), settings.is_some());
        if let (Some(ports), Some((range, reserved, _))) = (local_ports, settings) {
            prop_assert_eq!(ports.range, range);
            for port in 0..=u16::MAX {
                let holds = |ranges: &[RangeInclusive<u16>]| {
                    ranges.iter().any(|range| range.contains(&port))
                };
                prop_assert_eq!(holds(&ports.reserved), holds(&reserved), "{}", port);
            }
        }
        only_whole_reply(seq, &message, states.len());
    }

    #[test]
    fn other_answers_read_as_they_were_written(
        seq: u32,
        netns: u64,
        pid: u32,
        capabilities: u64,
        state in select(&GATE_STATES[..]),
        port: u16,
        failure in faults(),
        reason in select(&MALFORMED[..]),
    ) {
        let mut message = Vec::new();
        let hello = Hello { netns, pid, capabilities };
        put_hello_reply(seq, &hello, &mut message);
        let read = decode_reply(seq, &message, 0);
        prop_assert!(matches!(read, Ok(BrokerReply::Hello(read)) if read == hello));
        only_whole_reply(seq, &message, 0);

        put_bound(seq, state, port, &mut message);
        let Ok(BrokerReply::Bound { gate, port: read }) = decode_reply(seq, &message, 1) else {
            panic!("{message:?}");
        };
        prop_assert_eq!((gate, read), (state, port));
        only_whole_reply(seq, &message, 1);

        put_unbound(seq, &failure, &mut message);
        let Ok(BrokerReply::Unbound(fault)) = decode_reply(seq, &message, 0) else {
            panic!("{message:?}");
        };
        prop_assert_eq!(fault_parts(&fault), fault_parts(&failure));
        only_whole_reply(seq, &message, 0);

        put_failed(seq, &failure.cause, &mut message);
        let Ok(BrokerReply::Failed(cause)) = decode_reply(seq, &message, 0) else {
            panic!("{message:?}");
        };
        prop_assert_eq!(cause.raw_os_error(), failure.cause.raw_os_error());
        only_whole_reply(seq, &message, 0);

        put_malformed(seq, reason, &mut message);
        let read = decode_reply(seq, &message, 0);
        prop_assert!(matches!(read, Ok(BrokerReply::Malformed(read)) if read == reason));
        only_whole_reply(seq, &message, 0);
    }

    /// What can be read at all is what would have been written: no two
    /// messages mean the same, so nothing is ignored.
    #[test]
    fn no_byte_of_a_request_is_ignored(
        wanted in vec(specs(), 0..4),
        settings: bool,
        ports in ranges(),
        is_bind: bool,
        place: prop::sample::Index,
        bit in 0..8_u32,
    ) {
        let mut message = Vec::new();
        match wanted.first() {
            Some(spec) if is_bind => put_bind(7, spec, &ports, &mut message),
            _ => put_vend(7, &wanted, settings, &mut message),
        }
        let place = place.index(message.len());
        message[place] ^= 1 << bit;
        if let Ok((seq, request)) = decode_request(&message) {
            let mut again = Vec::new();
            match request {
                BrokerRequest::Hello => put_hello(seq, &mut again),
                BrokerRequest::Vend { specs, local_ports } => {
                    put_vend(seq, &specs.iter().collect::<Vec<_>>(), local_ports, &mut again);
                }
                BrokerRequest::Bind { spec, range } => put_bind(seq, &spec, &range, &mut again),
            }
            prop_assert_eq!(again, message);
        }
    }

    #[test]
    fn noise_is_refused_and_does_no_harm(
        noise in vec(any::<u8>(), 0..200),
        mut kind in 0..8_u8,
        fds in 0..3_usize,
    ) {
        let _ = decode_request(&noise);
        let _ = decode_reply(0, &noise, fds);
        // With a good head, so that the bodies have their share.
        kind %= 8;
        let head = [&MAGIC[..], &[0; 4], &[kind, kind & 3, fds as u8, 0]].concat();
        let message = [&head[..], &noise].concat();
        let _ = decode_request(&message);
        let _ = decode_reply(0, &message, fds);
    }
}

#[test]
fn requests_without_a_meaning_are_refused() {
    let refused = |message: &[u8]| decode_request(message).expect_err("it has no meaning");
    let mut message = Vec::new();
    put_hello(1, &mut message);
    only_whole_request(&message);
    let with = |place: usize, byte: u8| {
        let mut message = message.clone();
        message[place] = byte;
        message
    };
    assert_eq!(refused(b""), Malformed::Truncated);
    assert_eq!(refused(&with(3, b'2')), Malformed::Magic);
    assert_eq!(refused(&with(8, 0)), Malformed::Kind);
    assert_eq!(refused(&with(8, UNBOUND)), Malformed::Kind);
    assert_eq!(refused(&with(9, 1)), Malformed::Value);
    assert_eq!(refused(&with(10, 1)), Malformed::Value);
    assert_eq!(refused(&with(11, 1)), Malformed::Value);

    let tcp = Spec {
        protocol: Protocol::Tcp,
        addr: Ipv4Addr::LOCALHOST.into(),
        gate: Gate::Queue,
        options: Options::default(),
    };
    for range in [0..=5, RangeInclusive::new(6, 5)] {
        put_bind(1, &tcp, &range, &mut message);
        assert_eq!(refused(&message), Malformed::Value);
    }
    let udp = Spec {
        protocol: Protocol::Udp,
        gate: Gate::Refuse,
        ..tcp
    };
    put_vend(1, &[tcp, udp], false, &mut message);
    assert_eq!(refused(&message), Malformed::Value);
    put_vend(1, &[tcp; MAX_SPECS + 1], false, &mut message);
    assert_eq!(refused(&message), Malformed::Value);
}
