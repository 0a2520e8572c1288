//! The messages between a broker and its client: to bytes, and back.
//!
//! A request is a head (magic, sequence number, what is wanted) and a body of
//! fixed layout, all in the machine's own byte order, for both ends are on it.
//! The first request is `Hello`, and may come again when the socket has been
//! handed on; it sets the sequence number, which every later request increases
//! by one. Each request has exactly one answer, with the same number. What does
//! not follow these rules is answered with the reason, [`Malformed`], and
//! nothing is done.
//!
//! There is no message to give a port back: it is owned by whoever has its
//! socket, and free when all copies are closed.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::ports::dynamic::LocalPorts;
use crate::ports::socket::{Fault, Spec};
use crate::ports::{Fallback, Gate, GateState, Protocol, Stage};
use crate::sys::scm;

/// The last digit is the version.
const MAGIC: [u8; 4] = *b"nxb1";

/// Most sockets in one request.
pub(super) const MAX_SPECS: usize = scm::MAX_FDS;

/// Magic, sequence number, kind and count.
const HEAD: usize = 12;
/// Protocol, gate, family, nothing, address.
const SPEC: usize = 20;
/// One bit for each port.
const BITMAP: usize = 65536 / 8;

/// No request is longer.
pub(super) const MAX_REQUEST: usize = HEAD + MAX_SPECS * SPEC;
/// No answer is longer.
pub(super) const MAX_REPLY: usize = HEAD + MAX_SPECS + FAULT + 4 + BITMAP;

/// Stage, three times nothing, errno.
const FAULT: usize = 8;

/// One bit for each port that is reserved.
pub(super) type Bitmap = [u8; BITMAP];

/// No port is reserved.
pub(super) const NOTHING_RESERVED: Bitmap = [0; BITMAP];

/// Marks a range of ports as reserved.
pub(super) fn reserve(bitmap: &mut Bitmap, range: RangeInclusive<u16>) {
    for port in range {
        if let Some(byte) = bitmap.get_mut(usize::from(port / 8)) {
            *byte |= 1 << (port % 8);
        }
    }
}

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// It ends too early.
    Truncated,
    /// It goes on after its end, or is longer than any can be.
    Oversized,
    /// It is of another protocol, or of another version of this one.
    Magic,
    /// Its kind is unknown.
    Kind,
    /// A field has a value that means nothing.
    Value,
    /// It comes before `Hello`, or with the wrong sequence number.
    Order,
    /// It has descriptors where there are none to be, or too few, or too many.
    Descriptors,
}

const MALFORMED: [Malformed; 7] = [
    Malformed::Truncated,
    Malformed::Oversized,
    Malformed::Magic,
    Malformed::Kind,
    Malformed::Value,
    Malformed::Order,
    Malformed::Descriptors,
];

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Truncated => "the message is truncated",
            Malformed::Oversized => "the message is too long",
            Malformed::Magic => "the message is not of this protocol",
            Malformed::Kind => "the message is of an unknown kind",
            Malformed::Value => "the message has a field without a meaning",
            Malformed::Order => "the message is out of order",
            Malformed::Descriptors => "the message has the wrong number of descriptors",
        })
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, malformed)
    }
}

/// What a client wants.
#[derive(Clone, Debug)]
pub(super) enum Request<'a> {
    /// To know who it speaks to.
    Hello,
    /// Unbound sockets, up to the first that fails, and perhaps what the
    /// namespace says about its ports.
    Vend { specs: Specs<'a>, local_ports: bool },
    /// A socket bound to the first port of a range that can be had.
    Bind {
        spec: Spec,
        range: RangeInclusive<u16>,
    },
}

/// Specs that have been looked at, and are decoded one by one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Specs<'a>(&'a [[u8; SPEC]]);

impl<'a> Specs<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (specs, []) = bytes.as_chunks() else {
            return Err(Malformed::Truncated);
        };
        for spec in specs {
            decode_spec(spec)?;
        }
        Ok(Specs(specs))
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Spec> + use<'a> {
        self.0.iter().filter_map(|spec| decode_spec(spec).ok())
    }
}

