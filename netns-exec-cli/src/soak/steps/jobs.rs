//! Closures: run, spawned, in batches, nested, scoped, in all namespaces, cancelled.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use netns_exec::{Executor, Netns};

use crate::soak::arena::{Arena, Target};
use crate::soak::dice::Dice;
use crate::soak::held::Held;
use crate::soak::tally::{count, inode_here};

pub(super) fn run(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    run_in(arena, arena.any_executor(dice), &target);
}

fn run_in(arena: &Arena, executor: &Executor, target: &Target) {
    let (token, runs) = arena.token(target);
    let since = arena.faults.since();
    let result = executor.run(target, || token.begin());
    arena.expect_ran("run", since, result, &runs);
}

pub(super) fn open_and_run(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let place = dice.pick(&arena.places);
    // Held, so that the name stays what it is.
    let owned = place.owned.read().unwrap_or_else(PoisonError::into_inner);
    let Some(owned) = owned.as_ref() else {
        return;
    };
    let since = arena.faults.since();
    let Some(opened) = arena.expect("open", since, Netns::open(&place.name)) else {
        return;
    };
    let same = opened == **owned && opened.id() == owned.id();
    arena.tally.check(same, || {
        format!("`{}` was opened and is another namespace", place.name)
    });
    if let Ok(target) = Target::new(opened) {
        run_in(arena, arena.any_executor(dice), &target);
    }
}

pub(super) fn spawn_many(arena: &Arena, dice: &mut Dice, held: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    let executor = arena.any_executor(dice);
    for _ in 0..=dice.roll(16) {
        held.spawned.extend(arena.spawn(executor, &target));
    }
    // Some are joined by a later step, when their namespace may be gone.
    if dice.roll(4) > 0 {
        held.join_spawned(arena);
    }
}

pub(super) fn try_spawn(arena: &Arena, dice: &mut Dice, held: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    let (token, runs) = arena.token(&target);
    let since = arena.faults.since();
    match arena.narrow.try_spawn(&target, move || token.begin()) {
        Ok(handle) => held.spawned.push((handle, since, runs)),
        Err(error) => {
            // The closure comes back with it.
            let ran = runs.load(Ordering::Relaxed);
            arena
                .tally
                .check(ran == 0, || "a closure came back that ran".to_owned());
            let error = error.into_error();
            if !error.is_full() {
                arena.explain("try_spawn", since, error.raw_os_error(), &error);
            }
        }
    }
}

/// The jobs of one batch for a namespace with one worker begin in their order.
pub(super) fn batch_in_order(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    let next = Arc::new(AtomicUsize::new(0));
    let (tokens, runs): (Vec<_>, Vec<_>) =
        (0..=dice.roll(40)).map(|_| arena.token(&target)).unzip();
    let jobs = tokens.into_iter().enumerate().map(|(number, token)| {
        let next = Arc::clone(&next);
        move || {
            token.begin();
            next.fetch_add(1, Ordering::Relaxed) == number
        }
    });
    let since = arena.faults.since();
    let batch = arena.ordered.spawn_batch(&target, jobs);
    let Some(handles) = arena.expect("spawn_batch", since, batch) else {
        return;
    };
    for (handle, runs) in handles.into_iter().zip(runs) {
        let Some(result) = arena.join("spawn_batch", handle) else {
            return;
        };
        if let Some(in_order) = arena.expect_ran("spawn_batch", since, result, &runs) {
            (arena.tally).check(in_order, || "jobs of a batch changed places".to_owned());
        }
    }
}

pub(super) fn nest(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let (Some(target), Some(other)) = (arena.target(dice), arena.target(dice)) else {
        return;
    };
    let (outer, inner) = (arena.any_executor(dice), arena.any_executor(dice));
    let (token, runs) = arena.token(&target);
    let since = arena.faults.since();
    let result = outer.run(&target, || {
        token.begin();
        run_in(arena, inner, &other);
        run_in(arena, inner, &target);
        token.look();
    });
    arena.expect_ran("nested run", since, result, &runs);
}

pub(super) fn scope(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    let jobs = 1 + dice.roll(12);
    let ran = AtomicU32::new(0);
    let since = arena.faults.since();
    let accepted = arena.any_executor(dice).scope(|scope| {
        let mut accepted = 0;
        for _ in 0..jobs {
            let (token, _) = arena.token(&target);
            let ran = &ran;
            let spawned = scope.spawn(&target, move || {
                token.begin();
                ran.fetch_add(1, Ordering::Relaxed);
            });
            accepted += u32::from(arena.expect("spawn in a scope", since, spawned).is_some());
        }
        accepted
    });
    let ran = ran.load(Ordering::Relaxed);
    // A worker that cannot be had is found out after the job was accepted.
    let met = arena.faults.explain(since, Some(libc::EMFILE));
    arena
        .tally
        .check(ran == accepted || met && ran < accepted, || {
            format!("a scope ended when {ran} of {accepted} jobs had run")
        });
}

pub(super) fn broadcast(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let mut targets: Vec<_> = (0..=dice.roll(8))
        .filter_map(|_| arena.target(dice))
        .collect();
    targets.dedup_by_key(|target| target.inode);
    let spaces: Vec<_> = targets.iter().map(|target| target.netns.clone()).collect();
    let since = arena.faults.since();
    let results = arena.any_executor(dice).broadcast(&spaces, |netns| {
        count(&arena.tally.counts.jobs);
        (netns.id(), inode_here())
    });
    let right = results.len() == targets.len();
    (arena.tally).check(right, || "a broadcast lost a namespace".to_owned());
    for (target, result) in targets.iter().zip(results) {
        if let Some(place) = arena.expect("broadcast", since, result) {
            let right = place == (target.id(), Some(target.inode));
            arena.tally.check(right, || {
                format!("a broadcast to {} was in {place:?}", target.netns)
            });
        }
    }
}

pub(super) fn cancel(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    let executor = arena.any_executor(dice);
    let Some((handle, since, runs)) = arena.spawn(executor, &target) else {
        return;
    };
    let cancelled = handle.cancel();
    if let Some(result) = arena.join("cancel", handle) {
        arena.expect_cancelled(since, result, cancelled, &runs);
    }
}
