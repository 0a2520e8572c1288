//! `netns-exec identify`: what a process's namespace is called.

use std::process::ExitCode;

use netns_exec::Netns;
use serde::Serialize;

use crate::failure::Failure;
use crate::names::names;
use crate::output::{self, printable};

/// Tell the names of the namespace that a process or thread is in
///
/// One a line, as `ip netns identify` does, and nothing for a namespace without a name. A
/// thread may be in another namespace than its process: give its own number, as `ps -L`
/// shows it.
#[derive(clap::Args)]
#[command(after_help = "\
JSON, one document:
  {\"version\": 1, \"pid\": N, \"netns_id\": N, \"names\": [\"...\"]}
Keys may be added; version changes when one changes its meaning.

Examples:
  netns-exec identify               where am I?
  netns-exec identify 4711")]
pub(crate) struct Args {
    /// A process, or a thread [default: netns-exec itself]
    #[arg(value_name = "PID|TID", value_parser = clap::value_parser!(u32).range(1..))]
    id: Option<u32>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: u32,
    pid: u32,
    netns_id: u64,
    names: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let pid = args.id.unwrap_or_else(std::process::id);
    // Of a thread as well, which has such a folder although /proc does not list it.
    let netns = Netns::from_path(format!("/proc/{pid}/ns/net")).map_err(|error| {
        if error.is_not_found() {
            return Failure::new(format!("no process or thread has the number {pid}"));
        }
        let failure = Failure::from(error);
        match pid == std::process::id() {
            true => failure,
            false => failure.hint("takes the same user, or CAP_SYS_PTRACE: run as root"),
        }
    })?;
    let mut found = Vec::new();
    for name in names()? {
        match Netns::open_os(&name) {
            Ok(named) if named == netns => found.push(name.to_string_lossy().into_owned()),
            // It is another one, or none.
            _ => {}
        }
    }
    if args.json {
        output::json(&Report {
            version: 1,
            pid,
            netns_id: netns.id().into(),
            names: found,
        })?;
    } else {
        found
            .iter()
            .try_for_each(|name| output::line(printable(name)))?;
    }
    Ok(ExitCode::SUCCESS)
}
