//! Judging the threads of one process.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::proc::{ProcDir, is_denied, is_gone};
use super::spaces::{self, Spaces};
use super::thread::{Thread, Verdict};
use crate::error::{Error, Kind, Result};
use crate::home::published::{Published, Role};
use crate::home::roster;
use crate::netns::NetnsId;

/// How long a thread that looks like a stray may take to turn out to be on its
/// way in or out: a worker is not yet sealed, or no longer in the roster; a
/// visitor ends.
const GRACE: Duration = Duration::from_millis(50);

/// The threads of one process, each with the namespace it is in.
///
/// Displays as one line for each thread that is not at home, after one with
/// the totals.
///
/// # Examples
///
/// ```
/// let audit = netns_exec::audit::Process::this()?;
/// println!("{audit}"); // the totals, and a line for each thread that is elsewhere
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Process {
    pid: u32,
    name: String,
    home: Option<NetnsId>,
    threads: Vec<Thread>,
}

impl Process {
    /// Audits this process.
    ///
    /// Takes no privilege, and works on any thread, a sealed worker included.
    /// Takes a few microseconds for each thread; a stray is looked at again for
    /// up to 50 ms, in case it is about to end.
    ///
    /// # Errors
    ///
    /// Fails when /proc is not mounted or no file descriptor is left.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::audit::{Process, Verdict};
    ///
    /// let audit = Process::this()?;
    /// for thread in audit.threads() {
    ///     println!("{} {} {}", thread.tid(), thread.label(), thread.verdict());
    /// }
    /// assert!(audit.threads().iter().any(|t| t.verdict() == Verdict::Home));
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn this() -> Result<Process> {
        Process::of(std::process::id())
    }

    /// Audits the process that `pid` is the number of, or of a thread of it.
    ///
    /// Where a thread may not be looked at, its verdict is
    /// [`Unknown`](Verdict::Unknown): that takes to be the same user, or
    /// `CAP_SYS_PTRACE`. Of namespaces that only the kernel before Linux 6.18
    /// would have to enter for their id, it takes `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    ///
    /// [`is_not_found`](Error::is_not_found) when there is no such process, or
    /// it has ended by now; and as [`this`](Process::this).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let audit = netns_exec::audit::Process::of(4711)?;
    /// for stray in audit.strays() {
    ///     eprintln!("thread {} ({}) is in {}", stray.tid(), stray.name(), stray.label());
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn of(pid: u32) -> Result<Process> {
        let failed = |cause| not_audited(pid, cause);
        let dir = ProcDir::open(pid).map_err(failed)?;
        let whose = match dir.pid() == std::process::id() {
            true => Whose::Ours,
            false => Whose::Theirs,
        };
        audit(dir, whose)
    }

