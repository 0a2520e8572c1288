//! The report as Markdown, for people; the terminal shows it too.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};

use super::figures::{Bound, Report};
use crate::conditions::regime;
use crate::peers::Group;
use crate::sections::allocations::Allocations;
use netns_exec_measure::Spread;

impl Report {
    /// The whole report for people.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# What a call into a network namespace costs\n\n");
        let mut part = |title: &str, note: &str, table: Option<Table>| {
            if let Some(table) = table {
                writeln!(text, "## {title}\n\n{note}\n\n{table}\n").expect("a String takes all");
            }
        };
        part(
            "Latency of a call with an empty closure, p50",
            &self.note(),
            self.matrix(),
        );
        part(
            "Latency in full",
            "What is faster than a few microseconds is timed in short batches, so its p99 is one of their means.",
            self.latencies(),
        );
        part(
            "Throughput",
            "Time divided by calls, all callers of one namespace together.",
            self.means("throughput"),
        );
        part(
            "Jobs that no caller waits for",
            "Time divided by jobs, until the last has run.",
            self.means("spawn"),
        );
        part(
            "Many namespaces",
            "Calls from one caller, each to a namespace drawn by lot; the floor has as many threads.",
            self.means("namespaces"),
        );
        part(
            "All namespaces",
            "A socket in each, time divided by namespaces.",
            self.means("visits"),
        );
        part(
            "A socket of another namespace",
            "Each timed by itself, and closed outside of the time.",
            self.means("stock"),
        );
        part(
            "Eight callers that open sockets in one namespace",
            "Time divided by sockets, all callers together.",
            self.means("crowd"),
        );
        part(
            "Allocations",
            "By all threads, for each call or job.",
            self.allocation_table(),
        );
        part(
            "Idle workers",
            "One in each namespace, in a process of their own.",
            self.footprint_table(),
        );
        part("Targets", self.goal_note(), self.goal_table());
        text
    }

    /// What fits into a README: the p50 by regime, and the goals.
    pub fn summary(&self) -> String {
        let mut text = self.note() + "\n";
        for (note, table) in [
            ("p50 of a call with an empty closure:", self.matrix()),
            (self.goal_note(), self.goal_table()),
        ] {
            if let Some(table) = table {
                writeln!(text, "\n{note}\n\n{table}").expect("a String takes all");
            }
        }
        text
    }

    /// Where the figures come from, and how to read them.
    fn note(&self) -> String {
        let head = self.machine.headline();
        let rounds = self.rounds;
        let (over, one) = match self.runs {
            Some(runs) => (format!("{runs} runs of {rounds} interleaved rounds"), "run"),
            None => (format!("{rounds} interleaved rounds"), "round"),
        };
        format!(
            "{head}.\n\nMedians over {over}; a ratio is taken within a round, and its \
             smallest and largest {one} stand in brackets. Lower is better."
        )
    }

    fn goal_note(&self) -> &'static str {
        match self.runs {
            Some(_) => {
                "Ratios within a run, as medians over the runs; the median has to reach the target."
            }
            None => "Ratios in this run.",
        }
    }

    /// The p50 of each contestant by regime.
    fn matrix(&self) -> Option<Table> {
        let scenes: Vec<&str> = (regime::ALL.iter())
            .map(|regime| regime.name)
            .filter(|scene| self.rows.iter().any(|row| row.scene == *scene))
            .collect();
        let mut labels: Vec<(&str, Group)> = Vec::new();
        for row in self.rows.iter().filter(|row| row.section == "latency") {
            if !labels.contains(&(&row.label, row.group)) {
                labels.push((&row.label, row.group));
            }
        }
        let cell = |scene: &str, label: &str| {
            (self.rows.iter())
                .find(|row| (&*row.section, &*row.scene, &*row.label) == ("latency", scene, label))
                .map_or(String::new(), |row| time(row.ns.median))
        };
        let rows = labels.into_iter().map(|(label, group)| {
            let who = match group {
                Group::Floor => format!("*{label}*"),
                Group::Ours => format!("**{label}**"),
                Group::Peer => label.to_owned(),
            };
            let cells = scenes.iter().map(|scene| cell(scene, label));
            [who].into_iter().chain(cells).collect()
        });
        table(&[&["who"], &*scenes].concat(), 1, rows)
    }

    /// The rows of the latencies, which have a floor and a tail.
    fn latencies(&self) -> Option<Table> {
        let header = [
            "scene",
            "who",
            "p50",
            "p99",
            "times the floor",
            "p99",
            "times ours",
            "woken by",
        ];
        let rows = self.rows.iter().filter(|row| row.section == "latency");
        let cells = rows.map(|row| {
            vec![
                row.scene.clone(),
                row.label.clone(),
                time(row.ns.median),
                time(row.p99_ns.median),
                spread(row.to_floor),
                spread(row.p99_to_floor),
                spread(row.to_ours),
                row.woken_by.clone().unwrap_or_default(),
            ]
        });
        table(&header, 2, cells)
    }

    /// The rows of a section in which a round is one figure.
    fn means(&self, section: &str) -> Option<Table> {
        let rows = self.rows.iter().filter(|row| row.section == section);
        let cells = rows.map(|row| {
            vec![
                row.scene.clone(),
                row.label.clone(),
                time(row.ns.median),
                spread(row.to_ours),
                spread(row.to_floor),
                row.woken_by.clone().unwrap_or_default(),
            ]
        });
        let header = [
            "scene",
            "who",
            "median",
            "times ours",
            "times the floor",
            "woken by",
        ];
        table(&header, 2, cells)
    }

    fn allocation_table(&self) -> Option<Table> {
        let rows = self.allocations.iter().map(|found| {
            let Allocations {
                scene, label, each, ..
            } = found;
            vec![scene.clone(), label.clone(), format!("{each:.2}")]
        });
        table(&["scene", "who", "allocations"], 2, rows)
    }

    fn footprint_table(&self) -> Option<Table> {
        let rows = self.footprints.iter().map(|found| {
            vec![
                found.label.clone(),
                found.workers.to_string(),
                format!("{:.1} KiB", found.resident_bytes_each.median / 1024.0),
                format!("{:.4} %", found.idle_cpu_share.median * 100.0),
            ]
        });
        table(
            &["who", "workers", "resident each", "of a CPU, together"],
            1,
            rows,
        )
    }

    fn goal_table(&self) -> Option<Table> {
        let rows = self.goals.iter().map(|goal| {
            let bound = match goal.bound {
                Bound::AtMost(bound) => format!("<= {bound}"),
                Bound::AtLeast(bound) => format!(">= {bound}"),
                Bound::Within(bound) => format!("+-{bound}"),
            };
            let reached = match goal.reached {
                Some(true) => "yes",
                Some(false) => "no",
                None => "not measured",
            };
            let measured = spread(goal.measured);
            vec![goal.figure.clone(), measured, bound, reached.into()]
        });
        table(&["figure", "measured", "target", "reached"], 1, rows)
    }
}