/// What a broker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// The id of its namespace.
    pub(super) netns: u64,
    /// Its process id, as it sees itself.
    pub(super) pid: u32,
    /// Its effective capabilities.
    pub(super) capabilities: u64,
}

/// What a broker answers.
#[derive(Debug)]
pub(super) enum Reply {
    Hello(Hello),
    /// A descriptor for each gate.
    Vended {
        gates: Vec<GateState>,
        fault: Option<Fault>,
        local_ports: Option<LocalPorts>,
    },
    /// One descriptor.
    Bound {
        gate: GateState,
        port: u16,
    },
    /// No port of the range could be had; this is the last failure.
    Unbound(Fault),
    /// The broker could not set itself up, and ends.
    Failed(io::Error),
    /// The request was refused.
    Malformed(Malformed),
}

const HELLO: u8 = 1;
const VEND: u8 = 2;
const BIND: u8 = 3;
const UNBOUND: u8 = 4;
const FAILED: u8 = 5;
const MALFORMED_: u8 = 6;

/// In the head of `Vend`, and of its answer: with port settings.
const LOCAL_PORTS: u8 = 1;
/// In the head of the answer to `Vend`: with a fault.
const WITH_FAULT: u8 = 2;

/// Reads a message from front to back.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_ne_bytes)
    }

    fn head(&mut self) -> Result<Head, Malformed> {
        if self.take()? != MAGIC {
            return Err(Malformed::Magic);
        }
        let seq = self.u32()?;
        let [kind, flags, count, nothing] = self.take()?;
        if nothing != 0 {
            return Err(Malformed::Value);
        }
        let count = usize::from(count);
        Ok(Head {
            seq,
            kind,
            flags,
            count,
        })
    }

    fn fault(&mut self) -> Result<Fault, Malformed> {
        let [stage, 0, 0, 0] = self.take()? else {
            return Err(Malformed::Value);
        };
        let stage = one_of(&STAGES, stage)?;
        let cause = self.errno()?;
        Ok(Fault { stage, cause })
    }

    fn errno(&mut self) -> Result<io::Error, Malformed> {
        match self.u32()? {
            errno @ 1..4096 => Ok(io::Error::from_raw_os_error(errno as i32)),
            _ => Err(Malformed::Value),
        }
    }

    fn end(self) -> Result<(), Malformed> {
        match self.0 {
            [] => Ok(()),
            _ => Err(Malformed::Oversized),
        }
    }
}

struct Head {
    seq: u32,
    kind: u8,
    flags: u8,
    count: usize,
}

impl Head {
    /// For kinds that have neither flags nor a count.
    fn plain(&self) -> Result<(), Malformed> {
        self.with(0, 0)
    }

    fn with(&self, flags: u8, count: usize) -> Result<(), Malformed> {
        if self.flags & !flags != 0 || self.count > count {
            return Err(Malformed::Value);
        }
        Ok(())
    }
}

fn put_head(seq: u32, kind: u8, flags: u8, count: usize, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&seq.to_ne_bytes());
    // Checked by the callers, and once more where it is read.
    out.extend_from_slice(&[kind, flags, count as u8, 0]);
}

/// Returns the sequence number of what may be a message, to answer it.
pub(super) fn seq_of(message: &[u8]) -> u32 {
    let mut reader = Reader(message);
    let _magic = reader.take::<4>();
    reader.u32().unwrap_or(0)
}