    /// Returns the number of the process.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::audit::Process;
    ///
    /// assert_eq!(Process::this()?.pid(), std::process::id());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the name of the process's main thread.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let audit = netns_exec::audit::Process::of(4711)?;
    /// println!("{} has {} threads", audit.name(), audit.threads().len());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the id of the main thread's namespace; `None` when it may not be
    /// read. Where the main thread has ended before the others, see
    /// [`Verdict::Home`].
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Netns, audit::Process};
    ///
    /// // This thread never left the namespace of the main one.
    /// assert_eq!(Process::this()?.home_id(), Some(Netns::current()?.id()));
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn home_id(&self) -> Option<NetnsId> {
        self.home
    }

    /// Returns all threads, by number.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::collections::BTreeMap;
    ///
    /// let mut count = BTreeMap::new();
    /// for thread in netns_exec::audit::Process::this()?.threads() {
    ///     *count.entry(thread.label().to_owned()).or_insert(0) += 1;
    /// }
    /// println!("{count:?}"); // {"blue": 2, "home": 9}
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn threads(&self) -> &[Thread] {
        &self.threads
    }

    /// Returns the threads that are where nothing expects them.
    ///
    /// # Examples
    ///
    /// ```
    /// let audit = netns_exec::audit::Process::this()?;
    /// assert_eq!(audit.strays().count(), 0, "{audit}");
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn strays(&self) -> impl Iterator<Item = &Thread> {
        self.with(Verdict::Stray)
    }

    /// Returns the threads with this verdict.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns};
    /// use netns_exec::audit::{Process, Verdict};
    ///
    /// let executor = Executor::new()?;
    /// executor.run(&Netns::current()?, || ())?;
    /// for worker in Process::this()?.with(Verdict::Worker) {
    ///     println!("{} serves {}", worker.name(), worker.label());
    /// }
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn with(&self, verdict: Verdict) -> impl Iterator<Item = &Thread> {
        (self.threads.iter()).filter(move |thread| thread.verdict == verdict)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}): ", self.pid, self.name)?;
        let count = |verdict| self.with(verdict).count();
        write!(
            f,
            "{} at home, {} workers, {} stray, {} unknown",
            count(Verdict::Home),
            count(Verdict::Worker),
            count(Verdict::Stray),
            count(Verdict::Unknown)
        )?;
        for thread in &self.threads {
            let Thread {
                tid,
                name,
                label,
                verdict,
                ..
            } = thread;
            if *verdict != Verdict::Home {
                write!(f, "\n{verdict}: thread {tid} ({name}) in {label}")?;
                if let Some(origin) = thread.origin() {
                    write!(f, " ({origin})")?;
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Theirs,
}

fn not_audited(pid: u32, cause: io::Error) -> Error {
    let attempt = format!("cannot audit process {pid}");
    match is_gone(&cause) {
        true => Error::new(Kind::NotFound, attempt).caused_by(cause),
        false => Error::kernel(attempt, cause),
    }
}

fn audit(dir: ProcDir, whose: Whose) -> Result<Process> {
    let pid = dir.pid();
    let failed = |cause| not_audited(pid, cause);
    let mut auditor = Auditor {
        published: None,
        spaces: Spaces::default(),
        home: None,
        whose,
        dir,
    };
    auditor.home = auditor.find_home().map_err(failed)?;
    let name = auditor.dir.name("comm").map_err(failed)?;

    let mut found = Vec::new();
    for tid in auditor.dir.tids().map_err(failed)? {
        if let Some(thread) = auditor.at(tid).map_err(failed)? {
            found.push(thread);
        }
    }
    auditor.again(&mut found).map_err(failed)?;
    if found.is_empty() {
        return Err(failed(io::Error::from_raw_os_error(libc::ESRCH)));
    }

    // Names are for namespaces that may be other than home.
    let named = found
        .iter()
        .any(|thread| thread.inode.is_some() && thread.inode != auditor.home);
    let names = match named {
        true => spaces::names().map_err(failed)?,
        false => Default::default(),
    };
    let mut labels: Vec<(Option<u64>, Arc<str>)> = vec![(None, "?".into())];
    if auditor.home.is_some() {
        labels.push((auditor.home, "home".into()));
    }
    let workers: Vec<(u32, String)> = (found.iter())
        .filter(|thread| thread.verdict == Verdict::Worker)
        .map(|thread| (thread.tid, thread.name.clone()))
        .collect();
    let threads = found.into_iter().map(|found| {
        let netns = found.inode.and_then(|inode| auditor.spaces.id(inode));
        let known = labels.iter().find(|(inode, _)| *inode == found.inode);
        let label = match (known, found.inode, netns) {
            (Some((_, label)), ..) => Arc::clone(label),
            (None, inode, id) => {
                let name = inode
                    .and_then(|inode| names.get(&inode))
                    .and_then(|n| n.first());
                let label: Arc<str> = match (name, id) {
                    (Some(name), _) => name.as_str().into(),
                    (None, Some(id)) => format!("netns:{id}").into(),
                    (None, None) => "?".into(),
                };
                labels.push((inode, Arc::clone(&label)));
                label
            }
        };
        let mut namesakes = workers.iter().filter(|(_, name)| *name == found.name);
        let maker = match (found.verdict, namesakes.next(), namesakes.next()) {
            (Verdict::Stray, Some(&(worker, _)), None) if worker != found.tid => Some(worker),
            _ => None,
        };
        Thread {
            tid: found.tid,
            name: found.name,
            netns,
            label,
            verdict: found.verdict,
            maker,
        }
    });
    Ok(Process {
        pid,
        name,
        home: auditor.home.and_then(|inode| auditor.spaces.id(inode)),
        threads: threads.collect(),
    })
}

/// A thread and what it looks like so far.
struct Seen {
    tid: u32,
    name: String,
    inode: Option<u64>,
    verdict: Verdict,
}

struct Auditor {
    dir: ProcDir,
    whose: Whose,
    spaces: Spaces,
    home: Option<u64>,
    /// What the process says of its threads; read when first needed, and anew for
    /// every other look.
    published: Option<Published>,
}

impl Auditor {
    /// `None` when the thread has ended.
    fn at(&mut self, tid: u32) -> io::Result<Option<Seen>> {
        let name = match self.dir.name(&format!("task/{tid}/comm")) {
            Ok(name) => name,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        // The link before the roster: a worker signs in before it enters.
        let inode = match self.spaces.meet(&self.dir, &format!("task/{tid}/ns/net")) {
            Ok(inode) => Some(inode),
            // It is there no more, or far enough on its way out.
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) if is_denied(&error) => match self.dir.is_exiting(tid) {
                // What the kernel also says of one that ended just now.
                Ok(true) => return Ok(None),
                Err(error) if is_gone(&error) => return Ok(None),
                Ok(false) | Err(_) => None,
            },
            Err(error) => return Err(error),
        };
        let verdict = match inode {
            None => Verdict::Unknown,
            Some(inode) => match self.judge(tid, &name, inode) {
                Ok(verdict) => verdict,
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        Ok(Some(Seen {
            tid,
            name,
            inode,
            verdict,
        }))
    }

    /// The inode of the namespace that the process is at home in; `None` when it may
    /// not be read.
    fn find_home(&mut self) -> io::Result<Option<u64>> {
        // The link in the process's folder is that of its main thread.
        match self.spaces.meet(&self.dir, "ns/net") {
            Ok(inode) => return Ok(Some(inode)),
            Err(error) if is_gone(&error) => {}
            Err(error) if is_denied(&error) => match self.dir.is_exiting(self.dir.pid()) {
                Ok(true) => {}
                _ => return Ok(None),
            },
            Err(error) => return Err(error),
        }
        // It has ended, and the others have not.
        let mut oldest: Option<(u64, u64)> = None;
        for tid in self.dir.tids()? {
            let look = |auditor: &mut Auditor| -> io::Result<Option<(u64, Option<Role>, u64)>> {
                let inode = auditor
                    .spaces
                    .meet(&auditor.dir, &format!("task/{tid}/ns/net"))?;
                let role = auditor.role_of(tid)?;
                let stat = auditor.dir.stat(tid)?.filter(|stat| !stat.is_io_worker);
                Ok(stat.map(|stat| (inode, role, stat.started)))
            };
            match look(self) {
                Ok(Some((inode, Some(Role::Home), _))) => return Ok(Some(inode)),
                Ok(Some((inode, None, started))) => {
                    let is_older = oldest.is_none_or(|(_, oldest)| started < oldest);
                    if is_older {
                        oldest = Some((inode, started));
                    }
                }
                Ok(_) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) if is_denied(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(oldest.map(|(inode, _)| inode))
    }

    /// Tells what a thread is to the library.
    fn role_of(&mut self, tid: u32) -> io::Result<Option<Role>> {
        if self.whose == Whose::Ours
            && let Some(role) = roster::role_of(tid)
        {
            return Ok(Some(role));
        }
        let published = match &mut self.published {
            Some(published) => published,
            published => published.insert(match self.dir.published(tid) {
                Err(error) if is_denied(&error) => Published::unreadable(),
                read => read?,
            }),
        };
        if published.is_empty() {
            return Ok(None);
        }
        let own_tid = self.dir.status(&format!("task/{tid}/status"))?.own_tid;
        let started = self.dir.stat(tid)?.map(|stat| stat.started);
        Ok(published.role_of(own_tid, started))
    }

    fn judge(&mut self, tid: u32, name: &str, inode: u64) -> io::Result<Verdict> {
        let is_home = self.home == Some(inode);
        if !is_home && (self.dir.stat(tid)?).is_some_and(|stat| stat.is_io_worker) {
            return self.judge_io_worker(name, inode);
        }
        match self.role_of(tid)? {
            Some(Role::Worker(id)) => {
                let here = self.spaces.id(inode).map(|id| id.as_u64());
                return Ok(match here == Some(id) {
                    true => Verdict::Worker,
                    false => Verdict::Stray,
                });
            }
            Some(Role::Home | Role::Own) if is_home => return Ok(Verdict::Home),
            // They go wherever they are sent, or stay where home was.
            Some(Role::Home | Role::Own) => return Ok(Verdict::Worker),
            None => {}
        }
        let has_gaps = (self.published.as_ref()).is_some_and(|published| published.has_gaps);
        Ok(match self.home {
            Some(_) if is_home => Verdict::Home,
            Some(_) if !has_gaps => Verdict::Stray,
            // It is not known which namespace is home, or who is a worker.
            _ => Verdict::Unknown,
        })
    }

    /// Judges a kernel thread, not at home, that waits for requests of an io_uring
    /// on behalf of the thread it is named after.
    fn judge_io_worker(&mut self, name: &str, inode: u64) -> io::Result<Verdict> {
        let owner = name.strip_prefix("iou-wrk-");
        let owner = owner.and_then(|owner| owner.parse::<u32>().ok());
        if let Some(owner) = owner
            && self.dir.tids()?.contains(&owner)
        {
            return self.judge(owner, "", inode);
        }
        // The number is that of another pid namespace.
        let Some(id) = self.spaces.id(inode) else {
            return Ok(Verdict::Unknown);
        };
        for tid in self.dir.tids()? {
            if self.role_of(tid)? == Some(Role::Worker(id.as_u64())) {
                return Ok(Verdict::Worker);
            }
        }
        Ok(Verdict::Unknown)
    }

    /// Looks again at whom it would be serious to accuse wrongly.
    fn again(&mut self, found: &mut Vec<Seen>) -> io::Result<()> {
        let deadline = Instant::now() + GRACE;
        loop {
            let mut suspects = 0;
            self.published = None;
            let mut kept = Vec::with_capacity(found.len());
            for thread in found.drain(..) {
                let suspect = thread.inode.is_some()
                    && matches!(thread.verdict, Verdict::Stray | Verdict::Unknown);
                if !suspect {
                    kept.push(thread);
                    continue;
                }
                let exiting = match self.dir.is_exiting(thread.tid) {
                    Err(error) if is_gone(&error) => true,
                    exiting => exiting?,
                };
                if exiting {
                    continue;
                }
                if let Some(thread) = self.at(thread.tid)? {
                    let home = self.home.is_some();
                    suspects += usize::from(
                        home && !matches!(thread.verdict, Verdict::Home | Verdict::Worker),
                    );
                    kept.push(thread);
                }
            }
            *found = kept;
            if suspects == 0 || Instant::now() >= deadline {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::guard::{Guard, Policy, ThreadGuard};
    use crate::home::roster::Registration;
    use crate::netns::Netns;
    use crate::sys;

    /// Runs `f` while a thread is elsewhere that `prepare` was called on there.
    fn with_thread_elsewhere<T>(
        name: &str,
        prepare: impl FnOnce(Registration) -> Option<ThreadGuard> + Send,
        f: impl FnOnce(u32) -> T,
    ) -> T {
        thread::scope(|scope| {
            let (entered, tid) = channel();
            let (done, end) = channel::<()>();
            let thread = thread::Builder::new().name(name.to_owned());
            let thread = thread.spawn_scoped(scope, move || {
                let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
                let registration = roster::sign_in(netns.id());
                sys::netns::enter(&netns).expect("needs CAP_SYS_ADMIN");
                let _guard = prepare(registration);
                entered.send(sys::thread::tid()).expect("awaited below");
                let _ = end.recv();
            });
            thread.expect("a thread can be started");
            let tid = tid.recv().expect("the thread has not panicked");
            let result = f(tid);
            drop(done);
            result
        })
    }

    fn verdict(tid: u32, whose: Whose) -> Verdict {
        let dir = ProcDir::open(std::process::id()).expect("/proc is mounted");
        let audit = audit(dir, whose).expect("our own");
        let thread = audit.threads().iter().find(|thread| thread.tid() == tid);
        thread.expect("it is alive").verdict()
    }

    #[test]
    fn worker_is_known_from_inside_and_outside_by_nothing_but_the_roster() {
        for guard in [Guard::Seal, Guard::Off] {
            let policy = Policy::prepare(guard).expect("root can seal");
            let install = |registration| Some(policy.install(registration).expect("as was tried"));
            with_thread_elsewhere("no worker's", install, |tid| {
                assert_eq!(verdict(tid, Whose::Ours), Verdict::Worker);
                assert_eq!(verdict(tid, Whose::Theirs), Verdict::Worker);
            });
        }
    }

    #[test]
    fn name_and_mask_of_a_worker_prove_nothing() {
        let block = |registration: Registration| {
            registration.take_back();
            sys::thread::block_signals().expect("always possible");
            None
        };
        with_thread_elsewhere("ns:blue/0", block, |tid| {
            assert_eq!(verdict(tid, Whose::Theirs), Verdict::Stray);
            assert_eq!(verdict(tid, Whose::Ours), Verdict::Stray);
        });
    }

    #[test]
    fn worker_outside_its_namespace_is_a_stray() {
        let policy = Policy::prepare(Guard::Off).expect("takes nothing");
        let wander = |registration| {
            let guard = policy.install(registration).expect("takes nothing");
            sys::netns::unshare().expect("needs CAP_SYS_ADMIN");
            Some(guard)
        };
        with_thread_elsewhere("ns:blue/0", wander, |tid| {
            assert_eq!(verdict(tid, Whose::Ours), Verdict::Stray);
            assert_eq!(verdict(tid, Whose::Theirs), Verdict::Stray);
        });
        let go_home = |registration| {
            let guard = policy.install(registration).expect("takes nothing");
            let home = sys::netns::of_main_thread().expect("/proc is mounted");
            sys::netns::enter(home).expect("needs CAP_SYS_ADMIN");
            Some(guard)
        };
        with_thread_elsewhere("ns:blue/0", go_home, |tid| {
            assert_eq!(verdict(tid, Whose::Ours), Verdict::Stray);
            assert_eq!(verdict(tid, Whose::Theirs), Verdict::Stray);
        });
    }
}
