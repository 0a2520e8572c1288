//! In a copy of the process that fork(2) made there are no workers: every call that
//! would wait for one is an error, and every drop returns.
//!
//! A binary of its own, so that no other test's threads are half way through
//! something when the copies are made.
#![expect(unsafe_code, reason = "fork(2)")]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use netns_exec::net::{SocketKind, SocketStock};
use netns_exec::{Executor, Netns, Result, TrySpawnError};
use netns_exec_tests::{
    Alone, Gate, Held, alone, assert_ended_well, begin_copy, eventually, fresh, in_a_copy,
    require_root,
};
use nix::libc::{self, ESRCH};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, alarm, fork};

netns_exec::rootless::test_harness!(own_net);

#[track_caller]
fn assert_told<T>(result: Result<T>) {
    let error = result.map(drop).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(ESRCH), "{error}");
    assert!(error.to_string().contains("fork first"), "{error}");
}

/// Everything that waits, in copies that are made while all `workers` are busy.
fn assert_nothing_waits(executor: &Executor, known: &Netns, workers: usize) {
    let (unknown, pinned) = (fresh(), executor.pin(known).unwrap());
    let state = format!("{workers} workers");
    let builder = SocketStock::builder().kinds([SocketKind::Tcp4]);
    let stock = builder.build(executor, known).unwrap();
    stock.fill().unwrap();
    let held: Vec<_> = (0..workers).map(|_| Held::new(executor, known)).collect();
    let queued = executor.spawn(known, || 1).unwrap();
    let check = |what: &str, f: &dyn Fn()| in_a_copy(&format!("{what}, {state}"), f);
    for netns in [known, &unknown] {
        check("run", &|| assert_told(executor.run(netns, || ())));
        check("spawn", &|| assert_told(executor.spawn(netns, || ())));
        check("spawn_batch", &|| {
            assert_told(executor.spawn_batch(netns, [|| (); 3]));
        });
        check("try_spawn", &|| match executor.try_spawn(netns, || 7) {
            Err(TrySpawnError::Failed(error, f)) => {
                assert_eq!(f(), 7);
                assert_told::<()>(Err(error));
            }
            other => panic!("{other:?}"),
        });
        check("pin", &|| assert_told(executor.pin(netns).map(drop)));
        check("retire", &|| assert_told(executor.retire(netns)));
        check("spawn_future", &|| {
            assert_told(executor.spawn_future(netns, async {}).join());
        });
        check("spawn_local", &|| {
            assert_told(executor.spawn_local(netns, || async {}).join());
        });
    }
    check("Pinned::run", &|| assert_told(pinned.run(|| ())));
    check("Pinned::spawn", &|| assert_told(pinned.spawn(|| ())));
    check("Pinned::try_spawn", &|| {
        assert_told(pinned.try_spawn(|| ()).map_err(TrySpawnError::into_error));
    });
    check("Pinned::proc_net", &|| {
        assert_told(pinned.proc_net().map(drop))
    });
    check("broadcast", &|| {
        let spaces = [known.clone(), unknown.clone()];
        let results = executor.broadcast(&spaces, |_| ());
        assert_eq!(results.len(), 2);
        results.into_iter().for_each(assert_told);
    });
    check("SocketStock::take", &|| {
        assert_told(stock.take(SocketKind::Tcp4));
        assert_told(pollster::block_on(stock.take_async(SocketKind::Tcp4)));
        assert_told(stock.fill());
    });
    check("drop of a stock", &|| {
        // SAFETY: read once, in a copy that never returns to the one that owns it.
        drop(unsafe { std::ptr::read(&stock) });
    });
    check("shutdown", &|| assert_told(executor.clone().shutdown(None)));
    check("stats", &|| drop(executor.stats()));
    check("scope", &|| {
        executor.scope(|scope| assert_told(scope.spawn(known, || ()).map(drop)));
    });
    check("global executor", &|| {
        let global = catch_unwind(|| netns_exec::run(&Netns::current().unwrap(), || ()));
        assert!(!matches!(global, Ok(Ok(()))), "no worker can have run it");
    });
    let (held, queued) = (
        std::cell::Cell::new(Some(held)),
        std::cell::Cell::new(Some(queued)),
    );
    check("join", &|| assert_told(queued.take().unwrap().join()));
    check("await", &|| {
        assert_told(pollster::block_on(queued.take().unwrap()))
    });
    check("drop of handles", &|| {
        drop(queued.take());
        // Their drop opens gates, which no job of the copy waits at.
        drop(held.take());
    });
    check("drop of a pin", &|| {
        // SAFETY: read once, in a copy that never returns to the one that owns it.
        drop(unsafe { std::ptr::read(&pinned) });
    });
    held.take().unwrap().into_iter().for_each(Held::end);
    assert_eq!(
        queued.take().unwrap().join().unwrap(),
        1,
        "the original works"
    );
}

