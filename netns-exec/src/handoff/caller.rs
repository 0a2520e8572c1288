//! How a caller goes about a call that is not over within a spin: the plan it
//! makes of what the calls before have taught, and what it learns from this one.
//!
//! `pace` has what is learnt, `placement` moves the worker; the lane carries it out.

use std::time::{Duration, Instant};

use super::pace::{self, Credit, Parting, Trust, Wakes, Way};
use super::placement::{Cpu, Whereabouts};

/// What the callers of a lane have learnt; belongs to the one whose turn it is.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Whether calls come in quick succession.
    credit: Credit,
    wakes: Wakes,
    /// Whether a worker that parked on its caller's CPU wakes up there.
    stays: Trust,
    parting: Parting,
}

/// How to make a call whose caller does not spin at once.
pub(crate) struct Plan {
    start: Instant,
    /// How the worker is woken, if it sleeps and the way has to be learnt.
    wake: Option<Wake>,
    /// The worker sleeps.
    parked: bool,
    /// The worker has been moved to another CPU, and has to be told.
    pub(crate) moves: bool,
    /// The caller spins before it sleeps.
    spins: bool,
    /// The worker parked on the caller's CPU, and nothing keeps it there.
    may_stay: bool,
}

struct Wake {
    slept: Duration,
    way: Way,
}

impl Plan {
    /// Looks for the result, if that is part of the plan. It comes with a wake-up,
    /// and says nothing of spinning without: the credit stays as it is.
    pub(crate) fn spin(&self, done: impl FnMut() -> bool) {
        if self.spins {
            // Who parts from the worker stays awake until it has arrived: asleep,
            // the two would go on waking each other.
            let patience = if self.moves {
                pace::LONGEST_SPIN
            } else {
                pace::QUICK
            };
            Credit::full().spin(patience, done);
        }
    }
}

impl Caller {
    pub(crate) const fn new() -> Caller {
        Caller {
            credit: Credit::new(),
            wakes: Wakes::new(),
            stays: Trust::new(),
            parting: Parting::new(),
        }
    }

    /// Whether to spin at once for the result of a worker that is awake on another
    /// CPU.
    #[inline]
    pub(crate) fn may_spin(&mut self) -> bool {
        self.credit.allows()
    }

    /// Looks for that result.
    #[inline]
    pub(crate) fn spin(&mut self, worker: &Whereabouts, done: impl FnMut() -> bool) {
        self.parting.note_call();
        self.credit.spin(worker.spin_budget(), done);
    }

    /// Decides how to call from the CPU `here`, and moves the worker if it is to be
    /// moved. It sleeps, or is awake on the CPU `awake_on`.
    pub(crate) fn plan(
        &mut self,
        worker: &Whereabouts,
        awake_on: Option<Cpu>,
        here: Cpu,
        may_spin: bool,
    ) -> Plan {
        let start = Instant::now();
        let mut plan = Plan {
            start,
            wake: None,
            parked: awake_on.is_none(),
            moves: false,
            spins: false,
            may_stay: false,
        };
        if !may_spin {
            return plan;
        }
        let slept = worker.parked_for(start);
        let beside = match awake_on {
            Some(cpu) => cpu.is(here),
            None => {
                self.credit.grade(slept < pace::QUICK);
                worker.is_parked_on(here)
            }
        };
        if beside && self.credit.is_full() && self.parting.is_due() {
            plan.moves = worker.send_away_from(here);
            plan.spins = plan.moves;
            if !plan.moves {
                self.parting.failed();
            }
        } else if plan.parked {
            let way = self.wakes.choose(slept);
            let left_alone = beside && self.stays.allows();
            plan.wake = Some(Wake { slept, way });
            plan.spins = way == Way::Spin;
            plan.moves = way == Way::Beside && !left_alone && worker.bring_to(here);
            plan.may_stay = beside && !plan.moves && !plan.spins;
        }
        plan
    }

    /// Learns from a call that went by `plan`, with the worker on the CPU `ran_on`.
    pub(crate) fn learn(&mut self, plan: &Plan, worker: &Whereabouts, here: Cpu, ran_on: Cpu) {
        let took = plan.start.elapsed();
        let stayed = ran_on.is(here);
        if (plan.parked || plan.moves) && !stayed {
            worker.note_far(took);
        }
        if let Some(Wake { slept, way }) = plan.wake {
            self.wakes.learn(slept, way, took);
        } else if !plan.parked && took < pace::QUICK {
            self.credit.gain();
        }
        if plan.may_stay {
            self.stays.grade(stayed);
        }
    }
}
