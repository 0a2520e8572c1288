//! The client's side: one request at a time, and trust in nothing that comes
//! back.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::wire::{self, Malformed, Reply};
use crate::netns::NetnsId;
use crate::ports::error::Stage;
use crate::ports::gate::GateState;
use crate::ports::opener::{OpenReply, OpenRequest};
use crate::ports::socket::{Bound, Fault, Fresh, Spec, Vendor};
use crate::sys::apart::Child;
use crate::sys::{caps, netns, scm, socket as sys};

/// The longest that a broker may take; it never waits for anything itself, and
/// a walk over all ports takes less than a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to a broker.
#[derive(Debug)]
pub(crate) struct Client {
    pub(super) netns: NetnsId,
    pub(super) label: String,
    pub(super) pid: u32,
    capabilities: u64,
    line: Mutex<Line>,
    /// The broker, where it is ours to end. After the line, because fields are
    /// dropped in this order: it goes by itself when that is closed.
    _child: Option<Child>,
}

#[derive(Debug)]
struct Line {
    /// Closed for good after the first failure: an answer that comes late must
    /// not be taken for that to the next request.
    socket: Option<OwnedFd>,
    /// Of the last request.
    seq: u32,
    buffer: Vec<u8>,
}

/// An answer, with as many descriptors as it says.
struct Received {
    reply: Reply,
    fds: Vec<OwnedFd>,
}

impl Client {
    /// Says hello to the broker behind `socket`.
    pub(super) fn connect(socket: OwnedFd, child: Option<Child>) -> io::Result<Client> {
        scm::set_patience(&socket, PATIENCE)?;
        let mut line = Line {
            socket: Some(socket),
            seq: 0,
            buffer: Vec::with_capacity(wire::MAX_REPLY),
        };
        let Reply::Hello(hello) = line.call(wire::put_hello)?.reply else {
            return Err(Malformed::Kind.into());
        };
        Ok(Client {
            netns: NetnsId::from_raw(hello.netns),
            label: format!("pid {}", hello.pid),
            pid: hello.pid,
            capabilities: hello.capabilities,
            line: Mutex::new(line),
            _child: child,
        })
    }

    /// Makes a copy of the socket that leads to the broker.
    pub(super) fn try_clone_socket(&self) -> io::Result<OwnedFd> {
        match &self.line.lock().socket {
            Some(socket) => socket.try_clone(),
            None => Err(broken()),
        }
    }

    /// Brings unbound sockets.
    pub(super) fn open(self: &Arc<Self>, request: &OpenRequest) -> io::Result<OpenReply> {
        let mut opened = OpenReply::default();
        let mut local_ports = request.local_ports;
        let mut rest = &request.specs[..];
        loop {
            let specs;
            (specs, rest) = rest.split_at(rest.len().min(wire::MAX_SPECS));
            self.vend(specs, local_ports, &mut opened)?;
            local_ports = false;
            if rest.is_empty() || opened.fault.is_some() {
                return Ok(opened);
            }
        }
    }

    fn vend(
        self: &Arc<Self>,
        specs: &[Spec],
        settings: bool,
        opened: &mut OpenReply,
    ) -> io::Result<()> {
        let put = |seq, out: &mut Vec<u8>| wire::put_vend(seq, specs, settings, out);
        let mut line = self.line.lock();
        let answer = match line.call(put) {
            Err(cause) if is_ours(&cause) => {
                opened.fault = Some(transfer(cause));
                return Ok(());
            }
            answer => answer?,
        };
        let (gates, fault, local_ports) = match answer.reply {
            Reply::Vended {
                gates,
                fault,
                local_ports,
            } => (gates, fault, local_ports),
            _ => return Err(line.give_up(Malformed::Kind)),
        };
        // All that was asked for, or the reason why not.
        let enough = gates.len() == specs.len() || gates.len() < specs.len() && fault.is_some();
        if !enough || settings != local_ports.is_some() {
            return Err(line.give_up(Malformed::Value));
        }
        drop(line);
        if settings {
            opened.local_ports = local_ports;
        }
        opened.fault = fault;
        for ((fd, gate), &spec) in answer.fds.into_iter().zip(gates).zip(specs) {
            if let Err(fault) = self.verify(&fd, spec, None) {
                opened.fault = Some(fault);
                break;
            }
            let vendor: Arc<dyn Vendor> = self.clone();
            let fresh = Fresh::vended(fd, spec, gate, Some(vendor));
            opened.sockets.push(fresh);
        }
        Ok(())
    }

