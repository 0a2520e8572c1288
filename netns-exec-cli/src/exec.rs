//! `netns-exec exec`: a command in one or several namespaces.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitCode, ExitStatus, Stdio};

use netns_exec::{CommandExt, Netns};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::failure::{FAILED, Failure, NOT_EXECUTABLE, NOT_FOUND};
use crate::netns_arg::NetnsArgs;

/// Run a command in one namespace, or in several at once
///
/// In one namespace, netns-exec becomes the command: same process, terminal,
/// standard input and output.
///
/// In several, the command runs in all of them at the same time, each with an
/// empty standard input and in a process group of its own. Every line of output
/// comes with the namespace in front, whole lines only, and SIGINT, SIGTERM,
/// SIGHUP and SIGQUIT are passed on to all. A namespace that is named twice,
/// whatever the ways, gets one command. Nothing starts unless all namespaces
/// can be entered.
///
/// Unlike `ip netns exec`, this leaves the mounts alone: the command sees the
/// /etc/resolv.conf and /sys/class/net of the system, not /etc/netns/NAME.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  netns-exec exec blue -- ip route
  netns-exec exec blue red -- ping -c 1 192.0.2.1
  netns-exec exec --all -- sysctl net.ipv4.ip_forward
  netns-exec exec pid:4711 -- ss -ltn
  netns-exec exec /proc/4711/ns/net -- sh

Exit status:
  that of COMMAND, 128+N when signal N ended it; of several, the highest
  125  netns-exec itself failed
  126  COMMAND was found and cannot be executed
  127  COMMAND was not found")]
pub(crate) struct Args {
    #[command(flatten)]
    netns: NetnsArgs,

    /// The command, after `--`, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let namespaces = enterable(&args.netns).map_err(|failure| failure.status(FAILED))?;
    let mut command = Command::new(&args.command[0]);
    command.args(&args.command[1..]);
    match &namespaces[..] {
        [(_, ns)] => Err(become_command(command, ns)),
        several => run_in_all(command, several),
    }
}

/// Opens the namespaces, and makes sure of all before anything runs in one.
fn enterable(netns: &NetnsArgs) -> Result<Vec<(String, Netns)>, Failure> {
    let namespaces = netns.open()?;
    for (_, ns) in &namespaces {
        ns.check_enter()?;
    }
    Ok(namespaces)
}

/// Replaces this process, and returns only when that fails. Between the
/// terminal and the command there is then nobody who could get signals, job
/// control or the exit status wrong.
fn become_command(mut command: Command, ns: &Netns) -> Failure {
    let error = command.in_netns(ns).exec();
    let status = match error.kind() {
        ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    let program = command.get_program().display();
    Failure::io(format!("cannot execute `{program}` in netns `{ns}`"), error).status(status)
}

/// One command that was started.
struct Running<'a> {
    label: &'a str,
    child: Child,
    ended: bool,
}

impl Running<'_> {
    /// The process group that the child leads.
    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Looks whether the child has ended, and leaves it a zombie: so its number
    /// still means its process group when a signal is to be passed on.
    fn look(&mut self) {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        self.ended = !matches!(
            waitid(Id::Pid(self.group()), flags),
            Ok(WaitStatus::StillAlive)
        );
    }
}

fn run_in_all(mut command: Command, namespaces: &[(String, Netns)]) -> Result<ExitCode, Failure> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // So that Ctrl-C reaches a child once, through us, and not twice.
        .process_group(0);

    let failed =
        |what: &str, errno: Errno| Failure::io(format!("cannot {what}"), errno).status(FAILED);
    // This is the only thread that does not block every signal; the children
    // begin with none blocked.
    let news = SigSet::from_iter([
        Signal::SIGCHLD,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
    ]);
    news.thread_block()
        .map_err(|errno| failed("block signals", errno))?;
    let signals = SignalFd::with_flags(&news, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|errno| failed("watch signals", errno))?;

    let mut highest = 0;
    let mut running = Vec::new();
    let mut streams = Vec::new();
    for (label, ns) in namespaces {
        match command.spawn_in(ns) {
            Ok(mut child) => {
                streams.extend(
                    child
                        .stdout
                        .take()
                        .map(|pipe| Stream::new(label, Pipe::Out(pipe))),
                );
                streams.extend(
                    child
                        .stderr
                        .take()
                        .map(|pipe| Stream::new(label, Pipe::Err(pipe))),
                );
                running.push(Running {
                    label,
                    child,
                    ended: false,
                });
            }
            Err(error) => {
                let status = match error.raw_os_error() {
                    _ if error.is_not_found() => NOT_FOUND,
                    // Of fork(2) and of the pipes; execve(2) has other words.
                    Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => FAILED,
                    _ => NOT_EXECUTABLE,
                };
                Failure::from(error).report();
                highest = highest.max(status);
            }
        }
    }

    let mut broken = None;
    while !streams.is_empty() || running.iter().any(|running| !running.ended) {
        // Whoever started us may have SIGCHLD ignored, and then it never comes.
        let patience = match streams.is_empty() {
            true => PollTimeout::from(500_u16),
            false => PollTimeout::NONE,
        };
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            streams
                .iter()
                .map(|stream| PollFd::new(stream.pipe.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut fds, patience) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed("wait for output", errno)),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let (news_ready, streams_ready) = (ready[0], &ready[1..]);

        let mut at = 0;
        streams.retain_mut(|stream| {
            at += 1;
            !streams_ready[at - 1]
                || stream.pass_on().unwrap_or_else(|error| {
                    // Closing our end is how the command learns of it.
                    broken = Some(error);
                    false
                })
        });
        while news_ready && let Ok(Some(info)) = signals.read_signal() {
            match Signal::try_from(info.ssi_signo.cast_signed()) {
                Ok(Signal::SIGCHLD) | Err(_) => {}
                // What cannot be signalled has ended.
                Ok(signal) => running.iter().for_each(|running| {
                    let _ = killpg(running.group(), signal);
                }),
            }
        }
        if news_ready || streams.is_empty() {
            running.iter_mut().for_each(Running::look);
        }
    }

    let program = command.get_program().display();
    for Running {
        label, mut child, ..
    } in running
    {
        let status = child.wait().map_err(|error| {
            let attempt = format!("cannot wait for `{program}` in netns `{label}`");
            Failure::io(attempt, error).status(FAILED)
        })?;
        let (code, how) = outcome(status);
        // When our reader has gone, so have the readers of the commands.
        let expected = broken.is_some() && status.signal() == Some(libc::SIGPIPE);
        if code != 0 && !expected {
            Failure::new(format!("`{program}` {how} in netns `{label}`")).report();
        }
        highest = highest.max(code);
    }
    match broken {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::from(error).status(FAILED))
        }
        _ => Ok(ExitCode::from(highest)),
    }
}

