//! As much of DNS (RFC 1035) as it takes to answer "what is the address of this
//! name?" over UDP and TCP.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const A: u16 = 1;
const IN: u16 = 1;
const HEADER: usize = 12;
/// The longest message over UDP without extensions.
const UDP_SIZE: usize = 512;
/// Flags of a reply: it is one, and recursion was wanted and is to be had.
const REPLY: u16 = 0x8180;
const NO_SUCH_NAME: u16 = 3;

/// Serves one name. Its sockets lie where they were opened; its threads lie
/// where it was started.
pub(crate) struct Server {
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

/// Sockets that were opened somewhere, to be served from anywhere.
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Opens both, each at a port of its own, in the calling thread's namespace.
    pub(crate) fn open(address: Ipv4Addr) -> io::Result<Sockets> {
        Ok(Sockets {
            udp: UdpSocket::bind((address, 0))?,
            tcp: TcpListener::bind((address, 0))?,
        })
    }

    /// Where UDP and TCP are served.
    pub(crate) fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.udp.local_addr()?, self.tcp.local_addr()?))
    }
}

impl Server {
    /// Serves from threads that are born where the calling one is.
    pub(crate) fn start(sockets: Sockets, name: &str, address: Ipv4Addr) -> Server {
        let stopping = Arc::new(AtomicBool::new(false));
        let Sockets { udp, tcp } = sockets;
        let answers = Answers {
            name: encode_name(name),
            address,
        };
        let (stop, also) = (Arc::clone(&stopping), answers.clone());
        let threads = vec![thread::spawn(move || serve_udp(&udp, &answers, &stop)), {
            let stop = Arc::clone(&stopping);
            thread::spawn(move || serve_tcp(&tcp, &also, &stop))
        }];
        Server { stopping, threads }
    }

    /// Has both threads end. They sleep in the kernel, so each is sent something
    /// that `knock` has to send from inside.
    pub(crate) fn stop(self, knock: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.stopping.store(true, Ordering::Release);
        knock()?;
        for thread in self.threads {
            thread.join().expect("a server's thread does not panic")?;
        }
        Ok(())
    }
}

/// Wakes the threads of a server at these addresses.
pub(crate) fn knock(udp: SocketAddr, tcp: SocketAddr) -> io::Result<()> {
    UdpSocket::bind((udp.ip(), 0))?.send_to(&[], udp)?;
    TcpStream::connect(tcp).map(drop)
}

#[derive(Clone)]
struct Answers {
    /// As it stands in a message.
    name: Vec<u8>,
    address: Ipv4Addr,
}

fn serve_udp(socket: &UdpSocket, answers: &Answers, stopping: &AtomicBool) -> io::Result<()> {
    let mut message = [0; UDP_SIZE];
    loop {
        let (length, from) = socket.recv_from(&mut message)?;
        if stopping.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(reply) = answers.reply(&message[..length]) {
            socket.send_to(&reply, from)?;
        }
    }
}

fn serve_tcp(listener: &TcpListener, answers: &Answers, stopping: &AtomicBool) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept()?;
        if stopping.load(Ordering::Acquire) {
            return Ok(());
        }
        let message = read_framed(&mut stream)?;
        if let Some(reply) = answers.reply(&message) {
            write_framed(&mut stream, &reply)?;
        }
    }
}

impl Answers {
    /// The reply to a question, if it is one.
    fn reply(&self, question: &[u8]) -> Option<Vec<u8>> {
        const POINTER_TO_THE_NAME: u16 = 0xc000 | HEADER as u16;
        const TTL: u32 = 600;

        let asked = question.get(HEADER..)?;
        let end = asked.iter().position(|&byte| byte == 0)? + 1;
        let (name, kind) = (asked.get(..end)?, asked.get(end..end + 4)?);
        let known =
            name.eq_ignore_ascii_case(&self.name) && kind == [A, IN].map(u16::to_be_bytes).concat();
        let code = if known { 0 } else { NO_SUCH_NAME };

        let mut reply = question[..2].to_vec();
        for word in [REPLY | code, 1, u16::from(known), 0, 0] {
            reply.extend(word.to_be_bytes());
        }
        reply.extend(name);
        reply.extend(kind);
        if known {
            for word in [POINTER_TO_THE_NAME, A, IN] {
                reply.extend(word.to_be_bytes());
            }
            reply.extend(TTL.to_be_bytes());
            reply.extend(4_u16.to_be_bytes());
            reply.extend(self.address.octets());
        }
        Some(reply)
    }
}

/// Asks the server at `server` for the address of `name` over UDP.
pub(crate) fn resolve_udp(server: SocketAddr, name: &str) -> io::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server)?;
    socket.send(&question(name))?;
    let mut reply = [0; UDP_SIZE];
    let length = socket.recv(&mut reply)?;
    address_in(&reply[..length], name)
}

/// Asks the server at `server` for the address of `name` over TCP.
pub(crate) fn resolve_tcp(server: SocketAddr, name: &str) -> io::Result<Ipv4Addr> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write_framed(&mut stream, &question(name))?;
    address_in(&read_framed(&mut stream)?, name)
}

/// Longer than any answer takes; one that never comes is an error, not a wait.
const PATIENCE: Duration = Duration::from_secs(20);
const ID: u16 = 0x1113;

fn question(name: &str) -> Vec<u8> {
    const RECURSION_WANTED: u16 = 0x0100;
    let header = [ID, RECURSION_WANTED, 1, 0, 0, 0];
    let mut message: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
    message.extend(encode_name(name));
    message.extend([A, IN].iter().flat_map(|word| word.to_be_bytes()));
    message
}

fn address_in(reply: &[u8], name: &str) -> io::Result<Ipv4Addr> {
    let failed = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let word = |at: usize| Some(u16::from_be_bytes(reply.get(at..at + 2)?.try_into().ok()?));
    if word(0) != Some(ID) || word(2) != Some(REPLY) || word(6) != Some(1) {
        return Err(failed("the server knows no answer"));
    }
    // The question again; then a pointer to the name, type, class, time to live
    // and length, twelve bytes in all.
    let answer = HEADER + encode_name(name).len() + 4;
    let address = reply.get(answer + 12..answer + 16);
    let address: [u8; 4] = (address.and_then(|bytes| bytes.try_into().ok()))
        .ok_or_else(|| failed("the answer is cut off"))?;
    Ok(address.into())
}

fn encode_name(name: &str) -> Vec<u8> {
    let mut encoded = Vec::new();
    for label in name.split('.') {
        encoded.push(u8::try_from(label.len()).expect("labels are short"));
        encoded.extend(label.as_bytes());
    }
    encoded.push(0);
    encoded
}

fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).expect("messages are short");
    stream.write_all(&[&length.to_be_bytes()[..], message].concat())
}
