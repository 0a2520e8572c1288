//! What happens when the kernel refuses: privileges, threads, descriptors.

use std::os::fd::AsRawFd;
use std::thread;

use netns_exec::{Error, Executor, Guard, Netns, TrySpawnError};
use netns_exec_tests::{
    Alone, Gate, Held, TempNetns, alone, eventually, fresh, handed_over, here, settle, tids,
    to_hand_over, within,
};
use nix::libc::{EAGAIN, EMFILE, EPERM};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{use_until_idle, with_queue};

/// Lowers a limit of this process until it is dropped.
struct Limit {
    resource: Resource,
    before: (u64, u64),
}

impl Limit {
    fn new(resource: Resource, limit: u64) -> Limit {
        let before = getrlimit(resource).unwrap();
        setrlimit(resource, limit, before.1).unwrap();
        Limit { resource, before }
    }

    /// No thread can be created: there is one at least already.
    fn threads() -> Limit {
        Limit::new(Resource::RLIMIT_NPROC, 1)
    }

    /// As many threads as there are, and no more.
    fn more_threads() -> Limit {
        Limit::new(Resource::RLIMIT_NPROC, tids().len().try_into().unwrap())
    }

    /// No descriptor can be opened.
    fn fds() -> Limit {
        Limit::new(Resource::RLIMIT_NOFILE, 0)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        setrlimit(self.resource, self.before.0, self.before.1).unwrap();
    }
}

/// The errors of all the ways to ship a job to `netns`, which fail.
fn refusals(executor: &Executor, netns: &Netns) -> Vec<Error> {
    let by_try = match executor.try_spawn(netns, || 7) {
        Err(TrySpawnError::Failed(error, f)) => {
            assert_eq!(f(), 7, "the closure comes back");
            error
        }
        other => panic!("{other:?}"),
    };
    let mut ran = false;
    let by_run = executor.run(netns, || ran = true).unwrap_err();
    assert!(!ran);
    vec![
        by_run,
        by_try,
        executor.spawn(netns, || ()).unwrap_err(),
        executor.spawn_batch(netns, [|| (); 3]).unwrap_err(),
        executor.pin(netns).unwrap_err(),
        executor.scope(|scope| scope.spawn(netns, || ()).map(|_| ()).unwrap_err()),
        executor.spawn_future(netns, async {}).join().unwrap_err(),
        executor.spawn_local(netns, || async {}).join().unwrap_err(),
    ]
}

#[test]
fn ordinary_user_is_told_which_privilege_is_missing_and_works_at_home() {
    alone!(Alone::OrdinaryUser, "", to_hand_over(&fresh()));
    let theirs = handed_over();
    assert!(theirs.check_enter().unwrap_err().is_permission_denied());

    let executor = Executor::new().expect("needs no privilege");
    let home = Netns::current().unwrap();
    for _ in 0..3 {
        for error in refusals(&executor, &theirs) {
            assert!(error.is_permission_denied(), "{error}");
            assert_eq!(error.raw_os_error(), Some(EPERM));
            let text = error.to_string();
            assert!(text.contains("CAP_SYS_ADMIN"), "{text}");
            assert!(text.contains("run as root"), "{text}");
            assert!(text.starts_with("cannot enter netns"), "{text}");
        }
        assert_eq!(executor.run(&home, here).unwrap(), home.id());
    }
    let stats = executor.stats();
    assert_eq!((stats.workers, stats.queued), (1, 0));
    executor.shutdown(None).unwrap();
}

#[test]
fn limit_of_threads_is_an_error_with_errno_and_cure() {
    alone!(Alone::OrdinaryUserAsRoot);
    let (a, b) = (Netns::new().unwrap(), Netns::new().unwrap());
    let executor = Executor::new().unwrap();
    // Held, or it would be given up for the other one.
    let _held = executor.pin(&a).unwrap();
    let limit = Limit::threads();
    for error in refusals(&executor, &b) {
        assert_eq!(error.raw_os_error(), Some(EAGAIN), "{error}");
        let text = error.to_string();
        assert!(text.contains("ulimit -u"), "{text}");
        assert!(text.contains(b.label()), "{text}");
    }
    assert_eq!(
        executor.run(&a, here).unwrap(),
        a.id(),
        "those that are there work"
    );
    drop(limit);
    assert_eq!(executor.run(&b, here).unwrap(), b.id());
    assert_eq!(executor.stats().workers, 2);
    executor.shutdown(None).unwrap();
}