/// The places in these tables are the numbers in messages.
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const GATES: [Gate; 5] = [
    Gate::Queue,
    Gate::Refuse,
    Gate::Drop {
        otherwise: Fallback::Fail,
    },
    Gate::Drop {
        otherwise: Fallback::Queue,
    },
    Gate::Drop {
        otherwise: Fallback::Refuse,
    },
];
const GATE_STATES: [GateState; 3] = [
    GateState::Dropping,
    GateState::Queueing,
    GateState::Refusing,
];
const STAGES: [Stage; 7] = [
    Stage::Socket,
    Stage::Option,
    Stage::Filter,
    Stage::Bind,
    Stage::Listen,
    Stage::Verify,
    Stage::Transfer,
];

fn one_of<T: Copy>(table: &[T], number: u8) -> Result<T, Malformed> {
    let value = table.get(usize::from(number));
    value.copied().ok_or(Malformed::Value)
}

/// What is in no table reads as a value without a meaning.
fn number_of<T: PartialEq>(table: &[T], value: T) -> u8 {
    let place = table.iter().position(|known| *known == value);
    place.map_or(u8::MAX, |place| place as u8)
}

const V4: u8 = 4;
const V6: u8 = 6;

fn decode_spec(bytes: &[u8; SPEC]) -> Result<Spec, Malformed> {
    let [protocol, gate, family, 0, addr @ ..] = *bytes else {
        return Err(Malformed::Value);
    };
    let addr = match (family, addr) {
        (V4, [a, b, c, d, rest @ ..]) if rest == [0; 12] => Ipv4Addr::new(a, b, c, d).into(),
        (V6, addr) => Ipv6Addr::from(addr).into(),
        _ => return Err(Malformed::Value),
    };
    let spec = Spec {
        protocol: one_of(&PROTOCOLS, protocol)?,
        addr,
        gate: one_of(&GATES, gate)?,
    };
    // There is no such socket.
    if (spec.protocol, spec.gate) == (Protocol::Udp, Gate::Refuse) {
        return Err(Malformed::Value);
    }
    Ok(spec)
}

fn put_spec(spec: &Spec, out: &mut Vec<u8>) {
    let (family, addr) = match spec.addr {
        IpAddr::V4(addr) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&addr.octets());
            (V4, octets)
        }
        IpAddr::V6(addr) => (V6, addr.octets()),
    };
    let protocol = number_of(&PROTOCOLS, spec.protocol);
    let gate = number_of(&GATES, spec.gate);
    out.extend_from_slice(&[protocol, gate, family, 0]);
    out.extend_from_slice(&addr);
}

pub(super) fn put_hello(seq: u32, out: &mut Vec<u8>) {
    put_head(seq, HELLO, 0, 0, out);
}

/// At most [`MAX_SPECS`].
pub(super) fn put_vend(seq: u32, specs: &[Spec], local_ports: bool, out: &mut Vec<u8>) {
    let flags = if local_ports { LOCAL_PORTS } else { 0 };
    put_head(seq, VEND, flags, specs.len(), out);
    for spec in specs {
        put_spec(spec, out);
    }
}

pub(super) fn put_bind(seq: u32, spec: &Spec, range: &RangeInclusive<u16>, out: &mut Vec<u8>) {
    put_head(seq, BIND, 0, 0, out);
    put_spec(spec, out);
    out.extend_from_slice(&range.start().to_ne_bytes());
    out.extend_from_slice(&range.end().to_ne_bytes());
}

pub(super) fn decode_request(message: &[u8]) -> Result<(u32, Request<'_>), Malformed> {
    let mut reader = Reader(message);
    let head = reader.head()?;
    let request = match head.kind {
        HELLO => {
            head.plain()?;
            reader.end()?;
            Request::Hello
        }
        VEND => {
            head.with(LOCAL_PORTS, MAX_SPECS)?;
            if reader.0.len() > head.count * SPEC {
                return Err(Malformed::Oversized);
            }
            if reader.0.len() < head.count * SPEC {
                return Err(Malformed::Truncated);
            }
            Request::Vend {
                specs: Specs::new(reader.0)?,
                local_ports: head.flags & LOCAL_PORTS != 0,
            }
        }
        BIND => {
            head.plain()?;
            let spec = decode_spec(&reader.take()?)?;
            let range = reader.u16()?..=reader.u16()?;
            reader.end()?;
            if range.is_empty() || *range.start() == 0 {
                return Err(Malformed::Value);
            }
            Request::Bind { spec, range }
        }
        _ => return Err(Malformed::Kind),
    };
    Ok((head.seq, request))
}

