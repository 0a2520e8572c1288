//! Turns, rounds and rows: which contestant is measured when, and against which.
//!
//! A contest is a set of contestants under the same conditions. Each has one
//! turn in every round; the order of contests within a round and of contestants
//! within a contest is shuffled anew each time, so that a drift of the machine
//! or the wake of one contestant falls on all alike.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::thread;
use std::time::Duration;

use rand::seq::SliceRandom;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::conditions::cpus::Hogs;
use crate::conditions::quiet;
use crate::peers::Group;
use netns_exec_measure::{Rounds, Spread};

/// A peer that is measured.
pub struct Contestant<'a> {
    /// As the tables and `--only` know it.
    pub label: String,
    /// On which side it stands.
    pub group: Group,
    /// Takes one turn and returns its samples.
    pub turn: Box<dyn FnMut() -> Vec<f64> + 'a>,
    rounds: Rounds,
}

impl<'a> Contestant<'a> {
    /// Puts a turn under a label.
    pub fn new(
        label: impl Into<String>,
        group: Group,
        turn: impl FnMut() -> Vec<f64> + 'a,
    ) -> Contestant<'a> {
        Contestant {
            label: label.into(),
            group,
            turn: Box::new(turn),
            rounds: Rounds::default(),
        }
    }
}

/// What of all there is shall be measured.
#[derive(Clone, Debug, Default)]
pub struct Filter(pub Option<Regex>);

impl Filter {
    /// Whether `SECTION/SCENE/GROUP/LABEL` is asked for.
    pub fn matches(&self, section: &str, scene: &str, group: Group, label: &str) -> bool {
        let path = path(section, scene, group, label);
        self.0.as_ref().is_none_or(|only| only.is_match(&path))
    }
}

/// The name of one figure among all that are measured.
pub fn path(section: &str, scene: &str, group: Group, label: &str) -> String {
    format!("{section}/{scene}/{}/{label}", group.name())
}

/// Contestants under the same conditions.
pub struct Contest<'a> {
    /// The part of the report that it belongs to.
    pub section: &'static str,
    /// The conditions.
    pub scene: String,
    /// Whether every CPU also runs something else.
    pub hogs: bool,
    /// The label that the rows are held against as a floor, if it takes part.
    pub floor: &'static str,
    /// The label that the rows are held against as ours, if it takes part.
    pub ours: &'static str,
    /// The peers that take part.
    pub contestants: Vec<Contestant<'a>>,
}

impl Contest<'_> {
    /// Leaves those that `filter` asks for, and the floors when any are left.
    pub fn keep(&mut self, filter: &Filter) {
        let (section, scene) = (self.section, self.scene.clone());
        let matches = |contestant: &Contestant<'_>| {
            filter.matches(section, &scene, contestant.group, &contestant.label)
        };
        if self.contestants.iter().any(matches) {
            (self.contestants).retain(|each| each.group == Group::Floor || matches(each));
        } else {
            self.contestants.clear();
        }
    }

    fn rounds_of(&self, label: &str) -> Option<&Rounds> {
        let contestant = self.contestants.iter().find(|each| each.label == label)?;
        Some(&contestant.rounds)
    }

    /// Holds `rounds` against those of all others than `label`.
    fn to_others(&self, label: &str, rounds: &Rounds) -> BTreeMap<String, Against> {
        (self.contestants.iter())
            .filter(|other| other.label != label)
            .filter_map(|other| {
                let against = Against {
                    p50: rounds.ratio_to(&other.rounds)?,
                    p99: Spread::exactly(rounds.p99()? / other.rounds.p99()?),
                };
                Some((other.label.clone(), against))
            })
            .collect()
    }

    /// Sums up what was measured.
    pub fn rows(&self) -> Vec<Row> {
        let floor = self.rounds_of(self.floor);
        let ours = self.rounds_of(self.ours);
        (self.contestants.iter())
            .filter_map(
                |Contestant {
                     label,
                     group,
                     rounds,
                     ..
                 }| {
                    Some(Row {
                        section: self.section.to_owned(),
                        scene: self.scene.clone(),
                        label: label.clone(),
                        group: *group,
                        ns: rounds.typical()?,
                        p99_ns: rounds.p99().map(Spread::exactly)?,
                        to_floor: floor.and_then(|floor| rounds.ratio_to(floor)),
                        p99_to_floor: floor
                            .and_then(|floor| Some(Spread::exactly(rounds.p99()? / floor.p99()?))),
                        to_ours: ours.and_then(|ours| rounds.ratio_to(ours)),
                        to_others: self.to_others(label, rounds),
                        woken_by: None,
                        ns_beyond_ours: ours.and_then(|ours| rounds.difference_to(ours)),
                    })
                },
            )
            .collect()
    }
}

/// How many times another contestant one is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Against {
    /// By round.
    pub p50: Spread,
    /// At the 99th percentile over all rounds.
    pub p99: Spread,
}

