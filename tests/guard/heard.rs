//! A refusal of the guard's is heard at the moment it happens: counted, and told in the log.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;

use netns_exec::{Executor, Guard, JoinHandle, Netns, Stop};
use netns_exec_tests::{Alone, Gate, Pass, alone, eventually, fresh, threads_named, within};
use nix::sched::{CloneFlags, unshare};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::{executor, is_refused_a_thread};

/// What the log was told of one refusal.
#[derive(Clone, Debug, Default)]
struct Line {
    netns_id: String,
    left_out: u64,
    /// All of it.
    text: String,
}

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "left_out" {
            self.left_out = value;
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "netns_id" {
            self.netns_id = format!("{value:?}");
        }
        self.text += &format!("{field}={value:?} ");
    }
}

/// Writes down what is told of refusals, and then does what a user has it do.
struct Log {
    then: fn(),
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        if line.text.contains("refused by the guard") {
            LINES.lock().unwrap().push(line);
            (self.then)();
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn listen(then: fn()) {
    tracing::subscriber::set_global_default(Log { then }).expect("it is the process's first");
}

fn lines() -> Vec<Line> {
    LINES.lock().unwrap().clone()
}

fn lines_of(netns: &Netns) -> Vec<Line> {
    let id = netns.id().to_string();
    let mut lines = lines();
    lines.retain(|line| line.netns_id == id);
    lines
}

/// Returns when the log has been told of all refusals so far, for it is told of them in turn.
fn log_is_told_of_all(executor: &Executor) {
    let last = fresh();
    assert!(executor.run(&last, is_refused_a_thread).unwrap());
    eventually("the log is told of the last one", || {
        !lines_of(&last).is_empty()
    });
}

/// Has a job run in `netns` that is refused a thread and then waits to pass; returns what
/// joins it.
type Ship = fn(&Executor, &Netns, Pass) -> Box<dyn FnOnce()>;

fn joining(handle: JoinHandle<()>) -> Box<dyn FnOnce()> {
    Box::new(|| handle.join().unwrap())
}

const SHIPPED: [(&str, Ship); 4] = [
    ("spawn", |executor, netns, pass| {
        let job = move || {
            assert!(is_refused_a_thread());
            pass.stop();
        };
        joining(executor.spawn(netns, job).unwrap())
    }),
    ("run", |executor, netns, pass| {
        // The caller that waits is the one that answers what is refused.
        let (executor, blue) = (executor.clone(), netns.clone());
        let caller = fresh();
        let outer = executor.clone();
        let job = move || {
            executor
                .run(&blue, || {
                    assert!(is_refused_a_thread());
                    pass.stop();
                })
                .unwrap();
        };
        joining(outer.spawn(&caller, job).unwrap())
    }),
    ("future", |executor, netns, pass| {
        let future = async move {
            assert!(is_refused_a_thread());
            pass.stop();
        };
        joining(executor.spawn_future(netns, future))
    }),
    ("thread", |executor, netns, pass| {
        let job = move |_: &Stop| {
            assert!(is_refused_a_thread());
            pass.stop();
        };
        let handle = executor.thread(netns, job).unwrap();
        Box::new(move || handle.join().unwrap())
    }),
];

#[test]
fn refusal_is_counted_and_told_while_its_job_goes_on() {
    alone!(Alone::AsIs);
    listen(|| ());
    for guard in [Guard::Seal, Guard::KeepAdmin] {
        for (how, ship) in SHIPPED {
            let (executor, netns, gate) = (executor(guard), fresh(), Gate::new());
            let join = ship(&executor, &netns, gate.pass());
            gate.wait_for(1);
            assert_eq!(executor.stats().refused, 1, "{guard:?}, {how}");
            eventually("the log is told", || !lines_of(&netns).is_empty());
            gate.open();
            join();
            executor.run(&netns, || ()).unwrap();
            log_is_told_of_all(&executor);
            let [line] = &lines_of(&netns)[..] else {
                panic!("{guard:?}, {how}: one line: {:#?}", lines_of(&netns));
            };
            for word in [netns.label(), "a thread", "Builder::prewarm"] {
                assert!(line.text.contains(word), "no {word} in: {}", line.text);
            }
        }
    }
}

#[test]
fn each_job_is_told_of_once_and_one_that_panics_as_well() {
    alone!(Alone::AsIs);
    listen(|| ());
    let (executor, netns) = (executor(Guard::Seal), fresh());
    let job = || {
        unshare(CloneFlags::CLONE_FILES).expect_err("the guard refuses that");
        assert!(is_refused_a_thread());
        panic!("for a reason of its own");
    };
    let ran = catch_unwind(AssertUnwindSafe(|| executor.run(&netns, job)));
    assert!(ran.is_err());
    assert!(executor.run(&netns, is_refused_a_thread).unwrap());
    let ran = catch_unwind(AssertUnwindSafe(|| {
        executor.run(&netns, || panic!("EPERM"))
    }));
    assert!(ran.is_err());
    log_is_told_of_all(&executor);
    let [first, second] = &lines_of(&netns)[..] else {
        panic!("one of each job that was refused: {:#?}", lines_of(&netns));
    };
    for word in ["namespaces or files", "Guard::Detect"] {
        assert!(first.text.contains(word), "no {word} in: {}", first.text);
    }
    assert!(second.text.contains("a thread"), "{}", second.text);
}

#[test]
fn job_that_is_refused_ten_thousand_times_makes_one_line_and_one_thread() {
    alone!(Alone::AsIs);
    listen(|| ());
    let (executor, netns, gate) = (executor(Guard::Seal), fresh(), Gate::new());
    let pass = gate.pass();
    let job = move || {
        let refused = (0..10_000).filter(|_| is_refused_a_thread()).count();
        pass.stop();
        refused
    };
    let handle = executor.spawn(&netns, job).unwrap();
    gate.wait_for(1);
    assert_eq!(executor.stats().refused, 10_000);
    eventually("the log is told", || !lines_of(&netns).is_empty());
    // None, if the job took so long that it has ended meanwhile.
    assert!(threads_named("netns-log") <= 1);
    gate.open();
    assert_eq!(handle.join().unwrap(), 10_000);
    log_is_told_of_all(&executor);
    assert_eq!(lines_of(&netns).len(), 1);
}

#[test]
fn subscriber_that_waits_holds_up_nothing_and_misses_a_number() {
    alone!(Alone::AsIs);
    static GATE: OnceLock<Gate> = OnceLock::new();
    const JOBS: usize = 400;
    let gate = GATE.get_or_init(Gate::new);
    listen(|| GATE.get().expect("made before").pass().stop());
    let (executor, netns) = (executor(Guard::Seal), fresh());
    let one = executor.clone();
    let blue = netns.clone();
    within("jobs while the subscriber waits", move || {
        assert!(one.run(&blue, is_refused_a_thread).unwrap());
        gate.wait_for(1);
        for _ in 0..JOBS {
            assert!(one.run(&blue, is_refused_a_thread).unwrap());
        }
        assert_eq!(one.stats().refused, 1 + JOBS as u64);
        one.retire(&blue).unwrap();
        // Nothing that is awaited is held up by it either.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let job = one.spawn_async(&blue, || ()).await.unwrap();
            job.await.unwrap();
            one.shutdown_async(None).await.unwrap();
        });
        assert_eq!(lines().len(), 1);
    });
    gate.open();
    let told = || {
        let lines = lines();
        let left_out: u64 = lines.iter().map(|line| line.left_out).sum();
        lines.len() as u64 + left_out
    };
    eventually("each is told of or counted", || told() == 1 + JOBS as u64);
    assert!(lines().len() < JOBS, "what waits is bounded");
}

