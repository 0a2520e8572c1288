//! `netns-exec soak`: everything at once, for as long as you like, and what came of it.
//!
//! Threads take one random [step](steps) after the other. Each checks what it can see; what
//! shows only when nothing is under way is checked at a [rest](rest), after the warm-up and
//! at the end.

mod arena;
mod dice;
mod faults;
mod held;
mod report;
mod rest;
mod steps;
mod tally;

use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::panic;
use std::process::{Command, ExitCode};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use netns_exec::{CommandExt, Executor, Netns};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::failure::Failure;
use crate::output;
use crate::seconds::seconds_above_zero;
use crate::setting::Setting;
use crate::stdio::{self, Woken};
use arena::Arena;
use dice::Dice;
use report::Report;
use rest::Figures;

/// Do everything the library offers at once, for a time, and check what it promises
///
/// Threads run, spawn, batch, scope, broadcast, await, cancel and abort jobs, pin and
/// retire workers, start threads beside the pool, take sockets from stocks, lease ports,
/// start children, delete namespaces under their workers and make them anew; jobs panic,
/// drop what panics, try to move and to leave threads; and at moments the process can open
/// no more files.
///
/// Meanwhile it is checked that every job ran once and in its namespace or came back with
/// an error that says why, that every handle came to an end, that leases are exclusive and
/// batches in order; and, when all is idle again, that nothing is left: closures,
/// threads, workers, namespaces, descriptors, memory.
///
/// The namespaces are called netns-exec-soak-PID-N while it runs. An ordinary user can run
/// it too; it then enters a user namespace of its own first.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  netns-exec soak
  netns-exec soak --minutes 10 --threads 8
  netns-exec soak --seconds 30 --seed 7 --json

The same seed has each thread take the same steps; in which order those of different
threads meet is the scheduler's choice.

JSON: one object with
  kernel, uid, user_namespace     where and as which user it ran; true: in one of its own
  seed, seconds, soakers          what was asked for, and how many threads it had
  jobs, panicked, cancelled, refused, escaped, left, futures, threads, sockets, leases,
  children, namespaces, executors, audits
                                  how often what was done
  faults, failed_over_faults      moments without descriptors, and attempts that failed then
  growth                          memory (bytes), heap (those of it that are allocated; null
                                  where libc does not tell), descriptors, threads: from the
                                  end of the warm-up to the end; null when it ended before
  violations, found               how many, and the first of them
  ok                              whether there was none

Signals: SIGINT, SIGTERM and SIGHUP end it in order, with its figures.

Exit status: 0 without a violation, 1 with one, 2 when it could not be run.")]
pub(crate) struct Args {
    /// For how many minutes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,

    /// For how many seconds, instead
    #[arg(long, value_name = "N", conflicts_with = "minutes", value_parser = seconds_above_zero)]
    seconds: Option<Duration>,

    /// What chance begins with [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// How many threads act [default: two for each CPU, at least 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,

    /// How many namespaces there are at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(2..=190))]
    namespaces: u16,

    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let setting = Setting::prepare()?;
    // Before there are threads, which are to block them as well.
    let signals = hear_signals()?;
    let seed = (args.seed).unwrap_or_else(|| RandomState::new().hash_one(std::process::id()));
    let threads = usize::from(args.threads.unwrap_or_else(default_threads));
    let time = (args.seconds).unwrap_or(Duration::from_secs(60 * args.minutes));
    if !args.json {
        output::line(format_args!("{setting}; seed {seed}"))?;
    }

    // The home thread stays, and belongs to neither side of a comparison.
    let first = Executor::new()?;
    // And so does one thread that forks children.
    let _ = Command::new("true").output_in(&Netns::home()?)?;
    first.shutdown(None)?;
    let before = Figures::settled();
    let arena = Arena::new(usize::from(args.namespaces), threads)?;
    note_panics(&arena);
    let began = Instant::now();
    let growth = soak(&arena, &signals, time, seed)?;
    let _ = panic::take_hook();
    let seconds = began.elapsed().as_secs_f64();
    if let Some(grown) = growth.and_then(Report::grown) {
        arena.tally.violation(grown);
    }
    let tally = arena.end(before);
    let report = Report {
        setting,
        seed,
        seconds,
        soakers: threads,
        done: tally.counts.read(),
        growth,
        violations: tally.violation_count.load(Ordering::Relaxed),
        found: tally.violations(),
        ok: tally.violation_count.load(Ordering::Relaxed) == 0,
    };
    match args.json {
        true => output::json(&report)?,
        false => report.show()?,
    }
    Ok(ExitCode::from(u8::from(!report.ok)))
}

/// Two for each CPU, within reason.
fn default_threads() -> u16 {
    let cpus = thread::available_parallelism().map_or(2, usize::from);
    u16::try_from(2 * cpus).unwrap_or(u16::MAX).clamp(4, 32)
}

fn hear_signals() -> Result<SignalFd, Failure> {
    let failed = |errno| Failure::io("cannot hear signals", errno);
    let ends = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    ends.thread_block().map_err(failed)?;
    SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}

