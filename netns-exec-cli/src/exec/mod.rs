//! `netns-exec exec`: a command in one namespace, or in several at once.
//!
//! In one namespace this process becomes the command. In several it supervises
//! them, by this contract:
//!
//! - **Start.** All or none: namespaces are opened and entered for a try, and
//!   files reserved, before a command starts. When one of the first (all of
//!   them, without `--jobs`) cannot be started, those that were are killed.
//! - **Sessions.** Each command leads a session of its own, without a terminal:
//!   to open /dev/tty fails at once. Its standard input is empty.
//! - **Dispositions and limits** are those that exec was started with; exec
//!   itself keeps statuses although SIGCHLD was ignored, and raises its own soft
//!   limit of open files.
//! - **Signals** that end a process by default are passed on to the process
//!   groups of all commands, as often as they come, and followed by SIGCONT. A
//!   signal that asks to end (HUP, INT, QUIT, TERM) also keeps more commands
//!   from being started. When no command is left to hear a signal, exec ends
//!   with 128+N. SIGTSTP stops the commands, then exec; SIGCONT continues them.
//! - **Lives.** When exec is killed, so are the sessions of its commands.
//! - **The end** of a command is the end of its first process, not of its output:
//!   what is in its pipes then is read, for 50 ms at most, and they are closed.
//! - **Output** comes in whole lines, each command's in order. A reader that
//!   stalls stalls the commands, and nothing else; a line is never dropped. When
//!   it has gone, the commands' pipes are closed.
//!
//! The parts, each using only those above it: [`plan`] decides what is to run,
//! [`signals`] hears, [`watchdog`] outlives exec, [`render`] makes lines, [`spool`]
//! keeps them, [`writer`] writes them, [`command`] is one that runs, [`tally`] sums
//! up, [`supervise`] is the loop.

#[expect(
    clippy::disallowed_methods,
    reason = "the main thread forks: what the child inherits is what exec was started with"
)]
mod command;
mod plan;
mod render;
mod signals;
mod spool;
mod supervise;
mod tally;
mod watchdog;
#[expect(
    clippy::disallowed_methods,
    reason = "threads that write, started by the main thread"
)]
mod writer;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::ValueHint;
use netns_exec::Netns;

use self::command::not_started;
use self::plan::{Form, Plan};
use crate::failure::{FAILED, Failure};
use crate::netns_arg::NetnsArgs;
use crate::seconds::seconds_above_zero;
use crate::sys::{Inherited, give_back_before_exec};
use crate::view::ViewArgs;

/// Run a command in one namespace, or in several at once
///
/// In one namespace, netns-exec becomes the command: same process, terminal,
/// standard input and output.
///
/// In several, or with --all or an option below, it supervises the commands. All
/// run at the same time, each with an empty standard input and in a session of
/// its own without a terminal: a command that asks a question on /dev/tty fails
/// at once. Nothing starts unless all namespaces can be entered, and all start or
/// none. A namespace that is named twice, whatever the ways, gets one command,
/// under the first of the names; with --all, the first in order.
///
/// Output comes as whole lines, with the namespace in front of each. A command
/// has ended when its first process has: a daemon that it leaves behind keeps
/// nothing open. While the reader of the output waits, the commands do, and no
/// line is lost.
///
/// HUP, INT, QUIT, TERM, USR1, USR2, ALRM and their like are passed on to all
/// commands and the processes they have started, a second time as the first;
/// Ctrl-Z stops them together with netns-exec. With no command left, a signal
/// ends it. When netns-exec is killed, the commands are.
///
/// As with `ip netns exec`, the command sees the /sys of its namespace, and what is in
/// /etc/netns/NAME (resolv.conf, hosts, ...) over /etc; unlike there, what is mounted below
/// /sys stays. --no-view leaves the mounts alone.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  netns-exec exec blue -- ip route
  netns-exec exec blue -- getent hosts db.internal
  netns-exec exec blue red -- ping -c 1 192.0.2.1
  netns-exec exec --all -- sysctl net.ipv4.ip_forward
  netns-exec exec --all --jobs 8 --timeout 10 --group -- ./probe
  netns-exec exec pid:4711 -- ss -ltn
  netns-exec exec /proc/4711/ns/net -- sh

