//! `netns-exec lease`: one port number, held in several namespaces at once.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind as IoErrorKind, IsTerminal as _};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::builder::{OsStringValueParser, TypedValueParser};
use command_fds::{CommandFdExt as _, FdMapping};
use indicatif::ProgressBar;
use netns_exec::ports::{
    Allocator, Budget, ErrorKind, Fallback, Gate, GateState, Lease, Member, Ports, Protocol,
};
use netns_exec::{Executor, Netns};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getppid};
use serde::Serialize;

use crate::failure::{FAILED, Failure, NOT_EXECUTABLE, NOT_FOUND};
use crate::seconds::seconds;
use crate::stdio;
use crate::syntax::{AddrArg, Choice, OnArg};
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
/// the namespace. What else would be printed goes to standard error then, and
/// standard output is COMMAND's alone. The port is given back when the last
/// process has closed its copies of the sockets: COMMAND, and children that it
/// left behind with them.
///
/// A socket belongs to its namespace for good. A second one that COMMAND opens on
/// the same port itself, as servers with one listener a worker do, is in the
/// namespace that COMMAND runs in, and not in that of --on. And who has a
/// listener can also shut it down and connect it, from the namespace it is in:
/// --accept-only is against that.
///
/// Without a COMMAND, the port is held until SIGINT, SIGTERM or SIGHUP, those
/// left out that were ignored from the start, as by nohup(1); clients get no
/// answer from it.
#[derive(clap::Args)]
#[command(
    after_help = "\
Examples:
  netns-exec lease --tcp 8080 --on blue --on red
  netns-exec lease --udp 33000-33099 --on blue,127.0.0.1,::1 --json
  netns-exec lease --tcp-udp 53 --on blue,fe80::1%eth0
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

    /// One number for both TCP and UDP, as DNS and HTTP/3 want it
    #[arg(long, value_name = "PORTS", group = "protocol")]
    tcp_udp: Option<Choice>,

    /// Hold so many ports in a row
    #[arg(long, value_name = "N", default_value_t = 1)]
    block: u16,

    /// Where to hold it: a NAME as `ip netns list` shows it, a PATH (anything
    /// with a slash), or pid:N, and the addresses; without any, 0.0.0.0 and ::,
    /// as far as the namespace has the family. ADDR%DEVICE is tied to a device
    #[arg(long, required = true, value_name = "NS[,ADDR...]",
          value_parser = OsStringValueParser::new().try_map(OnArg::parse))]
    on: Vec<OnArg>,

    /// How long to go on while the port, or every port of the range, is in use
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    retry_for: Option<Duration>,

    /// Bind addresses that are not there, or not yet
    #[arg(long)]
    free_bind: bool,

    /// Keep TCP listeners from being turned into outgoing connections; needs
    /// CAP_NET_ADMIN over the namespaces
    #[arg(long)]
    accept_only: bool,

    /// Have UDP sockets tell where a datagram was sent to (IP_PKTINFO): for a
    /// COMMAND that reads it
    #[arg(long)]
    packet_info: bool,

    /// End with the process that started this one: without a COMMAND give the port
    /// back, and have the kernel send SIGTERM to COMMAND (PR_SET_PDEATHSIG, which a
    /// set-user-ID COMMAND is spared, and which also comes when the thread that
    /// started it ends)
    #[arg(long)]
    die_with_parent: bool,

    /// Print the lease as one JSON document, with every member
    #[arg(long)]
    json: bool,

    /// The command, after `--`, and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let status = |failure: Failure| match args.command.is_empty() {
        true => failure,
        // The low numbers belong to the command that would have run.
        false => failure.status(FAILED),
    };
    let parent = getppid();
    let namespaces = args.on.iter().map(|on| on.netns.open());
    let namespaces: Vec<Netns> = namespaces.collect::<Result<_, _>>().map_err(status)?;
    let lease = acquire(&args, &namespaces).map_err(status)?;
    let names = names(&args, &namespaces, &lease);
    if args.command.is_empty() {
        return hold(&args, &lease, &names, parent);
    }
    // Standard output is the command's.
    stdio::say(&report(&args, &lease, &names)?);
    Err(become_command(&args, lease, &names, parent))
}

