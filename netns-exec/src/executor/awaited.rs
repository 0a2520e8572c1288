//! What submits and blocks, as futures: for a worker to be born, for room under
//! `max_workers` and in a queue, for threads to end.
//!
//! Nothing here blocks the thread that polls, and nothing is held between two polls but
//! a place in line: what is dropped half way has taken no room, and its closure is still
//! its own. A birth goes on without the future that asked for it.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::birth;
use super::current::{self, Polled};
use super::group::{First, Group, Todo};
use super::registry::{Registry, Retired, Room, RoomWait};
use super::submit::{self, Destination};
use super::wakers::{Ticket, Wakers};
use crate::error::{Error, Result};
use crate::handoff::handle::TaskHandle;
use crate::handoff::task;
use crate::home::aside::{self, Errand, Lease};
use crate::netns::NetnsId;
use crate::sys;

/// What a future has where it waits.
#[derive(Default)]
struct Line {
    ticket: Option<Ticket>,
    /// Of a wait in a job, see [`Polled`].
    mark: u64,
}

impl Line {
    fn ticket(&mut self) -> Result<&Ticket> {
        match &mut self.ticket {
            Some(ticket) => Ok(ticket),
            none => Ok(none.insert(Ticket::new()?)),
        }
    }

    /// Waits no more where it may have been registered.
    fn leave(&self, tasks: &Wakers) {
        // In a copy of the process the locks may be taken for ever.
        if let Some(ticket) = &self.ticket
            && !sys::fork::is_copy()
        {
            tasks.remove(ticket);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        Polled(&mut self.mark).no_more();
    }
}

/// Finds the group of a namespace that has a worker, or sees to it that it has one: the
/// counterpart of [`submit::started`].
pub(crate) struct Served<D> {
    registry: Arc<Registry>,
    netns: D,
    /// Until it is served or a birth begins, which buries it when it fails.
    group: Option<Arc<Group>>,
    step: Step,
    /// Room has been made once for a worker that could not be born.
    tried: bool,
    waiting: Option<RoomWait>,
    line: Line,
}

enum Step {
    Look,
    /// For a birth that has begun when there were so many failures.
    Birth(Arc<Group>, u64),
    /// For room to be made, after this failure.
    Making(Errand<bool>, Error),
}

impl<D: Destination> Served<D> {
    pub(crate) fn new(registry: &Arc<Registry>, known: Option<Arc<Group>>, netns: D) -> Self {
        Served {
            registry: Arc::clone(registry),
            netns,
            group: known,
            step: Step::Look,
            tried: false,
            waiting: None,
            line: Line::default(),
        }
    }

