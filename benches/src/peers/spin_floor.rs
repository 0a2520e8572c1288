//! What the hardware allows at best: a word handed to another CPU and back, with
//! nothing else done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use super::floor_line::{IDLE, Line, PARK, REQUEST, STOP};
use super::peer::{Peer, Setup};
use crate::Result;
use crate::conditions::cpus;
use crate::work::Work;

pub(super) fn call(_: &Setup<'_>) -> Result<Box<dyn Peer>> {
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

    fn netns_inode(&self) -> Option<u64> {
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
