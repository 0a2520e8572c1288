//! `netns-exec audit`: is every thread where it belongs?

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use netns_exec::Netns;
use netns_exec::audit::{Namespaces, Process, Thread, Verdict, namespaces};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{self, printable};

/// Show which threads of a process are in a network namespace they do not belong to
#[derive(clap::Args)]
#[command(after_help = "\
A thread is at home where its process's main thread is. One in another
namespace is a worker of netns-exec, known by its seal; or a stray, left there
by code that entered the namespace, started something, and went back. What may
not be read, or cannot be told from outside, is unknown.

Exit status: 0 when there is no stray, 1 when there is one, 2 when there is
none but some threads are unknown.

JSON, one document (one for each line with --watch):
  {\"version\": 1, \"strays\": N, \"unknown\": N, \"processes\": [
    {\"pid\": N, \"name\": \"...\", \"home\": ID|null, \"threads\": [
      {\"tid\": N, \"name\": \"...\", \"netns_id\": ID|null, \"label\": \"...\",
       \"verdict\": \"home\"|\"worker\"|\"stray\"|\"unknown\"}]}]}
Keys may be added; version changes when one changes its meaning.

Examples:
  netns-exec audit 4711             the threads of process 4711
  netns-exec audit blue             every process with a thread in netns blue
  netns-exec audit 4711 --watch     tell when something changes, until it ends")]
pub(crate) struct Args {
    /// A process by its PID; or a network namespace by its NAME or PATH (with
    /// a slash), for all processes that have a thread in it. A name that is a
    /// number is given as a path
    #[arg(value_name = "PID|NAME")]
    what: String,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Audit again and again, and print what has changed
    #[arg(long)]
    watch: bool,

    /// Seconds between two audits
    #[arg(long, value_name = "SECONDS", default_value = "1", requires = "watch")]
    interval: f64,

    /// Show the threads that are at home, too
    #[arg(long, conflicts_with = "json")]
    all: bool,
}

/// What to audit.
enum Subject {
    Process(u32),
    /// Held, so that it is the same one at every audit.
    Netns(Netns),
}

impl Subject {
    fn find(what: &str) -> Result<Subject, Failure> {
        if what.bytes().all(|byte| byte.is_ascii_digit()) {
            let pid = what.parse();
            return pid
                .map(Subject::Process)
                .map_err(|_| Failure::new(format!("`{what}` is not a process id")));
        }
        let netns = match what.contains('/') {
            true => Netns::from_path(what),
            false => Netns::open(what),
        };
        Ok(Subject::Netns(netns?))
    }

    /// Audits what there is; a process that was found and has ended is left out.
    fn audit(&self) -> Result<Vec<Process>, Failure> {
        match self {
            Subject::Process(pid) => Ok(vec![Process::of(*pid)?]),
            Subject::Netns(netns) => {
                let mut audits = Vec::new();
                for pid in pids_in(netns, &namespaces()?) {
                    match Process::of(pid) {
                        Err(error) if error.is_not_found() => {}
                        audit => audits.push(audit?),
                    }
                }
                Ok(audits)
            }
        }
    }
}

/// The processes with a thread in `netns`, without those that may not be
/// read: nothing tells that they have to do with it.
fn pids_in(netns: &Netns, found: &Namespaces) -> Vec<u32> {
    let mut all = found.namespaces().iter();
    let namespace = all.find(|namespace| namespace.id() == Some(netns.id()));
    let processes = namespace.map(|namespace| namespace.processes());
    (processes.into_iter().flatten())
        .map(|(pid, ..)| pid)
        .collect()
}

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    strays: usize,
    unknown: usize,
    processes: Vec<ProcessRow<'a>>,
}

#[derive(Serialize)]
struct ProcessRow<'a> {
    pid: u32,
    name: &'a str,
    home: Option<u64>,
    threads: Vec<ThreadRow<'a>>,
}

#[derive(Serialize)]
struct ThreadRow<'a> {
    tid: u32,
    name: &'a str,
    netns_id: Option<u64>,
    label: &'a str,
    verdict: String,
}

impl<'a> Report<'a> {
    fn of(audits: &'a [Process]) -> Report<'a> {
        let row = |thread: &'a Thread| ThreadRow {
            tid: thread.tid(),
            name: thread.name(),
            netns_id: thread.netns_id().map(u64::from),
            label: thread.label(),
            verdict: thread.verdict().to_string(),
        };
        let process = |audit: &'a Process| ProcessRow {
            pid: audit.pid(),
            name: audit.name(),
            home: audit.home_id().map(u64::from),
            threads: audit.threads().iter().map(row).collect(),
        };
        Report {
            version: 1,
            strays: count(audits, Verdict::Stray),
            unknown: count(audits, Verdict::Unknown),
            processes: audits.iter().map(process).collect(),
        }
    }
}

fn count(audits: &[Process], verdict: Verdict) -> usize {
    audits.iter().map(|audit| audit.with(verdict).count()).sum()
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let subject = Subject::find(&args.what)?;
    if args.watch {
        let interval = Duration::try_from_secs_f64(args.interval)
            .map_err(|_| Failure::new(format!("cannot wait {} seconds", args.interval)))?;
        return watch(&args, &subject, interval);
    }
    let audits = subject.audit()?;
    match args.json {
        true => output::json(&Report::of(&audits))?,
        false => print(&audits, args.all)?,
    }
    Ok(status(
        count(&audits, Verdict::Stray),
        count(&audits, Verdict::Unknown),
    ))
}