/// What a shell makes of an exit status, and what to call it.
fn outcome(status: ExitStatus) -> (u8, String) {
    match (status.code(), status.signal()) {
        // The kernel keeps eight bits of exit(2), and signals end at 64.
        (Some(code), _) => (code.to_le_bytes()[0], format!("ended with status {code}")),
        (_, signal) => {
            let signal = signal.unwrap_or_default();
            let name = Signal::try_from(signal).map_or("a signal", Signal::as_str);
            (
                128 + signal.to_le_bytes()[0],
                format!("was ended by {name}"),
            )
        }
    }
}

/// A line that is longer is shown in pieces, for memory to stay bounded.
const LONGEST_LINE: usize = 1 << 20;

enum Pipe {
    Out(ChildStdout),
    Err(ChildStderr),
}

impl Pipe {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Pipe::Out(pipe) => pipe.as_fd(),
            Pipe::Err(pipe) => pipe.as_fd(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Pipe::Out(pipe) => pipe.read(buffer),
            Pipe::Err(pipe) => pipe.read(buffer),
        }
    }

    /// Writes to our own stream of the same kind.
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Pipe::Out(_) => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
            Pipe::Err(_) => io::stderr().lock().write_all(bytes),
        }
    }
}

/// What one command writes, on its way to our own output.
struct Stream {
    pipe: Pipe,
    lines: Lines,
}

impl Stream {
    fn new(label: &str, pipe: Pipe) -> Self {
        Stream {
            pipe,
            lines: Lines::new(label),
        }
    }

    /// Reads once and writes the lines that are whole; `false` at the end.
    fn pass_on(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 * 1024];
        let text = match self.pipe.read(&mut buffer) {
            Ok(0) => {
                self.pipe.write(&self.lines.finish())?;
                return Ok(false);
            }
            Ok(count) => self.lines.push(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        };
        self.pipe.write(&text)?;
        Ok(true)
    }
}

/// Puts a prefix before every line of a stream of bytes, of any kind.
struct Lines {
    prefix: Vec<u8>,
    /// What came since the last line break.
    partial: Vec<u8>,
}

impl Lines {
    fn new(label: &str) -> Self {
        Lines {
            prefix: format!("{label}: ").into_bytes(),
            partial: Vec::new(),
        }
    }

    /// Takes more of the stream, and returns the lines that are whole now.
    fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut whole = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= LONGEST_LINE {
                whole.append(&mut self.finish());
            }
        }
        whole
    }

    /// Returns what is left, as a line: the next one is somebody else's.
    fn finish(&mut self) -> Vec<u8> {
        if self.partial.is_empty() {
            return Vec::new();
        }
        let mut line = self.prefix.clone();
        line.append(&mut self.partial);
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_prefixed_whole_however_they_are_cut() {
        let text = b"one\n\n\xff\0two\nthree";
        for cut in 0..=text.len() {
            let mut lines = Lines::new("blue");
            let mut shown = lines.push(&text[..cut]);
            shown.extend(lines.push(&text[cut..]));
            assert_eq!(shown, b"blue: one\nblue: \nblue: \xff\0two\n");
            assert_eq!(lines.finish(), b"blue: three\n");
            assert!(lines.finish().is_empty());
        }
    }

    #[test]
    fn endless_line_is_shown_in_pieces() {
        let mut lines = Lines::new("blue");
        let mut shown = 0;
        for _ in 0..64 {
            let text = lines.push(&[b'x'; LONGEST_LINE / 16]);
            assert!(lines.partial.len() < LONGEST_LINE);
            shown += text.iter().filter(|&&byte| byte == b'x').count();
        }
        assert_eq!(shown, 4 * LONGEST_LINE);
    }

    #[test]
    fn outcome_is_what_a_shell_says() {
        assert_eq!(outcome(ExitStatus::from_raw(3 << 8)).0, 3);
        let (code, how) = outcome(ExitStatus::from_raw(15));
        assert_eq!((code, how.as_str()), (143, "was ended by SIGTERM"));
    }
}
