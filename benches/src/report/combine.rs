//! Several runs as one.
//!
//! What a process keeps for life, such as where its memory lies, moves all
//! rounds of a run alike. So what is published is the median over runs of each
//! run's median, with the smallest and the largest run beside it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::figures::Report;
use super::goals::goals;
use crate::Result;
use crate::conditions::machine::Machine;
use crate::sections::allocations::{self, Allocations};
use crate::sections::contest::{self, Against, Row};
use crate::sections::fleet;
use crate::sections::footprint::{self, Footprint};
use netns_exec_measure::Spread;

/// What one run left behind.
pub struct Run {
    file: PathBuf,
    report: Report,
}

impl Run {
    /// Reads the results in `directory`.
    ///
    /// # Errors
    ///
    /// When there are none, or this version did not write them.
    pub fn read(directory: &Path) -> Result<Run> {
        let file = directory.join("results.json");
        let read = || -> Result<Report> { Ok(serde_json::from_slice(&fs::read(&file)?)?) };
        match read() {
            Ok(report) => Ok(Run { file, report }),
            Err(cause) => Err(format!("cannot read `{}`: {cause}", file.display()).into()),
        }
    }

    /// Fails unless this was measured as `first` was.
    fn check(&self, first: &Run) -> Result<()> {
        let file = self.file.display();
        if self.report.runs.is_some() {
            return Err(format!("`{file}` combines several runs itself").into());
        }
        for ((what, own), (_, other)) in self.conditions().iter().zip(first.conditions()) {
            if *own != other {
                let first = first.file.display();
                return Err(
                    format!("`{file}` is of {what} `{own}`, but `{first}` of `{other}`").into(),
                );
            }
        }
        Ok(())
    }

    /// What has to be the same in all runs.
    fn conditions(&self) -> [(&'static str, String); 6] {
        let Machine {
            kernel,
            cpu,
            cores,
            load: _,
            commit,
            command,
        } = &self.report.machine;
        [
            ("CPU", cpu.clone()),
            ("CPU count", cores.to_string()),
            ("kernel", kernel.clone()),
            ("commit", commit.clone()),
            ("command", command.clone()),
            ("round count", self.report.rounds.to_string()),
        ]
    }
}

/// Puts several runs together.
///
/// # Errors
///
/// When there are fewer than two, when they are not of one machine, kernel,
/// commit and command, or when one lacks a figure that another has.
pub fn combine(runs: &[Run]) -> Result<Report> {
    let [first, _, ..] = runs else {
        return Err("it takes two runs or more to combine".into());
    };
    for run in runs {
        run.check(first)?;
    }
    let loads: Vec<&str> = (runs.iter()).map(|run| &*run.report.machine.load).collect();
    let mut report = Report {
        machine: Machine {
            load: loads.join(", "),
            ..first.report.machine.clone()
        },
        runs: Some(runs.len()),
        rounds: first.report.rounds,
        rows: figures(runs, |report| &report.rows)?,
        allocations: figures(runs, |report| &report.allocations)?,
        footprints: figures(runs, |report| &report.footprints)?,
        goals: Vec::new(),
    };
    report.goals = goals(&report);
    Ok(report)
}

/// One kind of figure, found in every run.
trait Figure {
    /// Tells it from all others in a run.
    fn path(&self) -> String;

