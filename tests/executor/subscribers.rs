//! Subscribers of `tracing` that use the library, or fail.

use std::cell::Cell;
use std::sync::OnceLock;

use netns_exec::{Executor, Netns};
use netns_exec_tests::{Alone, alone, fresh, here, within};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Calls functions for what it is told of.
struct Calls {
    event: fn(),
    enter: fn(),
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Subscriber for Calls {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        // What it does itself is not its business.
        if !INSIDE.replace(true) {
            (self.event)();
            INSIDE.set(false);
        }
    }

    fn enter(&self, _: &Id) {
        (self.enter)();
    }

    fn exit(&self, _: &Id) {
        (self.enter)();
    }
}

fn listen(event: fn(), enter: fn()) {
    tracing::subscriber::set_global_default(Calls { event, enter }).unwrap();
}

#[test]
fn panic_when_a_span_is_entered_costs_no_worker() {
    alone!(Alone::AsIs);
    listen(|| (), || panic!("no span for me"));
    within("a span that cannot be entered", || {
        let executor = Executor::new().unwrap();
        let netns = fresh();
        assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
        executor.retire(&netns).unwrap();
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn subscriber_may_use_the_global_executor_that_is_being_made() {
    alone!(Alone::AsIs);
    listen(|| drop(Executor::global().stats()), || ());
    within("the global executor", || {
        let netns = fresh();
        assert_eq!(netns_exec::run(&netns, here).unwrap(), netns.id());
    });
}

#[test]
fn subscriber_may_ship_what_the_deletion_watch_says_through_a_worker() {
    alone!(Alone::AsIs);
    static THROUGH: OnceLock<(Executor, Netns)> = OnceLock::new();
    let ship = || {
        if let Some((executor, netns)) = THROUGH.get() {
            executor.run(netns, || ()).unwrap();
        }
    };
    listen(ship, || ());
    within("events of the watch", || {
        THROUGH.set((Executor::new().unwrap(), fresh())).ok();
        let (executor, netns) = THROUGH.get().unwrap();
        executor.run(netns, || ()).unwrap();
        // Idle for long enough to have the watch asked.
        std::thread::sleep(std::time::Duration::from_millis(200));
        executor.run(netns, || ()).unwrap();
        executor.retire(netns).unwrap();
    });
}
