//! Loom models of the synchronisation that is written by hand: the code itself,
//! run through every interleaving of its steps, and every value that a load may
//! return under the memory model of the language.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p netns-exec --lib --profile loom models -- --nocapture
//! ```
//!
//! `--nocapture` because a caller whose worker may still use its frame ends the
//! process, and takes what the test had to say with it. `LOOM_MAX_PREEMPTIONS`
//! overrides how often a thread is interrupted where it could have gone on: three
//! times in models of latches and jobs, two of lanes, one of whole calls.
//!
//! # What they notice
//!
//! Each was weakened to `Relaxed`, or taken out, by itself:
//!
//! | ordering                                   | model that fails, of several                     |
//! |--------------------------------------------|--------------------------------------------------|
//! | `Latch::set`, AcqRel                       | `latch::waiter_may_free_the_latch_once_it_is_set` |
//! | `Latch::wait_until`, Acquire               | the same                                         |
//! | `WakerLatch::poll`, AcqRel of `WAKER`      | `latch::completion_wakes_the_last_waker`         |
//! | `Latch::release_unset`, AcqRel             | `job::ending_of_a_detached_job_is_dropped_once`  |
//! | `Latch::release`, AcqRel                   | `job::last_of_all_references_frees_the_job`      |
//! | `Latch::start`, AcqRel                     | `job::ending_of_a_detached_job_is_dropped_once`  |
//! | lane: post, Release, and its Acquire       | `lane::lane_is_used_again_and_again`             |
//! | lane: done, Release, and its Acquire       | `lane::lane_is_used_again_and_again`             |
//! | lane: let go, Release; claim, Acquire      | `lane::caller_has_read_its_result_before_the_next_one_takes_the_lane` |
//! | bell: a waker that finds a receiver leaves it the answer | `lane::queue_is_served_beside_a_call` |
//! | bell: a receiver that is wanted answers    | the same                                         |
//! | bell: an answer to an old number is none   | `lane::trap_that_is_interrupted_is_answered_all_the_same` |
//! | `stay_awake`: meet the waker in the trap   | `lane::queue_is_served_beside_a_call`            |
//! | `tell`: trap for a caller that sleeps      | `lane::next_worker_takes_the_lane_over`          |
//! | fence of `begin_park`, of `notify`         | `executor::job_in_the_queue_finds_a_worker_that_is_about_to_park` |
//! | fence of `push`, of `take`                 | `executor::sender_waits_for_room_until_a_job_is_taken` |
//! | fence of `leave`                           | `executor::queued_job_meets_a_worker_that_leaves_for_being_idle` |
//! | fence of `cover_queue`                     | `executor::job_in_the_queue_is_not_left_behind_a_call_that_waits_for_it` |
//! | fence of `park_spare`                      | `executor::parked_spare_is_called_again`         |
//! | fence of `wake_all`                        | `executor::call_meets_retirement`                |
//! | `queue_all`: look after the last push      | `executor::batch_in_the_queue_finds_a_worker_that_is_about_to_park` |
//! | `Tally::job_over`, AcqRel                  | `scope::scope_sees_what_all_of_its_jobs_did`     |
//! | `Visit::end`, AcqRel                      | `broadcast::caller_sees_what_all_visits_did_and_may_free_their_frame` |
//! | `rescue`: count the spare that is called   | `executor::parked_spare_is_called_again`         |
//! | `carry_out`: give up the orphans           | `executor::jobs_are_given_up_when_a_stand_in_cannot_be_born` |
//! | `leave`: a successor for what is queued    | `executor::successor_of_a_spoiled_worker_serves_what_is_queued` |
//! | `unpin`: wake                              | `executor::worker_that_is_unpinned_ends_for_being_idle` |
//! | `Threads::join`: wait for other joiners    | `executor::both_of_two_joiners_wait_for_the_thread` |
//! | `queue_all`: look before it waits for room | `executor::batch_wakes_its_worker_before_it_waits_for_room` |
//! | `start_first`: look for jobs that rely on it | `executor::sender_relies_on_the_first_birth_of_another_call_which_fails` |
//! | `try_queue`: the job comes back from a dead group | `executor::job_that_may_not_wait_for_room_meets_the_death_of_its_group` |
//! | `FutureJob::note`, AcqRel; a write at all  | `future::news_of_every_waker_is_seen_by_a_poll`  |
//! | `FutureJob::note`: look at `POLLING`       | the same                                         |
//! | `FutureJob::begin`, AcqRel                 | `future::two_workers_never_have_it_at_the_same_time` |
//! | end of a poll, AcqRel; in one step; put back | the same                                       |
//! | `FutureJob::settle`: look at `CANCELLED`   | `future::future_is_either_over_or_cancelled_and_dropped_once` |
//!
//! In models of latches, jobs and lanes a futex orders nothing (`sync::model`); in those
//! of whole calls, whose sleepers block on a lock, it does.
//!
//! Not noticed: the fence of `worker_blocks`, the Release of `Serving::set_flag`
//! and the AcqRel of `Latch::try_flag`. The last two are stronger than today's
//! users need: no cell is read because of them alone. Nor that `started` has those
//! look that wait for room: the worker's first park does so as well, later.
//!
//! Loom makes no difference between an access of sequential consistency and such a
//! fence, so the protocols use fences, and nothing stronger than AcqRel beside them.

mod broadcast;
mod executor;
mod future;
mod job;
mod lane;
mod latch;
mod queue;
mod scope;

use std::any::Any;

use crate::handoff::outcome::Outcome;
use crate::sync::{self, thread};

/// Tries every interleaving in which threads are interrupted at most
/// `preemptions` times where they could have gone on. A thread that has to wait
/// is not interrupted, so most protocols show all their states within two.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 20_000;
    builder.check(model);
}

/// In words: what coroutines have by default is too little for system calls that
/// take paths.
const STACK: usize = 1 << 14;

/// As [`check`], on a thread with more stack.
fn check_deep(preemptions: usize, model: impl Fn() + Sync + Send + Copy + 'static) {
    check(preemptions, move || {
        sync::have_sleepers_block();
        spawn_deep(model).join().unwrap();
    });
}

fn spawn_deep<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    let thread = thread::Builder::new().stack_size(STACK);
    thread.spawn(f).unwrap()
}

fn returned<T>(outcome: Outcome<T>) -> T {
    match outcome {
        Outcome::Returned(value) => value,
        Outcome::Panicked(..) => panic!("the job panicked"),
        Outcome::Aborted(error) => panic!("the job was aborted: {error}"),
        Outcome::Violated(_) => panic!("the job violated its guard"),
    }
}

fn panicked<T>(outcome: Outcome<T>) -> Box<dyn Any + Send> {
    match outcome {
        Outcome::Panicked(panic) => panic.payload,
        _ => panic!("the job did not panic"),
    }
}
