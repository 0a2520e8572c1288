//! What becomes of a job that moves its thread or leaves threads behind, and of
//! the jobs after it, under each guard.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use netns_exec::{Error, Executor, Guard, Netns, NetnsId};
use netns_exec_tests::{Gate, RawThread, eventually, fresh, here, tid};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

const NET: CloneFlags = CloneFlags::CLONE_NEWNET;

fn executor(guard: Guard, workers: usize) -> Executor {
    let executor = Executor::builder()
        .guard(guard)
        .workers_per_netns(workers)
        .build()
        .expect("root may have every guard");
    assert_eq!(executor.guard(), guard);
    executor
}

/// What moves the thread that calls it, or tries to.
type Move = Box<dyn Fn() -> nix::Result<()> + Send + Sync>;

/// The ways out of a namespace.
fn ways_out(elsewhere: &Netns) -> [(&'static str, Move); 2] {
    let elsewhere = elsewhere.clone();
    [
        ("setns", Box::new(move || setns(&elsewhere, NET))),
        ("unshare", Box::new(|| unshare(NET))),
    ]
}

/// The threads in `netns` of which an audit says that they do not belong there.
fn strays(executor: &Executor, netns: &Netns) -> Vec<u32> {
    let audit = executor.audit().expect("own process");
    (audit
        .strays()
        .filter(|thread| thread.netns_id() == Some(netns.id())))
    .map(|thread| thread.tid())
    .collect()
}

#[test]
fn sealed_job_cannot_leave_and_its_worker_goes_on() {
    let (netns, elsewhere) = (fresh(), fresh());
    let executor = executor(Guard::Seal, 1);
    let worker = executor.run(&netns, tid).unwrap();
    for (name, leave) in ways_out(&elsewhere) {
        let (left, place, on) = executor.run(&netns, || (leave(), here(), tid())).unwrap();
        assert_eq!(left, Err(Errno::EPERM), "{name}");
        assert_eq!((place, on), (netns.id(), worker), "{name}");
    }
}

#[test]
fn sealed_job_that_panics_over_a_refusal_is_told_the_cure() {
    let (netns, elsewhere) = (fresh(), fresh());
    let executor = executor(Guard::Seal, 1);
    let worker = executor.run(&netns, tid).unwrap();
    type Attempt = Box<dyn Fn() + Send + Sync>;
    let attempts: [(&str, Attempt); 3] = [
        (
            "setns(2)",
            Box::new(move || setns(&elsewhere, NET).unwrap()),
        ),
        ("setns(2)", Box::new(|| unshare(NET).unwrap())),
        (
            "Builder::prewarm",
            Box::new(|| thread::spawn(|| ()).join().unwrap()),
        ),
    ];
    for (cure, attempt) in attempts {
        let attempt = Arc::new(attempt);
        let shipped = Arc::clone(&attempt);
        let error = (executor.spawn(&netns, move || shipped()).unwrap())
            .join()
            .unwrap_err();
        assert!(error.is_refused() && error.is_panic(), "{error}");
        assert!(!error.is_escaped(), "{error}");
        let text = error.to_string();
        assert!(text.contains(cure), "{text}");
        assert!(text.contains("Guard::Detect"), "{text}");
        let payload = error.into_panic().expect("it did panic");
        let words = payload.downcast_ref::<String>().expect("formatted");
        assert!(text.contains(words.as_str()), "{text} lacks {words}");

        let ran = catch_unwind(AssertUnwindSafe(|| executor.run(&netns, || attempt())));
        let panic = ran.expect_err("`run` goes on with the job's panic");
        assert_eq!(panic.downcast_ref::<String>(), Some(words));
    }
    // What was refused did no harm.
    assert_eq!(executor.run(&netns, tid).unwrap(), worker);
}

#[test]
fn panic_for_another_reason_is_no_refusal() {
    let netns = fresh();
    let executor = executor(Guard::Seal, 1);
    let job = || -> () { panic!("the answer is 42") };
    let error = executor.spawn(&netns, job).unwrap().join().unwrap_err();
    assert!(error.is_panic() && !error.is_refused(), "{error}");
}

#[test]
fn sealed_job_gets_an_ordinary_error_for_a_thread() {
    let netns = fresh();
    let executor = executor(Guard::Seal, 1);
    let (std, raw) = executor
        .run(&netns, || {
            let std = thread::Builder::new().spawn(|| ());
            (std.map(drop), RawThread::start().map(drop))
        })
        .expect("it did not panic over that");
    for refused in [std, raw] {
        let error = refused.expect_err("a sealed job has no threads");
        assert_eq!(error.raw_os_error(), Some(Errno::EPERM as i32), "{error}");
    }
}

#[test]
fn worker_that_a_job_moved_never_runs_anything_again() {
    for guard in [Guard::Off, Guard::Detect] {
        let (netns, elsewhere) = (fresh(), fresh());
        let executor = executor(guard, 1);
        for (name, leave) in ways_out(&elsewhere) {
            let leave = Arc::new(leave);
            let shipped = Arc::clone(&leave);
            let first = executor.run(&netns, tid).unwrap();
            let error = executor
                .run(&netns, || leave().expect("nothing holds it back"))
                .unwrap_err();
            assert!(error.is_escaped(), "{guard:?}, {name}: {error}");

            let (place, second) = executor.run(&netns, || (here(), tid())).unwrap();
            assert_eq!(place, netns.id(), "{guard:?}, {name}");
            assert_ne!(second, first, "{guard:?}, {name}");

            // The same where the job is not waited for; then its value is kept.
            let escape = move || {
                shipped().expect("nothing holds it back");
                (here(), String::from("done"))
            };
            let error = executor.spawn(&netns, escape).unwrap().join().unwrap_err();
            assert!(error.is_escaped(), "{guard:?}, {name}: {error}");
            let (place, word) = (error.into_result::<(NetnsId, String)>()).expect("it returned");
            assert_ne!(place, netns.id(), "{guard:?}, {name}");
            assert_eq!(word, "done");

            let (place, third) = executor.run(&netns, || (here(), tid())).unwrap();
            assert_eq!(place, netns.id(), "{guard:?}, {name}");
            assert_ne!(third, second, "{guard:?}, {name}");
        }
        eventually("only one worker is left", || executor.stats().workers == 1);
        let stats = executor.stats();
        assert_eq!((stats.done, stats.panicked, stats.queued), (10, 0, 0));
        executor.shutdown(None).unwrap();
    }
}

#[test]
fn escape_and_panic_are_both_reported() {
    for guard in [Guard::Off, Guard::Detect] {
        let (netns, elsewhere) = (fresh(), fresh());
        let executor = executor(guard, 1);
        let job = move || -> () {
            setns(&elsewhere, NET).unwrap();
            panic!("far from home");
        };
        let error = executor.spawn(&netns, job).unwrap().join().unwrap_err();
        assert!(error.is_escaped(), "{guard:?}: {error}");
        assert!(error.to_string().contains("far from home"), "{error}");
        let payload = error.into_panic().expect("it panicked");
        assert_eq!(payload.downcast_ref(), Some(&"far from home"));
        assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
        assert_eq!(executor.stats().panicked, 1);
    }
}

#[test]
fn job_that_comes_back_is_no_escape() {
    for guard in [Guard::Off, Guard::Detect] {
        let (netns, elsewhere) = (fresh(), fresh());
        let executor = executor(guard, 1);
        let worker = executor.run(&netns, tid).unwrap();
        let there_and_back = || {
            setns(&elsewhere, NET).unwrap();
            let there = here();
            setns(&netns, NET).unwrap();
            there
        };
        assert_eq!(
            executor.run(&netns, there_and_back).unwrap(),
            elsewhere.id()
        );
        assert_eq!(executor.run(&netns, tid).unwrap(), worker, "{guard:?}");
    }
}

#[test]
fn jobs_behind_an_escape_run_once_each_in_the_right_place() {
    for guard in [Guard::Off, Guard::Detect] {
        for workers in [1, 3] {
            let (netns, elsewhere) = (fresh(), fresh());
            let executor = executor(guard, workers);
            let gate = Gate::new();
            let escapes: Vec<_> = (0..workers)
                .map(|_| {
                    let (pass, elsewhere) = (gate.pass(), elsewhere.clone());
                    let escape = move || {
                        pass.stop();
                        setns(&elsewhere, NET).expect("nothing holds it back");
                        tid()
                    };
                    executor.spawn(&netns, escape).unwrap()
                })
                .collect();
            gate.wait_for(workers);
            let runs: Arc<[AtomicUsize]> = (0..50).map(|_| AtomicUsize::new(0)).collect();
            let behind: Vec<_> = (0..runs.len())
                .map(|n| {
                    let runs = Arc::clone(&runs);
                    let job = move || {
                        runs[n].fetch_add(1, Ordering::Relaxed);
                        (here(), tid())
                    };
                    executor.spawn(&netns, job).unwrap()
                })
                .collect();
            gate.open();
            let gone: Vec<i32> = escapes
                .into_iter()
                .map(|escape| {
                    let error = escape.join().unwrap_err();
                    assert!(error.is_escaped(), "{guard:?}: {error}");
                    error.into_result().expect("its thread's id")
                })
                .collect();
            for job in behind {
                let (place, on) = job.join().unwrap();
                assert_eq!(place, netns.id(), "{guard:?}");
                assert!(!gone.contains(&on), "{guard:?}: ran on a thread that left");
            }
            assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));

            // Full strength: this many jobs can be in it at the same time.
            let meeting = Arc::new(Barrier::new(workers));
            let meet = || {
                let meeting = Arc::clone(&meeting);
                executor.spawn(&netns, move || {
                    meeting.wait();
                    here()
                })
            };
            let meeting: Vec<_> = (0..workers).map(|_| meet().unwrap()).collect();
            for job in meeting {
                let place = job
                    .join_timeout(Duration::from_secs(60))
                    .expect("a worker for each")
                    .unwrap();
                assert_eq!(place, netns.id());
            }
            assert_eq!(executor.stats().done as usize, runs.len() + 2 * workers);
            executor.shutdown(None).unwrap();
        }
    }
}

