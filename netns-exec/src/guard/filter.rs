//! The filter of `Guard::Seal`: which calls of which code are refused.
//!
//! Filters are inherited across execve(2), and a child must be able to create
//! threads. What tells the child's calls from ours is where they come from:
//! the filter refuses only calls whose instruction pointer lies in code of this
//! process, and randomisation puts a child's code elsewhere. How wide "code of
//! this process" is decides how likely a child is hit by accident: it is when
//! its libc lies such that the instruction in question falls into the range.
//! On x86-64 there are 2^28 places, but on many arm64 kernels only 2^18, so a
//! whole libc (some 400 pages) would break one child in 650 there. So:
//!
//! - clone(2) is refused to the two functions of libc that do it (`clone`, on
//!   which `pthread_create` is built, and `syscall`), a range that is hit only
//!   by a child that has the very same libc at the very same address, and to
//!   the executable, which is somewhere else altogether than any libc;
//! - clone3(2) and io_uring_setup(2) are answered with `ENOSYS` to all objects
//!   that are loaded: a child that is hit falls back.
//!
//! An executable linked at a fixed address shares its addresses with every
//! other one, so it counts only when it is all there is (static linking).

use std::ops::Range;

use libc::sock_filter;

use crate::sys;
use crate::sys::bpf::{self, AUDIT_ARCH, and, arg_low, jump, load, ret};

/// Where the code lies that the filter is about.
#[derive(Debug)]
pub(super) struct Code {
    /// What is known to call clone(2), and the executable.
    pub(super) cloners: Vec<Range<u64>>,
    /// All there is.
    pub(super) objects: Vec<Range<u64>>,
}

impl Code {
    pub(super) fn of_this_process() -> Code {
        /// Longer than any libc's `clone` and `syscall`, which are written in
        /// assembly; what lies behind them does not clone.
        const FUNCTION: u64 = 256;

        let objects = sys::text::objects();
        let is_static = objects.len() == 1;
        let counts = |object: &&sys::text::Object| is_static || !object.fixed;
        let executable = objects.first().filter(counts);
        let entries = sys::text::libc_entries();
        Code {
            cloners: (entries.into_iter())
                .map(|entry| entry..entry + FUNCTION)
                .chain(
                    executable
                        .into_iter()
                        .flat_map(|object| object.text.clone()),
                )
                .collect(),
            objects: (objects.iter().filter(counts))
                .flat_map(|object| object.text.clone())
                .collect(),
        }
    }
}

/// The most ranges that a list is written out with; a program has room for
/// 4096 instructions.
const MAX_RANGES: usize = 256;

/// Set in the numbers of the x32 ABI, which has the same architecture, and the
/// same numbers for the calls in question.
const X32_BIT: u32 = 0x4000_0000;

/// Assembles the filter: `clone` for a thread is refused to code in `cloners`,
/// and clone3 and io_uring_setup do not exist for code in `objects`.
///
/// Calls of another architecture pass: only a child comes to make any. The
/// numbers are looked at first, so that the kernel can tell ahead of time that
/// all other calls pass, and does not run the program for them (Linux 5.11).
pub(super) fn program(cloners: &[Range<u64>], objects: &[Range<u64>]) -> Vec<sock_filter> {
    let not_permitted = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let no_such_call = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    let mut clone = vec![
        load(arg_low(0)),
        jump(libc::BPF_JSET, libc::CLONE_THREAD as u32, 1, 0),
        ret(libc::SECCOMP_RET_ALLOW),
    ];
    answer_in(cloners, not_permitted, &mut clone);

    let mut program = vec![
        load(bpf::ARCH),
        jump(libc::BPF_JEQ, AUDIT_ARCH, 0, 5),
        load(bpf::NR),
        and(!X32_BIT),
        jump(libc::BPF_JEQ, number(libc::SYS_clone), 4, 0),
        jump(libc::BPF_JEQ, number(libc::SYS_clone3), 2, 0),
        jump(libc::BPF_JEQ, number(libc::SYS_io_uring_setup), 1, 0),
        ret(libc::SECCOMP_RET_ALLOW),
        // Conditional jumps reach no further than 255 instructions.
        jump(libc::BPF_JA, clone.len() as u32, 0, 0),
    ];
    program.append(&mut clone);
    answer_in(objects, no_such_call, &mut program);
    program
}