pub(super) fn put_hello_reply(seq: u32, hello: &Hello, out: &mut Vec<u8>) {
    put_head(seq, HELLO, 0, 0, out);
    out.extend_from_slice(&hello.netns.to_ne_bytes());
    out.extend_from_slice(&hello.capabilities.to_ne_bytes());
    out.extend_from_slice(&hello.pid.to_ne_bytes());
}

pub(super) fn put_vended(
    seq: u32,
    gates: impl Iterator<Item = GateState> + Clone,
    fault: Option<&Fault>,
    local_ports: Option<(&RangeInclusive<u16>, &Bitmap)>,
    out: &mut Vec<u8>,
) {
    let mut flags = 0;
    if local_ports.is_some() {
        flags |= LOCAL_PORTS;
    }
    if fault.is_some() {
        flags |= WITH_FAULT;
    }
    put_head(seq, VEND, flags, gates.clone().count(), out);
    for gate in gates {
        out.push(number_of(&GATE_STATES, gate));
    }
    if let Some(fault) = fault {
        put_fault(fault, out);
    }
    if let Some((range, reserved)) = local_ports {
        out.extend_from_slice(&range.start().to_ne_bytes());
        out.extend_from_slice(&range.end().to_ne_bytes());
        out.extend_from_slice(reserved);
    }
}

pub(super) fn put_bound(seq: u32, gate: GateState, port: u16, out: &mut Vec<u8>) {
    put_head(seq, BIND, 0, 1, out);
    out.push(number_of(&GATE_STATES, gate));
    out.extend_from_slice(&port.to_ne_bytes());
}

pub(super) fn put_unbound(seq: u32, fault: &Fault, out: &mut Vec<u8>) {
    put_head(seq, UNBOUND, 0, 0, out);
    put_fault(fault, out);
}

pub(super) fn put_failed(seq: u32, cause: &io::Error, out: &mut Vec<u8>) {
    put_head(seq, FAILED, 0, 0, out);
    put_errno(cause, out);
}

pub(super) fn put_malformed(seq: u32, reason: Malformed, out: &mut Vec<u8>) {
    put_head(seq, MALFORMED_, 0, 0, out);
    out.push(number_of(&MALFORMED, reason));
}

fn put_fault(fault: &Fault, out: &mut Vec<u8>) {
    out.extend_from_slice(&[number_of(&STAGES, fault.stage), 0, 0, 0]);
    put_errno(&fault.cause, out);
}

fn put_errno(cause: &io::Error, out: &mut Vec<u8>) {
    let errno = cause.raw_os_error().unwrap_or(libc::EIO);
    out.extend_from_slice(&errno.to_ne_bytes());
}

