//! What the hardware and the kernel allow at best: a word handed to another
//! thread and back, with nothing else done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use rustix::thread::futex;

use super::{Peer, Site};
use crate::Result;
use crate::conditions::cpus;
use crate::work::Work;

const IDLE: u32 = 0;
const REQUEST: u32 = 1;
const PARK: u32 = 2;
const STOP: u32 = 3;

/// The word that bounces, alone in its pair of cache lines: x86-64 fetches
/// lines in pairs.
#[repr(align(128))]
struct Line(AtomicU32);

pub(super) fn spin(_: &Site<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Spin::new()?))
}

/// Two CPUs, each with a thread that spins on one shared line.
struct Spin {
    line: Arc<Line>,
    echo: Option<JoinHandle<()>>,
    /// All the caller may use; it is kept on the first during a turn.
    cpus: Vec<usize>,
}

impl Spin {
    fn new() -> Result<Spin> {
        let cpus = cpus::allowed()?;
        let [_, second, ..] = cpus[..] else {
            return Err("two threads can only spin on two CPUs".into());
        };
        let line = Arc::new(Line(AtomicU32::new(PARK)));
        let shared = Arc::clone(&line);
        let echo = thread::Builder::new()
            .name("floor/spin".into())
            .spawn(move || {
                // Left where it is, it would only be slower, and be seen to.
                let _ = cpus::restrict_to(&[second]);
                loop {
                    match shared.0.load(Ordering::Acquire) {
                        IDLE => {}
                        REQUEST => shared.0.store(IDLE, Ordering::Release),
                        PARK => thread::park(),
                        _ => break,
                    }
                }
            })?;
        Ok(Spin {
            line,
            echo: Some(echo),
            cpus,
        })
    }
}

impl Peer for Spin {
    fn repeat(&self, _: Work, times: u32) {
        for _ in 0..times {
            self.line.0.store(REQUEST, Ordering::Release);
            while self.line.0.load(Ordering::Acquire) != IDLE {}
        }
    }

    fn place(&self) -> Option<u64> {
        None
    }

    fn begin(&self) {
        cpus::restrict_to(&self.cpus[..1]).expect("a CPU we were on is still ours");
        self.line.0.store(IDLE, Ordering::Release);
        if let Some(echo) = &self.echo {
            echo.thread().unpark();
        }
        self.repeat(Work::Empty, 1);
    }

    fn end(&self) {
        self.line.0.store(PARK, Ordering::Release);
        cpus::restrict_to(&self.cpus).expect("CPUs we were on are still ours");
    }
}

impl Drop for Spin {
    fn drop(&mut self) {
        self.line.0.store(STOP, Ordering::Release);
        if let Some(echo) = self.echo.take() {
            echo.thread().unpark();
            // It has nothing to panic over.
            let _ = echo.join();
        }
    }
}

pub(super) fn futex(_: &Site<'_>) -> Result<Box<dyn Peer>> {
    Ok(Box::new(Futex::new(None)?))
}

pub(super) fn futex_on_one_cpu(_: &Site<'_>) -> Result<Box<dyn Peer>> {
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

    fn place(&self) -> Option<u64> {
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
