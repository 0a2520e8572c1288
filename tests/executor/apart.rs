//! Threads beside the pool: where they are, what they keep, and how they end.

use std::future::Future;
use std::io;
use std::panic::panic_any;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{Executor, Guard, Stop};
use netns_exec_tests::late::{never_blocks, slow_to_start};
use netns_exec_tests::{
    Alone, GUARDS, Gate, TempNetns, alone, eventually, fresh, here, strays_in, tid, within,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use std::os::fd::AsFd;

use super::with_births_at;

#[test]
fn thread_is_in_its_namespace_beside_the_workers() {
    for guard in GUARDS {
        let executor = Executor::builder().guard(guard).build().unwrap();
        let netns = fresh();
        let (sender, receiver) = mpsc::channel();
        let server = executor.thread(&netns, move |stop| {
            sender.send((here(), tid())).unwrap();
            stop.wait();
            7
        });
        let server = server.unwrap();
        let (id, its_tid) = receiver.recv().unwrap();
        assert_eq!(id, netns.id());
        // It takes no worker.
        assert_ne!(executor.run(&netns, tid).unwrap(), its_tid);
        let stats = executor.stats();
        assert_eq!((stats.threads, stats.workers), (1, 1));
        let shown = executor.audit().unwrap();
        assert_eq!(strays_in(&shown, [netns.id()]), [0; 0], "{shown:?}");
        assert!(!server.is_finished());
        server.stop();
        assert_eq!(server.join().unwrap(), 7);
        eventually("it is not counted any more", || {
            executor.stats().threads == 0
        });
        assert_eq!(executor.stats().done, 2);
    }
}

#[test]
fn thread_in_a_namespace_that_has_lost_its_name_is_told_to_stop() {
    within("threads", || {
        for has_been_told_of in [false, true] {
            let (netns, executor) = (TempNetns::new(), Executor::new().unwrap());
            executor.run(&netns, || ()).unwrap();
            let kept = netns.netns().clone();
            netns.delete();
            if has_been_told_of {
                eventually("the workers are gone", || executor.stats().workers == 0);
            }
            executor
                .thread(&kept, |stop| stop.wait())
                .unwrap()
                .join()
                .unwrap();
        }
    });
}

#[test]
fn thread_is_sealed_and_its_verdict_is_its_handles() {
    let executor = Executor::new().unwrap();
    let (netns, elsewhere) = (fresh(), fresh());
    let breeds = executor.thread(&netns, |_| {
        thread::Builder::new()
            .spawn(|| ())
            .map(|_| ())
            .map_err(|error| error.raw_os_error())
    });
    assert_eq!(breeds.unwrap().join().unwrap(), Err(Some(nix::libc::EPERM)));
    let executor = Executor::builder().guard(Guard::Off).build().unwrap();
    let moves = executor.thread(&netns, move |_| {
        setns(&elsewhere, CloneFlags::CLONE_NEWNET).unwrap();
    });
    assert!(moves.unwrap().join().unwrap_err().is_escaped());
    let panics = executor.thread(&netns, |_| panic_any(42)).unwrap();
    let result: Result<(), _> = panics.join();
    assert!(result.unwrap_err().is_panic());
    executor.shutdown(None).unwrap();
}

#[test]
fn thread_that_cannot_enter_is_the_callers_error_and_its_closure_comes_to_nothing() {
    let executor = Executor::builder()
        .on_worker_start(|_| Err(io::Error::from_raw_os_error(nix::libc::ENOTTY)))
        .build()
        .unwrap();
    let kept = Arc::new(());
    let captured = Arc::clone(&kept);
    let error = executor
        .thread(&fresh(), move |_| drop(captured))
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOTTY), "{error}");
    assert_eq!(Arc::strong_count(&kept), 1);
    assert_eq!(executor.stats().threads, 0);
    executor.clone().shutdown(None).unwrap();
    assert!(
        executor
            .thread(&fresh(), |_| ())
            .unwrap_err()
            .is_shut_down()
    );
}

