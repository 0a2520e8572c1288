//! Programs that the kernel refuses what it usually grants.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;

/// Has the children of a command get EPERM from fstatfs(2), as the filters of
/// container runtimes do with calls that they do not know.
#[allow(unsafe_code)]
pub fn refuse_fstatfs(command: &mut Command) {
    // SAFETY: the step is one system call and allocates nothing.
    unsafe { command.pre_exec(|| refuse(libc::SYS_fstatfs)) };
}

/// As [`refuse_fstatfs`], for fanotify_init(2): as on a kernel that does not tell of
/// mounts by events.
#[allow(unsafe_code)]
pub fn refuse_fanotify(command: &mut Command) {
    // SAFETY: as above.
    unsafe { command.pre_exec(|| refuse(libc::SYS_fanotify_init)) };
}

#[allow(unsafe_code)]
fn refuse(call: libc::c_long) -> io::Result<()> {
    let statement = |code: u32, k: u32, jf: u8| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let filter = [
        // The first field of seccomp_data is the number of the call.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32, 1),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
            0,
        ),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
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
}
