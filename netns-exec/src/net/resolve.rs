//! Host names, looked up as the namespace has it: with its own `resolv.conf` and
//! `hosts`, by its own name servers.
//!
//! getaddrinfo(3) asks the servers of the files that the whole process sees, keeps what
//! it read of them in one place for all threads, and is mostly called on some pool's
//! thread, which is at home. This asks by itself: a socket for each server is made by a
//! worker, and the caller waits for the answer.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::stat;
use resolv_conf::{Config, ScopedIp};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE};

use super::place::Place;
use super::socket::Spec;
use crate::error::{Error, Kind, Result};
use crate::executor::blocking;
use crate::sys::socket;

const PORT: u16 = 53;
/// As many as the C library asks.
const SERVERS: usize = 3;
/// What is sent by UDP fits in this, with some room: longer answers come by TCP.
const LONGEST: usize = 4096;

/// Looks up the addresses of a host as the namespace has them.
///
/// * `host` may be an address.
/// * Then the `hosts` file is asked, then name servers by `resolv.conf`: its `nameserver`
///   (three of them), `search` or `domain`, and the options `ndots`, `timeout`,
///   `attempts`, `rotate` and `no-aaaa`.
/// * Both files are those of `/etc/netns/NAME`, as `ip netns exec NAME` has them, where
///   `NAME` is what `/run/netns` calls the namespace; without one, those of `/etc`.
///
/// The order is that of the answers, IPv6 addresses first. Nothing is kept for later.
/// Other sources of nsswitch.conf(5), such as mDNS, are not asked.
///
/// Needs the feature `resolve`.
///
/// # Blocking
///
/// Blocks for the time of the name servers, on the calling thread: workers only make the
/// sockets.
///
/// # Errors
///
/// * [`is_not_found`](crate::Error::is_not_found): there is no such host, or it has no
///   address.
/// * [`is_invalid_input`](crate::Error::is_invalid_input): no host can have that name.
/// * As [`Executor::run`](crate::Executor::run); `ETIMEDOUT` when no name server answers,
///   and the errno when none can be asked.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Netns, net};
///
/// let blue = Netns::open("blue")?;
/// for ip in net::resolve(&blue, "db.internal")? {
///     let stream = net::tcp_connect(&blue, (ip, 5432), None);
/// #   let _ = stream;
/// }
/// # Ok::<(), netns_exec::Error>(())
/// ```
pub fn resolve(place: impl Place, host: &str) -> Result<Vec<IpAddr>> {
    let open = |spec: Spec| place.run_there(move || spec.open(false))?;
    let index = |device: &str| {
        let device = device.to_owned();
        place.run_there(move || socket::device_index(&device))?
    };
    let there = place.run_there(here)?;
    let means = Means {
        open: &open,
        index: &index,
    };
    let found = there.and_then(|there| blocking(|| look_up(&there, means, host)));
    found.map_err(|cause| failed(host, place.name(), cause))
}

/// As [`resolve`], to be awaited.
///
/// A worker waits for the name servers, and others serve the namespace meanwhile.
///
/// # Errors
///
/// As [`resolve`].
///
/// # Examples
///
/// ```no_run
/// # async fn f() -> netns_exec::Result<()> {
/// use netns_exec::{Netns, net};
///
/// let ips = net::resolve_async(&Netns::open("blue")?, "db.internal").await?;
/// # let _ = ips;
/// # Ok(())
/// # }
/// ```
pub async fn resolve_async(place: impl Place, host: &str) -> Result<Vec<IpAddr>> {
    let name = host.to_owned();
    let look_up = move || {
        let means = Means {
            open: &|spec| spec.open(false),
            index: &socket::device_index,
        };
        blocking(|| look_up(&here()?, means, &name))
    };
    let found = place.spawn_there(look_up).await?.await?;
    found.map_err(|cause| failed(host, place.name(), cause))
}

fn failed(host: &str, netns: &str, cause: io::Error) -> Error {
    let attempt = format!("cannot resolve `{host}` in netns `{netns}`");
    let kind = match cause.kind() {
        io::ErrorKind::NotFound if cause.raw_os_error().is_none() => Kind::NotFound,
        io::ErrorKind::InvalidInput if cause.raw_os_error().is_none() => Kind::Invalid,
        _ => Kind::Kernel,
    };
    Error::new(kind, attempt).caused_by(cause)
}

