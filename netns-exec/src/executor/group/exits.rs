//! How the workers of a group go: for being idle, because they are told to or asked to
//! make room, or spoiled; what holds them; and the end of the group.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::{Group, Leaving, Member, Role, State, Todo};
use crate::handoff::lane::{Lane, Serving};
use crate::netns::Netns;
use crate::netns::watch::Subscription;
use crate::sync::{Ordering, fence};

impl Group {
    /// Whether a worker with nothing to do should not wait for more.
    pub(crate) fn wants_leave(&self, role: Role) -> bool {
        let asked =
            || self.asked.load(Ordering::Relaxed) > 0 || self.pool.capacity.wants_room_of(self.id);
        self.is_retiring() || (!self.is_held(role) && asked())
    }

    /// A pin holds the lanes' workers and not those that stood in for them.
    fn is_held(&self, role: Role) -> bool {
        matches!(role, Role::Lane(_)) && self.is_pinned()
    }

    /// Closes the lane of a worker that is about to [`leave`](Group::leave); `false`
    /// when a call came first, which a spoiled worker gives back to its caller.
    ///
    /// No lock is held: the caller has claimed the lane, and may have to be given a
    /// CPU before it goes on.
    pub(crate) fn close_lane(&self, lane: &mut Serving<'_>, why: Leaving) -> bool {
        while !lane.close() {
            if why != Leaving::Spoiled {
                return false;
            }
            lane.refuse();
        }
        true
    }

    /// Takes the calling worker, whose lane is closed, off the group; `None` when
    /// there is work for it after all, which a spoiled one leaves to others.
    pub(in crate::executor) fn leave(
        &self,
        member: &Member,
        role: Role,
        why: Leaving,
    ) -> Option<Todo> {
        let spoiled = why == Leaving::Spoiled;
        let mut state = self.state.lock();
        self.runnable.remove();
        // Between saying so and looking; the other half is in `notify`.
        fence(Ordering::SeqCst);
        // Pinned since this worker looked: a future that was admitted, which pins under this
        // lock, found it here and relies on it.
        let is_held = self.is_held(role) && !self.is_retiring();
        if !spoiled && (!self.queue.is_empty() || is_held || !self.is_still_told(&state, why)) {
            self.runnable.add();
            return None;
        }
        state.live.retain(|live| live.number != member.number);
        self.alive.fetch_sub(1, Ordering::Relaxed);
        state.done += member.counters.done();
        state.panicked += member.counters.panicked();
        if let Role::Lane(index) = role {
            state.taken[index] = None;
            state.threads[index] = 0;
        }
        // The room first: a caller that finds neither would ask another worker.
        self.pool.capacity.release();
        state.asked.pop_front();
        self.note_asked(&state);
        let mut todo = Todo::Nothing;
        // One that is not spoiled leaves no future behind: they hold it, or have been
        // closed, and are in the queue or with another worker.
        if !self.queue.is_empty() || spoiled && self.futures.len() > 0 {
            if self.runnable.count() == 0 {
                self.pool.capacity.reserve_anyway();
                todo = Todo::Start(self.begin_start(&mut state, role, true));
            } else if !self.lanes.iter().any(Lane::wake) {
                // The sender may have relied on us, and no sibling was asleep.
                todo = self.grow_locked(&mut state);
            }
        }
        self.note_change();
        Some(todo)
    }

    /// What a worker is, unless it has left.
    pub(in crate::executor) fn role_of(&self, member: &Member) -> Option<Role> {
        let state = self.state.lock();
        let number = member.number;
        let lane = || state.taken.iter().position(|taken| *taken == Some(number));
        let is_live = state.live.iter().any(|live| live.number == number);
        is_live.then(|| lane().map_or(Role::Spare, Role::Lane))
    }

    /// Whether a worker that leaves because it was told to is still to: it may have been
    /// another one's turn.
    fn is_still_told(&self, state: &State, why: Leaving) -> bool {
        why != Leaving::Told
            || self.is_retiring()
            || !state.asked.is_empty()
            || self.pool.capacity.give_way(self.id)
    }

    fn note_asked(&self, state: &State) {
        let asked = state.asked.len().try_into().unwrap_or(u32::MAX);
        self.asked.store(asked, Ordering::Relaxed);
    }

    /// Lets go of the namespace when no worker is left, once; tells whether it did,
    /// with what is to be dropped outside the locks.
    #[must_use]
    pub(in crate::executor) fn die_if_empty(self: &Arc<Self>) -> Option<Remains> {
        self.die(&mut self.state.lock())
    }

    /// The same, for a caller that has got no worker. Not while there is something in the
    /// queue: the thread that sees to that may have a worker born yet.
    #[must_use]
    pub(in crate::executor) fn die_if_unused(self: &Arc<Self>) -> Option<Remains> {
        let mut state = self.state.lock();
        if !self.queue.is_empty() {
            return None;
        }
        self.die(&mut state)
    }

