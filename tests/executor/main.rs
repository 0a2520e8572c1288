//! The executor: its calls, its workers, and how both end.

mod abort;
mod apart;
mod awaited;
mod batch;
mod broadcast;
mod calls;
mod counts;
mod deletion;
mod events;
mod faults;
mod futures;
mod global;
mod hooks;
mod idle;
mod last_handle;
mod local_futures;
mod lost;
mod nested;
mod panics;
mod pinned_futures;
mod retire;
mod scope;
mod serialized;
mod shutdown;
mod signals;
mod sought;
mod subscribers;
mod threads;
mod unserved;
mod user_code;
mod waits;
mod wakes;
mod workers;

use std::time::Duration;

use netns_exec::{Executor, Netns};
use netns_exec_tests::{Gate, eventually, sleeps_soundly, tid};

netns_exec::rootless::test_harness!(own_net);

fn with_idle(timeout: Option<Duration>) -> Executor {
    Executor::builder().idle_timeout(timeout).build().unwrap()
}

fn with_queue(depth: usize) -> Executor {
    Executor::builder().queue_depth(depth).build().unwrap()
}

fn with_workers(per_netns: usize) -> Executor {
    let builder = Executor::builder().workers_per_netns(per_netns);
    builder.build().unwrap()
}

/// Its workers, and threads beside them, wait at the gate before they serve.
fn with_births_at(gate: &Gate) -> Executor {
    let pass = gate.pass();
    let builder = Executor::builder().on_worker_start(move |_| {
        pass.stop();
        Ok(())
    });
    builder.build().unwrap()
}

/// The thread of the worker, which has nothing to do any more.
fn use_until_idle(executor: &Executor, netns: &Netns) -> i32 {
    let tid = executor.run(netns, tid).unwrap();
    eventually("the worker sleeps", || sleeps_soundly(tid));
    tid
}
