//! What users hold of an executor, and how it ends when they let go of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pool::Pool;
use super::registry::Registry;
use super::{current, submit, worker};
use crate::error::{Error, Kind, Result};
use crate::netns::{users, watch};

/// Runs closures on threads that are pinned to network namespaces.
///
/// Each worker is an OS thread that entered one namespace when it was born,
/// serves no other, and ends there. Workers start with the first job for their
/// namespace and end when they have been idle for a while.
///
/// Clones are handles to the same executor. Dropping the last one waits for the
/// jobs that were accepted and ends the workers. Dropped inside a job, of whatever
/// executor, it does not wait, since it could wait for itself: the rest goes on in the
/// background. Neither does it wait when its time to [shut down](Executor::shutdown)
/// has run out before, nor in a copy of the process that fork(2) made.
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
    pub(super) fn start(pool: Pool) -> Executor {
        let registry = Arc::new(Registry::new(pool, worker::main));
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
        self.handle.shut_down(timeout, waits)
    }
}

impl Handle {
    fn shut_down(&self, timeout: Option<Duration>, waits: bool) -> Result<()> {
        submit::forget_cached();
        let registry = &self.registry;
        let groups = registry.close();
        if !waits {
            return Ok(());
        }
        // A time that is out of range is one that never comes.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let ended = current::blocking(|| groups.iter().all(|group| group.wait_empty(deadline)));
        if !ended {
            registry.pool().abandon();
            return Err(Error::new(
                Kind::TimedOut,
                "jobs were still running when the executor's time to shut down ran out",
            ));
        }
        current::blocking(|| registry.pool().threads.join_all());
        // The deletion watch has a thread as long as there is something to watch.
        watch::join_thread();
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A caller that gave the jobs up has waited for them as long as it wanted.
        if !self.registry.pool().is_abandoned() && current::check_may_wait().is_ok() {
            // With no deadline it cannot fail.
            let _ = self.shut_down(None, !current::is_worker());
        }
    }
}
