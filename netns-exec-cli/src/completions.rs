//! `netns-exec completions`: what makes the tab key work.

use std::io;
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

use crate::failure::Failure;
use crate::stdio;

/// Print a shell completion script
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  netns-exec completions bash > /etc/bash_completion.d/netns-exec
  netns-exec completions zsh  > ~/.zfunc/_netns-exec
  netns-exec completions fish > ~/.config/fish/completions/netns-exec.fish")]
pub(crate) struct Args {
    /// The shell to print it for
    shell: Shell,
}

pub(crate) fn run(args: Args, mut command: Command) -> Result<ExitCode, Failure> {
    // By way of memory: clap_complete panics when the reader is gone.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "netns-exec", &mut script);
    stdio::write_all(io::stdout(), &script)?;
    Ok(ExitCode::SUCCESS)
}
