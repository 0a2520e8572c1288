//! Scopes: what jobs have borrowed is the caller's again when the scope has ended.

use std::sync::Arc;

use super::check;
use crate::handoff::job::JobRef;
use crate::handoff::outcome::Door;
use crate::handoff::scope::scope;
use crate::sync::{AtomicU32, Ordering, thread};

#[test]
fn scope_sees_what_all_of_its_jobs_did() {
    check(3, || {
        // Order nothing themselves.
        let written = [0, 0].map(|n| Arc::new(AtomicU32::new(n)));
        let mut workers = Vec::new();
        scope(
            &(),
            |all_over| {
                all_over.wait();
                Ok(())
            },
            |scope| {
                for (n, cell) in (1..).zip(&written) {
                    let job = move || cell.store(n, Ordering::Relaxed);
                    let shipped = scope.ship(job, |job| {
                        workers.push(thread::spawn(move || job.execute(&mut Door::here())));
                        Ok::<(), (JobRef, ())>(())
                    });
                    drop(shipped.unwrap());
                }
            },
        );
        let seen = written.map(|cell| cell.load(Ordering::Relaxed));
        assert_eq!(seen, [1, 2]);
        for worker in workers {
            worker.join().unwrap();
        }
    });
}
