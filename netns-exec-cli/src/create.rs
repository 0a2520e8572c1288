//! `netns-exec create`: new namespaces with names.

use std::ffi::OsString;
use std::process::ExitCode;

use netns_exec::Netns;

use crate::failure::Failure;

/// Make namespaces with names, as `ip netns add` does
///
/// Also called `add`. A new namespace has a loopback device that is down: --up brings it up. The name
/// stays until it is deleted, by `netns-exec delete` or `ip netns del`. When one cannot be
/// made, those before it stay.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  netns-exec create blue
  netns-exec create --up blue red
  netns-exec exec blue -- ping -c 1 127.0.0.1")]
pub(crate) struct Args {
    /// What to call them
    #[arg(value_name = "NAME", required = true)]
    names: Vec<OsString>,

    /// Bring the loopback device up, as `ip -n NAME link set lo up` does
    #[arg(long)]
    up: bool,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    for name in &args.names {
        let netns = Netns::create_os(name)?;
        if args.up
            && let Err(error) = netns.set_loopback_up()
        {
            // It is not what was asked for.
            let _ = Netns::delete_os(name);
            return Err(error.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}
