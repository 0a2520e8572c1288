//! This library, in the ways it can be called.

use netns_exec::{Executor, Netns, Pinned};

use super::peer::{Flood, Peer, Setup};
use super::ship::{Post, Poster, Ship, Shipper};
use crate::Result;
use crate::work::{Work, open_socket, own_netns_inode};

/// What wakes the workers of `executor` where they sleep: `bell`, `futex`, or so many
/// of them by the bell.
pub fn woken_by(executor: &Executor) -> Option<String> {
    let stats = executor.stats();
    let workers: usize = stats.per_netns.iter().map(|netns| netns.workers).sum();
    let rung: usize = stats.per_netns.iter().map(|netns| netns.rung).sum();
    match rung {
        _ if workers == 0 => None,
        0 => Some("futex".into()),
        _ if rung == workers => Some("bell".into()),
        _ => Some(format!("bell ({rung} of {workers})")),
    }
}

const REFUSED: &str = "a worker was started when the bench was set up";

/// By namespace: each call finds the worker through the handle.
struct ByNetns {
    executor: Executor,
    netns: Netns,
    /// Keeps the worker resident between turns.
    _resident: Pinned,
}

fn by_netns(setup: &Setup<'_>) -> Result<ByNetns> {
    Ok(ByNetns {
        executor: setup.executor.clone(),
        netns: setup.netns.clone(),
        _resident: setup.executor.pin(setup.netns)?,
    })
}

pub(super) fn executor(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(by_netns(setup)?)))
}

impl Ship for ByNetns {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.executor.run(&self.netns, f).expect(REFUSED)
    }
}

impl Post for ByNetns {
    fn post(&self, f: impl FnOnce() + Send + 'static) {
        drop(self.executor.spawn(&self.netns, f).expect(REFUSED));
    }
}

pub(super) fn flood(setup: &Setup<'_>) -> Result<Box<dyn Flood>> {
    Ok(Box::new(Poster(by_netns(setup)?)))
}

/// Many at a time.
struct InBatches(ByNetns);

pub(super) fn batches(setup: &Setup<'_>) -> Result<Box<dyn Flood>> {
    Ok(Box::new(Poster(InBatches(by_netns(setup)?))))
}

impl Post for InBatches {
    fn post(&self, f: impl FnOnce() + Send + 'static) {
        self.0.post(f);
    }

    fn post_all(&self, mut jobs: impl Iterator<Item = impl FnOnce() + Send + 'static>) {
        let ByNetns {
            executor, netns, ..
        } = &self.0;
        let mut more = true;
        while more {
            let batch = jobs.by_ref().take(64);
            more = !executor
                .spawn_batch(netns, batch)
                .expect(REFUSED)
                .is_empty();
        }
    }
}

/// By a handle that already knows the worker.
struct ByPin(Pinned);

pub(super) fn pinned(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(ByPin(setup.executor.pin(setup.netns)?))))
}

impl Ship for ByPin {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.0.run(f).expect(REFUSED)
    }
}

/// As a task, waited for through its handle.
struct ByTask(Pinned);

pub(super) fn spawn_join(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Shipper(ByTask(setup.executor.pin(setup.netns)?))))
}

impl Ship for ByTask {
    fn ship<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.0.spawn(f).and_then(|task| task.join()).expect(REFUSED)
    }
}

/// The closure writes to the caller's stack, so a second cache line moves.
struct Borrowing(Pinned);

pub(super) fn borrowed(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Borrowing(setup.executor.pin(setup.netns)?)))
}

impl Peer for Borrowing {
    fn repeat(&self, work: Work, times: u32) {
        match work {
            Work::Empty => {
                let mut numbers = [0_u32; 32];
                for n in 0..times {
                    self.0
                        .run(|| numbers[7] = n.wrapping_add(1))
                        .expect(REFUSED);
                    assert_eq!(numbers[7], n.wrapping_add(1));
                }
            }
            Work::Socket => {
                let mut socket = None;
                for _ in 0..times {
                    self.0.run(|| socket = Some(open_socket())).expect(REFUSED);
                    socket = None;
                }
            }
        }
    }

    fn netns_inode(&self) -> Option<u64> {
        Some(self.0.run(own_netns_inode).expect(REFUSED))
    }
}