#[test]
fn call_from_a_job_that_has_moved_still_runs_in_the_namespace_it_names() {
    for guard in [Guard::Off, Guard::Detect] {
        let (netns, elsewhere) = (fresh(), fresh());
        let executor = executor(guard, 1);
        let (nested, kept) = (executor.clone(), netns.clone());
        let job = move || {
            setns(&elsewhere, NET).unwrap();
            let place = nested.run(&kept, here).unwrap();
            let pinned = nested.pin(&kept).unwrap();
            (place, pinned.run(here).unwrap())
        };
        let error = executor.spawn(&netns, job).unwrap().join().unwrap_err();
        assert!(error.is_escaped(), "{guard:?}: {error}");
        let places = error.into_result::<(NetnsId, NetnsId)>().unwrap();
        assert_eq!(places, (netns.id(), netns.id()), "{guard:?}");
    }
}

/// Runs a job that leaves `leave`'s thread behind; what it returned keeps the
/// thread alive.
fn leave_behind<T: Send + 'static>(
    executor: &Executor,
    netns: &Netns,
    leave: impl FnOnce() -> (u32, T) + Send + 'static,
) -> Result<(u32, T), Error> {
    executor.spawn(netns, leave).unwrap().join()
}

#[test]
fn threads_left_behind_are_reported_by_detect_and_only_there() {
    let netns = fresh();
    let detecting = executor(Guard::Detect, 1);
    let worker = detecting.run(&netns, tid).unwrap();

    let gate = Arc::new(Gate::new());
    let leave_std = {
        let gate = Arc::clone(&gate);
        move || {
            let pass = gate.pass();
            let (sender, receiver) = std::sync::mpsc::channel();
            let thread = thread::Builder::new().name("left-behind".to_owned());
            let thread = thread.spawn(move || {
                sender.send(tid().unsigned_abs()).unwrap();
                pass.stop();
            });
            (receiver.recv().unwrap(), thread.unwrap())
        }
    };
    let error = leave_behind(&detecting, &netns, leave_std).unwrap_err();
    assert!(error.is_left_threads(), "{error}");
    let text = error.to_string();
    let (left, thread) = error
        .into_result::<(u32, thread::JoinHandle<()>)>()
        .unwrap();
    assert!(text.contains("1 thread(s)"), "{text}");
    assert!(text.contains(&format!("{left} `left-behind`")), "{text}");
    assert!(text.contains("Builder::prewarm"), "{text}");
    assert_eq!(strays(&detecting, &netns), [left]);

    // The worker that did it is gone; the report is not repeated for the next.
    assert_ne!(detecting.run(&netns, tid).unwrap(), worker);
    gate.open();
    thread.join().unwrap();

    // Nor does it matter how the thread was made.
    let raw = || {
        let raw = RawThread::start().expect("nothing holds it back");
        (raw.tid(), raw)
    };
    let error = leave_behind(&detecting, &netns, raw).unwrap_err();
    assert!(error.is_left_threads(), "{error}");
    let text = error.to_string();
    let (left, raw_thread) = error.into_result::<(u32, RawThread)>().unwrap();
    assert!(text.contains(&left.to_string()), "{text}");
    assert_eq!(strays(&detecting, &netns), [left]);
    drop(raw_thread);

    // Off looks for nothing.
    let off = executor(Guard::Off, 1);
    let (left, raw_thread) = leave_behind(&off, &netns, raw).expect("not looked for");
    assert_eq!(strays(&off, &netns), [left]);
    drop(raw_thread);
    eventually("no stray is left", || strays(&off, &netns).is_empty());
}

