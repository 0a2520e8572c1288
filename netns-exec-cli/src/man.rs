//! `netns-exec man`: manual pages.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, ValueHint};
use clap_mangen::Man;

use crate::failure::Failure;
use crate::stdio;

/// Write the manual pages
///
/// They are made of what --help shows, by the program that they describe: one for
/// netns-exec, and one for each subcommand. Without --dir, the first is printed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  netns-exec man | man -l -
  netns-exec man --dir /usr/local/share/man/man1     then: man netns-exec-exec")]
pub(crate) struct Args {
    /// Write all pages into DIR, which is made if need be
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: Args, mut command: Command) -> Result<ExitCode, Failure> {
    // Has the subcommands know what they are called.
    command.build();
    match args.dir {
        Some(dir) => write_all(&command, &dir)?,
        None => stdio::write_all(io::stdout(), &page(&command)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write_all(command: &Command, dir: &Path) -> Result<(), Failure> {
    fs::create_dir_all(dir)
        .map_err(|error| Failure::io(format!("cannot make {}", dir.display()), error))?;
    let subcommands = command.get_subcommands();
    let subcommands = subcommands.filter(|command| !command.is_hide_set() && !is_help(command));
    for command in subcommands.chain([command]) {
        let name = command.get_display_name().unwrap_or(command.get_name());
        let path = dir.join(format!("{name}.1"));
        fs::write(&path, page(command)?)
            .map_err(|error| Failure::io(format!("cannot write {}", path.display()), error))?;
    }
    Ok(())
}

fn is_help(command: &Command) -> bool {
    command.get_name() == "help"
}

fn page(command: &Command) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    (Man::new(command.clone()).render(&mut page))
        .map_err(|error| Failure::io("cannot make a manual page", error))?;
    Ok(page)
}
