//! Programs that the kernel refuses what it usually grants.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;

/// Has the children of a command get EPERM from fstatfs(2), as the filters of
/// container runtimes do with calls that they do not know.
pub fn refuse_fstatfs(command: &mut Command) {
    refuse(command, libc::SYS_fstatfs, None);
}

/// As [`refuse_fstatfs`], for fanotify_init(2): as on a kernel that does not tell of
/// mounts by events.
pub fn refuse_fanotify(command: &mut Command) {
    refuse(command, libc::SYS_fanotify_init, None);
}

/// Has the children of a command get EPERM where they unshare(2) the mounts, as from the
/// filters of container runtimes, which go further.
pub fn refuse_own_mounts(command: &mut Command) {
    let own_mounts = (libc::BPF_JSET, libc::CLONE_NEWNS as u32);
    refuse(command, libc::SYS_unshare, Some(own_mounts));
}

/// Has the children of a command get EPERM from mount(2), as from the filters of
/// container runtimes that allow user namespaces.
pub fn refuse_mount(command: &mut Command) {
    refuse(command, libc::SYS_mount, None);
}

/// Has the children of a command get EPERM from prctl(2) with the operation by which workers
/// park: as from the filter of a container that knows all operations.
pub fn refuse_traps(command: &mut Command) {
    refuse(command, libc::SYS_prctl, Some((libc::BPF_JEQ, 0x2e7e_2e7e)));
}

/// Where there is a test, only where the first argument passes it.
#[allow(unsafe_code)]
fn refuse(command: &mut Command, call: libc::c_long, only_if: Option<(u32, u32)>) {
    /// Where the low half of the first argument is in seccomp_data.
    const ARGUMENT: u32 = 16;
    let (is_meant, value) = only_if.unwrap_or((libc::BPF_JGE, 0));
    let statement = |code: u32, k: u32, jf: u8| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let filter = [
        // The first field of seccomp_data is the number of the call.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32, 3),
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, ARGUMENT, 0),
        statement(libc::BPF_JMP | is_meant | libc::BPF_K, value, 1),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
            0,
        ),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let step = move || {
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel reads `program` and the filter, which outlive the call.
        let rc = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        match rc {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the step is one system call and allocates nothing.
    unsafe { command.pre_exec(step) };
}

/// Has the children of a command live under a seccomp filter that is listened to already,
/// as a container runtime does that answers some calls itself: a second listener is
/// `EBUSY`.
#[allow(unsafe_code)]
pub fn listen_to(command: &mut Command) {
    let allow = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    }];
    let step = move || {
        let program = libc::sock_fprog {
            len: allow.len() as u16,
            filter: allow.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel reads `program` and the filter, which outlive the call.
        let listener = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const program,
            )
        };
        // For as long as it is open. SAFETY: takes integers.
        match unsafe { libc::fcntl(listener as libc::c_int, libc::F_SETFD, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the step makes two system calls and allocates nothing.
    unsafe { command.pre_exec(step) };
}
