//! The `netns-exec` command.
#![cfg(target_os = "linux")]

mod audit;
#[expect(
    clippy::disallowed_methods,
    reason = "measures setns there and back beside the rest"
)]
mod bench;
mod capability;
mod completions;
mod create;
mod delete;
#[expect(clippy::disallowed_methods, reason = "has callers of its own")]
mod demo;
mod exec;
mod failure;
mod identify;
mod lease;
mod ls;
mod man;
mod monitor;
mod names;
mod netns_arg;
mod output;
mod pids;
mod seconds;
mod setting;
mod shell;
#[expect(
    clippy::disallowed_methods,
    reason = "has threads of its own, and jobs that try to move theirs"
)]
mod soak;
mod stdio;
mod syntax;
mod sys;
mod table;
mod unreadable;
mod view;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::failure::Failure;

/// Runs code and commands in Linux network namespaces, and shows who is in which.
///
/// Threads that enter a network namespace with setns(2) and come back are how
/// daemons end up with a thread in the wrong one. netns-exec never moves a
/// thread: closures go to threads, and commands to processes, that were made
/// for one namespace and end there.
#[derive(Parser)]
#[command(
    name = "netns-exec",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "Exit status: 0 when all is well, 1 when a check failed, 2 when the command itself \
                  failed or was misused. `exec`, `shell` and `lease` pass on the status of what they ran."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// One variant, and one module, for each subcommand.
#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Exec(exec::Args),
    Shell(shell::Args),
    #[command(alias = "add")]
    Create(create::Args),
    #[command(alias = "del")]
    Delete(delete::Args),
    #[command(aliases = ["list", "show"])]
    Ls(ls::Args),
    Identify(identify::Args),
    Pids(pids::Args),
    Monitor(monitor::Args),
    Audit(audit::Args),
    Lease(lease::Args),
    Bench(bench::Args),
    Soak(soak::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Command {
    fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Command::Demo(args) => demo::run(args),
            Command::Exec(args) => exec::run(args),
            Command::Shell(args) => shell::run(args),
            Command::Create(args) => create::run(args),
            Command::Delete(args) => delete::run(args),
            Command::Ls(args) => ls::run(args),
            Command::Identify(args) => identify::run(args),
            Command::Pids(args) => pids::run(args),
            Command::Monitor(args) => monitor::run(args),
            Command::Audit(args) => audit::run(args),
            Command::Lease(args) => lease::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Soak(args) => soak::run(args),
            Command::Completions(args) => completions::run(args),
            Command::Man(args) => man::run(args, Cli::command()),
        }
    }
}

fn main() -> ExitCode {
    if let Some(code) = completions::answer(Cli::command) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command.run() {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// Prints what is wrong with the command line, or the help that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render();
    let text = match output::has_colours(error.use_stderr()) {
        true => text.ansi().to_string(),
        false => text.to_string(),
    };
    // A reader that has gone does not want it.
    let _ = match error.use_stderr() {
        true => stdio::write_all(io::stderr(), text.as_bytes()),
        false => stdio::write_all(io::stdout(), text.as_bytes()),
    };
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        // The low numbers belong to the command that would have run.
        _ if std::env::args_os()
            .nth(1)
            .is_some_and(|arg| arg == "exec" || arg == "shell") =>
        {
            ExitCode::from(failure::FAILED)
        }
        _ => ExitCode::from(2),
    }
}
