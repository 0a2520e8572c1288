//! `netns-exec pids`: who is in a namespace.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use clap_complete::engine::ArgValueCompleter;
use netns_exec::Netns;
use nix::sys::stat::fstat;
use serde::Serialize;

use crate::completions::netns_args;
use crate::failure::Failure;
use crate::output;
use crate::syntax::NetnsArg;
use crate::unreadable::{self, LeftOut};

/// List the processes that are in a namespace
///
/// One a line, as `ip netns pids` does: those whose main thread is there, which is where
/// their new threads and children begin. --threads lists every thread that is there, also
/// of processes that are elsewhere, as a worker's. What could not be read, and so may be
/// missing, is said on standard error.
#[derive(clap::Args)]
#[command(after_help = "\
JSON, one document:
  {\"version\": 1, \"netns\": \"...\", \"netns_id\": N,
   \"processes\": [{\"pid\": N, \"name\": \"...\", \"is_home\": BOOL, \"tids\": [N]}],
   \"unreadable\": [{\"pid\": N, \"process\": \"...\", \"what\": \"threads\"}]}
is_home tells whether the main thread is there; tids are the threads that are. Keys may be
added; version changes when one changes its meaning.

Examples:
  netns-exec pids blue
  netns-exec pids blue | xargs -r kill
  netns-exec pids --threads blue")]
pub(crate) struct Args {
    /// The namespace: a NAME, a PATH (anything with a slash), or pid:N
    #[arg(value_name = "NS", add = ArgValueCompleter::new(netns_args))]
    netns: NetnsArg,

    /// List threads, by the numbers that `ps -L` shows
    #[arg(long)]
    threads: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    netns: &'a str,
    netns_id: u64,
    processes: Vec<Process>,
    unreadable: Vec<Unreadable>,
}

#[derive(Serialize)]
struct Process {
    pid: u32,
    name: String,
    is_home: bool,
    tids: Vec<u32>,
}

#[derive(Serialize)]
struct Unreadable {
    pid: u32,
    process: String,
    what: &'static str,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let netns = args.netns.open()?;
    let (processes, unreadable) = look(&netns)?;
    if args.json {
        output::json(&Report {
            version: 1,
            netns: netns.label(),
            netns_id: netns.id().into(),
            processes,
            unreadable,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let numbers = processes.iter().flat_map(|process| match args.threads {
        true => process.tids.clone(),
        false => (process.is_home.then_some(process.pid))
            .into_iter()
            .collect(),
    });
    for number in numbers {
        output::line(number)?;
    }
    let left_out: Vec<_> = (unreadable.iter())
        .map(|process| LeftOut {
            pid: process.pid,
            name: &process.process,
            what: process.what,
        })
        .collect();
    unreadable::say(&left_out);
    Ok(ExitCode::SUCCESS)
}

/// Looks through all processes.
fn look(netns: &Netns) -> Result<(Vec<Process>, Vec<Unreadable>), Failure> {
    let failed = |error: io::Error| Failure::io("cannot read /proc", error);
    let wanted = fstat(netns.as_fd()).map_err(|errno| failed(errno.into()))?;
    let is_there = |task: &Path| {
        let link = fs::metadata(task.join("ns/net"))?;
        Ok((link.dev(), link.ino()) == (wanted.st_dev, wanted.st_ino))
    };
    let (mut found, mut unreadable) = (Vec::new(), Vec::new());
    for pid in numbers(Path::new("/proc")).map_err(failed)? {
        let folder = Path::new("/proc").join(pid.to_string());
        let name = || {
            let name = fs::read(folder.join("comm")).unwrap_or_default();
            String::from_utf8_lossy(&name).trim_end().to_owned()
        };
        match threads_there(&folder, is_there) {
            Ok(tids) if tids.is_empty() => {}
            Ok(tids) => found.push(Process {
                pid,
                name: name(),
                is_home: tids.contains(&pid),
                tids,
            }),
            Err(error) if has_gone(&error) => {}
            Err(_) => unreadable.push(Unreadable {
                pid,
                process: name(),
                what: "threads",
            }),
        }
    }
    Ok((found, unreadable))
}

fn threads_there(
    process: &Path,
    is_there: impl Fn(&Path) -> io::Result<bool>,
) -> io::Result<Vec<u32>> {
    let tasks = process.join("task");
    let mut there = Vec::new();
    for tid in numbers(&tasks)? {
        match is_there(&tasks.join(tid.to_string())) {
            Ok(true) => there.push(tid),
            Ok(false) => {}
            Err(error) if has_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(there)
}

/// Whether a process or thread has ended; one that is a zombie has no namespace.
fn has_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The entries of a folder whose names are numbers, in order.
fn numbers(folder: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        numbers.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok()),
        );
    }
    numbers.sort_unstable();
    Ok(numbers)
}
