//! The queue: who waits for room is told of it.

use std::sync::Arc;

use super::check;
use super::job::spawn;
use crate::executor::queue::{Clock, Queue};
use crate::handoff::job::JobRef;
use crate::handoff::outcome::Door;
use crate::sync::{thread, yield_now};

fn job() -> JobRef {
    let (_handle, job) = spawn(|| ());
    job
}

/// Senders of so many jobs each, and a worker that takes all of them and sleeps only
/// where it is told to: by the model.
fn check_senders(preemptions: usize, depth: usize, jobs: &'static [usize]) {
    check(preemptions, move || {
        let queue = Arc::new(Queue::new(depth, Clock::Coarse));
        let senders: Vec<_> = (jobs.iter())
            .map(|&jobs| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || (0..jobs).for_each(|_| queue.push(job())))
            })
            .collect();
        for _ in 0..jobs.iter().sum() {
            loop {
                match queue.take() {
                    Some(job) => break job.execute(&mut Door::here()),
                    None => yield_now(),
                }
            }
        }
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

#[test]
fn two_senders_wait_for_room_and_go() {
    check_senders(1, 1, &[2, 2]);
}

#[test]
fn sender_that_is_back_for_more_does_not_keep_the_other_from_its_room() {
    check_senders(2, 1, &[2, 1]);
}

#[test]
fn senders_are_told_of_half_of_the_room() {
    check_senders(1, 2, &[2, 2]);
}
