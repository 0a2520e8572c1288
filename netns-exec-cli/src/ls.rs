//! `netns-exec ls`: all network namespaces there are.

use std::process::ExitCode;

use netns_exec::audit::{Hold, Holder, Namespace, namespaces};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{self, printable};

/// List all network namespaces on the system, named or not
#[derive(clap::Args)]
#[command(after_help = "\
A namespace lives as long as something holds it: a thread that is in it, an open
file of it, a socket that was made in it, or a mount, which gives it its name.

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
    let mut table = output::table([
        "ID",
        "INODE",
        "NAMES",
        "PROCESSES",
        "THREADS",
        "FDS",
        "SOCKETS",
        "MOUNTS",
    ]);
    for row in &rows {
        table.add_row([
            row.id.map_or("?".to_owned(), |id| id.to_string()),
            row.inode.to_string(),
            printable(&row.names.join(" ")),
            processes(&row.processes),
            row.counts.threads.to_string(),
            row.counts.fds.to_string(),
            row.counts.sockets.to_string(),
            row.counts.mounts.to_string(),
        ]);
    }
    output::line(table)?;
    if args.holders {
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
    }
    if !unreadable.is_empty() {
        output::line(format_args!(
            "{} processes could not be read in full, so there may be more: run as root",
            unreadable.len()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// As many as tell something; the rest as a number.
fn processes(processes: &[ProcessRow<'_>]) -> String {
    const SHOWN: usize = 3;
    let mut words: Vec<_> = (processes.iter().take(SHOWN))
        .map(|process| format!("{}({})", printable(process.name), process.pid))
        .collect();
    if processes.len() > SHOWN {
        words.push(format!("and {} more", processes.len() - SHOWN));
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
