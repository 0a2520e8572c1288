//! The tables for the terminal, the Markdown and the JSON.

use comfy_table::{CellAlignment, Table, presets};

use crate::contest::Row;
use crate::stats::Spread;

/// A time as people write it.
pub fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ..1e3 => (ns, "ns"),
        1e3..1e6 => (ns / 1e3, "us"),
        1e6..1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    format!("{} {unit}", number(value))
}

/// Three digits, as the noise allows no more.
pub fn number(value: f64) -> String {
    match value.abs() {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn ratio(ratio: Option<Spread>) -> String {
    ratio.map_or(String::new(), |Spread { median, min, max }| {
        format!("{} ({}..{})", number(median), number(min), number(max))
    })
}

/// One table of all rows.
pub fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "scene",
        "who",
        "p50",
        "p99",
        "times the floor",
        "p99",
        "times ours",
    ]);
    for row in rows {
        table.add_row([
            row.scene.clone(),
            row.label.clone(),
            time(row.ns.median),
            time(row.p99_ns),
            ratio(row.to_floor),
            row.p99_to_floor.map_or(String::new(), number),
            ratio(row.to_ours),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