#[test]
fn threads_that_end_before_their_job_are_fine() {
    let netns = fresh();
    let executor = executor(Guard::Detect, 1);
    let worker = executor.run(&netns, tid).unwrap();
    for _ in 0..50 {
        let places = executor.run(&netns, || {
            thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(here)).collect();
                (threads.into_iter().map(|thread| thread.join().unwrap())).collect::<Vec<_>>()
            })
        });
        assert_eq!(places.unwrap(), [netns.id(); 4]);
    }
    assert_eq!(executor.run(&netns, tid).unwrap(), worker);
}

#[test]
fn whole_library_works_inside_a_job_under_every_guard() {
    use netns_exec::CommandExt;
    use std::process::Command;

    for guard in [Guard::Seal, Guard::Detect, Guard::Off] {
        let (netns, other) = (fresh(), fresh());
        let executor = executor(guard, 1);
        let name = netns_exec_tests::TempName::new();
        let inside = executor.clone();
        let ids = executor.run(&netns, || {
            let made = Netns::new().expect("from inside a job");
            let named = Netns::create(&name).expect("from inside a job");
            made.set_loopback_up().expect("from inside a job");
            let run = [&made, &named, &other].map(|ns| {
                let id = inside.run(ns, here).expect("from inside a job");
                assert_eq!(id, ns.id(), "{guard:?}");
                let handle = inside.spawn(ns, here).expect("from inside a job");
                assert_eq!(handle.join().expect("it ran"), ns.id(), "{guard:?}");
                let status = Command::new("true").status_in(ns);
                assert!(status.expect("from inside a job").success());
                id
            });
            Netns::delete(&name).expect("from inside a job");
            (run, here())
        });
        let (_, place) = ids.expect("the guard has nothing to say against it");
        assert_eq!(place, netns.id(), "{guard:?}");
    }
}
