//! User code that is no job's closure, on a worker: drops, payloads, wakers. Whatever
//! it does there, the next job is not to suffer for it.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::panic::panic_any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use netns_exec::{Executor, Guard, Netns};
use netns_exec_tests::{GUARDS, Gate, Held, eventually, fresh, here, panic_of, tid, within};
use nix::sched::{CloneFlags, setns};

type Act = Arc<dyn Fn() + Send + Sync>;
type Place = fn(&Executor, &Netns, Act);

/// Acts when it is dropped.
struct OnDrop(Act);

impl Drop for OnDrop {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Acts when it is called.
struct OnWake(Act);

impl Wake for OnWake {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

/// Where a worker meets user code beside a job's closure. Each sends a job, and
/// returns when the user code has run, or is about to before any later job.
const PLACES: [(&str, Place); 6] = [
    ("capture of a cancelled job", |executor, netns, act| {
        let held = Held::new(executor, netns);
        let capture = OnDrop(act);
        let queued = executor.spawn(netns, move || drop(capture)).unwrap();
        assert!(queued.cancel());
        held.end();
    }),
    ("result without a handle", |executor, netns, act| {
        let gate = Gate::new();
        let pass = gate.pass();
        let job = move || {
            pass.stop();
            OnDrop(act)
        };
        drop(executor.spawn(netns, job).unwrap());
        gate.open();
    }),
    ("payload without a handle", |executor, netns, act| {
        let gate = Gate::new();
        let pass = gate.pass();
        let job = move || {
            pass.stop();
            panic_any(OnDrop(act));
        };
        drop(executor.spawn(netns, job).unwrap());
        gate.open();
    }),
    ("waker", |executor, netns, act| {
        let gate = Gate::new();
        let pass = gate.pass();
        let mut handle = executor.spawn(netns, move || pass.stop()).unwrap();
        let waker = Waker::from(Arc::new(OnWake(act)));
        let pending = Pin::new(&mut handle).poll(&mut Context::from_waker(&waker));
        assert!(pending.is_pending());
        gate.open();
        eventually("the job is over", || handle.is_finished());
    }),
    ("waker of a batch", |executor, netns, act| {
        let gate = Gate::new();
        let jobs = [gate.pass(), gate.pass()].map(|pass| move || pass.stop());
        let mut handles = executor.spawn_batch(netns, jobs).unwrap();
        let waker = Waker::from(Arc::new(OnWake(act)));
        for handle in &mut handles {
            let pending = Pin::new(handle).poll(&mut Context::from_waker(&waker));
            assert!(pending.is_pending());
        }
        gate.open();
        eventually("the jobs are over", || {
            handles.iter().all(|handle| handle.is_finished())
        });
    }),
    (
        "result of a scoped job without a handle",
        |executor, netns, act| {
            executor.scope(|scope| {
                let gate = Gate::new();
                let pass = gate.pass();
                let job = move || {
                    pass.stop();
                    OnDrop(act)
                };
                drop(scope.spawn(netns, job).unwrap());
                gate.open();
            });
        },
    ),
];

fn with_guard(guard: Guard) -> Executor {
    Executor::builder().guard(guard).build().unwrap()
}

/// A later job runs where it belongs, and its caller is told nothing else.
fn assert_next_is_right(executor: &Executor, netns: &Netns, what: &str) {
    // Through the queue, so that it comes after whatever is there.
    let queued = executor.spawn(netns, here).unwrap();
    assert_eq!(queued.join().unwrap(), netns.id(), "{what}");
    assert_eq!(executor.run(netns, here).unwrap(), netns.id(), "{what}");
}

#[test]
fn next_job_is_in_its_namespace_when_user_code_moved_the_worker() {
    within("user code that moves its worker", || {
        for guard in GUARDS {
            for (place, send) in PLACES {
                let (executor, netns) = (with_guard(guard), fresh());
                let home = File::open("/proc/self/ns/net").unwrap();
                let act = move || {
                    let moved = setns(&home, CloneFlags::CLONE_NEWNET);
                    assert!(moved.is_ok() || guard == Guard::Seal, "{moved:?}");
                };
                send(&executor, &netns, Arc::new(act));
                assert_next_is_right(&executor, &netns, &format!("{place}, {guard:?}"));
                executor.shutdown(None).unwrap();
            }
        }
    });
}

#[test]
fn next_job_is_not_blamed_with_a_thread_that_user_code_left() {
    within("user code that leaves threads", || {
        for (place, send) in PLACES {
            let (executor, netns, gate) = (with_guard(Guard::Detect), fresh(), Gate::new());
            let worker = executor.run(&netns, tid).unwrap();
            let pass = gate.pass();
            let act = move || {
                let pass = pass.clone();
                std::thread::spawn(move || pass.stop());
            };
            send(&executor, &netns, Arc::new(act));
            gate.wait_for(1);
            assert_next_is_right(&executor, &netns, place);
            // A thread that inherited the namespace may be the worker's for good.
            assert_ne!(executor.run(&netns, tid).unwrap(), worker, "{place}");
        }
    });
}

#[test]
fn panic_of_user_code_ends_nothing() {
    within("user code that panics", || {
        for guard in GUARDS {
            for (place, send) in PLACES {
                let (executor, netns) = (with_guard(guard), fresh());
                let worker = executor.run(&netns, tid).unwrap();
                send(&executor, &netns, Arc::new(|| panic!("in user code")));
                let what = format!("{place}, {guard:?}");
                assert_next_is_right(&executor, &netns, &what);
                assert_eq!(executor.run(&netns, tid).unwrap(), worker, "{what}");
                assert_eq!(executor.stats().workers, 1, "{what}");
                executor.shutdown(None).unwrap();
            }
        }
    });
}

#[test]
fn user_code_may_use_the_executor() {
    within("user code that calls the executor", || {
        for guard in GUARDS {
            for (place, send) in PLACES {
                let (executor, netns, other) = (with_guard(guard), fresh(), fresh());
                let what = format!("{place}, {guard:?}");
                let (inner, own) = (executor.clone(), netns.clone());
                let act = {
                    let what = what.clone();
                    move || {
                        assert_eq!(inner.run(&own, here).unwrap(), own.id(), "{what}");
                        let queued = inner.spawn(&own, here).unwrap();
                        assert_eq!(queued.join().unwrap(), own.id(), "{what}");
                        assert_eq!(inner.run(&other, here).unwrap(), other.id(), "{what}");
                    }
                };
                send(&executor, &netns, Arc::new(act));
                assert_next_is_right(&executor, &netns, &what);
            }
        }
    });
}

/// Panics for ever when it is dropped.
struct Hydra;

impl Drop for Hydra {
    fn drop(&mut self) {
        panic_any(Hydra);
    }
}

#[test]
fn payload_that_panics_for_ever_is_given_up() {
    within("an endless payload", || {
        for guard in GUARDS {
            let (executor, netns) = (with_guard(guard), fresh());
            let gate = Gate::new();
            let pass = gate.pass();
            let job = move || {
                pass.stop();
                panic_any(Hydra);
            };
            drop(executor.spawn(&netns, job).unwrap());
            gate.open();
            assert_next_is_right(&executor, &netns, &format!("{guard:?}"));
        }
    });
}

/// An error that cannot be shown.
struct Unshown;

impl fmt::Debug for Unshown {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("Debug");
    }
}

impl fmt::Display for Unshown {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("Display");
    }
}

