//! Jobs that end their thread by exit(2), which unwinds nothing: their owners are told, and
//! nothing that waits behind them is lost.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use netns_exec::{Error, Executor, Netns};
use netns_exec_tests::{
    Alone, Gate, Pass, alone, end_thread, eventually, fresh, sleeps_soundly, tid, within,
};
use nix::sys::resource::{Resource, setrlimit};

use super::with_idle;

struct EndsThread;

impl Drop for EndsThread {
    fn drop(&mut self) {
        end_thread();
    }
}

impl Wake for EndsThread {
    fn wake(self: Arc<Self>) {
        // Its own drop is another case.
        std::mem::forget(self);
        end_thread();
    }
}

fn result_behind(gate: &Pass) -> EndsThread {
    gate.stop();
    EndsThread
}

#[track_caller]
fn assert_says_so(error: &Error) {
    assert!(error.to_string().contains("exit(2)"), "{error}");
}

/// Runs `f` with an executor of one worker, which then still serves, and comes to an end.
fn outlived(f: impl FnOnce(&Executor, &Netns) + Send + 'static) {
    within("everything", move || {
        let (executor, netns) = (with_idle(None), fresh());
        f(&executor, &netns);
        for n in 0..10 {
            assert_eq!(executor.run(&netns, || n).unwrap(), n);
            assert_eq!(
                executor.spawn(&netns, move || n).unwrap().join().unwrap(),
                n
            );
        }
        eventually("the lost worker is taken off", || {
            let stats = executor.stats();
            (stats.workers, stats.running) == (1, 0)
        });
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn call_that_ends_its_thread_is_an_error() {
    alone!(Alone::AsIs);
    outlived(|executor, netns| {
        for _ in 0..3 {
            // Its worker is yet to be born, or both spin, or sleep.
            for calls in [0, 20, 1] {
                for n in 0..calls {
                    assert_eq!(executor.run(netns, || n).unwrap(), n);
                }
                assert_says_so(&executor.run(netns, end_thread).unwrap_err());
            }
            let large = [1_u8; 200];
            let ended = executor.run(netns, || {
                end_thread();
                large
            });
            assert_says_so(&ended.unwrap_err());
        }
        let stats = executor.stats();
        assert!(stats.workers <= 1, "{stats:?}");
    });
}

#[test]
fn spawned_job_that_ends_its_thread_is_an_error_and_those_behind_it_run() {
    alone!(Alone::AsIs);
    outlived(|executor, netns| {
        let gate = Gate::new();
        let pass = gate.pass();
        let first = executor.spawn(netns, move || pass.stop()).unwrap();
        let lost = executor.spawn(netns, end_thread).unwrap();
        let behind: Vec<_> = (0..20)
            .map(|n| executor.spawn(netns, move || n).unwrap())
            .collect();
        thread::scope(|scope| {
            // As well as callers.
            let calls = [0; 4].map(|_| scope.spawn(|| executor.run(netns, end_thread)));
            gate.open();
            for call in calls {
                assert_says_so(&call.join().unwrap().unwrap_err());
            }
        });
        first.join().unwrap();
        assert_says_so(&lost.join().unwrap_err());
        for (n, job) in behind.into_iter().enumerate() {
            assert_eq!(job.join().unwrap(), n);
        }
    });
}

#[test]
fn batch_scope_and_broadcast_end_with_the_jobs_that_end_their_threads() {
    alone!(Alone::AsIs);
    outlived(|executor, netns| {
        let jobs = (0..9).map(|n| {
            move || {
                if n % 3 == 0 {
                    end_thread();
                }
                n
            }
        });
        for (n, job) in executor
            .spawn_batch(netns, jobs)
            .unwrap()
            .into_iter()
            .enumerate()
        {
            match n % 3 {
                0 => assert_says_so(&job.join().unwrap_err()),
                _ => assert_eq!(job.join().unwrap(), n),
            }
        }
        let borrowed = [1, 2, 3];
        executor.scope(|scope| {
            let lost = scope.spawn(netns, || {
                end_thread();
                borrowed.len()
            });
            // No handle is told.
            drop(scope.spawn(netns, end_thread).unwrap());
            let sound = scope.spawn(netns, || borrowed.len());
            assert_says_so(&lost.unwrap().join().unwrap_err());
            assert_eq!(sound.unwrap().join().unwrap(), 3);
        });
        let spaces = [netns.clone(), fresh(), fresh()];
        let visited = executor.broadcast(&spaces, |space| {
            if space.id() == spaces[1].id() {
                end_thread();
            }
            borrowed.len()
        });
        assert_says_so(visited[1].as_ref().unwrap_err());
        assert!(matches!(visited[..], [Ok(3), Err(_), Ok(3)]));
        executor.retire(&spaces[1]).unwrap();
        executor.retire(&spaces[2]).unwrap();
    });
}

#[test]
fn future_whose_poll_ends_its_thread_is_an_error_and_others_go_on() {
    alone!(Alone::AsIs);
    outlived(|executor, netns| {
        let (sender, receiver) = std::sync::mpsc::channel::<Waker>();
        let mut has_waited = false;
        let other = executor.spawn_future(
            netns,
            poll_fn(move |cx| {
                if std::mem::replace(&mut has_waited, true) {
                    return Poll::Ready(7);
                }
                sender.send(cx.waker().clone()).unwrap();
                Poll::Pending
            }),
        );
        let waker = receiver.recv().unwrap();
        let lost = executor.spawn_future(netns, async { end_thread() });
        assert_says_so(&pollster::block_on(lost).unwrap_err());
        // Where the future is dropped.
        let owned = EndsThread;
        let lost = executor.spawn_future(netns, async move {
            let _owned = owned;
        });
        assert_says_so(&pollster::block_on(lost).unwrap_err());
        waker.wake();
        assert_eq!(pollster::block_on(other).unwrap(), 7);
    });
}

#[test]
fn futures_bound_to_a_thread_end_with_it() {
    alone!(Alone::AsIs);
    within("everything", || {
        let (executor, netns) = (with_idle(None), fresh());
        let bound = executor.spawn_local(&netns, || async { pending::<()>().await });
        let lost = executor.spawn_local(&netns, || async { end_thread() });
        assert_says_so(&pollster::block_on(lost).unwrap_err());
        assert_says_so(&pollster::block_on(bound).unwrap_err());
        let sound = executor.spawn_local(&netns, || async { 7 });
        assert_eq!(pollster::block_on(sound).unwrap(), 7);
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn waker_and_destructor_that_end_a_worker_take_nothing_else_with_them() {
    alone!(Alone::AsIs);
    outlived(|executor, netns| {
        // The waker of who awaits.
        let gate = Gate::new();
        let pass = gate.pass();
        let mut job = executor.spawn(netns, move || pass.stop()).unwrap();
        let waker = Waker::from(Arc::new(EndsThread));
        let polled = std::pin::Pin::new(&mut job).poll(&mut Context::from_waker(&waker));
        std::mem::forget(waker);
        assert!(polled.is_pending());
        gate.open();
        pollster::block_on(job).unwrap();
        // A result whose handle is gone, and a closure that is cancelled.
        let gate = Gate::new();
        let pass = gate.pass();
        drop(executor.spawn(netns, move || result_behind(&pass)).unwrap());
        gate.open();
        let gate = Gate::new();
        let pass = gate.pass();
        let first = executor.spawn(netns, move || pass.stop()).unwrap();
        let owned = EndsThread;
        let cancelled = executor.spawn(netns, move || drop(owned)).unwrap();
        assert!(cancelled.cancel());
        gate.open();
        first.join().unwrap();
        // Each in a scope, which ends.
        let gate = Gate::new();
        executor.scope(|scope| {
            drop(scope.spawn(netns, || result_behind(&gate.pass())).unwrap());
            gate.open();
            let behind = scope.spawn(netns, || 7).unwrap();
            assert_eq!(behind.join().unwrap(), 7);
        });
    });
}

#[test]
fn job_that_ends_the_thread_of_a_stand_in_is_an_error() {
    alone!(Alone::AsIs);
    outlived(|executor, netns| {
        let (inner, there) = (executor.clone(), netns.clone());
        let elsewhere = fresh();
        // The worker waits in a call of its own, whose job calls back.
        let called = executor.run(netns, || {
            inner.run(&elsewhere, || {
                inner
                    .run(&there, end_thread)
                    .map_err(|error| error.to_string())
            })
        });
        let error = called.unwrap().unwrap().unwrap_err();
        assert!(error.contains("exit(2)"), "{error}");
        executor.retire(&elsewhere).unwrap();
    });
}

#[test]
fn thread_with_a_job_of_its_own_that_ends_it_is_an_error() {
    alone!(Alone::AsIs);
    outlived(|executor, netns| {
        let lost = executor.thread(netns, |_| end_thread()).unwrap();
        assert_says_so(&lost.join().unwrap_err());
        // Its handle is gone by the time that there is a result.
        let gate = Gate::new();
        let pass = gate.pass();
        drop(
            executor
                .thread(netns, move |_| result_behind(&pass))
                .unwrap(),
        );
        gate.open();
    });
}

#[test]
fn worker_that_is_woken_by_futex_is_missed_as_well() {
    alone!(Alone::AsIs);
    // So that some workers have a listener, and callers do not share it.
    setrlimit(Resource::RLIMIT_NOFILE, 96, 96).unwrap();
    within("everything", || {
        let executor = with_idle(None);
        let spaces: Vec<_> = (0..30).map(|_| fresh()).collect();
        for netns in &spaces {
            executor.run(netns, || ()).unwrap();
        }
        let stats = executor.stats();
        let by_futex = stats.per_netns.iter().filter(|netns| netns.rung == 0);
        assert!(by_futex.count() > 0, "{stats:?}");
        for netns in &spaces {
            let worker = executor.run(netns, tid).unwrap();
            eventually("the worker sleeps", || sleeps_soundly(worker));
            assert_says_so(&executor.run(netns, end_thread).unwrap_err());
            assert_eq!(executor.run(netns, || 7).unwrap(), 7);
        }
        executor.shutdown(None).unwrap();
    });
}
