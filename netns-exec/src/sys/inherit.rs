//! What a thread inherits from the thread that creates it, see clone(2), and how the
//! calling thread gets what the process's main thread has in its stead.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns};
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, getpid, gettid};

use super::{caps, task, thread};

/// What the calling thread could not get from the main thread.
#[derive(Debug)]
pub(crate) struct Difference {
    /// In words: "the capabilities (CapPrm)".
    pub(crate) attribute: &'static str,
    pub(crate) cause: io::Error,
}

impl Difference {
    /// Nothing can be done about this one.
    fn stays(attribute: &'static str, errno: Errno) -> Difference {
        Difference {
            attribute,
            cause: errno.into(),
        }
    }

    /// What was tried failed.
    fn because<E: Into<io::Error>>(attribute: &'static str) -> impl FnOnce(E) -> Difference {
        move |cause| Difference {
            attribute,
            cause: cause.into(),
        }
    }
}

pub(crate) const NETWORK_NAMESPACE: &str = "the network namespace";

/// Gives the calling thread what the main thread has of everything that a thread
/// inherits and `/proc` shows, but the signal mask.
///
/// What cannot be had (a capability, another user, a descriptor table, freedom from a
/// seccomp filter) is an error; by then the thread may have got the rest. Not looked
/// at, because the kernel shows them of the calling thread alone or not at all: I/O
/// priority, NUMA policy, securebits, keyrings, the Landlock domain.
pub(crate) fn adopt_from_main() -> Result<(), Difference> {
    namespaces()?;
    shared_tables()?;
    // Before the capabilities, which it may take.
    scheduling()?;
    cpus()?;
    timer_slack();
    privileges()?;
    for (file, attribute) in [
        ("attr/current", "the label of the security module"),
        ("personality", "the execution domain (personality(2))"),
        ("cgroup", "the control group"),
    ] {
        let read = |task| fs::read(format!("/proc/{task}/{file}")).ok();
        // The process may be moved as a whole between two readings.
        let differs = || read(main_task()) != read("thread-self".to_owned());
        if differs() && differs() && differs() {
            return Err(Difference::stays(attribute, Errno::EPERM));
        }
    }
    Ok(())
}

/// The main thread's signal mask, for a thread that is to behave as one of the process's.
pub(crate) fn adopt_mask_of_main() -> io::Result<()> {
    thread::restore_signals(&mask_of_main()?)
}

/// The signals that the main thread blocks.
pub(crate) fn mask_of_main() -> io::Result<SigSet> {
    let status = Status::read(&main_task())?;
    let blocked = status.bits("SigBlk");
    let mut mask = *SigSet::empty().as_ref();
    // Real-time signals too.
    for signal in (1..=64).filter(|signal| blocked & (1 << (signal - 1)) != 0) {
        // SAFETY: `mask` is an initialized set. The C library's own signals, which
        // are never blocked, are refused.
        unsafe { libc::sigaddset(&raw mut mask, signal) };
    }
    // SAFETY: made from an initialized set by sigaddset(3) alone.
    Ok(unsafe { SigSet::from_sigset_t_unchecked(mask) })
}

/// What the main thread is called, as `ps -L` shows it.
#[cfg(feature = "births-at-home")]
pub(crate) fn name_of_main() -> Option<std::ffi::CString> {
    let mut name = fs::read(format!("/proc/{}/comm", main_task())).ok()?;
    name.pop_if(|end| *end == b'\n');
    std::ffi::CString::new(name).ok()
}

/// The main thread's folder in `/proc`: `self` has the files of the process.
fn main_task() -> String {
    format!("self/task/{}", getpid())
}

/// Whether the process goes on without its main thread.
pub(crate) fn has_main_thread_ended() -> bool {
    task::alive_since(std::process::id()).is_ok_and(|started| started.is_none())
}

