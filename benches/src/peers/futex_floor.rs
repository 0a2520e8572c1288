//! What the kernel allows at best between two threads that sleep: a word handed
//! over and back with futex(2), with nothing else done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use rustix::thread::futex;

use super::floor_line::{IDLE, Line, REQUEST, STOP};
use super::peer::{Peer, Setup};
use crate::Result;
use crate::conditions::cpus;
use crate::work::Work;

pub(super) fn call(_: &Setup<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Futex::new(None)?))
}

pub(super) fn on_one_cpu(_: &Setup<'_>) -> Result<Box<dyn Peer>> {
    let cpus = cpus::allowed()?;
    Ok(Box::new(Futex::new(Some(cpus))?))
}

/// Two threads that sleep in futex(2) until the other wakes them.
struct Futex {
    line: Arc<Line>,
    echo: Option<JoinHandle<()>>,
    /// All the caller may use, when both shall share the first of them.
    one_of: Option<Vec<usize>>,
}

impl Futex {
    fn new(one_of: Option<Vec<usize>>) -> Result<Futex> {
        let line = Arc::new(Line(AtomicU32::new(IDLE)));
        let shared = Arc::clone(&line);
        let cpu = one_of.as_ref().map(|cpus| cpus[0]);
        let echo = thread::Builder::new()
            .name("floor/futex".into())
            .spawn(move || {
                if let Some(cpu) = cpu {
                    // Left where it is, it would only be slower, and be seen to.
                    let _ = cpus::restrict_to(&[cpu]);
                }
                loop {
                    sleep_while(&shared.0, IDLE);
                    if shared.0.load(Ordering::Acquire) == STOP {
                        break;
                    }
                    hand_over(&shared.0, IDLE);
                }
            })?;
        Ok(Futex {
            line,
            echo: Some(echo),
            one_of,
        })
    }
}

fn sleep_while(word: &AtomicU32, value: u32) {
    while word.load(Ordering::Acquire) == value {
        // Woken for no reason or too late to sleep: the loop looks again.
        let _ = futex::wait(word, futex::Flags::PRIVATE, value, None);
    }
}

fn hand_over(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Release);
    futex::wake(word, futex::Flags::PRIVATE, 1).expect("the word is mapped");
}

impl Peer for Futex {
    fn repeat(&self, _: Work, times: u32) {
        for _ in 0..times {
            hand_over(&self.line.0, REQUEST);
            sleep_while(&self.line.0, REQUEST);
        }
    }

    fn netns_inode(&self) -> Option<u64> {
        None
    }

    fn begin(&self) {
        if let Some(cpus) = &self.one_of {
            cpus::restrict_to(&cpus[..1]).expect("a CPU we were on is still ours");
        }
    }

    fn end(&self) {
        if let Some(cpus) = &self.one_of {
            cpus::restrict_to(cpus).expect("CPUs we were on are still ours");
        }
    }
}

impl Drop for Futex {
    fn drop(&mut self) {
        hand_over(&self.line.0, STOP);
        if let Some(echo) = self.echo.take() {
            // It has nothing to panic over.
            let _ = echo.join();
        }
    }
}
