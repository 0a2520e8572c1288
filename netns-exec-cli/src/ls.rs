//! `netns-exec ls`: all network namespaces there are.

use std::process::ExitCode;

use netns_exec::audit::{Hold, Holder, Namespace, Namespaces, namespaces};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{self, printable};
use crate::table::{self, Saving, Table, Texts, Tone};
use crate::unreadable::{self, LeftOut};

/// List all network namespaces on the system, named or not
#[derive(clap::Args)]
#[command(after_help = "\
A namespace lives as long as something holds it: a thread that is in it, an open
file of it, a socket that was made in it, or a mount, which gives it its name.
What could not be read, and so may be missing, is said on standard error. In a PID
namespace, only its own processes can be seen.

JSON, one document:
  {\"version\": 1, \"namespaces\": [
    {\"id\": ID|null, \"inode\": N, \"names\": [\"...\"],
     \"processes\": [{\"pid\": N, \"name\": \"...\", \"threads\": N}],
     \"threads\": N, \"fds\": N, \"sockets\": N, \"mounts\": N,
     \"holders\": [{\"pid\": N, \"process\": \"...\", \"kind\": \"thread\"|\"fd\"|\"socket\"|\"mount\",
                  \"tid\"|\"fd\": N, or \"path\": \"...\"}]}],
   \"unreadable\": [{\"pid\": N, \"process\": \"...\", \"what\": \"threads\"|\"mounts\"|\"fds\"|\"sockets\"}]}
holders is there with --holders. Keys may be added; version changes when one
changes its meaning.

Examples:
  netns-exec ls
  netns-exec ls --holders           why is a deleted namespace still there?")]
pub(crate) struct Args {
    /// Show what holds each namespace
    #[arg(long)]
    holders: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    table: table::Options,
}

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    namespaces: Vec<Row<'a>>,
    unreadable: Vec<UnreadableRow<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    id: Option<u64>,
    inode: u64,
    names: &'a [String],
    processes: Vec<ProcessRow<'a>>,
    #[serde(flatten)]
    counts: Counts,
    #[serde(skip_serializing_if = "Option::is_none")]
    holders: Option<Vec<HolderRow<'a>>>,
}

#[derive(Serialize)]
struct ProcessRow<'a> {
    pid: u32,
    name: &'a str,
    threads: usize,
}

#[derive(Default, Serialize)]
struct Counts {
    threads: usize,
    fds: usize,
    sockets: usize,
    mounts: usize,
}

#[derive(Serialize)]
struct HolderRow<'a> {
    pid: u32,
    process: &'a str,
    #[serde(flatten)]
    what: What,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum What {
    Thread {
        tid: u32,
    },
    Fd {
        fd: u32,
    },
    Socket {
        fd: u32,
    },
    Mount {
        path: String,
    },
    /// Of a library newer than this command.
    Other {
        text: String,
    },
}

#[derive(Serialize)]
struct UnreadableRow<'a> {
    pid: u32,
    process: &'a str,
    what: &'a str,
}

impl Counts {
    fn of(holders: &[Holder]) -> Counts {
        let mut counts = Counts::default();
        for holder in holders {
            match holder.hold() {
                Hold::Thread { .. } => counts.threads += 1,
                Hold::Fd { .. } => counts.fds += 1,
                Hold::Socket { .. } => counts.sockets += 1,
                Hold::Mount { .. } => counts.mounts += 1,
                _ => {}
            }
        }
        counts
    }
}

impl What {
    fn of(hold: &Hold) -> What {
        match hold {
            Hold::Thread { tid, .. } => What::Thread { tid: *tid },
            Hold::Fd { fd, .. } => What::Fd { fd: *fd },
            Hold::Socket { fd, .. } => What::Socket { fd: *fd },
            Hold::Mount { path, .. } => What::Mount {
                path: path.display().to_string(),
            },
            other => What::Other {
                text: other.to_string(),
            },
        }
    }
}