/// Appends: return `answer` if the instruction pointer is in one of `ranges`,
/// else allow the call.
fn answer_in(ranges: &[Range<u64>], answer: u32, program: &mut Vec<sock_filter>) {
    for piece in pieces(ranges) {
        program.extend([
            load(bpf::IP_HIGH),
            jump(libc::BPF_JEQ, piece.high, 0, 4),
            load(bpf::IP_LOW),
            jump(libc::BPF_JGE, piece.first, 0, 2),
            jump(libc::BPF_JGT, piece.last, 1, 0),
            ret(answer),
        ]);
    }
    program.push(ret(libc::SECCOMP_RET_ALLOW));
}

/// Addresses with the same upper half.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    high: u32,
    first: u32,
    last: u32,
}

/// Cuts ranges where the upper half of the address changes: a filter compares
/// 32 bits at a time.
fn pieces(ranges: &[Range<u64>]) -> Vec<Piece> {
    let mut ranges: Vec<_> = (ranges.iter().filter(|range| !range.is_empty()))
        .cloned()
        .collect();
    ranges.sort_by_key(|range| range.start);
    while ranges.len() > MAX_RANGES {
        // Too many: let the two nearest be one.
        let gap = |at: usize| ranges[at + 1].start.saturating_sub(ranges[at].end);
        let nearest = (0..ranges.len() - 1)
            .min_by_key(|&at| gap(at))
            .expect("more than one");
        let next = ranges.remove(nearest + 1);
        ranges[nearest].end = ranges[nearest].end.max(next.end);
    }

    let mut pieces = Vec::new();
    for range in ranges {
        let last = range.end - 1;
        for high in range.start >> 32..=last >> 32 {
            pieces.push(Piece {
                high: high as u32,
                first: range.start.max(high << 32) as u32,
                last: last.min(high << 32 | 0xffff_ffff) as u32,
            });
        }
    }
    pieces
}

