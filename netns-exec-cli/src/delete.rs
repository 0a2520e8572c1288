//! `netns-exec delete`: names are taken away.

use std::ffi::OsString;
use std::process::ExitCode;

use clap_complete::engine::ArgValueCandidates;
use netns_exec::Netns;

use crate::completions::netns_names;
use crate::failure::Failure;
use crate::names::names;

/// Take the names of namespaces away, as `ip netns delete` does
///
/// Also called `del`. The namespace itself goes when nothing is in it and nothing holds it any more:
/// `netns-exec ls --holders` tells what does. All names are tried; the first failure is
/// told at the end.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  netns-exec delete blue
  netns-exec delete --all           every name that `ip netns list` shows")]
pub(crate) struct Args {
    /// The names
    #[arg(value_name = "NAME", required_unless_present = "all",
          add = ArgValueCandidates::new(netns_names))]
    names: Vec<OsString>,

    /// All names, as `ip -all netns delete` takes them
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let names = match args.all {
        true => names()?,
        false => args.names,
    };
    let mut first = None;
    for name in &names {
        match Netns::delete_os(name) {
            Ok(()) => {}
            // Another process was quicker.
            Err(error) if args.all && error.is_not_found() => {}
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    match first {
        Some(error) => Err(error.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}
