//! One command that was started: its process and its output.

use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use netns_exec::Netns;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde::Serialize;

use super::plan::Plan;
use super::render::{Lines, Stream, json_line};
use crate::failure::{FAILED, Failure, NOT_EXECUTABLE, NOT_FOUND};
use crate::netns_arg::Labelled;
use crate::stdio;
use crate::sys::supervise_before_exec;

/// As timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// From SIGTERM to SIGKILL, when it is exec that ends a command.
const GRACE: Duration = Duration::from_secs(2);
/// From the end of a command to that of its output, when a process that it left
/// behind keeps the pipes.
const LINGER: Duration = Duration::from_millis(50);

/// A command that was started.
pub(super) struct Running<'a> {
    pub(super) of: &'a Labelled,
    child: Child,
    pipes: [Option<Pipe>; 2],
    started: Instant,
    /// When something is to be done about it: by then it has to end, or its output.
    deadline: Option<Instant>,
    progress: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Running,
    /// SIGTERM was sent.
    Ending(Why),
    /// SIGKILL was sent.
    Killed(Why),
    Ended(Outcome),
}

/// Why exec ends a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    TimedOut,
    /// Another one has failed, or could not be started.
    Unwanted,
}

/// What came of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// What a shell makes of it; `None` of a command that exec ended because of
    /// another.
    pub(super) status: Option<u8>,
    raw: i32,
    timed_out: bool,
    lasted: Duration,
}

