//! For `crate::fuzz`: whatever is read as a message is one that could have been written.

use super::*;

pub(in crate::ports) fn request(bytes: &[u8]) {
    let Ok((seq, request)) = decode_request(bytes) else {
        return;
    };
    assert!(bytes.len() <= MAX_REQUEST);
    let mut again = Vec::new();
    match request {
        BrokerRequest::Hello => put_hello(seq, &mut again),
        BrokerRequest::Vend { specs, local_ports } => {
            let specs: Vec<_> = specs.iter().collect();
            assert!(specs.len() <= MAX_SPECS);
            put_vend(seq, &specs, local_ports, &mut again);
        }
        BrokerRequest::Bind { spec, range } => put_bind(seq, &spec, &range, &mut again),
    }
    assert_eq!(again, bytes);
}

pub(in crate::ports) fn reply(bytes: &[u8]) {
    const COUNT: usize = 10;
    let (seq, fds) = (seq_of(bytes), bytes.get(COUNT).copied().unwrap_or(0));
    let Ok(reply) = decode_reply(seq, bytes, fds.into()) else {
        return;
    };
    assert!(bytes.len() <= MAX_REPLY);
    let mut again = Vec::new();
    match reply {
        BrokerReply::Hello(hello) => put_hello_reply(seq, &hello, &mut again),
        BrokerReply::Vended {
            gates,
            fault,
            local_ports,
        } => {
            assert_eq!(gates.len(), usize::from(fds));
            let settings = local_ports.map(|ports| {
                let mut bitmap = NOTHING_RESERVED;
                for range in ports.reserved {
                    reserve(&mut bitmap, range);
                }
                (ports.range, bitmap)
            });
            let settings = settings.as_ref().map(|(range, bitmap)| (range, bitmap));
            put_vended(seq, gates.into_iter(), fault.as_ref(), settings, &mut again);
        }
        BrokerReply::Bound { gate, port } => put_bound(seq, gate, port, &mut again),
        BrokerReply::Unbound(fault) => put_unbound(seq, &fault, &mut again),
        BrokerReply::Failed(cause) => put_failed(seq, &cause, &mut again),
        BrokerReply::Malformed(reason) => put_malformed(seq, reason, &mut again),
    }
    assert_eq!(again, bytes);
}
