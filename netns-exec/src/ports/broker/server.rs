//! The broker's side: a process with one socket, serving it until it closes.
//!
//! It is forked from a process that may have other threads, one of which may
//! have been allocating memory at that moment, so it can never allocate any:
//! the lock would stay locked. Re-executing the program instead would take its
//! cooperation, and refusing to start beside other threads would keep out
//! programs that do their part in a child. So all buffers are made before the
//! fork, and the loop consists of system calls.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::policy::Policy;
use super::wire::{self, BrokerRequest, Hello, LIMITED, Malformed, WITHOUT_V6};
use crate::ports::dynamic::{self, Files};
use crate::ports::error::Stage;
use crate::ports::gate::{Fallback, Gate};
use crate::ports::socket::{Bound, Fault, Fresh, Spec};
use crate::sys::apart::{self, Allowed, Child, Confinement};
use crate::sys::{self, caps, netns, scm};

/// What a broker keeps if it has it: to bind ports below 1024, and to filter
/// the packets of TCP sockets.
const CAPABILITIES: u64 = caps::NET_BIND_SERVICE | caps::NET_ADMIN;

/// The state of a broker, made by the process that is about to fork.
struct Server {
    socket: OwnedFd,
    files: Files,
    policy: Policy,
    hello: Hello,
    buffers: Buffers,
    /// The number that the next request has, once there was a `Hello`.
    next: Option<u32>,
}

/// Large enough from the start.
struct Buffers {
    request: Vec<u8>,
    reply: Vec<u8>,
    /// For the text of the port settings.
    text: Vec<u8>,
    reserved: Box<wire::Bitmap>,
    sockets: Box<[Option<Fresh>; wire::MAX_SPECS]>,
}

/// Starts a broker in the namespace of the calling thread, that serves the
/// other end of `socket`.
pub(super) fn start(socket: OwnedFd, policy: Policy) -> io::Result<Child> {
    let mut server = Server::new(socket, policy)?;
    let files = server.files.iter().map(AsRawFd::as_raw_fd);
    let mut kept: Vec<_> = files.chain([server.socket.as_raw_fd()]).collect();
    kept.sort_unstable();
    let allowed = allowed(server.socket.as_fd());
    let confinement = Confinement {
        kept: &kept,
        capabilities: CAPABILITIES,
        allowed: &allowed,
    };
    // It only borrows the server: to drop it would free memory.
    apart::fork_confined(&confinement, |pid, confined| {
        server.hello.pid = pid.as_raw().unsigned_abs();
        server.serve(confined)
    })
}

/// The calls that the loop is made of.
fn allowed(socket: BorrowedFd<'_>) -> [Allowed; 9] {
    let any = |call| Allowed { call, only: None };
    let only = |call, argument, values| Allowed {
        call,
        only: Some((argument, values)),
    };
    let ours = || vec![socket.as_raw_fd()];
    [
        only(libc::SYS_recvmsg, 0, ours()),
        only(libc::SYS_sendmsg, 0, ours()),
        only(libc::SYS_socket, 0, vec![libc::AF_INET, libc::AF_INET6]),
        any(libc::SYS_setsockopt),
        any(libc::SYS_bind),
        any(libc::SYS_close),
        any(libc::SYS_pread64),
        // What std asks before it closes a descriptor, in debug builds.
        only(libc::SYS_fcntl, 1, vec![libc::F_GETFD]),
        any(libc::SYS_exit_group),
    ]
}

