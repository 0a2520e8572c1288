//! From a request to a lease: the walk over the ports.
//!
//! Unbound sockets come out of the namespaces in one round trip each, and the
//! walk itself happens on the calling thread: it claims a port in the table,
//! and attempts it. When that finds the port in use, the claim is dropped, and
//! the next port is tried. When many fail in a row, the kernel is asked to
//! choose.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::attempt::{Attempt, Attempts, Given};
use super::cancel::Patience;
use super::error::{Counts, Error};
use super::holds::Hold;
use super::lease::Lease;
use super::opener::{OpenRequest, Opener};
use super::plan::{Budget, Choice, Plan};
use super::range::{Span, random};
use super::table::{Binding, ClaimOutcome};

/// After so many ports in use, one after the other, the kernel is asked. It
/// takes about as long to ask as to try this many.
const STREAK: u32 = 32;
/// How often a lap asks the kernel. Its choice may be in use elsewhere.
const QUESTIONS: u32 = 4;
/// The least that a broker is waited for, by a walk whose deadline was in time: one
/// that runs answers in far less, and a short deadline still gets a port looked at.
const GRACE: Duration = Duration::from_millis(100);
/// How long to wait at a time for another request to decide about a port; a
/// bound, so that a deadline or a cancellation is seen.
const DECISION: Duration = Duration::from_millis(10);

pub(super) struct Walk {
    plan: Plan,
    /// For waits: `retry_for` counts from the beginning of the walk.
    patience: Patience,
    /// The deadline had passed before the walk began.
    is_late: bool,
    attempts: Attempts,
    counts: Counts,
    /// How many ports were in use, one after the other.
    streak: u32,
    /// The port that was looked at last: where the next walk goes on, however
    /// this one ends. Were it kept on success only, a budget smaller than a
    /// stretch of ports in use would never let a request past them.
    reached: Option<u16>,
}

/// What became of one port.
enum PortOutcome {
    Leased(Lease),
    /// Another lease of this allocator has it, here.
    Taken(Binding),
    /// Another request is trying it.
    Pending,
    /// Another program has it, or this one of its block; the failure is the last
    /// one.
    InUse(u16),
    /// It needs a privilege; the failure is the last one.
    Denied,
    /// A member's address cannot be bound yet; the failure is the last one.
    Tentative,
}

/// What came of asking the kernel for a port.
enum KernelChoice {
    Leased(Lease),
    /// It chose a port that cannot be had elsewhere.
    Lost,
    /// There is no point in asking again.
    Useless,
}

/// Why a walk stops before its end.
enum Stop {
    Tries,
    Deadline,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

impl Walk {
    /// Prepares a plan that [`Plan::check`] has passed.
    pub(super) fn new(plan: Plan) -> Walk {
        let retry_until = (plan.retry_for).and_then(|time| Instant::now().checked_add(time));
        let patience = Patience {
            cancel: plan.cancel.clone(),
            deadline: match plan.budget {
                Budget::Deadline(end) => Some(end),
                _ => retry_until,
            },
        };
        let is_late = matches!(plan.budget, Budget::Deadline(end) if Instant::now() >= end);
        let mut for_brokers = patience.clone();
        if !is_late {
            let least = Instant::now() + GRACE;
            for_brokers.deadline = patience.deadline.map(|end| end.max(least));
        }
        Walk {
            attempts: Attempts::new(&plan, for_brokers),
            is_late,
            patience,
            plan,
            counts: Counts::default(),
            streak: 0,
            reached: None,
        }
    }

    pub(super) fn run(mut self) -> Result<Lease, Error> {
        let prepared = self.attempts.leave_out_missing_families();
        let outcome = prepared.and_then(|()| match self.plan.choice.take() {
            Some(Choice::Exact(port)) => self.exact(port),
            Some(Choice::Range(range)) => self.range(&Span::new(range)),
            Some(Choice::Dynamic { of }) => self.dynamic(&*of).and_then(|span| self.range(&span)),
            None => unreachable!("a request without ports is refused"),
        });
        outcome.map_err(|error| error.counted(self.counts))
    }