#[expect(clippy::disallowed_methods, reason = "on threads that are being made")]
fn namespaces() -> Result<(), Difference> {
    let all: [(&str, &str, Option<CloneFlags>); 8] = [
        ("net", NETWORK_NAMESPACE, Some(CloneFlags::CLONE_NEWNET)),
        ("uts", "the UTS namespace", Some(CloneFlags::CLONE_NEWUTS)),
        ("ipc", "the IPC namespace", Some(CloneFlags::CLONE_NEWIPC)),
        (
            "cgroup",
            "the cgroup namespace",
            Some(CloneFlags::CLONE_NEWCGROUP),
        ),
        ("pid_for_children", "the pid namespace of children", None),
        ("time_for_children", "the time namespace of children", None),
        ("mnt", "the mount namespace", None),
        ("user", "the user namespace", None),
    ];
    for (file, attribute, flag) in all {
        let path = |task: &str| format!("/proc/{task}/ns/{file}");
        let (main, here) = (path(&main_task()), path("thread-self"));
        let key = |path: &str| fs::metadata(path).map(|it| (it.dev(), it.ino()));
        // Both threads are alive, so neither inode number can have been reused.
        let differ = match (key(&main), key(&here)) {
            (Ok(main), Ok(here)) => main != here,
            (Err(cause), _) if file == "net" => return Err(Difference::because(attribute)(cause)),
            // A kernel without namespaces of this type.
            (main, here) => main.is_ok() != here.is_ok(),
        };
        if !differ {
            continue;
        }
        let Some(flag) = flag else {
            return Err(Difference::stays(attribute, Errno::EINVAL));
        };
        let main = fs::File::open(main).map_err(Difference::because(attribute))?;
        setns(main, flag).map_err(Difference::because(attribute))?;
    }
    Ok(())
}

/// No thread can take up another one's.
fn shared_tables() -> Result<(), Difference> {
    let main = getpid().as_raw().unsigned_abs();
    if !shares_descriptors_with(main) {
        let attribute = "the descriptor table (CLONE_FILES)";
        return Err(Difference::stays(attribute, Errno::EINVAL));
    }
    let shares_fs = kcmp(main, KCMP_FS).unwrap_or_else(|_| {
        let same = |file: &str| {
            let read = |task: &str| fs::read_link(format!("/proc/{task}/{file}")).ok();
            read(&main_task()) == read("thread-self")
        };
        same("cwd") && same("root")
    });
    match shares_fs {
        true => Ok(()),
        false => Err(Difference::stays(
            "the working directory and umask (CLONE_FS)",
            Errno::EINVAL,
        )),
    }
}

const KCMP_FILES: libc::c_int = 2;
const KCMP_FS: libc::c_int = 3;

/// Whether the calling thread shares `what` with the thread `tid`, see kcmp(2).
fn kcmp(tid: u32, what: libc::c_int) -> io::Result<bool> {
    let me = gettid().as_raw();
    // SAFETY: the call takes integers.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, me, tid, what, 0_usize, 0_usize) };
    Ok(Errno::result(order)? == 0)
}

/// Whether a descriptor means the same file to the calling thread and to the thread
/// `tid` of this process. Believed where kcmp(2) cannot be had.
pub(crate) fn shares_descriptors_with(tid: u32) -> bool {
    kcmp(tid, KCMP_FILES).unwrap_or(true)
}

/// The first version of the kernel's `struct sched_attr`, see sched_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

impl SchedAttr {
    const SIZE: u32 = size_of::<SchedAttr>() as u32;

    fn of(tid: u32) -> io::Result<SchedAttr> {
        let mut attr = SchedAttr::default();
        // SAFETY: the kernel writes at most `SIZE` bytes to a live variable.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_sched_getattr,
                tid,
                &raw mut attr,
                SchedAttr::SIZE,
                0,
            )
        };
        Errno::result(rc)?;
        attr.size = SchedAttr::SIZE;
        Ok(attr)
    }

    fn set(&self) -> io::Result<()> {
        // SAFETY: the kernel reads `size` bytes of a live variable.
        let rc = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *self, 0) };
        Errno::result(rc)?;
        Ok(())
    }

    /// What a thread has that one with these attributes creates.
    fn inherited(mut self) -> SchedAttr {
        const RESET_ON_FORK: u64 = 1;
        let is_fair = |policy| matches!(policy as i32, libc::SCHED_OTHER | libc::SCHED_BATCH);
        if self.flags & RESET_ON_FORK != 0 || self.policy as i32 == libc::SCHED_DEADLINE {
            if !is_fair(self.policy) && self.policy as i32 != libc::SCHED_IDLE {
                self = SchedAttr {
                    size: SchedAttr::SIZE,
                    ..SchedAttr::default()
                };
            }
            self.nice = self.nice.max(0);
        }
        // Newer kernels give a fair thread's slice here, which is its own.
        if self.policy as i32 != libc::SCHED_DEADLINE {
            (self.runtime, self.deadline, self.period) = (0, 0, 0);
        }
        self.flags = 0;
        self
    }
}

