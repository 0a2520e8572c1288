//! Random histories of executors, against a model of what each call must come to: open,
//! run, spawn, cancel, retire, delete, re-create, fork and shut down, by several threads.
//!
//! proptest shrinks a history that fails, and prints it with its seed; run it again with
//! `PROPTEST_RNG_SEED` or from the file that it names.
//!
//! A binary of its own: the copies that fork(2) makes of it would be of other tests, too.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::Duration;

use netns_exec::{Error, Executor, Guard, JoinHandle, Netns, NetnsId, Result, WeakNetns};
use netns_exec_tests::{TempNetns, eventually, here, in_a_copy, require_root, strays_in};
use nix::libc::ESRCH;
use nix::sys::wait::{WaitStatus, waitpid};
use proptest::prelude::*;

netns_exec::rootless::test_harness!(own_net);

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
    /// By its name.
    Open(usize),
    /// Deletes the name and makes it anew: another namespace.
    Renew(usize),
    /// Panics in a job.
    Panic(usize),
    /// A child, by fork(2) and execve(2).
    Child(usize),
    /// A copy of the process, by fork(2) alone.
    Copy(usize),
    /// Ends the executor that all threads use, and puts another in its place.
    Shutdown(End),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// When what was accepted has run.
    Whole,
    /// At once, by a time limit.
    Cut,
    /// Without waiting.
    Background,
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
        1 => netns.clone().prop_map(Step::Open),
        1 => netns.clone().prop_map(Step::Child),
        1 => netns.prop_map(Step::Copy),
        1 => prop::sample::select(vec![End::Whole, End::Cut, End::Background])
            .prop_map(Step::Shutdown),
    ]
}

/// An executor, and what may become of calls to it.
struct Served {
    executor: Executor,
    /// It has been shut down, or is about to be.
    ends: AtomicBool,
    /// By a time limit: what was accepted may not run.
    is_cut: AtomicBool,
}

impl Served {
    fn new(guard: Guard) -> Arc<Served> {
        let builder = Executor::builder().guard(guard).workers_per_netns(2);
        Arc::new(Served {
            executor: builder.build().expect("an executor"),
            ends: false.into(),
            is_cut: false.into(),
        })
    }

    /// What a call came to; `None` when it was refused because of the executor's end.
    #[track_caller]
    fn expect<T>(&self, outcome: Result<T>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.excuse(&error);
                None
            }
        }
    }

    /// Nothing but its end excuses a failure.
    #[track_caller]
    fn excuse(&self, error: &Error) {
        let ended = error.is_shut_down() && self.ends.load(Ordering::SeqCst);
        let cut = error.is_cancelled() && self.is_cut.load(Ordering::SeqCst);
        assert!(ended || cut, "{error}");
    }
}

/// What a spawned job is known to do.
struct Pending {
    served: Arc<Served>,
    handle: JoinHandle<NetnsId>,
    expected: NetnsId,
    ran: Arc<AtomicU32>,
    cancelled: bool,
    /// Accepted while the executor was being ended: where the namespace was retired as
    /// well, there is no worker to be had any more.
    met_end: bool,
}

/// What all threads act upon.
struct World {
    guard: Guard,
    served: RwLock<Arc<Served>>,
    names: Vec<RwLock<TempNetns>>,
    /// Every namespace that there has been, to be gone in the end.
    all: RwLock<Vec<WeakNetns>>,
}

impl World {
    fn new(guard: Guard) -> World {
        let names: Vec<_> = (0..NAMES).map(|_| TempNetns::new()).collect();
        World {
            guard,
            served: RwLock::new(Served::new(guard)),
            all: RwLock::new(names.iter().map(|name| name.downgrade()).collect()),
            names: names.into_iter().map(RwLock::new).collect(),
        }
    }

    /// The namespace that has this name now.
    fn netns(&self, index: usize) -> Netns {
        self.names[index].read().expect("no panic").netns().clone()
    }

