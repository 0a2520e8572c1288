//! `Guard::Detect`: what a job did is found out when it is over.
//!
//! Two questions: is the thread still in its namespace, and is a thread alive that
//! the job created? The kernel's own record (`sys::perf`) answers "nothing
//! happened" with one load. Where something did, or there is no record, the
//! threads of the process are looked at.
//!
//! Who created a thread is in the record only: the ones in this worker's record
//! are its job's for certain. Other threads in the namespace that are
//! not in the roster may come from those (a thread's threads are not recorded),
//! or from a job of another worker of the same namespace. While such a job runs,
//! the blame is left to it (`roster::Registration::suspect_others`), so that
//! nothing is reported twice and the last one looks.
//!
//! A thread that is found alive may be about to end: `std::thread::scope` and
//! even a join return a moment before the kernel has taken the thread down. It
//! is given [`GRACE`] to do so.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::check::{HomeTid, StateCheck};
use super::{Mechanism, NetnsCheck, OnThread, ThreadState};
use crate::error::{Error, LeftThread, Result};
use crate::home::Home;
use crate::home::published::Published;
use crate::home::roster::{self, Registration};
use crate::sys;
use crate::sys::perf::{PerfRecord, Recorder};
use crate::sys::task::{NsLink, NsProbe, TaskDir};

/// How long a thread that was found alive after its job may take to end.
const GRACE: Duration = Duration::from_millis(50);

pub(super) struct Detect {
    tasks: Arc<TaskDir>,
    /// The home namespace, which the home thread never leaves.
    home: NsLink,
    recording: Recording,
    home_tid: HomeTid,
}

/// How much of what a thread does the kernel records for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recording {
    TasksAndNamespaces,
    Tasks,
    Nothing,
}

impl Recording {
    /// Starts what there is; less, where the kernel refuses, for the answers
    /// are the same with less.
    fn start(self) -> Option<Recorder> {
        match self {
            Recording::TasksAndNamespaces => Recorder::open(true).ok(),
            Recording::Tasks => Recorder::open(false).ok(),
            Recording::Nothing => None,
        }
    }

    fn best() -> Recording {
        [Recording::TasksAndNamespaces, Recording::Tasks]
            .into_iter()
            .find(|recording| recording.start().is_some())
            .unwrap_or(Recording::Nothing)
    }
}

impl Mechanism for Detect {
    type OnThread = Box<Detector>;

    fn prepare() -> Result<Detect> {
        let failed = |cause: io::Error| {
            Error::kernel("cannot watch the threads of workers", cause)
                .hint("/proc must be mounted, and show this process")
        };
        let home = HomeTid::get()?;
        (Home::get()?.visit(move || Detect::with(Recording::best(), home)))
            .and_then(|detect| detect)
            .map_err(failed)
    }

    fn describe(&self) -> &'static str {
        match self.recording {
            Recording::TasksAndNamespaces => "perf",
            Recording::Tasks => "perf, own namespace",
            Recording::Nothing => "proc scan",
        }
    }

    fn install(&self) -> io::Result<Box<Detector>> {
        let netns_check = Rc::new(NetnsCheck::of_this_thread()?);
        let recorder = self.recording.start();
        Ok(Box::new(Detector {
            is_home: netns_check.entered() == self.home,
            home: self.home,
            wants_recorder: self.recording != Recording::Nothing,
            netns_check,
            state: StateCheck::of_this_thread(self.home_tid)?,
            recorder,
            tasks: Arc::clone(&self.tasks),
        }))
    }
}

impl Detect {
    /// To be called on a thread in the home namespace.
    pub(super) fn with(recording: Recording, home_tid: HomeTid) -> io::Result<Detect> {
        let tasks = TaskDir::open()?;
        let home = NsProbe::of_this_thread()?.read()?;
        // What will be needed later must be known to work.
        tasks.alive_since(sys::thread::tid())?;
        Ok(Detect {
            tasks: Arc::new(tasks),
            home,
            recording,
            home_tid,
        })
    }
}

/// Finds out what the jobs of one worker did.
pub(super) struct Detector {
    netns_check: Rc<NetnsCheck>,
    state: StateCheck,
    recorder: Option<Recorder>,
    /// Whether the policy counts on a recorder. A worker may do without: each perf
    /// event locks two pages of memory, and kernel.perf_event_mlock_kb and
    /// RLIMIT_MEMLOCK have an end.
    wants_recorder: bool,
    tasks: Arc<TaskDir>,
    home: NsLink,
    /// The worker serves the home namespace: threads may stay.
    is_home: bool,
}

/// What there is reason to look at.
struct Suspicion {
    moved: bool,
    threads: bool,
    /// Threads that this worker is known to have created.
    created: Vec<u32>,
}

impl OnThread for Box<Detector> {
    #[inline]
    fn before_job(&mut self, worker: &Registration) {
        worker.job_begins();
    }

    #[inline]
    fn after_job(&mut self, worker: &Registration) -> ThreadState {
        let nothing = (self.recorder.as_ref())
            .is_some_and(|recorder| recorder.sees_namespaces() && !recorder.is_pending());
        if !nothing {
            return self.inspect(worker, false);
        }
        if worker.job_ends() {
            return ThreadState::Clean;
        }
        self.inspect(worker, true)
    }

    fn when_idle(&mut self) -> ThreadState {
        self.state.look_closely()
    }

