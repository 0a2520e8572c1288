//! Loom models of the synchronisation that is written by hand: the code itself,
//! run through every interleaving of its steps, and every value that a load may
//! return under the memory model of the language.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p netns-exec --lib --release models
//! ```

mod executor;
mod job;
mod lane;
mod latch;

use std::any::Any;

use crate::guard::{Guard, Policy};
use crate::job::{Counters, Ending, Site};
use crate::netns::{Netns, NetnsId};
use crate::roster;
use crate::sync::thread;

/// Tries every interleaving in which threads are interrupted at most
/// `preemptions` times where they could have gone on. A thread that has to wait
/// is not interrupted, so most protocols show all their states within two.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 20_000;
    builder.check(model);
}

/// In words: what coroutines have by default is too little for system calls that
/// take paths.
const STACK: usize = 1 << 14;

/// As [`check`], on a thread with more stack.
fn check_deep(preemptions: usize, model: impl Fn() + Sync + Send + Copy + 'static) {
    check(preemptions, move || {
        spawn_deep(model).join().unwrap();
    });
}

fn spawn_deep<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    let thread = thread::Builder::new().stack_size(STACK);
    thread.spawn(f).unwrap()
}

/// What a worker brings along for its jobs. Nothing in it takes part.
fn site() -> Site {
    let policy = Policy::prepare(Guard::Off).unwrap();
    Site {
        fence: policy.install(roster::enter(here())).unwrap(),
        counters: std::sync::Arc::new(Counters::default()),
    }
}

fn here() -> NetnsId {
    Netns::current().unwrap().id()
}

fn returned<T>(ending: Ending<T>) -> T {
    match ending {
        Ending::Returned(value) => value,
        Ending::Panicked(_) => panic!("the job panicked"),
        Ending::Aborted(error) => panic!("the job was aborted: {error}"),
        Ending::Violated(_) => panic!("the job violated its guard"),
    }
}

fn panicked<T>(ending: Ending<T>) -> Box<dyn Any + Send> {
    match ending {
        Ending::Panicked(panic) => panic,
        _ => panic!("the job did not panic"),
    }
}
