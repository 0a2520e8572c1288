//! `netns-exec ls`: all network namespaces there are.

mod net;
mod select;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use netns_exec::NetnsId;
use netns_exec::audit::{Hold, Holder, Namespace, Namespaces, Unreadable, namespaces};
use serde::Serialize;

use self::net::Link;
use self::select::{Filter, Key};
use crate::failure::Failure;
use crate::output::{self, printable};
use crate::seconds::seconds_above_zero;
use crate::stdio::{self, Woken};
use crate::table::{self, Saving, Table, Texts, Tone};
use crate::unreadable::{self, LeftOut};

/// List all network namespaces on the system, named or not
///
/// Also called `list`, as by iproute2, which lists the names alone.
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
holders is there with --holders, and with --links or --addresses
  \"links\": [{\"name\": \"...\", \"up\": BOOL, \"addresses\": [\"ADDRESS/LENGTH\"]}]|null
where null says that the namespace could not be entered. With --watch, one object a line.
Keys may be added; version changes when one changes its meaning.

Examples:
  netns-exec ls
  netns-exec ls --holders           why is a deleted namespace still there?
  netns-exec ls --links --addresses
  netns-exec ls --filter 'name=web-*' --sort sockets --watch
  netns-exec ls --filter name=      those without a name")]
pub(crate) struct Args {
    /// Show what holds each namespace
    #[arg(long)]
    holders: bool,

    /// Show the network devices of each namespace; it takes the privilege to enter them
    #[arg(long)]
    links: bool,

    /// Show the addresses of each namespace; it takes the privilege to enter them
    #[arg(long)]
    addresses: bool,

    /// Show only those of which something is like the pattern, in which * and ? stand for
    /// text; KEY is id, name, process, pid, link or address, and all filters must hold
    #[arg(long = "filter", value_name = "KEY=PATTERN", value_parser = Filter::parse)]
    filters: Vec<Filter>,

    /// Sort by this; numbers of things begin with the most [default: id]
    #[arg(long, value_name = "KEY")]
    sort: Option<Key>,

    /// Sort the other way round
    #[arg(long)]
    reverse: bool,

    /// Show them again and again, until interrupted, every 2 seconds or as told
    #[arg(long, value_name = "SECONDS", value_parser = seconds_above_zero,
          num_args = 0..=1, require_equals = true, default_missing_value = "2")]
    watch: Option<Duration>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    table: table::Options,
}

impl Args {
    fn looks_into(&self) -> bool {
        self.links || self.addresses || self.filters.iter().any(Filter::is_about_links)
    }
}

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    namespaces: Vec<Row<'a>>,
    unreadable: &'a [Unreadable],
}

#[derive(Serialize)]
struct Row<'a> {
    id: Option<NetnsId>,
    inode: u64,
    names: &'a [String],
    processes: Vec<ProcessRow<'a>>,
    #[serde(flatten)]
    counts: Counts,
    #[serde(skip_serializing_if = "Option::is_none")]
    holders: Option<&'a [Holder]>,
    /// `None` where nothing was to be looked into, `Some(None)` where it could not be.
    #[serde(skip_serializing_if = "Option::is_none")]
    links: Option<Option<Vec<Link>>>,
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