    /// Checks that a descriptor is a socket of the broker's namespace, of the
    /// right kind, bound to the port or not bound.
    fn verify(&self, fd: &OwnedFd, spec: Spec, port: Option<u16>) -> Result<(), Fault> {
        let odd = |what| Err(transfer(io::Error::new(io::ErrorKind::InvalidData, what)));
        if netns::id_by_socket(fd.as_fd()).map_err(transfer)? != self.netns.as_u64() {
            return odd("the socket is of another namespace");
        }
        if sys::kind(fd).map_err(transfer)? != spec.kind() {
            return odd("the socket is of another protocol or family");
        }
        let bound = sys::local_addr(fd).map_err(transfer)?;
        let as_asked = match port {
            Some(port) => bound.is_some_and(|at| (at.ip(), at.port()) == (spec.addr, port)),
            None => bound.is_some_and(|at| at.port() == 0),
        };
        if !as_asked {
            return Err(Fault {
                stage: Stage::Verify,
                cause: io::Error::new(io::ErrorKind::InvalidData, "the socket is bound elsewhere"),
            });
        }
        Ok(())
    }
}

impl Vendor for Client {
    fn binds_privileged_ports(&self) -> bool {
        self.capabilities & caps::NET_BIND_SERVICE != 0
    }

    fn bind(&self, spec: Spec, range: &RangeInclusive<u16>) -> Result<(Bound, u16), Fault> {
        let put = |seq, out: &mut Vec<u8>| wire::put_bind(seq, &spec, range, out);
        let mut line = self.line.lock();
        let mut answer = line.call(put).map_err(transfer)?;
        let (gate, port): (GateState, u16) = match answer.reply {
            Reply::Bound { gate, port } if range.contains(&port) => (gate, port),
            Reply::Unbound(fault) => return Err(fault),
            _ => return Err(transfer(line.give_up(Malformed::Kind))),
        };
        drop(line);
        let Some(fd) = answer.fds.pop() else {
            return Err(transfer(Malformed::Descriptors.into()));
        };
        self.verify(&fd, spec, Some(port))?;
        Ok((Bound::vended(fd, spec, gate), port))
    }
}

impl Line {
    /// Makes one request, and waits for its answer.
    fn call(&mut self, put: impl FnOnce(u32, &mut Vec<u8>)) -> io::Result<Received> {
        let answer = self.round_trip(put);
        match &answer {
            Err(cause) if !is_ours(cause) => self.socket = None,
            _ => {}
        }
        answer
    }

