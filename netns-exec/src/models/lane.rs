//! Lanes: calls against parking, leaving, and each other.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::{check, panicked, returned};
use crate::bell::{Bell, Ended};
use crate::handoff::lane::{Lane, Serving};
use crate::handoff::outcome::{Door, Outcome};
use crate::sync::{AtomicBool, AtomicU32, Listener, Ordering, fence, thread, yield_now};

/// Makes the calling thread the lane's worker, which is free at once.
fn open(lane: &Lane, bell: Option<Arc<Bell>>) -> Serving<'_> {
    let mut serving = lane.open(bell).unwrap();
    serving.end_busy();
    serving
}

/// What a worker does, with a queue that one job may be in.
fn serve(lane: &Lane, queue: &Queue, bell: Option<Arc<Bell>>) {
    let mut serving = open(lane, bell);
    let mut door = Door::here();
    loop {
        if serving.has_call() {
            serving.serve(&mut door);
        } else if serving.is_called() || queue.has_job() {
            if serving.begin_busy() {
                if queue.serve() {
                    serving.expect_caller(false);
                }
                serving.end_busy();
            } else {
                yield_now();
            }
        } else if queue.stop.load(Ordering::Acquire) {
            // What was pushed before is seen from here on.
            if !queue.has_job() && serving.close() {
                return;
            }
            yield_now();
        } else if serving.begin_park(Instant::now()) {
            if queue.has_job() || queue.stop.load(Ordering::Relaxed) {
                serving.stay_awake();
            } else {
                assert!(serving.sleep(None));
            }
        } else {
            yield_now();
        }
    }
}

/// A queue of jobs that are counted, and the wish that the worker leaves.
#[derive(Default)]
struct Queue {
    pushed: AtomicU32,
    served: AtomicU32,
    stop: AtomicBool,
}

impl Queue {
    fn has_job(&self) -> bool {
        self.pushed.load(Ordering::Relaxed) > self.served.load(Ordering::Relaxed)
    }

    /// Tells whether there was a job.
    fn serve(&self) -> bool {
        let pushed = self.pushed.load(Ordering::Relaxed);
        let served = self.served.load(Ordering::Relaxed);
        self.served.store(pushed, Ordering::Relaxed);
        pushed != served
    }

    /// What a sender does.
    fn push(&self, lane: &Lane) {
        self.pushed.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !lane.is_awake_and_free() {
            lane.wake();
        }
    }
}

/// How a model's worker sleeps: on the gate, or in the trap of its bell.
fn bells() -> [Option<Arc<Bell>>; 2] {
    [None, Some(Arc::new(Bell::new(0, Some(Listener::new()))))]
}

/// Tries a model with both.
fn check_both(preemptions: usize, model: impl Fn(Served) + Sync + Send + Copy + 'static) {
    for with in 0..2 {
        check(preemptions, move || {
            let [none, bell] = bells();
            model(Served::new(if with == 0 { none } else { bell }));
        });
    }
}

struct Served {
    lane: Arc<Lane>,
    queue: Arc<Queue>,
    worker: thread::JoinHandle<()>,
}

impl Served {
    fn new(bell: Option<Arc<Bell>>) -> Served {
        Served::of(Arc::new(Lane::new()), bell)
    }

    fn of(lane: Arc<Lane>, bell: Option<Arc<Bell>>) -> Served {
        let queue = Arc::new(Queue::default());
        let worker = thread::spawn({
            let (lane, queue) = (Arc::clone(&lane), Arc::clone(&queue));
            move || serve(&lane, &queue, bell)
        });
        Served {
            lane,
            queue,
            worker,
        }
    }

    fn stop(self) {
        self.queue.stop.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.lane.wake();
        self.worker.join().unwrap();
    }
}

/// Calls through the lane; gives the closure back when there was no way.
fn call<F: FnOnce() -> T + Send, T: Send>(lane: &Lane, f: F) -> Result<Outcome<T>, F> {
    match lane.claim() {
        Some(claim) => claim.run(f, false),
        None => Err(f),
    }
}

#[test]
fn small_closure_and_result_travel_in_the_lane() {
    check_both(3, |served| {
        let number = Box::new(20);
        if let Ok(outcome) = call(&served.lane, || *number + 1) {
            assert_eq!(returned(outcome), 21);
        }
        served.stop();
    });
}

#[test]
fn large_closure_and_result_travel_by_pointer() {
    check_both(3, |served| {
        let numbers = [1_u64; 16];
        if let Ok(outcome) = call(&served.lane, move || numbers.map(|n| n + 1)) {
            assert_eq!(returned(outcome), [2; 16]);
        }
        served.stop();
    });
}

#[test]
fn lane_is_used_again_and_again() {
    check_both(2, |served| {
        for n in 0..3 {
            if let Ok(outcome) = call(&served.lane, || n) {
                assert_eq!(returned(outcome), n);
            }
        }
        served.stop();
    });
}

#[test]
fn panic_reaches_the_caller_and_leaves_the_lane_usable() {
    check_both(2, |served| {
        let out = || std::panic::resume_unwind(Box::new("out"));
        if let Ok(outcome) = call(&served.lane, out) {
            assert_eq!(*panicked::<()>(outcome).downcast::<&str>().unwrap(), "out");
            let Ok(outcome) = call(&served.lane, || 1) else {
                panic!("no other caller uses the lane")
            };
            assert_eq!(returned(outcome), 1);
        }
        served.stop();
    });
}