impl Server {
    fn new(socket: OwnedFd, policy: Policy) -> io::Result<Server> {
        let mut features = 0;
        if policy.is_limited() {
            features |= LIMITED;
        }
        let v6 = sys::socket::open(libc::AF_INET6, libc::SOCK_DGRAM, 0);
        if v6.is_err_and(|error| error.raw_os_error() == Some(libc::EAFNOSUPPORT)) {
            features |= WITHOUT_V6;
        }
        Ok(Server {
            hello: Hello {
                // Of the calling thread's namespace, where the pair was made.
                netns: netns::id_by_socket(socket.as_fd())?,
                pid: 0,
                capabilities: caps::effective()? & CAPABILITIES | features,
            },
            files: Files::open(),
            policy,
            buffers: Buffers {
                request: vec![0; wire::MAX_REQUEST],
                reply: Vec::with_capacity(wire::MAX_REPLY),
                text: vec![0; dynamic::ROOM],
                reserved: Box::new(wire::NOTHING_RESERVED),
                sockets: Box::new([const { None }; wire::MAX_SPECS]),
            },
            socket,
            next: None,
        })
    }

    /// Makes system calls and no others, and neither allocates nor frees: its
    /// buffers are large enough from the start, and its errors are bare errnos.
    fn serve(&mut self, confined: io::Result<()>) -> i32 {
        loop {
            let received = scm::receive_bytes(self.socket.as_fd(), &mut self.buffers.request);
            let Ok(received) = received else {
                return libc::EXIT_FAILURE;
            };
            if received.len == 0 {
                return libc::EXIT_SUCCESS;
            }
            if let Err(cause) = &confined {
                // The answer to any request. If even this cannot be sent, the
                // client finds the line closed.
                let seq = wire::seq_of(&self.buffers.request);
                wire::put_failed(seq, cause, &mut self.buffers.reply);
                let _ = self.buffers.send(self.socket.as_fd(), None);
                return libc::EXIT_FAILURE;
            }
            let sent = self.answer(received);
            self.buffers.sockets.fill_with(|| None);
            if sent.is_err() {
                return libc::EXIT_FAILURE;
            }
        }
    }

    /// Serves one request; fails when the answer cannot be sent.
    fn answer(&mut self, received: scm::Received) -> io::Result<()> {
        let Server {
            socket,
            files,
            hello,
            policy,
            buffers,
            next,
        } = self;
        let message = buffers.request.get(..received.len).unwrap_or_default();
        let seq = wire::seq_of(message);
        let request = if received.lost_fds {
            Err(Malformed::Descriptors)
        } else if received.is_cut {
            Err(Malformed::Oversized)
        } else {
            wire::decode_request(message)
        };
        let request = request.and_then(|(seq, request)| match request {
            BrokerRequest::Hello => Ok(request),
            _ if *next == Some(seq) => Ok(request),
            _ => Err(Malformed::Order),
        });
        match request {
            Ok(_) => *next = Some(seq.wrapping_add(1)),
            Err(reason) => {
                wire::put_malformed(seq, reason, &mut buffers.reply);
                return buffers.send(socket.as_fd(), None);
            }
        }
        match request {
            Ok(BrokerRequest::Hello) => {
                wire::put_hello_reply(seq, hello, &mut buffers.reply);
                buffers.send(socket.as_fd(), None)
            }
            Ok(BrokerRequest::Vend { specs, local_ports }) => {
                let mut fault = None;
                for (socket, spec) in buffers.sockets.iter_mut().zip(specs.iter()) {
                    let opened = match policy.is_limited() {
                        false => Fresh::open(spec),
                        // What is not bound could be bound to anything.
                        true => Err(refused(Stage::Socket, libc::EPERM)),
                    };
                    match opened {
                        Ok(fresh) => *socket = Some(fresh),
                        Err(failed) => {
                            fault = Some(failed);
                            break;
                        }
                    }
                }
                let range = local_ports.then(|| files.range(&mut buffers.text));
                if local_ports {
                    buffers.reserved.fill(0);
                    for range in files.reserved(&mut buffers.text) {
                        wire::reserve(&mut buffers.reserved, range);
                    }
                }
                buffers.send_vended(socket.as_fd(), seq, fault, range)
            }
            Ok(BrokerRequest::Bind { spec, range }) => match bind_one_of(policy, spec, range) {
                Ok((bound, port)) => {
                    wire::put_bound(seq, bound.gate(), port, &mut buffers.reply);
                    match buffers.send(socket.as_fd(), Some(&bound)) {
                        Err(cause) => {
                            let stage = Stage::Transfer;
                            buffers.send_unbound(socket.as_fd(), seq, &Fault { stage, cause })
                        }
                        sent => sent,
                    }
                }
                Err(fault) => buffers.send_unbound(socket.as_fd(), seq, &fault),
            },
            Err(_) => Ok(()),
        }
    }
}

