//! A subscriber of `tracing` that uses the library while it is told something. There is
//! one for the whole process.

use std::cell::Cell;
use std::sync::{Mutex, OnceLock};

use netns_exec::{Executor, Netns, NetnsId};
use netns_exec_tests::{TempNetns, eventually, fresh, here, within};

netns_exec::rootless::test_harness!(own_net);

/// As a syslog sender's would, its lines go out in a namespace of their own.
static SHIP: OnceLock<(Executor, Netns)> = OnceLock::new();
static SHIPPED: Mutex<Vec<(String, String, NetnsId)>> = Mutex::new(Vec::new());

struct Ships;

struct Message(String);

impl tracing::field::Visit for Message {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl tracing::Subscriber for Ships {
    fn enabled(&self, meta: &tracing::Metadata<'_>) -> bool {
        meta.target().starts_with("netns_exec")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        thread_local! {
            static SHIPS: Cell<bool> = const { Cell::new(false) };
        }
        if SHIPS.replace(true) {
            return;
        }
        let thread = std::thread::current().name().unwrap_or("?").to_owned();
        let mut message = Message(String::new());
        event.record(&mut message);
        if let Some((executor, netns)) = SHIP.get() {
            // Ends with an error when the executor has been shut down.
            if let Ok(netns) = executor.run(netns, here) {
                SHIPPED.lock().unwrap().push((thread, message.0, netns));
            }
        }
        SHIPS.set(false);
    }

    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// The watch spoke on its own thread and under its own lock: the subscriber's call needed
/// a worker whose upkeep needs the watch.
#[test]
fn subscriber_that_calls_into_a_namespace_stops_neither_watch_nor_home() {
    tracing::subscriber::set_global_default(Ships).unwrap();
    within("everything goes on", || {
        let (executor, management) = (Executor::new().unwrap(), fresh());
        SHIP.set((executor.clone(), management.clone()))
            .ok()
            .unwrap();
        let told = |text: &str| {
            let shipped = SHIPPED.lock().unwrap();
            shipped.iter().any(|(_, message, _)| message.contains(text))
        };
        executor.run(&management, || ()).unwrap();
        // Its worker parks, and has its namespace watched.
        eventually("the watch has started", || told("watching for unmounted"));

        let named = TempNetns::new();
        executor.run(&named, || ()).unwrap();
        eventually("the deletion is told", || {
            let _ = Netns::delete(named.name());
            told("no longer mounted")
        });
        let shipped = SHIPPED.lock().unwrap().clone();
        for (thread, message, netns) in shipped {
            assert_eq!(netns, management.id());
            let ours = ["netns-home", "netns-watch"].contains(&thread.as_str());
            assert!(!ours, "{thread} ran a subscriber: {message}");
        }
        assert_eq!(executor.run(&management, here).unwrap(), management.id());
    });
}