    /// The executor that is used now. Another thread may end it at any time.
    fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served.read().expect("no panic"))
    }

    fn step(&self, step: Step, pending: &mut Vec<Pending>) {
        let served = self.served();
        let executor = &served.executor;
        match step {
            Step::Run(index) => {
                let netns = self.netns(index);
                if let Some(at) = served.expect(executor.run(&netns, here)) {
                    assert_eq!(at, netns.id());
                }
            }
            Step::Nested(outer, inner) => {
                let (outer, inner) = (self.netns(outer), self.netns(inner));
                let both = executor.run(&outer, || (here(), executor.run(&inner, here)));
                if let Some((at, there)) = served.expect(both) {
                    assert_eq!(at, outer.id());
                    if let Some(there) = served.expect(there) {
                        assert_eq!(there, inner.id());
                    }
                }
            }
            Step::Spawn(index) => pending.extend(self.spawn(&served, index)),
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
                if let Some(pinned) = served.expect(executor.pin(&netns))
                    && let Some(at) = served.expect(pinned.run(here))
                {
                    assert_eq!(at, netns.id());
                }
            }
            Step::Retire(index) => executor.retire(&self.netns(index)).expect("it ends"),
            Step::Open(index) => {
                let name = self.names[index].read().expect("no panic");
                let opened = Netns::open(name.name()).expect("it has a name");
                assert_eq!(opened.id(), name.id());
            }
            Step::Renew(index) => {
                let mut name = self.names[index].write().expect("no panic");
                let old = name.id();
                name.renew();
                assert_ne!(name.id(), old);
                self.all.write().expect("no panic").push(name.downgrade());
            }
            Step::Panic(index) => {
                let netns = self.netns(index);
                let spawned = executor.spawn(&netns, || panic!("asked for"));
                if let Some(handle) = served.expect(spawned) {
                    let error = handle.join().expect_err("it panicked");
                    if !error.is_panic() {
                        served.excuse(&error);
                    }
                }
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
            Step::Copy(index) => {
                let netns = self.netns(index);
                in_a_copy("all of it", || act_in_a_copy(&served, &netns, pending));
            }
            Step::Shutdown(how) => self.shut_down(how, pending),
        }
    }

    fn spawn(&self, served: &Arc<Served>, index: usize) -> Option<Pending> {
        let netns = self.netns(index);
        let ran = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&ran);
        let job = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            here()
        };
        let handle = served.expect(served.executor.spawn(&netns, job))?;
        Some(Pending {
            served: Arc::clone(served),
            handle,
            expected: netns.id(),
            ran,
            cancelled: false,
            met_end: served.ends.load(Ordering::SeqCst),
        })
    }

    fn shut_down(&self, how: End, pending: &mut Vec<Pending>) {
        let new = Served::new(self.guard);
        let old = {
            let mut served = self.served.write().expect("no panic");
            std::mem::replace(&mut *served, new)
        };
        // So many that some have not run yet.
        let jobs = (0..10 * NAMES).map(|number| self.spawn(&old, number % NAMES));
        pending.extend(jobs.flatten());
        old.ends.store(true, Ordering::SeqCst);
        old.is_cut.store(how == End::Cut, Ordering::SeqCst);
        let executor = old.executor.clone();
        match how {
            End::Whole => executor.shutdown(None).expect("it waits for all"),
            End::Cut => match executor.shutdown(Some(Duration::ZERO)) {
                Ok(()) => {}
                Err(error) => assert!(error.is_timed_out(), "{error}"),
            },
            End::Background => executor.shutdown_background(),
        }
        let refused = old.executor.run(&self.netns(0), here);
        let error = refused.expect_err("it was shut down");
        assert!(error.is_shut_down(), "{error}");
        if how == End::Whole {
            let mut accepted = pending.iter().filter(|job| Arc::ptr_eq(&job.served, &old));
            assert!(accepted.all(|job| job.handle.is_finished()));
        }
    }
}

/// In a copy there are no workers: what would wait for one is told so, whatever the threads
/// of the original were at.
fn act_in_a_copy(served: &Served, netns: &Netns, pending: &mut Vec<Pending>) {
    let executor = &served.executor;
    let told = |error: Error| assert_eq!(error.raw_os_error(), Some(ESRCH), "{error}");
    told(executor.run(netns, here).expect_err("no worker"));
    told(
        executor
            .spawn(netns, here)
            .map(drop)
            .expect_err("no worker"),
    );
    told(executor.pin(netns).map(drop).expect_err("no worker"));
    told(executor.retire(netns).expect_err("none is there to end"));
    told(executor.clone().shutdown(None).expect_err("none is there"));
    for job in pending.drain(..) {
        match job.handle.join() {
            Ok(at) => assert_eq!((at, job.cancelled), (job.expected, false)),
            Err(error) if error.raw_os_error() == Some(ESRCH) => {}
            Err(error) if job.cancelled => assert!(error.is_cancelled(), "{error}"),
            Err(error) => job.served.excuse(&error),
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
            assert_eq!(ran, 0, "{error}");
            let cut = job.served.is_cut.load(Ordering::SeqCst) && error.is_cancelled();
            let unserved = job.met_end && error.is_shut_down();
            assert!(job.cancelled || cut || unserved, "{error}");
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
        served, names, all, ..
    } = world;
    let served = served.into_inner().expect("no panic");
    let executor = served.executor.clone();
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
