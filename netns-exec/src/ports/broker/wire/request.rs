//! What a client asks of a broker.

use std::ops::RangeInclusive;

use super::frame::{
    BIND, HEAD, HELLO, LOCAL_PORTS, Malformed, Reader, SPEC, VEND, decode_spec, put_head, put_spec,
};
use crate::ports::socket::Spec;
use crate::sys::scm;

/// Most sockets in one request.
pub(in crate::ports::broker) const MAX_SPECS: usize = scm::MAX_FDS;
/// No request is longer.
pub(in crate::ports::broker) const MAX_REQUEST: usize = HEAD + MAX_SPECS * SPEC;

/// What a client wants.
#[derive(Clone, Debug)]
pub(in crate::ports::broker) enum BrokerRequest<'a> {
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
pub(in crate::ports::broker) struct Specs<'a>(&'a [[u8; SPEC]]);

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

    pub(in crate::ports::broker) fn iter(self) -> impl Iterator<Item = Spec> + use<'a> {
        self.0.iter().filter_map(|spec| decode_spec(spec).ok())
    }
}

pub(in crate::ports::broker) fn put_hello(seq: u32, out: &mut Vec<u8>) {
    put_head(seq, HELLO, 0, 0, out);
}

/// At most [`MAX_SPECS`].
pub(in crate::ports::broker) fn put_vend(
    seq: u32,
    specs: &[Spec],
    local_ports: bool,
    out: &mut Vec<u8>,
) {
    let flags = if local_ports { LOCAL_PORTS } else { 0 };
    put_head(seq, VEND, flags, specs.len(), out);
    for spec in specs {
        put_spec(spec, out);
    }
}

pub(in crate::ports::broker) fn put_bind(
    seq: u32,
    spec: &Spec,
    range: &RangeInclusive<u16>,
    out: &mut Vec<u8>,
) {
    put_head(seq, BIND, 0, 0, out);
    put_spec(spec, out);
    out.extend_from_slice(&range.start().to_ne_bytes());
    out.extend_from_slice(&range.end().to_ne_bytes());
}

pub(in crate::ports::broker) fn decode_request(
    message: &[u8],
) -> Result<(u32, BrokerRequest<'_>), Malformed> {
    let mut reader = Reader(message);
    let head = reader.head()?;
    let request = match head.kind {
        HELLO => {
            head.plain()?;
            reader.end()?;
            BrokerRequest::Hello
        }
        VEND => {
            head.with(LOCAL_PORTS, MAX_SPECS)?;
            if reader.0.len() > head.count * SPEC {
                return Err(Malformed::Oversized);
            }
            if reader.0.len() < head.count * SPEC {
                return Err(Malformed::Truncated);
            }
            BrokerRequest::Vend {
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
            BrokerRequest::Bind { spec, range }
        }
        _ => return Err(Malformed::Kind),
    };
    Ok((head.seq, request))
}
