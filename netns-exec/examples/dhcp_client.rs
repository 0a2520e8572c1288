//! A DHCP client's raw socket (nispor/mozim #79).
//!
//! Today: the library opens its raw socket in the namespace of the thread that calls it. To
//! have it open one elsewhere, the change gives it the path of a namespace and enters that
//! with a guard around the making of the socket. The guard must not go to another thread,
//! so that it has to be marked; what the constructor calls in between is inside of it as
//! well, and all who use the library have to know.
//!
//! Here the socket is made inside and driven outside. The client takes a descriptor, has
//! no namespace in its interface, and is an ordinary task of the runtime at home.
//! Cancelling it closes the socket.
//!
//! `cargo run --example dhcp_client`; needs root and iproute2.

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use netns_exec::{CommandExt, Executor, Netns, net};
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// The frames that a client is about.
const IPV4: u16 = 0x0800;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const OFFERED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);

/// Where the parts of a frame begin.
const IP: usize = 14;
const UDP: usize = IP + 20;
const BOOTP: usize = UDP + 8;
const OPTIONS: usize = BOOTP + 236;

/// A frame that says `kind` of the transaction, and which address is offered.
fn frame(kind: u8, transaction: [u8; 4], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; OPTIONS + 8];
    let length = |from: usize| {
        u16::try_from(OPTIONS + 8 - from)
            .expect("short")
            .to_be_bytes()
    };
    frame[..6].fill(0xff);
    frame[6] = 2;
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[IP] = 0x45;
    frame[IP + 2..IP + 4].copy_from_slice(&length(IP));
    frame[IP + 8..IP + 10].copy_from_slice(&[64, 17]);
    frame[IP + 16..IP + 20].fill(0xff);
    let sum: u32 = (frame[IP..UDP].chunks(2))
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("ten words");
    frame[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
    let (from, to) = if kind == DISCOVER { (68, 67) } else { (67, 68) };
    frame[UDP..UDP + 4].copy_from_slice(&[0, from, 0, to]);
    frame[UDP + 4..UDP + 6].copy_from_slice(&length(UDP));
    frame[BOOTP..BOOTP + 3].copy_from_slice(&[kind, 1, 6]);
    frame[BOOTP + 4..BOOTP + 8].copy_from_slice(&transaction);
    frame[BOOTP + 16..BOOTP + 20].copy_from_slice(&address.octets());
    frame[OPTIONS..].copy_from_slice(&[99, 130, 83, 99, 53, 1, kind, 255]);
    frame
}

/// The transaction and the address of a frame that says `kind`.
fn parse(frame: &[u8], kind: u8) -> Option<([u8; 4], Ipv4Addr)> {
    let is_it = frame.len() >= OPTIONS + 8 && frame[OPTIONS + 4..OPTIONS + 7] == [53, 1, kind];
    let at = |from: usize| <[u8; 4]>::try_from(&frame[from..from + 4]).expect("four bytes");
    is_it.then(|| (at(BOOTP + 4), at(BOOTP + 16).into()))
}

/// A raw socket of some namespace, driven by the runtime at home.
struct Raw(AsyncFd<OwnedFd>);

impl Raw {
    async fn send(&self, frame: &[u8]) -> io::Result<usize> {
        let fd = self.0.as_raw_fd();
        let send = |_: &OwnedFd| Ok(send(fd, frame, MsgFlags::empty())?);
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// Waits for a frame that says `kind`.
    async fn receive(&self, kind: u8) -> io::Result<([u8; 4], Ipv4Addr)> {
        let (fd, mut buffer) = (self.0.as_raw_fd(), [0; 2048]);
        loop {
            let recv = |_: &OwnedFd| Ok(recv(fd, &mut buffer, MsgFlags::empty())?);
            let length = { self.0.async_io(Interest::READABLE, recv) }.await?;
            if let Some(found) = parse(&buffer[..length], kind) {
                return Ok(found);
            }
        }
    }
}

/// The client. It knows of no namespace.
async fn discover(socket: &Raw, transaction: [u8; 4]) -> io::Result<Ipv4Addr> {
    let discover = frame(DISCOVER, transaction, Ipv4Addr::UNSPECIFIED);
    loop {
        socket.send(&discover).await?;
        if let Ok(offer) = timeout(Duration::from_millis(200), socket.receive(OFFER)).await {
            let (answered, address) = offer?;
            if answered == transaction {
                return Ok(address);
            }
        }
    }
}

async fn serve(socket: Raw) -> io::Result<()> {
    loop {
        let (transaction, _) = socket.receive(DISCOVER).await?;
        socket.send(&frame(OFFER, transaction, OFFERED)).await?;
    }
}

#[allow(deprecated, reason = "of no concern to a descriptor that is owned")]
async fn made_in(executor: &Executor, netns: &Netns, device: &str) -> Outcome<Raw> {
    let socket = net::packet_async((executor, netns), IPV4, device).await?;
    Ok(Raw(AsyncFd::new(socket)?))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let executor = Executor::new()?;
    let netns = Netns::new()?;
    for command in [
        "link add eth0 type veth peer name lan0",
        "link set eth0 up",
        "link set lan0 up",
    ] {
        let status = Command::new("ip")
            .args(command.split(' '))
            .status_in(&netns)?;
        if !status.success() {
            return Err("ip failed, or is not there: install iproute2".into());
        }
    }
    // Without a server: given up, and its socket is closed.
    let socket = made_in(&executor, &netns, "eth0").await?;
    let early = timeout(Duration::from_millis(20), discover(&socket, *b"none")).await;
    assert!(early.is_err(), "nothing offers an address");
    drop(socket);

    let server = tokio::spawn(serve(made_in(&executor, &netns, "lan0").await?));
    let socket = made_in(&executor, &netns, "eth0").await?;
    let offered = timeout(Duration::from_secs(5), discover(&socket, *b"xid1")).await??;
    println!("offered on eth0 of {}: {offered}", netns.label());
    server.abort();
    assert_eq!(offered, OFFERED);
    match executor.audit()?.strays().count() {
        0 => Ok(()),
        strays => Err(format!("{strays} threads were left behind").into()),
    }
}
