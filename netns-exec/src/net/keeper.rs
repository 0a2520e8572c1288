//! The thread that empties stocks which no caller has taken from for a while.
//!
//! One serves the process. It is there while a stock with an idle time has something in
//! it, looks at each a few times in that time, and sleeps in between.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::shelf::Shelf;
use crate::home::{self, Home};

/// How often it looks at a shelf in its idle time: so much is an idle time, and at most
/// a part more.
const LOOKS: u32 = 4;

static KEEPER: Keeper = Keeper {
    state: Mutex::new(State {
        shelves: Vec::new(),
        runs: false,
    }),
    changed: Condvar::new(),
};

struct Keeper {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    shelves: Vec<Kept>,
    /// Its thread is there, or about to be.
    runs: bool,
}

struct Kept {
    shelf: Weak<Shelf>,
    every: Duration,
    next: Instant,
    /// How many looks in a row have found it unused.
    unused: u32,
}

/// Has a shelf that was filled emptied when nothing is taken from it for `idle`. `false`
/// when there is no thread for that.
pub(super) fn keep(shelf: &Arc<Shelf>, idle: Duration) -> bool {
    if shelf.kept.swap(true, Ordering::Relaxed) {
        return true;
    }
    let every = (idle / LOOKS).max(Duration::from_millis(1));
    let Some(next) = Instant::now().checked_add(every) else {
        // A time that is out of range is one that never comes.
        return true;
    };
    let starts = {
        let mut state = KEEPER.state.lock();
        // After it was closed it is forgotten, with this lock.
        if shelf.is_closed() {
            return true;
        }
        state.shelves.push(Kept {
            shelf: Arc::downgrade(shelf),
            every,
            next,
            unused: 0,
        });
        !std::mem::replace(&mut state.runs, true)
    };
    KEEPER.changed.notify_one();
    if starts && !start() {
        let mut state = KEEPER.state.lock();
        state.runs = false;
        for kept in std::mem::take(&mut state.shelves) {
            if let Some(shelf) = kept.shelf.upgrade() {
                shelf.kept.store(false, Ordering::Relaxed);
            }
        }
        return false;
    }
    true
}

/// Has a shelf that is closed kept no longer.
pub(super) fn forget(shelf: &Arc<Shelf>) {
    let mut state = KEEPER.state.lock();
    (state.shelves).retain(|kept| !std::ptr::eq(kept.shelf.as_ptr(), Arc::as_ptr(shelf)));
    drop(state);
    // Without any it ends.
    KEEPER.changed.notify_one();
}

fn start() -> bool {
    const STACK: usize = 128 * 1024;
    let spawn = |home: &Home| {
        home.spawn_thread("netns-stocks".to_owned(), Some(STACK), || {
            home::forbid_waiting();
            KEEPER.serve();
        })
    };
    // Never joined: it ends by itself, and holds nothing.
    Home::get().is_ok_and(|home| spawn(home).is_ok())
}

impl Keeper {
    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            let idle = state.look(Instant::now());
            if !idle.is_empty() {
                drop(state);
                for shelf in idle {
                    shelf.empty();
                }
                state = self.state.lock();
                continue;
            }
            match state.shelves.iter().map(|kept| kept.next).min() {
                Some(next) => drop(self.changed.wait_until(&mut state, next)),
                None => {
                    state.runs = false;
                    return;
                }
            }
        }
    }
}

impl State {
    /// Looks at each shelf whose time has come. Returns those that are idle, and keeps
    /// them no longer.
    fn look(&mut self, now: Instant) -> Vec<Arc<Shelf>> {
        let mut idle = Vec::new();
        self.shelves.retain_mut(|kept| {
            if now < kept.next {
                return true;
            }
            let Some(shelf) = kept.shelf.upgrade().filter(|shelf| !shelf.is_closed()) else {
                return false;
            };
            kept.unused = match shelf.was_used() {
                true => 0,
                false => kept.unused + 1,
            };
            kept.next = now + kept.every;
            if kept.unused < LOOKS {
                return true;
            }
            // Before it is emptied: what is put there from now on begins a new time.
            shelf.kept.store(false, Ordering::Relaxed);
            idle.push(shelf);
            false
        });
        idle
    }
}
