//! Namespace handles: where they come from, what they mean, what they refuse.

mod callers;
mod handles;
mod life;
mod names;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{Netns, WeakNetns};

fn path_of(name: &str) -> String {
    format!("/run/netns/{name}")
}

fn inode_of(netns: &Netns) -> u64 {
    let file = File::from(netns.as_fd().try_clone_to_owned().unwrap());
    file.metadata().unwrap().ino()
}

/// Runs `f` on a thread of its own, which it may ruin.
fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Waits until the namespace has died: a child that another test just forked
/// holds copies of our descriptors until it has called exec.
fn wait_until_dead(weak: &WeakNetns) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while weak.upgrade().is_some() {
        assert!(Instant::now() < deadline, "{weak:?} is still alive");
        thread::yield_now();
    }
}

/// A process that lives until it is dropped, in the namespace `ip netns exec`
/// puts it in.
struct Sleeper(Child);

impl Sleeper {
    fn in_netns(name: &str) -> Sleeper {
        let mut child = Command::new("ip")
            .args(["netns", "exec", name, "sh", "-c", "echo up; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Has arrived once it speaks.
        let mut byte = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
        Sleeper(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
