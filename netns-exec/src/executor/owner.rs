//! What users hold of an executor, and how it ends when they let go of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::Group;
use super::hooks::Hooks;
use super::pool::Pool;
use super::registry::Registry;
use super::{current, submit, worker};
use crate::error::{Error, Kind, Result};
use crate::home::aside::{self, Errand};
use crate::netns::{users, watch};
use crate::sys;

/// Runs closures on threads that are pinned to network namespaces.
///
/// Each worker is an OS thread that entered one namespace when it was born,
/// serves no other, and ends there. Workers start with the first job for their
/// namespace and end when they have been idle for a while.
///
/// # The end
///
/// Clones are handles to the same executor, and so are [`Pinned`](crate::Pinned)s. When the
/// last one is dropped the executor takes no more jobs; those that were accepted run, and
/// then the workers end. The drop waits for none of that. It may happen on a thread that
/// drives an async runtime, or in a job, where to wait for a job can be to wait for oneself,
/// and whether a runtime is entered is known to that runtime only. What is still under way
/// when the process exits is cut off there.
///
/// Who wants to see the end asks for it: [`shutdown`](Executor::shutdown) waits,
/// [`shutdown_async`](Executor::shutdown_async) can be awaited, and
/// [`shutdown_background`](Executor::shutdown_background) says that neither is wanted.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Executor, Netns};
///
/// let executor = Executor::new()?;
/// let blue = Netns::open("blue")?;
/// let listener = executor.run(&blue, || std::net::TcpListener::bind("127.0.0.1:80"))?;
/// # let _ = listener;
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone)]
pub struct Executor {
    handle: Arc<Handle>,
}

/// Lives as long as jobs can be submitted; workers do not hold it.
struct Handle {
    registry: Arc<Registry>,
    /// Has the registry let go of namespaces that no user has a handle to.
    _unused: users::OnUnused,
}

impl Executor {
    pub(super) fn start(pool: Pool, hooks: Hooks) -> Executor {
        let registry = Arc::new(Registry::new(pool, worker::main).with_hooks(hooks));
        let weak = Arc::downgrade(&registry);
        let unused = users::on_unused(move |unused| {
            if let Some(registry) = weak.upgrade() {
                registry.let_go(unused);
            }
        });
        Executor {
            handle: Arc::new(Handle {
                registry,
                _unused: unused,
            }),
        }
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.handle.registry
    }

    /// Takes no more jobs and ends the workers, within `timeout` if it is to wait.
    pub(super) fn end(&self, timeout: Option<Duration>, waits: bool) -> Result<()> {
        let groups = close(self.registry());
        match waits {
            true => current::blocking(|| wait_for_end(self.registry(), &groups, timeout)),
            false => Ok(()),
        }
    }

    /// As [`end`](Executor::end), for a caller that does not wait.
    pub(super) fn end_aside(
        &self,
        timeout: Option<Duration>,
        waits: bool,
    ) -> Result<Option<Errand<Result<()>>>> {
        let groups = close(self.registry());
        if !waits {
            return Ok(None);
        }
        let registry = Arc::clone(self.registry());
        let wait = move || wait_for_end(&registry, &groups, timeout);
        aside::errand_apart("netns-shutdown", wait)
            .map(Some)
            .map_err(|cause| {
                Error::kernel(
                    "cannot wait for the end of an executor, which goes on",
                    cause,
                )
            })
    }
}

/// Takes no more jobs, and has the workers end. Returns those that are left.
fn close(registry: &Registry) -> Vec<Arc<Group>> {
    submit::forget_cached();
    registry.close()
}

fn wait_for_end(
    registry: &Registry,
    groups: &[Arc<Group>],
    timeout: Option<Duration>,
) -> Result<()> {
    let threads = &registry.pool().threads;
    // A time that is out of range is one that never comes.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    // A worker that has left its group may still be at its stop hook.
    let ended =
        groups.iter().all(|group| group.wait_empty(deadline)) && threads.wait_all_at_end(deadline);
    if !ended {
        registry.pool().abandon();
        return Err(Error::new(
            Kind::TimedOut,
            "jobs were still running when the executor's time to shut down ran out",
        ));
    }
    threads.join_all();
    // The deletion watch has a thread as long as there is something to watch.
    watch::join_thread();
    Ok(())
}

impl Drop for Handle {
    fn drop(&mut self) {
        // In a copy of the process there are no workers to tell.
        if !sys::fork::is_copy() {
            drop(close(&self.registry));
        }
    }
}
