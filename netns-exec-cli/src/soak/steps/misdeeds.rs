//! What jobs should not do, and moments in which the kernel gives nothing.

use std::panic::resume_unwind;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::Netns;
use nix::sched::{CloneFlags, setns};

use super::{jobs, tasks};
use crate::soak::arena::{Arena, Target};
use crate::soak::dice::Dice;
use crate::soak::held::Held;
use crate::soak::tally::{Token, count};

/// Panics with the inode that is its job's, and without the hook, which notes a violation.
fn panic_with(inode: u64) -> ! {
    resume_unwind(Box::new(inode))
}

/// Panics when it is dropped.
struct Bomb(u64);

impl Drop for Bomb {
    fn drop(&mut self) {
        panic_with(self.0);
    }
}

pub(super) fn panic_in_job(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    panicking(arena, dice, |token, inode| {
        token.begin();
        panic_with(inode);
    });
}

pub(super) fn panic_in_destructor(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    panicking(arena, dice, |token, inode| {
        let _bomb = Bomb(inode);
        token.begin();
    });
    // And of a result that has no taker.
    let Some(target) = arena.target(dice) else {
        return;
    };
    let (token, _) = arena.token(&target);
    let since = arena.faults.since();
    let inode = target.inode;
    let spawned = arena.any_executor(dice).spawn(&target, move || {
        token.begin();
        Bomb(inode)
    });
    if let Some(handle) = arena.expect("spawn", since, spawned) {
        // What is over already would be dropped here.
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(handle)));
        drop(dropped);
    }
}

/// Has a job end with a panic, which has to arrive as what it was.
fn panicking(arena: &Arena, dice: &mut Dice, job: fn(Token, u64)) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    let (token, runs) = arena.token(&target);
    let since = arena.faults.since();
    let inode = target.inode;
    let spawned = arena
        .any_executor(dice)
        .spawn(&target, move || job(token, inode));
    let Some(handle) = arena.expect("spawn", since, spawned) else {
        return;
    };
    match arena.join("panic", handle) {
        Some(Err(error)) if error.is_panic() => {
            count(&arena.tally.counts.panicked);
            let payload = error.into_panic().ok();
            let right = payload.and_then(|payload| payload.downcast_ref().copied()) == Some(inode);
            (arena.tally).check(right, || "a panic arrived as another one".to_owned());
            let ran = runs.load(Ordering::Relaxed);
            (arena.tally).check(ran == 1, || format!("a job that panicked ran {ran} times"));
        }
        Some(Ok(())) => arena.tally.violation("a panic has gone"),
        Some(Err(error)) => {
            arena.explain("a job that panics", since, error.raw_os_error(), &error);
        }
        None => {}
    }
}

pub(super) fn refused_thread(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    let (token, runs) = arena.token(&target);
    let since = arena.faults.since();
    let result = arena.sealed.run(&target, || {
        token.begin();
        thread::Builder::new().spawn(|| ()).is_err()
    });
    if let Some(refused) = arena.expect_ran("run", since, result, &runs) {
        count(&arena.tally.counts.refused);
        (arena.tally).check(refused, || "a sealed job made a thread".to_owned());
    }
}

pub(super) fn escape(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let (Some(target), Some(other)) = (arena.target(dice), arena.target(dice)) else {
        return;
    };
    if target.inode == other.inode {
        return;
    }
    let (token, _) = arena.token(&target);
    let since = arena.faults.since();
    let moved = arena.detecting.run(&target, || {
        token.begin();
        setns(&other.netns, CloneFlags::CLONE_NEWNET).is_ok()
    });
    match moved {
        Err(error) if error.is_escaped() => count(&arena.tally.counts.escaped),
        Err(error) => {
            arena.explain("a job that escapes", since, error.raw_os_error(), &error);
        }
        Ok(moved) => (arena.tally).check(!moved, || "an escape went unnoticed".to_owned()),
    }
}

/// In a namespace of its own: where there is no perf event the guard cannot tell the threads
/// of one job from those of another one that runs there, and leaves the blame to that.
pub(super) fn leave_thread(arena: &Arena, _: &mut Dice, _: &mut Held) {
    let since = arena.faults.since();
    let Some(netns) = arena.expect("a namespace", since, Netns::new()) else {
        return;
    };
    count(&arena.tally.counts.namespaces);
    let Ok(target) = Target::new(netns) else {
        return;
    };
    let (token, _) = arena.token(&target);
    let (end, ended) = channel::<()>();
    let since = arena.faults.since();
    let left = arena.detecting.run(&target, || {
        token.begin();
        let thread = thread::Builder::new().name("soak-left".to_owned());
        // Waits for the drop of the other end.
        let waits = move || {
            let _ = ended.recv();
        };
        thread.spawn(waits).is_ok()
    });
    drop(end);
    match left {
        Err(error) if error.is_left_threads() => count(&arena.tally.counts.left),
        Err(error) => {
            arena.explain(
                "a job that leaves a thread",
                since,
                error.raw_os_error(),
                &error,
            );
        }
        Ok(left) => (arena.tally).check(!left, || "a thread was left unnoticed".to_owned()),
    }
}

/// Takes the descriptors away from all threads, and asks for some meanwhile.
pub(super) fn squeeze(arena: &Arena, dice: &mut Dice, held: &mut Held) {
    let end = Instant::now() + Duration::from_millis(1 + dice.roll(20) as u64);
    let more = dice.roll(6);
    let squeezed = arena.faults.squeeze(more, || {
        while Instant::now() < end {
            jobs::run(arena, dice, held);
            jobs::spawn_many(arena, dice, held);
            tasks::spawn_future(arena, dice, held);
        }
    });
    if squeezed {
        count(&arena.tally.counts.faults);
    }
}
