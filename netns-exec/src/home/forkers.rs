//! The threads that fork.
//!
//! To fork takes as long as the child needs to reach its program: a closure that it
//! runs before (`pre_exec`), or a slow disk. Meanwhile a forker waits, and nothing else
//! waits for it but the caller.
//!
//! A child with a parent-death signal (`PR_SET_PDEATHSIG`), which any program may ask
//! for at any time, gets it when the *thread* that forked it ends. So a forker stays for
//! as long as it has children. When it has none it ends, unless it is the only one that
//! is idle: that one stays, and what forks often has it ready.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::sync_channel;

use parking_lot::{Condvar, Mutex};

use super::{Home, Request, check_may_wait};
use crate::sys;

static FORKERS: Forkers = Forkers {
    state: Mutex::new(State {
        queue: VecDeque::new(),
        idle: 0,
    }),
    work: Condvar::new(),
};

struct Forkers {
    state: Mutex<State>,
    /// Wakes the forkers that are idle in turn, so that each looks at times whether it
    /// has children left.
    work: Condvar,
}

struct State {
    /// Never longer than there are forkers to serve it at once.
    queue: VecDeque<Request>,
    /// Forkers that wait for a request, those included that one was queued for.
    idle: usize,
}

impl Home {
    /// Runs `f`, which forks, on a forker, and returns what it returned; a panic in `f`
    /// goes on in the caller.
    ///
    /// # Errors
    ///
    /// `EAGAIN` without a thread to do it, `EDEADLK` where the caller must not wait.
    pub(crate) fn fork_by<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        check_may_wait()?;
        let (reply, answer) = sync_channel(1);
        let request = Box::new(move || {
            let _ = reply.send(catch_unwind(AssertUnwindSafe(f)));
        });
        FORKERS.dispatch(self, request)?;
        match answer.recv().expect("a forker answers every request") {
            Ok(value) => Ok(value),
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl Forkers {
    fn dispatch(&'static self, home: &Home, request: Request) -> io::Result<()> {
        const STACK: usize = 128 * 1024;
        let mut state = self.state.lock();
        if state.queue.len() < state.idle {
            state.queue.push_back(request);
            drop(state);
            self.work.notify_one();
            return Ok(());
        }
        drop(state);
        let serve = move || self.serve(request);
        let spawned = home.spawn_thread("netns-fork".to_owned(), Some(STACK), serve);
        spawned.map(drop)
    }

    fn serve(&self, first: Request) {
        let mut request = Some(first);
        while let Some(fork) = request {
            fork();
            request = self.next();
        }
    }

    /// Waits for a request; `None` when this forker is one too many.
    fn next(&self) -> Option<Request> {
        let mut has_children = sys::process::has_children_of_this_thread();
        let mut state = self.state.lock();
        loop {
            if let Some(request) = state.queue.pop_front() {
                return Some(request);
            }
            if !has_children && state.idle > 0 {
                return None;
            }
            state.idle += 1;
            self.work.wait(&mut state);
            state.idle -= 1;
            // Woken in vain: another forker came back just then.
            if has_children && state.queue.is_empty() {
                has_children = sys::process::has_children_of_this_thread();
            }
        }
    }
}
