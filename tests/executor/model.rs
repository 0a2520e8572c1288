//! Random histories of an executor, against a model of what each call must come to: open,
//! run, spawn, cancel, retire, delete, re-create, fork, and the end, by several threads.
//!
//! proptest shrinks a history that fails, and prints it with its seed; run it again with
//! `PROPTEST_RNG_SEED` or from the file that it names.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::Duration;

use netns_exec::{Executor, Guard, JoinHandle, Netns, NetnsId, WeakNetns};
use netns_exec_tests::{TempNetns, eventually, here, require_root, strays_in};
use nix::sys::wait::{WaitStatus, waitpid};
use proptest::prelude::*;

const THREADS: usize = 3;
const NAMES: usize = 3;

/// What one thread does; namespaces are meant by their number.
#[derive(Clone, Copy, Debug)]
enum Step {
    Run(usize),
    /// From a job of the one in the other.
    Nested(usize, usize),
    Spawn(usize),
    /// Cancels the oldest job that is not joined yet.
    Cancel,
    Join,
    Pin(usize),
    Retire(usize),
    /// Deletes the name and makes it anew: another namespace.
    Renew(usize),
    /// Panics in a job.
    Panic(usize),
    /// A child, by fork(2) and execve(2).
    Child(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let netns = 0..NAMES;
    prop_oneof![
        6 => netns.clone().prop_map(Step::Run),
        2 => (netns.clone(), netns.clone()).prop_map(|(a, b)| Step::Nested(a, b)),
        6 => netns.clone().prop_map(Step::Spawn),
        2 => Just(Step::Cancel),
        4 => Just(Step::Join),
        1 => netns.clone().prop_map(Step::Pin),
        2 => netns.clone().prop_map(Step::Retire),
        2 => netns.clone().prop_map(Step::Renew),
        1 => netns.clone().prop_map(Step::Panic),
        1 => netns.prop_map(Step::Child),
    ]
}

/// What a spawned job is known to do.
struct Pending {
    handle: JoinHandle<NetnsId>,
    expected: NetnsId,
    ran: Arc<AtomicU32>,
    cancelled: bool,
}

/// What all threads act upon.
struct World {
    executor: Executor,
    names: Vec<RwLock<TempNetns>>,
    /// Every namespace that there has been, to be gone in the end.
    all: RwLock<Vec<WeakNetns>>,
}

impl World {
    fn new(guard: Guard) -> World {
        let builder = Executor::builder().guard(guard).workers_per_netns(2);
        let names: Vec<_> = (0..NAMES).map(|_| TempNetns::new()).collect();
        World {
            executor: builder.build().expect("an executor"),
            all: RwLock::new(names.iter().map(|name| name.downgrade()).collect()),
            names: names.into_iter().map(RwLock::new).collect(),
        }
    }

    /// The namespace that has this name now.
    fn netns(&self, index: usize) -> Netns {
        self.names[index].read().expect("no panic").netns().clone()
    }

    fn step(&self, step: Step, pending: &mut Vec<Pending>) {
        let executor = &self.executor;
        match step {
            Step::Run(index) => {
                let netns = self.netns(index);
                assert_eq!(executor.run(&netns, here).expect("a worker"), netns.id());
            }
            Step::Nested(outer, inner) => {
                let (outer, inner) = (self.netns(outer), self.netns(inner));
                let both = executor.run(&outer, || {
                    let there = executor.run(&inner, here).expect("a worker");
                    (here(), there)
                });
                assert_eq!(both.expect("a worker"), (outer.id(), inner.id()));
            }
            Step::Spawn(index) => {
                let netns = self.netns(index);
                let ran = Arc::new(AtomicU32::new(0));
                let counter = Arc::clone(&ran);
                let job = move || {
                    counter.fetch_add(1, Ordering::SeqCst);
                    here()
                };
                pending.push(Pending {
                    handle: executor.spawn(&netns, job).expect("room"),
                    expected: netns.id(),
                    ran,
                    cancelled: false,
                });
            }
            Step::Cancel => {
                if let Some(oldest) = pending.iter_mut().find(|job| !job.cancelled) {
                    oldest.cancelled = oldest.handle.cancel();
                }
            }
            Step::Join => {
                if !pending.is_empty() {
                    join(pending.remove(0));
                }
            }
            Step::Pin(index) => {
                let netns = self.netns(index);
                let pinned = executor.pin(&netns).expect("a worker");
                assert_eq!(pinned.run(here).expect("a worker"), netns.id());
            }
            Step::Retire(index) => executor.retire(&self.netns(index)).expect("it ends"),
            Step::Renew(index) => {
                let mut name = self.names[index].write().expect("no panic");
                let old = name.id();
                *name = TempNetns::new();
                assert_ne!(name.id(), old);
                self.all.write().expect("no panic").push(name.downgrade());
            }
            Step::Panic(index) => {
                let netns = self.netns(index);
                let handle = executor
                    .spawn(&netns, || panic!("asked for"))
                    .expect("room");
                let error = handle.join().expect_err("it panicked");
                assert!(error.is_panic(), "{error}");
            }
            Step::Child(index) => {
                use netns_exec::CommandExt;
                let netns = self.netns(index);
                let mut child = std::process::Command::new("true")
                    .spawn_in(&netns)
                    .expect("a child");
                let pid = nix::unistd::Pid::from_raw(child.id() as i32);
                let status = waitpid(pid, None).expect("a child of this process");
                assert_eq!(status, WaitStatus::Exited(pid, 0));
                let _ = child.try_wait();
            }
        }
    }
}

/// A job ran once, where it was sent to, unless it was cancelled, and then never.
fn join(job: Pending) {
    let joined = job.handle.join();
    let ran = job.ran.load(Ordering::SeqCst);
    match joined {
        Ok(at) => {
            assert!(!job.cancelled, "a job that was cancelled ran");
            assert_eq!((at, ran), (job.expected, 1));
        }
        Err(error) => {
            assert!(job.cancelled, "{error}");
            assert_eq!(ran, 0, "{error}");
        }
    }
}

fn check(guard: Guard, histories: &[Vec<Step>]) {
    let world = World::new(guard);
    thread::scope(|scope| {
        let world = &world;
        for history in histories {
            scope.spawn(move || {
                let mut pending = Vec::new();
                for &step in history {
                    world.step(step, &mut pending);
                }
                pending.into_iter().for_each(join);
            });
        }
    });
    let World {
        executor,
        names,
        all,
    } = world;
    let all = all.into_inner().expect("no panic");
    let shown = executor.audit().expect("/proc");
    let strays = strays_in(&shown, all.iter().map(WeakNetns::id));
    assert_eq!(strays, [0; 0], "{shown:?}");
    let ended = executor.shutdown(Some(Duration::from_secs(30)));
    ended.expect("nothing is left to do");
    drop(names);
    for netns in all {
        eventually("a deleted namespace has gone", || netns.upgrade().is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_comes_to_what_the_model_says(
        guard in prop::sample::select(netns_exec_tests::GUARDS.to_vec()),
        histories in prop::collection::vec(prop::collection::vec(step(), 0..24), THREADS),
    ) {
        require_root();
        check(guard, &histories);
    }
}