/// What is done by a thread that is in the namespace.
#[derive(Clone, Copy)]
struct Means<'a> {
    open: &'a dyn Fn(Spec) -> io::Result<OwnedFd>,
    /// The number of a device.
    index: &'a dyn Fn(&str) -> io::Result<u32>,
}

/// The device and inode of a namespace's file.
type Key = (u64, u64);

/// Those of the calling thread's namespace.
fn here() -> io::Result<Key> {
    key_of(Path::new("/proc/thread-self/ns/net"))
}

fn key_of(path: &Path) -> io::Result<Key> {
    let stat = stat(path)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Where a file of /etc is for a namespace: its own, if it has a name and such a file.
fn file_of(netns: Key, file: &str) -> PathBuf {
    let own = |folder: fs::DirEntry| {
        let name = Path::new("/run/netns").join(folder.file_name());
        let file = folder.path().join(file);
        let is_own = key_of(&name).is_ok_and(|key| key == netns);
        (is_own && file.exists()).then_some(file)
    };
    let Ok(folders) = fs::read_dir("/etc/netns") else {
        return Path::new("/etc").join(file);
    };
    let mut folders: Vec<_> = folders.flatten().collect();
    folders.sort_by_key(fs::DirEntry::file_name);
    let found = folders.into_iter().find_map(own);
    found.unwrap_or_else(|| Path::new("/etc").join(file))
}

fn look_up(netns: &Key, means: Means<'_>, host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what);
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() || name.len() > 253 || name.split('.').any(|l| l.is_empty() || l.len() > 63)
    {
        return Err(invalid("that is no host name"));
    }
    if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(invalid("a host name is ASCII: write others in punycode"));
    }
    // No file is as an empty one.
    let hosts = fs::read(file_of(*netns, "hosts")).unwrap_or_default();
    let found = in_hosts(&String::from_utf8_lossy(&hosts), name);
    if !found.is_empty() {
        return Ok(found);
    }
    let is_local = |name: &str| name == "localhost" || name.ends_with(".localhost");
    if is_local(&name.to_ascii_lowercase()) {
        return Ok(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]);
    }
    let config = fs::read(file_of(*netns, "resolv.conf")).unwrap_or_default();
    // As the C library: lines that make no sense are not there.
    let (config, _errors) = Config::parse_with_errors(&config);
    let client = Client::new(&config, means);
    let mut failure = None;
    for candidate in candidates(&config, host) {
        match client.ask_all(&candidate) {
            Ok(found) if !found.is_empty() => return Ok(found),
            Ok(_) => {}
            // The other names may be served.
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such host")))
}

/// The addresses of a name in hosts(5).
fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let ip: IpAddr = words.next()?.parse().ok()?;
        let mut names = words.map(|word| word.strip_suffix('.').unwrap_or(word));
        names
            .any(|word| word.eq_ignore_ascii_case(name))
            .then_some(ip)
    });
    lines.collect()
}

/// The names that a host may mean, in the order in which they are asked for.
fn candidates(config: &Config, host: &str) -> Vec<String> {
    if let Some(name) = host.strip_suffix('.') {
        return vec![name.to_owned()];
    }
    let dots = host.bytes().filter(|byte| *byte == b'.').count();
    let searched = config.get_last_search_or_domain().filter_map(|domain| {
        let domain = domain.trim_matches('.');
        let name = format!("{host}.{domain}");
        (!domain.is_empty() && name.len() <= 253).then_some(name)
    });
    let mut names: Vec<_> = searched.collect();
    match dots >= config.ndots as usize {
        true => names.insert(0, host.to_owned()),
        false => names.push(host.to_owned()),
    }
    names
}

/// Asks name servers.
struct Client<'a> {
    means: Means<'a>,
    servers: Vec<SocketAddr>,
    /// One that cannot be asked, if there is no other.
    unusable: Option<io::Error>,
    timeout: Duration,
    attempts: u32,
    kinds: &'static [TYPE],
}