#[test]
fn executor_can_be_made_after_the_home_thread_could_not() {
    alone!(Alone::OrdinaryUserAsRoot);
    let limit = Limit::threads();
    let error = Executor::new().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EAGAIN), "{error}");
    drop(limit);
    let executor = Executor::new().unwrap();
    let netns = Netns::new().unwrap();
    assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
}

#[test]
fn nested_call_whose_stand_in_cannot_start_fails_and_does_not_hang() {
    alone!(Alone::OrdinaryUserAsRoot);
    within("a nested call at the limit of threads", || {
        let (a, b) = (Netns::new().unwrap(), Netns::new().unwrap());
        let executor = with_queue(1);
        executor.run(&b, || ()).unwrap();
        let back = || executor.run(&a, here);
        let error = executor.run(&a, || {
            executor.run(&b, || {
                let _limit = Limit::threads();
                let inner = back().unwrap_err();
                let spawned = executor.spawn(&a, || ());
                let spawned = spawned.and_then(|handle| handle.join()).unwrap_err();
                assert_eq!(spawned.raw_os_error(), Some(EAGAIN), "{spawned}");
                for handle in executor.spawn_batch(&a, [|| (); 5]).unwrap() {
                    let error = handle.join().unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(EAGAIN), "{error}");
                }
                inner
            })
        });
        let error = error.unwrap().unwrap();
        assert_eq!(error.raw_os_error(), Some(EAGAIN), "{error}");
        // The same again without the limit, on the same workers.
        let id = executor.run(&a, || executor.run(&b, back).unwrap().unwrap());
        assert_eq!(id.unwrap(), a.id());
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn senders_that_wait_for_room_hear_of_a_stand_in_that_cannot_start() {
    alone!(Alone::OrdinaryUserAsRoot);
    within("senders at the limit of threads", || {
        let (a, b) = (Netns::new().unwrap(), Netns::new().unwrap());
        let executor = with_queue(1);
        // Held, or it would be given up for the stand-in.
        let _held = executor.pin(&b).unwrap();
        thread::scope(|scope| {
            let gate = Gate::new();
            let pass = gate.pass();
            let (executor, a, b) = (&executor, &a, &b);
            let holder = scope.spawn(move || {
                executor.run(a, || {
                    pass.stop();
                    // Blocks A's worker with its queue full, and no worker can
                    // stand in.
                    let _limit = Limit::threads();
                    executor.run(b, here)
                })
            });
            gate.wait_for(1);
            let senders: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| executor.spawn(a, here)?.join()))
                .collect();
            eventually("the queue is full", || executor.stats().queued == 1);
            gate.open();
            assert_eq!(holder.join().unwrap().unwrap().unwrap(), b.id());
            for sender in senders {
                // Served by the worker when it was back, or told of the limit.
                match sender.join().unwrap() {
                    Ok(id) => assert_eq!(id, a.id()),
                    Err(error) => assert_eq!(error.raw_os_error(), Some(EAGAIN), "{error}"),
                }
            }
        });
        assert_eq!(executor.run(&a, here).unwrap(), a.id());
        executor.shutdown(None).unwrap();
    });
}