#[test]
fn nothing_waits_in_a_copy() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    executor.run(&netns, || ()).unwrap();
    assert_nothing_waits(&executor, &netns, 1);
    let executor = Executor::builder()
        .workers_per_netns(3)
        .max_workers(3)
        .build()
        .unwrap();
    assert_nothing_waits(&executor, &netns, 3);
}

/// What can be awaited, by number.
fn future(which: usize, executor: &Executor, netns: &Netns, unknown: &Netns) -> Awaited {
    match which {
        0 => {
            let spawn = executor.spawn_async(netns, || ());
            Box::pin(async { spawn.await.map(drop) })
        }
        1 => {
            let pin = executor.pin_async(unknown);
            Box::pin(async { pin.await.map(drop) })
        }
        2 => Box::pin(executor.retire_async(netns)),
        3 => Box::pin(async { Netns::new_async().await.map(drop) }),
        4 => Box::pin(executor.clone().shutdown_async(None)),
        _ => unreachable!(),
    }
}

type Awaited = Pin<Box<dyn Future<Output = Result<()>>>>;

#[test]
fn futures_are_told_and_dropped_in_a_copy_however_far_they_were() {
    let esrch = |result: Result<()>| {
        let error = result.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(ESRCH), "{error}");
    };
    for which in 0..5 {
        let executor = Executor::builder().queue_depth(1).build().unwrap();
        let (netns, unknown) = (fresh(), fresh());
        let held = Held::new(&executor, &netns);
        let queued = executor.spawn(&netns, || 1).unwrap();
        in_a_copy("a future of the copy's", || {
            let made = future(which, &executor, &netns, &unknown);
            esrch(pollster::block_on(made));
        });
        let mut polled = future(which, &executor, &netns, &unknown);
        let mut cx = Context::from_waker(Waker::noop());
        if polled.as_mut().poll(&mut cx).is_pending() {
            let polled = Cell::new(Some(polled));
            in_a_copy("a future that is polled", || {
                esrch(pollster::block_on(polled.take().unwrap()));
            });
            in_a_copy("a future that is dropped", || drop(polled.take()));
        }
        held.end();
        assert_eq!(queued.join().unwrap(), 1);
    }
}

#[test]
fn thread_beside_the_pool_is_another_processs_in_a_copy() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let server = executor.thread(&netns, |stop| stop.wait()).unwrap();
    let server = Cell::new(Some(server));
    in_a_copy("a new thread", || {
        assert_told(executor.thread(&netns, |_| ()).map(drop));
    });
    in_a_copy("join of a thread", || {
        assert_told(server.take().unwrap().join());
    });
    in_a_copy("drop of a thread's handle", || drop(server.take()));
    let server = server.take().unwrap();
    server.stop();
    server.join().unwrap();
}

/// Copies that are made while another thread is in the middle of the very first use,
/// with whatever locks it holds just then.
#[test]
fn copy_made_during_the_first_use_is_told_or_works() {
    alone!(Alone::AsIs);
    require_root();
    // A backtrace takes a lock of the dynamic linker, which is not the library's.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    // Each is a process in which nothing was used before.
    for _ in 0..40 {
        in_a_copy("the original", || {
            let first = std::thread::spawn(|| Executor::global().run(&fresh(), || ()));
            let mut copies = Vec::new();
            while !first.is_finished() && copies.len() < 30 {
                copies.push(begin_copy(use_for_the_first_time));
            }
            for copy in copies {
                assert_ended_well(copy, "the first use");
            }
            first.join().unwrap().unwrap();
        });
    }
}