fn acquire(args: &Args, namespaces: &[Netns]) -> Result<Lease, Failure> {
    let choices = [
        (&args.tcp, &[Protocol::Tcp][..]),
        (&args.udp, &[Protocol::Udp]),
        (&args.sctp, &[Protocol::Sctp]),
        (&args.tcp_udp, &[Protocol::Tcp, Protocol::Udp]),
    ];
    let mut given =
        (choices.into_iter()).filter_map(|(choice, protocols)| Some((choice.as_ref()?, protocols)));
    let (choice, protocols) = given.next().expect("clap wants one of them");

    let executor = Executor::new()?;
    let mut request = Allocator::new(&executor)
        .request(protocols[0])
        .protocols(protocols.iter().copied())
        .block(args.block)
        .free_bind(args.free_bind)
        .accept_only(args.accept_only)
        .packet_info(args.packet_info)
        .gate(match args.command.is_empty() {
            // Clients would wait for an answer for ever.
            true => Gate::Drop {
                otherwise: Fallback::Refuse,
            },
            // The command is about to serve them.
            false => Gate::Queue,
        })
        .ports(match choice {
            Choice::Exact(port) => Ports::Exact(*port),
            Choice::Range(range) => Ports::Range(range.clone()),
            Choice::Dynamic => Ports::Dynamic { of: &namespaces[0] },
        });
    for (on, netns) in args.on.iter().zip(namespaces) {
        if on.addrs.is_empty() {
            request = request.on_every_family(netns);
        }
        for AddrArg { addr, device } in &on.addrs {
            request = match device {
                Some(device) => request.on_device(netns, device, [*addr]),
                None => request.on(netns, [*addr]),
            };
        }
    }
    let waiting = Waiting::new(args.retry_for);
    if let Some(time) = args.retry_for {
        let said = waiting.clone();
        request = request.on_wait(move |error| said.say(error));
        request = match choice {
            Choice::Exact(_) => request.retry_for(time),
            Choice::Range(_) | Choice::Dynamic => match Instant::now().checked_add(time) {
                Some(end) => request.budget(Budget::Deadline(end)),
                None => request,
            },
        };
    }
    let outcome = request.acquire();
    waiting.end();
    // Its workers still have descriptors to open and to close, and this process is about
    // to become another program: dup2(2) is EBUSY on a number that is just being given out.
    executor.shutdown(None)?;
    outcome.map_err(|error| {
        let failure = Failure::new(error.to_string());
        match error.is_in_use() || error.kind() == ErrorKind::Exhausted {
            true => failure.status(UNAVAILABLE),
            false => failure,
        }
    })
}

/// Says that the port is waited for, when it has been for a second: on a terminal
/// as long as that lasts, and elsewhere once.
#[derive(Clone)]
struct Waiting {
    started: Instant,
    bar: ProgressBar,
    is_said: Arc<AtomicBool>,
}

impl Waiting {
    fn new(time: Option<Duration>) -> Waiting {
        let bar = match time {
            Some(_) if io::stderr().is_terminal() => ProgressBar::new_spinner(),
            _ => ProgressBar::hidden(),
        };
        Waiting {
            started: Instant::now(),
            bar,
            is_said: Arc::default(),
        }
    }

