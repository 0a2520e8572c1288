//! The executor as it is, with one namespace: the queue, the coming and going
//! of workers, and calls that wait for others.

use std::future::{Future, pending, poll_fn};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::{STACK, check_deep, spawn_deep};
use crate::error::Error;

use crate::executor::submit;
use crate::executor::{
    Config, Group, JoinHandle, Pool, Registry, Room, birth, current, future, worker,
};
use crate::guard::{Guard, Policy};
use crate::handoff::{outcome, task};
use crate::netns::Netns;
use crate::sync::{Condvar, Mutex, let_time_pass, yield_now};

/// An executor and the only namespace it serves.
#[derive(Clone)]
struct Fixture {
    registry: Arc<Registry>,
    netns: Netns,
}

impl Fixture {
    fn new(adjust: impl FnOnce(&mut Config)) -> Fixture {
        let mut config = Config {
            workers_per_netns: 1,
            max_workers: None,
            queue_depth: 4,
            idle_timeout: None,
            stack_size: STACK,
            name_prefix: String::new(),
            ..Config::default()
        };
        adjust(&mut config);
        let policy = Policy::prepare(Guard::Off).unwrap();
        let mut pool = Pool::new(config, policy);
        pool.may_spin = false;
        Fixture {
            registry: Arc::new(Registry::new(pool, worker::main)),
            netns: Netns::current().unwrap(),
        }
    }

    /// The group, with its first worker started.
    fn group(&self) -> Arc<Group> {
        submit::started(&self.registry, None, &self.netns, Room::Awaited).unwrap()
    }

    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        submit::run(&self.registry, &self.netns, f).unwrap()
    }

    fn spawn<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        JoinHandle::new(submit::spawn(&self.registry, None, &self.netns, f).unwrap())
    }

    fn spawn_future<F>(&self, f: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        JoinHandle::new(future::spawn(&self.registry, None, &self.netns, f))
    }

    fn spawn_batch<T: Send + 'static>(
        &self,
        jobs: impl IntoIterator<Item = impl FnOnce() -> T + Send + 'static>,
    ) -> Vec<JoinHandle<T>> {
        let tasks = submit::spawn_batch(jobs, |batch| {
            submit::queue_all(&self.registry, None, &self.netns, batch)
        });
        tasks.unwrap().into_iter().map(JoinHandle::new).collect()
    }

    /// Ends the workers, which loom would call a deadlock otherwise, and with
    /// them whatever they had left undone.
    fn close(self) {
        for group in self.registry.close() {
            group.wait_empty(None);
        }
        self.registry.pool().threads.join_all();
    }
}

/// Waits, without telling the executor, until there is something to wait for.
fn wait_for<T>(handle: &Mutex<Option<T>>) -> T {
    loop {
        if let Some(handle) = handle.lock().take() {
            return handle;
        }
        yield_now();
    }
}

#[test]
fn first_call_starts_a_worker() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        assert_eq!(fixture.run(|| 7), 7);
        fixture.close();
    });
}

#[test]
fn job_in_the_queue_finds_a_worker_that_is_about_to_park() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        assert_eq!(fixture.spawn(|| 7).join().unwrap(), 7);
        fixture.close();
    });
}

#[test]
fn call_meets_a_worker_that_leaves_for_being_idle() {
    check_deep(1, || {
        // Time is up as soon as a worker has nothing to do.
        let fixture = Fixture::new(|config| config.idle_timeout = Some(Duration::ZERO));
        let group = fixture.group();
        let n = submit::run_on(&fixture.registry, &group, &fixture.netns, || 7);
        assert_eq!(n.unwrap(), 7);
        fixture.close();
    });
}

#[test]
fn queued_job_meets_a_worker_that_leaves_for_being_idle() {
    check_deep(1, || {
        let fixture = Fixture::new(|config| config.idle_timeout = Some(Duration::ZERO));
        fixture.group();
        assert_eq!(fixture.spawn(|| 7).join().unwrap(), 7);
        fixture.close();
    });
}