    /// Combines the same figure of all runs.
    fn over(runs: &[&Self]) -> Self;
}

fn figures<T: Figure>(runs: &[Run], of: fn(&Report) -> &Vec<T>) -> Result<Vec<T>> {
    let mut paths: Vec<String> = Vec::new();
    for figure in runs.iter().flat_map(|run| of(&run.report)) {
        let path = figure.path();
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    (paths.iter())
        .map(|path| {
            let same: Vec<&T> = (runs.iter())
                .map(|run| {
                    let found = of(&run.report).iter().find(|each| each.path() == *path);
                    found.ok_or_else(|| format!("`{}` lacks `{path}`", run.file.display()))
                })
                .collect::<Result<_, _>>()?;
            Ok(T::over(&same))
        })
        .collect()
}

impl Figure for Row {
    fn path(&self) -> String {
        contest::path(&self.section, &self.scene, self.group, &self.label)
    }

    fn over(runs: &[&Row]) -> Row {
        Row {
            ns: median(runs, |row| row.ns),
            p99_ns: median(runs, |row| row.p99_ns),
            to_floor: median_if_any(runs, |row| row.to_floor),
            p99_to_floor: median_if_any(runs, |row| row.p99_to_floor),
            to_ours: median_if_any(runs, |row| row.to_ours),
            to_others: over_others(runs),
            woken_by: all_of(runs),
            ns_beyond_ours: median_if_any(runs, |row| row.ns_beyond_ours),
            ..runs[0].clone()
        }
    }
}

/// What woke the workers, each that there was.
fn all_of(runs: &[&Row]) -> Option<String> {
    let mut wakes: Vec<&str> = (runs.iter())
        .filter_map(|row| row.woken_by.as_deref())
        .collect();
    wakes.sort_unstable();
    wakes.dedup();
    (!wakes.is_empty()).then(|| wakes.join(" or "))
}

/// Against those that took part in every run.
fn over_others(runs: &[&Row]) -> BTreeMap<String, Against> {
    (runs[0].to_others.keys())
        .filter_map(|other| {
            let against = Against {
                p50: median_if_any(runs, |row| Some(row.to_others.get(other)?.p50))?,
                p99: median_if_any(runs, |row| Some(row.to_others.get(other)?.p99))?,
            };
            Some((other.clone(), against))
        })
        .collect()
}

impl Figure for Allocations {
    fn path(&self) -> String {
        contest::path(allocations::SECTION, &self.scene, self.group, &self.label)
    }

    /// What is promised of allocations has to hold in every run.
    fn over(runs: &[&Allocations]) -> Allocations {
        Allocations {
            each: runs.iter().map(|run| run.each).fold(0.0, f64::max),
            ..runs[0].clone()
        }
    }
}

impl Figure for Footprint {
    fn path(&self) -> String {
        let scene = fleet::scene(self.workers);
        contest::path(footprint::SECTION, &scene, self.group, &self.label)
    }

    fn over(runs: &[&Footprint]) -> Footprint {
        Footprint {
            resident_bytes_each: median(runs, |run| run.resident_bytes_each),
            idle_cpu_share: median(runs, |run| run.idle_cpu_share),
            ..runs[0].clone()
        }
    }
}

fn median<T>(runs: &[&T], of: impl Fn(&T) -> Spread) -> Spread {
    median_if_any(runs, |run| Some(of(run))).expect("there are two runs or more")
}

/// `None` when a run has none: no contestant took part to hold it against.
fn median_if_any<T>(runs: &[&T], of: impl Fn(&T) -> Option<Spread>) -> Option<Spread> {
    let medians: Option<Vec<f64>> = (runs.iter()).map(|run| Some(of(run)?.median)).collect();
    Spread::of(&medians?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{Group, OURS, SPIN};
    use crate::report::Goal;

    fn spread(median: f64) -> Spread {
        Spread::of(&[median / 10.0, median, median * 10.0]).unwrap()
    }

    /// A row whose figures are all `figure`, far apart within the run.
    fn row(label: &str, group: Group, figure: f64) -> Row {
        Row {
            section: "latency".into(),
            scene: "hot".into(),
            label: label.into(),
            group,
            ns: spread(figure),
            p99_ns: Spread::exactly(figure),
            to_floor: Some(spread(figure)),
            p99_to_floor: Some(Spread::exactly(figure)),
            to_ours: None,
            to_others: BTreeMap::new(),
            woken_by: None,
            ns_beyond_ours: None,
        }
    }

    fn run(name: &str, figure: f64) -> Run {
        let footprint = Footprint {
            label: OURS.into(),
            group: Group::Ours,
            workers: 1000,
            resident_bytes_each: Spread::exactly(figure * 1024.0),
            idle_cpu_share: Spread::exactly(figure),
        };
        let allocations = Allocations {
            scene: "call".into(),
            label: OURS.into(),
            group: Group::Ours,
            each: figure,
        };
        Run {
            file: Path::new(name).join("results.json"),
            report: Report {
                machine: Machine {
                    cpu: "EPYC".into(),
                    load: figure.to_string(),
                    commit: "c0ffee".into(),
                    ..Machine::default()
                },
                rounds: 30,
                rows: vec![row(SPIN, Group::Floor, 1.0), row(OURS, Group::Ours, figure)],
                allocations: vec![allocations],
                footprints: vec![footprint],
                ..Report::default()
            },
        }
    }

    fn three() -> [Run; 3] {
        [run("a", 3.0), run("b", 1.0), run("c", 1.125)]
    }

    fn refusal(runs: &[Run]) -> String {
        combine(runs).expect_err("a refusal").to_string()
    }

    #[test]
    fn figures_are_medians_of_medians_and_extremes_are_those_of_runs() {
        let report = combine(&three()).unwrap();
        let over_runs = Spread {
            median: 1.125,
            min: 1.0,
            max: 3.0,
        };
        let ours = &report.rows[1];
        assert_eq!((ours.label.as_str(), ours.ns), (OURS, over_runs));
        assert_eq!(ours.p99_ns, over_runs);
        assert_eq!(ours.to_floor, Some(over_runs));
        assert_eq!(ours.p99_to_floor, Some(over_runs));
        assert_eq!(ours.to_ours, None);
        assert_eq!(report.footprints[0].idle_cpu_share, over_runs);
        assert_eq!(report.allocations[0].each, 3.0);
    }

    #[test]
    fn goal_is_reached_by_the_median_over_runs() {
        let report = combine(&three()).unwrap();
        let hot = &report.goals[0];
        assert_eq!(hot.measured.unwrap().max, 3.0);
        assert_eq!(hot.reached, Some(true));
        assert!(report.markdown().contains("1.12 (1.00..3.00) | <= 1.15 |"));
    }

    #[test]
    fn allocation_in_one_run_is_one_too_many() {
        let report = combine(&three()).unwrap();
        let missed = |goal: &&Goal| goal.reached == Some(false);
        let missed: Vec<_> = (report.goals.iter().filter(missed))
            .map(|goal| &*goal.figure)
            .collect();
        assert!(missed.contains(&"allocations per `run`"), "{missed:?}");
    }

    #[test]
    fn text_names_runs_and_rounds_machine_and_loads() {
        let report = combine(&three()).unwrap();
        for text in [report.markdown(), report.summary()] {
            assert!(
                text.contains("Medians over 3 runs of 30 interleaved rounds"),
                "{text}"
            );
            assert!(
                text.contains("load 3, 1, 1.125 at the start, commit c0ffee"),
                "{text}"
            );
        }
    }

    #[test]
    fn one_run_is_not_combined() {
        assert!(refusal(&[run("a", 1.0)]).contains("two runs or more"));
    }

    #[test]
    fn combination_is_not_combined_again() {
        let mut runs = three();
        runs[2].report = combine(&runs).unwrap();
        assert_eq!(
            refusal(&runs),
            "`c/results.json` combines several runs itself"
        );
    }

    #[test]
    fn runs_of_different_commits_or_kernels_are_refused() {
        let mut runs = three();
        runs[1].report.machine.commit = "decaf".into();
        assert_eq!(
            refusal(&runs),
            "`b/results.json` is of commit `decaf`, but `a/results.json` of `c0ffee`"
        );
        let mut runs = three();
        runs[2].report.machine.kernel = "6.1".into();
        assert!(refusal(&runs).starts_with("`c/results.json` is of kernel `6.1`"));
    }

    #[test]
    fn figure_that_one_run_lacks_is_named_with_its_file() {
        let mut runs = three();
        runs[0].report.rows.pop();
        assert_eq!(
            refusal(&runs),
            format!("`a/results.json` lacks `latency/hot/ours/{OURS}`")
        );
    }

    #[test]
    fn results_that_cannot_be_read_are_named() {
        let read = |directory: &str| Run::read(Path::new(directory)).err().unwrap().to_string();
        let said = read("/nonexistent");
        assert!(
            said.starts_with("cannot read `/nonexistent/results.json`: No such file"),
            "{said}"
        );
    }
}
