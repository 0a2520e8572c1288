//! The client's side: one request at a time, and trust in nothing that comes
//! back.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::wire::{self, BrokerReply, Hello, LIMITED, Malformed, WITHOUT_V6};
use crate::netns::NetnsId;
use crate::ports::cancel::{GivenUp, Patience};
use crate::ports::error::Stage;
use crate::ports::gate::GateState;
use crate::ports::opener::{OpenReply, OpenRequest};
use crate::ports::socket::{Bound, Fault, Fresh, Spec, Vendor};
use crate::sys::apart::Child;
use crate::sys::{caps, netns, scm, socket as sys};

/// The longest that a broker may take; it never waits for anything itself, and
/// a walk over all ports takes less than a second.
const LONGEST: Duration = Duration::from_secs(10);
/// How often a wait looks whether the request was given up. An answer takes less
/// than a millisecond, and ends the wait at once.
const LOOK: Duration = Duration::from_millis(10);

/// A connection to a broker.
#[derive(Debug)]
pub(crate) struct Client {
    pub(super) netns: NetnsId,
    pub(super) label: String,
    pid: AtomicU32,
    capabilities: AtomicU64,
    line: Mutex<Line>,
    /// The broker, where it is ours to end. After the line, because fields are
    /// dropped in this order: it goes by itself when that is closed.
    child: Mutex<Option<Child>>,
}

#[derive(Debug)]
struct Line {
    /// Closed for good when the broker is gone, or makes no sense.
    socket: Option<OwnedFd>,
    /// Of the last request.
    seq: u32,
    /// The last request was given up before its answer came. That is awaited, and
    /// thrown away, before another request is sent: so a broker that was stopped
    /// serves again when it goes on, and finds one request at most.
    is_owed: bool,
    buffer: Vec<u8>,
}

/// An answer, with as many descriptors as it says.
struct Received {
    reply: BrokerReply,
    fds: Vec<OwnedFd>,
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// The broker is gone or makes no sense, or it is this process that has no
    /// room for an answer.
    Failed(io::Error),
    /// The wait was given up. The broker may still be alive.
    GivenUp(GivenUp),
}

impl From<io::Error> for NoAnswer {
    fn from(cause: io::Error) -> NoAnswer {
        NoAnswer::Failed(cause)
    }
}

impl From<Malformed> for NoAnswer {
    fn from(reason: Malformed) -> NoAnswer {
        NoAnswer::Failed(reason.into())
    }
}

impl NoAnswer {
    /// As the failure of one member's socket, which has no better words.
    fn into_cause(self) -> io::Error {
        match self {
            NoAnswer::Failed(cause) => cause,
            NoAnswer::GivenUp(GivenUp::Cancelled) => io::Error::from_raw_os_error(libc::ECANCELED),
            NoAnswer::GivenUp(GivenUp::Deadline) => io::Error::from_raw_os_error(libc::ETIMEDOUT),
        }
    }
}

impl Client {
    /// Says hello to the broker behind `socket`.
    pub(super) fn connect(socket: OwnedFd, child: Option<Child>) -> io::Result<Client> {
        let (line, hello) = Line::connect(socket)?;
        Ok(Client {
            netns: NetnsId::from_raw(hello.netns),
            label: format!("pid {}", hello.pid),
            pid: AtomicU32::new(hello.pid),
            capabilities: AtomicU64::new(hello.capabilities),
            line: Mutex::new(line),
            child: Mutex::new(child),
        })
    }