#[test]
fn call_meets_retirement() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let caller = spawn_deep({
            let fixture = fixture.clone();
            move || fixture.run(|| 7)
        });
        for group in fixture.registry.retire(fixture.netns.id()).groups {
            group.wait_empty(None);
        }
        assert_eq!(caller.join().unwrap(), 7);
        fixture.close();
    });
}

#[test]
fn queued_job_meets_retirement() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let caller = spawn_deep({
            let fixture = fixture.clone();
            move || fixture.spawn(|| 7).join().unwrap()
        });
        for group in fixture.registry.retire(fixture.netns.id()).groups {
            group.wait_empty(None);
        }
        assert_eq!(caller.join().unwrap(), 7);
        fixture.close();
    });
}

#[test]
fn contended_lane_sends_the_other_caller_to_the_queue() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let other = spawn_deep({
            let fixture = fixture.clone();
            move || fixture.run(|| 1)
        });
        assert_eq!(fixture.run(|| 2), 2);
        assert_eq!(other.join().unwrap(), 1);
        fixture.close();
    });
}

#[test]
fn sender_waits_for_room_until_a_job_is_taken() {
    check_deep(1, || {
        let fixture = Fixture::new(|config| config.queue_depth = 1);
        fixture.group();
        let handles = [1, 2, 3].map(|n| fixture.spawn(move || n));
        assert_eq!(handles.map(|handle| handle.join().unwrap()), [1, 2, 3]);
        fixture.close();
    });
}

#[test]
fn batch_in_the_queue_finds_a_worker_that_is_about_to_park() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let handles = fixture.spawn_batch([1, 2].map(|n| move || n));
        let values = handles.into_iter().map(|handle| handle.join().unwrap());
        assert!(values.eq(1..=2));
        fixture.close();
    });
}

#[test]
fn batch_wakes_its_worker_before_it_waits_for_room() {
    check_deep(1, || {
        let fixture = Fixture::new(|config| config.queue_depth = 1);
        fixture.group();
        let handles = fixture.spawn_batch([1, 2, 3].map(|n| move || n));
        let values = handles.into_iter().map(|handle| handle.join().unwrap());
        assert!(values.eq(1..=3));
        fixture.close();
    });
}

#[test]
fn batch_meets_retirement() {
    check_deep(1, || {
        let fixture = Fixture::new(|config| config.queue_depth = 1);
        fixture.group();
        let caller = spawn_deep({
            let fixture = fixture.clone();
            move || {
                let handles = fixture.spawn_batch([1, 2].map(|n| move || n));
                let values = handles.into_iter().map(|handle| handle.join().unwrap());
                assert!(values.eq(1..=2));
            }
        });
        for group in fixture.registry.retire(fixture.netns.id()).groups {
            group.wait_empty(None);
        }
        caller.join().unwrap();
        fixture.close();
    });
}

#[test]
fn spare_stands_in_for_a_worker_that_waits_for_its_own_queue() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let inner = fixture.clone();
        // Pushed by the worker itself, which then waits.
        let n = fixture.run(move || inner.spawn(|| 7).join().unwrap());
        assert_eq!(n, 7);
        fixture.close();
    });
}

#[test]
fn worker_that_begins_to_wait_meets_a_job_being_queued() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let handle = Arc::new(Mutex::new(None::<JoinHandle<i32>>));
        let outer = spawn_deep({
            let (fixture, handle) = (fixture.clone(), Arc::clone(&handle));
            // Waits, as a job, for whatever is queued meanwhile.
            move || fixture.run(move || wait_for(&handle).join().unwrap())
        });
        *handle.lock() = Some(fixture.spawn(|| 7));
        assert_eq!(outer.join().unwrap(), 7);
        fixture.close();
    });
}

