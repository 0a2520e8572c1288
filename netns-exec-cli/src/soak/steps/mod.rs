//! What a thread of the soak does next.

mod held;
mod jobs;
mod misdeeds;
mod places;
mod tasks;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::arena::Arena;
use super::dice::Dice;
use super::held::Held;

type Step = fn(&Arena, &mut Dice, &mut Held);

/// Each step, with how often it is taken, of their sum.
const STEPS: &[(usize, &str, Step)] = &[
    (250, "run", jobs::run),
    (80, "open by name and run", jobs::open_and_run),
    (80, "spawn", jobs::spawn_many),
    (30, "try_spawn", jobs::try_spawn),
    (40, "spawn_batch in order", jobs::batch_in_order),
    (60, "nested run", jobs::nest),
    (40, "scope", jobs::scope),
    (10, "broadcast", jobs::broadcast),
    (40, "cancel", jobs::cancel),
    (30, "abort", tasks::abort),
    (20, "abort_on_drop", tasks::abort_on_drop),
    (40, "spawn_async", tasks::spawn_async),
    (40, "spawn_future", tasks::spawn_future),
    (20, "spawn_local", tasks::spawn_local),
    (30, "panic in a job", misdeeds::panic_in_job),
    (20, "panic in a destructor", misdeeds::panic_in_destructor),
    (20, "thread that is refused", misdeeds::refused_thread),
    (6, "escape", misdeeds::escape),
    (5, "thread that is left", misdeeds::leave_thread),
    (10, "moment without descriptors", misdeeds::squeeze),
    (30, "pin", held::pin),
    (10, "thread beside the pool", held::thread),
    (15, "socket stock", held::stock),
    (30, "lease", held::lease),
    (8, "retire", places::retire),
    (12, "delete and create", places::replace),
    (6, "child", places::child),
    (6, "audit", places::audit),
    (3, "executor", places::executor),
];

fn choose(dice: &mut Dice) -> (&'static str, Step) {
    let sum: usize = STEPS.iter().map(|(weight, ..)| weight).sum();
    let mut left = dice.roll(sum);
    for &(weight, name, step) in STEPS {
        if left < weight {
            return (name, step);
        }
        left -= weight;
    }
    unreachable!("a roll is below the sum of all weights")
}

impl Arena {
    /// What one thread does until the soak ends.
    pub(super) fn act(&self, number: usize, mut dice: Dice) {
        let (held, pulse) = (&self.held[number], &self.pulses[number]);
        let set = |step| {
            *pulse.step.lock().unwrap_or_else(PoisonError::into_inner) = step;
        };
        while !self.ending.load(Ordering::Relaxed) {
            if self.paused.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            let _at_work = self.at_work.read().unwrap_or_else(PoisonError::into_inner);
            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
            let (name, step) = choose(&mut dice);
            set(Some((name, Instant::now())));
            let outcome = catch_unwind(AssertUnwindSafe(|| step(self, &mut dice, &mut held)));
            if outcome.is_err() {
                self.tally
                    .violation(format_args!("a panic came out of `{name}`"));
            }
            set(None);
        }
    }
}
