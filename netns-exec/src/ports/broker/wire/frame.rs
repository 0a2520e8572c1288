//! What all messages are made of: the head, the values, and the reader.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ports::error::Stage;
use crate::ports::gate::{Fallback, Gate, GateState};
use crate::ports::protocol::Protocol;
use crate::ports::socket::{Fault, Options, Spec};

/// The last digit is the version.
pub(super) const MAGIC: [u8; 4] = *b"nxb1";

/// Magic, sequence number, kind and count.
pub(super) const HEAD: usize = 12;
/// Protocol, gate, family, nothing, address.
pub(super) const SPEC: usize = 20;
/// Stage, three times nothing, errno.
pub(super) const FAULT: usize = 8;

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

pub(super) const MALFORMED: [Malformed; 7] = [
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

pub(super) const HELLO: u8 = 1;
pub(super) const VEND: u8 = 2;
pub(super) const BIND: u8 = 3;
pub(super) const UNBOUND: u8 = 4;
pub(super) const FAILED: u8 = 5;
pub(super) const MALFORMED_: u8 = 6;

/// In the head of `Vend`, and of its answer: with port settings.
pub(super) const LOCAL_PORTS: u8 = 1;
/// In the head of the answer to `Vend`: with a fault.
pub(super) const WITH_FAULT: u8 = 2;

/// Reads a message from front to back.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_ne_bytes)
    }

    pub(super) fn head(&mut self) -> Result<Head, Malformed> {
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

    pub(super) fn fault(&mut self) -> Result<Fault, Malformed> {
        let [stage, 0, 0, 0] = self.take()? else {
            return Err(Malformed::Value);
        };
        let stage = one_of(&STAGES, stage)?;
        let cause = self.errno()?;
        Ok(Fault { stage, cause })
    }

    pub(super) fn errno(&mut self) -> Result<io::Error, Malformed> {
        match self.u32()? {
            errno @ 1..4096 => Ok(io::Error::from_raw_os_error(errno as i32)),
            _ => Err(Malformed::Value),
        }
    }

    pub(super) fn end(self) -> Result<(), Malformed> {
        match self.0 {
            [] => Ok(()),
            _ => Err(Malformed::Oversized),
        }
    }
}

pub(super) struct Head {
    pub(super) seq: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) count: usize,
}

impl Head {
    /// For kinds that have neither flags nor a count.
    pub(super) fn plain(&self) -> Result<(), Malformed> {
        self.with(0, 0)
    }

    pub(super) fn with(&self, flags: u8, count: usize) -> Result<(), Malformed> {
        if self.flags & !flags != 0 || self.count > count {
            return Err(Malformed::Value);
        }
        Ok(())
    }
}

pub(super) fn put_head(seq: u32, kind: u8, flags: u8, count: usize, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&seq.to_ne_bytes());
    // Checked by the callers, and once more where it is read.
    out.extend_from_slice(&[kind, flags, count as u8, 0]);
}

/// Returns the sequence number of what may be a message, to answer it.
pub(in crate::ports::broker) fn seq_of(message: &[u8]) -> u32 {
    let mut reader = Reader(message);
    let _magic = reader.take::<4>();
    reader.u32().unwrap_or(0)
}

/// The places in these tables are the numbers in messages.
pub(super) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
pub(super) const GATES: [Gate; 5] = [
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
pub(super) const GATE_STATES: [GateState; 3] = [
    GateState::Dropping,
    GateState::Queueing,
    GateState::Refusing,
];
pub(super) const STAGES: [Stage; 7] = [
    Stage::Socket,
    Stage::Option,
    Stage::Filter,
    Stage::Bind,
    Stage::Listen,
    Stage::Verify,
    Stage::Transfer,
];

pub(super) fn one_of<T: Copy>(table: &[T], number: u8) -> Result<T, Malformed> {
    let value = table.get(usize::from(number));
    value.copied().ok_or(Malformed::Value)
}

/// What is in no table reads as a value without a meaning.
pub(super) fn number_of<T: PartialEq>(table: &[T], value: T) -> u8 {
    let place = table.iter().position(|known| *known == value);
    place.map_or(u8::MAX, |place| place as u8)
}

pub(super) const V4: u8 = 4;
pub(super) const V6: u8 = 6;

pub(super) fn decode_spec(bytes: &[u8; SPEC]) -> Result<Spec, Malformed> {
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
        // The client sets the others, on what it is given.
        options: Options::default(),
    };
    // There is no such socket.
    if (spec.protocol, spec.gate) == (Protocol::Udp, Gate::Refuse) {
        return Err(Malformed::Value);
    }
    Ok(spec)
}

pub(super) fn put_spec(spec: &Spec, out: &mut Vec<u8>) {
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

pub(super) fn put_fault(fault: &Fault, out: &mut Vec<u8>) {
    out.extend_from_slice(&[number_of(&STAGES, fault.stage), 0, 0, 0]);
    put_errno(&fault.cause, out);
}

pub(super) fn put_errno(cause: &io::Error, out: &mut Vec<u8>) {
    let errno = cause.raw_os_error().unwrap_or(libc::EIO);
    out.extend_from_slice(&errno.to_ne_bytes());
}