#[test]
fn parked_spare_is_called_again() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        for _ in 0..3 {
            let inner = fixture.clone();
            assert_eq!(fixture.run(move || inner.spawn(|| 7).join().unwrap()), 7);
        }
        fixture.close();
    });
}
#[test]
fn job_in_the_queue_is_not_left_behind_a_call_that_waits_for_it() {
    check_deep(1, || {
        let fixture = Fixture::new(|config| config.workers_per_netns = 2);
        fixture.group();
        // The second worker starts because the first is busy.
        let inner = fixture.clone();
        let second = fixture.run(move || inner.spawn(|| ()));
        second.join().unwrap();
        let queued = fixture.spawn(|| 7);
        assert_eq!(fixture.run(move || queued.join().unwrap()), 7);
        fixture.close();
    });
}

#[test]
fn job_in_the_queue_is_not_left_behind_another_one_that_waits_for_it() {
    check_deep(1, || {
        let fixture = Fixture::new(|config| config.workers_per_netns = 2);
        fixture.group();
        // Not told to the executor: only a second worker helps.
        let done = Arc::new((Mutex::new(false), Condvar::new()));
        let outer = fixture.spawn({
            let done = Arc::clone(&done);
            move || {
                let mut is_done = done.0.lock();
                while !*is_done {
                    done.1.wait(&mut is_done);
                }
            }
        });
        let inner = fixture.spawn(move || {
            *done.0.lock() = true;
            done.1.notify_one();
        });
        outer.join().unwrap();
        inner.join().unwrap();
        fixture.close();
    });
}

#[test]
fn job_of_a_batch_is_not_left_behind_another_one_that_waits_for_it() {
    check_deep(1, || {
        let fixture = Fixture::new(|config| config.workers_per_netns = 2);
        fixture.group();
        // Not told to the executor: only a second worker helps.
        let done = Arc::new((Mutex::new(0), Condvar::new()));
        let job = {
            let done = Arc::clone(&done);
            move || {
                let mut here = done.0.lock();
                *here += 1;
                done.1.notify_one();
                while *here < 2 {
                    done.1.wait(&mut here);
                }
            }
        };
        for handle in fixture.spawn_batch([job.clone(), job]) {
            handle.join().unwrap();
        }
        fixture.close();
    });
}

#[test]
fn job_is_not_left_behind_workers_that_begin_to_wait() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let done = Arc::new((Mutex::new(false), Condvar::new()));
        let outer = spawn_deep({
            let (fixture, done) = (fixture.clone(), Arc::clone(&done));
            // Knows nothing of the job that it waits for, not even that it is
            // in the queue by then.
            move || {
                fixture.run(move || {
                    current::blocking(|| {
                        let mut is_done = done.0.lock();
                        while !*is_done {
                            done.1.wait(&mut is_done);
                        }
                    });
                });
            }
        });
        let inner = fixture.spawn(move || {
            *done.0.lock() = true;
            done.1.notify_one();
        });
        inner.join().unwrap();
        outer.join().unwrap();
        fixture.close();
    });
}

#[test]
fn successor_of_a_spoiled_worker_serves_what_is_queued() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let spoiler = fixture.spawn(outcome::spoil);
        let innocent = fixture.spawn(|| 7);
        assert!(spoiler.join().unwrap_err().is_escaped());
        assert_eq!(innocent.join().unwrap(), 7);
        fixture.close();
    });
}

#[test]
fn call_meets_a_worker_that_is_spoiled() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let spoiler = fixture.spawn(outcome::spoil);
        assert_eq!(fixture.run(|| 7), 7);
        assert!(spoiler.join().unwrap_err().is_escaped());
        fixture.close();
    });
}

#[test]
fn jobs_are_given_up_when_a_stand_in_cannot_be_born() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let births = &fixture.registry.pool().births_that_fail;
        births.store(1, std::sync::atomic::Ordering::Relaxed);
        let inner = fixture.clone();
        let told = fixture.run(move || inner.spawn(|| 7).join());
        assert_eq!(told.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        assert_eq!(fixture.run(|| 7), 7);
        fixture.close();
    });
}

