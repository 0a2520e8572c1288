//! Jobs: who owns the closure and the outcome at any time.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};

use super::latch::Task;
use super::{check, panicked, returned};
use crate::error::Error;
use crate::handoff::handle::TaskHandle;
use crate::handoff::job::{self, JobRef};
use crate::handoff::outcome::{Door, Outcome};
use crate::handoff::task::{self, OnEnd};
use crate::sync::{Mutex, thread};

/// Counts drops, of closures and of results.
#[derive(Clone, Default)]
struct Drops(Arc<AtomicUsize>);

impl Drops {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn one(&self) -> Dropped {
        Dropped(self.clone())
    }
}

struct Dropped(Drops);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) fn spawn<T: Send + 'static>(
    f: impl FnOnce() -> T + Send + 'static,
) -> (TaskHandle<'static, T>, JobRef) {
    let mut sent = None;
    let ticket = task::spawn(f, |job| {
        sent = Some(job);
        Ok::<(), (JobRef, ())>(())
    });
    let Ok(ticket) = ticket else { unreachable!() };
    (ticket, sent.unwrap())
}

/// Told when a job is over; in the job, so that it is there as long as that.
#[derive(Default)]
struct Ends {
    over: AtomicUsize,
}

impl OnEnd for Ends {
    fn job_over(&self, _panicked: bool) {
        self.over.fetch_add(1, Ordering::Relaxed);
    }

    fn panic_dropped(&self) {}
}

/// As [`spawn`], of a job that has `ends`.
fn spawn_telling<T: Send + 'static>(
    ends: &Arc<Ends>,
    f: impl FnOnce() -> T + Send + 'static,
) -> (TaskHandle<'static, T>, JobRef) {
    let mut sent = None;
    // SAFETY: it borrows nothing.
    let ticket = unsafe {
        task::spawn_borrowing(f, Arc::clone(ends), |job| {
            sent = Some(job);
            Ok::<(), (JobRef, ())>(())
        })
    };
    let Ok(ticket) = ticket else { unreachable!() };
    (ticket, sent.unwrap())
}

fn execute(job: JobRef) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        job.execute(&mut Door::here());
    })
}

fn abort(job: JobRef) -> thread::JoinHandle<()> {
    thread::spawn(move || job.abort(Error::new(crate::error::Kind::Cancelled, "gone")))
}

#[test]
fn caller_sees_the_ending_and_frees_its_frame() {
    check(3, || {
        let mut worker = None;
        let number = Box::new(20);
        let outcome = job::run_on_stack(
            || *number + 1,
            |job| {
                worker = Some(execute(job));
                Ok(())
            },
        );
        assert_eq!(returned(outcome), 21);
        worker.unwrap().join().unwrap();
    });
}

#[test]
fn caller_sees_the_abort_and_frees_its_frame() {
    check(3, || {
        let mut worker = None;
        let outcome = job::run_on_stack(
            || (),
            |job| {
                worker = Some(abort(job));
                Ok(())
            },
        );
        assert!(matches!(outcome, Outcome::Aborted(_)));
        worker.unwrap().join().unwrap();
    });
}

#[test]
fn caller_sees_the_panic() {
    check(3, || {
        let mut worker = None;
        let outcome = job::run_on_stack(
            || std::panic::resume_unwind(Box::new("out")),
            |job| {
                worker = Some(execute(job));
                Ok(())
            },
        );
        assert_eq!(*panicked::<()>(outcome).downcast::<&str>().unwrap(), "out");
        worker.unwrap().join().unwrap();
    });
}

#[test]
fn joined_job_gives_its_result_once() {
    check(3, || {
        let drops = Drops::default();
        let (mut ticket, job) = spawn({
            let result = drops.one();
            move || result
        });
        let worker = execute(job);
        assert!(ticket.wait_until(None));
        let result = returned(ticket.take_outcome().unwrap());
        drop(ticket);
        assert_eq!(drops.count(), 0);
        drop(result);
        worker.join().unwrap();
        assert_eq!(drops.count(), 1);
    });
}

