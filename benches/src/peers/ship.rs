//! What all peers that take a closure have in common.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::peer::{Flood, Peer};
use crate::work::{Work, open_socket, own_netns_inode};

/// Takes a closure to the namespace and brings its result back.
pub(super) trait Ship: Send + Sync {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T;
}

/// A [`Ship`] as a [`Peer`]: the loop is compiled for each, so that no indirect
/// call stands between the clock and what is measured.
pub(super) struct Shipper<S>(pub(super) S);

impl<S: Ship> Peer for Shipper<S> {
    fn repeat(&self, work: Work, times: u32) {
        match work {
            Work::Empty => {
                for n in 0..times {
                    let n = black_box(n);
                    assert_eq!(self.0.ship(move || n.wrapping_add(1)), n.wrapping_add(1));
                }
            }
            Work::Socket => {
                for _ in 0..times {
                    drop(self.0.ship(open_socket));
                }
            }
        }
    }

    fn netns_inode(&self) -> Option<u64> {
        Some(self.0.ship(own_netns_inode))
    }
}

/// Takes a closure to the namespace and does not wait for it.
pub(super) trait Post: Send + Sync {
    fn post(&self, f: impl FnOnce() + Send + 'static);

    fn post_all(&self, jobs: impl Iterator<Item = impl FnOnce() + Send + 'static>) {
        jobs.for_each(|job| self.post(job));
    }
}

/// A [`Post`] as a [`Flood`].
pub(super) struct Poster<P>(pub(super) P);

impl<P: Post> Flood for Poster<P> {
    fn flood(&self, jobs: u32, spawners: u32) {
        // Only one flood is under way at a time: they take turns.
        static RAN: AtomicU32 = AtomicU32::new(0);
        RAN.store(0, Ordering::Relaxed);
        let post = || {
            self.0.post_all((0..jobs).map(|job| {
                // It captures something, as closures do: to box nothing is free.
                let job = black_box(job);
                move || {
                    black_box(job);
                    RAN.fetch_add(1, Ordering::Release);
                }
            }));
        };
        thread::scope(|scope| {
            for _ in 1..spawners {
                scope.spawn(post);
            }
            post();
        });
        while RAN.load(Ordering::Acquire) != jobs * spawners {
            thread::yield_now();
        }
    }
}
