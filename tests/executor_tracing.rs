//! What a subscriber of `tracing` sees. There is one for the whole process, so
//! each test looks at the events of its own namespaces only.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};

use netns_exec::{Executor, Guard, Netns};
use netns_exec_tests::{Alone, alone, eventually, fresh};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

netns_exec::rootless::test_harness!(own_net);

/// An event, with its own fields and those of the span it happened in.
#[derive(Clone, Debug)]
struct Seen {
    level: Level,
    span: Option<&'static str>,
    fields: Fields,
}

type Fields = BTreeMap<&'static str, String>;

struct Collect<'a>(&'a mut Fields);

impl Visit for Collect<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

static SPANS: Mutex<BTreeMap<u64, (&'static str, Fields)>> = Mutex::new(BTreeMap::new());
static EVENTS: Mutex<Vec<Seen>> = Mutex::new(Vec::new());
static OPENED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static ENTERED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Writes down everything.
struct Recorder;

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = OPENED.fetch_add(1, Ordering::Relaxed) + 1;
        let mut fields = Fields::new();
        span.record(&mut Collect(&mut fields));
        let name = span.metadata().name();
        SPANS.lock().unwrap().insert(id, (name, fields));
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        if let Some((_, fields)) = SPANS.lock().unwrap().get_mut(&span.into_u64()) {
            values.record(&mut Collect(fields));
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let innermost = ENTERED.with_borrow(|entered| entered.last().copied());
        let spans = SPANS.lock().unwrap();
        let span = innermost.and_then(|id| spans.get(&id));
        let mut fields = span.map(|(_, fields)| fields.clone()).unwrap_or_default();
        event.record(&mut Collect(&mut fields));
        EVENTS.lock().unwrap().push(Seen {
            level: *event.metadata().level(),
            span: span.map(|(name, _)| *name),
            fields,
        });
    }

    fn enter(&self, span: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(span.into_u64()));
    }

    fn exit(&self, span: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.retain(|id| *id != span.into_u64()));
    }
}

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Recorder).unwrap());
}

/// The events about a namespace so far.
fn events_of(netns: &Netns) -> Vec<Seen> {
    let id = netns.id().to_string();
    let events = EVENTS.lock().unwrap();
    let of_it = |seen: &&Seen| seen.fields.get("netns_id") == Some(&id);
    events.iter().filter(of_it).cloned().collect()
}

/// The one event about a namespace that says `text`.
fn event_of(netns: &Netns, text: &str) -> Seen {
    let all = events_of(netns);
    let saying = |seen: &&Seen| seen.fields["message"].contains(text);
    let found: Vec<_> = all.iter().filter(saying).collect();
    assert_eq!(found.len(), 1, "{text}: {all:#?}");
    found[0].clone()
}

#[test]
fn worker_has_a_span_with_events_for_start_and_retirement() {
    listen();
    let executor = Executor::new().unwrap();
    let netns = fresh();
    for _ in 0..3 {
        executor.run(&netns, || ()).unwrap();
    }
    let failed = executor.spawn(&netns, || panic!("counted")).unwrap();
    failed.join().unwrap_err();
    let start = event_of(&netns, "worker started");
    executor.shutdown(None).unwrap();
    let end = event_of(&netns, "worker retired");
    for event in [&start, &end] {
        assert_eq!(event.span, Some("netns_worker"));
        assert_eq!(event.fields["netns"], netns.label());
        assert_eq!(event.fields["netns_id"], netns.id().to_string());
        assert_eq!(event.fields["worker"], "0");
        assert!(
            event.level >= Level::DEBUG,
            "not at the default level: {event:?}"
        );
    }
    assert_eq!(end.fields["done"], "4");
    assert_eq!(end.fields["panicked"], "1");
}

#[test]
fn jobs_see_the_span_of_their_worker() {
    listen();
    let executor = Executor::new().unwrap();
    let netns = fresh();
    executor
        .run(&netns, || tracing::info!("said by the job"))
        .unwrap();
    let event = event_of(&netns, "said by the job");
    assert_eq!(event.span, Some("netns_worker"));
    assert_eq!(event.fields["netns"], netns.label());
}