    fn say(&self, error: &netns_exec::ports::Error) {
        let elapsed = self.started.elapsed().as_secs();
        if elapsed < 1 {
            return;
        }
        let text = format!("waiting: {error}").replace('\n', "\\n");
        let is_first = !self.is_said.swap(true, Ordering::Relaxed);
        if self.bar.is_hidden() {
            if is_first {
                stdio::say(&format!("netns-exec: {text}\n"));
            }
            return;
        }
        if is_first {
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
        self.bar.set_message(format!("{elapsed} s, {text}"));
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Keeps the port until a signal comes, or the end of the parent.
fn hold(args: &Args, lease: &Lease, names: &[String], parent: Pid) -> Result<ExitCode, Failure> {
    let failed = |errno: Errno| Failure::io("cannot wait for a signal", errno);
    let ignored = ignored_signals().map_err(|error| {
        Failure::io(
            "cannot read signal dispositions of /proc/self/status",
            error,
        )
    })?;
    let ends = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];
    // A signal that is ignored would be queued once it is blocked, and end us.
    let ends = ends.into_iter().filter(|end| !ignored.contains(*end));
    let mut awaited = SigSet::from_iter(ends);
    if args.die_with_parent {
        awaited.add(PARENT_ENDED);
    }
    // From here on a signal ends the wait below, and until here the process.
    awaited.thread_block().map_err(failed)?;
    if args.die_with_parent {
        tie_to(parent, PARENT_ENDED)?;
    }
    let report = report(args, lease, names)?;
    stdio::write_all(io::stdout(), report.as_bytes())?;
    loop {
        let signal = awaited.wait().map_err(failed)?;
        // It also comes at the end of a mere thread of the parent.
        if signal != PARENT_ENDED || getppid() != parent {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// What the kernel sends a lease without a COMMAND when its parent ends. Others
/// may send it as well, to no effect.
const PARENT_ENDED: Signal = Signal::SIGUSR1;

/// Has the kernel send `signal` when `parent` ends; fails when it has already.
fn tie_to(parent: Pid, signal: Signal) -> Result<(), Failure> {
    set_pdeathsig(signal)
        .map_err(|errno| Failure::io("cannot be tied to the parent process", errno))?;
    match getppid() == parent {
        true => Ok(()),
        false => Err(Failure::new("the parent process has ended")),
    }
}

/// The signals that this process ignores: it was started so.
fn ignored_signals() -> io::Result<SigSet> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = (status.lines())
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or(IoErrorKind::InvalidData)?;
    let is_set = |signal: &Signal| mask & (1 << (*signal as i32 - 1)) != 0;
    Ok(Signal::iterator().filter(is_set).collect())
}

#[derive(Serialize)]
struct ShownLease {
    /// All of them: "tcp", or "tcp+udp".
    protocol: String,
    /// The first one.
    port: u16,
    ports: Vec<u16>,
    members: Vec<ShownMember>,
}

#[derive(Serialize)]
struct ShownMember {
    netns: String,
    netns_id: u64,
    protocol: String,
    addr: IpAddr,
    port: u16,
    /// What clients meet.
    gate: &'static str,
}

/// What there is to say about a lease: its port, or all of it.
fn report(args: &Args, lease: &Lease, names: &[String]) -> Result<String, Failure> {
    if !args.json {
        return Ok(format!("{}\n", lease.port()));
    }
    let member = |(member, netns): (&Member, &String)| ShownMember {
        netns: netns.clone(),
        netns_id: member.endpoint().netns().as_u64(),
        protocol: member.endpoint().protocol().to_string(),
        addr: member.endpoint().addr(),
        port: member.local_addr().port(),
        gate: match member.gate() {
            GateState::Dropping => "drop",
            GateState::Refusing => "refuse",
            _ => "queue",
        },
    };
    let protocols: Vec<String> = lease.protocols().iter().map(Protocol::to_string).collect();
    let shown = ShownLease {
        protocol: protocols.join("+"),
        port: lease.port(),
        ports: lease.ports().collect(),
        members: lease.members().iter().zip(names).map(member).collect(),
    };
    match serde_json::to_string_pretty(&shown) {
        Ok(text) => Ok(text + "\n"),
        Err(error) => Err(Failure::new(format!("cannot write JSON: {error}"))),
    }
}

/// What the user called the namespace of each member.
fn names(args: &Args, namespaces: &[Netns], lease: &Lease) -> Vec<String> {
    let name = |member: &Member| {
        let endpoint = member.endpoint();
        let asked = (args.on.iter().zip(namespaces))
            .find(|(on, netns)| netns.id() == endpoint.netns() && on.names(endpoint.addr()));
        asked.map_or_else(
            || endpoint.label().to_owned(),
            |(on, _)| on.netns.to_string(),
        )
    };
    lease.members().iter().map(name).collect()
}

/// Replaces this process, and returns only when that fails. The sockets, and so
/// the port, are then the command's.
fn become_command(args: &Args, lease: Lease, names: &[String], parent: Pid) -> Failure {
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
    if args.die_with_parent
        && let Err(failure) = tie_to(parent, Signal::SIGTERM)
    {
        return failure.status(FAILED);
    }
    // The hold is in memory, and ends with it.
    let (members, _hold) = lease.split();
    // Names are separated by colons.
    let names: Vec<String> = names.iter().map(|name| name.replace(':', "-")).collect();
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
        .env("LISTEN_FDNAMES", names.join(":"))
        // The starter's own, of other sockets: a client that looks at it would take
        // ours for not meant for it.
        .env_remove("LISTEN_PIDFDID");
    let mappings = members.into_iter().zip(FIRST_FD..).map(mapping).collect();
    if let Err(error) = command.fd_mappings(mappings) {
        return Failure::new(format!("cannot hand sockets to `{program}`: {error}")).status(FAILED);
    }
    give_back_before_exec(&mut command, inherited);
    let error = command.exec();
    match error.raw_os_error() {
        // What execve(2) says about a file is not among these; and a descriptor
        // above the limit is EBADF.
        Some(libc::EMFILE | libc::ENFILE | libc::EBADF) => {
            Failure::io(format!("cannot hand sockets to `{program}`"), error)
                .hint("the limit on open files is reached, see `ulimit -n`")
                .status(FAILED)
        }
        Some(libc::EAGAIN | libc::ENOMEM) => {
            Failure::io(format!("cannot execute `{program}`"), error).status(FAILED)
        }
        _ => {
            let status = match error.kind() {
                IoErrorKind::NotFound => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            };
            Failure::io(format!("cannot execute `{program}`"), error).status(status)
        }
    }
}