#[test]
fn sender_relies_on_the_first_birth_of_another_call_which_fails() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        let (id, label) = (fixture.netns.id(), fixture.netns.label());
        let group = fixture.registry.group(id, label).unwrap();
        fixture.registry.pool().capacity.reserve_anyway();
        let start = group.begin_first(fixture.netns.clone()).unwrap();
        let births = &fixture.registry.pool().births_that_fail;
        births.store(1, std::sync::atomic::Ordering::Relaxed);
        let sender = spawn_deep({
            let (fixture, group) = (fixture.clone(), Arc::clone(&group));
            // It has found a worker there, which has left since.
            move || {
                let pushed = task::spawn(
                    || 7,
                    |job| {
                        submit::push(&fixture.registry, &group, &fixture.netns, job);
                        Ok::<_, (_, Error)>(())
                    },
                );
                let Ok(handle) = pushed else {
                    unreachable!("it is pushed in any case")
                };
                assert_eq!(JoinHandle::new(handle).join().unwrap(), 7);
            }
        });
        let (registry, netns) = (&fixture.registry, &fixture.netns);
        let told = submit::start_first(registry, &group, netns, start, Room::Awaited);
        assert_eq!(told.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        sender.join().unwrap();
        fixture.close();
    });
}

#[test]
fn job_that_may_not_wait_for_room_meets_the_death_of_its_group() {
    // One before its group is found, and one before the job is pushed.
    check_deep(2, || {
        let fixture = Fixture::new(|config| {
            config.max_workers = Some(1);
            config.idle_timeout = Some(Duration::ZERO);
        });
        fixture.group();
        // Another namespace has a worker too many, so that there is no room when this
        // one's has left.
        fixture.registry.pool().capacity.reserve_anyway();
        let tried = submit::try_spawn(&fixture.registry, None, &fixture.netns, || 7);
        match tried.map(JoinHandle::new) {
            Ok(handle) => assert_eq!(handle.join().unwrap(), 7),
            Err(error) => assert_eq!(error.into_closure()(), 7),
        }
        fixture.close();
    });
}

#[test]
fn worker_that_is_unpinned_ends_for_being_idle() {
    check_deep(1, || {
        let fixture = Fixture::new(|config| config.idle_timeout = Some(Duration::ZERO));
        let group = fixture.group();
        group.pin();
        fixture.run(|| ());
        // As often as it may have parked before.
        let_time_pass(4);
        group.unpin();
        assert!(group.wait_empty(None));
        fixture.close();
    });
}

#[test]
fn both_of_two_joiners_wait_for_the_thread() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        for group in fixture.registry.close() {
            group.wait_empty(None);
        }
        let join = |fixture: &Fixture| {
            fixture.registry.pool().threads.join_all();
            assert!(fixture.registry.pool().threads.is_empty());
        };
        let other = spawn_deep({
            let fixture = fixture.clone();
            move || join(&fixture)
        });
        join(&fixture);
        other.join().unwrap();
    });
}

#[test]
fn caller_that_waits_for_room_goes_on_when_the_worker_is_there_without_it() {
    check_deep(1, || {
        let fixture = Fixture::new(|config| config.max_workers = Some(1));
        // Another namespace's worker has the only room, and keeps it.
        let capacity = &fixture.registry.pool().capacity;
        capacity.reserve_anyway();
        let caller = spawn_deep({
            let fixture = fixture.clone();
            move || fixture.run(|| 7)
        });
        // As a job's own call would.
        let id = fixture.netns.id();
        let group = fixture.registry.group(id, fixture.netns.label()).unwrap();
        capacity.reserve_anyway();
        if let Ok(start) = group.begin_first(fixture.netns.clone()) {
            birth::start(&fixture.registry, &group, start).unwrap();
        }
        assert_eq!(caller.join().unwrap(), 7);
        capacity.release();
        fixture.close();
    });
}

