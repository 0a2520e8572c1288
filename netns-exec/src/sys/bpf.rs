//! Assembling the programs that seccomp(2) and `SO_ATTACH_FILTER` take: classic
//! BPF, which looks at one 32-bit word at a time.

use std::mem::offset_of;

use libc::{seccomp_data, sock_filter};

#[cfg(not(all(
    target_endian = "little",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
compile_error!("netns-exec knows the system calls of x86-64 and aarch64 only");

/// The architecture that [`ARCH`] is to hold.
#[cfg(target_arch = "x86_64")]
pub(crate) const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(crate) const AUDIT_ARCH: u32 = 0xc000_00b7;

// Where a system call's filter finds what it looks at. The lower word comes
// first.
pub(crate) const NR: u32 = offset_of!(seccomp_data, nr) as u32;
pub(crate) const ARCH: u32 = offset_of!(seccomp_data, arch) as u32;
pub(crate) const IP_LOW: u32 = offset_of!(seccomp_data, instruction_pointer) as u32;
pub(crate) const IP_HIGH: u32 = IP_LOW + 4;

/// Where the lower word of an argument is.
pub(crate) const fn arg_low(index: usize) -> u32 {
    (offset_of!(seccomp_data, args) + index * size_of::<u64>()) as u32
}

/// Loads the word at `offset`.
pub(crate) fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

pub(crate) fn and(mask: u32) -> sock_filter {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask, 0, 0)
}

/// Skips `yes` or `no` instructions; `BPF_JA` skips `operand`.
pub(crate) fn jump(condition: u32, operand: u32, yes: u8, no: u8) -> sock_filter {
    instruction(libc::BPF_JMP | condition | libc::BPF_K, operand, yes, no)
}

pub(crate) fn ret(value: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, value, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}
