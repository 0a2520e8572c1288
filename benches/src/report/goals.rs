//! The figures that were set out to be reached, and whether they were.

use super::figures::Bound::{self, AtLeast, AtMost, Within};
use super::figures::{Goal, Report};
use crate::peers::{
    BORROWED, CROSSBEAM, CROSSBEAM_SPAWN, FUTEX_ONE_CPU, IN_PLACE, OUR_BATCH, OUR_SPAWN, OURS,
    PINNED, RAYON_SPAWN, SPAWN_JOIN, STD_CHANNEL, STD_SPAWN, THREAD_PER_CALL, TOKIO,
};
use crate::sections::trips::{
    ALL_CPUS, BROADCAST, CROWD, EIGHT_CALLERS, EMPTY_STOCK, FULL_STOCK, ONE_SOCKET, SCOPE, STOCK,
};
use netns_exec_measure::Spread;

/// Where in a report a figure stands.
enum Source {
    /// How many times its floor a latency of `label` is.
    ToFloor {
        scene: &'static str,
        label: &'static str,
    },
    /// How many times the figure of `base` that of `label` is, in the same contest.
    Ratio {
        section: &'static str,
        scene: &'static str,
        label: &'static str,
        base: &'static str,
    },
    /// The same at the 99th percentile.
    P99Ratio {
        section: &'static str,
        scene: &'static str,
        label: &'static str,
        base: &'static str,
    },
    /// How many times the figure of `label` that of the fastest of `bases` is.
    BestOver {
        section: &'static str,
        scene: &'static str,
        label: &'static str,
        bases: &'static [&'static str],
    },
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

const fn ratio(
    section: &'static str,
    scene: &'static str,
    label: &'static str,
    base: &'static str,
) -> Source {
    Source::Ratio {
        section,
        scene,
        label,
        base,
    }
}

const fn p99_ratio(
    section: &'static str,
    scene: &'static str,
    label: &'static str,
    base: &'static str,
) -> Source {
    Source::P99Ratio {
        section,
        scene,
        label,
        base,
    }
}

const fn best_over(section: &'static str, scene: &'static str, label: &'static str) -> Source {
    let bases = &[STD_SPAWN, CROSSBEAM_SPAWN, RAYON_SPAWN, TOKIO];
    Source::BestOver {
        section,
        scene,
        label,
        bases,
    }
}

const fn allocations(scene: &'static str, label: &'static str) -> Source {
    Source::Allocations { scene, label }
}