#[test]
fn job_is_either_started_or_cancelled() {
    check(3, || {
        let ran = Drops::default();
        let closures = Drops::default();
        let (mut ticket, job) = spawn({
            let (ran, closure) = (ran.clone(), closures.one());
            move || {
                drop(ran.one());
                drop(closure);
            }
        });
        let worker = execute(job);
        let cancelled = ticket.cancel();
        assert!(ticket.wait_until(None));
        assert_eq!(ticket.take_outcome().is_none(), cancelled);
        worker.join().unwrap();
        assert_eq!(ran.count(), usize::from(!cancelled));
        assert_eq!(closures.count(), 1);
    });
}

#[test]
fn job_is_either_aborted_or_cancelled() {
    check(3, || {
        let (mut ticket, job) = spawn(|| ());
        let worker = abort(job);
        let cancelled = ticket.cancel();
        assert!(ticket.wait_until(None));
        assert_eq!(ticket.take_outcome().is_none(), cancelled);
        worker.join().unwrap();
    });
}

#[test]
fn ending_of_a_detached_job_is_dropped_once() {
    check(3, || {
        let drops = Drops::default();
        let (ticket, job) = spawn({
            let result = drops.one();
            move || result
        });
        let worker = execute(job);
        drop(ticket);
        worker.join().unwrap();
        assert_eq!(drops.count(), 1);
    });
}

#[test]
fn cancelled_and_detached_job_drops_its_closure_once() {
    check(3, || {
        let drops = Drops::default();
        let (ticket, job) = spawn({
            let result = drops.one();
            move || result
        });
        let worker = execute(job);
        ticket.cancel();
        drop(ticket);
        worker.join().unwrap();
        assert_eq!(drops.count(), 1);
    });
}

#[test]
fn awaiting_task_is_woken_by_completion() {
    check(3, || {
        let (mut ticket, job) = spawn(|| 7);
        let worker = execute(job);
        let task = Task::new();
        let waker = Waker::from(Arc::clone(&task));
        while ticket.poll(&mut Context::from_waker(&waker)).is_pending() {
            task.sleep();
        }
        assert_eq!(returned(ticket.take_outcome().unwrap()), 7);
        worker.join().unwrap();
    });
}

#[test]
fn awaiting_task_is_woken_by_the_canceller() {
    check(2, || {
        let (ticket, job) = spawn(|| 7);
        let ticket = Arc::new(Mutex::new(ticket));
        let worker = execute(job);
        let canceller = thread::spawn({
            let ticket = Arc::clone(&ticket);
            move || ticket.lock().cancel()
        });
        let task = Task::new();
        let waker = Waker::from(Arc::clone(&task));
        while (ticket.lock().poll(&mut Context::from_waker(&waker))).is_pending() {
            task.sleep();
        }
        let outcome = ticket.lock().take_outcome();
        assert_eq!(canceller.join().unwrap(), outcome.is_none());
        worker.join().unwrap();
    });
}

#[test]
fn last_of_all_references_frees_the_job() {
    check(2, || {
        let (ends, drops) = (Arc::new(Ends::default()), Drops::default());
        let result = drops.one();
        let (ticket, job) = spawn_telling(&ends, move || result);
        let aborter = ticket.abort_task();
        let worker = execute(job);
        let canceller = thread::spawn(move || {
            let before = aborter.is_over();
            aborter.cancel();
            assert!(aborter.is_over() || !before);
        });
        drop(ticket);
        worker.join().unwrap();
        canceller.join().unwrap();
        assert_eq!(drops.count(), 1);
        assert_eq!(ends.over.load(Ordering::Relaxed), 1);
        assert_eq!(Arc::strong_count(&ends), 1, "the job has been freed");
    });
}

#[test]
fn job_that_is_awaited_by_none_is_freed_by_its_worker_or_its_handle() {
    check(3, || {
        let ends = Arc::new(Ends::default());
        let (ticket, job) = spawn_telling(&ends, || 7);
        let worker = execute(job);
        drop(ticket);
        worker.join().unwrap();
        assert_eq!(Arc::strong_count(&ends), 1, "the job has been freed");
    });
}