impl<'a> Running<'a> {
    /// Starts it.
    pub(super) fn start(plan: &Plan, of: &'a Labelled) -> Result<Running<'a>, Failure> {
        let program = &plan.command[0];
        let mut command = Command::new(program);
        command
            .args(&plan.command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        plan.view.prepare(&mut command, &of.netns)?;
        supervise_before_exec(&mut command, plan.inherited);
        let mut child = (command.spawn()).map_err(|error| {
            (plan.view.explain(&of.netns)).unwrap_or_else(|| not_started(program, &of.netns, error))
        })?;
        let started = Instant::now();
        let sources = [
            child.stdout.take().map(Source::Stdout),
            child.stderr.take().map(Source::Stderr),
        ];
        let mut pipes = [None, None];
        for (source, stream) in sources.into_iter().flatten().zip(Stream::BOTH) {
            stdio::set_non_blocking(source.as_fd())
                .map_err(|errno| Failure::io("cannot read from a command", errno).status(FAILED))?;
            pipes[stream.index()] = Some(Pipe {
                source,
                lines: Lines::new(&of.label, stream, plan.form.json),
                left: None,
            });
        }
        Ok(Running {
            of,
            child,
            pipes,
            started,
            deadline: plan.timeout.map(|timeout| started + timeout),
            progress: Progress::Running,
        })
    }

    /// The process group and session that the child leads.
    pub(super) fn session(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Puts the deadline off by the time that exec was stopped.
    pub(super) fn put_off(&mut self, time: Duration) {
        self.deadline = self.deadline.map(|deadline| deadline + time);
    }

    /// What came of it, once it has ended.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match self.progress {
            Progress::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Whether it has ended and all of its output was read.
    pub(super) fn is_over(&self) -> bool {
        self.outcome().is_some() && self.pipes.iter().all(Option::is_none)
    }

    /// Sends a signal to it and to all it has started, and wakes what is stopped,
    /// for that would hear of no signal.
    pub(super) fn signal(&self, signal: Signal) {
        if self.outcome().is_some() {
            return;
        }
        // What cannot be signalled has ended.
        let _ = killpg(self.session(), signal);
        if !matches!(signal, Signal::SIGCONT | Signal::SIGSTOP) {
            let _ = killpg(self.session(), Signal::SIGCONT);
        }
    }

    /// Begins to end it.
    pub(super) fn end(&mut self, why: Why) {
        if self.progress == Progress::Running {
            self.signal(Signal::SIGTERM);
            self.progress = Progress::Ending(why);
            self.deadline = Some(Instant::now() + GRACE);
        }
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self, why: Why) {
        self.signal(Signal::SIGKILL);
        self.progress = Progress::Killed(why);
        self.deadline = None;
    }

    /// Does what is due.
    pub(super) fn pass_deadline(&mut self) {
        match self.progress {
            Progress::Running => self.end(Why::TimedOut),
            Progress::Ending(why) => self.kill(why),
            Progress::Killed(_) => self.deadline = None,
            // What is in the pipes by now is read; more will not be.
            Progress::Ended(_) => self.deadline = None,
        }
    }

    /// Tells whether the child has ended, and leaves it a zombie: so long its
    /// number is its own.
    pub(super) fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(self.session()), flags);
        self.outcome().is_none() && !matches!(status, Ok(WaitStatus::StillAlive))
    }

    /// Takes the status of a child that has ended.
    pub(super) fn reap(&mut self) -> Result<Outcome, Failure> {
        let status = self.child.wait().map_err(|error| {
            let attempt = format!("cannot wait for the command in netns `{}`", self.of.netns);
            Failure::io(attempt, error)
        })?;
        let why = match self.progress {
            Progress::Ending(why) | Progress::Killed(why) => Some(why),
            _ => None,
        };
        let outcome = Outcome::of(status, why, self.started.elapsed());
        self.progress = Progress::Ended(outcome);
        self.deadline = Some(Instant::now() + LINGER);
        Ok(outcome)
    }

    /// The pipe of a stream, unless it has come to its end.
    pub(super) fn pipe(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        let pipe = self.pipes[stream.index()].as_ref()?;
        Some(pipe.source.as_fd())
    }

    /// Reads once, and returns the lines that are whole now. At the end, also
    /// when the command has ended and there is nothing left, the pipe is closed.
    pub(super) fn read(&mut self, stream: Stream) -> Vec<u8> {
        let lingered = self.outcome().is_some() && self.deadline.is_none();
        let Some(pipe) = &mut self.pipes[stream.index()] else {
            return Vec::new();
        };
        let mut buffer = [0; 64 * 1024];
        let mut lines = match pipe.source.read(&mut buffer) {
            Ok(count @ 1..) => {
                let lines = pipe.lines.push(&buffer[..count]);
                match lingered && pipe.left() <= count {
                    true => lines,
                    false => {
                        pipe.left = pipe.left.map(|left| left - count);
                        return lines;
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Vec::new(),
            Err(error) if error.kind() == ErrorKind::WouldBlock && !lingered => return Vec::new(),
            Ok(0) | Err(_) => Vec::new(),
        };
        lines.append(&mut pipe.lines.finish());
        self.pipes[stream.index()] = None;
        lines
    }

    /// Closes a pipe, which is how a command learns that its reader has gone.
    pub(super) fn close(&mut self, stream: Stream) {
        self.pipes[stream.index()] = None;
    }

    /// Whether what is left in the pipes is read without waiting for more.
    pub(super) fn has_lingered(&self) -> bool {
        self.outcome().is_some() && self.deadline.is_none()
    }
}

impl Outcome {
    fn of(status: ExitStatus, why: Option<Why>, lasted: Duration) -> Outcome {
        let code = match (status.code(), status.signal()) {
            // The kernel keeps eight bits of exit(2), and signals end at 64.
            (Some(code), _) => code.to_le_bytes()[0],
            (_, signal) => 128 + signal.unwrap_or_default().to_le_bytes()[0],
        };
        Outcome {
            status: match why {
                None => Some(code),
                Some(Why::TimedOut) => Some(TIMED_OUT),
                Some(Why::Unwanted) => None,
            },
            raw: status.into_raw(),
            timed_out: why == Some(Why::TimedOut),
            lasted,
        }
    }

    fn exit_status(&self) -> ExitStatus {
        ExitStatus::from_raw(self.raw)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.status.is_none_or(|status| status != 0)
    }

    /// Whether it met the end of its reader, and of nothing else.
    pub(super) fn is_broken_pipe(&self) -> bool {
        self.exit_status().signal() == Some(libc::SIGPIPE)
    }

    /// In words, after the command's name.
    pub(super) fn describe(&self) -> String {
        if self.timed_out {
            return format!("timed out after {:.1} s", self.lasted.as_secs_f64());
        }
        let status = self.exit_status();
        match (status.code(), signal_name(status)) {
            (Some(code), _) => format!("ended with status {code}"),
            (_, Some(name)) => format!("was ended by {name}"),
            _ => "was ended by a signal".to_owned(),
        }
    }

    /// As an event.
    pub(super) fn json(&self, of: &Labelled) -> Vec<u8> {
        json_line(&EndEvent {
            event: "end",
            netns: &of.label.to_string_lossy(),
            netns_id: of.netns.id().as_u64(),
            status: self
                .exit_status()
                .code()
                .unwrap_or_else(|| 128 + self.exit_status().signal().unwrap_or_default()),
            signal: signal_name(self.exit_status()),
            timed_out: self.timed_out,
            seconds: self.lasted.as_secs_f64(),
        })
    }
}

fn signal_name(status: ExitStatus) -> Option<&'static str> {
    let signal = Signal::try_from(status.signal()?).ok()?;
    Some(signal.as_str())
}

#[derive(Serialize)]
struct EndEvent<'a> {
    event: &'static str,
    netns: &'a str,
    netns_id: u64,
    status: i32,
    signal: Option<&'static str>,
    timed_out: bool,
    seconds: f64,
}

/// The reading end of a command's output.
struct Pipe {
    source: Source,
    lines: Lines,
    /// How much more is read when the command has ended and another process goes
    /// on writing: no more than was in the pipe.
    left: Option<usize>,
}

impl Pipe {
    fn left(&mut self) -> usize {
        let source = self.source.as_fd();
        *(self.left).get_or_insert_with(|| match fcntl(source, FcntlArg::F_GETPIPE_SZ) {
            Ok(size) => size.unsigned_abs() as usize,
            Err(_) => 0,
        })
    }
}

enum Source {
    Stdout(ChildStdout),
    Stderr(ChildStderr),
}

impl Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Source::Stdout(pipe) => pipe.as_fd(),
            Source::Stderr(pipe) => pipe.as_fd(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::Stdout(pipe) => pipe.read(buffer),
            Source::Stderr(pipe) => pipe.read(buffer),
        }
    }
}

