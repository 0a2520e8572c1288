//! What a stock has on hand: sockets, and when they are to be closed. No user code is
//! here, so that every thread may empty it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use nix::sys::resource::{Resource, getrlimit};

use crate::executor::spare::{GiveUp, Spare};
use crate::sys;

/// For how long no more sockets of a kind are made after one could not be.
const REST: Duration = Duration::from_secs(1);

/// Sockets of all kinds of one stock.
pub(super) struct Shelf {
    bins: Box<[Bin]>,
    /// It is filled again when a kind has this many or fewer.
    low: usize,
    /// Set once: nothing is put here any more.
    closed: AtomicBool,
    /// Whether a job that fills it is on its way, or runs; and whether more was wanted
    /// meanwhile, which it may have come too late for.
    refill: AtomicU8,
    /// A socket was wanted since the keeper last looked.
    used: AtomicBool,
    /// The keeper looks after it.
    pub(super) kept: AtomicBool,
}

/// Sockets of one kind.
struct Bin {
    sockets: ArrayQueue<OwnedFd>,
    /// In the nanoseconds of [`now`].
    rests_until: AtomicU64,
}

impl Shelf {
    pub(super) fn new(kinds: usize, low: usize, high: usize) -> Shelf {
        let bin = |_| Bin {
            sockets: ArrayQueue::new(high),
            rests_until: AtomicU64::new(0),
        };
        Shelf {
            bins: (0..kinds).map(bin).collect(),
            low,
            closed: AtomicBool::new(false),
            refill: AtomicU8::new(NONE),
            used: AtomicBool::new(false),
            kept: AtomicBool::new(false),
        }
    }

    /// Takes a socket that was never used.
    #[inline]
    pub(super) fn take(&self, kind: usize) -> Option<OwnedFd> {
        // Mostly set already: a line that is read by many is better not written.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        let socket = self.bins[kind].sockets.pop();
        if socket.is_some() {
            TOTAL.fetch_sub(1, Ordering::Relaxed);
        }
        socket
    }

    /// How many there are of a kind.
    pub(super) fn count(&self, kind: usize) -> usize {
        self.bins[kind].sockets.len()
    }

    /// Whether it is time to make more of a kind.
    #[inline]
    pub(super) fn is_low(&self, kind: usize) -> bool {
        let bin = &self.bins[kind];
        let is_low = bin.sockets.len() <= self.low && !self.is_closed();
        // A refill that finds no room in the process would be a trip in vain.
        is_low && total() < limit() && !bin.rests()
    }

    /// Whether there is room for one more of a kind.
    pub(super) fn has_room(&self, kind: usize) -> bool {
        let bin = &self.bins[kind];
        !self.is_closed() && !bin.sockets.is_full() && !bin.rests()
    }

    /// Puts a socket there; drops it when there is no room, here or in the process, and
    /// tells whether there was.
    pub(super) fn put(&self, kind: usize, socket: OwnedFd) -> bool {
        if TOTAL.fetch_add(1, Ordering::Relaxed) >= limit() {
            TOTAL.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        if let Err(socket) = self.bins[kind].sockets.push(socket) {
            TOTAL.fetch_sub(1, Ordering::Relaxed);
            drop(socket);
            return false;
        }
        // Between the push and the look; the other half is in `close`.
        fence(Ordering::SeqCst);
        if self.is_closed() {
            self.empty();
        }
        true
    }

    /// Has no more of a kind made for a while, since one could not be.
    pub(super) fn rest(&self, kind: usize) {
        let until = now().saturating_add(REST.as_nanos() as u64);
        self.bins[kind].rests_until.store(until, Ordering::Relaxed);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Closes what is there, and has nothing put there any more.
    pub(super) fn close(&self) -> usize {
        self.closed.store(true, Ordering::Relaxed);
        // Between saying so and emptying; the other half is in `put`.
        fence(Ordering::SeqCst);
        self.empty()
    }

    /// Closes what is there; tells how many there were.
    pub(super) fn empty(&self) -> usize {
        let emptied = self.bins.iter().map(|bin| {
            // No more than were there: a job may be putting others behind them.
            let most = bin.sockets.capacity();
            let sockets = std::iter::from_fn(|| bin.sockets.pop()).take(most);
            sockets.map(drop).count()
        });
        let count = emptied.sum();
        TOTAL.fetch_sub(count, Ordering::Relaxed);
        count
    }

    /// Whether a socket was wanted since this was last asked.
    pub(super) fn was_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// Begins a refill, unless there is one, which is told.
    pub(super) fn begin_refill(&self) -> bool {
        if self.refill.load(Ordering::Relaxed) == WANTED {
            return false;
        }
        // Acquire and release on both sides: what one refill has put there the next sees.
        let before = self
            .refill
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |refill| {
                Some(if refill == NONE { UNDER_WAY } else { WANTED })
            });
        before == Ok(NONE)
    }

    /// Ends a refill; tells whether it takes another one.
    pub(super) fn end_refill(&self) -> bool {
        let wanted = self.refill.swap(NONE, Ordering::AcqRel) == WANTED;
        wanted && (0..self.bins.len()).any(|kind| self.is_low(kind))
    }
}

/// States of a refill.
const NONE: u8 = 0;
const UNDER_WAY: u8 = 1;
/// Under way, and one more is wanted.
const WANTED: u8 = 2;

impl Bin {
    fn rests(&self) -> bool {
        let until = self.rests_until.load(Ordering::Relaxed);
        until != 0 && now() < until
    }
}

impl Spare for Shelf {
    fn give_up(&self, why: GiveUp) -> usize {
        match why {
            GiveUp::Retired => self.close(),
            GiveUp::RunOut => {
                for kind in 0..self.bins.len() {
                    self.rest(kind);
                }
                self.empty()
            }
        }
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.empty();
    }
}

fn now() -> u64 {
    sys::time::monotonic(false)
}

/// How many sockets all stocks of the process have.
static TOTAL: AtomicUsize = AtomicUsize::new(0);
/// How many they may have; [`UNSET`] until it is asked for.
static LIMIT: AtomicUsize = AtomicUsize::new(UNSET);
const UNSET: usize = usize::MAX;

pub(super) fn total() -> usize {
    TOTAL.load(Ordering::Relaxed)
}

pub(super) fn set_limit(sockets: usize) {
    LIMIT.store(sockets.min(UNSET - 1), Ordering::Relaxed);
}

pub(super) fn limit() -> usize {
    match LIMIT.load(Ordering::Relaxed) {
        UNSET => {
            let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
            let limit = usize::try_from(files / 4).unwrap_or(UNSET - 1);
            let _ = LIMIT.compare_exchange(UNSET, limit, Ordering::Relaxed, Ordering::Relaxed);
            LIMIT.load(Ordering::Relaxed)
        }
        limit => limit,
    }
}
