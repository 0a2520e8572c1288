//! Containers: a namespace each, a veth, and a DNS server at 127.0.0.11.

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{CommandExt, Executor, Netns, WeakNetns};

use super::dns::{self, Server, Sockets};

/// Where containers expect their DNS server.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
pub(crate) const DNS: u16 = 53;

/// Within this time a container that was torn down must be gone. It takes
/// milliseconds; a loaded machine gets more.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// What redirects port 53.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Firewall {
    Iptables,
    Nft,
}

impl fmt::Display for Firewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Firewall::Iptables => "iptables",
            Firewall::Nft => "nft",
        })
    }
}

impl Firewall {
    pub(crate) fn find() -> Result<Firewall> {
        let works = |program| {
            let mut command = Command::new(program);
            command
                .arg("--version")
                .stdout(Stdio::null())
                .status()
                .is_ok()
        };
        if works("iptables") {
            Ok(Firewall::Iptables)
        } else if works("nft") {
            Ok(Firewall::Nft)
        } else {
            Err("neither iptables nor nft is installed: `apt install iptables` or `apt install nftables`".into())
        }
    }

    /// Redirects port 53 of the resolver's address to where the server is, in the
    /// namespace of the calling thread: this is for a job.
    pub(crate) fn redirect(self, udp: SocketAddr, tcp: SocketAddr) -> Result<()> {
        match self {
            Firewall::Iptables => {
                for (protocol, to) in [("udp", udp), ("tcp", tcp)] {
                    let (resolver, to) = (RESOLVER.to_string(), to.to_string());
                    let mut command = Command::new("iptables");
                    command.args(["-w", "-t", "nat", "-A", "OUTPUT", "-d", &resolver]);
                    command.args(["-p", protocol, "--dport", "53"]);
                    command.args(["-j", "DNAT", "--to-destination", &to]);
                    finish(command, "")?;
                }
                Ok(())
            }
            Firewall::Nft => {
                let rule = |protocol: &str, to: SocketAddr| {
                    format!("ip daddr {RESOLVER} {protocol} dport {DNS} dnat to {to}")
                };
                let rules = format!(
                    "table ip resolver {{\nchain output {{\n\
                     type nat hook output priority -100;\n{}\n{}\n}}\n}}\n",
                    rule("udp", udp),
                    rule("tcp", tcp)
                );
                let mut command = Command::new("nft");
                command.args(["-f", "-"]);
                finish(command, &rules)
            }
        }
    }
}

/// Runs a command to its end, with something to read.
fn finish(mut command: Command, input: &str) -> Result<()> {
    let program = command.get_program().display().to_string();
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} failed: {}", said.trim()).into());
    }
    Ok(())
}

/// Starts containers and takes them down.
pub(crate) struct Engine<'a> {
    executor: &'a Executor,
    firewall: Firewall,
    /// Where the other ends of the containers' veths are. An engine has them at
    /// home; an example had better leave home alone.
    bridge: Netns,
}

/// What is left of a container that was torn down.
#[derive(Debug)]
pub(crate) struct Remains {
    pub(crate) netns: WeakNetns,
    /// The end of its veth that was outside.
    pub(crate) veth: String,
}

