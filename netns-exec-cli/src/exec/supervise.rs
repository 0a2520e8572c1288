//! The loop that starts commands, hears signals, takes output, and never waits for
//! anything but all of these together.

use std::collections::VecDeque;
use std::io::{self, Cursor, ErrorKind, Read};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::command::{Running, Why};
use super::plan::Plan;
use super::render::Stream;
use super::signals::{News, Signals, stop_here};
use super::spool::Spool;
use super::tally::Tally;
use super::watchdog::Watchdog;
use super::writer::Outputs;
use crate::failure::{FAILED, Failure};

/// Runs the commands of a plan to their end.
pub(super) fn run(plan: &Plan, watchdog: Watchdog) -> Result<ExitCode, Failure> {
    let signals = Signals::hear().map_err(|errno| Failure::io("cannot hear signals", errno))?;
    let mut supervisor = Supervisor {
        plan,
        watchdog,
        signals,
        // After signals are blocked, so that its threads block them too.
        outputs: Outputs::start()?,
        next: 0,
        closed: None,
        running: Vec::new(),
        groups: VecDeque::new(),
        tally: Tally::new(plan),
    };
    while !supervisor.is_done() {
        if let Some(signal) = supervisor.turn()? {
            return Ok(ExitCode::from(status_of(signal)));
        }
    }
    supervisor.finish()
}

/// What a shell makes of a process that the signal ended.
fn status_of(signal: Signal) -> u8 {
    128 + (signal as i32).to_le_bytes()[0]
}

/// As many pieces of output may wait to be printed before no more commands are
/// started.
const MOST_GROUPS: usize = 64;

struct Supervisor<'a> {
    plan: &'a Plan,
    watchdog: Watchdog,
    signals: Signals,
    outputs: Outputs,
    /// The first namespace whose command was not started.
    next: usize,
    /// Why no more commands are started.
    closed: Option<Closed>,
    /// Those that have not ended, or not been read to the end.
    running: Vec<Supervised<'a>>,
    /// What is to be printed of commands that are over, in this order.
    groups: VecDeque<(Stream, Box<dyn Read>)>,
    tally: Tally<'a>,
}

/// Why no more commands are started.
#[derive(Clone, Copy)]
enum Closed {
    Asked(Signal),
    Failed,
}

struct Supervised<'a> {
    command: Running<'a>,
    /// Used with `--group` only.
    spools: [Spool; 2],
}

impl<'a> Supervisor<'a> {
    /// Whether all that could run has ended and all that was written is out.
    fn is_done(&self) -> bool {
        let started = self.closed.is_some() || self.next == self.plan.namespaces.len();
        started && self.running.is_empty() && self.groups.is_empty() && self.outputs.is_idle()
    }

    /// Whether a signal would reach a command.
    fn has_live_command(&self) -> bool {
        (self.running.iter()).any(|each| each.command.outcome().is_none())
    }

    /// Whether there is a command to start, and a place for it. One that has ended
    /// keeps its place, and its pipes, until it was read to the end; and a reader that
    /// stalls must not make what is kept for it grow.
    fn may_start(&self) -> bool {
        self.closed.is_none()
            && self.next < self.plan.namespaces.len()
            && self.running.len() < self.plan.jobs
            && (self.next < self.plan.first_wave() || self.groups.len() < MOST_GROUPS)
    }

    /// Starts one command, waits for news, and deals with all there are. Returns
    /// the signal that ends exec because no command is left to hear it.
    fn turn(&mut self) -> Result<Option<Signal>, Failure> {
        if self.may_start() {
            self.start_next();
        }
        let ready = self.wait()?;
        if let Some(signal) = self.hear()? {
            return Ok(Some(signal));
        }
        self.pass_deadlines();
        for (index, stream) in ready {
            self.read(index, stream)?;
        }
        self.close_broken();
        self.retire()?;
        self.print_groups()?;
        Ok(None)
    }

