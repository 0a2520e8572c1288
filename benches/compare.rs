//! What does a call into a namespace cost, against the floors of the hardware
//! and the kernel, and against what people use today?
//!
//! `cargo bench -p benches --bench compare -- --help`. Needs root.

use std::process::ExitCode;

use benches::contest::{Contest, hold};
use benches::cpus::Hogs;
use benches::latency::{self, Effort};
use benches::peers::{self, CATALOGUE, Group};
use benches::site::{self, Site};
use benches::{Result, report};
use clap::Parser;
use netns_exec::Executor;
use regex::Regex;
use std::time::Duration;

#[derive(Parser)]
struct Options {
    /// Measures only what matches SECTION/SCENE/GROUP/LABEL, and its floors
    #[arg(long, value_name = "REGEX")]
    only: Option<Regex>,
    /// Rounds, in place of what the form says
    #[arg(long)]
    rounds: Option<usize>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("compare: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let named = Site::new()?;
    let executor = Executor::new()?;
    let inode = site::inode(named.netns())?;
    let site = peers::Site {
        netns: named.netns(),
        name: Some(named.name()),
        executor: &executor,
    };
    let mut built = Vec::new();
    for entry in CATALOGUE {
        let peer = (entry.build)(&site)?;
        if entry.group != Group::Floor && peer.place() != Some(inode) {
            return Err(format!("{} is not in the namespace", entry.label).into());
        }
        built.push((entry, peer));
    }
    let hogs = Hogs::new()?;
    let effort = Effort {
        hot: Duration::from_millis(2),
        short_gaps: 16,
        long_gaps: 10,
    };
    let mut contests: Vec<Contest<'_>> = latency::contests(&built, effort);
    if let Some(only) = &options.only {
        contests.iter_mut().for_each(|each| each.keep(only));
    }
    hold(&mut contests, options.rounds.unwrap_or(40), &hogs)?;
    let rows: Vec<_> = contests.iter().flat_map(Contest::rows).collect();
    println!("{}", report::table(&rows));
    Ok(())
}
