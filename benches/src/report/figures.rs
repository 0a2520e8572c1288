//! What was found, as data; its JSON is what machines read.

use serde::{Deserialize, Serialize};

use crate::conditions::machine::Machine;
use crate::sections::allocations::Allocations;
use crate::sections::contest::Row;
use crate::sections::footprint::Footprint;
use netns_exec_measure::Spread;

/// Everything that a run found, or several together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Where and of what.
    pub machine: Machine,
    /// How many runs this combines; `None` when it is of one.
    pub runs: Option<usize>,
    /// How many turns each had in the section of latencies, in each run.
    pub rounds: usize,
    /// All that was timed.
    pub rows: Vec<Row>,
    /// Allocations for each call.
    pub allocations: Vec<Allocations>,
    /// What idle workers cost.
    pub footprints: Vec<Footprint>,
    /// What was to be reached.
    #[serde(rename = "targets")]
    pub goals: Vec<Goal>,
}

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
    pub(super) fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtMost(bound) => value <= bound,
            Bound::AtLeast(bound) => value >= bound,
            Bound::Within(bound) => value.abs() <= bound,
        }
    }
}

/// One figure, what it has to be, and what it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Goal {
    /// What is measured, in words.
    pub figure: String,
    /// What it has to be.
    pub bound: Bound,
    /// What it was; `None` when it was not measured.
    pub measured: Option<Spread>,
    /// Whether the median is within the bound.
    pub reached: Option<bool>,
}