    fn poll_group(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arc<Group>>> {
        loop {
            current::check_may_wait()?;
            match mem::replace(&mut self.step, Step::Look) {
                Step::Look => match self.look(cx)? {
                    Poll::Ready(Some(group)) => return Poll::Ready(Ok(group)),
                    Poll::Ready(None) => {}
                    Poll::Pending => return Poll::Pending,
                },
                Step::Birth(group, failures) => {
                    group.tasks().register(self.line.ticket()?, cx.waker());
                    let first = group.first();
                    if matches!(first, First::Coming) && group.failures() == failures {
                        self.step = Step::Birth(group, failures);
                        return Poll::Pending;
                    }
                    self.line.leave(group.tasks());
                    match group.failure_since(failures) {
                        Some(error) => self.after_failure(error)?,
                        // Even when it has left again by now: the queue finds that out.
                        None => return Poll::Ready(Ok(group)),
                    }
                }
                Step::Making(mut errand, error) => match Pin::new(&mut errand).poll(cx) {
                    Poll::Pending => {
                        self.step = Step::Making(errand, error);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(true)) => {}
                    Poll::Ready(_) => return Poll::Ready(Err(error)),
                },
            }
        }
    }

    /// Finds the group, and begins a birth where there is none. Ready without a group when
    /// the next step has been set or this one has to be done again.
    fn look(&mut self, cx: &mut Context<'_>) -> Result<Poll<Option<Arc<Group>>>> {
        let registry = &self.registry;
        let group = match self.group.take() {
            Some(group) => group,
            None => registry.group(self.netns.id(), self.netns.label())?,
        };
        // First: a failure that comes later is one of the birth that is waited for.
        let failures = group.failures();
        let first = group.first();
        if !matches!(first, First::Wanted) {
            self.waiting = None;
        }
        match first {
            First::Served => Ok(Poll::Ready(Some(group))),
            First::Dead => Ok(Poll::Ready(None)),
            First::Coming => {
                self.step = Step::Birth(group, failures);
                Ok(Poll::Ready(None))
            }
            First::Wanted => {
                self.group = Some(Arc::clone(&group));
                let handle = match self.netns.netns() {
                    Ok(handle) => handle,
                    Err(error) => return self.after_failure(error).map(|()| Poll::Ready(None)),
                };
                // Before room is taken, which is given back with the worker only.
                let lease = Lease::new().map_err(no_lease)?;
                if self.reserve(cx)?.is_pending() {
                    return Ok(Poll::Pending);
                }
                self.group = None;
                if let Ok(start) = group.begin_first(handle) {
                    birth::start_aside(&self.registry, &group, start, lease);
                    self.step = Step::Birth(group, failures);
                }
                Ok(Poll::Ready(None))
            }
        }
    }

    /// Takes room for a worker, as [`Registry::reserve`] does.
    fn reserve(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>> {
        let capacity = &self.registry.pool().capacity;
        // The caller of this thread's job may hold the room that it needs.
        if current::is_worker() {
            capacity.reserve_anyway();
            return Ok(Poll::Ready(()));
        }
        capacity.tasks().register(self.line.ticket()?, cx.waker());
        if self.registry.try_reserve()? {
            self.line.leave(capacity.tasks());
            self.waiting = None;
            return Ok(Poll::Ready(()));
        }
        (self.registry).wait_for_room(self.netns.id(), &mut self.waiting);
        Ok(Poll::Pending)
    }

    fn after_failure(&mut self, error: Error) -> Result<()> {
        if mem::replace(&mut self.tried, true) || !birth::has_run_out(&error) {
            return Err(error);
        }
        let registry = Arc::clone(&self.registry);
        let cause = error.duplicate();
        let Ok(errand) = aside::errand(move || birth::make_room(&registry, &cause)) else {
            return Err(error);
        };
        self.step = Step::Making(errand, error);
        Ok(())
    }
}

impl<D: Destination + Unpin> Future for Served<D> {
    type Output = Result<Arc<Group>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = self.poll_group(cx);
        let mark = Polled(&mut self.line.mark);
        match polled {
            Poll::Pending => mark.in_vain(),
            Poll::Ready(_) => mark.no_more(),
        }
        polled
    }
}

impl<D> Drop for Served<D> {
    fn drop(&mut self) {
        if sys::fork::is_copy() {
            // Its locks may be taken for ever.
            mem::forget(self.waiting.take());
        } else if let Some(group) = self.group.take() {
            self.registry.bury_unused(&group);
        }
        self.line.leave(self.registry.pool().capacity.tasks());
        if let Step::Birth(group, _) = &self.step {
            self.line.leave(group.tasks());
        }
    }
}

fn no_lease(cause: std::io::Error) -> Error {
    Error::kernel("cannot start the thread that sees to births", cause)
}

/// Makes `f` a job in the queue of `group`, once there is room.
pub(crate) async fn ship<F, T>(
    registry: &Arc<Registry>,
    group: Arc<Group>,
    netns: impl Destination + Send + 'static,
    f: F,
) -> Result<TaskHandle<'static, T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let mut place = Place {
        group: &group,
        line: Line::default(),
        is_used: false,
    };
    let mut f = Some(f);
    let task = poll_fn(|cx| {
        let taken = f.take().expect("polled until it is ready");
        match place.poll_ship(cx, taken) {
            Ok(task) => Poll::Ready(Ok(task)),
            Err((Some(error), _)) => Poll::Ready(Err(error)),
            Err((None, back)) => {
                f = Some(back);
                Poll::Pending
            }
        }
    })
    .await?;
    drop(place);
    notify(registry, &group, netns);
    Ok(task)
}