impl<'a> Client<'a> {
    fn new(config: &Config, means: Means<'a>) -> Client<'a> {
        let mut unusable = None;
        let servers = config.nameservers.iter().take(SERVERS);
        let mut servers: Vec<SocketAddr> = servers
            .filter_map(|server| {
                let addr = addr_of(server, means.index);
                addr.map_err(|error| unusable = Some(error)).ok()
            })
            .collect();
        if config.nameservers.is_empty() {
            servers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        if config.rotate && !servers.is_empty() {
            let by = usize::from(random()) % servers.len();
            servers.rotate_left(by);
        }
        Client {
            means,
            servers,
            unusable,
            timeout: Duration::from_secs(config.timeout.clamp(1, 30).into()),
            attempts: config.attempts.clamp(1, 5),
            kinds: match config.no_aaaa {
                true => &[TYPE::A],
                false => &[TYPE::AAAA, TYPE::A],
            },
        }
    }

    /// All addresses of a name; none if there is no such name.
    fn ask_all(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let (mut found, mut failure) = (Vec::new(), None);
        for kind in self.kinds {
            match self.ask(name, *kind) {
                Ok(Answer::Is(addresses)) => found.extend(addresses),
                // It has none of the other kind, either.
                Ok(Answer::NoSuchName) => break,
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            // A server that does not know one of them is not to hide the other.
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    /// Asks each server, as often as the attempts allow, until one answers.
    fn ask(&self, name: &str, kind: TYPE) -> io::Result<Answer> {
        let mut failure = None;
        for _ in 0..self.attempts {
            for server in &self.servers {
                match self.ask_one(*server, name, kind) {
                    Ok(answer) => return Ok(answer),
                    Err(error) => failure = Some((*server, error)),
                }
            }
        }
        let Some((server, error)) = failure else {
            let none = || io::Error::from_raw_os_error(libc::ENETUNREACH);
            return Err(self
                .unusable
                .as_ref()
                .map_or_else(none, crate::error::copy_of));
        };
        tracing::debug!(%server, name, %error, "name server did not answer");
        Err(match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::from_raw_os_error(libc::ETIMEDOUT),
            _ => error,
        })
    }

    fn ask_one(&self, server: SocketAddr, name: &str, kind: TYPE) -> io::Result<Answer> {
        let id = random();
        let question = query(id, name, kind)?;
        let deadline = Instant::now() + self.timeout;
        let socket = UdpSocket::from((self.means.open)(Spec::udp(server))?);
        // Then nothing is heard from others, and a port where none listens is an error.
        socket.connect(server)?;
        socket.send(&question)?;
        let mut buffer = [0; LONGEST];
        loop {
            socket.set_read_timeout(Some(left(deadline)?))?;
            let length = socket.recv(&mut buffer)?;
            match parse(&buffer[..length], id, name, kind) {
                // From an earlier question, or forged: the real one may come yet.
                None => {}
                Some(Reply::Truncated) => {
                    return self.ask_by_tcp(server, &question, id, name, kind, deadline);
                }
                Some(Reply::Answer(answer)) => return Ok(answer),
                Some(Reply::Refused(why)) => return Err(io::Error::other(why)),
            }
        }
    }

    fn ask_by_tcp(
        &self,
        server: SocketAddr,
        question: &[u8],
        id: u16,
        name: &str,
        kind: TYPE,
        deadline: Instant,
    ) -> io::Result<Answer> {
        let socket = (self.means.open)(Spec::tcp(server))?;
        socket::set_nonblocking(&socket, true)?;
        socket::connect(&socket, server, Some(deadline))?;
        socket::set_nonblocking(&socket, false)?;
        let mut stream = TcpStream::from(socket);
        stream.set_write_timeout(Some(left(deadline)?))?;
        let length = u16::try_from(question.len()).expect("a question is short");
        stream.write_all(&[&length.to_be_bytes(), question].concat())?;
        let mut length = [0; 2];
        stream.set_read_timeout(Some(left(deadline)?))?;
        stream.read_exact(&mut length)?;
        let mut buffer = vec![0; u16::from_be_bytes(length).into()];
        stream.set_read_timeout(Some(left(deadline)?))?;
        stream.read_exact(&mut buffer)?;
        match parse(&buffer, id, name, kind) {
            Some(Reply::Answer(answer)) => Ok(answer),
            Some(Reply::Refused(why)) => Err(io::Error::other(why)),
            _ => Err(io::Error::other("the name server's answer makes no sense")),
        }
    }
}

fn addr_of(server: &ScopedIp, index: &dyn Fn(&str) -> io::Result<u32>) -> io::Result<SocketAddr> {
    Ok(match server {
        ScopedIp::V4(ip) => (*ip, PORT).into(),
        ScopedIp::V6(ip, scope) => {
            let scope = match scope.as_deref() {
                None => 0,
                Some(scope) => scope.parse().or_else(|_| index(scope))?,
            };
            SocketAddrV6::new(*ip, PORT, 0, scope).into()
        }
    })
}

/// `WouldBlock` when there is nothing left, as from a socket.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::ErrorKind::WouldBlock.into()),
        false => Ok(left),
    }
}

/// What a forger of answers cannot guess.
fn random() -> u16 {
    // Keyed by the system's random numbers.
    RandomState::new().build_hasher().finish() as u16
}

enum Answer {
    Is(Vec<IpAddr>),
    NoSuchName,
}

enum Reply {
    Answer(Answer),
    /// It is too long for UDP.
    Truncated,
    /// The server cannot tell; another one may.
    Refused(String),
}

fn query(id: u16, name: &str, kind: TYPE) -> io::Result<Vec<u8>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, format!("{error}"));
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).map_err(invalid)?;
    let question = Question::new(name, kind.into(), CLASS::IN.into(), false);
    packet.questions.push(question);
    packet.build_bytes_vec().map_err(invalid)
}

