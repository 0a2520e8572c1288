//! What came of all commands together: the exit status, and a summary.

use serde::Serialize;

use super::command::Outcome;
use super::plan::Plan;
use super::render::json_line;
use crate::netns_arg::Labelled;

pub(super) struct Tally<'a> {
    plan: &'a Plan,
    /// How each that failed did, in the order of their ends.
    failures: Vec<(&'a Labelled, String)>,
    /// Those that exec ended because of another.
    unwanted: usize,
    failed_starts: usize,
    highest: u8,
    /// That of the first that failed.
    first: Option<u8>,
    /// Whether something was shown since the last failure was told.
    shown_since: bool,
}

#[derive(Serialize)]
struct SummaryEvent {
    event: &'static str,
    version: u32,
    commands: usize,
    failed: usize,
    not_started: usize,
    status: u8,
}

impl<'a> Tally<'a> {
    pub(super) fn new(plan: &'a Plan) -> Tally<'a> {
        Tally {
            plan,
            failures: Vec::new(),
            unwanted: 0,
            failed_starts: 0,
            highest: 0,
            first: None,
            shown_since: false,
        }
    }

    /// Takes note that a command has written something.
    pub(super) fn output(&mut self) {
        self.shown_since = true;
    }

    pub(super) fn has_failed_start(&self) -> bool {
        self.failed_starts > 0
    }

    /// Takes note of a command that could not be started, which was told already.
    pub(super) fn not_startable(&mut self, of: &'a Labelled, status: u8) {
        self.failed_starts += 1;
        self.fail(of, "could not be started".to_owned(), status);
    }

    fn fail(&mut self, of: &'a Labelled, how: String, status: u8) {
        self.failures.push((of, how));
        self.shown_since = false;
        self.highest = self.highest.max(status);
        self.first.get_or_insert(status);
    }

    /// Takes note of a command's end, and returns what there is to tell. An
    /// `expected` one is none that failed.
    pub(super) fn ended(
        &mut self,
        of: &'a Labelled,
        outcome: &Outcome,
        expected: bool,
    ) -> Option<String> {
        let Some(status) = outcome.status else {
            self.unwanted += 1;
            return None;
        };
        if expected {
            self.highest = self.highest.max(status);
            return None;
        }
        if !outcome.has_failed() {
            return None;
        }
        let how = outcome.describe();
        let text = format!("{} {how} in netns `{}`", self.program(), of.label.display());
        self.fail(of, how, status);
        Some(text)
    }

    fn program(&self) -> String {
        format!("`{}`", self.plan.command[0].display())
    }

    /// The exit status of them all.
    pub(super) fn status(&self) -> u8 {
        match self.plan.fail_fast {
            true => self.first.unwrap_or(self.highest),
            false => self.highest,
        }
    }

    /// What is left to say at the end: nothing when all went well, or when the one
    /// failure is what was told last.
    pub(super) fn summary(&self, unstarted: usize) -> Option<String> {
        let others = self.unwanted + unstarted;
        let told = self.failures.len() == 1 && !self.shown_since;
        if others == 0 && (self.failures.is_empty() || told) {
            return None;
        }
        let all = self.plan.namespaces.len();
        let mut parts = Vec::new();
        if !self.failures.is_empty() {
            let failed = self.failures.len();
            let program = self.program();
            let by_kind = self.by_kind();
            parts.push(format!(
                "{program} failed in {failed} of {all} namespaces: {by_kind}"
            ));
        }
        if self.unwanted > 0 {
            parts.push(format!("{} ended because of that", self.unwanted));
        }
        if unstarted > 0 {
            parts.push(format!("{unstarted} not started"));
        }
        Some(parts.join("; "))
    }

    /// `ended with status 1 in blue, red and 5 more, timed out after 1.0 s in x`.
    fn by_kind(&self) -> String {
        const SHOWN: usize = 5;
        let mut kinds: Vec<(&str, Vec<String>)> = Vec::new();
        for (of, how) in &self.failures {
            // How long it took differs.
            let how = how.split(" after ").next().unwrap_or(how);
            let label = of.label.display().to_string();
            match kinds.iter_mut().find(|(known, _)| *known == how) {
                Some((_, labels)) => labels.push(label),
                None => kinds.push((how, vec![label])),
            }
        }
        let kind = |(how, labels): &(&str, Vec<String>)| {
            let shown = labels[..labels.len().min(SHOWN)].join(", ");
            match labels.len().saturating_sub(SHOWN) {
                0 => format!("{how} in {shown}"),
                more => format!("{how} in {shown} and {more} more"),
            }
        };
        kinds.iter().map(kind).collect::<Vec<_>>().join("; ")
    }

    /// The same as an event.
    pub(super) fn json(&self, unstarted: usize, status: u8) -> Vec<u8> {
        json_line(&SummaryEvent {
            event: "summary",
            version: 1,
            commands: self.plan.namespaces.len(),
            failed: self.failures.len(),
            not_started: unstarted,
            status,
        })
    }
}
