//! What workers run when they start and when they stop.

use std::cell::Cell;
use std::io;
use std::panic::panic_any;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use netns_exec::{Executor, Netns, NetnsId};
use netns_exec_tests::{GUARDS, eventually, fresh, here, panic_of, tid, within};
use nix::sched::{CloneFlags, setns, unshare};

fn with_start(hook: impl Fn(&Netns) -> io::Result<()> + Send + Sync + 'static) -> Executor {
    Executor::builder().on_worker_start(hook).build().unwrap()
}

#[test]
fn start_hook_runs_once_on_each_worker_before_its_first_job() {
    thread_local!(static SEEN: Cell<Option<NetnsId>> = const { Cell::new(None) });
    for guard in GUARDS {
        let builder = Executor::builder().guard(guard).on_worker_start(|netns| {
            assert_eq!(SEEN.replace(Some(netns.id())), None, "once");
            assert_eq!(here(), netns.id());
            Ok(())
        });
        let executor = builder.build().unwrap();
        let (a, b) = (fresh(), fresh());
        for netns in [&a, &b, &a] {
            assert_eq!(
                executor.run(netns, || SEEN.get()).unwrap(),
                Some(netns.id())
            );
        }
        // One that stands in for a blocked worker.
        let seen = executor.run(&a, || executor.run(&b, || executor.run(&a, || SEEN.get())));
        assert_eq!(seen.unwrap().unwrap().unwrap(), Some(a.id()));
    }
}

#[test]
fn what_a_start_hook_changes_is_what_the_guard_takes_as_given() {
    for guard in GUARDS {
        let builder = (Executor::builder().guard(guard))
            .on_worker_start(|_| Ok(unshare(CloneFlags::CLONE_NEWNS)?));
        let executor = builder.build().unwrap();
        let netns = fresh();
        let mounts = || std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
        let ours = mounts();
        for _ in 0..3 {
            assert_ne!(executor.run(&netns, mounts).unwrap(), ours);
            // So long that it has looked at itself.
            eventually("the worker is there", || executor.stats().workers == 1);
            std::thread::sleep(Duration::from_millis(30));
        }
        assert_eq!(executor.stats().done, 3);
        assert_eq!(executor.stats().workers, 1, "{guard:?} has not retired it");
    }
}

#[test]
fn failing_start_hook_is_the_callers_error_and_the_next_call_tries_again() {
    let left = Arc::new(AtomicU32::new(2));
    let fails = Arc::clone(&left);
    let executor = with_start(move |_| {
        match fails.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        }) {
            Ok(_) => Err(io::Error::from_raw_os_error(nix::libc::ENOTTY)),
            Err(_) => Ok(()),
        }
    });
    let netns = fresh();
    let error = executor.run(&netns, || ()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOTTY));
    assert!(
        error.to_string().contains("its start hook failed"),
        "{error}"
    );
    assert!(error.to_string().contains(netns.label()), "{error}");
    let error = executor.spawn(&netns, || ()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOTTY));
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
}

#[test]
fn panic_of_a_start_hook_is_an_error_with_its_text() {
    let executor = with_start(|netns| panic!("no {netns}"));
    let netns = fresh();
    let error = executor.run(&netns, || ()).unwrap_err();
    assert!(error.is_panic(), "{error}");
    let text = format!("its start hook panicked: no {netns}");
    assert!(error.to_string().contains(&text), "{error}");
}

#[test]
fn thread_that_a_start_hook_moves_runs_nothing() {
    let elsewhere = fresh();
    let target = elsewhere.clone();
    let executor = with_start(move |_| Ok(setns(&target, CloneFlags::CLONE_NEWNET)?));
    let netns = fresh();
    let error = executor.run(&netns, || unreachable!()).unwrap_err() as netns_exec::Error;
    assert!(error.is_escaped(), "{error}");
    assert_eq!(executor.stats().workers, 0);
}

#[test]
fn start_hook_cannot_wait_for_a_worker_and_is_told_so() {
    within("a start hook that uses executors", || {
        let other = Executor::new().unwrap();
        let own = Arc::new(Mutex::new(None::<Executor>));
        let (itself, elsewhere) = (Arc::clone(&own), other.clone());
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let executor = with_start(move |netns| {
            let itself = itself.lock().unwrap().clone().unwrap();
            let mut told = tell.lock().unwrap();
            for executor in [itself, elsewhere.clone()] {
                told.push(executor.run(netns, || ()).unwrap_err());
                told.push(executor.spawn(netns, || ()).unwrap_err());
                told.push(executor.retire(netns).unwrap_err());
            }
            // This is not a wait for a worker.
            drop(Netns::new()?);
            Ok(())
        });
        *own.lock().unwrap() = Some(executor.clone());
        let netns = fresh();
        assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 6);
        for error in &*told {
            assert_eq!(error.raw_os_error(), Some(nix::libc::EDEADLK), "{error}");
            assert!(error.to_string().contains("start hook"), "{error}");
        }
        own.lock().unwrap().take();
    });
}