/// Makes `f` a job in the queue of `group`, which has a worker, and waits for nothing; gives
/// `f` back when there is no room.
pub(crate) fn ship_now<F, T>(
    registry: &Arc<Registry>,
    group: &Arc<Group>,
    netns: impl Destination + Send + 'static,
    f: F,
) -> Result<TaskHandle<'static, T>, F>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let task = task::spawn(f, |job| group.queue.try_push(job).map_err(|job| (job, ())));
    let task = task.map_err(|((), f)| f)?;
    notify(registry, group, netns);
    Ok(task)
}

/// A place in line for room in a queue.
struct Place<'a> {
    group: &'a Arc<Group>,
    line: Line,
    /// The room that it was woken for, if it was.
    is_used: bool,
}

impl Place<'_> {
    /// Gives the closure back, with an error, or without one when there is no room.
    fn poll_ship<F, T>(
        &mut self,
        cx: &mut Context<'_>,
        f: F,
    ) -> Result<TaskHandle<'static, T>, (Option<Error>, F)>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        if let Err(error) = current::check_may_wait() {
            return Err((Some(error), f));
        }
        let queue = &self.group.queue;
        let ship = |f| task::spawn(f, |job| queue.try_push(job).map_err(|job| (job, ())));
        let shipped = ship(f).or_else(|((), f)| {
            match self.line.ticket() {
                Ok(ticket) => queue.wait_for_room(ticket, cx.waker()),
                Err(error) => return Err((Some(error), f)),
            }
            ship(f).map_err(|((), f)| (None, f))
        });
        match &shipped {
            Ok(_) => self.is_used = true,
            Err((None, _)) => {
                Polled(&mut self.line.mark).in_vain();
                self.group.tell_if_stuck();
            }
            Err(_) => {}
        }
        shipped
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = &self.line.ticket
            && !sys::fork::is_copy()
        {
            self.group.queue.wait_no_more(ticket, self.is_used);
        }
    }
}

/// Sees to it that what was just pushed to `group` is served, as `submit` does, and waits
/// for nothing.
fn notify(registry: &Arc<Registry>, group: &Arc<Group>, netns: impl Destination + Send + 'static) {
    let todo = match group.notify() {
        Todo::Start(start) if start.is_needed => match Lease::new() {
            Ok(lease) => return birth::start_aside(registry, group, start, lease),
            // No thread for that, and so none for a worker: it is no wait to speak of.
            Err(_) => Todo::Start(start),
        },
        todo => todo,
    };
    let orphans = birth::carry_out(registry, group, todo);
    group.tell_if_stuck();
    if !orphans.is_empty() {
        let registry = Arc::clone(registry);
        // Where it cannot be done, they are dropped, which tells their owners.
        let _ = aside::errand(move || submit::reship(&registry, &netns, Room::Awaited, orphans));
    }
}

/// Waits until what served a namespace has nothing left to do but to end.
pub(crate) struct Ended {
    registry: Arc<Registry>,
    netns: NetnsId,
    retired: Retired,
    line: Line,
}

impl Ended {
    pub(crate) fn new(registry: &Arc<Registry>, netns: NetnsId, retired: Retired) -> Ended {
        Ended {
            registry: Arc::clone(registry),
            netns,
            retired,
            line: Line::default(),
        }
    }
}

impl Future for Ended {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        current::check_may_wait()?;
        let Ended {
            registry,
            netns,
            retired,
            line,
        } = &mut *self;
        while let Some(group) = retired.groups.last() {
            group.tasks().register(line.ticket()?, cx.waker());
            if !group.is_empty() {
                Polled(&mut line.mark).in_vain();
                return Poll::Pending;
            }
            line.leave(group.tasks());
            retired.groups.pop();
        }
        // A stop hook may be running, or a thread beside the pool.
        let threads = &registry.pool().threads;
        threads.tasks().register(line.ticket()?, cx.waker());
        if !threads.are_at_end(*netns, retired.end) {
            Polled(&mut line.mark).in_vain();
            return Poll::Pending;
        }
        Polled(&mut line.mark).no_more();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(group) = self.retired.groups.last() {
            self.line.leave(group.tasks());
        }
        self.line.leave(self.registry.pool().threads.tasks());
    }
}
