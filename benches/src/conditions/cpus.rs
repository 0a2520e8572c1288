//! CPUs: where threads may run, and hogs that keep all of them busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::{self, JoinHandle};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, gettid};

use crate::Result;

/// The CPUs that the calling thread may run on.
pub fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .collect())
}

/// Lets the calling thread run on `cpus` only.
pub fn restrict_to(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}

const PARKED: u8 = 0;
const RUNNING: u8 = 1;
const STOPPED: u8 = 2;

/// One thread per CPU that does nothing but use it, while asked to.
pub struct Hogs {
    state: Arc<AtomicU8>,
    threads: Vec<Hog>,
}

struct Hog {
    tid: i32,
    thread: JoinHandle<()>,
    at_work: Arc<AtomicBool>,
}

impl Hogs {
    /// Starts the threads, asleep.
    pub fn new() -> Result<Hogs> {
        let state = Arc::new(AtomicU8::new(PARKED));
        let mut threads = Vec::new();
        for cpu in allowed()? {
            let at_work = Arc::new(AtomicBool::new(false));
            let (send, receive) = std::sync::mpsc::sync_channel(1);
            let (state, seen) = (Arc::clone(&state), Arc::clone(&at_work));
            let thread = thread::Builder::new()
                .name(format!("hog/{cpu}"))
                .spawn(move || {
                    let placed = restrict_to(&[cpu]).map_err(|e| e.to_string());
                    let told = send.send(placed.map(|()| gettid().as_raw()));
                    while told.is_ok() {
                        match state.load(Ordering::Acquire) {
                            PARKED => {
                                seen.store(false, Ordering::Release);
                                thread::park();
                            }
                            RUNNING => seen.store(true, Ordering::Release),
                            _ => break,
                        }
                    }
                })?;
            threads.push(Hog {
                tid: receive.recv()??,
                thread,
                at_work,
            });
        }
        Ok(Hogs { state, threads })
    }

    /// Their thread ids.
    pub fn tids(&self) -> Vec<i32> {
        self.threads.iter().map(|hog| hog.tid).collect()
    }

    /// Keeps every CPU busy until the guard is dropped.
    pub fn run(&self) -> Running<'_> {
        self.state.store(RUNNING, Ordering::Release);
        for hog in &self.threads {
            hog.thread.thread().unpark();
        }
        self.wait_for(true);
        Running(self)
    }

    fn wait_for(&self, at_work: bool) {
        for hog in &self.threads {
            while hog.at_work.load(Ordering::Acquire) != at_work {
                thread::yield_now();
            }
        }
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.state.store(STOPPED, Ordering::Release);
        for hog in self.threads.drain(..) {
            hog.thread.thread().unpark();
            // A hog has nothing to panic over.
            let _ = hog.thread.join();
        }
    }
}

/// The hogs at work; dropping it puts them to sleep.
pub struct Running<'a>(&'a Hogs);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.state.store(PARKED, Ordering::Release);
        self.0.wait_for(false);
    }
}