fn number(call: libc::c_long) -> u32 {
    call as u32 & !X32_BIT
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    struct Call {
        arch: u32,
        nr: u32,
        ip: u64,
        flags: u64,
    }

    const ARG0: u32 = arg_low(0);

    /// What the kernel would make of `program`.
    fn run(program: &[sock_filter], call: &Call) -> u32 {
        let word = |offset| match offset {
            bpf::NR => call.nr,
            bpf::ARCH => call.arch,
            bpf::IP_LOW => call.ip as u32,
            bpf::IP_HIGH => (call.ip >> 32) as u32,
            ARG0 => call.flags as u32,
            _ => panic!("nothing else is read"),
        };
        let (mut a, mut pc) = (0_u32, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[pc];
            pc += 1;
            let branch = |taken| usize::from(if taken { jt } else { jf });
            match u32::from(code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => a = word(k),
                code if code == libc::BPF_ALU | libc::BPF_AND => a &= k,
                code if code == libc::BPF_JMP | libc::BPF_JA => pc += k as usize,
                code if code == libc::BPF_JMP | libc::BPF_JEQ => pc += branch(a == k),
                code if code == libc::BPF_JMP | libc::BPF_JGT => pc += branch(a > k),
                code if code == libc::BPF_JMP | libc::BPF_JGE => pc += branch(a >= k),
                code if code == libc::BPF_JMP | libc::BPF_JSET => pc += branch(a & k != 0),
                code if code == libc::BPF_RET => return k,
                code => panic!("unexpected instruction {code:#x}"),
            }
        }
    }

    fn thread_at(ip: u64) -> Call {
        Call {
            arch: AUDIT_ARCH,
            nr: number(libc::SYS_clone),
            ip,
            flags: (libc::CLONE_THREAD | libc::CLONE_VM) as u64,
        }
    }

    fn call_at(nr: libc::c_long, ip: u64) -> Call {
        Call {
            nr: number(nr),
            ..thread_at(ip)
        }
    }

    /// Three ranges: an ordinary one, one across a border of the upper half,
    /// and one that holds a whole upper half.
    const RANGES: [Range<u64>; 3] = [
        0x7f12_0000_1000..0x7f12_0000_3000,
        0x7f33_ffff_f000..0x7f34_0000_1000,
        0x7f40_8000_0000..0x7f42_0000_0001,
    ];

    #[test]
    fn ranges_end_where_they_should() {
        let program = program(&RANGES, &[]);
        let inside = [
            0x7f12_0000_1000,
            0x7f12_0000_2fff,
            0x7f33_ffff_f000,
            0x7f33_ffff_ffff,
            0x7f34_0000_0000,
            0x7f34_0000_0fff,
            0x7f40_8000_0000,
            0x7f41_0000_0000,
            0x7f41_1234_5678,
            0x7f42_0000_0000,
        ];
        for ip in inside {
            assert_eq!(run(&program, &thread_at(ip)), EPERM, "{ip:#x}");
        }
        let outside = [
            0,
            0x0000_0000_1000,
            0x7f12_0000_0fff,
            0x7f12_0000_3000,
            0x7f13_0000_2000,
            0x7f33_ffff_efff,
            0x7f34_0000_1000,
            0x7f40_7fff_ffff,
            0x7f42_0000_0001,
            u64::MAX,
        ];
        for ip in outside {
            assert_eq!(run(&program, &thread_at(ip)), ALLOW, "{ip:#x}");
        }
    }

    #[test]
    fn only_threads_are_refused() {
        let program = program(&RANGES, &RANGES);
        let ip = RANGES[0].start;
        assert_eq!(run(&program, &thread_at(ip)), EPERM);
        // vfork(2) and posix_spawn(3).
        let flags = (libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD) as u64;
        let process = Call {
            flags,
            ..thread_at(ip)
        };
        assert_eq!(run(&program, &process), ALLOW);
        assert_eq!(run(&program, &call_at(libc::SYS_getppid, ip)), ALLOW);
    }

    #[test]
    fn what_cannot_be_looked_into_does_not_exist() {
        let ours = RANGES[1].start;
        let program = program(&RANGES[..1], &RANGES);
        for nr in [libc::SYS_clone3, libc::SYS_io_uring_setup] {
            assert_eq!(run(&program, &call_at(nr, ours)), ENOSYS);
            assert_eq!(run(&program, &call_at(nr, 0x4000)), ALLOW);
        }
        assert_eq!(run(&program, &thread_at(ours)), ALLOW);
    }

    #[test]
    fn programs_of_another_architecture_are_let_be() {
        const I386: u32 = 0x4000_0003;
        let program = program(&RANGES, &RANGES);
        let call = Call {
            arch: I386,
            ..thread_at(RANGES[0].start)
        };
        assert_eq!(run(&program, &call), ALLOW);
    }

    #[test]
    fn x32_is_not_another_architecture() {
        let program = program(&RANGES, &RANGES);
        let mut call = thread_at(RANGES[0].start);
        call.nr |= X32_BIT;
        assert_eq!(run(&program, &call), EPERM);
    }

    #[test]
    fn any_number_of_objects_fits() {
        let objects: Vec<_> = (0..1_000_u64)
            .map(|at| 0x7f00_0000_0000 + at * 0x10_0000)
            .map(|start| start..start + 0x8000)
            .collect();
        let program = program(&objects, &objects);
        assert!(program.len() <= 4096, "{}", program.len());
        for range in objects {
            assert_eq!(run(&program, &thread_at(range.start)), EPERM);
            let last = call_at(libc::SYS_clone3, range.end - 1);
            assert_eq!(run(&program, &last), ENOSYS);
        }
    }

    #[test]
    fn code_of_libc_and_of_the_executable_is_known() {
        let code = Code::of_this_process();
        let holds = |ranges: &[Range<u64>], address: u64| {
            ranges.iter().any(|range| range.contains(&address))
        };
        let here = Code::of_this_process as *const () as u64;
        for address in sys::text::libc_entries() {
            assert!(holds(&code.cloners, address));
        }
        // Other programs lie where an executable does that is not PIE.
        let objects = sys::text::objects();
        let counts = !objects[0].fixed || objects.len() == 1;
        assert_eq!(holds(&code.objects, here), counts);
        assert_eq!(holds(&code.cloners, here), counts);
    }
}