impl<'a> Engine<'a> {
    pub(crate) fn start(executor: &'a Executor) -> Result<Engine<'a>> {
        Ok(Engine {
            executor,
            firewall: Firewall::find()?,
            bridge: Netns::new()?,
        })
    }

    pub(crate) fn firewall(&self) -> Firewall {
        self.firewall
    }

    /// Starts containers at once, has a client in each resolve a name, takes them
    /// down, and waits until they are gone.
    pub(crate) fn round(&self, containers: usize) -> Result<Vec<Ipv4Addr>> {
        let outcomes: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..containers)
                .map(|number| scope.spawn(move || self.life(number)))
                .collect();
            (threads.into_iter())
                .map(|thread| thread.join().expect("a container's life does not panic"))
                .collect()
        });
        let mut answers = Vec::new();
        for outcome in outcomes {
            let (answer, remains) = outcome?;
            answers.push(answer);
            self.wait_until_gone(&remains)?;
        }
        Ok(answers)
    }

    /// One container from its start to its end.
    fn life(&self, number: usize) -> Result<(Ipv4Addr, Remains)> {
        let address = Ipv4Addr::new(10, 11, 13, u8::try_from(number)?);
        let container = Container::start(self, address)?;
        let answer = container.resolve();
        let remains = container.stop()?;
        let answer = answer?;
        if answer != address {
            return Err(format!("resolved to {answer} instead of {address}").into());
        }
        Ok((answer, remains))
    }

    fn wait_until_gone(&self, remains: &Remains) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while remains.netns.upgrade().is_some() || self.has_link(&remains.veth)? {
            if Instant::now() > deadline {
                return Err(format!("{remains:?} is still there").into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn has_link(&self, name: &str) -> Result<bool> {
        let mut command = Command::new("ip");
        let output = command
            .args(["link", "show", name])
            .output_in(&self.bridge)?;
        Ok(output.status.success())
    }
}

/// One container.
struct Container<'a> {
    engine: &'a Engine<'a>,
    name: String,
    netns: Netns,
    server: Server,
    /// Where the server really is.
    addresses: (SocketAddr, SocketAddr),
    veth: String,
}

impl<'a> Container<'a> {
    fn start(engine: &'a Engine<'a>, address: Ipv4Addr) -> Result<Container<'a>> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("dns-{}-{serial}", std::process::id());
        let veth = format!("veth{serial}");
        let netns = Netns::create(&name)?;
        let started = Container::equip(engine, &netns, &name, &veth, address);
        let (server, addresses) = match started {
            Ok(started) => started,
            Err(error) => {
                Netns::delete(&name)?;
                return Err(error);
            }
        };
        Ok(Container {
            engine,
            name,
            netns,
            server,
            addresses,
            veth,
        })
    }

    fn equip(
        engine: &Engine<'_>,
        netns: &Netns,
        name: &str,
        veth: &str,
        address: Ipv4Addr,
    ) -> Result<(Server, (SocketAddr, SocketAddr))> {
        netns.set_loopback_up()?;
        let mut link = Command::new("ip");
        link.args(["link", "add", veth, "type", "veth"]);
        link.args(["peer", "name", "eth0", "netns", name]);
        let output = link.output_in(&engine.bridge)?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }

        // Everything that must happen inside: two sockets, an address, the rules.
        let firewall = engine.firewall;
        let (sockets, addresses) = engine.executor.run(netns, || -> Result<_> {
            let sockets = Sockets::open(RESOLVER)?;
            let addresses = sockets.addresses()?;
            let mut ip = Command::new("ip");
            ip.args(["address", "add", &format!("{address}/24"), "dev", "eth0"]);
            finish(ip, "")?;
            firewall.redirect(addresses.0, addresses.1)?;
            Ok((sockets, addresses))
        })??;
        // The sockets came out; the threads that serve them are born at home.
        let server = Server::start(sockets, name, address);
        Ok((server, addresses))
    }

    /// Resolves the container's own name from inside, where all a client knows is
    /// the resolver's address and port 53.
    fn resolve(&self) -> Result<Ipv4Addr> {
        let resolver = SocketAddr::from((RESOLVER, DNS));
        let name = &self.name;
        let (udp, tcp) = self.engine.executor.run(&self.netns, || {
            (
                dns::resolve_udp(resolver, name),
                dns::resolve_tcp(resolver, name),
            )
        })?;
        let (udp, tcp) = (udp?, tcp?);
        match udp == tcp {
            true => Ok(udp),
            false => Err(format!("{udp} over UDP, {tcp} over TCP").into()),
        }
    }

    fn stop(self) -> Result<Remains> {
        let (udp, tcp) = self.addresses;
        let stopped = self
            .server
            .stop(|| (self.engine.executor).run(&self.netns, || dns::knock(udp, tcp))?);
        // Nothing else: the executor lets go of it by itself.
        Netns::delete(&self.name)?;
        stopped?;
        Ok(Remains {
            netns: self.netns.downgrade(),
            veth: self.veth,
        })
    }
}
