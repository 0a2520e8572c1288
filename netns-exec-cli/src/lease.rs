//! `netns-exec lease`: one port number, held in several namespaces at once.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind as IoErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use command_fds::{CommandFdExt as _, FdMapping};
use netns_exec::ports::{
    Allocator, ErrorKind, Fallback, Gate, GateState, Lease, Member, Ports, Protocol,
};
use netns_exec::{Executor, Netns};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

use crate::failure::{FAILED, Failure, NOT_EXECUTABLE, NOT_FOUND};
use crate::netns_arg::NetnsArg;
use crate::output;
use crate::seconds::seconds;
use crate::sys::{Inherited, give_back_before_exec};

/// The first descriptor of the socket activation protocol: SD_LISTEN_FDS_START
/// of sd_listen_fds(3).
const FIRST_FD: i32 = 3;
/// Another process or lease has the port.
const UNAVAILABLE: u8 = 1;

/// Hold one port number in several namespaces at once
///
/// The port is ours only when the last step has succeeded in every namespace;
/// otherwise nothing is held in any, and of a range the next port is tried.
///
/// With a COMMAND, netns-exec becomes it, and hands it the sockets as systemd
/// does for socket activation: listening, from descriptor 3 on in the order of
/// --on, with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES set, each name that of
/// the namespace. The port is given back when the command ends.
///
/// Without one, the port is held until SIGINT, SIGTERM or SIGHUP, and clients
/// get no answer from it.
#[derive(clap::Args)]
#[command(
    after_help = "\
Examples:
  netns-exec lease --tcp 8080 --on blue --on red
  netns-exec lease --udp 33000-33099 --on blue,127.0.0.1,::1 --json
  netns-exec lease --tcp dynamic --on /proc/self/ns/net --on blue -- my-server

Exit status:
  that of COMMAND
  0    the port was held, until a signal came
  1    the port, or every port of the range, is in use; 125 with a COMMAND
  2    netns-exec itself failed; 125 with a COMMAND
  126  COMMAND was found and cannot be executed
  127  COMMAND was not found",
    group = clap::ArgGroup::new("protocol").required(true)
)]
pub(crate) struct Args {
    /// A TCP port: PORT, LOW-HIGH, or `dynamic` for the range that the first
    /// namespace gives to outgoing connections
    #[arg(long, value_name = "PORTS", group = "protocol")]
    tcp: Option<Choice>,

    /// A UDP port, in the same forms
    #[arg(long, value_name = "PORTS", group = "protocol")]
    udp: Option<Choice>,

    /// An SCTP port, in the same forms
    #[arg(long, value_name = "PORTS", group = "protocol")]
    sctp: Option<Choice>,

    /// Where to hold it: a NAME as `ip netns list` shows it, a PATH (anything
    /// with a slash), or pid:N, and the addresses; without any, 0.0.0.0 and ::
    #[arg(long, required = true, value_name = "NS[,ADDR...]",
          value_parser = OsStringValueParser::new().try_map(OnArg::parse))]
    on: Vec<OnArg>,

    /// How long to go on while the port is in use; for a single port
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    retry_for: Option<Duration>,

    /// Print the lease as JSON
    #[arg(long)]
    json: bool,

    /// The command, after `--`, and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Which ports will do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Exact(u16),
    Range(RangeInclusive<u16>),
    Dynamic,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| {
            text.parse::<u16>()
                .map_err(|_| format!("`{text}` is not a port; write 8080, 33000-33099 or dynamic"))
        };
        Ok(match text.split_once('-') {
            _ if text == "dynamic" => Choice::Dynamic,
            Some((low, high)) => Choice::Range(port(low)?..=port(high)?),
            None => Choice::Exact(port(text)?),
        })
    }
}

/// A namespace, and addresses in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OnArg {
    netns: NetnsArg,
    addrs: Vec<IpAddr>,
}

impl OnArg {
    /// `NS[,ADDR...]`, in which NS is any bytes but a comma.
    fn parse(text: OsString) -> Result<OnArg, String> {
        let mut parts = text.as_bytes().split(|&byte| byte == b',');
        let netns = OsStr::from_bytes(parts.next().unwrap_or_default());
        if netns.is_empty() {
            return Err("the namespace comes first".to_owned());
        }
        let addr = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            text.parse::<IpAddr>()
                .map_err(|_| format!("`{text}` is not an IP address"))
        };
        let mut addrs: Vec<IpAddr> = parts.map(addr).collect::<Result<_, _>>()?;
        if addrs.is_empty() {
            addrs = vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        }
        let netns = NetnsArg::from(netns.to_owned());
        Ok(OnArg { netns, addrs })
    }
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let status = |failure: Failure| match args.command.is_empty() {
        true => failure,
        // The low numbers belong to the command that would have run.
        false => failure.status(FAILED),
    };
    let lease = acquire(&args).map_err(status)?;
    if args.command.is_empty() {
        return hold(&args, &lease);
    }
    show(&args, &lease).map_err(status)?;
    Err(become_command(&args, lease))
}