/// A table with all columns from `numbers` on aligned to the right, or `None`
/// without a row.
fn table(
    header: &[&str],
    numbers: usize,
    rows: impl Iterator<Item = Vec<String>>,
) -> Option<Table> {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    (table.row_count() > 0).then_some(table)
}

/// A time as people write it.
fn time(ns: f64) -> String {
    let (value, unit) = in_unit(ns);
    format!("{} {unit}", number(value))
}

/// A round time, as it stands on an axis.
pub(super) fn round_time(ns: f64) -> String {
    let (value, unit) = in_unit(ns);
    format!("{value:.0} {unit}")
}

fn in_unit(ns: f64) -> (f64, &'static str) {
    match ns {
        ..1e3 => (ns, "ns"),
        1e3..1e6 => (ns / 1e3, "us"),
        1e6..1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    }
}

/// Three digits, as the noise allows no more.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 | 0.1..10.0 => format!("{value:.2}"),
        ..0.1 => format!("{value:.4}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A median with its extremes, unless it was taken once.
fn spread(found: Option<Spread>) -> String {
    found.map_or(String::new(), |Spread { median, min, max }| {
        if min == max {
            return number(median);
        }
        format!("{} ({}..{})", number(median), number(min), number(max))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Goal;
    use crate::sections::contest::Row;

    fn row(scene: &str, label: &str, group: Group) -> Row {
        Row {
            section: "latency".into(),
            scene: scene.into(),
            label: label.into(),
            group,
            ns: Spread::exactly(1234.0),
            p99_ns: Spread::exactly(2e6),
            to_floor: Some(Spread {
                median: 1.1,
                min: 0.9,
                max: 12.0,
            }),
            p99_to_floor: None,
            to_ours: None,
            to_others: Default::default(),
            woken_by: None,
            ns_beyond_ours: None,
        }
    }

    #[test]
    fn times_are_scaled_to_their_unit() {
        assert_eq!(time(80.25), "80.2 ns");
        assert_eq!(time(1234.0), "1.23 us");
        assert_eq!(time(1.641e6), "1.64 ms");
        assert_eq!(time(2e9), "2.00 s");
    }

    #[test]
    fn markdown_shows_what_was_measured_and_nothing_else() {
        let report = Report {
            rows: vec![row("hot", "spin ping-pong", Group::Floor)],
            ..Report::default()
        };
        let text = report.markdown();
        assert!(text.contains("| *spin ping-pong* | 1.23 us |"), "{text}");
        assert!(text.contains("1.10 (0.90..12.0)"), "{text}");
        assert!(!text.contains("sleep 1ms"), "{text}");
        assert!(!text.contains("## Throughput"), "{text}");
    }

    #[test]
    fn goal_that_was_not_measured_is_said_to_be() {
        let report = Report {
            goals: vec![Goal {
                figure: "hot".into(),
                bound: Bound::AtMost(1.15),
                measured: None,
                reached: None,
            }],
            ..Report::default()
        };
        let text = report.markdown();
        assert!(text.contains("<= 1.15"), "{text}");
        assert!(text.contains("not measured"), "{text}");
    }

    #[test]
    fn report_survives_its_json() {
        let report = Report {
            rows: vec![row("hot", "Executor::run", Group::Ours)],
            ..Report::default()
        };
        let json = serde_json::to_string(&report).unwrap();
        let read: Report = serde_json::from_str(&json).unwrap();
        assert_eq!(read.markdown(), report.markdown());
    }
}
