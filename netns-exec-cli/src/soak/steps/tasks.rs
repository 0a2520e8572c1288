//! What is awaited, and what is aborted.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use netns_exec::Result;

use crate::soak::arena::{Arena, PATIENCE};
use crate::soak::dice::Dice;
use crate::soak::faults::Since;
use crate::soak::held::Held;
use crate::soak::tally::count;

impl Arena {
    /// A job that was cancelled in time did not run, and any other did.
    pub(super) fn expect_cancelled(
        &self,
        since: Since,
        result: Result<()>,
        cancelled: bool,
        runs: &AtomicU32,
    ) {
        match result {
            Err(error) if error.is_cancelled() => {
                count(&self.tally.counts.cancelled);
                let ran = runs.load(Ordering::Relaxed);
                self.tally.check(cancelled && ran == 0, || {
                    format!("a job that ran {ran} times was cancelled: {cancelled}")
                });
            }
            other => {
                let ran = self.expect_ran("a job to cancel", since, other, runs);
                self.tally.check(!(cancelled && ran.is_some()), || {
                    "a job that was cancelled in time ran".to_owned()
                });
            }
        }
    }

    /// How many endings of namespaces are over, for [`any_ended`](Arena::any_ended).
    fn endings_over(&self) -> u64 {
        self.endings.1.load(Ordering::SeqCst)
    }

    /// Whether a namespace was retired or deleted meanwhile, with which its futures go.
    fn any_ended(&self, over_before: u64) -> bool {
        self.endings.0.load(Ordering::SeqCst) != over_before
    }

    /// Waits on this thread for what has to come to an end.
    fn await_here<T>(&self, attempt: &str, future: impl Future<Output = T>) -> Option<T> {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut future = pin!(future);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                (self.tally).violation(format_args!("{attempt}: a future has not come to an end"));
                return None;
            }
            thread::park_timeout(left);
        }
    }
}

/// Has a future be polled so many times more.
async fn again(mut times: usize) {
    poll_fn(|cx| {
        if times == 0 {
            return Poll::Ready(());
        }
        times -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

pub(super) fn abort(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    let executor = arena.any_executor(dice);
    let Some((handle, since, runs)) = arena.spawn(executor, &target) else {
        return;
    };
    let abort = handle.abort_handle();
    // From a job of another executor.
    let aborted = arena.sealed.run(&target, || abort.abort());
    if let Some(result) = arena.join("abort", handle) {
        let aborted = arena.expect("run", since, aborted).unwrap_or(false);
        arena.expect_cancelled(since, result, aborted, &runs);
    }
    (arena.tally).check(abort.is_finished(), || {
        "a joined job is under way".to_owned()
    });
}

pub(super) fn abort_on_drop(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    let executor = arena.any_executor(dice);
    if let Some((handle, _, runs)) = arena.spawn(executor, &target) {
        drop(handle.abort_on_drop());
        // That its closure was dropped is what the count of those alive says in the end.
        arena.tally.check(runs.load(Ordering::Relaxed) < 2, || {
            "a job ran twice".to_owned()
        });
    }
}

pub(super) fn spawn_async(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    let (token, runs) = arena.token(&target);
    let since = arena.faults.since();
    let executor = arena.any_executor(dice);
    let both = async {
        executor
            .spawn_async(&target, move || token.begin())
            .await?
            .await
    };
    if let Some(result) = arena.await_here("spawn_async", both) {
        arena.expect_ran("spawn_async", since, result, &runs);
    }
}

pub(super) fn spawn_future(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    count(&arena.tally.counts.futures);
    let (token, runs) = arena.token(&target);
    let (since, over) = (arena.faults.since(), arena.endings_over());
    let polls = dice.roll(4);
    let handle = arena.any_executor(dice).spawn_future(&target, async move {
        token.begin();
        again(polls).await;
        token.look();
    });
    let cancelled = dice.roll(4) == 0 && handle.cancel();
    let Some(result) = arena.join("spawn_future", handle) else {
        return;
    };
    match result {
        // A future can be given up between two polls.
        Err(error) if error.is_cancelled() && (cancelled || arena.any_ended(over)) => {
            count(&arena.tally.counts.cancelled);
        }
        other => drop(arena.expect_ran("spawn_future", since, other, &runs)),
    }
}

pub(super) fn spawn_local(arena: &Arena, dice: &mut Dice, _: &mut Held) {
    let Some(target) = arena.target(dice) else {
        return;
    };
    count(&arena.tally.counts.futures);
    let (token, runs) = arena.token(&target);
    let (since, over) = (arena.faults.since(), arena.endings_over());
    let polls = dice.roll(4);
    let handle = arena
        .any_executor(dice)
        .spawn_local(&target, move || async move {
            let token = Rc::new(token);
            token.begin();
            again(polls).await;
            token.look();
        });
    match arena.join("spawn_local", handle) {
        Some(Err(error)) if error.is_cancelled() && arena.any_ended(over) => {
            count(&arena.tally.counts.cancelled);
        }
        Some(result) => drop(arena.expect_ran("spawn_local", since, result, &runs)),
        None => {}
    }
}