/// Jobs panic without the hook, so what comes to it is a panic of the library's.
fn note_panics(arena: &Arena) {
    let tally = std::sync::Arc::clone(&arena.tally);
    panic::set_hook(Box::new(move |info| {
        tally.violation(format_args!("panic: {info}"));
    }));
}

/// Has threads act for so long, and returns what has grown meanwhile.
fn soak(
    arena: &Arena,
    signals: &SignalFd,
    time: Duration,
    seed: u64,
) -> Result<Option<Figures>, Failure> {
    let (began, warm_up) = (Instant::now(), (time / 4).min(Duration::from_secs(60)));
    let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{elapsed_precise}  {msg}");
    line.set_style(style.expect("the template is well-formed"));

    thread::scope(|scope| {
        for number in 0..arena.pulses.len() {
            let dice = Dice::new(seed.wrapping_add(number as u64));
            (thread::Builder::new().name("soaker".to_owned()))
                .spawn_scoped(scope, move || arena.act(number, dice))
                .map_err(|error| {
                    arena.ending.store(true, Ordering::SeqCst);
                    Failure::io("cannot start a thread", error).hint("ask for fewer with --threads")
                })?;
        }
        let mut warm = None;
        loop {
            let since = began.elapsed();
            if since >= time {
                break;
            }
            if warm.is_none() && since >= warm_up {
                let Some(figures) = arena.rest(None) else {
                    give_up(arena);
                };
                warm = Some(figures);
            }
            if arena.is_stuck() {
                arena.note_stuck();
                give_up(arena);
            }
            line.set_message(so_far(arena));
            let left = time.saturating_sub(since).min(Duration::from_millis(200));
            match stdio::wait_for_reader(Some(signals.as_fd()), Some(left)) {
                Ok(Woken::TimedOut) => {}
                // Asked to end, or nothing is left to report to.
                Ok(Woken::Ready | Woken::ReaderGone) | Err(_) => break,
            }
        }
        line.set_message(format!("{}; coming to rest", so_far(arena)));
        let end = arena.rest(warm);
        arena.ending.store(true, Ordering::SeqCst);
        line.finish_and_clear();
        let Some(end) = end else {
            give_up(arena);
        };
        Ok(warm.map(|warm| end.since(warm)))
    })
}

fn so_far(arena: &Arena) -> String {
    let done = arena.tally.counts.read();
    format!(
        "{} jobs, {} leases, {} namespaces, {} faults, {} violations",
        done.jobs,
        done.leases,
        done.namespaces,
        done.faults,
        arena.tally.violation_count.load(Ordering::Relaxed),
    )
}

/// Ends the process when a thread of it never will: the names go, and what was found is said.
fn give_up(arena: &Arena) -> ! {
    for place in &arena.places {
        let _ = Netns::delete(&place.name);
    }
    for violation in arena.tally.violations() {
        stdio::say(&format!("\nviolation: {violation}"));
    }
    stdio::say("\nnetns-exec: the soak has no end\n");
    std::process::exit(1);
}

impl Arena {
    /// Makes namespaces where names have none.
    fn make_places(&self) {
        for place in &self.places {
            let mut owned = place.owned.write().unwrap_or_else(PoisonError::into_inner);
            if owned.is_none() {
                let made = Netns::create_owned(&place.name);
                *owned = self.expect("create", self.faults.since(), made);
            }
        }
    }

    /// Ends the executors, deletes the names, and sees that all is as `before`.
    fn end(self, before: Option<Figures>) -> std::sync::Arc<tally::Tally> {
        let tally = std::sync::Arc::clone(&self.tally);
        let Arena {
            ordered,
            sealed,
            detecting,
            narrow,
            ports,
            rival,
            places,
            home,
            ..
        } = self;
        drop((ports, rival, home));
        for executor in [ordered, sealed, detecting, narrow] {
            if let Err(error) = executor.shutdown(Some(arena::PATIENCE)) {
                tally.violation(format_args!("shutdown failed: {error}"));
            }
        }
        let (starts, stops) = (self.worker_starts, self.worker_stops);
        let (starts, stops) = (starts.load(Ordering::SeqCst), stops.load(Ordering::SeqCst));
        // One that cannot get what it needs after its start hook has not started.
        let failed = tally.counts.failed_over_faults.load(Ordering::Relaxed);
        tally.check(stops <= starts && starts - stops <= failed, || {
            format!("{starts} workers have started, and {stops} have stopped")
        });
        for place in places {
            let owned = place
                .owned
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(Err(error)) = owned.map(netns_exec::OwnedNetns::delete) {
                tally.violation(format_args!("delete failed: {error}"));
            }
            // Whatever was found to be wrong, its name is not to be left.
            if Netns::delete(&place.name).is_ok() {
                tally.violation(format_args!("`{}` was left", place.name));
            }
        }
        if let (Some(before), Some(after)) = (before, Figures::settled_since(before)) {
            let left = after.since(before);
            tally.check(left.descriptors <= 0 && left.threads <= 0, || {
                let (descriptors, threads) = (left.descriptors, left.threads);
                format!("{descriptors} descriptors and {threads} threads are left")
            });
        }
        tally
    }
}