#[test]
fn call_that_waits_for_room_meets_one_that_does_not() {
    check_deep(1, || {
        let fixture = Fixture::new(|config| config.max_workers = Some(1));
        let capacity = &fixture.registry.pool().capacity;
        assert!(capacity.try_reserve());
        let waits = spawn_deep({
            let fixture = fixture.clone();
            move || fixture.run(|| 7)
        });
        // Buries the group, which the other call may have in hand.
        let now = submit::started(&fixture.registry, None, &fixture.netns, Room::Now);
        assert!(now.is_err_and(|error| error.is_full()));
        capacity.release();
        assert_eq!(waits.join().unwrap(), 7);
        fixture.close();
    });
}

/// A future that is ready when it is woken, and its waker.
fn once_woken() -> (impl Future<Output = i32> + Send, Arc<Mutex<Option<Waker>>>) {
    let slot = Arc::new(Mutex::new(None));
    let stored = Arc::clone(&slot);
    let mut polled = false;
    let future = poll_fn(move |cx| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(7);
        }
        *stored.lock() = Some(cx.waker().clone());
        Poll::Pending
    });
    (future, slot)
}

#[test]
fn first_future_starts_a_worker() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        assert_eq!(fixture.spawn_future(async { 7 }).join().unwrap(), 7);
        fixture.close();
    });
}

#[test]
fn woken_future_finds_a_worker_that_is_about_to_park() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let (future, waker) = once_woken();
        let handle = fixture.spawn_future(future);
        wait_for(&waker).wake();
        assert_eq!(handle.join().unwrap(), 7);
        fixture.close();
    });
}

#[test]
fn future_meets_a_worker_that_leaves_for_being_idle() {
    check_deep(1, || {
        let fixture = Fixture::new(|config| config.idle_timeout = Some(Duration::ZERO));
        fixture.group();
        let (future, waker) = once_woken();
        let handle = fixture.spawn_future(future);
        wait_for(&waker).wake();
        assert_eq!(handle.join().unwrap(), 7);
        fixture.close();
    });
}

#[test]
fn future_meets_retirement() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let spawner = spawn_deep({
            let fixture = fixture.clone();
            move || {
                // Of the group that retires, or of the one that comes after it.
                let ready = fixture.spawn_future(async { 7 }).join();
                assert!(
                    ready.is_ok_and(|n| n == 7) || fixture.spawn_future(async { 7 }).join().is_ok()
                );
            }
        });
        for group in fixture.registry.retire(fixture.netns.id()).groups {
            group.wait_empty(None);
        }
        spawner.join().unwrap();
        fixture.close();
    });
}

#[test]
fn pending_futures_are_dropped_before_the_executor_has_ended() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let handle = fixture.spawn_future(pending::<()>());
        fixture.close();
        assert!(handle.join().unwrap_err().is_cancelled());
    });
}

#[test]
fn woken_future_is_not_left_behind_a_job_that_waits_for_it() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let (future, waker) = once_woken();
        let handle = fixture.spawn_future(future);
        let waker = wait_for(&waker);
        let job = fixture.spawn(move || handle.join().unwrap());
        // The worker is at the job by now, or waits in it, or neither.
        waker.wake();
        assert_eq!(job.join().unwrap(), 7);
        fixture.close();
    });
}

#[test]
fn successor_of_a_spoiled_worker_has_its_futures() {
    check_deep(1, || {
        let fixture = Fixture::new(|_| ());
        fixture.group();
        let (future, waker) = once_woken();
        let handle = fixture.spawn_future(future);
        let waker = wait_for(&waker);
        assert!(
            fixture
                .spawn(outcome::spoil)
                .join()
                .unwrap_err()
                .is_escaped()
        );
        waker.wake();
        assert_eq!(handle.join().unwrap(), 7);
        fixture.close();
    });
}