/// What a message says, if it is the answer to the question.
fn parse(message: &[u8], id: u16, name: &str, kind: TYPE) -> Option<Reply> {
    let packet = Packet::parse(message).ok()?;
    let [question] = &packet.questions[..] else {
        return None;
    };
    let is_ours = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        && question.qtype == kind.into()
        && question.qname.to_string().eq_ignore_ascii_case(name);
    if !is_ours {
        return None;
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Some(Reply::Truncated);
    }
    Some(match packet.rcode() {
        RCODE::NoError => {
            // Of whichever name in its chain of aliases: the server has followed it.
            let address = |data: &RData<'_>| match data {
                RData::A(a) if kind == TYPE::A => Some(Ipv4Addr::from(a.address).into()),
                RData::AAAA(a) if kind == TYPE::AAAA => Some(Ipv6Addr::from(a.address).into()),
                _ => None,
            };
            let answers = packet.answers.iter();
            let found = answers.filter_map(|answer| address(&answer.rdata));
            Reply::Answer(Answer::Is(found.collect()))
        }
        RCODE::NameError => Reply::Answer(Answer::NoSuchName),
        code => Reply::Refused(format!("the name server answered with {code:?}")),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_file_is_read_as_hosts_5_has_it() {
        let hosts = "# a comment\n10.0.0.1 One one.example # alias\n\n\
                     ::1 one\n10.0.0.2\tother\nnonsense one\n";
        let ips = |name| in_hosts(hosts, name);
        assert_eq!(
            ips("ONE"),
            [
                "10.0.0.1".parse::<IpAddr>().unwrap(),
                "::1".parse().unwrap()
            ]
        );
        assert_eq!(ips("one.example").len(), 1);
        assert!(ips("alias").is_empty() && ips("comment").is_empty());
    }

    #[test]
    fn names_are_tried_in_the_order_of_resolv_conf_5() {
        let config = Config::parse("search a.example b.example\noptions ndots:2\n").unwrap();
        let names = |host| candidates(&config, host);
        assert_eq!(names("x"), ["x.a.example", "x.b.example", "x"]);
        assert_eq!(names("x.y.z")[0], "x.y.z");
        assert_eq!(names("x.y.z").len(), 3);
        assert_eq!(names("x."), ["x"]);
    }

    #[test]
    fn answer_to_another_question_is_none() {
        let question = query(7, "db.example", TYPE::A).unwrap();
        let mut reply = Packet::parse(&question).unwrap().into_reply();
        reply.set_flags(PacketFlag::RESPONSE);
        let reply = reply.build_bytes_vec().unwrap();
        assert!(parse(&reply, 7, "DB.example", TYPE::A).is_some());
        for (id, name, kind) in [
            (8, "db.example", TYPE::A),
            (7, "other.example", TYPE::A),
            (7, "db.example", TYPE::AAAA),
        ] {
            assert!(parse(&reply, id, name, kind).is_none());
        }
        assert!(
            parse(&question, 7, "db.example", TYPE::A).is_none(),
            "a question"
        );
    }

    proptest! {
        #[test]
        fn messages_that_make_no_sense_are_survived(message: Vec<u8>) {
            let _ = parse(&message, 7, "db.example", TYPE::A);
        }

        #[test]
        fn broken_answers_are_survived(at in 0..40_usize, byte: u8) {
            let mut message = query(7, "db.example", TYPE::A).unwrap();
            message[2] |= 0x80;
            let at = at % message.len();
            message[at] = byte;
            let _ = parse(&message, 7, "db.example", TYPE::A);
        }
    }
}
