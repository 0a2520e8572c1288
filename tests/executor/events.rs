//! What those are told who measure, and what the log is told when calls queue for long.

use std::fmt::Debug;
use std::future::Future;
use std::panic::panic_any;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use netns_exec::{Event, Executor, Guard, NetnsId};
use netns_exec_tests::{Alone, Gate, Held, alone, eventually, fresh, here, within};
use nix::sched::{CloneFlags, unshare};
use tracing::field::Field;
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Started(NetnsId),
    Job {
        queued: Duration,
        ran: Duration,
        panicked: bool,
        refused: u64,
    },
    Retired {
        idle: bool,
        done: u64,
    },
}

type Log = Arc<Mutex<Vec<Seen>>>;

fn observed() -> (Executor, Log) {
    let log = Log::default();
    let writes = Arc::clone(&log);
    let builder = Executor::builder().on_event(move |event| {
        let seen = match *event {
            Event::WorkerStarted { netns, label, .. } => {
                assert_eq!(here(), netns);
                assert!(!label.is_empty());
                Seen::Started(netns)
            }
            Event::JobEnded {
                queued,
                ran,
                panicked,
                refused,
                ..
            } => Seen::Job {
                queued,
                ran,
                panicked,
                refused,
            },
            Event::WorkerRetired { idle, done, .. } => Seen::Retired { idle, done },
            _ => return,
        };
        writes.lock().unwrap().push(seen);
    });
    (builder.build().unwrap(), log)
}

#[test]
fn each_event_is_told_once_with_its_figures() {
    const LONG: Duration = Duration::from_millis(20);
    let (executor, log) = observed();
    let netns = fresh();
    let gate = Gate::new();
    let pass = gate.pass();
    let first = executor.spawn(&netns, move || pass.stop()).unwrap();
    gate.wait_for(1);
    let second = executor.spawn(&netns, || panic_any(1)).unwrap();
    thread::sleep(LONG);
    gate.open();
    first.join().unwrap();
    let panicked: Result<(), _> = second.join();
    assert!(panicked.is_err());
    let lives = executor.run(&netns, || thread::Builder::new().spawn(|| ()).is_err());
    assert!(lives.unwrap());
    executor.shutdown(None).unwrap();
    let log = log.lock().unwrap();
    let [started, first, second, third, retired] = &log[..] else {
        panic!("{log:#?}");
    };
    assert_eq!(*started, Seen::Started(netns.id()));
    assert!(
        matches!(first, Seen::Job { ran, panicked: false, refused: 0, .. } if *ran >= LONG),
        "{first:?}"
    );
    assert!(
        matches!(second, Seen::Job { queued, panicked: true, .. } if *queued >= LONG),
        "{second:?}"
    );
    assert!(
        matches!(
            third,
            Seen::Job {
                panicked: false,
                refused: 1,
                ..
            }
        ),
        "{third:?}"
    );
    assert_eq!(
        *retired,
        Seen::Retired {
            idle: false,
            done: 3
        }
    );
}

#[test]
fn job_beside_the_pool_is_told_of_when_it_has_ended() {
    const LONG: Duration = Duration::from_millis(20);
    let (executor, log) = observed();
    let netns = fresh();
    for panics in [false, true] {
        let handle = executor.thread(&netns, move |_stop| {
            assert!(thread::Builder::new().spawn(|| ()).is_err());
            thread::sleep(LONG);
            assert!(!panics, "as it should");
        });
        assert_eq!(handle.unwrap().join().is_err(), panics);
    }
    executor.shutdown(None).unwrap();
    let log = log.lock().unwrap();
    let [first, second] = &log[..] else {
        panic!("{log:#?}");
    };
    for (job, has_panicked) in [(first, false), (second, true)] {
        assert!(
            matches!(
                *job,
                Seen::Job { queued: Duration::ZERO, ran, panicked, refused: 1 }
                    if ran >= LONG && panicked == has_panicked
            ),
            "{job:?}"
        );
    }
}

