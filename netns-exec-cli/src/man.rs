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

pub(crate) fn run(args: Args, command: Command) -> Result<ExitCode, Failure> {
    // Of `help` there is no page: it shows what the others have.
    let mut command = command.disable_help_subcommand(true);
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
    for command in command.get_subcommands().chain([command]) {
        let name = command.get_display_name().unwrap_or(command.get_name());
        let path = dir.join(format!("{name}.1"));
        fs::write(&path, page(command)?)
            .map_err(|error| Failure::io(format!("cannot write {}", path.display()), error))?;
    }
    Ok(())
}

fn page(command: &Command) -> Result<Vec<u8>, Failure> {
    let version = concat!("netns-exec ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(version);
    let mut page = Vec::new();
    let rendered = (man.render_title(&mut page))
        .and_then(|()| man.render_name_section(&mut page))
        .and_then(|()| man.render_synopsis_section(&mut page))
        .and_then(|()| man.render_description_section(&mut page))
        .and_then(|()| man.render_options_section(&mut page))
        .and_then(|()| match command.has_subcommands() {
            true => man.render_subcommands_section(&mut page),
            false => Ok(()),
        });
    rendered.map_err(|error| Failure::io("cannot make a manual page", error))?;
    if let Some(text) = command.get_after_help() {
        page.extend(sections(&text.to_string()).into_bytes());
    }
    Ok(page)
}

/// What --help shows at the end, in roff: "Examples:" begins a section, and lines that are
/// indented stay as they are.
fn sections(text: &str) -> String {
    let mut roff = String::new();
    let mut is_filled = true;
    for line in text.lines() {
        if let Some((heading, rest)) = heading(line) {
            roff.push_str(if is_filled { "" } else { ".fi\n" });
            let words = heading.split(' ').map(|word| match word.contains("--") {
                true => word.to_owned(),
                false => word.to_uppercase(),
            });
            let heading = words.collect::<Vec<_>>().join(" ");
            roff.push_str(&format!(".SH {}\n", escape(&heading)));
            is_filled = true;
            if !rest.is_empty() {
                roff.push_str(&format!("{}\n", escape(rest)));
            }
            continue;
        }
        let fills = !line.starts_with(' ');
        if fills != is_filled {
            roff.push_str(if fills { ".fi\n" } else { ".nf\n" });
            is_filled = fills;
        }
        roff.push_str(&match line {
            "" => ".PP\n".to_owned(),
            line => format!("{}\n", escape(line)),
        });
    }
    roff
}

/// What a line is headed by that begins a section: "JSON, one document:".
fn heading(line: &str) -> Option<(&str, &str)> {
    let (heading, rest) = line.split_once(':')?;
    let (words, is_one) = (heading.split(' ').count(), rest.is_empty());
    let begins = heading.starts_with(char::is_uppercase);
    (begins && (is_one || words <= 2 && rest.starts_with(' '))).then(|| (heading, rest.trim()))
}

/// A line that is no request, whatever it begins with.
fn escape(line: &str) -> String {
    let escaped = line.replace('\\', "\\e").replace('-', "\\-");
    match line.starts_with(['.', '\'']) {
        true => format!("\\&{escaped}"),
        false => escaped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_of_the_help_becomes_sections() {
        let text = "Exit status: 0 when all is well,\nor not.\n\nExamples:\n  netns-exec ls\n  .x\n\
                    JSON, one document:\n  {\"a\": 1}\nKeys may be added; see: below.";
        let roff = ".SH EXIT STATUS\n0 when all is well,\nor not.\n.PP\n.SH EXAMPLES\n.nf\n  \
                    netns\\-exec ls\n  .x\n.fi\n.SH JSON, ONE DOCUMENT\n.nf\n  {\"a\": 1}\n.fi\n\
                    Keys may be added; see: below.\n";
        assert_eq!(sections(text), roff);
    }

    #[test]
    fn line_is_no_request() {
        assert_eq!(escape(".TH x"), "\\&.TH x");
        assert_eq!(escape("a\\b"), "a\\eb");
    }
}
