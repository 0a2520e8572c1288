//! `netns-exec audit`: is every thread where it belongs?

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use netns_exec::Netns;
use netns_exec::audit::{Namespaces, Process, Unreadable, Verdict, namespaces};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{self, printable};
use crate::syntax::NetnsArg;
use crate::table::{self, Saving, Table, Texts, Tone};
use crate::unreadable::{self, LeftOut};

/// Show which threads are in a network namespace they do not belong to
///
/// Without PID or NAME, all processes of the host are audited, and those shown
/// that have a stray.
#[derive(clap::Args)]
#[command(after_help = "\
A thread is at home where its process's main thread is. One in another
namespace is a worker of netns-exec, which its process says it is; or a stray,
left there by code that entered the namespace, started something, and went back.
What may not be read is unknown.

Exit status: 0 when there is no stray, 1 when there is one, 2 when there is
none but some threads are unknown.

JSON, one document (one for each line with --watch):
  {\"version\": 1, \"audited\": N, \"strays\": N, \"unknown\": N, \"processes\": [
    {\"pid\": N, \"name\": \"...\", \"home\": ID|null, \"threads\": [
      {\"tid\": N, \"name\": \"...\", \"netns_id\": ID|null, \"label\": \"...\",
       \"verdict\": \"home\"|\"worker\"|\"stray\"|\"unknown\",
       \"seems_child_of\": TID|null, \"origin\": \"...\"|null}]}]}
audited counts processes. Keys may be added; version changes when one changes its
meaning.

Examples:
  netns-exec audit                  every process that has a stray
  netns-exec audit 4711             the threads of process 4711
  netns-exec audit blue             every process with a thread in netns blue
  netns-exec audit 4711 --watch     tell when something changes, until it ends")]
pub(crate) struct Args {
    /// A process by its PID; or a network namespace by its NAME or PATH (with
    /// a slash), for all processes that have a thread in it. A name that is a
    /// number is given as a path
    #[arg(value_name = "PID|NAME")]
    what: Option<OsString>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Audit again and again, and print what has changed
    #[arg(long)]
    watch: bool,

    /// Seconds between two audits
    #[arg(long, value_name = "SECONDS", default_value = "1", requires = "watch")]
    interval: f64,

    /// Show the threads that are at home, too, and all processes
    #[arg(long, conflicts_with = "json")]
    all: bool,

    #[command(flatten)]
    table: table::Options,
}

/// What to audit.
enum Subject {
    Process(u32),
    /// Held, so that it is the same one at every audit.
    Netns(Netns),
    Host,
}

/// What an audit came to.
struct Audited {
    processes: Vec<Process>,
    /// Those that may have threads there, if they could be read.
    unreadable: Vec<Unreadable>,
}

impl Subject {
    fn find(what: Option<&OsStr>) -> Result<Subject, Failure> {
        let Some(what) = what else {
            return Ok(Subject::Host);
        };
        if what.as_bytes().iter().all(u8::is_ascii_digit) {
            let what = what.display();
            let pid = what.to_string().parse();
            return pid
                .map(Subject::Process)
                .map_err(|_| Failure::new(format!("`{what}` is not a process id")));
        }
        let arg = match what.as_bytes().contains(&b'/') {
            true => NetnsArg::Path(what.into()),
            false => NetnsArg::Name(what.to_owned()),
        };
        Ok(Subject::Netns(arg.open()?))
    }

    /// Audits what there is; a process that was found and has ended is left out.
    fn audit(&self) -> Result<Audited, Failure> {
        let (pids, unreadable) = match self {
            Subject::Process(pid) => {
                return Ok(Audited {
                    processes: vec![Process::of(*pid)?],
                    unreadable: Vec::new(),
                });
            }
            Subject::Netns(netns) => {
                let found = namespaces()?;
                (pids_in(netns, &found), found.unreadable().to_vec())
            }
            Subject::Host => (pids()?, Vec::new()),
        };
        let mut processes = Vec::new();
        for pid in pids {
            match Process::of(pid) {
                Err(error) if error.is_not_found() => {}
                audit => processes.push(audit?),
            }
        }
        Ok(Audited {
            processes,
            unreadable,
        })
    }

    /// Whether a process is to be shown.
    fn is_about(&self, audit: &Process) -> bool {
        match self {
            Subject::Host => audit.strays().next().is_some(),
            _ => true,
        }
    }
}

/// All processes that /proc shows, but the kernel's.
fn pids() -> Result<Vec<u32>, Failure> {
    let failed = |error| Failure::io("cannot read /proc", error);
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    pids.retain(|pid| !is_kernel_thread(*pid));
    pids.sort_unstable();
    Ok(pids)
}

/// No code of a user's can have left one of these astray. Kernels before 6.5 do not
/// say which they are.
fn is_kernel_thread(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line == "Kthread:\t1")
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
    audited: usize,
    strays: usize,
    unknown: usize,
    processes: Vec<&'a Process>,
}

impl<'a> Report<'a> {
    fn of(subject: &Subject, audits: &'a [Process]) -> Report<'a> {
        Report {
            version: 1,
            audited: audits.len(),
            strays: count(audits, Verdict::Stray),
            unknown: count(audits, Verdict::Unknown),
            processes: (audits.iter())
                .filter(|audit| subject.is_about(audit))
                .collect(),
        }
    }
}

fn count(audits: &[Process], verdict: Verdict) -> usize {
    audits.iter().map(|audit| audit.with(verdict).count()).sum()
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let subject = Subject::find(args.what.as_deref())?;
    if args.watch {
        let interval = Duration::try_from_secs_f64(args.interval)
            .map_err(|_| Failure::new(format!("cannot wait {} seconds", args.interval)))?;
        return watch(&args, &subject, interval);
    }
    let audited = subject.audit()?;
    let audits = &audited.processes;
    if args.json {
        output::json(&Report::of(&subject, audits))?;
    } else {
        print(&args, &subject, &audited)?;
    }
    Ok(status(
        count(audits, Verdict::Stray),
        count(audits, Verdict::Unknown),
    ))
}

fn status(strays: usize, unknown: usize) -> ExitCode {
    match (strays, unknown) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(2),
        _ => ExitCode::from(1),
    }
}

const HEADINGS: [&str; 7] = ["PID", "PROCESS", "TID", "THREAD", "NETNS", "ID", "VERDICT"];

/// Which thread is where, and how that is judged, is always shown.
const SAVINGS: [Saving; 3] = [Saving::Drop(5), Saving::Drop(1), Saving::Drop(0)];

fn print(args: &Args, subject: &Subject, audited: &Audited) -> Result<(), Failure> {
    let audits = &audited.processes;
    show(args, subject, audits)?;
    let threads: usize = audits.iter().map(|audit| audit.threads().len()).sum();
    let [home, worker, stray, unknown] = [
        Verdict::Home,
        Verdict::Worker,
        Verdict::Stray,
        Verdict::Unknown,
    ]
    .map(|verdict| count(audits, verdict));
    output::line(format_args!(
        "{threads} {} in {} {}: {home} at home, {worker} {}, {stray} stray, {unknown} unknown",
        if threads == 1 { "thread" } else { "threads" },
        audits.len(),
        if audits.len() == 1 {
            "process"
        } else {
            "processes"
        },
        if worker == 1 { "worker" } else { "workers" },
    ))?;
    let mut left_out: Vec<LeftOut<'_>> = (audited.unreadable.iter())
        .map(|process| LeftOut {
            pid: process.pid(),
            name: process.process(),
            what: process.what(),
        })
        .collect();
    let unread = audits.iter().filter(|audit| {
        let mut threads = audit.threads().iter();
        threads.all(|thread| thread.netns_id().is_none())
    });
    left_out.extend(unread.map(|audit| LeftOut {
        pid: audit.pid(),
        name: audit.name(),
        what: "threads",
    }));
    unreadable::say(&left_out);
    Ok(())
}

fn show(args: &Args, subject: &Subject, audits: &[Process]) -> Result<(), Failure> {
    let mut table = Table::new(&HEADINGS, &[0, 2, 5], &SAVINGS);
    let mut rows = 0;
    let mut origins = Vec::new();
    for audit in audits {
        if !args.all && !subject.is_about(audit) {
            continue;
        }
        for thread in audit.threads() {
            if !args.all && thread.verdict() == Verdict::Home {
                continue;
            }
            let id = thread.netns_id();
            let tone = match thread.verdict() {
                Verdict::Stray => Tone::Bad,
                Verdict::Unknown => Tone::Doubtful,
                Verdict::Worker => Tone::Good,
                _ => Tone::Plain,
            };
            let cells = [
                audit.pid().to_string(),
                printable(audit.name()),
                thread.tid().to_string(),
                printable(thread.name()),
                printable(thread.label()),
                id.map_or("?".to_owned(), |id| id.to_string()),
                thread.verdict().to_string(),
            ];
            table.row(tone, cells.map(Texts::from).into());
            rows += 1;
            if let Some(origin) = thread.origin() {
                origins.push(format!("thread {} is {origin}", thread.tid()));
            }
        }
    }
    if rows > 0 {
        table.print(&args.table)?;
    }
    for origin in origins {
        output::line(origin)?;
    }
    Ok(())
}

/// Prints what changes, until the process has ended; for a namespace, until
/// interrupted.
fn watch(args: &Args, subject: &Subject, interval: Duration) -> Result<ExitCode, Failure> {
    let mut known = Known::default();
    let (mut strays, mut unknown) = (0, 0);
    loop {
        let audited = match subject.audit() {
            Ok(audited) => audited,
            // The first audit found it: now it has ended.
            Err(_) if known.audited && has_ended(subject) => return Ok(status(strays, unknown)),
            Err(failure) => return Err(failure),
        };
        let audits = &audited.processes;
        strays = strays.max(count(audits, Verdict::Stray));
        unknown = count(audits, Verdict::Unknown);
        let changes = known.take_in(audits, args.all);
        if args.json {
            if !changes.is_empty() || !known.audited {
                let text = serde_json::to_string(&Report::of(subject, audits))
                    .map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?;
                output::line(text)?;
            }
        } else if known.audited {
            for change in changes {
                output::line(change)?;
            }
        } else {
            print(args, subject, &audited)?;
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
        Subject::Netns(_) | Subject::Host => false,
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
