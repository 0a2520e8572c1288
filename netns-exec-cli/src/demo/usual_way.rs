//! What the demo begins with: the fault itself.

use std::fs::{self, File};
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use netns_exec::{Netns, audit};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::gettid;

use crate::failure::Failure;

/// What the thread is called that is left behind, as by a library that has a pool.
const POOL: &str = "pool-worker";

/// A thread that was left in a namespace.
pub(super) struct LeftBehind {
    tid: u32,
    end: Sender<()>,
    thread: JoinHandle<()>,
}

impl LeftBehind {
    /// A thread enters `ns`, calls something that starts another one, and goes back. It
    /// begins in a namespace of its own where it could not go back home: a user namespace
    /// that was entered for the demo does not own that.
    #[expect(
        clippy::disallowed_methods,
        reason = "shows what comes of it, on a thread of its own that ends"
    )]
    pub(super) fn in_netns(ns: &Netns, owns_home: bool) -> Result<LeftBehind, Failure> {
        let ns = ns.clone();
        let goes_and_comes = move || -> io::Result<LeftBehind> {
            if !owns_home {
                unshare(CloneFlags::CLONE_NEWNET)?;
            }
            let before = File::open("/proc/thread-self/ns/net")?;
            setns(&ns, CloneFlags::CLONE_NEWNET)?;
            let (end, ended) = channel();
            let (born, tid) = channel();
            let started = Builder::new().name(POOL.to_owned()).spawn(move || {
                let _ = born.send(gettid().as_raw().unsigned_abs());
                let _ = ended.recv();
            });
            setns(before, CloneFlags::CLONE_NEWNET)?;
            let thread = started?;
            let tid = tid.recv().map_err(io::Error::other)?;
            Ok(LeftBehind { tid, end, thread })
        };
        let caller = Builder::new().name("usual-way".to_owned());
        (caller.spawn(goes_and_comes))
            .and_then(|caller| caller.join().expect("it does not panic"))
            .map_err(|error| Failure::io("cannot show the usual way", error))
    }

    /// Where an audit of this process finds it.
    pub(super) fn found(&self) -> Result<Option<String>, Failure> {
        let shown = audit::Process::this()?;
        let mut strays = shown.strays();
        let found = strays.find(|stray| stray.tid() == self.tid);
        Ok(found.map(|stray| {
            format!(
                "thread {} ({}) is in {}",
                stray.tid(),
                stray.name(),
                stray.label()
            )
        }))
    }

    /// Ends it, and waits until no audit finds it any more.
    pub(super) fn end(self) {
        drop(self.end);
        let _ = self.thread.join();
        let task = format!("/proc/self/task/{}", self.tid);
        while fs::exists(&task).unwrap_or(false) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
