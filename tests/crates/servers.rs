//! What the programs talk to: in the job's namespace and at home, each says where it is.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

pub(crate) const HTTP: u16 = 8080;
const DNS: u16 = 53;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Namespace,
    Home,
}

impl Place {
    const ALL: [Place; 2] = [Place::Namespace, Place::Home];

    fn word(self) -> &'static str {
        match self {
            Place::Namespace => "answered in the namespace",
            Place::Home => "answered at home",
        }
    }

    /// Whose answer this is.
    pub(crate) fn of(text: &str) -> Option<Place> {
        Place::ALL
            .into_iter()
            .find(|place| text.contains(place.word()))
    }

    /// What a name stands for there.
    fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, 1 + self as u8)
    }
}

pub(crate) fn place_of(address: IpAddr) -> Option<Place> {
    Place::ALL
        .into_iter()
        .find(|place| place.address() == address)
}

/// Binds both servers in the calling thread's namespace, and returns what runs them.
pub(crate) fn bind(place: Place) -> std::io::Result<[Box<dyn FnOnce() + Send>; 2]> {
    let http = TcpListener::bind((Ipv4Addr::LOCALHOST, HTTP))?;
    let dns = UdpSocket::bind((Ipv4Addr::LOCALHOST, DNS))?;
    Ok([
        Box::new(move || serve_http(&http, place)),
        Box::new(move || serve_dns(&dns, place)),
    ])
}

fn serve_http(listener: &TcpListener, place: Place) {
    for stream in listener.incoming().map_while(Result::ok) {
        let mut stream = stream;
        // A client that only reads asks nothing: it gets the same after a moment.
        let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
        let _ = stream.read(&mut [0; 4096]);
        let body = place.word();
        let length = body.len();
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
    }
}

/// Answers each question with one address.
fn serve_dns(socket: &UdpSocket, place: Place) {
    let mut packet = [0; 512];
    while let Ok((len, from)) = socket.recv_from(&mut packet) {
        let question = &packet[12..len];
        let Some(end) = question.iter().position(|byte| *byte == 0) else {
            continue;
        };
        let (name_and_type, kind) = (&question[..end + 5], question[end + 2]);
        let is_address = kind == 1;
        let mut answer = packet[..2].to_vec();
        // An authoritative answer, of one question and as many records.
        answer.extend([0x85, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
        answer.extend(name_and_type);
        if is_address {
            // The question's name, an address of the internet, for a minute, in four bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(place.address().octets());
        }
        let _ = socket.send_to(&answer, from);
    }
}