Exit status:
  that of COMMAND, 128+N when signal N ended it; of several, the highest, or with
  --fail-fast that of the first that failed
  0    with --all, when there is no named namespace
  124  COMMAND ran into --timeout
  125  netns-exec itself failed
  126  COMMAND was found and cannot be executed
  127  COMMAND was not found
  128+N  signal N came and no command was left, or some had not been started

JSON lines, on standard output (--json):
  {\"event\": \"line\", \"netns\": \"...\", \"stream\": \"stdout\"|\"stderr\", \"line\": TEXT}
  {\"event\": \"end\", \"netns\": \"...\", \"netns_id\": N, \"status\": N, \"signal\": \"...\"|null,
   \"timed_out\": BOOL, \"seconds\": N}
  {\"event\": \"summary\", \"version\": 1, \"commands\": N, \"failed\": N, \"not_started\": N,
   \"status\": N}
TEXT is a string without the line break, or an array of bytes when it is not
UTF-8. Keys may be added; version changes when one changes its meaning.")]
pub(crate) struct Args {
    #[command(flatten)]
    netns: NetnsArgs,

    /// The command, after `--`, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND",
          value_hint = ValueHint::CommandWithArguments)]
    command: Vec<OsString>,

    #[command(flatten)]
    view: ViewArgs,

    /// Run at most N commands at a time [default: all]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,

    /// Send SIGTERM to a command that has run so long, and SIGKILL 2 seconds later
    #[arg(long, value_name = "SECONDS", value_parser = seconds_above_zero)]
    timeout: Option<Duration>,

    /// Once a command has failed, start no more and end the others as --timeout does
    #[arg(long)]
    fail_fast: bool,

    /// Keep the output of each command together, and print it when that has ended:
    /// what it wrote to standard output, then to standard error
    #[arg(long)]
    group: bool,

    /// Print output and results as JSON, one object a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Whether one namespace is treated as several are.
    fn asks_for_supervision(&self) -> bool {
        let limited = self.jobs.is_some() || self.timeout.is_some();
        limited || self.fail_fast || self.group || self.json || self.netns.all()
    }
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    run_with_statuses(args).map_err(|failure| match failure.exit_status() {
        // Of everything that is not exec's own: the low numbers are the command's.
        ..FAILED => failure.status(FAILED),
        _ => failure,
    })
}

fn run_with_statuses(args: Args) -> Result<ExitCode, Failure> {
    let inherited = Inherited::read()
        .map_err(|error| Failure::io("cannot read signal dispositions and limits", error))?;
    inherited
        .prepare_to_supervise()
        .map_err(|error| Failure::io("cannot prepare to wait for commands", error))?;
    let supervised = args.asks_for_supervision();
    let namespaces = args.netns.open()?;
    if let [only] = &namespaces[..]
        && !supervised
    {
        only.netns.check_enter()?;
        let mut command = Command::new(&args.command[0]);
        command.args(&args.command[1..]);
        return Err(become_command(command, &only.netns, args.view, inherited));
    }
    // Before a second thread exists.
    let watchdog = watchdog::Watchdog::start()?;
    let plan = Plan {
        namespaces,
        command: args.command,
        jobs: args.jobs.map_or(usize::MAX, NonZeroUsize::get),
        timeout: args.timeout,
        fail_fast: args.fail_fast,
        form: Form {
            group: args.group,
            json: args.json,
        },
        inherited,
        view: args.view,
    };
    plan.check()?;
    supervise::run(&plan, watchdog)
}

/// Replaces this process, and returns only when that fails. Between the
/// terminal and the command there is then no process that could get signals, job
/// control or the exit status wrong.
pub(crate) fn become_command(
    mut command: Command,
    ns: &Netns,
    view: ViewArgs,
    inherited: Inherited,
) -> Failure {
    if let Err(failure) = view.prepare(&mut command, ns) {
        return failure;
    }
    give_back_before_exec(&mut command, inherited);
    let error = command.exec();
    (view.explain(ns)).unwrap_or_else(|| not_started(command.get_program(), ns, error))
}
