//! `netns-exec completions`: what makes the tab key work.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::process::ExitCode;

use clap::{Command, ValueEnum};
use clap_complete::Shell;
use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter};
use clap_complete::env::{CompleteEnv, Shells};

use crate::failure::Failure;
use crate::names::names;
use crate::stdio;

/// Has a shell that completes a command line ask the program for it.
const VARIABLE: &str = "NETNS_EXEC_COMPLETE";
const NAME: &str = "netns-exec";

/// Print a shell completion script
///
/// With it, the tab key knows the subcommands, their options, and the names of the
/// namespaces that there are: the script asks netns-exec, so it need not be printed anew when
/// that is updated.
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

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let shell = args.shell.to_possible_value().expect("none is skipped");
    let shells = Shells::builtins();
    let completer = (shells.completer(shell.get_name()))
        .ok_or_else(|| Failure::new(format!("no completions for {}", shell.get_name())))?;
    // By way of memory: a reader that has gone is no failure.
    let mut script = Vec::new();
    (completer.write_registration(VARIABLE, NAME, NAME, NAME, &mut script))
        .map_err(|error| Failure::io("cannot make a completion script", error))?;
    stdio::write_all(io::stdout(), &script)?;
    Ok(ExitCode::SUCCESS)
}

/// Completes a command line where a shell asks for that; `None` where none does.
pub(crate) fn answer(command: fn() -> Command) -> Option<ExitCode> {
    env::var_os(VARIABLE).filter(|shell| !shell.is_empty())?;
    let here = env::current_dir().ok();
    let complete = CompleteEnv::with_factory(command).var(VARIABLE);
    match complete.try_complete(env::args_os(), here.as_deref()) {
        Ok(true) => Some(ExitCode::SUCCESS),
        Ok(false) => None,
        // A shell that does not know the program is a mistake of its script's.
        Err(error) => Some(Failure::new(error.to_string().trim_end().to_owned()).report()),
    }
}

/// The names of namespaces, for an argument that is one.
pub(crate) fn netns_names() -> Vec<CompletionCandidate> {
    let names = names().unwrap_or_default();
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// Completes an argument that is a name, or a path where there is a slash in it.
pub(crate) fn netns_args(current: &OsStr) -> Vec<CompletionCandidate> {
    if current.as_encoded_bytes().contains(&b'/') {
        return PathCompleter::any().complete(current);
    }
    let begins = |candidate: &CompletionCandidate| {
        let name = candidate.get_value().as_encoded_bytes();
        name.starts_with(current.as_encoded_bytes())
    };
    netns_names().into_iter().filter(begins).collect()
}
