//! The figures that were set out to be reached, and whether they were.

use serde::{Deserialize, Serialize};

use crate::peers::{
    BORROWED, CROSSBEAM, IN_PLACE, OUR_SPAWN, OURS, PINNED, STD_CHANNEL, STD_SPAWN, THREAD_PER_CALL,
};
use crate::report::Report;
use crate::stats::Spread;

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// No further than this from nothing: a difference may fall on either side,
    /// and one far below zero is noise, not speed.
    Within(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtMost(bound) => value <= bound,
            Bound::AtLeast(bound) => value >= bound,
            Bound::Within(bound) => value.abs() <= bound,
        }
    }
}

/// One figure, what it has to be, and what it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// What is measured, in words.
    pub figure: String,
    /// What it has to be.
    pub bound: Bound,
    /// What it was; `None` when it was not measured.
    pub measured: Option<Spread>,
    /// Whether the median is within the bound.
    pub reached: Option<bool>,
}

/// Holds a report against the targets.
pub fn targets(report: &Report) -> Vec<Target> {
    use Bound::{AtLeast, AtMost, Within};

    let row = |section: &str, scene: &str, label: &str| {
        (report.rows.iter())
            .find(|row| (&*row.section, &*row.scene, &*row.label) == (section, scene, label))
    };
    let to_floor = |scene: &str, label: &str| row("latency", scene, label)?.to_floor;
    let p99_to_floor = |scene: &str| row("latency", scene, OURS)?.p99_to_floor;
    let times_faster =
        |section: &str, scene: &str, label: &str| row(section, scene, label)?.to_ours;
    let allocations = |scene: &str, label: &str| {
        (report.allocations.iter())
            .find(|each| each.scene == scene && each.label == label)
            .map(|found| Spread::exactly(found.each))
    };
    let footprint = || report.footprints.iter().find(|each| each.label == OURS);
    let look_up = || {
        let pinned = row("latency", "hot", PINNED)?.ns_beyond_ours?;
        Some(pinned.times(-1.0))
    };

    let mut targets = Vec::new();
    let mut add = |figure: &str, bound: Bound, measured: Option<Spread>| {
        targets.push(Target {
            figure: figure.to_owned(),
            bound,
            measured,
            reached: measured.map(|measured| bound.holds(measured.median)),
        });
    };
    add(
        "hot `run`, small closure, to a spin ping-pong",
        AtMost(1.15),
        to_floor("hot", OURS),
    );
    add(
        "hot `run`, borrowed capture, to a spin ping-pong",
        AtMost(1.9),
        to_floor("hot", BORROWED),
    );
    for scene in ["sleep 100us", "sleep 1ms"] {
        let figure = format!("{scene}, to a futex ping-pong");
        add(&figure, AtMost(1.05), to_floor(scene, OURS));
        add(&format!("{figure}, p99"), AtMost(1.25), p99_to_floor(scene));
    }
    add(
        "busy 100us, to a futex ping-pong",
        AtMost(0.55),
        to_floor("busy 100us", OURS),
    );
    add(
        "busy 1ms, to a futex ping-pong",
        AtMost(0.40),
        to_floor("busy 1ms", OURS),
    );
    add(
        "hogs, sleep 1ms, to a futex ping-pong",
        AtMost(1.2),
        to_floor("hogs, sleep 1ms", OURS),
    );
    add(
        "allocations per `run`",
        AtMost(0.0),
        allocations("call", OURS),
    );
    add(
        "allocations per `spawn`",
        AtMost(1.0),
        allocations("spawn", OUR_SPAWN),
    );
    add(
        "hot, times faster than setns there and back",
        AtLeast(15.0),
        times_faster("latency", "hot", IN_PLACE),
    );
    add(
        "hot, times faster than sync_channel + Box + reply",
        AtLeast(100.0),
        times_faster("latency", "hot", STD_CHANNEL),
    );
    add(
        "hot, times faster than a thread per call",
        AtLeast(400.0),
        times_faster("latency", "hot", THREAD_PER_CALL),
    );
    add(
        "sleep 1ms, times faster than sync_channel + Box + reply",
        AtLeast(1.25),
        times_faster("latency", "sleep 1ms", STD_CHANNEL),
    );
    add(
        "sleep 1ms, times faster than a thread per call",
        AtLeast(7.0),
        times_faster("latency", "sleep 1ms", THREAD_PER_CALL),
    );
    add(
        "`spawn`, times the throughput of a std sync_channel",
        AtLeast(1.5),
        times_faster("spawn", "spawn", STD_SPAWN),
    );
    add(
        "8 callers opening sockets, times the throughput of crossbeam + Box",
        AtLeast(1.0),
        times_faster("throughput", "8 callers, socket", CROSSBEAM),
    );
    add(
        "idle workers, KiB resident each",
        AtMost(16.0),
        footprint().map(|found| found.resident_bytes_each.times(1.0 / 1024.0)),
    );
    add(
        "idle workers, per cent of a CPU together",
        AtMost(0.01),
        footprint().map(|found| found.idle_cpu_share.times(100.0)),
    );
    add(
        "look-up through a kept handle (`Executor::run` less `Pinned::run`), ns",
        Within(5.0),
        look_up(),
    );
    targets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{FUTEX, Group};
    use crate::sections::contest::Row;

    fn row(scene: &str, label: &str, to_floor: f64, to_ours: f64) -> Row {
        Row {
            section: "latency".into(),
            scene: scene.into(),
            label: label.into(),
            group: Group::Ours,
            ns: Spread::exactly(100.0),
            p99_ns: Spread::exactly(200.0),
            to_floor: Some(Spread::exactly(to_floor)),
            p99_to_floor: Some(Spread::exactly(1.0)),
            to_ours: Some(Spread::exactly(to_ours)),
            ns_beyond_ours: Some(Spread::exactly(-4.0)),
        }
    }

    fn reached(rows: Vec<Row>, figure: &str) -> Option<bool> {
        let report = Report {
            rows,
            ..Report::default()
        };
        let targets = targets(&report);
        let target = targets.iter().find(|target| target.figure == figure);
        target.expect("a target of that name").reached
    }

    #[test]
    fn upper_bound_is_reached_from_below() {
        let figure = "busy 1ms, to a futex ping-pong";
        assert_eq!(
            reached(vec![row("busy 1ms", OURS, 0.40, 1.0)], figure),
            Some(true)
        );
        assert_eq!(
            reached(vec![row("busy 1ms", OURS, 0.41, 1.0)], figure),
            Some(false)
        );
    }

    #[test]
    fn lower_bound_is_reached_from_above() {
        let figure = "hot, times faster than a thread per call";
        let with = |times| vec![row("hot", THREAD_PER_CALL, 1.0, times)];
        assert_eq!(reached(with(400.0), figure), Some(true));
        assert_eq!(reached(with(399.0), figure), Some(false));
    }

    #[test]
    fn what_was_not_measured_is_neither_reached_nor_missed() {
        let report = Report {
            rows: vec![row("hot", FUTEX, 50.0, 50.0)],
            ..Report::default()
        };
        assert!(
            targets(&report)
                .iter()
                .all(|target| target.reached.is_none())
        );
    }

    #[test]
    fn look_up_is_what_run_takes_beyond_pinned() {
        let figure = "look-up through a kept handle (`Executor::run` less `Pinned::run`), ns";
        assert_eq!(
            reached(vec![row("hot", PINNED, 1.0, 1.0)], figure),
            Some(true)
        );
        let mut noise = row("hot", PINNED, 1.0, 1.0);
        noise.ns_beyond_ours = Some(Spread::exactly(400.0));
        assert_eq!(reached(vec![noise], figure), Some(false));
    }
}