impl std::error::Error for Unshown {}

#[test]
fn payload_is_handed_on_unseen() {
    within("a payload that cannot be shown", || {
        for guard in GUARDS {
            let (executor, netns) = (with_guard(guard), fresh());
            let run = panic_of(|| executor.run(&netns, || panic_any(io::Error::other(Unshown))));
            assert!(run.is::<io::Error>());
            let job = executor.spawn(&netns, || panic_any(io::Error::other(Unshown)));
            let error = job.unwrap().join().unwrap_err();
            assert!(error.is_panic());
            assert!(error.into_panic().unwrap().is::<io::Error>());
            assert_next_is_right(&executor, &netns, &format!("{guard:?}"));
        }
    });
}

#[test]
fn panic_stays_a_panic_whatever_its_text_says() {
    let texts = [
        "failed to spawn thread: Os { code: 1, kind: PermissionDenied }",
        "assertion failed: sendto: Operation not permitted (os error 1)",
        "EPERM",
    ];
    for guard in GUARDS {
        let (executor, netns) = (with_guard(guard), fresh());
        for text in texts {
            let payload = panic_of(|| executor.run(&netns, || panic_any(text.to_owned())));
            assert_eq!(*payload.downcast::<String>().unwrap(), text);
            let job = executor
                .spawn(&netns, || panic_any(text.to_owned()))
                .unwrap();
            let error = job.join().unwrap_err();
            assert!(error.is_panic() && !error.is_refused(), "{error}");
            assert!(!error.to_string().contains("guard"), "{error}");
            assert_eq!(
                *error.into_panic().unwrap().downcast::<String>().unwrap(),
                text
            );
        }
        let denied = || panic_any(io::Error::from_raw_os_error(nix::libc::EPERM));
        assert!(panic_of(|| executor.run(&netns, denied)).is::<io::Error>());
    }
}
