//! How a future finds its workers, and how its wake-ups do.
//!
//! Spawning one never waits. When its group has a worker, or one on its way, the future
//! is put among those that are ready, and that is all. When not, a thread of its own seeks
//! the first worker, on behalf of all futures that come meanwhile, and tells their owners
//! if there can be none.

use std::cell::Cell;
use std::future::Future;
use std::mem;
use std::sync::{Arc, OnceLock};

use super::birth::carry_out;
use super::current;
use super::group::{Admitted, Group};
use super::registry::{Registry, Room};
use super::submit::{self, Destination};
use crate::error::{Error, Kind, Result};
use crate::handoff::future::{Scheduled, Scheduler, Unsent, draft, draft_local};
use crate::handoff::handle::TaskHandle;
use crate::handoff::job::JobRef;
use crate::home::Home;
use crate::netns::{Netns, NetnsId, WeakNetns};
use crate::sys;

/// The place of one future among those of a group.
struct Seat {
    registry: Arc<Registry>,
    /// The group that has admitted it, and its number there.
    admitted: OnceLock<(Arc<Group>, usize)>,
    /// The runtime that its spawner was in.
    #[cfg(feature = "tokio")]
    runtime: Option<tokio::runtime::Handle>,
}

impl Seat {
    fn new(registry: &Arc<Registry>) -> Seat {
        Seat {
            registry: Arc::clone(registry),
            admitted: OnceLock::new(),
            #[cfg(feature = "tokio")]
            runtime: tokio::runtime::Handle::try_current().ok(),
        }
    }

    fn group(&self) -> &Arc<Group> {
        let (group, _) = self.admitted.get().expect("admitted before it is polled");
        group
    }
}

impl Scheduler for Seat {
    fn schedule(&self, job: JobRef) {
        if sys::fork::is_copy() {
            // No worker is here, and locks may be held by threads that are not, either.
            return mem::forget(job);
        }
        self.group().queue.push_ready(job);
        call_worker(&self.registry, self.group());
    }

    fn put_back(&self, job: JobRef) {
        self.group().queue.push_ready(job);
    }

    fn surround(&self, waker: usize, f: &mut dyn FnMut()) {
        #[cfg(feature = "tokio")]
        let _entered = self.runtime.as_ref().map(|runtime| runtime.enter());
        current::polling(waker, || match &self.registry.pool().config.around {
            Some(around) => around.call(f),
            None => f(),
        });
    }

    fn is_served(&self) -> bool {
        (self.admitted.get()).is_some_and(|(group, _)| group.has_worker())
    }

    fn depends_on_this_thread(&self) -> bool {
        (self.admitted.get()).is_some_and(|(group, _)| {
            group.is_local()
                && current::with_current(|current| {
                    current.is_some_and(|current| Arc::ptr_eq(&current.group, group))
                })
        })
    }

    fn over(&self) {
        if let Some((group, number)) = self.admitted.get() {
            self.registry.future_over(group, *number);
        }
    }
}

/// Has a worker look at the futures that are ready. Waits for nothing.
fn call_worker(registry: &Arc<Registry>, group: &Arc<Group>) {
    let orphans = carry_out(registry, group, group.notify_woken());
    debug_assert!(orphans.is_empty(), "futures are not shipped elsewhere");
}

/// Has the workers of a namespace poll `future`, those of `known` if they still serve it.
///
/// What goes wrong is told to the handle.
pub(crate) fn spawn<F>(
    registry: &Arc<Registry>,
    known: Option<&Arc<Group>>,
    netns: &impl Destination,
    future: F,
) -> TaskHandle<'static, F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let find = || registry.group(netns.id(), netns.label());
    let draft = draft(future, || Seat::new(registry));
    send(registry, known, find, netns, draft)
}

/// Has one worker of a namespace make a future with `build`, and poll it.
///
/// What goes wrong is told to the handle.
pub(crate) fn spawn_local<B, F>(
    registry: &Arc<Registry>,
    netns: &impl Destination,
    build: B,
) -> TaskHandle<'static, F::Output>
where
    B: FnOnce() -> F + Send + 'static,
    F: Future + 'static,
    F::Output: Send + 'static,
{
    let find = || registry.local_group(netns.id(), netns.label());
    let draft = draft_local(build, || Seat::new(registry));
    send(registry, None, find, netns, draft)
}