fn acquire(args: &Args) -> Result<Lease, Failure> {
    let (protocol, choice) = match (&args.tcp, &args.udp, &args.sctp) {
        (Some(choice), ..) => (Protocol::Tcp, choice),
        (_, Some(choice), _) => (Protocol::Udp, choice),
        (.., Some(choice)) => (Protocol::Sctp, choice),
        _ => unreachable!("clap wants one of the three"),
    };
    let open = |on: &OnArg| on.netns.open();
    let namespaces: Vec<Netns> = args.on.iter().map(open).collect::<Result<_, _>>()?;

    let executor = Executor::new()?;
    let mut request = Allocator::new(&executor)
        .request(protocol)
        .gate(match args.command.is_empty() {
            // Clients would wait for an answer for ever.
            true => Gate::Drop {
                otherwise: Fallback::Refuse,
            },
            // The command is about to.
            false => Gate::Queue,
        })
        .ports(match choice {
            Choice::Exact(port) => Ports::Exact(*port),
            Choice::Range(range) => Ports::Range(range.clone()),
            Choice::Dynamic => Ports::Dynamic { of: &namespaces[0] },
        });
    for (on, netns) in args.on.iter().zip(&namespaces) {
        request = request.on(netns, on.addrs.iter().copied());
    }
    if let Some(time) = args.retry_for {
        request = request.retry_for(time);
    }
    request.acquire().map_err(|error| {
        let failure = Failure::new(error.to_string());
        let in_use = error.raw_os_error() == Some(libc::EADDRINUSE);
        match error.kind() {
            ErrorKind::Exhausted | ErrorKind::AlreadyLeased => failure.status(UNAVAILABLE),
            _ if in_use => failure.status(UNAVAILABLE),
            _ => failure,
        }
    })
}

/// Keeps the port until a signal comes.
fn hold(args: &Args, lease: &Lease) -> Result<ExitCode, Failure> {
    let failed = |errno: Errno| Failure::io("cannot wait for a signal", errno);
    // From here on a signal ends the wait below, and until here the process.
    let ends = SigSet::from_iter([Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]);
    ends.thread_block().map_err(failed)?;
    show(args, lease)?;
    ends.wait().map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct ShownLease {
    protocol: String,
    port: u16,
    members: Vec<ShownMember>,
}

#[derive(Serialize)]
struct ShownMember {
    netns: String,
    netns_id: u64,
    addr: IpAddr,
    /// What clients meet.
    gate: &'static str,
}

fn show(args: &Args, lease: &Lease) -> Result<(), Failure> {
    if !args.json {
        return output::line(lease.port());
    }
    let member = |(member, netns): (&Member, String)| ShownMember {
        netns,
        netns_id: member.endpoint().netns().as_u64(),
        addr: member.endpoint().addr(),
        gate: match member.gate() {
            GateState::Dropping => "drop",
            GateState::Refusing => "refuse",
            _ => "queue",
        },
    };
    output::json(&ShownLease {
        protocol: lease.protocol().to_string(),
        port: lease.port(),
        members: (lease.members().iter())
            .zip(names(args))
            .map(member)
            .collect(),
    })
}

/// What the user called the namespace of each member.
fn names(args: &Args) -> impl Iterator<Item = String> {
    let name = |on: &OnArg| vec![on.netns.to_string(); on.addrs.len()];
    args.on.iter().flat_map(name)
}

/// Replaces this process, and returns only when that fails. The sockets, and so
/// the port, are then the command's, and end with it.
fn become_command(args: &Args, lease: Lease) -> Failure {
    let inherited = match Inherited::read() {
        Ok(inherited) => inherited,
        Err(error) => {
            return Failure::io("cannot read signal dispositions and limits", error).status(FAILED);
        }
    };
    let program = args.command[0].display();
    if let Err(error) = lease.activate() {
        return Failure::new(error.to_string()).status(FAILED);
    }
    // The hold is in memory, and ends with it.
    let (members, _hold) = lease.split();
    // Names are separated by colons.
    let names: Vec<String> = names(args).map(|name| name.replace(':', "-")).collect();
    let count = members.len().to_string();
    let mapping = |(member, child_fd)| FdMapping {
        parent_fd: OwnedFd::from(member),
        child_fd,
    };
    let mut command = Command::new(&args.command[0]);
    command
        .args(&args.command[1..])
        .env("LISTEN_FDS", count)
        .env("LISTEN_PID", std::process::id().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    let mappings = members.into_iter().zip(FIRST_FD..).map(mapping).collect();
    if let Err(error) = command.fd_mappings(mappings) {
        return Failure::new(format!("cannot hand sockets to `{program}`: {error}")).status(FAILED);
    }
    give_back_before_exec(&mut command, inherited);
    let error = command.exec();
    let status = match error.kind() {
        IoErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    Failure::io(format!("cannot execute `{program}`"), error).status(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_several_or_dynamic() {
        assert_eq!("8080".parse(), Ok(Choice::Exact(8080)));
        assert_eq!("1-65535".parse(), Ok(Choice::Range(1..=65535)));
        assert_eq!("dynamic".parse(), Ok(Choice::Dynamic));
        for text in ["", "http", "65536", "-1", "1-", "1-2-3", "1..2"] {
            let refused = text.parse::<Choice>().expect_err(text);
            assert!(refused.contains("33000-33099"), "{refused}");
        }
    }

    #[test]
    fn on_is_a_namespace_and_its_addresses() {
        let parse = |text: &str| OnArg::parse(text.into());
        let on = parse("blue,127.0.0.1,::1").expect("well-formed");
        assert_eq!(on.netns, NetnsArg::Name("blue".into()));
        assert_eq!(on.addrs.len(), 2);
        let on = parse("pid:1").expect("well-formed");
        assert!(on.addrs.iter().all(IpAddr::is_unspecified));
        for text in ["", ",::1", "blue,", "blue,localhost", "blue,::1,"] {
            parse(text).expect_err(text);
        }
    }
}
