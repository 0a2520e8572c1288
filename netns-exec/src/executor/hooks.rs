//! What a user has each worker run when it starts and when it stops.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::event::Event;
use crate::error::{Error, Kind, Result, panic_text};
use crate::handoff::outcome::Door;
use crate::home::aside::Lease;
use crate::netns::Netns;
use crate::payload::{Payload, discard, quietly};

type OnStart = Box<dyn Fn(&Netns) -> io::Result<()> + Send + Sync>;
type OnStop = Box<dyn Fn(&Netns) + Send + Sync>;
type OnEvent = Box<dyn Fn(&Event<'_>) + Send + Sync>;

/// The hooks of an executor, in the order in which they were given.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    given: Option<Arc<Given>>,
}

/// The last worker of an executor may be the last to hold these, and so may the home
/// thread, which runs no user code: see its `drop`.
#[derive(Default)]
struct Given {
    start: Vec<OnStart>,
    stop: Vec<OnStop>,
    event: Vec<OnEvent>,
    /// They have what a user captured, and may be dropped where no user code runs.
    lease: Option<Lease>,
}

impl Hooks {
    pub(super) fn add_start(&mut self, hook: OnStart) {
        self.given().start.push(hook);
    }

    pub(super) fn add_stop(&mut self, hook: OnStop) {
        self.given().stop.push(hook);
    }

    pub(super) fn add_event(&mut self, hook: OnEvent) {
        self.given().event.push(hook);
    }

    /// Whether any wants to be told of events.
    #[inline]
    pub(super) fn observe(&self) -> bool {
        (self.given.as_ref()).is_some_and(|given| !given.event.is_empty())
    }

    /// Tells of an event, through the door of the thread that it is about; at home where
    /// nothing may run on that any more.
    pub(super) fn tell(&self, event: &Event<'_>, door: &mut Door) {
        let Some(given) = &self.given else {
            return;
        };
        for (before, hook) in given.event.iter().enumerate() {
            if door.is_spoiled() {
                return tell_at_home(given, before, event);
            }
            door.run("event hook", || hook(event));
        }
    }

    /// Makes sure that they can be dropped wherever that happens.
    pub(super) fn get_ready(&mut self) -> Result<()> {
        if self.given.is_some() {
            let lease = Lease::new().map_err(|cause| {
                Error::kernel("cannot start the thread that drops hooks", cause)
            })?;
            self.given().lease = Some(lease);
        }
        Ok(())
    }

    fn given(&mut self) -> &mut Given {
        let given = self.given.get_or_insert_default();
        Arc::get_mut(given).expect("a builder is not shared")
    }

    /// Runs what a worker runs when it starts: on its thread, which has entered `netns`
    /// and has no guard yet.
    ///
    /// # Errors
    ///
    /// The first hook's own; another when it panicked, and when one left the thread
    /// elsewhere. Nothing else is to run on the thread then.
    pub(super) fn run_start(&self, netns: &Netns) -> Result<()> {
        IS_WORKER.set(true);
        let Some(given) = (self.given.as_ref()).filter(|given| !given.start.is_empty()) else {
            return Ok(());
        };
        // What a hook keeps of it is a user's.
        let netns = &netns.kept().for_user();
        let attempt = |what| format!("cannot start a worker for netns `{netns}`: {what}");
        for hook in &given.start {
            match in_start_hook(|| hook(netns)) {
                Ok(Ok(())) => {}
                Ok(Err(cause)) => {
                    return Err(Error::kernel(attempt("its start hook failed"), cause));
                }
                Err(panic) => {
                    let mut what = String::from("its start hook panicked");
                    if let Some(text) = panic_text(&*panic) {
                        what.push_str(": ");
                        what.push_str(&text);
                    }
                    // The home thread may be the one that drops the error.
                    discard(panic);
                    return Err(Error::new(Kind::Panic, attempt(&what)));
                }
            }
        }
        match netns.is_here() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::new(
                Kind::Escaped,
                attempt("its start hook left the thread in another network namespace"),
            )),
            Err(cause) => Err(Error::kernel(
                attempt("cannot tell whether its start hook left the thread in place"),
                cause,
            )),
        }
    }

    /// What a worker keeps of the namespace that it serves, to tell the stop hooks of it.
    pub(super) fn netns_to_stop_in(&self, netns: &Netns) -> Option<Netns> {
        let has_any = (self.given.as_ref()).is_some_and(|given| !given.stop.is_empty());
        has_any.then(|| netns.kept())
    }

    /// Runs what a worker runs when it stops, through its door.
    pub(super) fn run_stop(&self, netns: &Netns, door: &mut Door) {
        let netns = &netns.kept().for_user();
        for hook in self.given.iter().flat_map(|given| &given.stop) {
            if door.is_spoiled() {
                return;
            }
            door.run("stop hook", || hook(netns));
        }
    }
}

/// Has a thread at home tell all hooks but the first ones, which know.
fn tell_at_home(given: &Arc<Given>, first: usize, event: &Event<'_>) {
    let lease = given.lease.as_ref().expect("an executor's hooks have one");
    let (given, label) = (Arc::clone(given), Box::<str>::from(event.label()));
    let event = event.labelled("");
    lease.run(move || {
        for hook in &given.event[first..] {
            let told = catch_unwind(AssertUnwindSafe(|| hook(&event.labelled(&label))));
            if let Err(panic) = told {
                discard(panic);
                quietly(|| tracing::error!(what = "event hook", "panic at home, outside of a job"));
            }
        }
    });
}

thread_local! {
    static STARTS: Cell<bool> = const { Cell::new(false) };
    /// Whether the calling thread is a worker, be it outside of its door.
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread runs a start hook: the calls that need its worker wait for
/// it, and it must wait for none of them.
#[inline]
pub(crate) fn is_in_start_hook() -> bool {
    STARTS.get()
}

fn in_start_hook<R>(hook: impl FnOnce() -> R) -> Result<R, Payload> {
    STARTS.set(true);
    let result = catch_unwind(AssertUnwindSafe(hook));
    STARTS.set(false);
    result
}

impl Drop for Given {
    fn drop(&mut self) {
        let (start, stop) = (mem::take(&mut self.start), mem::take(&mut self.stop));
        let event = mem::take(&mut self.event);
        if start.is_empty() && stop.is_empty() && event.is_empty() {
            return;
        }
        match &self.lease {
            Some(lease) => lease.drop_user_value((start, stop, event), IS_WORKER.get()),
            // Of a builder that was never built.
            None => drop((start, stop, event)),
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, stop) =
            (self.given.as_ref()).map_or((0, 0), |given| (given.start.len(), given.stop.len()));
        (f.debug_struct("Hooks")
            .field("start", &start)
            .field("stop", &stop))
        .finish()
    }
}