impl Buffers {
    fn send(&self, socket: BorrowedFd<'_>, bound: Option<&Bound>) -> io::Result<()> {
        scm::send(socket, &self.reply, bound.into_iter().map(Bound::fd))
    }

    fn send_unbound(&mut self, socket: BorrowedFd<'_>, seq: u32, fault: &Fault) -> io::Result<()> {
        wire::put_unbound(seq, fault, &mut self.reply);
        self.send(socket, None)
    }

    /// Sends the sockets with all that belongs to them. If they cannot be sent,
    /// for too many are on their way, the rest still is.
    fn send_vended(
        &mut self,
        socket: BorrowedFd<'_>,
        seq: u32,
        fault: Option<Fault>,
        range: Option<RangeInclusive<u16>>,
    ) -> io::Result<()> {
        let local_ports = range.as_ref().map(|range| (range, &*self.reserved));
        let gates = self.sockets.iter().flatten().map(Fresh::gate);
        wire::put_vended(seq, gates, fault.as_ref(), local_ports, &mut self.reply);
        let fds = self.sockets.iter().flatten().filter_map(Fresh::fd);
        let Err(cause) = scm::send(socket, &self.reply, fds) else {
            return Ok(());
        };
        let fault = Fault {
            stage: Stage::Transfer,
            cause,
        };
        let none = self.sockets.iter().take(0).flatten().map(Fresh::gate);
        wire::put_vended(seq, none, Some(&fault), local_ports, &mut self.reply);
        self.send(socket, None)
    }
}

/// Walks over a range as a client would, which would take a message for each
/// port.
fn bind_one_of(
    policy: &Policy,
    spec: Spec,
    range: RangeInclusive<u16>,
) -> Result<(Bound, u16), Fault> {
    let spec = allowed_spec(policy, spec)?;
    let mut spare = None;
    // For a range without ports, which no request has.
    let mut last = refused(Stage::Bind, libc::EADDRINUSE);
    for port in range {
        if !policy.allows_port(port) {
            last = refused(Stage::Bind, libc::EACCES);
            continue;
        }
        let fresh = match spare.take() {
            Some(fresh) => fresh,
            None => Fresh::open(spec)?,
        };
        match fresh.bind(port) {
            Ok(bound) => return Ok((bound, port)),
            Err(unbound) if unbound.fault.is_in_use() || unbound.fault.is_denied() => {
                spare = unbound.fresh;
                last = unbound.fault;
            }
            Err(unbound) => return Err(unbound.fault),
        }
    }
    Err(last)
}

/// What a policy makes of what a client wants.
fn allowed_spec(policy: &Policy, mut spec: Spec) -> Result<Spec, Fault> {
    if !policy.allows_protocol(spec.protocol) || !policy.allows_addr(spec.addr) {
        return Err(refused(Stage::Bind, libc::EPERM));
    }
    if policy.has_accept_only() {
        spec.options.accept_only = true;
        spec.gate = match spec.gate {
            Gate::Drop { otherwise } => match otherwise {
                Fallback::Fail => return Err(refused(Stage::Filter, libc::EPERM)),
                Fallback::Queue => Gate::Queue,
                Fallback::Refuse => Gate::Refuse,
            },
            gate => gate,
        };
    }
    Ok(spec)
}

fn refused(stage: Stage, errno: i32) -> Fault {
    let cause = io::Error::from_raw_os_error(errno);
    Fault { stage, cause }
}