    /// Leaves the broker for the one behind `socket`, of the same namespace.
    pub(super) fn replace(&self, socket: OwnedFd) -> io::Result<()> {
        let (line, hello) = Line::connect(socket)?;
        if hello.netns != self.netns.as_u64() {
            let what = "the broker is in another network namespace";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        *self.line.lock() = line;
        self.pid.store(hello.pid, Ordering::Relaxed);
        (self.capabilities).store(hello.capabilities, Ordering::Relaxed);
        // Ends the old one, if it is ours and alive.
        drop(self.child.lock().take());
        Ok(())
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Makes a copy of the socket that leads to the broker.
    pub(super) fn try_clone_socket(&self) -> io::Result<OwnedFd> {
        match &self.line.lock().socket {
            Some(socket) => socket.try_clone(),
            None => Err(broken()),
        }
    }

    /// Waits for the line, which other requests may be using.
    fn line(&self, patience: &Patience) -> Result<MutexGuard<'_, Line>, NoAnswer> {
        loop {
            if let Some(line) = self.line.try_lock_for(patience.bound(LOOK)) {
                return Ok(line);
            }
            patience.check().map_err(NoAnswer::GivenUp)?;
        }
    }

    /// Brings unbound sockets.
    pub(super) fn open(
        self: &Arc<Self>,
        request: &OpenRequest,
        patience: &Patience,
    ) -> Result<OpenReply, NoAnswer> {
        if self.capabilities.load(Ordering::Relaxed) & LIMITED != 0 {
            return self.open_limited(request, patience);
        }
        let mut opened = OpenReply::default();
        let mut local_ports = request.local_ports;
        let mut rest = &request.specs[..];
        loop {
            let specs;
            (specs, rest) = rest.split_at(rest.len().min(wire::MAX_SPECS));
            self.vend(specs, local_ports, patience, &mut opened)?;
            local_ports = false;
            if rest.is_empty() || opened.fault.is_some() {
                return Ok(opened);
            }
        }
    }

    /// Of a broker with a policy, which hands out what is bound and no other
    /// socket.
    fn open_limited(
        self: &Arc<Self>,
        request: &OpenRequest,
        patience: &Patience,
    ) -> Result<OpenReply, NoAnswer> {
        let mut opened = OpenReply::default();
        if request.local_ports {
            self.vend(&[], true, patience, &mut opened)?;
        }
        let is_without_v6 = self.capabilities.load(Ordering::Relaxed) & WITHOUT_V6 != 0;
        for &spec in &request.specs {
            if is_without_v6 && spec.addr.is_ipv6() {
                // As the broker would say it, only earlier.
                opened.fault = Some(Fault {
                    stage: Stage::Socket,
                    cause: io::Error::from_raw_os_error(libc::EAFNOSUPPORT),
                });
                break;
            }
            let fresh = Fresh::to_be_bound_by(self.patient(patience), spec);
            opened.sockets.push(fresh);
        }
        Ok(opened)
    }

    fn patient(self: &Arc<Self>, patience: &Patience) -> Arc<dyn Vendor> {
        Arc::new(PatientClient {
            client: self.clone(),
            patience: patience.clone(),
        })
    }

    fn vend(
        self: &Arc<Self>,
        specs: &[Spec],
        settings: bool,
        patience: &Patience,
        opened: &mut OpenReply,
    ) -> Result<(), NoAnswer> {
        let put = |seq, out: &mut Vec<u8>| wire::put_vend(seq, specs, settings, out);
        let mut line = self.line(patience)?;
        let answer = match line.call(put, patience) {
            Err(NoAnswer::Failed(cause)) if is_ours(&cause) => {
                opened.fault = Some(transfer(cause));
                return Ok(());
            }
            answer => answer?,
        };
        let (gates, fault, local_ports) = match answer.reply {
            BrokerReply::Vended {
                gates,
                fault,
                local_ports,
            } => (gates, fault, local_ports),
            _ => return Err(line.give_up(Malformed::Kind).into()),
        };
        // All that was asked for, or the reason why not.
        let enough = gates.len() == specs.len() || gates.len() < specs.len() && fault.is_some();
        if !enough || settings != local_ports.is_some() {
            return Err(line.give_up(Malformed::Value).into());
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
            let vendor = self.patient(patience);
            match Fresh::vended(fd, spec, gate, Some(vendor)) {
                Ok(fresh) => opened.sockets.push(fresh),
                Err(fault) => {
                    opened.fault = Some(fault);
                    break;
                }
            }
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

/// A client as one request sees it.
#[derive(Debug)]
struct PatientClient {
    client: Arc<Client>,
    patience: Patience,
}

impl Vendor for PatientClient {
    fn binds_privileged_ports(&self) -> bool {
        self.client.capabilities.load(Ordering::Relaxed) & caps::NET_BIND_SERVICE != 0
    }

    fn bind(&self, spec: Spec, range: &RangeInclusive<u16>) -> Result<(Bound, u16), Fault> {
        let put = |seq, out: &mut Vec<u8>| wire::put_bind(seq, &spec, range, out);
        let failed = |no_answer: NoAnswer| transfer(no_answer.into_cause());
        let mut line = self.client.line(&self.patience).map_err(failed)?;
        let mut answer = line.call(put, &self.patience).map_err(failed)?;
        let (gate, port): (GateState, u16) = match answer.reply {
            BrokerReply::Bound { gate, port } if range.contains(&port) => (gate, port),
            BrokerReply::Unbound(fault) => return Err(fault),
            _ => return Err(transfer(line.give_up(Malformed::Kind))),
        };
        drop(line);
        let Some(fd) = answer.fds.pop() else {
            return Err(transfer(Malformed::Descriptors.into()));
        };
        self.client.verify(&fd, spec, Some(port))?;
        Ok((Bound::vended(fd, spec, gate)?, port))
    }
}

impl Line {
    /// Says hello.
    fn connect(socket: OwnedFd) -> io::Result<(Line, Hello)> {
        let mut line = Line {
            socket: Some(socket),
            seq: 0,
            is_owed: false,
            buffer: Vec::with_capacity(wire::MAX_REPLY),
        };
        let answer = line.call(wire::put_hello, &Patience::endless());
        match answer.map_err(NoAnswer::into_cause)?.reply {
            BrokerReply::Hello(hello) => Ok((line, hello)),
            _ => Err(Malformed::Kind.into()),
        }
    }

    /// Makes one request, and waits for its answer.
    fn call(
        &mut self,
        put: impl FnOnce(u32, &mut Vec<u8>),
        patience: &Patience,
    ) -> Result<Received, NoAnswer> {
        let answer = self.round_trip(put, patience);
        match &answer {
            Err(NoAnswer::Failed(cause)) if !is_ours(cause) && !self.is_owed => self.socket = None,
            _ => {}
        }
        answer
    }

    fn round_trip(
        &mut self,
        put: impl FnOnce(u32, &mut Vec<u8>),
        patience: &Patience,
    ) -> Result<Received, NoAnswer> {
        if self.is_owed {
            // Whatever it is, it is too late.
            let late = self.answer(patience);
            if self.is_owed {
                return late;
            }
        }
        let socket = self.socket.as_ref().ok_or_else(broken)?;
        self.seq = self.seq.wrapping_add(1);
        put(self.seq, &mut self.buffer);
        scm::send(socket.as_fd(), &self.buffer, std::iter::empty())?;
        self.answer(patience)
    }

    /// Waits for the answer to the last request.
    fn answer(&mut self, patience: &Patience) -> Result<Received, NoAnswer> {
        let socket = self.socket.as_ref().ok_or_else(broken)?;
        self.is_owed = true;
        let started = Instant::now();
        while !scm::wait_for_message(socket.as_fd(), patience.bound(LOOK))? {
            patience.check().map_err(NoAnswer::GivenUp)?;
            if started.elapsed() >= LONGEST {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT).into());
            }
        }
        self.is_owed = false;
        self.buffer.resize(wire::MAX_REPLY, 0);
        let mut fds = Vec::new();
        let received = scm::receive(socket.as_fd(), &mut self.buffer, &mut fds)?;
        if received.len == 0 {
            return Err(broken().into());
        }
        if received.is_cut {
            return Err(Malformed::Oversized.into());
        }
        // There is room for more descriptors than a broker ever sends, so it is
        // this process that cannot have them. The answer itself is read.
        if received.lost_fds {
            return Err(io::Error::from_raw_os_error(libc::EMFILE).into());
        }
        let reply = wire::decode_reply(self.seq, &self.buffer[..received.len], fds.len())?;
        match reply {
            BrokerReply::Failed(cause) => Err(cause.into()),
            BrokerReply::Malformed(reason) => Err(reason.into()),
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
    use crate::ports::socket::Options;

    const TCP: Spec = Spec {
        protocol: Protocol::Tcp,
        addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
        gate: Gate::Queue,
        options: Options::DEFAULT,
    };

    fn here() -> u64 {
        netns::id_of_this_thread().expect("this thread is somewhere")
    }

    /// A client of a broker in this thread's namespace that, after its hello,
    /// answers each request with what `answer` makes of the request's number.
    fn client_of(
        answer: impl Fn(u32, &mut Vec<u8>) -> Vec<OwnedFd> + Send + 'static,
    ) -> Arc<Client> {
        client_of_one(here(), 0, answer)
    }

    fn client_of_one(
        netns: u64,
        capabilities: u64,
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
                    wire::BrokerRequest::Hello => {
                        let hello = wire::Hello {
                            netns,
                            pid: 1,
                            capabilities,
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

    fn open(client: &Arc<Client>, specs: &[Spec]) -> io::Result<OpenReply> {
        let opened = client.open(&request(specs), &Patience::endless());
        opened.map_err(NoAnswer::into_cause)
    }

    fn request(specs: &[Spec]) -> OpenRequest {
        OpenRequest {
            specs: specs.to_vec(),
            local_ports: false,
        }
    }

    fn patient(client: &Arc<Client>) -> PatientClient {
        PatientClient {
            client: client.clone(),
            patience: Patience::endless(),
        }
    }

    /// What comes of asking for one TCP socket.
    fn fault(client: &Arc<Client>) -> (Stage, String) {
        let opened = open(client, &[TCP]).expect("the answer makes sense");
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
        let opened = open(&client, &[TCP]).expect("an answer");
        assert_eq!(opened.sockets.len(), 1);
        assert!(opened.fault.is_none());
    }

    #[test]
    fn broker_with_a_policy_is_not_asked_for_what_it_refuses_or_lacks() {
        let no_answer = |_, _: &mut Vec<u8>| -> Vec<OwnedFd> { panic!("it was asked") };
        let client = client_of_one(here(), LIMITED | WITHOUT_V6, no_answer);
        let v6 = Spec {
            addr: "::1".parse().expect("an address"),
            ..TCP
        };
        let opened = open(&client, &[TCP, TCP, v6]).expect("no message");
        assert_eq!(opened.sockets.len(), 2);
        assert!(opened.sockets.iter().all(|fresh| fresh.fd().is_none()));
        assert!(opened.fault.expect("no IPv6").is_family_missing());
    }

    #[test]
    fn socket_of_another_namespace_is_not_taken() {
        let client = client_of_one(here() + 1, 0, answer_with(|| fresh(TCP)));
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
        let fault = patient(&client)
            .bind(TCP, &(4711..=4711))
            .expect_err("another port");
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
            let error = open(&client, &[TCP]).expect_err(text);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(text), "{error}");
            let again = open(&client, &[TCP]).expect_err("the line is closed");
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
        let opened = open(&client, &[TCP; wire::MAX_SPECS + 1]);
        let opened = opened.expect("two answers");
        assert_eq!(opened.sockets.len(), wire::MAX_SPECS + 1);
    }
}