    fn netns_check(&self) -> Option<Rc<NetnsCheck>> {
        Some(Rc::clone(&self.netns_check))
    }

    fn lack(&self) -> Option<&'static str> {
        let lacks = self.wants_recorder && self.recorder.is_none();
        lacks.then_some("no perf event for this worker: looking through /proc instead")
    }
}

impl Detector {
    /// Looks until there is no reason left to; `suspected` is the reason that
    /// another worker has.
    ///
    /// A worker that is told anything but `Clean` is over. It stays busy in the
    /// roster until it signs out: whatever still turns up is its doing.
    #[cold]
    fn inspect(&mut self, worker: &Registration, suspected: bool) -> ThreadState {
        let suspicion = self.suspicion();
        if suspicion.moved {
            match self.netns_check.state() {
                ThreadState::Clean => {}
                state => return state,
            }
            let state = match self.recorder {
                // Of whatever kind: it was recorded.
                Some(ref recorder) if recorder.sees_namespaces() => self.state.look_closely(),
                _ => self.state.look(),
            };
            if !matches!(state, ThreadState::Clean) {
                return state;
            }
        }
        let mut threads = suspicion.threads || suspected;
        loop {
            if threads && !self.is_home {
                match self.left_threads(&suspicion.created, worker) {
                    Ok(left) if left.is_empty() => {}
                    Ok(left) => return ThreadState::LeftThreads(left),
                    Err(error) => return ThreadState::Unknown(error),
                }
            }
            if worker.job_ends() {
                return ThreadState::Clean;
            }
            threads = true;
        }
    }

    #[cfg(test)]
    pub(super) fn recording(&self) -> Recording {
        match &self.recorder {
            Some(recorder) if recorder.sees_namespaces() => Recording::TasksAndNamespaces,
            Some(_) => Recording::Tasks,
            None => Recording::Nothing,
        }
    }

    /// Makes it as if nothing had been recorded.
    #[cfg(test)]
    pub(super) fn forget(&mut self) {
        self.suspicion();
    }

    fn suspicion(&mut self) -> Suspicion {
        let Some(recorder) = &mut self.recorder else {
            return Suspicion {
                moved: true,
                threads: true,
                created: Vec::new(),
            };
        };
        let (me, this_process) = (sys::thread::tid(), std::process::id());
        let mut suspicion = Suspicion {
            moved: !recorder.sees_namespaces(),
            threads: false,
            created: Vec::new(),
        };
        recorder.drain(|record| match record {
            PerfRecord::Fork { pid, tid } if pid == this_process => {
                suspicion.threads = true;
                suspicion.created.push(tid);
            }
            // A child process.
            PerfRecord::Fork { .. } => {}
            PerfRecord::Namespaces { tid } => suspicion.moved |= tid == me,
            PerfRecord::Other => {
                suspicion.moved = true;
                suspicion.threads = true;
            }
        });
        suspicion
    }

    /// The threads that the job is to blame for.
    fn left_threads(&self, created: &[u32], worker: &Registration) -> io::Result<Vec<LeftThread>> {
        let deadline = Instant::now() + GRACE;
        let mut pause = Duration::from_micros(50);
        // What other copies of the library in this process say of their threads. Read
        // when it is needed: it is long.
        let mut others: Option<Published> = None;
        loop {
            let mut alive = self.tasks.tids()?;
            // These are asked for by number: no list is needed to find them.
            for tid in created {
                if !alive.contains(tid) {
                    alive.push(*tid);
                }
            }
            let mut known = Vec::new();
            let mut unclear = Vec::new();
            for tid in roster::not_signed_in(&alive) {
                let Some(link) = self.tasks.ns_link(tid)? else {
                    continue;
                };
                let mine = created.contains(&tid);
                // A thread of the job may have gone elsewhere; only home is
                // where it does no harm.
                let astray = if mine {
                    link != self.home
                } else {
                    link == self.netns_check.entered()
                };
                if astray
                    && let Some(stat) = self.tasks.stat(tid)?
                    && !stat.is_io_worker
                    && !roster::is_leaving(tid, stat.started)
                    && !roster::is_reported(tid, stat.started)
                    && !(others.as_ref()).is_some_and(|it| it.has(tid, stat.started))
                {
                    if mine { &mut known } else { &mut unclear }.push((tid, stat.started));
                }
            }
            if known.is_empty() && unclear.is_empty() {
                return Ok(Vec::new());
            }
            if known.is_empty() && worker.suspect_others() {
                return Ok(Vec::new());
            }
            if Instant::now() < deadline {
                others.get_or_insert_with(Published::of_this_process);
                // Nothing tells of the end of a thread that the job made.
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(5));
                continue;
            }
            if !unclear.is_empty() && !worker.suspect_others() {
                known.append(&mut unclear);
            }
            // Some may have signed in since.
            let others = Published::of_this_process();
            known.retain(|&(tid, started)| !others.has(tid, started));
            let blamed = roster::blame(&known, &alive);
            let own = self.tasks.name(sys::thread::tid());
            return Ok((blamed.into_iter())
                .map(|tid| {
                    let name = self.tasks.name(tid);
                    let is_namesake = name == own;
                    LeftThread {
                        tid,
                        name,
                        is_namesake,
                    }
                })
                .collect());
        }
    }
}