#[test]
fn subscriber_that_panics_is_told_of_the_next_one() {
    alone!(Alone::AsIs);
    listen(|| panic!("no line for me"));
    let executor = executor(Guard::Seal);
    for _ in 0..3 {
        let netns = fresh();
        assert!(executor.run(&netns, is_refused_a_thread).unwrap());
        eventually("the log is told", || !lines_of(&netns).is_empty());
        executor.run(&netns, || ()).unwrap();
    }
    executor.shutdown(None).unwrap();
}

#[test]
fn subscriber_may_start_threads_and_be_refused_some_in_the_same_namespace() {
    alone!(Alone::AsIs);
    static THROUGH: OnceLock<(Executor, Netns)> = OnceLock::new();
    static IS_DONE: AtomicBool = AtomicBool::new(false);
    listen(|| {
        if !IS_DONE.load(Ordering::Relaxed) {
            thread::spawn(|| ()).join().expect("it is not on a worker");
            let (executor, netns) = THROUGH.get().expect("made before");
            assert!(executor.run(netns, is_refused_a_thread).unwrap());
            IS_DONE.store(true, Ordering::Relaxed);
        }
    });
    let (executor, netns) = THROUGH.get_or_init(|| (executor(Guard::Seal), fresh()));
    assert!(executor.run(netns, is_refused_a_thread).unwrap());
    eventually("its own is told of too", || {
        IS_DONE.load(Ordering::Relaxed) && lines_of(netns).len() == 2
    });
    assert_eq!(executor.stats().refused, 2);
}