/// What one contestant showed in one contest. Lower is better throughout.
///
/// Those of several runs, [combined](crate::report::combine), are over runs and not
/// over rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The part of the report that it belongs to.
    pub section: String,
    /// The conditions.
    pub scene: String,
    /// The contestant.
    pub label: String,
    /// On which side.
    pub group: Group,
    /// Nanoseconds a call: the median of the rounds' medians.
    pub ns: Spread,
    /// The 99th percentile over all rounds.
    pub p99_ns: Spread,
    /// How many times the floor, by round.
    pub to_floor: Option<Spread>,
    /// How many times the floor at the 99th percentile.
    pub p99_to_floor: Option<Spread>,
    /// How many times our figure, by round.
    pub to_ours: Option<Spread>,
    /// How many times each other contestant, by label: what targets are held against.
    pub to_others: BTreeMap<String, Against>,
    /// What wakes our workers where they sleep: `bell` or `futex`, see
    /// [`NetnsStats::rung`](netns_exec::NetnsStats::rung).
    pub woken_by: Option<String>,
    /// Nanoseconds more than our figure, by round.
    pub ns_beyond_ours: Option<Spread>,
}

/// The pause that follows contests beside hogs: ours wait in other ways for a second at the
/// most, see `turns.rs` in the library.
const AFTER_HOGS: Duration = Duration::from_millis(1100);

/// Lets each contestant have `rounds` turns, interleaved. Contests beside hogs come after the
/// others, and are followed by a pause: for a while after busy neighbours threads wait in
/// other ways.
///
/// # Errors
///
/// When a thread keeps running after its turn: what followed would be wrong.
pub fn hold(contests: &mut [Contest<'_>], rounds: usize, hogs: &Hogs) -> Result<()> {
    let (mut beside_hogs, mut others): (Vec<_>, Vec<_>) =
        contests.iter_mut().partition(|contest| contest.hogs);
    hold_together(&mut others, rounds, hogs)?;
    hold_together(&mut beside_hogs, rounds, hogs)?;
    if beside_hogs
        .iter()
        .any(|contest| !contest.contestants.is_empty())
    {
        thread::sleep(AFTER_HOGS);
    }
    Ok(())
}

fn hold_together(contests: &mut [&mut Contest<'_>], rounds: usize, hogs: &Hogs) -> Result<()> {
    let ignored = hogs.tids();
    let mut rng = rand::rng();
    let mut order: Vec<usize> = (0..contests.len()).collect();
    for round in 0..rounds {
        report_progress(contests, round, rounds)?;
        order.shuffle(&mut rng);
        for &index in &order {
            let contest = &mut contests[index];
            // Also fixes where a contestant's line lies in memory, which the
            // shuffle of indices leaves alone.
            let mut turns: Vec<_> = contest.contestants.iter_mut().collect();
            turns.shuffle(&mut rng);
            let busy = (contest.hogs && !turns.is_empty()).then(|| hogs.run());
            for contestant in turns {
                quiet::wait(&ignored)?;
                let samples = (contestant.turn)();
                contestant.rounds.push_round(&samples);
            }
            drop(busy);
        }
    }
    report_progress(contests, rounds, rounds)
}

fn report_progress(contests: &[&mut Contest<'_>], round: usize, rounds: usize) -> Result<()> {
    let mut stderr = std::io::stderr();
    let Some(section) = contests.first().map(|contest| contest.section) else {
        return Ok(());
    };
    if stderr.is_terminal() {
        write!(stderr, "\r{section}: round {round} of {rounds}")?;
        if round == rounds {
            writeln!(stderr)?;
        }
    } else if round == 0 {
        writeln!(stderr, "{section}: {rounds} rounds")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contest<'a>() -> Contest<'a> {
        let fixed = |value: f64| move || vec![value];
        Contest {
            section: "latency",
            scene: "hot".into(),
            hogs: false,
            floor: "spin",
            ours: "run",
            contestants: vec![
                Contestant::new("spin", Group::Floor, fixed(100.0)),
                Contestant::new("run", Group::Ours, fixed(110.0)),
                Contestant::new("channel", Group::Peer, fixed(1100.0)),
            ],
        }
    }

    fn labels(contest: &Contest<'_>) -> Vec<String> {
        (contest.contestants.iter())
            .map(|each| each.label.clone())
            .collect()
    }

    #[test]
    fn rows_are_held_against_floor_and_ours() {
        let mut contest = contest();
        for contestant in &mut contest.contestants {
            for _ in 0..3 {
                let samples = (contestant.turn)();
                contestant.rounds.push_round(&samples);
            }
        }
        let rows = contest.rows();
        assert_eq!(rows[1].to_floor.unwrap().median, 1.1);
        assert_eq!(rows[2].to_ours.unwrap().median, 10.0);
        assert_eq!(rows[2].p99_to_floor.unwrap().median, 11.0);
        assert_eq!(rows[2].to_others["run"].p50.median, 10.0);
        assert_eq!(rows[2].to_others["spin"].p99.median, 11.0);
        assert!(!rows[2].to_others.contains_key("channel"));
        assert_eq!(rows[1].ns_beyond_ours.unwrap().median, 0.0);
    }

    #[test]
    fn only_keeps_the_floor_of_those_it_keeps() {
        let mut some = contest();
        some.keep(&Filter(Some(Regex::new("/ours/").unwrap())));
        assert_eq!(labels(&some), ["spin", "run"]);
        let mut none = contest();
        none.keep(&Filter(Some(Regex::new("throughput").unwrap())));
        assert!(none.contestants.is_empty());
    }

    #[test]
    fn contest_without_turns_makes_no_row() {
        assert!(contest().rows().is_empty());
    }
}