fn row(namespace: &Namespace, holders: bool) -> Row<'_> {
    let processes = namespace.processes().into_iter();
    let holder = |holder| {
        let holder: &Holder = holder;
        HolderRow {
            pid: holder.pid(),
            process: holder.process(),
            what: What::of(holder.hold()),
        }
    };
    Row {
        id: namespace.id().map(u64::from),
        inode: namespace.inode(),
        names: namespace.names(),
        processes: processes
            .map(|(pid, name, threads)| ProcessRow { pid, name, threads })
            .collect(),
        counts: Counts::of(namespace.holders()),
        holders: holders.then(|| namespace.holders().iter().map(holder).collect()),
    }
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let found = namespaces()?;
    let rows: Vec<_> = (found.namespaces().iter())
        .map(|ns| row(ns, args.holders))
        .collect();
    let unreadable: Vec<_> = (found.unreadable().iter())
        .map(|process| UnreadableRow {
            pid: process.pid(),
            process: process.process(),
            what: process.what(),
        })
        .collect();
    if args.json {
        output::json(&Report {
            version: 1,
            namespaces: rows,
            unreadable,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    show(&rows, &args.table)?;
    if args.holders {
        show_holders(&rows, &found)?;
    }
    let left_out = (found.unreadable().iter())
        .map(|process| LeftOut {
            pid: process.pid(),
            name: process.process(),
            what: process.what(),
        })
        .collect::<Vec<_>>();
    unreadable::say(&left_out);
    Ok(ExitCode::SUCCESS)
}

const HEADINGS: [&str; 8] = [
    "ID",
    "INODE",
    "NAMES",
    "PROCESSES",
    "THREADS",
    "FDS",
    "SOCKETS",
    "MOUNTS",
];
const INODE: usize = 1;
const NAMES: usize = 2;
const PROCESSES: usize = 3;
const FDS: usize = 5;
const SOCKETS: usize = 6;
const MOUNTS: usize = 7;

/// What a namespace is called, and by whom it is used, goes last.
const SAVINGS: [Saving; 9] = [
    Saving::Shorten(PROCESSES),
    Saving::Drop(INODE),
    Saving::Shorten(PROCESSES),
    Saving::Shorten(NAMES),
    Saving::Drop(MOUNTS),
    Saving::Drop(FDS),
    Saving::Drop(SOCKETS),
    Saving::Shorten(PROCESSES),
    Saving::Drop(PROCESSES),
];

fn show(rows: &[Row<'_>], options: &table::Options) -> Result<(), Failure> {
    let mut table = Table::new(&HEADINGS, &[0, 1, 4, 5, 6, 7], &SAVINGS);
    for row in rows {
        let names: Vec<String> = row.names.iter().map(|name| printable(name)).collect();
        let number = |count: usize| Texts::from(count.to_string());
        table.row(
            Tone::Plain,
            vec![
                row.id.map_or("?".to_owned(), |id| id.to_string()).into(),
                row.inode.to_string().into(),
                vec![names.join(" "), names.join("\n")].into(),
                [3, 2, 1, 0]
                    .map(|most| processes(&row.processes, most))
                    .to_vec()
                    .into(),
                number(row.counts.threads),
                number(row.counts.fds),
                number(row.counts.sockets),
                number(row.counts.mounts),
            ],
        );
    }
    table.print(options)
}

fn show_holders(rows: &[Row<'_>], found: &Namespaces) -> Result<(), Failure> {
    for (row, namespace) in rows.iter().zip(found.namespaces()) {
        let name = match (row.names.first(), row.id) {
            (Some(name), _) => name.clone(),
            (None, Some(id)) => format!("netns:{id}"),
            (None, None) => format!("net:[{}]", row.inode),
        };
        output::line(format_args!("\n{} is held by", printable(&name)))?;
        for (pid, process, holds) in by_process(namespace.holders()) {
            output::line(format_args!(
                "  process {pid} ({}): {}",
                printable(process),
                printable(&holds)
            ))?;
        }
    }
    Ok(())
}

/// The first few by name, at `most` as many; the rest as a number.
fn processes(processes: &[ProcessRow<'_>], most: usize) -> String {
    let mut words: Vec<_> = (processes.iter().take(most))
        .map(|process| format!("{}({})", printable(process.name), process.pid))
        .collect();
    match processes.len().saturating_sub(most) {
        0 => {}
        more if words.is_empty() => words.push(more.to_string()),
        more => words.push(format!("+{more}")),
    }
    words.join(" ")
}

/// One line for each process, with its threads as a number: there may be many.
fn by_process(holders: &[Holder]) -> Vec<(u32, &str, String)> {
    let mut lines: Vec<(u32, &str, String)> = Vec::new();
    for group in holders.chunk_by(|a, b| a.pid() == b.pid()) {
        let threads = Counts::of(group).threads;
        let mut words = match threads {
            0 => Vec::new(),
            1 => vec!["1 thread".to_owned()],
            _ => vec![format!("{threads} threads")],
        };
        let others = group
            .iter()
            .filter(|holder| !matches!(holder.hold(), Hold::Thread { .. }));
        words.extend(others.map(|holder| holder.hold().to_string()));
        lines.push((group[0].pid(), group[0].process(), words.join(", ")));
    }
    lines
}