/// What a start that failed is called, with the status for it.
pub(super) fn not_started(program: &OsStr, ns: &Netns, error: io::Error) -> Failure {
    let status = match error.kind() {
        ErrorKind::NotFound => NOT_FOUND,
        _ => match error.raw_os_error() {
            // Of fork(2) and of the pipes; execve(2) has other words.
            Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => FAILED,
            _ => NOT_EXECUTABLE,
        },
    };
    let program = program.display();
    Failure::io(format!("cannot execute `{program}` in netns `{ns}`"), error).status(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(raw: i32, why: Option<Why>) -> Outcome {
        Outcome::of(ExitStatus::from_raw(raw), why, Duration::from_secs(3))
    }

    #[test]
    fn outcome_is_what_a_shell_says() {
        assert_eq!(outcome(3 << 8, None).status, Some(3));
        let terminated = outcome(15, None);
        assert_eq!(terminated.status, Some(143));
        assert_eq!(terminated.describe(), "was ended by SIGTERM");
    }

    #[test]
    fn time_out_is_told_from_the_signal_that_ends_it() {
        let ended = outcome(15, Some(Why::TimedOut));
        assert_eq!(ended.status, Some(124));
        assert_eq!(ended.describe(), "timed out after 3.0 s");
        assert_eq!(outcome(9, Some(Why::Unwanted)).status, None);
    }
}
