//! Lanes: calls against parking, leaving, and each other.

use std::sync::Arc;
use std::time::Instant;

use super::{check, panicked, returned};
use crate::handoff::lane::{Lane, Serving};
use crate::handoff::outcome::{Door, Outcome};
use crate::sync::{AtomicBool, AtomicU32, Ordering, fence, thread, yield_now};

/// Makes the calling thread the lane's worker, which is free at once.
fn open(lane: &Lane) -> Serving<'_> {
    let mut serving = lane.open().unwrap();
    serving.end_busy();
    serving
}

/// What a worker does, without a queue.
fn serve(lane: &Lane, stop: &AtomicBool) {
    let mut serving = open(lane);
    let mut door = Door::here();
    loop {
        if serving.has_call() {
            serving.serve(&mut door);
        } else if stop.load(Ordering::Relaxed) {
            if serving.close() {
                return;
            }
            yield_now();
        } else if serving.begin_park(Instant::now()) {
            if stop.load(Ordering::Relaxed) {
                serving.stay_awake();
            } else {
                assert!(serving.sleep(None));
            }
        } else {
            yield_now();
        }
    }
}

struct Served {
    lane: Arc<Lane>,
    stop: Arc<AtomicBool>,
    worker: thread::JoinHandle<()>,
}

impl Served {
    fn new() -> Served {
        let lane = Arc::new(Lane::new());
        let stop = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let (lane, stop) = (Arc::clone(&lane), Arc::clone(&stop));
            move || serve(&lane, &stop)
        });
        Served { lane, stop, worker }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
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
    check(3, || {
        let served = Served::new();
        let number = Box::new(20);
        if let Ok(outcome) = call(&served.lane, || *number + 1) {
            assert_eq!(returned(outcome), 21);
        }
        served.stop();
    });
}

#[test]
fn large_closure_and_result_travel_by_pointer() {
    check(3, || {
        let served = Served::new();
        let numbers = [1_u64; 16];
        if let Ok(outcome) = call(&served.lane, move || numbers.map(|n| n + 1)) {
            assert_eq!(returned(outcome), [2; 16]);
        }
        served.stop();
    });
}

#[test]
fn lane_is_used_again_and_again() {
    check(2, || {
        let served = Served::new();
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
    check(2, || {
        let served = Served::new();
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
    check(2, || {
        let served = Served::new();
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
                let mut serving = open(&lane);
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
                let mut serving = open(&lane);
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
    check(1, || {
        let served = Served::new();
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
        let stop = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let (lane, stop) = (Arc::clone(&lane), Arc::clone(&stop));
            move || serve(&lane, &stop)
        });
        assert!(caller.join().unwrap() <= 2);
        Served { lane, stop, worker }.stop();
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
                let mut serving = open(&lane);
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