#[test]
fn thread_without_room_for_its_stack_is_the_callers_error() {
    let executor = Executor::builder().stack_size(1 << 40).build().unwrap();
    let kept = Arc::new(());
    let captured = Arc::clone(&kept);
    let error = executor
        .thread(&fresh(), move |_| drop(captured))
        .unwrap_err();
    assert!(error.raw_os_error().is_some(), "{error}");
    assert_eq!(Arc::strong_count(&kept), 1);
    assert_eq!(executor.stats().threads, 0);
}

#[test]
fn each_way_of_being_told_tells() {
    type Loop = fn(&netns_exec::Stop);
    let loops: [(&str, Loop); 5] = [
        ("a look", |stop| {
            while !stop.is_set() {
                thread::sleep(Duration::from_millis(1));
            }
        }),
        ("a wait", |stop| stop.wait()),
        ("a wait with a limit", |stop| {
            while !stop.wait_timeout(Duration::from_millis(1)) {}
            assert!(stop.wait_timeout(Duration::MAX));
        }),
        ("a descriptor", |stop| {
            let event = stop.readable().unwrap();
            let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::NONE), Ok(1));
        }),
        ("a future", |stop| pollster::block_on(stop.stopped())),
    ];
    within("threads that are told to stop", move || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        for early in [false, true] {
            for (way, wait) in loops {
                let (sender, receiver) = mpsc::channel::<()>();
                let server = executor.thread(&netns, move |stop| {
                    if early {
                        receiver.recv().unwrap();
                    }
                    wait(stop);
                });
                let server = server.unwrap();
                server.stop();
                if early {
                    // Told before it looked.
                    sender.send(()).unwrap();
                }
                server
                    .join()
                    .unwrap_or_else(|error| panic!("{way}: {error}"));
            }
        }
    });
}

#[test]
fn end_of_the_executor_tells_and_waits() {
    alone!(Alone::AsIs);
    within("threads at the end", || {
        let netns = fresh();
        let executor = Executor::new().unwrap();
        let ended = Arc::new(AtomicU32::new(0));
        let servers: Vec<_> = (0..3)
            .map(|_| {
                let ended = Arc::clone(&ended);
                let server = executor.thread(&netns, move |stop| {
                    stop.wait();
                    ended.fetch_add(1, Ordering::SeqCst);
                });
                server.unwrap()
            })
            .collect();
        let (last, mut servers) = (executor.clone(), servers);
        // The handles are only handles.
        servers.pop();
        executor.shutdown(None).unwrap();
        assert_eq!(ended.load(Ordering::SeqCst), 3);
        assert!(servers.iter().all(|server| server.is_finished()));
        drop((last, servers));

        let executor = Executor::new().unwrap();
        let server = executor.thread(&netns, |stop| stop.wait()).unwrap();
        drop(executor);
        server.join().unwrap();
        let weak = netns.downgrade();
        drop(netns);
        eventually("the threads have ended", || weak.upgrade().is_none());
    });
}

#[test]
fn thread_that_does_not_look_is_what_a_limit_is_for() {
    within("a thread that goes on", || {
        let executor = Executor::new().unwrap();
        let (sender, receiver) = mpsc::channel::<()>();
        let netns = fresh();
        let stubborn = executor.thread(&netns, move |_| {
            let _ = receiver.recv();
        });
        let stubborn = stubborn.unwrap();
        let begin = Instant::now();
        let retired = pollster::block_on(async {
            let mut retiring = std::pin::pin!(executor.retire_async(&netns));
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            retiring.as_mut().poll(&mut cx).is_ready()
        });
        assert!(!retired, "it waits for the thread");
        let error = executor
            .shutdown(Some(Duration::from_millis(20)))
            .unwrap_err();
        assert!(error.is_timed_out(), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(10));
        drop(sender);
        stubborn.join().unwrap();
    });
}