    fn start_next(&mut self) {
        let plan = self.plan;
        let of = &plan.namespaces[self.next];
        let in_first_wave = self.next < plan.first_wave();
        self.next += 1;
        match Running::start(plan, of) {
            Ok(command) => {
                self.watchdog.begin(command.session());
                self.running.push(Supervised {
                    command,
                    spools: Default::default(),
                });
            }
            Err(failure) => {
                self.tell(&failure.to_string());
                self.tally.not_startable(of, failure.exit_status());
                if plan.fail_fast && !in_first_wave {
                    self.close_for_failure();
                }
            }
        }
        // All of the first wave start or none; where none could, the others are
        // tried, to say of each why not.
        if in_first_wave && self.tally.has_failed_start() && !self.running.is_empty() {
            self.closed = Some(Closed::Failed);
            for each in &mut self.running {
                each.command.kill(Why::Unwanted);
            }
        }
    }

    fn close_for_failure(&mut self) {
        self.closed.get_or_insert(Closed::Failed);
        for each in &mut self.running {
            each.command.end(Why::Unwanted);
        }
    }

    /// Waits for a signal, for output where there is room for it, for room, and for
    /// the next deadline. Returns the pipes to be read.
    fn wait(&self) -> Result<Vec<(usize, Stream)>, Failure> {
        let mut ready = Vec::new();
        let mut polled = Vec::new();
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![
            readable(self.signals.as_fd()),
            readable(self.outputs.progress()),
        ];
        for (index, Supervised { command, .. }) in self.running.iter().enumerate() {
            for stream in Stream::BOTH {
                let Some(pipe) = command.pipe(stream) else {
                    continue;
                };
                if !self.has_room(stream) {
                    continue;
                }
                // Nothing more is waited for: what is there, or the end, is read.
                if command.has_lingered() {
                    ready.push((index, stream));
                } else {
                    polled.push((index, stream));
                    fds.push(readable(pipe));
                }
            }
        }
        let patience = match self.may_start() || !ready.is_empty() {
            true => PollTimeout::ZERO,
            false => self.patience(),
        };
        match poll(&mut fds, patience) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::io("cannot wait for output", errno)),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        if is_ready(&fds[1]) {
            self.outputs.take_progress();
        }
        ready.extend(
            (polled.into_iter().zip(&fds[2..]))
                .filter_map(|(pipe, fd)| is_ready(fd).then_some(pipe)),
        );
        Ok(ready)
    }

    fn patience(&self) -> PollTimeout {
        let deadlines = (self.running.iter()).filter_map(|each| each.command.deadline());
        let Some(next) = deadlines.min() else {
            return PollTimeout::NONE;
        };
        // Not before it: poll(2) counts in milliseconds.
        let time = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)
    }

    /// The stream of our own that a command's goes to.
    fn destination(&self, stream: Stream) -> Stream {
        match self.plan.form.json {
            true => Stream::Stdout,
            false => stream,
        }
    }

    fn has_room(&self, stream: Stream) -> bool {
        self.plan.form.group || self.outputs.has_room(self.destination(stream))
    }

    /// Deals with the signals that came.
    fn hear(&mut self) -> Result<Option<Signal>, Failure> {
        while let Some(news) = self.signals.next() {
            match news {
                News::Child => self.reap()?,
                News::Continue => self.signal(Signal::SIGCONT),
                News::Stop => self.stop(),
                News::End(signal) | News::Other(signal) => {
                    if let News::End(_) = news {
                        self.closed.get_or_insert(Closed::Asked(signal));
                    }
                    // One that has ended may not have been reaped yet.
                    self.reap()?;
                    if !self.has_live_command() && !self.may_start() {
                        return Ok(Some(signal));
                    }
                    self.signal(signal);
                }
            }
        }
        Ok(None)
    }

    fn signal(&self, signal: Signal) {
        for each in &self.running {
            each.command.signal(signal);
        }
    }

    /// The commands have no terminal that could stop them.
    fn stop(&mut self) {
        self.signal(Signal::SIGSTOP);
        let stopped = Instant::now();
        // Refused by a filter, for example: then all go on.
        let _ = stop_here();
        for each in &mut self.running {
            each.command.put_off(stopped.elapsed());
        }
        self.signal(Signal::SIGCONT);
    }

    fn reap(&mut self) -> Result<(), Failure> {
        let mut failed = false;
        for Supervised { command, .. } in &mut self.running {
            if !command.has_ended() {
                continue;
            }
            self.watchdog.end(command.session());
            let outcome = command.reap()?;
            failed |= outcome.has_failed() && outcome.status.is_some();
        }
        if failed && self.plan.fail_fast {
            self.close_for_failure();
        }
        Ok(())
    }

    fn pass_deadlines(&mut self) {
        let now = Instant::now();
        for Supervised { command, .. } in &mut self.running {
            if command.deadline().is_some_and(|deadline| deadline <= now) {
                command.pass_deadline();
            }
        }
    }

    fn read(&mut self, index: usize, stream: Stream) -> Result<(), Failure> {
        let destination = self.destination(stream);
        let Supervised { command, spools } = &mut self.running[index];
        let lines = command.read(stream);
        if lines.is_empty() {
            return Ok(());
        }
        if self.plan.form.group {
            let kept = spools[destination.index()].push(&lines);
            return kept.map_err(|error| Failure::io("cannot keep output", error));
        }
        self.tally.output();
        self.outputs.push(destination, lines);
        Ok(())
    }

    /// Lets commands know that their reader has gone.
    fn close_broken(&mut self) {
        for stream in Stream::BOTH {
            if self.outputs.is_broken(self.destination(stream)) {
                for each in &mut self.running {
                    each.command.close(stream);
                }
            }
        }
    }

    /// Parts with commands that have ended and were read to the end.
    fn retire(&mut self) -> Result<(), Failure> {
        while let Some(index) = (self.running.iter()).position(|each| each.command.is_over()) {
            let Supervised { command, spools } = self.running.remove(index);
            let Some(outcome) = command.outcome() else {
                continue;
            };
            let is_broken = |stream| self.outputs.is_broken(stream);
            let lost_reader = Stream::BOTH.into_iter().any(is_broken);
            let expected = lost_reader && outcome.is_broken_pipe();
            if self.plan.form.group {
                self.tally.output();
                for (spool, stream) in spools.into_iter().zip(Stream::BOTH) {
                    let reader = (spool.into_reader())
                        .map_err(|error| Failure::io("cannot read output that was kept", error))?;
                    self.groups.push_back((stream, Box::new(reader)));
                }
            }
            if self.plan.form.json {
                let event = Cursor::new(outcome.json(command.of));
                self.groups.push_back((Stream::Stdout, Box::new(event)));
            }
            if let Some(text) = self.tally.ended(command.of, &outcome, expected) {
                let text = Cursor::new(format!("netns-exec: {text}\n"));
                self.groups.push_back((Stream::Stderr, Box::new(text)));
            }
        }
        Ok(())
    }

    /// Queues what is to be printed of commands that are over, while there is room.
    fn print_groups(&mut self) -> Result<(), Failure> {
        while let Some((stream, reader)) = self.groups.front_mut() {
            if !self.outputs.has_room(*stream) {
                break;
            }
            let mut bytes = vec![0; 64 * 1024];
            match reader.read(&mut bytes) {
                Ok(0) => drop(self.groups.pop_front()),
                Ok(count) => {
                    bytes.truncate(count);
                    self.outputs.push(*stream, bytes);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(Failure::io("cannot read output that was kept", error));
                }
            }
        }
        Ok(())
    }

    /// Says something for exec itself.
    fn tell(&self, text: &str) {
        let line = format!("netns-exec: {text}\n");
        self.outputs.push(Stream::Stderr, line.into_bytes());
    }

    /// Sums up, and waits until that is out: as patiently as for the commands'
    /// output.
    fn finish(mut self) -> Result<ExitCode, Failure> {
        let unstarted = self.plan.namespaces.len() - self.next;
        let mut status = self.tally.status();
        if let Some(Closed::Asked(signal)) = self.closed
            && unstarted > 0
        {
            status = status.max(status_of(signal));
        }
        if let Some(text) = self.tally.summary(unstarted) {
            self.tell(&text);
        }
        let error = self.outputs.take_error(Stream::Stdout);
        if self.plan.form.json && error.is_none() {
            let event = self.tally.json(unstarted, status);
            self.outputs.push(Stream::Stdout, event);
        }
        while !self.outputs.is_idle() {
            if let Some(signal) = self.turn()? {
                return Ok(ExitCode::from(status_of(signal)));
            }
        }
        match error.or_else(|| self.outputs.take_error(Stream::Stdout)) {
            Some(error) if !is_end_of_reader(&error) => Err(Failure::from(error).status(FAILED)),
            _ => Ok(ExitCode::from(status)),
        }
    }
}

fn is_end_of_reader(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}
