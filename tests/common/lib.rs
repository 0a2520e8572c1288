//! Fixtures shared by the tests: namespaces that go away with the test that made them.

mod allocator;
mod alone;
mod child;
mod copy;
mod held;
pub mod late;
mod main_thread;
mod panics;
pub mod ports;
mod process;
mod refuse;
mod signals;
mod threads;
mod wait;

use std::ops::Deref;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use netns_exec::{Guard, Netns, NetnsId};

pub use allocator::OnlyHere;
pub use alone::{
    Alone, Binary, handed_over, is_alone, note, rerun, run_alone, test_of, to_hand_over,
};
pub use child::{Sleeper, as_ordinary_user};
pub use copy::{assert_ended_well, begin_copy, in_a_copy};
pub use held::Held;
pub use main_thread::{end_this_thread, has_main_thread_ended, in_main_thread, move_this_thread};
pub use panics::{panic_of, panic_text};
pub use process::{
    blocked_signals, blocked_signals_of, drop_all_capabilities, drop_sys_admin,
    fds_of_this_process, is_cloexec, netns_cookie_of, netns_link_of, netns_link_of_this_thread,
    next_bpf_program, on_a_thread, path_of, resident, settle, sleeps_in, sleeps_of, sleeps_soundly,
    status_of, threads_named, threads_of_this_process, tid, tids, tids_named, wait_for_exit,
};
pub use refuse::{
    listen_to, refuse_fanotify, refuse_fstatfs, refuse_mount, refuse_own_mounts, refuse_traps,
};
pub use signals::SignalLog;
pub use threads::{Parked, RawThread, end_thread, strays_in};
pub use wait::{Gate, Over, Pass, eventually, within};

/// Every guard there is.
pub const GUARDS: [Guard; 4] = [Guard::Seal, Guard::KeepAdmin, Guard::Detect, Guard::Off];

/// Fails the test, with the cure in the message, where it cannot work.
pub fn require_root() {
    let root = nix::unistd::geteuid().is_root();
    assert!(
        root,
        "this test makes network namespaces: run it as root, for instance \
         `sudo -E env PATH=\"$PATH\" cargo test`, or in a container with --privileged"
    );
}

/// A namespace without a name.
pub fn fresh() -> Netns {
    require_root();
    Netns::new().expect("a namespace")
}

/// The namespace of the calling thread.
pub fn here() -> NetnsId {
    Netns::current().expect("own namespace").id()
}

/// A name that no other test, process or run uses at the same time.
pub fn unique_name() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    // The time too: a run that was killed leaves its names to the process that gets its pid.
    static TIME: OnceLock<u32> = OnceLock::new();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH);
    let time = TIME.get_or_init(|| now().map_or(0, |time| time.subsec_micros()));
    format!("nxt-{}-{time:x}-{n}", std::process::id())
}

/// A named namespace that is deleted on drop.
pub struct TempNetns {
    name: String,
    netns: Netns,
}

impl TempNetns {
    /// Makes one under a name of its own.
    #[expect(clippy::new_without_default, reason = "it does a lot")]
    pub fn new() -> TempNetns {
        require_root();
        let name = unique_name();
        let netns = Netns::create(&name).expect("a namespace with a new name");
        TempNetns { name, netns }
    }

    /// Deletes the name, and makes another namespace that has it.
    pub fn renew(&mut self) {
        Netns::delete(&self.name).expect("the name is there");
        self.netns = Netns::create(&self.name).expect("a namespace with a free name");
    }

    /// Makes one with its loopback up.
    pub fn with_loopback() -> TempNetns {
        let netns = TempNetns::new();
        netns.set_loopback_up().expect("root may set links up");
        netns
    }

    /// The name that `ip netns` knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The handle.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Drops the handle and keeps the name, which is the caller's from now on.
    pub fn keep_name(mut self) {
        self.name.clear();
    }

    /// Deletes the name and drops the handle.
    pub fn delete(self) {
        Netns::delete(&self.name).expect("the name is there");
    }
}

impl Deref for TempNetns {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

impl Drop for TempNetns {
    fn drop(&mut self) {
        // The test may have deleted it itself.
        let _ = Netns::delete(&self.name);
    }
}

/// A name that is deleted on drop, if there is a namespace of that name.
pub struct TempName(pub String);

impl TempName {
    /// A name of its own, not yet made.
    #[expect(clippy::new_without_default, reason = "each one differs")]
    pub fn new() -> TempName {
        require_root();
        TempName(unique_name())
    }
}

impl Deref for TempName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Drop for TempName {
    fn drop(&mut self) {
        let _ = Netns::delete(&self.0);
    }
}

/// Runs `ip` and returns what it wrote.
///
/// # Panics
///
/// When it fails.
pub fn ip(args: &[&str]) -> String {
    let output = try_ip(args);
    assert!(
        output.status.success(),
        "ip {args:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("ip writes UTF-8")
}

/// Runs `ip` and returns how it ended.
pub fn try_ip(args: &[&str]) -> Output {
    let output = Command::new("ip").args(args).output();
    output.expect("the tests need iproute2: install it, for instance `apt install iproute2`")
}

/// The names that `ip netns list` shows.
pub fn names_by_ip() -> Vec<String> {
    let list = ip(&["netns", "list"]);
    // A name may be followed by "(id: 0)".
    let names = list.lines().filter_map(|line| line.split(' ').next());
    names.map(str::to_owned).collect()
}