#[test]
fn retiring_tells_the_threads_of_that_namespace_and_waits_for_them() {
    within("threads at retirement", || {
        let executor = Executor::new().unwrap();
        let (a, b) = (fresh(), fresh());
        let in_a = executor.thread(&a, |stop| stop.wait()).unwrap();
        let in_b = executor.thread(&b, |stop| stop.wait()).unwrap();
        executor.retire(&a).unwrap();
        assert!(in_a.is_finished() && !in_b.is_finished());
        assert_eq!(executor.stats().threads, 1);
        // One that comes later is none of those.
        let later = executor.thread(&a, |stop| stop.wait()).unwrap();
        pollster::block_on(executor.retire_async(&b)).unwrap();
        assert!(in_b.is_finished() && !later.is_finished());
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn deletion_of_the_last_name_tells_the_thread() {
    alone!(Alone::AsIs);
    within("a thread in a deleted namespace", || {
        let executor = Executor::new().unwrap();
        let temp = TempNetns::new();
        let server = executor.thread(&temp, |stop| stop.wait()).unwrap();
        let weak = temp.downgrade();
        temp.delete();
        server.join().unwrap();
        eventually("the namespace has died", || weak.upgrade().is_none());
    });
}

#[test]
fn thread_may_use_the_executor_and_end_it() {
    within("a thread that uses its executor", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        let (inner, own) = (executor.clone(), netns.clone());
        let user = executor.thread(&netns, move |_| {
            let sum =
                inner.run(&own, || 40).unwrap() + inner.spawn(&own, || 2).unwrap().join().unwrap();
            // It does not wait for itself.
            inner.retire(&own).unwrap();
            inner.shutdown(None).unwrap();
            sum
        });
        assert_eq!(user.unwrap().join().unwrap(), 42);
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn threads_do_not_count_for_max_workers_and_hooks_run_on_them() {
    let (started, stopped) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (starts, stops) = (Arc::clone(&started), Arc::clone(&stopped));
    let executor = Executor::builder()
        .max_workers(1)
        .on_worker_start(move |_| {
            starts.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .on_worker_stop(move |_| {
            stops.fetch_add(1, Ordering::SeqCst);
        })
        .build()
        .unwrap();
    let netns = fresh();
    let servers = [(); 3].map(|()| executor.thread(&netns, |stop| stop.wait()).unwrap());
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
    assert_eq!(started.load(Ordering::SeqCst), 4);
    drop(servers);
    executor.shutdown(None).unwrap();
    assert_eq!(stopped.load(Ordering::SeqCst), 4);
}

#[test]
fn awaited_start_keeps_no_runtime_waiting() {
    let prepare = || (slow_to_start(), fresh());
    never_blocks("thread_async", prepare, |(executor, netns)| async move {
        let thread = executor.thread_async(&netns, |stop| {
            stop.wait();
            here()
        });
        let thread = thread.await.unwrap();
        thread.stop();
        assert_eq!(thread.await.unwrap(), netns.id());
    });
}

#[test]
fn thread_whose_start_is_given_up_is_told_to_stop() {
    let gate = Gate::new();
    let (executor, netns) = (with_births_at(&gate), fresh());
    let (sender, receiver) = mpsc::channel();
    let told = move |stop: &Stop| {
        stop.wait();
        sender.send(here()).unwrap();
    };
    let mut start = Box::pin(executor.thread_async(&netns, told));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(start.as_mut().poll(&mut cx).is_pending());
    gate.wait_for(1);
    drop(start);
    gate.open();
    let place = receiver.recv_timeout(Duration::from_secs(60));
    assert_eq!(place, Ok(netns.id()));
    executor.clone().shutdown(None).unwrap();
    let late = pollster::block_on(executor.thread_async(&netns, |_| ()));
    assert!(late.unwrap_err().is_shut_down());
}
