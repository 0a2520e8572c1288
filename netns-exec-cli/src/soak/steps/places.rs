//! What is done to namespaces and executors as a whole.

use std::process::Command;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{CommandExt, Executor, Guard, Netns};

use crate::soak::arena::{Arena, PATIENCE};
use crate::soak::dice::Dice;
use crate::soak::held::Held;
use crate::soak::tally::count;

pub(super) fn retire(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    let since = arena.faults.since();
    arena.endings.0.fetch_add(1, Ordering::SeqCst);
    arena.expect("retire", since, arena.any_executor(dice).retire(&target));
    arena.endings.1.fetch_add(1, Ordering::SeqCst);
}

/// Deletes a namespace, with workers in it or without, and makes another under its name.
pub(super) fn replace(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let place = dice.pick(&arena.places);
    let mut owned = place.owned.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(old) = owned.take() {
        let weak = old.downgrade();
        // That it is deleted is heard of later: it stays an ending until it is gone.
        arena.endings.0.fetch_add(1, Ordering::SeqCst);
        let since = arena.faults.since();
        let mut deleted = arena.expect("delete", since, old.delete()).is_some();
        // What was not deleted still is there, and can be.
        while !deleted {
            thread::sleep(Duration::from_millis(1));
            let since = arena.faults.since();
            match Netns::delete(&place.name) {
                Ok(()) => deleted = true,
                Err(error) if !arena.explain("delete", since, error.raw_os_error(), &error) => {
                    return;
                }
                Err(_) => {}
            }
        }
        let mut deleted = arena.deleted.lock().unwrap_or_else(PoisonError::into_inner);
        deleted.push(weak);
        drop(deleted);
        arena.forget_gone();
    }
    let since = arena.faults.since();
    match Netns::create_owned(&place.name) {
        Ok(new) => {
            count(&arena.tally.counts.namespaces);
            *owned = Some(new);
        }
        Err(error) => {
            arena.explain("create", since, error.raw_os_error(), &error);
            let there = std::path::Path::new("/run/netns")
                .join(&place.name)
                .exists();
            (arena.tally).check(!there, || {
                format!("`{}` is there after an error", place.name)
            });
        }
    }
}

pub(super) fn child(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    let since = arena.faults.since();
    let output = Command::new("readlink")
        .arg("/proc/self/ns/net")
        .output_in(&target);
    let Some(output) = arena.expect("a child", since, output) else {
        return;
    };
    count(&arena.tally.counts.children);
    let (said, right) = (output.stdout, format!("net:[{}]\n", target.inode));
    // It has the limit of files that holds when it starts, and may need one itself.
    let met = arena.faults.explain(since, Some(libc::EMFILE)) && !output.status.success();
    arena.tally.check(met || said == right.as_bytes(), || {
        format!(
            "a child of {} said {:?}",
            target.netns,
            String::from_utf8_lossy(&said)
        )
    });
}

/// A thread that is out of place is one only for a moment: a job's, before its guard has
/// looked, or a worker that was found out and leaves.
pub(super) fn audit(arena: &Arena, _: &mut Dice, _: &mut Held) {
    let since = arena.faults.since();
    let Some(first) = arena.expect("audit", since, arena.sealed.audit()) else {
        return;
    };
    count(&arena.tally.counts.audits);
    let mut strays: Vec<_> = first.strays().map(|thread| thread.tid()).collect();
    let deadline = Instant::now() + PATIENCE / 2;
    while !strays.is_empty() {
        if Instant::now() > deadline {
            arena
                .tally
                .violation(format_args!("threads are out of place: {strays:?}"));
            return;
        }
        thread::sleep(Duration::from_millis(5));
        let since = arena.faults.since();
        let Some(again) = arena.expect("audit", since, arena.sealed.audit()) else {
            return;
        };
        strays.retain(|tid| again.strays().any(|thread| thread.tid() == *tid));
    }
}

/// One more executor, with jobs, that ends with all of them or without waiting for them.
pub(super) fn executor(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let guard = *dice.pick(&[Guard::Seal, Guard::Detect, Guard::KeepAdmin, Guard::Off]);
    let since = arena.faults.since();
    let built = Executor::builder().guard(guard).build();
    let Some(executor) = arena.expect("an executor", since, built) else {
        return;
    };
    count(&arena.tally.counts.executors);
    let mut handles = Vec::new();
    for _ in 0..=dice.roll(8) {
        let Some(target) = arena.target(dice) else {
            continue;
        };
        let (token, runs) = arena.token(&target);
        let spawned = executor.spawn(&target, move || token.begin());
        if let Some(handle) = arena.expect("spawn", since, spawned) {
            handles.push((handle, runs));
        }
    }
    let in_order = match dice.roll(3) {
        0 => {
            drop(executor);
            true
        }
        1 => {
            // No time at all: those that have not begun are cancelled.
            match executor.shutdown(Some(Duration::ZERO)) {
                Err(error) if !error.is_timed_out() => arena.tally.violation(error),
                _ => {}
            }
            false
        }
        _ => {
            arena.expect("shutdown", since, executor.shutdown(Some(PATIENCE)));
            true
        }
    };
    for (handle, runs) in handles {
        match arena.join("a job of an executor that ends", handle) {
            Some(Err(error)) if error.is_cancelled() && !in_order => {
                count(&arena.tally.counts.cancelled);
            }
            Some(result) => {
                arena.expect_ran("a job of an executor that ends", since, result, &runs);
            }
            None => {}
        }
    }
}
