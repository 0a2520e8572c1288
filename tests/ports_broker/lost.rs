//! Leases by way of a broker that does not answer, or is gone. The broker serves
//! a namespace of the test's own from beside this process.

use std::sync::MutexGuard;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::ports::{
    Allocator, Broker, Budget, Cancel, Error, ErrorKind, Gate, Ports, Protocol, Request,
};
use netns_exec::{Executor, Netns};
use netns_exec_tests::ports::{V4, netns, refused, taken};
use netns_exec_tests::{eventually, fds_of_this_process, sleeps_of, threads_of_this_process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};
use pollster::block_on;

use super::turn;

use Protocol::Tcp;

struct World {
    executor: Executor,
    ports: Allocator,
    host: Netns,
    broker: Broker,
    _turn: MutexGuard<'static, ()>,
}

/// Far less than a broker may take, and far more than this machine does.
const SOON: Duration = Duration::from_secs(5);

impl World {
    fn new() -> World {
        let turn = turn();
        let (executor, host) = (Executor::new().unwrap(), netns());
        World {
            broker: spawn(&executor, &host),
            ports: Allocator::new(&executor),
            executor,
            host,
            _turn: turn,
        }
    }

    fn request(&self) -> Request {
        let request = self.ports.request(Tcp).on_broker(&self.broker, [V4]);
        request.gate(Gate::Queue).ports(Ports::Exact(33000))
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.broker.pid().cast_signed());
        kill(pid, signal).expect("it is ours");
    }

    /// Stops the broker for as long as `f` runs, which must not be long.
    #[track_caller]
    fn while_stopped(&self, kind: ErrorKind, f: impl FnOnce() -> Error) {
        self.signal(Signal::SIGSTOP);
        let started = Instant::now();
        let error = f();
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
        assert_eq!(error.kind(), kind, "{error}");
        let pid = format!("pid {}", self.broker.pid());
        assert!(error.to_string().contains(&pid), "{error}");
        self.signal(Signal::SIGCONT);
        // It is not lost, and an answer that came late is not taken for another.
        for _ in 0..3 {
            let lease = self.request().acquire().expect("it goes on");
            assert_eq!(lease.port(), 33000);
        }
        // The broker closes its own copies a moment after it has sent them.
        eventually("no socket is left", || {
            taken(&self.executor, &self.host, Tcp).is_empty()
        });
    }
}

fn spawn(executor: &Executor, netns: &Netns) -> Broker {
    executor.run(netns, super::spawn).expect("a thread there")
}

#[test]
fn cancel_reaches_requests_that_wait_for_a_stopped_broker() {
    let w = World::new();
    let cancel = Cancel::new();
    w.while_stopped(ErrorKind::Cancelled, || {
        let (started, tids) = mpsc::channel();
        thread::scope(|scope| {
            let wait = || {
                started.send(gettid()).expect("the test waits");
                refused(w.request().cancel(&cancel).acquire())
            };
            // One waits for the broker, and the others for its line.
            let waiting: Vec<_> = (0..3).map(|_| scope.spawn(wait)).collect();
            for tid in tids.iter().take(3) {
                eventually("it waits", || has_slept(tid));
            }
            cancel.cancel();
            let errors = waiting.into_iter().map(|thread| thread.join().unwrap());
            errors.last().expect("three")
        })
    });
}

#[test]
fn deadline_reaches_a_request_that_waits_for_a_stopped_broker() {
    let w = World::new();
    let soon = || Instant::now() + Duration::from_millis(30);
    w.while_stopped(ErrorKind::Deadline, || {
        let request = w.request().ports(Ports::Range(33000..=33009));
        refused(request.budget(Budget::Deadline(soon())).acquire())
    });
    w.while_stopped(ErrorKind::Deadline, || {
        refused(w.request().retry_for(Duration::from_millis(30)).acquire())
    });
}

#[test]
fn short_time_is_enough_for_a_broker_that_runs() {
    let w = World::new();
    let exact = || w.request().retry_for(Duration::ZERO).acquire();
    let range = || {
        let request = w.request().ports(Ports::Range(33000..=33009));
        let end = Instant::now() + Duration::from_micros(20);
        request.budget(Budget::Deadline(end)).acquire()
    };
    for _ in 0..20 {
        exact().expect("it is tried once, whatever the time");
        // On a busy machine the deadline may pass before the walk begins.
        let found = (0..20).any(|_| range().is_ok());
        assert!(found, "a port is looked at, and it is free");
    }
}

#[test]
fn dropped_future_stops_waiting_for_a_stopped_broker() {
    let w = World::new();
    drop(w.request().acquire().unwrap());
    w.signal(Signal::SIGSTOP);
    let before = threads_of_this_process();
    let mut future = Box::pin(w.request().acquire_async());
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(future.as_mut().poll(&mut cx).is_pending());
    drop(future);
    eventually("its thread ends", || threads_of_this_process() <= before);
    w.signal(Signal::SIGCONT);
    let fds = fds_of_this_process();
    drop(block_on(w.request().acquire_async()).unwrap());
    // What was vended late was closed.
    eventually("nothing is left open", || fds_of_this_process() <= fds);
}

/// A thread that waits for a broker looks up from time to time.
fn has_slept(tid: Pid) -> bool {
    sleeps_of(tid.as_raw()).expect("it lives") >= 5
}

#[test]
fn lost_broker_can_be_replaced_and_leases_do_not_notice() {
    let w = World::new();
    let lease = w.request().acquire().unwrap();
    w.signal(Signal::SIGKILL);
    let error = refused(w.request().ports(Ports::Exact(33001)).acquire());
    assert_eq!(error.kind(), ErrorKind::Broker);
    assert!(error.to_string().contains("Broker::replace"), "{error}");

    let elsewhere = spawn(&w.executor, &netns());
    let socket = elsewhere.try_clone_socket().unwrap();
    let error = w.broker.replace(socket).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Broker);
    assert!(
        error.to_string().contains("another network namespace"),
        "{error}"
    );
    refused(w.request().ports(Ports::Exact(33001)).acquire());

    let second = spawn(&w.executor, &w.host);
    w.broker
        .replace(second.try_clone_socket().unwrap())
        .unwrap();
    assert_eq!(w.broker.pid(), second.pid());
    // The table is that of the namespace, not of the broker.
    let error = refused(w.request().acquire());
    assert_eq!(error.kind(), ErrorKind::AlreadyLeased);
    w.request().ports(Ports::Exact(33001)).acquire().unwrap();
    drop(lease);
    w.request().acquire().unwrap();
}