#[test]
fn what_is_about_a_ruined_worker_is_told_at_home_once_to_each_hook() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut builder = Executor::builder().guard(Guard::Off);
    for hook in 0..2 {
        let told = Arc::clone(&told);
        builder = builder.on_event(move |event| {
            let what = match event {
                Event::JobEnded { label, .. } => format!("job in {label}"),
                Event::WorkerRetired { label, unfit, .. } => format!("{unfit} in {label}"),
                _ => return,
            };
            told.lock().unwrap().push((hook, here(), what));
            panic!("which is not the next hook's affair");
        });
    }
    let (executor, netns, home) = (builder.build().unwrap(), fresh(), here());
    let spawned = executor.spawn(&netns, || unshare(CloneFlags::CLONE_NEWNET));
    assert!(spawned.unwrap().join().unwrap_err().is_escaped());
    eventually("all is told", || told.lock().unwrap().len() == 4);
    executor.shutdown(None).unwrap();
    let label = netns.label();
    let expected = [format!("job in {label}"), format!("true in {label}")]
        .map(|what| [0, 1].map(|hook| (hook, home, what.clone())));
    assert_eq!(*told.lock().unwrap(), expected.concat());
}

#[test]
fn panic_of_an_event_hook_harms_no_job() {
    let builder = Executor::builder().on_event(|_| panic!("of the hook"));
    let (executor, netns) = (builder.build().unwrap(), fresh());
    for n in 0..3 {
        assert_eq!(executor.run(&netns, || n).unwrap(), n);
        assert_eq!(
            executor.spawn(&netns, move || n).unwrap().join().unwrap(),
            n
        );
    }
    executor.shutdown(None).unwrap();
}

static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps the warnings.
struct Warnings;

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = String::new();
        event.record(&mut |field: &Field, value: &dyn Debug| {
            line.push_str(&format!("{field}={value:?} "));
        });
        WARNINGS.lock().unwrap().push(line);
    }
}

#[test]
fn calls_that_wait_for_long_behind_one_job_are_told_of() {
    alone!(Alone::AsIs);
    tracing::subscriber::set_global_default(Warnings).unwrap();
    within("calls behind a job that does not end", || {
        let executor = Executor::builder().queue_depth(1 << 16).build().unwrap();
        let (netns, other) = (fresh(), fresh());
        let held = Held::new(&executor, &netns);
        // By the sender of one more.
        let mut handles = Vec::new();
        eventually("the log is told", || {
            handles.push(executor.spawn(&netns, || ()).unwrap());
            !WARNINGS.lock().unwrap().is_empty()
        });
        handles.push(executor.spawn(&netns, || ()).unwrap());
        let warnings = WARNINGS.lock().unwrap().clone();
        let [line] = &warnings[..] else {
            panic!("once: {warnings:#?}");
        };
        for word in ["Executor::thread", "queued=", netns.label()] {
            assert!(line.contains(word), "no {word} in: {line}");
        }
        held.end();
        for handle in handles {
            handle.join().unwrap();
        }
        // By the only call there is, that waits for it.
        let held = Held::new(&executor, &other);
        let waits = executor.spawn(&other, || 7).unwrap();
        let joins = thread::spawn(move || waits.join());
        eventually("the log is told", || WARNINGS.lock().unwrap().len() == 2);
        held.end();
        assert_eq!(joins.join().unwrap().unwrap(), 7);
        assert!(WARNINGS.lock().unwrap()[1].contains("Executor::thread"));
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn what_is_awaited_and_waits_for_long_behind_one_job_is_told_of() {
    alone!(Alone::AsIs);
    tracing::subscriber::set_global_default(Warnings).unwrap();
    let told = || WARNINGS.lock().unwrap().len();
    within("what waits behind a job that does not end", move || {
        let executor = Executor::builder().queue_depth(1).build().unwrap();
        let (netns, full) = (fresh(), fresh());
        let held = Held::new(&executor, &netns);
        let mut futures = Vec::new();
        eventually("the log is told", || {
            futures.push(executor.spawn_future(&netns, async { here() }));
            told() == 1
        });
        held.end();
        for future in futures {
            assert_eq!(future.join().unwrap(), netns.id());
        }
        // Of calls that do not even come into the queue.
        let held = Held::new(&executor, &full);
        let queued = executor.spawn(&full, here).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        eventually("the log is told", || {
            let call = pin!(executor.spawn_async(&full, here));
            assert!(call.poll(&mut cx).is_pending());
            told() == 2
        });
        held.end();
        assert_eq!(queued.join().unwrap(), full.id());
        for line in WARNINGS.lock().unwrap().iter() {
            assert!(line.contains("Executor::thread"), "{line}");
        }
        executor.shutdown(None).unwrap();
    });
}
