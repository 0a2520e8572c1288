//! What keeps a job in its place, and what becomes of one that leaves it.

mod abuse;
mod children;
mod escapes;
mod heard;
mod keep_admin;
mod rayon;
mod refusals;
mod state;
mod tokio;

use std::thread;

use netns_exec::{Executor, Guard};

netns_exec::rootless::test_harness!(own_net);

fn executor(guard: Guard) -> Executor {
    let executor = Executor::builder().guard(guard).build();
    executor.expect("root may have every guard")
}

/// What a sealed job meets that wants one.
fn is_refused_a_thread() -> bool {
    thread::Builder::new().spawn(|| ()).is_err()
}
