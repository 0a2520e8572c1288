//! The futures of a group, from admission until they are over.
//!
//! A future holds its group's workers as a pin does: they do not end for being idle, so
//! that the thread that wakes it has never to wait for a birth. What ends workers for
//! another reason ends the futures first: a group that retires closes all it has, which
//! puts them in its queue, and its workers drop them there before they leave. A worker
//! that is spoiled leaves them to a successor; those that are bound to its thread it
//! drops itself.

use std::sync::Arc;

use super::exits::Remains;
use super::{Group, Role, State, Todo};
use crate::error::{Error, Result};
use crate::handoff::future::Task;
use crate::handoff::job::JobRef;
use crate::sync::{Mutex, Ordering, fence};

/// See the module.
#[derive(Default)]
pub(super) struct Futures {
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    tasks: Vec<Option<Arc<dyn Task>>>,
    /// Which of `tasks` are none.
    free: Vec<usize>,
}

impl Live {
    fn insert(&mut self, task: Arc<dyn Task>) -> usize {
        match self.free.pop() {
            Some(number) => {
                self.tasks[number] = Some(task);
                number
            }
            None => {
                self.tasks.push(Some(task));
                self.tasks.len() - 1
            }
        }
    }
}

impl Futures {
    fn all(&self) -> Vec<Arc<dyn Task>> {
        self.live.lock().tasks.iter().flatten().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        let live = self.live.lock();
        live.tasks.len() - live.free.len()
    }
}

/// A future that a group has taken.
#[must_use]
pub(crate) struct Admitted {
    /// What the group knows it by.
    pub(crate) number: usize,
    /// The group has no worker, and relies on the caller to have a thread that
    /// [seeks one](Group::search_found).
    pub(crate) seeks_worker: bool,
}

impl Group {
    /// Whether it serves futures that are bound to a thread.
    pub(crate) fn is_local(&self) -> bool {
        self.is_local
    }

    /// Has a spare that is parked serve the queue.
    pub(super) fn call_spare(&self, state: &mut State) {
        state.called += 1;
        self.runnable.add();
        self.spare_wanted.notify_one();
    }

    /// Takes a future in; gives it back when the group has died or is about to. Its first
    /// poll is in the queue then: `admitted` is called before that.
    pub(crate) fn admit(
        &self,
        task: Arc<dyn Task>,
        job: JobRef,
        admitted: impl FnOnce(&Admitted),
    ) -> Result<Admitted, JobRef> {
        let mut state = self.state.lock();
        if state.dead || state.is_closed {
            return Err(job);
        }
        let seeks_worker = !self.is_sure_of_worker(&state) && !state.is_sought;
        if seeks_worker {
            state.is_sought = true;
            state.searches += 1;
        }
        self.pin();
        let how = Admitted {
            number: self.futures.live.lock().insert(task),
            seeks_worker,
        };
        admitted(&how);
        // Under the lock: a worker that leaves looks at the queue under it.
        self.queue.push_ready(job);
        Ok(how)
    }

    /// The future that was admitted with this number is over. Tells what
    /// [`unpin`](Group::unpin) does.
    pub(in crate::executor) fn future_over(&self, number: usize) -> bool {
        let task = {
            let mut live = self.futures.live.lock();
            live.free.push(number);
            live.tasks[number].take()
        };
        drop(task);
        self.unpin()
    }

    /// Whether there is a worker, or one on its way that futures may rely on: when it fails,
    /// the thread that asked for it tells their owners. Of one that is not needed none does.
    fn is_sure_of_worker(&self, state: &State) -> bool {
        !state.live.is_empty() || self.runnable.count() > 0
    }

    /// Whether there is a worker, or one on its way.
    pub(crate) fn has_worker(&self) -> bool {
        let state = self.state.lock();
        self.is_sure_of_worker(&state) || state.is_sought
    }

    /// Ends the search with its outcome, and gives up all futures if that is an error.
    /// `false` when it goes on: the worker that was found has left again, and futures that
    /// came after that rely on the search.
    pub(in crate::executor) fn search_found(&self, found: &Result<()>) -> bool {
        {
            let mut state = self.state.lock();
            let is_left = found.is_ok() && !self.is_sure_of_worker(&state);
            if is_left && self.futures.len() > 0 {
                return false;
            }
            state.is_sought = false;
        }
        if let Err(why) = found {
            self.fail_futures(why);
        }
        true
    }

    /// The calling thread seeks no longer. As [`die_if_empty`](Group::die_if_empty).
    #[must_use]
    pub(in crate::executor) fn end_search(self: &Arc<Self>) -> Option<Remains> {
        let mut state = self.state.lock();
        state.searches -= 1;
        let remains = self.die(&mut state);
        drop(state);
        self.note_change();
        remains
    }

    /// Sees to it that a future that was just woken is polled, without waiting: neither
    /// for a birth, nor for the jobs that a group without workers would have others ship.
    pub(crate) fn notify_woken(&self) -> Todo {
        // As in `notify`.
        fence(Ordering::SeqCst);
        if self.runnable.count() > 0 {
            return self.call_worker();
        }
        let mut state = self.state.lock();
        if self.runnable.count() > 0 || self.queue.is_empty() || !state.has_workers() {
            return Todo::Nothing;
        }
        if state.spares_parked > state.called {
            self.call_spare(&mut state);
            return Todo::Nothing;
        }
        // One that is on its way looks at the queue first; a worker that comes back does
        // too. No spare polls futures that are bound to another thread.
        if state.starting > 0 || self.is_local {
            return Todo::Nothing;
        }
        self.pool.capacity.reserve_anyway();
        // No job relies on it, so that its birth is not waited for.
        Todo::Start(self.begin_start(&mut state, Role::Spare, false))
    }

    /// Has all futures dropped on the workers, which are about to leave.
    pub(super) fn close_futures(&self) {
        for task in self.futures.all() {
            task.close();
        }
    }

    /// Gives up all futures, when no worker has come or will come, with the reason.
    pub(crate) fn fail_futures(&self, why: &Error) {
        {
            let state = self.state.lock();
            if self.is_sure_of_worker(&state) || state.is_sought {
                return;
            }
        }
        for job in self.queue.take_futures() {
            job.abort(why.duplicate());
        }
        for task in self.futures.all() {
            task.fail(why.duplicate());
        }
    }

    /// What to do on a worker that leaves as it is spoiled, for the futures that it alone
    /// can drop.
    pub(crate) fn bound_futures(&self) -> Vec<Arc<dyn Task>> {
        if self.is_local {
            self.futures.all()
        } else {
            Vec::new()
        }
    }
}