fn row(namespace: &Namespace, holders: bool, links: Option<Option<Vec<Link>>>) -> Row<'_> {
    let processes = namespace.processes().into_iter();
    Row {
        id: namespace.id(),
        inode: namespace.inode(),
        names: namespace.names(),
        processes: processes
            .map(|(pid, name, threads)| ProcessRow { pid, name, threads })
            .collect(),
        counts: Counts::of(namespace.holders()),
        holders: holders.then(|| namespace.holders()),
        links,
    }
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let Some(pause) = args.watch else {
        show_once(&args)?;
        return Ok(ExitCode::SUCCESS);
    };
    let clears = io::stdout().is_terminal() && !args.json;
    for round in 0_u64.. {
        if clears {
            // Home, and everything below it.
            stdio::write_all(io::stdout(), b"\x1b[H\x1b[J")?;
        } else if round > 0 && !args.json {
            output::line("")?;
        }
        show_once(&args)?;
        if stdio::wait_for_reader(None, Some(pause))? == Woken::ReaderGone {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_once(args: &Args) -> Result<(), Failure> {
    let found = namespaces()?;
    let mut rows = select(args, &found)?;
    if args.json {
        let report = Report {
            version: 1,
            namespaces: rows.drain(..).map(|(_, row)| row).collect(),
            unreadable: found.unreadable(),
        };
        return match args.watch {
            Some(_) => output::json_line(&report),
            None => output::json(&report),
        };
    }
    show(&rows, args)?;
    if args.holders {
        show_holders(&rows)?;
    }
    let left_out = (found.unreadable().iter())
        .map(|process| LeftOut {
            pid: process.pid(),
            name: process.process(),
            what: process.what(),
        })
        .collect::<Vec<_>>();
    unreadable::say(&left_out);
    Ok(())
}

type Rows<'a> = Vec<(&'a Namespace, Row<'a>)>;

/// The rows that are to be shown, in order.
fn select<'a>(args: &Args, found: &'a Namespaces) -> Result<Rows<'a>, Failure> {
    let namespaces = found.namespaces();
    let mut links = match args.looks_into() {
        true => net::look_into(namespaces)?.into_iter().map(Some).collect(),
        false => Vec::new(),
    }
    .into_iter();
    let mut rows: Rows<'_> = (namespaces.iter())
        .map(|ns| (ns, row(ns, args.holders, links.next().flatten())))
        .filter(|(_, row)| args.filters.iter().all(|filter| filter.admits(row)))
        .collect();
    if let Some(key) = args.sort {
        rows.sort_by(|(_, a), (_, b)| key.compare(a, b));
    }
    if args.reverse {
        rows.reverse();
    }
    Ok(rows)
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

/// With the columns that were asked for, at the end: `asked` are their numbers.
fn savings(asked: &[usize]) -> Vec<Saving> {
    if asked.is_empty() {
        return SAVINGS.to_vec();
    }
    let shorter = || asked.iter().rev().map(|column| Saving::Shorten(*column));
    let mut savings = vec![Saving::Shorten(PROCESSES), Saving::Drop(INODE)];
    savings.extend([MOUNTS, FDS, SOCKETS].map(Saving::Drop));
    savings.extend([Saving::Shorten(PROCESSES), Saving::Shorten(NAMES)]);
    // In lines below each other, and then as a number.
    savings.extend(shorter());
    savings.extend([Saving::Shorten(PROCESSES), Saving::Drop(PROCESSES)]);
    savings.extend(shorter());
    savings
}

fn show(rows: &Rows<'_>, args: &Args) -> Result<(), Failure> {
    let mut headings = HEADINGS.to_vec();
    for (asked, heading) in [(args.links, "LINKS"), (args.addresses, "ADDRESSES")] {
        headings.extend(asked.then_some(heading));
    }
    let asked: Vec<usize> = (HEADINGS.len()..headings.len()).collect();
    let savings = savings(&asked);
    let mut table = Table::new(&headings, &[0, 1, 4, 5, 6, 7], &savings);
    for (_, row) in rows {
        let names: Vec<String> = row.names.iter().map(|name| printable(name)).collect();
        let number = |count: usize| Texts::from(count.to_string());
        let mut cells: Vec<Texts> = vec![
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
        ];
        let links = row.links.as_ref().and_then(Option::as_ref);
        if args.links {
            cells.push(list(links.map(|links| links.iter().map(shown).collect())));
        }
        if args.addresses {
            let addresses = |link: &Link| link.addresses.clone();
            cells.push(list(
                links.map(|links| links.iter().flat_map(addresses).collect()),
            ));
        }
        table.row(Tone::Plain, cells);
    }
    table.print(&args.table)
}

/// A device, with what is most often forgotten.
fn shown(link: &Link) -> String {
    let state = if link.up { "" } else { "(down)" };
    format!("{}{state}", printable(&link.name))
}

/// A cell with several texts, or a question mark where they are not known.
fn list(texts: Option<Vec<String>>) -> Texts {
    match texts {
        Some(texts) => vec![texts.join(" "), texts.join("\n"), texts.len().to_string()].into(),
        None => "?".to_owned().into(),
    }
}

fn show_holders(rows: &Rows<'_>) -> Result<(), Failure> {
    for (namespace, row) in rows {
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