#[test]
fn stop_hook_runs_once_on_each_worker_after_its_last_job() {
    for guard in GUARDS {
        let stopped = Arc::new(Mutex::new(Vec::new()));
        let stops = Arc::clone(&stopped);
        let builder = Executor::builder()
            .guard(guard)
            .on_worker_stop(move |netns| {
                assert_eq!(here(), netns.id());
                stops.lock().unwrap().push((netns.id(), tid()));
            });
        let executor = builder.build().unwrap();
        let (a, b) = (fresh(), fresh());
        let tids = [&a, &b].map(|netns| executor.run(netns, tid).unwrap());
        executor.retire(&a).unwrap();
        assert_eq!(*stopped.lock().unwrap(), [(a.id(), tids[0])]);
        executor.shutdown(None).unwrap();
        let both = [(a.id(), tids[0]), (b.id(), tids[1])];
        assert_eq!(*stopped.lock().unwrap(), both);
    }
}

#[test]
fn stop_hook_may_use_the_executor_and_its_panic_harms_nothing() {
    within("a stop hook that uses executors", || {
        let other = Executor::new().unwrap();
        let used = Arc::new(AtomicU32::new(0));
        let (uses, elsewhere) = (Arc::clone(&used), other.clone());
        let netns = fresh();
        let executor = Executor::builder()
            .on_worker_stop(move |netns| {
                assert_eq!(elsewhere.run(netns, here).unwrap(), netns.id());
                uses.fetch_add(1, Ordering::SeqCst);
                panic_any(Bomb);
            })
            .build()
            .unwrap();
        executor.run(&netns, || ()).unwrap();
        executor.retire(&netns).unwrap();
        assert_eq!(used.load(Ordering::SeqCst), 1);
        // A later worker is as good as the first.
        assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
        executor.shutdown(None).unwrap();
        assert_eq!(used.load(Ordering::SeqCst), 2);
        other.shutdown(None).unwrap();
    });
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

#[test]
fn stop_hook_does_not_run_where_a_job_has_left_its_thread() {
    let stopped = Arc::new(AtomicU32::new(0));
    let stops = Arc::clone(&stopped);
    let executor = Executor::builder()
        .guard(netns_exec::Guard::Off)
        .on_worker_stop(move |_| {
            stops.fetch_add(1, Ordering::SeqCst);
        })
        .build()
        .unwrap();
    let (netns, elsewhere) = (fresh(), fresh());
    let moved = executor.run(&netns, || {
        setns(&elsewhere, CloneFlags::CLONE_NEWNET).unwrap()
    });
    assert!(moved.unwrap_err().is_escaped());
    executor.shutdown(None).unwrap();
    assert_eq!(stopped.load(Ordering::SeqCst), 0);
}

#[test]
fn limit_of_a_shutdown_holds_for_stop_hooks() {
    within("a stop hook without an end", || {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let receiver = Mutex::new(receiver);
        let executor = Executor::builder()
            .on_worker_stop(move |_| {
                let _ = receiver.lock().unwrap().recv();
            })
            .build()
            .unwrap();
        executor.run(&fresh(), || ()).unwrap();
        let error = executor
            .shutdown(Some(Duration::from_millis(20)))
            .unwrap_err();
        assert!(error.is_timed_out(), "{error}");
        drop(sender);
    });
}

#[test]
fn hooks_are_dropped_with_the_executor_whatever_they_do_then() {
    /// Counts its drops, and is never dropped on a worker or the home thread.
    struct Told(Arc<Mutex<Vec<String>>>);
    impl Drop for Told {
        fn drop(&mut self) {
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            self.0.lock().unwrap().push(name.trim_end().to_owned());
            panic!("dropped");
        }
    }
    let dropped = Arc::new(Mutex::new(Vec::new()));
    let netns = fresh();
    for round in 1..=50 {
        let told = Told(Arc::clone(&dropped));
        let executor = with_start(move |_| {
            let _ = &told;
            Ok(())
        });
        let last = executor.clone();
        let job = executor.spawn(&netns, move || drop(last)).unwrap();
        drop(executor);
        job.join().unwrap();
        eventually("they are dropped", || {
            dropped.lock().unwrap().len() == round
        });
    }
    let names = dropped.lock().unwrap();
    let ours = |name: &&String| name.starts_with("ns:") || *name == "netns-home";
    assert_eq!(names.iter().find(ours), None);
    drop(panic_of(|| drop(Told(Arc::default()))));
}

#[test]
fn handle_that_a_start_hook_keeps_keeps_the_workers() {
    let kept = Arc::new(Mutex::new(None));
    let hook = {
        let kept = Arc::clone(&kept);
        move |netns: &Netns| {
            *kept.lock().unwrap() = Some(netns.clone());
            Ok(())
        }
    };
    let executor = with_start(hook);
    let netns = fresh();
    let worker = executor.run(&netns, tid).unwrap();
    drop(netns);
    let netns = kept.lock().unwrap().take().unwrap();
    assert_eq!(executor.run(&netns, tid).unwrap(), worker);
    drop(netns);
    eventually("the workers are gone", || executor.stats().workers == 0);
}