    fn round_trip(&mut self, put: impl FnOnce(u32, &mut Vec<u8>)) -> io::Result<Received> {
        let socket = self.socket.as_ref().ok_or_else(broken)?;
        self.seq = self.seq.wrapping_add(1);
        put(self.seq, &mut self.buffer);
        scm::send(socket.as_fd(), &self.buffer, std::iter::empty())?;

        self.buffer.resize(wire::MAX_REPLY, 0);
        let mut fds = Vec::new();
        let received = scm::receive(socket.as_fd(), &mut self.buffer, &mut fds);
        let received = received.map_err(|cause| match cause.raw_os_error() {
            Some(libc::EAGAIN) => io::Error::from_raw_os_error(libc::ETIMEDOUT),
            _ => cause,
        })?;
        if received.len == 0 {
            return Err(broken());
        }
        if received.is_cut {
            return Err(Malformed::Oversized.into());
        }
        // There is room for more descriptors than a broker ever sends, so it is
        // this process that cannot have them. The answer itself is read.
        if received.lost_fds {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let reply = wire::decode_reply(self.seq, &self.buffer[..received.len], fds.len())?;
        match reply {
            Reply::Failed(cause) => Err(cause),
            Reply::Malformed(reason) => Err(reason.into()),
            reply => Ok(Received { reply, fds }),
        }
    }

    /// Closes the line to a broker that makes no sense.
    fn give_up(&mut self, reason: Malformed) -> io::Error {
        self.socket = None;
        reason.into()
    }
}

fn transfer(cause: io::Error) -> Fault {
    Fault {
        stage: Stage::Transfer,
        cause,
    }
}

/// What ends a line that was closed, by whichever end.
fn broken() -> io::Error {
    io::Error::from_raw_os_error(libc::EPIPE)
}

/// A failure of this process, after which the line is as good as before.
fn is_ours(cause: &io::Error) -> bool {
    cause.raw_os_error() == Some(libc::EMFILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::File;
    use std::net::{IpAddr, Ipv4Addr};
    use std::thread;

    use crate::ports::gate::Gate;
    use crate::ports::protocol::Protocol;

    const TCP: Spec = Spec {
        protocol: Protocol::Tcp,
        addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
        gate: Gate::Queue,
    };

    fn here() -> u64 {
        netns::id_of_this_thread().expect("this thread is somewhere")
    }

    /// A client of a broker in this thread's namespace that, after its hello,
    /// answers each request with what `answer` makes of the request's number.
    fn client_of(
        answer: impl Fn(u32, &mut Vec<u8>) -> Vec<OwnedFd> + Send + 'static,
    ) -> Arc<Client> {
        client_of_one_in(here(), answer)
    }

    fn client_of_one_in(
        netns: u64,
        answer: impl Fn(u32, &mut Vec<u8>) -> Vec<OwnedFd> + Send + 'static,
    ) -> Arc<Client> {
        let (ours, theirs) = scm::pair().expect("a pair");
        thread::spawn(move || {
            let mut request = [0; wire::MAX_REQUEST];
            let mut reply = Vec::new();
            loop {
                let received = scm::receive_bytes(theirs.as_fd(), &mut request).expect("alive");
                if received.len == 0 {
                    return;
                }
                let request = wire::decode_request(&request[..received.len]);
                let (seq, request) = request.expect("clients make sense");
                let fds = match request {
                    wire::Request::Hello => {
                        let hello = wire::Hello {
                            netns,
                            pid: 1,
                            capabilities: 0,
                        };
                        wire::put_hello_reply(seq, &hello, &mut reply);
                        Vec::new()
                    }
                    _ => answer(seq, &mut reply),
                };
                let _ = scm::send(theirs.as_fd(), &reply, fds.iter().map(AsFd::as_fd));
            }
        });
        let client = Client::connect(ours, None).expect("it says hello");
        Arc::new(client)
    }

    fn request(specs: &[Spec]) -> OpenRequest {
        OpenRequest {
            specs: specs.to_vec(),
            local_ports: false,
        }
    }

    /// What comes of asking for one TCP socket.
    fn fault(client: &Arc<Client>) -> (Stage, String) {
        let opened = client
            .open(&request(&[TCP]))
            .expect("the answer makes sense");
        assert_eq!(opened.sockets.len(), 0);
        let fault = opened.fault.expect("a socket, or why not");
        (fault.stage, fault.cause.to_string())
    }

    fn vended(seq: u32, gates: &[GateState], out: &mut Vec<u8>) {
        wire::put_vended(seq, gates.iter().copied(), None, None, out);
    }

    fn fresh(spec: Spec) -> OwnedFd {
        let [domain, kind, protocol] = spec.kind();
        sys::open(domain, kind, protocol).expect("a socket")
    }

    fn answer_with(socket: impl Fn() -> OwnedFd) -> impl Fn(u32, &mut Vec<u8>) -> Vec<OwnedFd> {
        move |seq, out| {
            vended(seq, &[GateState::Queueing], out);
            vec![socket()]
        }
    }

    #[test]
    fn what_was_asked_for_is_taken() {
        let client = client_of(answer_with(|| fresh(TCP)));
        let opened = client.open(&request(&[TCP])).expect("an answer");
        assert_eq!(opened.sockets.len(), 1);
        assert!(opened.fault.is_none());
    }

    #[test]
    fn socket_of_another_namespace_is_not_taken() {
        let client = client_of_one_in(here() + 1, answer_with(|| fresh(TCP)));
        let (stage, text) = fault(&client);
        assert_eq!(stage, Stage::Transfer);
        assert!(text.contains("another namespace"), "{text}");
    }

    #[test]
    fn socket_of_another_kind_is_not_taken() {
        let udp = Spec {
            protocol: Protocol::Udp,
            ..TCP
        };
        let v6 = Spec {
            addr: "::1".parse().expect("an address"),
            ..TCP
        };
        for spec in [udp, v6] {
            let (stage, text) = fault(&client_of(answer_with(move || fresh(spec))));
            assert_eq!(stage, Stage::Transfer);
            assert!(text.contains("another protocol or family"), "{text}");
        }
        let file = || File::open("/dev/null").expect("every system has it").into();
        assert_eq!(fault(&client_of(answer_with(file))).0, Stage::Transfer);
    }

    #[test]
    fn socket_that_is_bound_elsewhere_is_not_taken() {
        let bound = || {
            let socket = fresh(TCP);
            sys::bind(&socket, "127.0.0.1:0".parse().expect("an address")).expect("a free port");
            socket
        };
        assert_eq!(fault(&client_of(answer_with(bound))).0, Stage::Verify);

        let client = client_of(move |seq, out| {
            wire::put_bound(seq, GateState::Queueing, 4711, out);
            vec![bound()]
        });
        let fault = client.bind(TCP, &(4711..=4711)).expect_err("another port");
        assert_eq!(fault.stage, Stage::Verify);
    }

    #[test]
    fn broker_that_makes_no_sense_is_asked_once() {
        type Received = fn(u32, &mut Vec<u8>) -> Vec<OwnedFd>;
        let answers: [(&str, Received); 6] = [
            ("out of order", |seq, out| {
                vended(seq + 1, &[GateState::Queueing], out);
                vec![fresh(TCP)]
            }),
            ("number of descriptors", |seq, out| {
                vended(seq, &[GateState::Queueing], out);
                vec![]
            }),
            ("number of descriptors", |seq, out| {
                vended(seq, &[GateState::Queueing], out);
                vec![fresh(TCP), fresh(TCP)]
            }),
            // Neither a socket nor a reason.
            ("without a meaning", |seq, out| {
                vended(seq, &[], out);
                vec![]
            }),
            ("unknown kind", |seq, out| {
                wire::put_unbound(seq, &transfer(broken()), out);
                vec![]
            }),
            ("too long", |seq, out| {
                wire::put_hello(seq, out);
                out.resize(2 * wire::MAX_REPLY, 0);
                vec![]
            }),
        ];
        for (text, answer) in answers {
            let client = client_of(answer);
            let error = client.open(&request(&[TCP])).expect_err(text);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(text), "{error}");
            let again = client
                .open(&request(&[TCP]))
                .expect_err("the line is closed");
            assert_eq!(again.raw_os_error(), Some(libc::EPIPE));
        }
    }

    #[test]
    fn large_order_takes_more_than_one_message() {
        let client = client_of(|seq, out| {
            // All but one of these go into the first.
            let count = if seq == 2 { wire::MAX_SPECS } else { 1 };
            vended(seq, &vec![GateState::Queueing; count], out);
            (0..count).map(|_| fresh(TCP)).collect()
        });
        let opened = client.open(&request(&[TCP; wire::MAX_SPECS + 1]));
        let opened = opened.expect("two answers");
        assert_eq!(opened.sockets.len(), wire::MAX_SPECS + 1);
    }
}