#[test]
fn jobs_cause_no_event_of_their_own() {
    listen();
    let executor = Executor::builder().workers_per_netns(2).build().unwrap();
    let netns = fresh();
    let pinned = executor.pin(&netns).unwrap();
    let work = |rounds: u32| {
        for _ in 0..rounds {
            executor.run(&netns, || ()).unwrap();
            pinned.run(|| ()).unwrap();
            executor.spawn(&netns, || ()).unwrap().join().unwrap();
            executor.scope(|scope| drop(scope.spawn(&netns, || ()).unwrap()));
            let failed = executor.spawn(&netns, || panic!("not news"));
            failed.unwrap().join().unwrap_err();
        }
    };
    work(100);
    let mut events = events_of(&netns);
    // The deletion watch has its news told by whichever worker is idle next.
    events.retain(|event| !event.fields["message"].contains("watching for unmounted"));
    // At most the two workers' coming, whatever the number of jobs.
    assert!(events.len() <= 2, "{events:#?}");
    assert!(events.iter().all(|event| event.level >= Level::DEBUG));
}

#[test]
fn idle_worker_says_that_it_was_idle() {
    listen();
    let timeout = Some(std::time::Duration::from_millis(1));
    let executor = Executor::builder().idle_timeout(timeout).build().unwrap();
    let netns = fresh();
    executor.run(&netns, || ()).unwrap();
    eventually("the worker has left", || executor.stats().workers == 0);
    executor.shutdown(None).unwrap();
    let event = event_of(&netns, "worker retired");
    assert_eq!(event.fields["idle"], "true");
    assert_eq!(event.fields["done"], "1");
}

#[test]
fn worker_that_a_job_spoiled_is_a_warning() {
    listen();
    let executor = Executor::builder().guard(Guard::Off).build().unwrap();
    let netns = fresh();
    let error = executor
        .run(&netns, || unshare(CloneFlags::CLONE_NEWNET).unwrap())
        .unwrap_err();
    assert!(error.is_escaped(), "{error}");
    executor.shutdown(None).unwrap();
    let event = event_of(&netns, "worker retired");
    assert_eq!(event.level, Level::WARN);
    assert_eq!(event.fields["netns"], netns.label());
    assert_eq!(event.fields["worker"], "0");
    assert_eq!(event.fields["done"], "1");
}

#[test]
fn failures_to_start_are_warnings_that_name_the_namespace() {
    alone!(Alone::OrdinaryUserAsRoot);
    listen();
    let executor = Executor::builder().guard(Guard::Off).build().unwrap();
    let (no_thread, no_fd) = (Netns::new().unwrap(), Netns::new().unwrap());
    let fail = |resource, limit, netns| {
        let (soft, hard) = getrlimit(resource).unwrap();
        setrlimit(resource, limit, hard).unwrap();
        let result = executor.run(netns, || ());
        setrlimit(resource, soft, hard).unwrap();
        result.unwrap_err()
    };
    let one = fail(Resource::RLIMIT_NPROC, 1, &no_thread);
    let two = fail(Resource::RLIMIT_NOFILE, 0, &no_fd);
    for (netns, error, worker) in [(&no_thread, one, "0"), (&no_fd, two, "1")] {
        let event = event_of(netns, "worker could not start");
        assert_eq!(event.level, Level::WARN);
        assert_eq!(event.fields["netns"], netns.label());
        assert_eq!(event.fields["worker"], worker);
        assert_eq!(event.fields["error"], error.to_string());
    }
}

#[test]
fn worker_that_is_found_unfit_when_it_is_idle_says_what_it_lacks() {
    listen();
    let executor = Executor::builder().guard(Guard::Off).build().unwrap();
    let netns = fresh();
    // What costs more than a job is looked for when there is time.
    executor
        .run(&netns, || unshare(CloneFlags::CLONE_FS).unwrap())
        .unwrap();
    eventually("the worker has left", || executor.stats().workers == 0);
    executor.shutdown(None).unwrap();
    let event = event_of(&netns, "unfit");
    assert_eq!(event.level, Level::WARN);
    let verdict = &event.fields["verdict"];
    assert!(verdict.contains("working directory"), "{event:?}");
    assert_eq!(event_of(&netns, "worker retired").level, Level::WARN);
}