    /// Tries one port, once or for a while.
    fn exact(&mut self, port: u16) -> Result<Lease, Error> {
        let mut pause = Duration::from_millis(1);
        loop {
            self.check_cancelled()?;
            let error = match self.try_port(port, DECISION)? {
                PortOutcome::Leased(lease) => return Ok(lease),
                PortOutcome::Pending => continue,
                PortOutcome::Denied => return Err(self.last_error()),
                PortOutcome::InUse(_) | PortOutcome::Tentative => self.last_error(),
                PortOutcome::Taken(binding) => {
                    let leased = self.attempts.endpoint(binding);
                    Error::already_leased(leased, port + binding.offset)
                }
            };
            let left = match self.plan.retry_for {
                Some(_) => self.patience.bound(Duration::MAX),
                None => Duration::ZERO,
            };
            if left.is_zero() {
                return Err(error);
            }
            self.notice(&error);
            self.plan.cancel.sleep(about(pause).min(left));
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Tells the caller that the request waits, and what for.
    fn notice(&self, error: &Error) {
        tracing::debug!(%error, "a request for a port waits");
        if let Some(on_wait) = &self.plan.on_wait {
            on_wait(error);
        }
    }

    /// Reads the range to walk over, and along with it fetches the first
    /// sockets.
    fn dynamic(&mut self, of: &dyn Opener) -> Result<Span, Error> {
        let mut range = None;
        let mut reserved = Vec::new();
        for (netns, ports) in self.attempts.restock_with_settings()? {
            if netns == of.netns() {
                range = Some(ports.range);
            }
            reserved.extend(ports.reserved);
        }
        let range = match range {
            Some(range) => range,
            None => {
                let request = OpenRequest {
                    specs: Vec::new(),
                    local_ports: true,
                };
                let ports = of.open(&request, &self.patience)?.local_ports;
                ports.expect("the settings were asked for").range
            }
        };
        Ok(Span { range, reserved })
    }

    /// Walks over a range as often as the budget allows.
    fn range(&mut self, span: &Span) -> Result<Lease, Error> {
        let cursor = self.plan.holds.cursor(&self.plan.protocols, &span.range);
        if let Some(netns) = cursor.contended {
            self.attempts.begin_with(netns);
        }
        let outcome = self.laps(span, cursor.next);
        if let Some(port) = self.reached {
            let contended = self.attempts.contended().or(cursor.contended);
            let protocols = &self.plan.protocols;
            (self.plan.holds).move_cursor(protocols, &span.range, port, contended);
        }
        let stop = match outcome {
            Ok(lease) => return Ok(lease),
            Err(stop) => stop,
        };
        let last = self.attempts.last_error();
        let last = last.map(|error| error.counted(self.counts));
        let protocols = &self.plan.protocols;
        Err(match stop {
            Stop::Tries => Error::exhausted(protocols, &span.range, last),
            Stop::Deadline => Error::deadline(protocols, &span.range, last),
            Stop::Failed(error) => error,
        })
    }

    /// Goes over the range from `first` on, as often as the budget allows.
    fn laps(&mut self, span: &Span, first: u16) -> Result<Lease, Stop> {
        let mut laps = match self.plan.budget {
            Budget::WalkOnce | Budget::Tries(_) => 1,
            Budget::Laps { laps, .. } => laps,
            Budget::Deadline(_) => u32::MAX,
        };
        let mut rest = Duration::from_millis(1);
        loop {
            if let Some(lease) = self.lap(span, first)? {
                self.reached = Some(lease.port());
                return Ok(lease);
            }
            laps -= 1;
            if laps == 0 {
                return Err(Stop::Tries);
            }
            if self.plan.on_wait.is_some() || tracing::enabled!(tracing::Level::DEBUG) {
                let protocols = &self.plan.protocols;
                let last = self.attempts.last_error();
                self.notice(&Error::exhausted(protocols, &span.range, last).counted(self.counts));
            }
            match self.plan.budget {
                Budget::Laps { pause, .. } => self.plan.cancel.sleep(about(pause)),
                Budget::Deadline(end) => {
                    let left = end.saturating_duration_since(Instant::now());
                    self.plan.cancel.sleep(about(rest).min(left));
                    rest = (rest * 2).min(Duration::from_millis(50));
                }
                Budget::WalkOnce | Budget::Tries(_) => {}
            }
        }
    }

    /// Tries every port of the range once.
    fn lap(&mut self, span: &Span, first: u16) -> Result<Option<Lease>, Stop> {
        let mut undecided = Vec::new();
        let mut chosen_by_kernel = Vec::new();
        let block = self.plan.block;
        let mut questions = match self.plan.budget {
            // Each try is one of the caller's.
            Budget::Tries(_) => 0,
            // The kernel knows of no blocks.
            _ if block > 1 => 0,
            _ => QUESTIONS,
        };
        self.streak = 0;
        // What a block must not contain: it is known to be in use.
        let mut known = None;
        for port in span.around(first, block) {
            self.check_budget()?;
            self.reached = Some(port);
            if (0..block).any(|offset| span.is_reserved(port + offset)) {
                self.counts.reserved += 1;
                continue;
            }
            if known.is_some_and(|known| (port..=port + (block - 1)).contains(&known)) {
                continue;
            }
            if self.streak >= STREAK && questions > 0 {
                self.streak = 0;
                // Only what this lap has not seen yet.
                let end = if port >= first {
                    *span.range.end()
                } else {
                    first - 1
                };
                questions -= 1;
                if end - port >= STREAK as u16 {
                    match self.ask_kernel(port..=end, span, &mut chosen_by_kernel)? {
                        KernelChoice::Leased(lease) => return Ok(Some(lease)),
                        KernelChoice::Lost => {}
                        KernelChoice::Useless => questions = 0,
                    }
                }
            }
            if chosen_by_kernel.contains(&port) {
                continue;
            }
            match self.try_port(port, Duration::ZERO)? {
                PortOutcome::Leased(lease) => return Ok(Some(lease)),
                PortOutcome::Taken(_) => self.counts.leased += 1,
                PortOutcome::Pending => undecided.push(port),
                PortOutcome::InUse(port) => known = Some(port),
                PortOutcome::Denied => {}
                PortOutcome::Tentative => return self.lap_is_in_vain(),
            }
        }
        self.lap_of_undecided(undecided)
    }

    /// No port will do as long as an address is tentative: with time left, the
    /// next lap may have more luck.
    fn lap_is_in_vain(&self) -> Result<Option<Lease>, Stop> {
        match self.plan.budget {
            Budget::Laps { .. } | Budget::Deadline(_) => Ok(None),
            Budget::WalkOnce | Budget::Tries(_) => Err(self.last_error().into()),
        }
    }

    /// Tries the ports that other requests were trying. We hold nothing while
    /// we wait for those, and no request waits while it holds a claim.
    fn lap_of_undecided(&mut self, ports: Vec<u16>) -> Result<Option<Lease>, Stop> {
        for port in ports {
            loop {
                self.check_budget()?;
                match self.try_port(port, DECISION)? {
                    PortOutcome::Leased(lease) => return Ok(Some(lease)),
                    PortOutcome::Taken(_) => self.counts.leased += 1,
                    PortOutcome::Pending => continue,
                    PortOutcome::InUse(_) | PortOutcome::Denied => {}
                    PortOutcome::Tentative => return self.lap_is_in_vain(),
                }
                break;
            }
        }
        Ok(None)
    }

    /// Tries one port; waits up to `patience` for another request to decide
    /// about it.
    fn try_port(&mut self, port: u16, patience: Duration) -> Result<PortOutcome, Error> {
        // Before the claim: see `Opener::open`.
        self.attempts.restock_all()?;
        let bindings = self.attempts.bindings();
        let claim = (self.plan.holds).claim(port, bindings, patience);
        match claim {
            Ok(hold) => self.with_claim(hold, None),
            Err(ClaimOutcome::Leased(binding)) => Ok(PortOutcome::Taken(binding)),
            Err(_) => Ok(PortOutcome::Pending),
        }
    }

    fn with_claim(&mut self, hold: Hold, given: Option<Given>) -> Result<PortOutcome, Error> {
        self.counts.tried += 1;
        let attempt = self.attempts.attempt(hold.port(), given)?;
        if let Attempt::Owned(members) = attempt {
            let (protocols, block) = (self.plan.protocols.clone(), self.plan.block);
            let lease = Lease::new(protocols, block, members, hold);
            return Ok(PortOutcome::Leased(lease));
        }
        drop(hold);
        Ok(match attempt {
            Attempt::InUse(port) => {
                self.streak += 1;
                PortOutcome::InUse(port)
            }
            Attempt::Denied => {
                self.counts.denied += 1;
                // So that a broker whose policy allows few of many ports is asked
                // for one of a range.
                self.streak += 1;
                PortOutcome::Denied
            }
            Attempt::NoAddress if self.attempts.is_tentative()? => PortOutcome::Tentative,
            _ => return Err(self.last_error()),
        })
    }

    /// Lets the kernel choose a port for the most contended member.
    fn ask_kernel(
        &mut self,
        stretch: RangeInclusive<u16>,
        span: &Span,
        chosen: &mut Vec<u16>,
    ) -> Result<KernelChoice, Stop> {
        self.attempts.restock_all()?;
        // It looks at fewer ports than there are, so that it finds none proves
        // nothing: go on walking.
        let Some((given, port)) = self.attempts.bind_any_of(&stretch) else {
            return Ok(KernelChoice::Useless);
        };
        if span.is_reserved(port) || chosen.contains(&port) {
            return Ok(KernelChoice::Lost);
        }
        self.attempts.restock_all()?;
        let bindings = self.attempts.bindings();
        let claim = (self.plan.holds).claim(port, bindings, Duration::ZERO);
        let Ok(hold) = claim else {
            return Ok(KernelChoice::Lost);
        };
        chosen.push(port);
        match self.with_claim(hold, Some(given))? {
            PortOutcome::Leased(lease) => Ok(KernelChoice::Leased(lease)),
            _ => Ok(KernelChoice::Lost),
        }
    }

    fn check_budget(&self) -> Result<(), Stop> {
        self.check_cancelled()?;
        match self.plan.budget {
            Budget::Tries(tries) if self.counts.tried >= tries => Err(Stop::Tries),
            // With a deadline that was in time a port is looked at, however long it
            // took to get there: or short ones would never get past the first.
            Budget::Deadline(end) if Instant::now() >= end => {
                match self.is_late || self.reached.is_some() {
                    true => Err(Stop::Deadline),
                    false => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn check_cancelled(&self) -> Result<(), Error> {
        if self.plan.cancel.is_cancelled() {
            return Err(Error::cancelled(&self.plan.protocols));
        }
        Ok(())
    }

    fn last_error(&self) -> Error {
        let last = self.attempts.last_error();
        last.expect("called after a failure").counted(self.counts)
    }
}

/// `pause`, give or take a half.
fn about(pause: Duration) -> Duration {
    let percent = 50 + u32::try_from(random() % 101).expect("at most 100");
    pause.saturating_mul(percent) / 100
}

#[cfg(test)]
mod tests;
