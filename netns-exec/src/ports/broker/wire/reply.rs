//! What a broker answers.

use std::io;
use std::ops::RangeInclusive;

use super::frame::{
    BIND, FAILED, FAULT, GATE_STATES, HEAD, HELLO, LOCAL_PORTS, MALFORMED, MALFORMED_, Malformed,
    Reader, UNBOUND, VEND, WITH_FAULT, number_of, one_of, put_errno, put_fault, put_head,
};
use super::request::MAX_SPECS;
use crate::ports::dynamic::LocalPorts;
use crate::ports::gate::GateState;
use crate::ports::socket::Fault;

/// One bit for each port.
const BITMAP: usize = 65536 / 8;
/// No answer is longer.
pub(in crate::ports::broker) const MAX_REPLY: usize = HEAD + MAX_SPECS + FAULT + 4 + BITMAP;

/// Stands beside the capabilities: there is a policy, and so every socket comes
/// bound. The kernel has no such capability.
pub(in crate::ports::broker) const LIMITED: u64 = 1 << 63;

/// Stands there, too: the kernel, or a filter on the broker, has no IPv6.
pub(in crate::ports::broker) const WITHOUT_V6: u64 = 1 << 62;

/// One bit for each port that is reserved.
pub(in crate::ports::broker) type Bitmap = [u8; BITMAP];

/// No port is reserved.
pub(in crate::ports::broker) const NOTHING_RESERVED: Bitmap = [0; BITMAP];

/// Marks a range of ports as reserved.
pub(in crate::ports::broker) fn reserve(bitmap: &mut Bitmap, range: RangeInclusive<u16>) {
    for port in range {
        if let Some(byte) = bitmap.get_mut(usize::from(port / 8)) {
            *byte |= 1 << (port % 8);
        }
    }
}

/// What a broker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ports::broker) struct Hello {
    /// The id of its namespace.
    pub(in crate::ports::broker) netns: u64,
    /// Its process id, as it sees itself.
    pub(in crate::ports::broker) pid: u32,
    /// Its effective capabilities, [`LIMITED`] and [`WITHOUT_V6`].
    pub(in crate::ports::broker) capabilities: u64,
}

/// What a broker answers.
#[derive(Debug)]
pub(in crate::ports::broker) enum BrokerReply {
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

pub(in crate::ports::broker) fn put_hello_reply(seq: u32, hello: &Hello, out: &mut Vec<u8>) {
    put_head(seq, HELLO, 0, 0, out);
    out.extend_from_slice(&hello.netns.to_ne_bytes());
    out.extend_from_slice(&hello.capabilities.to_ne_bytes());
    out.extend_from_slice(&hello.pid.to_ne_bytes());
}

pub(in crate::ports::broker) fn put_vended(
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

pub(in crate::ports::broker) fn put_bound(seq: u32, gate: GateState, port: u16, out: &mut Vec<u8>) {
    put_head(seq, BIND, 0, 1, out);
    out.push(number_of(&GATE_STATES, gate));
    out.extend_from_slice(&port.to_ne_bytes());
}

pub(in crate::ports::broker) fn put_unbound(seq: u32, fault: &Fault, out: &mut Vec<u8>) {
    put_head(seq, UNBOUND, 0, 0, out);
    put_fault(fault, out);
}

pub(in crate::ports::broker) fn put_failed(seq: u32, cause: &io::Error, out: &mut Vec<u8>) {
    put_head(seq, FAILED, 0, 0, out);
    put_errno(cause, out);
}

pub(in crate::ports::broker) fn put_malformed(seq: u32, reason: Malformed, out: &mut Vec<u8>) {
    put_head(seq, MALFORMED_, 0, 0, out);
    out.push(number_of(&MALFORMED, reason));
}

/// Decodes what came with `fds` descriptors as an answer to the request with
/// the number `seq`.
pub(in crate::ports::broker) fn decode_reply(
    seq: u32,
    message: &[u8],
    fds: usize,
) -> Result<BrokerReply, Malformed> {
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
            BrokerReply::Hello(Hello {
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
            BrokerReply::Vended {
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
            BrokerReply::Bound {
                gate: one_of(&GATE_STATES, reader.take::<1>()?[0])?,
                port: reader.u16()?,
            }
        }
        UNBOUND => {
            head.plain()?;
            BrokerReply::Unbound(reader.fault()?)
        }
        FAILED => {
            head.plain()?;
            BrokerReply::Failed(reader.errno()?)
        }
        MALFORMED_ => {
            head.plain()?;
            BrokerReply::Malformed(one_of(&MALFORMED, reader.take::<1>()?[0])?)
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
