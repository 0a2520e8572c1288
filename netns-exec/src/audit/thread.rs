//! One thread, and what an audit makes of it.

use std::fmt;
use std::sync::Arc;

use crate::netns::NetnsId;

/// What an audit makes of a thread.
///
/// # Examples
///
/// ```
/// use netns_exec::audit::{Process, Verdict};
///
/// for thread in Process::this()?.threads() {
///     match thread.verdict() {
///         Verdict::Home | Verdict::Worker => {}
///         Verdict::Stray => eprintln!("{} was left in {}", thread.name(), thread.label()),
///         _ => eprintln!("{} may not be looked at", thread.name()),
///     }
/// }
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// In the namespace of the process's main thread. When that has ended before
    /// the others: of the library's home thread, which has its place from it; in a
    /// process without one, of the oldest thread there is.
    Home,
    /// Serves another namespace on behalf of this library, and is in it.
    ///
    /// Each process that uses this library publishes which threads are its own, for
    /// other processes and for other copies of the library: see
    /// [the module](super#what-a-worker-is-known-by). So nothing that a thread has
    /// from the one that made it (name, filters, capabilities) makes it a worker.
    ///
    /// A kernel thread that waits for an io_uring's requests (`iou-wrk-4711`) is
    /// judged as the thread that it does so for.
    Worker,
    /// Neither: it was left in, or wandered into, a namespace where nothing
    /// expects it. Also a worker that is not in the namespace it serves.
    Stray,
    /// It cannot be told: the thread may not be looked at, or may be a worker of a
    /// process whose memory may not be read, or that publishes its workers in a way
    /// that only a later version of this library understands.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Home => "home",
            Verdict::Worker => "worker",
            Verdict::Stray => "stray",
            Verdict::Unknown => "unknown",
        })
    }
}

/// One thread, as it was found.
///
/// # Examples
///
/// ```
/// # use netns_exec::audit::Process;
/// # fn f(audit: &Process) {
/// for thread in audit.threads() {
///     println!("{:>7} {:15} {:10} {}", thread.tid(), thread.name(), thread.label(), thread.verdict());
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Thread {
    pub(super) tid: u32,
    pub(super) name: String,
    pub(super) netns: Option<NetnsId>,
    pub(super) label: Arc<str>,
    pub(super) verdict: Verdict,
    pub(super) maker: Option<u32>,
}

impl Thread {
    /// Returns the thread's number, as `ps -L` shows it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::audit::Process;
    /// # fn f(audit: &Process) {
    /// // To look further at a stray: its stack, what it waits for.
    /// for stray in audit.strays() {
    ///     println!("/proc/{}/task/{}/", audit.pid(), stray.tid());
    /// }
    /// # }
    /// ```
    pub fn tid(&self) -> u32 {
        self.tid
    }

    /// Returns the thread's name, of which the kernel keeps 15 bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::audit::Process;
    /// # fn f(audit: &Process) {
    /// let runtime = audit.threads().iter().filter(|thread| thread.name().starts_with("tokio-"));
    /// assert!(runtime.clone().all(|thread| thread.netns_id() == audit.home_id()));
    /// # }
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the id of the namespace it is in; `None` when that may not be read.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::{Netns, audit::Process};
    /// # fn f(audit: &Process, blue: &Netns) {
    /// let inside = audit.threads().iter().filter(|thread| thread.netns_id() == Some(blue.id()));
    /// println!("{} threads are in {blue}", inside.count());
    /// # }
    /// ```
    pub fn netns_id(&self) -> Option<NetnsId> {
        self.netns
    }

    /// Returns what people call that namespace: its name (`blue`) where it has
    /// one, `home`, `netns:42`, or `?` when it may not be read.
    ///
    /// # Examples
    ///
    /// ```
    /// let audit = netns_exec::audit::Process::this()?;
    /// assert!(audit.threads().iter().any(|thread| thread.label() == "home"));
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns what the audit makes of it.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::audit::{Process, Verdict};
    ///
    /// let audit = Process::this()?;
    /// assert!(audit.threads().iter().all(|thread| thread.verdict() != Verdict::Stray));
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Returns the number of the worker whose child a stray seems to be: the one
    /// that has the same name, which a thread inherits from the one that makes it.
    ///
    /// `None` when no worker that is still there has that name, or several have it;
    /// and for all that are no strays.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::audit::Process;
    ///
    /// for stray in Process::this()?.strays() {
    ///     match stray.seems_child_of() {
    ///         Some(worker) => eprintln!("left by a job on thread {worker}"),
    ///         None => eprintln!("left by code that is called {}", stray.name()),
    ///     }
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn seems_child_of(&self) -> Option<u32> {
        self.maker
    }

    /// Returns in words whose child a stray seems to be; `None` when nothing tells.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::audit::Process;
    ///
    /// for stray in Process::this()?.strays() {
    ///     println!("{}: {}", stray.tid(), stray.origin().unwrap_or_default());
    ///     // 4713: no worker, but seems to be a child of worker 4711, whose name it has
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn origin(&self) -> Option<String> {
        if self.verdict != Verdict::Stray {
            return None;
        }
        match self.maker {
            Some(worker) => Some(format!(
                "no worker, but seems to be a child of worker {worker}, whose name it has"
            )),
            None if is_name_of_worker(&self.name) => {
                Some("no worker, but seems to be a child of one, whose name it has".to_owned())
            }
            None => None,
        }
    }
}

/// Tells whether a name reads `PREFIX:LABEL/NUMBER`, as workers' names do.
fn is_name_of_worker(name: &str) -> bool {
    let Some((front, number)) = name.rsplit_once('/') else {
        return false;
    };
    let prefix = front.split_once(':').map_or("", |(prefix, _)| prefix);
    !prefix.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_workers_are_told_from_others() {
        for name in ["ns:blue/0", "ns:a:b/c/12", "mine:x/3", "ns:/0"] {
            assert!(is_name_of_worker(name), "{name}");
        }
        for name in [
            "",
            "ns",
            "ns:blue",
            "ns:blue/",
            "ns:blue/x",
            "kworker/0",
            ":a/0",
            "kworker/0:1",
        ] {
            assert!(!is_name_of_worker(name), "{name}");
        }
    }
}