    pub(super) fn die(self: &Arc<Self>, state: &mut State) -> Option<Remains> {
        if state.dead || state.has_workers() || state.searches > 0 {
            return None;
        }
        state.dead = true;
        state.has_remains = true;
        // A thread that remembers this group sees that it must look again.
        self.retiring.store(true, Ordering::SeqCst);
        // Moved: the group is among those that leave for a moment longer.
        let (done, panicked) = (mem::take(&mut state.done), mem::take(&mut state.panicked));
        self.pool.add_totals(done, panicked);
        Some(Remains {
            group: Arc::clone(self),
            held: Some((state.netns.take(), state.watched.take())),
        })
    }

    /// Has every worker leave as soon as it has nothing to do.
    ///
    /// Tells whether there is any; if not, there never will be.
    pub(crate) fn retire(&self) -> bool {
        self.state.lock().is_closed = true;
        // Before a worker sees that it is to leave: it does once its queue is empty.
        self.close_futures();
        self.retiring.store(true, Ordering::SeqCst);
        self.wake_all();
        // A thread that seeks a worker may wait for room.
        self.pool.capacity.note_change();
        // After the store: a caller that starts the first worker looks at it, locked.
        self.state.lock().has_workers()
    }

    /// Waits until no worker is left, and nothing that holds the namespace; `false` when `deadline` came first.
    pub(crate) fn wait_empty(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        while !state.is_empty() {
            match deadline {
                None => self.changed.wait(&mut state),
                Some(deadline) => {
                    if self.changed.wait_until(&mut state, deadline).timed_out() {
                        return false;
                    }
                }
            }
        }
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().is_empty()
    }

    /// Asks one worker to make room for another namespace's, if one idles and no pin
    /// holds it; returns the number by which that can be [taken back](Group::take_back).
    pub(in crate::executor) fn ask_one(&self) -> Option<u64> {
        let number = {
            let mut state = self.state.lock();
            if !self.idles(&state) || state.asked.len() >= state.live.len() {
                return None;
            }
            let number = state.next_ask;
            state.next_ask += 1;
            state.asked.push_back(number);
            self.note_asked(&state);
            if state.spares_parked > state.called {
                self.spare_wanted.notify_one();
                return Some(number);
            }
            number
        };
        fence(Ordering::SeqCst);
        // One that is awake looks before it parks.
        self.lanes.iter().any(Lane::wake);
        Some(number)
    }

    /// Whether there is a worker that could make room at this moment.
    fn idles(&self, state: &State) -> bool {
        let idles = |lane: &Lane| lane.is_parked() || lane.is_awake_and_free();
        state.spares_parked > state.called || (!self.is_pinned() && self.lanes.iter().any(idles))
    }

    /// Whether a worker has yet to leave for the caller that got this number, and there
    /// is one that will soon.
    pub(in crate::executor) fn will_hear(&self, number: u64) -> bool {
        let state = self.state.lock();
        state.asked.contains(&number) && self.idles(&state)
    }

    /// Asks no more for what [`ask_one`](Group::ask_one) has; nothing when a worker has left for it.
    pub(in crate::executor) fn take_back(&self, number: u64) {
        let mut state = self.state.lock();
        state.asked.retain(|asked| *asked != number);
        self.note_asked(&state);
    }

    pub(in crate::executor) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn pin(&self) {
        self.pins.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells whether its workers are held no more by anything that it knows of.
    pub(crate) fn unpin(&self) -> bool {
        if self.pins.fetch_sub(1, Ordering::SeqCst) > 1 {
            return false;
        }
        // They sleep without a limit; now there is one.
        self.wake_all();
        // The other half is in `note_unused`.
        self.unused.load(Ordering::SeqCst)
    }

    /// Notes that no user has a handle to the namespace; tells whether no pin holds the
    /// workers either.
    pub(in crate::executor) fn note_unused(&self) -> bool {
        self.unused.store(true, Ordering::SeqCst);
        self.pins.load(Ordering::SeqCst) == 0
    }

    /// Whether the deletion watch has seen the namespace lose its last name, and the
    /// workers are those of later calls.
    pub(in crate::executor) fn has_lost_name(&self) -> bool {
        let state = self.state.lock();
        state.netns.as_ref().is_some_and(Netns::lost_name)
    }

    /// Has every worker look around.
    pub(super) fn wake_all(&self) {
        fence(Ordering::SeqCst);
        for lane in &self.lanes {
            lane.wake();
        }
        // Locked, so that a spare either sees the change or is waiting.
        let _state = self.state.lock();
        self.spare_wanted.notify_all();
    }
}

/// What a dead group has left, which is not empty before this is dropped. That takes
/// locks of the deletion watch.
pub(in crate::executor) struct Remains {
    group: Arc<Group>,
    held: Option<(Option<Netns>, Option<Subscription>)>,
}

impl Drop for Remains {
    fn drop(&mut self) {
        drop(self.held.take());
        self.group.state.lock().has_remains = false;
        self.group.note_change();
    }
}