fn scheduling() -> Result<(), Difference> {
    let failed = || Difference::because("the scheduling policy and nice value");
    let main = getpid().as_raw().unsigned_abs();
    let wanted = SchedAttr::of(main).map_err(failed())?.inherited();
    /// The calling thread, in place of a thread's id.
    const SELF: u32 = 0;

    let own = || SchedAttr::of(SELF).map(SchedAttr::inherited);
    if own().map_err(failed())? != wanted {
        wanted.set().map_err(failed())?;
    }
    Ok(())
}

fn cpus() -> Result<(), Difference> {
    const ATTRIBUTE: &str = "the CPUs";
    let of = |pid| -> Option<CpuSet> { sched_getaffinity(pid).ok() };
    // Fails where there are more than the set has room for.
    let Some(main) = of(getpid()) else {
        return Ok(());
    };
    let me = Pid::from_raw(0);
    if of(me) != Some(main) {
        sched_setaffinity(me, &main).map_err(Difference::because(ATTRIBUTE))?;
        // The kernel takes those that the control group allows.
        if of(me) != Some(main) {
            return Err(Difference::stays(ATTRIBUTE, Errno::EINVAL));
        }
    }
    Ok(())
}

/// To read that of another thread takes `CAP_SYS_NICE`. Without, it stays.
fn timer_slack() {
    let main = fs::read_to_string("/proc/self/timerslack_ns");
    if let Some(slack) = main.ok().and_then(|text| text.trim().parse().ok()) {
        // 0 would mean another one.
        if slack > 0 {
            let _ = prctl::set_timerslack(slack);
        }
    }
}

fn privileges() -> Result<(), Difference> {
    let failed = || Difference::because("the privileges (/proc cannot be read)");
    let main = Status::read(&main_task()).map_err(failed())?;
    let here = Status::read("thread-self").map_err(failed())?;
    if main.field("NoNewPrivs") == Some("1") {
        let _ = prctl::set_no_new_privs();
    }
    let of_caps = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    if of_caps.iter().any(|key| main.field(key) != here.field(key)) {
        let [inheritable, permitted, effective, bounding, ambient] =
            of_caps.map(|key| main.bits(key));
        // What fails shows below.
        let _ = caps::become_like(&caps::All {
            inheritable,
            permitted,
            effective,
            bounding,
            ambient,
        });
    }
    let here = Status::read("thread-self").map_err(failed())?;
    for (key, attribute) in [
        ("Uid", "the user (Uid)"),
        ("Gid", "the group (Gid)"),
        ("Groups", "the supplementary groups"),
        ("CapPrm", "the permitted capabilities (CapPrm)"),
        ("CapEff", "the effective capabilities (CapEff)"),
        ("CapInh", "the inheritable capabilities (CapInh)"),
        ("CapBnd", "the bounding set of capabilities (CapBnd)"),
        ("CapAmb", "the ambient capabilities (CapAmb)"),
        ("NoNewPrivs", "the NO_NEW_PRIVS flag"),
        ("Seccomp", "the seccomp mode"),
        ("Seccomp_filters", "the seccomp filters"),
    ] {
        if main.field(key) != here.field(key) {
            return Err(Difference::stays(attribute, Errno::EPERM));
        }
    }
    Ok(())
}

/// A thread's `/proc/.../status`.
struct Status(String);

impl Status {
    fn read(task: &str) -> io::Result<Status> {
        fs::read_to_string(format!("/proc/{task}/status")).map(Status)
    }

    fn field(&self, key: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        lines.find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
    }

    fn bits(&self, key: &str) -> u64 {
        let bits = self.field(key).unwrap_or_default();
        u64::from_str_radix(bits, 16).unwrap_or(0)
    }
}