fn use_for_the_first_time() {
    // A copy from before the first use is a process like any other.
    let told = |error: netns_exec::Error| assert_told::<()>(Err(error));
    let netns = Netns::current().unwrap();
    drop(Netns::new().map_err(told));
    if let Ok(executor) = Executor::new().map_err(told) {
        let _ = executor.run(&netns, || ()).map_err(told);
    }
    drop(catch_unwind(AssertUnwindSafe(|| {
        netns_exec::run(&netns, || ())
    })));
    drop(netns);
}

#[test]
fn dropping_the_last_handle_of_an_executor_returns_in_a_copy() {
    let (executor, netns, gate) = (Executor::new().unwrap(), fresh(), Gate::new());
    let pass = gate.pass();
    let job = executor.spawn(&netns, move || pass.stop()).unwrap();
    gate.wait_for(1);
    let executor = std::cell::Cell::new(Some(executor));
    in_a_copy("drop of an executor", || drop(executor.take()));
    gate.open();
    job.join().unwrap();
    drop(executor.take());
}

#[test]
fn handles_come_and_go_in_a_copy_whatever_the_other_threads_were_doing() {
    let executor = Executor::new().unwrap();
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        // Its locks are held most of the time, and so in many of the copies.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                drop(Netns::current().unwrap());
            }
        });
        for _ in 0..200 {
            let netns = std::cell::Cell::new(Some(fresh()));
            in_a_copy("handles", || {
                let current = Netns::current().unwrap();
                drop(current.downgrade().upgrade());
                drop((current, netns.take()));
            });
        }
    });
    let netns = fresh();
    let weak = netns.downgrade();
    executor.run(&netns, || ()).unwrap();
    let netns = std::cell::Cell::new(Some(netns));
    in_a_copy("drop of a last handle", || drop(netns.take()));
    assert_eq!(executor.stats().workers, 1, "it was not ours");
    drop(netns.take());
    eventually("the worker leaves", || weak.upgrade().is_none());
}

#[test]
fn scope_that_is_copied_with_a_job_under_way_ends_with_a_panic() {
    let (executor, netns, gate) = (Executor::new().unwrap(), fresh(), Gate::new());
    let mut copy = None;
    let ended = catch_unwind(AssertUnwindSafe(|| {
        executor.scope(|scope| {
            let pass = gate.pass();
            let job = scope.spawn(&netns, move || pass.stop()).unwrap();
            gate.wait_for(1);
            // SAFETY: the copy leaves as soon as the scope has ended.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => drop(alarm::set(20)),
                ForkResult::Parent { child } => {
                    copy = Some(child);
                    gate.open();
                    job.join().unwrap();
                }
            }
        });
    }));
    let Some(copy) = copy else {
        let told = ended.unwrap_err().downcast::<String>().unwrap();
        let status = i32::from(!told.contains("fork first"));
        // SAFETY: ends the copy at once.
        unsafe { libc::_exit(status) }
    };
    assert!(ended.is_ok(), "the original waits for its job");
    assert_eq!(waitpid(copy, None).unwrap(), WaitStatus::Exited(copy, 0));
}

#[test]
fn future_can_be_woken_cancelled_and_let_go_of_in_a_copy() {
    let (executor, netns) = (Executor::new().unwrap(), fresh());
    let (sender, wakers) = std::sync::mpsc::channel();
    let mut polled = false;
    let future = std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(7);
        }
        sender.send(cx.waker().clone()).unwrap();
        Poll::Pending
    });
    let future = executor.spawn_future(&netns, future);
    let (waker, future) = (wakers.recv().unwrap(), std::cell::Cell::new(Some(future)));
    // In each copy anew.
    in_a_copy("wake", || waker.wake_by_ref());
    in_a_copy("cancel", || assert!(future.take().unwrap().cancel()));
    in_a_copy("await", || {
        assert_told(pollster::block_on(future.take().unwrap()))
    });
    in_a_copy("drop of a handle", || drop(future.take()));
    in_a_copy("drop of a waker", || {
        // SAFETY: read once, in a copy that never returns to the one that owns it.
        drop(unsafe { std::ptr::read(&waker) });
    });
    waker.wake();
    assert_eq!(future.take().unwrap().join().unwrap(), 7);
}