/// What is measured, in words; what it has to be; and where it stands.
const GOALS: [(&str, Bound, Source); 43] = [
    (
        "hot `run`, small closure, to a spin ping-pong",
        AtMost(1.15),
        to_floor("hot", OURS),
    ),
    (
        "hot `run`, borrowed capture, to a spin ping-pong",
        AtMost(1.5),
        to_floor("hot", BORROWED),
    ),
    (
        "hot `run`, caller bound to a CPU, to a spin ping-pong",
        AtMost(1.3),
        to_floor("hot, caller bound", OURS),
    ),
    (
        "parked `run`, sleep 100us, to a futex on one CPU",
        AtMost(1.3),
        ratio("latency", "sleep 100us", OURS, FUTEX_ONE_CPU),
    ),
    (
        "parked `run`, sleep 100us, to a futex on one CPU, p99",
        AtMost(1.5),
        p99_ratio("latency", "sleep 100us", OURS, FUTEX_ONE_CPU),
    ),
    (
        "parked `run`, sleep 1ms, to a futex on one CPU",
        AtMost(1.3),
        ratio("latency", "sleep 1ms", OURS, FUTEX_ONE_CPU),
    ),
    (
        "parked `run`, sleep 1ms, to a futex on one CPU, p99",
        AtMost(1.5),
        p99_ratio("latency", "sleep 1ms", OURS, FUTEX_ONE_CPU),
    ),
    (
        "parked `run`, busy 100us, to a futex on one CPU",
        AtMost(1.3),
        ratio("latency", "busy 100us", OURS, FUTEX_ONE_CPU),
    ),
    (
        "parked `run`, busy 100us, to a futex on one CPU, p99",
        AtMost(1.5),
        p99_ratio("latency", "busy 100us", OURS, FUTEX_ONE_CPU),
    ),
    (
        "parked `run`, busy 1ms, to a futex on one CPU",
        AtMost(1.3),
        ratio("latency", "busy 1ms", OURS, FUTEX_ONE_CPU),
    ),
    (
        "parked `run`, busy 1ms, to a futex on one CPU, p99",
        AtMost(1.5),
        p99_ratio("latency", "busy 1ms", OURS, FUTEX_ONE_CPU),
    ),
    (
        "parked `run`, hogs, sleep 1ms, to a futex on one CPU",
        AtMost(1.3),
        ratio("latency", "hogs, sleep 1ms", OURS, FUTEX_ONE_CPU),
    ),
    (
        "parked `run`, hogs, sleep 1ms, to a futex on one CPU, p99",
        AtMost(1.5),
        p99_ratio("latency", "hogs, sleep 1ms", OURS, FUTEX_ONE_CPU),
    ),
    (
        "10 namespaces by lot, back to back, to a futex on one CPU",
        AtMost(1.4),
        ratio("namespaces", "10 namespaces", OURS, FUTEX_ONE_CPU),
    ),
    (
        "10 namespaces by lot, sleep 1ms, to a futex on one CPU",
        AtMost(1.4),
        ratio(
            "namespaces",
            "10 namespaces, sleep 1ms",
            OURS,
            FUTEX_ONE_CPU,
        ),
    ),
    (
        "100 namespaces by lot, back to back, to a futex on one CPU",
        AtMost(1.4),
        ratio("namespaces", "100 namespaces", OURS, FUTEX_ONE_CPU),
    ),
    (
        "100 namespaces by lot, sleep 1ms, to a futex on one CPU",
        AtMost(1.4),
        ratio(
            "namespaces",
            "100 namespaces, sleep 1ms",
            OURS,
            FUTEX_ONE_CPU,
        ),
    ),
    (
        "1000 namespaces by lot, back to back, to a futex on one CPU",
        AtMost(1.4),
        ratio("namespaces", "1000 namespaces", OURS, FUTEX_ONE_CPU),
    ),
    (
        "1000 namespaces by lot, sleep 1ms, to a futex on one CPU",
        AtMost(1.4),
        ratio(
            "namespaces",
            "1000 namespaces, sleep 1ms",
            OURS,
            FUTEX_ONE_CPU,
        ),
    ),
    (
        "a socket in each of 100 by `scope`, to setns in place",
        AtMost(0.9),
        ratio("visits", "visit 100", SCOPE, IN_PLACE),
    ),
    (
        "a socket in each of 100 by `broadcast`, to setns in place",
        AtMost(0.9),
        ratio("visits", "visit 100", BROADCAST, IN_PLACE),
    ),
    (
        "a socket in each of 1000 by `scope`, to setns in place",
        AtMost(0.9),
        ratio("visits", "visit 1000", SCOPE, IN_PLACE),
    ),
    (
        "a socket in each of 1000 by `broadcast`, to setns in place",
        AtMost(0.9),
        ratio("visits", "visit 1000", BROADCAST, IN_PLACE),
    ),
    (
        "a socket from a full stock, to setns in place",
        AtMost(0.1),
        ratio(STOCK, ONE_SOCKET, FULL_STOCK, IN_PLACE),
    ),
    (
        "a socket from an empty stock, to `run`",
        AtMost(1.2),
        ratio(STOCK, ONE_SOCKET, EMPTY_STOCK, OURS),
    ),
    (
        "`spawn`, times the throughput of the best channel or pool",
        AtLeast(1.0),
        best_over("spawn", "spawn", OUR_SPAWN),
    ),
    (
        "`spawn` from 2 threads, times the throughput of the best channel or pool",
        AtLeast(1.0),
        best_over("spawn", "spawn from 2 threads", OUR_SPAWN),
    ),
    (
        "`spawn` from 8 threads, times the throughput of the best channel or pool",
        AtLeast(1.0),
        best_over("spawn", "spawn from 8 threads", OUR_SPAWN),
    ),
    (
        "`spawn_batch` of 64, times the throughput of the best channel or pool",
        AtLeast(1.5),
        best_over("spawn", "spawn", OUR_BATCH),
    ),
    (
        "`spawn` + `join`, sleep 1ms, to a futex on one CPU",
        AtMost(1.8),
        ratio("latency", "sleep 1ms", SPAWN_JOIN, FUTEX_ONE_CPU),
    ),
    (
        "8 callers opening sockets, ALL_CPUS, times the throughput of setns in place",
        AtLeast(0.8),
        ratio(CROWD, EIGHT_CALLERS, IN_PLACE, ALL_CPUS),
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
            Source::ToOurs {
                section,
                scene,
                label,
            } => row(section, scene, label)?.to_ours,
            Source::Ratio {
                section,
                scene,
                label,
                base,
            } => Some(row(section, scene, label)?.to_others.get(base)?.p50),
            Source::P99Ratio {
                section,
                scene,
                label,
                base,
            } => Some(row(section, scene, label)?.to_others.get(base)?.p99),
            // Only when all were measured: the best of some is no best.
            Source::BestOver {
                section,
                scene,
                label,
                bases,
            } => (bases.iter())
                .map(|base| Some(row(section, scene, base)?.to_others.get(label)?.p50))
                .collect::<Option<Vec<Spread>>>()?
                .into_iter()
                .min_by(|one, other| one.median.total_cmp(&other.median)),
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
    use crate::sections::contest::{Against, Row};

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
            to_others: Default::default(),
            woken_by: None,
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
        let figure = "hot `run`, small closure, to a spin ping-pong";
        let with = |times| vec![row("hot", OURS, times, 1.0)];
        assert_eq!(reached(with(1.15), figure), Some(true));
        assert_eq!(reached(with(1.16), figure), Some(false));
    }

    /// A row that is `times` each of `others`.
    fn against(section: &str, scene: &str, label: &str, others: &[(&str, f64)]) -> Row {
        let against = |times| Against {
            p50: Spread::exactly(times),
            p99: Spread::exactly(times * 2.0),
        };
        Row {
            section: section.into(),
            to_others: (others.iter())
                .map(|(other, times)| ((*other).to_owned(), against(*times)))
                .collect(),
            ..row(scene, label, 1.0, 1.0)
        }
    }

    #[test]
    fn ratio_is_held_at_the_median_and_at_the_tail() {
        let rows = || {
            vec![against(
                "latency",
                "busy 1ms",
                OURS,
                &[(FUTEX_ONE_CPU, 1.0)],
            )]
        };
        let figure = "parked `run`, busy 1ms, to a futex on one CPU";
        assert_eq!(reached(rows(), figure), Some(true));
        assert_eq!(reached(rows(), &format!("{figure}, p99")), Some(false));
    }

    #[test]
    fn best_of_several_is_the_fastest_and_needs_all_of_them() {
        let figure = "`spawn`, times the throughput of the best channel or pool";
        let mut rows: Vec<Row> = [STD_SPAWN, CROSSBEAM_SPAWN, RAYON_SPAWN, TOKIO]
            .map(|label| against("spawn", "spawn", label, &[(OUR_SPAWN, 2.0)]))
            .into();
        assert_eq!(reached(rows.clone(), figure), Some(true));
        rows[2] = against("spawn", "spawn", RAYON_SPAWN, &[(OUR_SPAWN, 0.9)]);
        assert_eq!(reached(rows.clone(), figure), Some(false));
        rows.pop();
        assert_eq!(reached(rows, figure), None);
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