fn status(strays: usize, unknown: usize) -> ExitCode {
    match (strays, unknown) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(2),
        _ => ExitCode::from(1),
    }
}

fn print(audits: &[Process], all: bool) -> Result<(), Failure> {
    let mut table = output::table(["PID", "PROCESS", "TID", "THREAD", "NETNS", "ID", "VERDICT"]);
    let mut rows = 0;
    for audit in audits {
        for thread in audit.threads() {
            if !all && thread.verdict() == Verdict::Home {
                continue;
            }
            let id = thread
                .netns_id()
                .map_or("?".to_owned(), |id| id.to_string());
            table.add_row([
                audit.pid().to_string(),
                printable(audit.name()),
                thread.tid().to_string(),
                printable(thread.name()),
                printable(thread.label()),
                id,
                thread.verdict().to_string(),
            ]);
            rows += 1;
        }
    }
    if rows > 0 {
        output::line(table)?;
    }
    let threads: usize = audits.iter().map(|audit| audit.threads().len()).sum();
    let [home, worker, stray, unknown] = [
        Verdict::Home,
        Verdict::Worker,
        Verdict::Stray,
        Verdict::Unknown,
    ]
    .map(|verdict| count(audits, verdict));
    output::line(format_args!(
        "{threads} {} in {} {}: {home} at home, {worker} workers, {stray} stray, \
         {unknown} unknown",
        if threads == 1 { "thread" } else { "threads" },
        audits.len(),
        if audits.len() == 1 {
            "process"
        } else {
            "processes"
        },
    ))?;
    if unknown > 0 && count(audits, Verdict::Unknown) == threads {
        output::line("nothing may be read: run as root, or as the user of the process")?;
    }
    Ok(())
}

/// Prints what changes, until the process has ended; for a namespace, until
/// interrupted.
fn watch(args: &Args, subject: &Subject, interval: Duration) -> Result<ExitCode, Failure> {
    let mut known = Known::default();
    let (mut strays, mut unknown) = (0, 0);
    loop {
        let audits = match subject.audit() {
            Ok(audits) => audits,
            // The first audit found it: now it has ended.
            Err(_) if known.audited && has_ended(subject) => return Ok(status(strays, unknown)),
            Err(failure) => return Err(failure),
        };
        strays = strays.max(count(&audits, Verdict::Stray));
        unknown = count(&audits, Verdict::Unknown);
        let changes = known.take_in(&audits, args.all);
        if args.json {
            if !changes.is_empty() || !known.audited {
                let text = serde_json::to_string(&Report::of(&audits))
                    .map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?;
                output::line(text)?;
            }
        } else if known.audited {
            for change in changes {
                output::line(change)?;
            }
        } else {
            print(&audits, args.all)?;
        }
        known.audited = true;
        thread::sleep(interval);
    }
}

fn has_ended(subject: &Subject) -> bool {
    match subject {
        Subject::Process(pid) => {
            matches!(Process::of(*pid), Err(error) if error.is_not_found())
        }
        Subject::Netns(_) => false,
    }
}

/// Which thread was where at the last audit.
#[derive(Default)]
struct Known {
    audited: bool,
    threads: BTreeMap<u32, (Verdict, String)>,
}

impl Known {
    /// Returns what is new, in words.
    fn take_in(&mut self, audits: &[Process], all: bool) -> Vec<String> {
        let mut threads = BTreeMap::new();
        let mut changes = Vec::new();
        for audit in audits {
            for thread in audit.threads() {
                let now = (thread.verdict(), thread.label().to_owned());
                let before = self.threads.get(&thread.tid());
                let of_interest = all
                    || thread.verdict() != Verdict::Home
                    || before.is_some_and(|(verdict, _)| *verdict != Verdict::Home);
                if of_interest && before != Some(&now) {
                    changes.push(format!(
                        "{}: thread {} ({}) of process {} ({}) in {}",
                        thread.verdict(),
                        thread.tid(),
                        printable(thread.name()),
                        audit.pid(),
                        printable(audit.name()),
                        printable(thread.label())
                    ));
                }
                threads.insert(thread.tid(), now);
            }
        }
        for (tid, (verdict, label)) in &self.threads {
            if (all || *verdict != Verdict::Home) && !threads.contains_key(tid) {
                let label = printable(label);
                changes.push(format!("ended: thread {tid} ({verdict}) in {label}"));
            }
        }
        self.threads = threads;
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stray_outweighs_unknown_in_the_exit_status() {
        for (strays, unknown, expected) in [(0, 0, 0), (0, 3, 2), (1, 0, 1), (1, 3, 1)] {
            assert_eq!(status(strays, unknown), ExitCode::from(expected));
        }
    }

    #[test]
    fn only_what_changes_is_told() {
        let audits = [Process::this().expect("our own")];
        let mut known = Known::default();
        let first = known.take_in(&audits, true);
        assert_eq!(first.len(), audits[0].threads().len());
        assert!(
            first
                .iter()
                .all(|change| change.starts_with("home: thread "))
        );
        assert!(known.take_in(&audits, true).is_empty());
        let ended = known.take_in(&[], true);
        assert_eq!(ended.len(), first.len());
        assert!(
            ended
                .iter()
                .all(|change| change.starts_with("ended: thread "))
        );
        // At home is where threads are expected to come and go.
        assert!(Known::default().take_in(&audits, false).is_empty());
    }
}
