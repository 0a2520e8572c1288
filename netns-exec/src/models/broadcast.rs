//! Broadcasts: the frame that all visits lie in is left when the last one is over, and
//! what they wrote is there.

use std::sync::Arc;

use super::check;
use crate::error::{Error, Kind};
use crate::handoff::broadcast::broadcast;
use crate::handoff::outcome::{Door, Outcome};
use crate::sync::{AtomicU32, Ordering, thread};

#[test]
fn caller_sees_what_all_visits_did_and_may_free_their_frame() {
    check(3, || {
        // Order nothing themselves.
        let written = [0, 0].map(|n| Arc::new(AtomicU32::new(n)));
        let mut workers = Vec::new();
        let outcomes = broadcast(
            &[1, 2, 3],
            &|n: &u32| {
                written[*n as usize - 1].store(*n, Ordering::Relaxed);
                *n
            },
            |jobs| {
                for (n, job) in jobs {
                    workers.push(thread::spawn(move || match n {
                        3 => job.abort(Error::new(Kind::Full, "no room")),
                        _ => job.execute(&mut Door::here()),
                    }));
                }
            },
            |all_over| all_over.wait(),
        );
        let seen = written.map(|cell| cell.load(Ordering::Relaxed));
        assert_eq!(seen, [1, 2]);
        let [
            Outcome::Returned(1),
            Outcome::Returned(2),
            Outcome::Aborted(_),
        ] = &outcomes[..]
        else {
            panic!("each is told, in order");
        };
        for worker in workers {
            worker.join().unwrap();
        }
    });
}