#[test]
fn limit_of_files_is_an_error_with_errno() {
    alone!(Alone::AsIs);
    let (a, b) = (fresh(), fresh());
    let executor = Executor::builder().guard(Guard::Off).build().unwrap();
    // Held, or it would be given up for the other one.
    let _held = executor.pin(&a).unwrap();
    let limit = Limit::fds();
    let errors = refusals(&executor, &b);
    let open = Netns::from_path("/proc/self/ns/net").unwrap_err();
    assert_eq!(
        executor.run(&a, || 5).unwrap(),
        5,
        "those that are there work"
    );
    drop(limit);
    for error in errors.into_iter().chain([open]) {
        assert_eq!(error.raw_os_error(), Some(EMFILE), "{error}");
        assert!(error.to_string().contains("too many open files"), "{error}");
    }
    assert_eq!(executor.run(&b, here).unwrap(), b.id());
    executor.shutdown(None).unwrap();
}

/// It has to be opened again, for which there is no descriptor: it is not gone.
#[test]
fn namespace_that_cannot_be_opened_again_is_not_told_to_be_gone() {
    alone!(Alone::AsIs);
    let netns = TempNetns::new();
    let executor = Executor::new().unwrap();
    let pinned = executor.pin(&netns).unwrap();
    executor.retire(&netns).unwrap();
    let id = netns.id();
    let name = netns.name().to_owned();
    netns.keep_name();
    let limit = Limit::fds();
    let errors = [
        pinned.run(here).unwrap_err(),
        pinned.spawn(here).unwrap_err(),
        pollster::block_on(pinned.spawn_async(here)).unwrap_err(),
        pinned.spawn_future(async { here() }).join().unwrap_err(),
    ];
    drop(limit);
    for error in errors {
        assert_eq!(error.raw_os_error(), Some(EMFILE), "{error}");
    }
    assert_eq!(pinned.run(here).unwrap(), id);
    netns_exec::Netns::delete(&name).unwrap();
}

#[test]
fn sealed_worker_starts_and_serves_without_a_descriptor() {
    alone!(Alone::AsIs);
    let netns = fresh();
    let executor = Executor::new().unwrap();
    let limit = Limit::fds();
    let answer = executor.run(&netns, || 42);
    drop(limit);
    assert_eq!(answer.unwrap(), 42);
}

#[test]
fn idle_workers_are_given_up_for_others_at_the_limit_of_threads() {
    alone!(Alone::OrdinaryUserAsRoot);
    let (a, b, c) = (fresh(), fresh(), fresh());
    let executor = Executor::new().unwrap();
    for netns in [&a, &b] {
        use_until_idle(&executor, netns);
    }
    let held = Held::new(&executor, &b);
    // A thread that still ends would make room.
    settle();
    let _limit = Limit::more_threads();
    // The idle one of A makes room, and the busy one of B does not.
    assert_eq!(executor.run(&c, here).unwrap(), c.id());
    let served: Vec<_> = executor
        .stats()
        .per_netns
        .iter()
        .map(|netns| netns.id)
        .collect();
    assert!(
        !served.contains(&a.id()) && served.contains(&b.id()),
        "{served:?}"
    );
    // A stand-in for a worker that waits is worth an idle worker as well.
    let (inner, own) = (executor.clone(), b.clone());
    held.end();
    let nested = executor.run(&b, move || inner.spawn(&own, here).unwrap().join());
    assert_eq!(nested.unwrap().unwrap(), b.id());
}

#[test]
fn idle_workers_are_given_up_for_others_at_the_limit_of_files() {
    alone!(Alone::AsIs);
    let (a, b) = (fresh(), fresh());
    // Each worker takes two descriptors.
    let executor = Executor::builder().guard(Guard::Off).build().unwrap();
    use_until_idle(&executor, &a);
    // The next number that is free, which the limit is to be.
    let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    let limit = Limit::new(Resource::RLIMIT_NOFILE, next.try_into().unwrap());
    eventually("there is room for another", || {
        match executor.run(&b, || 5) {
            Ok(five) => five == 5,
            // The watch opens the mount table for a moment when others mount something.
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(EMFILE), "{error}");
                false
            }
        }
    });
    drop(limit);
    assert_eq!(executor.run(&b, here).unwrap(), b.id());
    assert_eq!(executor.stats().workers, 1);
}
