//! The figures that were set out to be reached, and whether they were.

use super::figures::Bound::{self, AtLeast, AtMost, Within};
use super::figures::{Goal, Report};
use crate::peers::{
    BORROWED, CROSSBEAM, IN_PLACE, OUR_SPAWN, OURS, PINNED, STD_CHANNEL, STD_SPAWN, THREAD_PER_CALL,
};
use netns_exec_measure::Spread;

/// Where in a report a figure stands.
enum Source {
    /// How many times its floor a latency of `label` is.
    ToFloor {
        scene: &'static str,
        label: &'static str,
    },
    /// The same at the 99th percentile, of the shortest program with this library.
    P99ToFloor { scene: &'static str },
    /// How many times our figure that of `label` is.
    ToOurs {
        section: &'static str,
        scene: &'static str,
        label: &'static str,
    },
    /// Allocations for each call or job.
    Allocations {
        scene: &'static str,
        label: &'static str,
    },
    /// Resident memory of an idle worker.
    KibEach,
    /// The CPU time of all idle workers together.
    IdlePercent,
    /// What `Executor::run` takes longer than `Pinned::run`.
    LookUpNs,
}

const fn to_floor(scene: &'static str, label: &'static str) -> Source {
    Source::ToFloor { scene, label }
}

const fn to_ours(section: &'static str, scene: &'static str, label: &'static str) -> Source {
    Source::ToOurs {
        section,
        scene,
        label,
    }
}

const fn allocations(scene: &'static str, label: &'static str) -> Source {
    Source::Allocations { scene, label }
}

/// What is measured, in words; what it has to be; and where it stands.
const GOALS: [(&str, Bound, Source); 21] = [
    (
        "hot `run`, small closure, to a spin ping-pong",
        AtMost(1.15),
        to_floor("hot", OURS),
    ),
    (
        "hot `run`, borrowed capture, to a spin ping-pong",
        AtMost(1.9),
        to_floor("hot", BORROWED),
    ),
    (
        "sleep 100us, to a futex ping-pong",
        AtMost(1.05),
        to_floor("sleep 100us", OURS),
    ),
    (
        "sleep 100us, to a futex ping-pong, p99",
        AtMost(1.25),
        Source::P99ToFloor {
            scene: "sleep 100us",
        },
    ),
    (
        "sleep 1ms, to a futex ping-pong",
        AtMost(1.05),
        to_floor("sleep 1ms", OURS),
    ),
    (
        "sleep 1ms, to a futex ping-pong, p99",
        AtMost(1.25),
        Source::P99ToFloor { scene: "sleep 1ms" },
    ),
    (
        "busy 100us, to a futex ping-pong",
        AtMost(0.55),
        to_floor("busy 100us", OURS),
    ),
    (
        "busy 1ms, to a futex ping-pong",
        AtMost(0.40),
        to_floor("busy 1ms", OURS),
    ),
    (
        "hogs, sleep 1ms, to a futex ping-pong",
        AtMost(1.2),
        to_floor("hogs, sleep 1ms", OURS),
    ),
    (
        "allocations per `run`",
        AtMost(0.0),
        allocations("call", OURS),
    ),
    (
        "allocations per `spawn`",
        AtMost(1.0),
        allocations("spawn", OUR_SPAWN),
    ),
    (
        "hot, times faster than setns there and back",
        AtLeast(15.0),
        to_ours("latency", "hot", IN_PLACE),
    ),
    (
        "hot, times faster than sync_channel + Box + reply",
        AtLeast(100.0),
        to_ours("latency", "hot", STD_CHANNEL),
    ),
    (
        "hot, times faster than a thread per call",
        AtLeast(400.0),
        to_ours("latency", "hot", THREAD_PER_CALL),
    ),
    (
        "sleep 1ms, times faster than sync_channel + Box + reply",
        AtLeast(1.25),
        to_ours("latency", "sleep 1ms", STD_CHANNEL),
    ),
    (
        "sleep 1ms, times faster than a thread per call",
        AtLeast(7.0),
        to_ours("latency", "sleep 1ms", THREAD_PER_CALL),
    ),
    (
        "`spawn`, times the throughput of a std sync_channel",
        AtLeast(1.5),
        to_ours("spawn", "spawn", STD_SPAWN),
    ),
    (
        "8 callers opening sockets, times the throughput of crossbeam + Box",
        AtLeast(1.0),
        to_ours("throughput", "8 callers, socket", CROSSBEAM),
    ),
    (
        "idle workers, KiB resident each",
        AtMost(16.0),
        Source::KibEach,
    ),
    (
        "idle workers, per cent of a CPU together",
        AtMost(0.01),
        Source::IdlePercent,
    ),
    (
        "look-up through a kept handle (`Executor::run` less `Pinned::run`), ns",
        Within(5.0),
        Source::LookUpNs,
    ),
];

impl Source {
    /// What `report` says; `None` when it was not measured.
    fn measured(&self, report: &Report) -> Option<Spread> {
        let row = |section: &str, scene: &str, label: &str| {
            (report.rows.iter())
                .find(|row| (&*row.section, &*row.scene, &*row.label) == (section, scene, label))
        };
        let footprint = || report.footprints.iter().find(|each| each.label == OURS);
        match *self {
            Source::ToFloor { scene, label } => row("latency", scene, label)?.to_floor,
            Source::P99ToFloor { scene } => row("latency", scene, OURS)?.p99_to_floor,
            Source::ToOurs {
                section,
                scene,
                label,
            } => row(section, scene, label)?.to_ours,
            Source::Allocations { scene, label } => (report.allocations.iter())
                .find(|each| each.scene == scene && each.label == label)
                .map(|counted| Spread::exactly(counted.each)),
            Source::KibEach => Some(footprint()?.resident_bytes_each.times(1.0 / 1024.0)),
            Source::IdlePercent => Some(footprint()?.idle_cpu_share.times(100.0)),
            Source::LookUpNs => {
                let pinned = row("latency", "hot", PINNED)?.ns_beyond_ours?;
                Some(pinned.times(-1.0))
            }
        }
    }
}

/// Holds a report against the goals.
pub fn goals(report: &Report) -> Vec<Goal> {
    let goal = |(figure, bound, source): &(&str, Bound, Source)| {
        let measured = source.measured(report);
        Goal {
            figure: (*figure).to_owned(),
            bound: *bound,
            measured,
            reached: measured.map(|measured| bound.holds(measured.median)),
        }
    };
    GOALS.iter().map(goal).collect()
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
        let goals = goals(&report);
        let goal = goals.iter().find(|goal| goal.figure == figure);
        goal.expect("a goal of that name").reached
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
        assert!(goals(&report).iter().all(|goal| goal.reached.is_none()));
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