#[test]
fn contended_lane_serves_one_and_turns_the_other_away() {
    check_both(2, |served| {
        let other = thread::spawn({
            let lane = Arc::clone(&served.lane);
            move || call(&lane, || 1).map(returned).ok()
        });
        let mine = call(&served.lane, || 2).map(returned).ok();
        let other = other.join().unwrap();
        assert!(mine.is_none_or(|n| n == 2));
        assert!(other.is_none_or(|n| n == 1));
        served.stop();
    });
}

#[test]
fn claim_meets_a_worker_that_leaves() {
    check(3, || {
        let lane = Arc::new(Lane::new());
        let worker = thread::spawn({
            let lane = Arc::clone(&lane);
            move || {
                let mut serving = open(&lane, None);
                while !serving.close() {
                    serving.refuse();
                }
            }
        });
        let closure = Box::new(7);
        // Refused or turned away, but never run, and given back whole.
        let Err(f) = call(&lane, move || *closure) else {
            panic!("no worker serves")
        };
        assert_eq!(f(), 7);
        worker.join().unwrap();
    });
}

#[test]
fn large_closure_comes_back_from_a_worker_that_leaves() {
    check(3, || {
        let lane = Arc::new(Lane::new());
        let worker = thread::spawn({
            let lane = Arc::clone(&lane);
            move || {
                let mut serving = open(&lane, None);
                while !serving.close() {
                    serving.refuse();
                }
            }
        });
        let numbers = [1_u64; 16];
        let Err(f) = call(&lane, move || numbers) else {
            panic!("no worker serves")
        };
        assert_eq!(f(), [1; 16]);
        worker.join().unwrap();
    });
}

#[test]
fn next_worker_takes_the_lane_over() {
    check_both(1, |served| {
        let lane = Arc::clone(&served.lane);
        let caller = thread::spawn(move || {
            let mut answers = 0;
            for _ in 0..2 {
                if let Ok(outcome) = call(&lane, || 1) {
                    answers += returned(outcome);
                }
            }
            answers
        });
        let lane = Arc::clone(&served.lane);
        served.stop();
        let next = Served::of(lane, None);
        assert!(caller.join().unwrap() <= 2);
        next.stop();
    });
}

#[test]
fn caller_has_read_its_result_before_the_next_one_takes_the_lane() {
    check(2, || {
        let lane = Arc::new(Lane::new());
        let callers_gone = Arc::new(AtomicU32::new(0));
        // Never parks, and a caller may come at the right time and never sleep:
        // then nothing but the lane itself orders anything.
        let worker = thread::spawn({
            let (lane, callers_gone) = (Arc::clone(&lane), Arc::clone(&callers_gone));
            move || {
                let mut serving = open(&lane, None);
                let mut door = Door::here();
                while callers_gone.load(Ordering::Relaxed) < 2 {
                    match serving.has_call() {
                        true => serving.serve(&mut door),
                        false => yield_now(),
                    }
                }
            }
        });
        let try_once = |lane: &Lane, callers_gone: &AtomicU32, n: u32| {
            let answer = (lane.claim()).map(|claim| claim.run(move || n, true).map(returned).ok());
            callers_gone.fetch_add(1, Ordering::Relaxed);
            assert!(answer.is_none_or(|answer| answer == Some(n)));
        };
        let other = thread::spawn({
            let (lane, callers_gone) = (Arc::clone(&lane), Arc::clone(&callers_gone));
            move || try_once(&lane, &callers_gone, 1)
        });
        try_once(&lane, &callers_gone, 2);
        other.join().unwrap();
        worker.join().unwrap();
    });
}

#[test]
fn queue_is_served_beside_a_call() {
    check_both(2, |served| {
        let sender = thread::spawn({
            let (lane, queue) = (Arc::clone(&served.lane), Arc::clone(&served.queue));
            move || queue.push(&lane)
        });
        for n in 0..2 {
            if let Ok(outcome) = call(&served.lane, || n) {
                assert_eq!(returned(outcome), n);
            }
        }
        sender.join().unwrap();
        let queue = Arc::clone(&served.queue);
        served.stop();
        assert!(!queue.has_job(), "the worker was woken for it");
    });
}

#[test]
fn trap_that_is_interrupted_is_answered_all_the_same() {
    check(2, || {
        let listener = Listener::new();
        let bell = Bell::new(0, Some(listener.clone()));
        let served = Served::new(Some(Arc::new(bell)));
        let debugger = thread::spawn(move || listener.interrupt());
        for n in 0..2 {
            if let Ok(outcome) = call(&served.lane, || n) {
                assert_eq!(returned(outcome), n);
            }
        }
        debugger.join().unwrap();
        served.stop();
    });
}

#[test]
fn caller_whose_worker_has_ended_is_told_and_the_next_worker_serves() {
    for had_begun in [false, true] {
        check(2, move || {
            let lane = Arc::new(Lane::new());
            let serving = open(&lane, None);
            let caller = thread::spawn({
                let lane = Arc::clone(&lane);
                move || call(&lane, || 7)
            });
            while had_begun && !serving.has_call() {
                yield_now();
            }
            // The worker ends, and is seen to.
            mem::forget(serving);
            if let Some(call) = lane.close_lost(&Ended::in_effect()) {
                call.tell(had_begun);
            }
            let next = Served::of(Arc::clone(&lane), None);
            match caller.join().unwrap() {
                Ok(Outcome::Aborted(_)) => assert!(had_begun),
                // It was refused, or met the next worker.
                Ok(Outcome::Returned(value)) => assert!(!had_begun && value == 7),
                Ok(_) => panic!("it has no other outcome"),
                Err(closure) => assert!(!had_begun && closure() == 7),
            }
            next.stop();
        });
    }
}