fn send<T>(
    registry: &Arc<Registry>,
    known: Option<&Arc<Group>>,
    find: impl Fn() -> Result<Arc<Group>>,
    netns: &impl Destination,
    draft: Unsent<T, Seat>,
) -> TaskHandle<'static, T> {
    let Unsent { task, job, handle } = draft;
    if let Err(error) = current::check_may_wait() {
        job.abort(error);
        return handle;
    }
    let mut known = known.cloned();
    let mut job = Some(job);
    while let Some(unsent) = job.take() {
        let group = match known.take().map_or_else(&find, Ok) {
            Ok(group) => group,
            Err(error) => {
                unsent.abort(error);
                break;
            }
        };
        match admit(&group, &task, unsent) {
            Ok(how) if how.seeks_worker => seek_worker(registry, &group, netns),
            Ok(_) => {
                call_worker(registry, &group);
                group.tell_if_stuck();
            }
            // It is on its way out, and the next one comes in its place.
            Err(back) => job = Some(back),
        }
    }
    handle
}

fn admit(
    group: &Arc<Group>,
    task: &Arc<dyn Scheduled<Seat>>,
    job: JobRef,
) -> Result<Admitted, JobRef> {
    group.admit(Arc::clone(task) as _, job, |how| {
        let admitted = (Arc::clone(group), how.number);
        let first = task.scheduler().admitted.set(admitted);
        assert!(first.is_ok(), "a future is admitted once");
    })
}

/// Has a thread seek the first worker for futures of `group`.
fn seek_worker(registry: &Arc<Registry>, group: &Arc<Group>, netns: &impl Destination) {
    let room = submit::room_for_this_thread(Room::Awaited);
    let begin = || -> Result<()> {
        let netns = Lent::new(netns.netns()?);
        let seek = {
            let (registry, group) = (Arc::clone(registry), Arc::clone(group));
            move || seek(&registry, &group, &netns, room)
        };
        if cfg!(loom) {
            // To a model it does not matter which thread does it.
            seek();
            return Ok(());
        }
        let thread = Home::get()?.spawn_thread("netns-seek".to_owned(), None, seek);
        match thread {
            Ok(_) => Ok(()),
            Err(cause) => Err(Error::start_thread(group.label(), cause)),
        }
    };
    if let Err(error) = begin() {
        end_search(registry, group, &Err(error));
    }
}

/// A namespace that is kept until its first worker keeps it, and no longer: then the
/// future may end, and its owner may rely on the namespace's end.
struct Lent {
    kept: Cell<Option<Netns>>,
    weak: WeakNetns,
}

impl Lent {
    fn new(netns: Netns) -> Lent {
        let weak = netns.downgrade();
        let kept = Cell::new(Some(netns));
        Lent { kept, weak }
    }
}

impl Destination for Lent {
    fn id(&self) -> NetnsId {
        self.weak.id()
    }

    fn label(&self) -> &str {
        self.weak.label()
    }

    fn netns(&self) -> Result<Netns> {
        self.kept.take().map_or_else(|| self.weak.netns(), Ok)
    }

    fn give_back(&self, netns: Netns) {
        self.kept.set(Some(netns));
    }
}

fn seek(registry: &Arc<Registry>, group: &Arc<Group>, netns: &Lent, room: Room) {
    loop {
        let found = submit::first_worker(registry, group, netns, room);
        let found = found.and_then(|is_there| match is_there {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Cancelled,
                "future never polled: its namespace was retired first",
            )),
        });
        if end_search(registry, group, &found) {
            return;
        }
    }
}

/// `false` when the search goes on, as [`Group::search_found`] says.
fn end_search(registry: &Arc<Registry>, group: &Arc<Group>, found: &Result<()>) -> bool {
    if !group.search_found(found) {
        return false;
    }
    if found.is_ok() {
        call_worker(registry, group);
    }
    registry.end_search(group);
    true
}
