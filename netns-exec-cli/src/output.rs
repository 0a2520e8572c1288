//! What every subcommand prints alike: tables for people, JSON for machines.

use std::io::{self, IsTerminal};

use comfy_table::{ContentArrangement, Table, TableComponent, presets};

use crate::failure::Failure;
use crate::stdio;

/// An empty table with these headings, that fits the terminal.
pub(crate) fn table<const N: usize>(headings: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .remove_style(TableComponent::HorizontalLines)
        .remove_style(TableComponent::MiddleIntersections)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(headings);
    if !has_colours(false) {
        let width = table.width();
        table.force_no_tty();
        width.map(|width| table.set_width(width));
    }
    table
}

/// Whether standard error, or output, is a terminal that may be sent colours: see
/// no-color.org.
pub(crate) fn has_colours(stderr: bool) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let terminal = match stderr {
        true => io::stderr().is_terminal(),
        false => io::stdout().is_terminal(),
    };
    terminal && !refused && !dumb
}

/// Writes a text and a line break to stdout.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<(), Failure> {
    Ok(stdio::write_all(
        io::stdout(),
        format!("{text}\n").as_bytes(),
    )?)
}

/// Writes a value as one indented JSON document.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?;
    line(text)
}

/// Writes a value as JSON in one line, one of several.
pub(crate) fn json_line(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?;
    line(text)
}

/// A name for a terminal: a thread may call itself anything.
pub(crate) fn printable(name: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    name.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(printable("ns:blue/0"), "ns:blue/0");
        assert_eq!(printable("\u{1b}[2Jé\n"), "\\u{1b}[2Jé\\n");
    }
}
