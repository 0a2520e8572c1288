//! One closure for many arguments: a job for each, all of them in one frame of a
//! caller that waits until the last is over.
//!
//! The jobs lie beside each other in one allocation of the caller's. Each is shipped
//! as a [`JobRef`] of its own and owes the count one, be it executed, aborted or
//! dropped. The job that takes the count to nothing sets the latch, which is its
//! last touch of the frame; every other one's last touch is its taking one off. So the
//! caller sleeps and is woken once, however many jobs there are.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use super::job::{AbortOnUnwind, Header, JobKind, JobRef, Vtable};
use super::latch::Latch;
use super::outcome::{Door, Outcome};
use crate::error::Error;
use crate::sync::{AtomicU32, Ordering, UnsafeCell};

/// What all jobs of one broadcast share.
struct Shared<'a, F> {
    f: &'a F,
    /// Jobs that are not over.
    left: AtomicU32,
    all_over: Latch,
}

/// One job of a broadcast.
#[repr(C)]
struct Visit<'a, A, F, T> {
    header: Header,
    shared: &'a Shared<'a, F>,
    argument: &'a A,
    outcome: UnsafeCell<Option<Outcome<T>>>,
}

impl<A, F, T> Visit<'_, A, F, T>
where
    A: Sync,
    F: Fn(&A) -> T + Sync,
    T: Send,
{
    const VTABLE: Vtable = Vtable {
        execute: Self::execute,
        abort: Self::abort,
        lose: Self::abort,
        kind: JobKind::Task,
    };

    unsafe fn execute(job: NonNull<Header>, door: &mut Door) {
        let visit = job.cast::<Self>();
        let outcome = {
            // SAFETY: the caller stays until this job is counted as over, in `end`.
            let visit = unsafe { visit.as_ref() };
            door.call(|| (visit.shared.f)(visit.argument))
        };
        door.at().end();
        // SAFETY: as above; this is the job's end.
        unsafe { Self::end(visit, outcome) };
    }

    unsafe fn abort(job: NonNull<Header>, why: Error) {
        // SAFETY: as in `execute`.
        unsafe { Self::end(job.cast(), Outcome::Aborted(why)) };
    }

    /// Stores the outcome and takes one off the count.
    ///
    /// # Safety
    ///
    /// The job is not over, and the caller its only owner. It may be gone after this,
    /// and before this has returned, which is why it takes a pointer.
    unsafe fn end(visit: NonNull<Self>, outcome: Outcome<T>) {
        // SAFETY: the frame stays until the count, which this job is part of, is nothing.
        let visit = unsafe { visit.as_ref() };
        // SAFETY: the `JobRef` that was consumed is the only way to the cell until the
        // caller has seen the latch set.
        (visit.outcome).with_mut(|cell| unsafe { *cell = Some(outcome) });
        let latch = &raw const visit.shared.all_over;
        // AcqRel: what every job wrote is visible to the caller that sees the latch set.
        if visit.shared.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: the caller waits for this very call, the last touch.
            unsafe { Latch::set(latch) };
        }
    }
}

/// Makes a job for each of `arguments`, has `send` hand them over in this order, and
/// returns their outcomes when all are over. `f`, and what it returns, may borrow
/// whatever the caller can.
///
/// Jobs that `send` drops or leaves are aborted. `wait` waits for the latch.
///
/// # Panics
///
/// For more arguments than 2^32 - 1.
pub(crate) fn broadcast<'a, A, F, T>(
    arguments: &'a [A],
    f: &F,
    send: impl FnOnce(&mut dyn Iterator<Item = (&'a A, JobRef)>),
    wait: impl FnOnce(&Latch),
) -> Vec<Outcome<T>>
where
    A: Sync,
    F: Fn(&A) -> T + Sync,
    T: Send,
{
    if arguments.is_empty() {
        return Vec::new();
    }
    let count = u32::try_from(arguments.len()).expect("more jobs than a broadcast can count");
    #[cfg_attr(not(loom), expect(unused_mut, reason = "only models check"))]
    let mut shared = Shared {
        f,
        left: AtomicU32::new(count),
        all_over: Latch::new(),
    };
    let visits: Box<[Visit<'_, A, F, T>]> = (arguments.iter())
        .map(|argument| Visit {
            header: Header::new(&Visit::<'_, A, F, T>::VTABLE),
            shared: &shared,
            argument,
            outcome: UnsafeCell::new(None),
        })
        .collect();
    // From here on this frame must stay until the latch is set, whatever happens.
    let stay = AbortOnUnwind;
    let mut jobs = arguments.iter().zip(&visits).map(|(argument, visit)| {
        // SAFETY: the visit stays until the latch is set, which waits for this job, and
        // the iterator comes by it once.
        let job = unsafe { JobRef::new(NonNull::from(visit).cast()) };
        (argument, job)
    });
    send(&mut jobs);
    jobs.for_each(drop);
    wait(&shared.all_over);
    assert!(shared.all_over.is_set(), "`wait` waits for the latch");
    std::mem::forget(stay);
    let outcomes = (visits.into_iter())
        .map(|visit| {
            // SAFETY: the latch is set, so that every job has left its cell to us.
            let outcome = (visit.outcome).with_mut(|outcome| unsafe { (*outcome).take() });
            outcome.expect("a job stores its outcome before it is over")
        })
        .collect();
    #[cfg(loom)]
    shared.all_over.check_unused();
    outcomes
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;
    use crate::error::Kind;

    fn on_threads<T: Send>(arguments: &[u32], f: impl Fn(&u32) -> T + Sync) -> Vec<Outcome<T>> {
        thread::scope(|scope| {
            let send = |jobs: &mut dyn Iterator<Item = (&u32, JobRef)>| {
                for (argument, job) in jobs {
                    let lost = *argument == 13;
                    scope.spawn(move || match lost {
                        true => job.abort(Error::new(Kind::Full, "no room")),
                        false => job.execute(&mut Door::here()),
                    });
                }
            };
            broadcast(arguments, &f, send, |all_over| all_over.wait())
        })
    }

    #[test]
    fn outcomes_are_in_the_order_of_the_arguments() {
        let words = ["a".to_owned(), "b".to_owned()];
        let outcomes = on_threads(&[1, 13, 0], |n| match n {
            0 => panic!("out"),
            n => words[*n as usize].as_str(),
        });
        let [
            Outcome::Returned("b"),
            Outcome::Aborted(error),
            Outcome::Panicked(..),
        ] = &outcomes[..]
        else {
            panic!("one returned, one was aborted, one panicked");
        };
        assert!(error.is_full());
    }

    #[test]
    fn jobs_that_are_never_sent_are_aborted() {
        let outcomes = broadcast(
            &[1, 2, 3],
            &|n| *n,
            |jobs| drop(jobs.next()),
            |all_over| all_over.wait(),
        );
        let aborted = |outcome: &Outcome<i32>| matches!(outcome, Outcome::Aborted(_));
        assert_eq!(
            outcomes.iter().filter(|outcome| aborted(outcome)).count(),
            3
        );
        assert!(broadcast(&[], &|n: &u8| *n, |_| (), |_| ()).is_empty());
    }
}