/// Decodes what came with `fds` descriptors as an answer to the request with
/// the number `seq`.
pub(super) fn decode_reply(seq: u32, message: &[u8], fds: usize) -> Result<Reply, Malformed> {
    let mut reader = Reader(message);
    let head = reader.head()?;
    if head.seq != seq {
        return Err(Malformed::Order);
    }
    if head.count != fds {
        return Err(Malformed::Descriptors);
    }
    let reply = match head.kind {
        HELLO => {
            head.plain()?;
            Reply::Hello(Hello {
                netns: reader.u64()?,
                capabilities: reader.u64()?,
                pid: reader.u32()?,
            })
        }
        VEND => {
            head.with(LOCAL_PORTS | WITH_FAULT, MAX_SPECS)?;
            let mut gate = |_| one_of(&GATE_STATES, reader.take::<1>()?[0]);
            let gates = (0..head.count).map(&mut gate).collect::<Result<_, _>>()?;
            let fault = match head.flags & WITH_FAULT {
                0 => None,
                _ => Some(reader.fault()?),
            };
            let local_ports = match head.flags & LOCAL_PORTS {
                0 => None,
                _ => Some(decode_local_ports(&mut reader)?),
            };
            Reply::Vended {
                gates,
                fault,
                local_ports,
            }
        }
        BIND => {
            head.with(0, 1)?;
            if fds != 1 {
                return Err(Malformed::Descriptors);
            }
            Reply::Bound {
                gate: one_of(&GATE_STATES, reader.take::<1>()?[0])?,
                port: reader.u16()?,
            }
        }
        UNBOUND => {
            head.plain()?;
            Reply::Unbound(reader.fault()?)
        }
        FAILED => {
            head.plain()?;
            Reply::Failed(reader.errno()?)
        }
        MALFORMED_ => {
            head.plain()?;
            Reply::Malformed(one_of(&MALFORMED, reader.take::<1>()?[0])?)
        }
        _ => return Err(Malformed::Kind),
    };
    reader.end()?;
    Ok(reply)
}

fn decode_local_ports(reader: &mut Reader<'_>) -> Result<LocalPorts, Malformed> {
    let range = reader.u16()?..=reader.u16()?;
    if range.is_empty() || *range.start() == 0 {
        return Err(Malformed::Value);
    }
    let bitmap: Bitmap = reader.take()?;
    let is_reserved = |port: &u16| bitmap[usize::from(port / 8)] & 1 << (port % 8) != 0;
    let mut reserved: Vec<RangeInclusive<u16>> = Vec::new();
    for port in (0..=u16::MAX).filter(is_reserved) {
        match reserved.last_mut() {
            Some(last) if u32::from(*last.end()) + 1 == u32::from(port) => {
                *last = *last.start()..=port;
            }
            _ => reserved.push(port..=port),
        }
    }
    Ok(LocalPorts { range, reserved })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

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
            let Ok((read, Request::Vend { specs, local_ports })) = decode_request(&message) else {
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
            let Ok((read, Request::Bind { spec, range })) = decode_request(&message) else {
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
            let Ok(Reply::Vended { gates, fault, local_ports }) = reply else {
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
            prop_assert!(matches!(read, Ok(Reply::Hello(read)) if read == hello));
            only_whole_reply(seq, &message, 0);

            put_bound(seq, state, port, &mut message);
            let Ok(Reply::Bound { gate, port: read }) = decode_reply(seq, &message, 1) else {
                panic!("{message:?}");
            };
            prop_assert_eq!((gate, read), (state, port));
            only_whole_reply(seq, &message, 1);

            put_unbound(seq, &failure, &mut message);
            let Ok(Reply::Unbound(fault)) = decode_reply(seq, &message, 0) else {
                panic!("{message:?}");
            };
            prop_assert_eq!(fault_parts(&fault), fault_parts(&failure));
            only_whole_reply(seq, &message, 0);

            put_failed(seq, &failure.cause, &mut message);
            let Ok(Reply::Failed(cause)) = decode_reply(seq, &message, 0) else {
                panic!("{message:?}");
            };
            prop_assert_eq!(cause.raw_os_error(), failure.cause.raw_os_error());
            only_whole_reply(seq, &message, 0);

            put_malformed(seq, reason, &mut message);
            let read = decode_reply(seq, &message, 0);
            prop_assert!(matches!(read, Ok(Reply::Malformed(read)) if read == reason));
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
                    Request::Hello => put_hello(seq, &mut again),
                    Request::Vend { specs, local_ports } => {
                        put_vend(seq, &specs.iter().collect::<Vec<_>>(), local_ports, &mut again);
                    }
                    Request::Bind { spec, range } => put_bind(seq, &spec, &range, &mut again),
                }
                prop_assert_eq!(again, message);
            }
        }

        #[test]
        fn noise_is_refused_and_harms_nobody(
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
}
