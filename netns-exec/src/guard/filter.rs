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
//! - clone(2) for a thread, unshare(2) and close_range(2) for a descriptor table
//!   or a working directory of the thread's own are refused to the functions of
//!   libc that make these calls (`clone`, on which `pthread_create` is built,
//!   `syscall`, `unshare` ...), ranges that are hit only by a child that has the
//!   very same libc at the very same address, and to the executable, which is
//!   somewhere else altogether than any libc;
//! - clone3(2) and io_uring_setup(2) are answered with `ENOSYS` to all objects
//!   that are loaded: a child that is hit falls back.
//!
//! *Refused* is an errno, or a notification to those who listen
//! (see [`bell`](crate::bell)). That one can tell the worker from its children,
//! which the filter cannot, and so lets children do what they ask for. It is also
//! told of setns(2) and of unshare(2) for namespaces: those fail by themselves,
//! for want of `CAP_SYS_ADMIN`, but uncounted.
//!
//! An executable linked at a fixed address shares its addresses with every
//! other one, so it counts only when it is all there is (static linking).

use std::ops::Range;

use libc::sock_filter;

use crate::sys;
use crate::sys::bpf::{self, AUDIT_ARCH, and, arg_low, jump, load, ret};
use crate::sys::seccomp::TRAP;

/// Where the code lies that the filter is about.
#[derive(Debug)]
pub(super) struct Code {
    /// What is known to make the calls that are refused, and the executable.
    pub(super) callers: Vec<Range<u64>>,
    /// All there is.
    pub(super) objects: Vec<Range<u64>>,
}

impl Code {
    pub(super) fn of_this_process() -> Code {
        /// Longer than any libc's `clone` and `syscall`, which are written in
        /// assembly, and than the stubs around its other calls; what lies behind
        /// them makes none of these calls.
        const FUNCTION: u64 = 256;

        let objects = sys::text::objects();
        let is_static = objects.len() == 1;
        let counts = |object: &&sys::text::Object| is_static || !object.fixed;
        let executable = objects.first().filter(counts);
        let entries = sys::text::libc_entries();
        Code {
            callers: (entries.into_iter())
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

/// How a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// With `EPERM`, by the kernel.
    Errno,
    /// The same, and namespaces too: to a thread that has the privilege for them.
    ErrnoAndMoves,
    /// By the thread that holds the filter's listener.
    Notify,
}

/// What gives a thread files, or a working directory and umask, of its own.
const UNSHARED_STATE: libc::c_int = libc::CLONE_FILES | libc::CLONE_FS;

/// What gives a thread a namespace of its own. Not the user namespace, which no
/// thread of several can have, and of which the kernel's `EINVAL` tells more.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWCGROUP
    | 0x80; // CLONE_NEWTIME, which libc lacks: in clone(2) it is part of the signal.

/// `CLOSE_RANGE_UNSHARE`, see linux/close_range.h.
const CLOSE_RANGE_UNSHARE: u32 = 1 << 1;

/// Assembles the filter: a thread, and state of the thread's own, are refused to
/// code in `callers`, and clone3 and io_uring_setup do not exist for code in
/// `objects`.
///
/// Calls of another architecture pass: only a child comes to make any. The
/// numbers are looked at first, so that the kernel can tell ahead of time that
/// all other calls pass, and does not run the program for them (Linux 5.11).
pub(super) fn program(
    callers: &[Range<u64>],
    objects: &[Range<u64>],
    refusal: Refusal,
) -> Vec<sock_filter> {
    let (refused, unshared) = match refusal {
        Refusal::Errno => (libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, UNSHARED_STATE),
        Refusal::ErrnoAndMoves => (
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
            UNSHARED_STATE | NAMESPACES,
        ),
        Refusal::Notify => (libc::SECCOMP_RET_USER_NOTIF, UNSHARED_STATE | NAMESPACES),
    };
    let no_such_call = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let if_set = |argument, bits| {
        vec![
            load(arg_low(argument)),
            jump(libc::BPF_JSET, bits, 1, 0),
            ret(libc::SECCOMP_RET_ALLOW),
        ]
    };
    // What decides beside the number; all of it that does not return goes on to
    // the callers.
    let mut conditions = vec![
        (libc::SYS_clone, if_set(0, libc::CLONE_THREAD as u32)),
        (libc::SYS_unshare, if_set(0, unshared as u32)),
        (libc::SYS_close_range, if_set(2, CLOSE_RANGE_UNSHARE)),
    ];
    if refusal != Refusal::Errno {
        conditions.push((libc::SYS_setns, Vec::new()));
    }

    /// Instructions of a condition, with the jump behind it.
    const CONDITION: usize = 4;

    let mut body = Vec::new();
    let mut targets = Vec::new();
    let count = conditions.len();
    for (at, (call, condition)) in conditions.into_iter().enumerate() {
        targets.push((call, body.len()));
        body.extend(condition);
        // To the end of the conditions, which are all made equally long.
        let over = count * CONDITION - body.len() - 1;
        body.push(jump(libc::BPF_JA, over as u32, 0, 0));
        body.resize((at + 1) * CONDITION, ret(libc::SECCOMP_RET_ALLOW));
    }
    answer_in(callers, refused, &mut body);
    for call in [libc::SYS_clone3, libc::SYS_io_uring_setup] {
        targets.push((call, body.len()));
    }
    answer_in(objects, no_such_call, &mut body);
    if refusal == Refusal::Notify {
        targets.push((libc::SYS_prctl, body.len()));
        body.extend(trap());
    }

    let mut program = vec![
        load(bpf::ARCH),
        jump(libc::BPF_JEQ, AUDIT_ARCH, 1, 0),
        ret(libc::SECCOMP_RET_ALLOW),
        load(bpf::NR),
        and(!X32_BIT),
    ];
    let mut left = targets.len();
    for (call, at) in targets {
        left -= 1;
        // Conditional jumps reach no further than 255 instructions.
        let over = left * 2 + 1 + at;
        program.extend([
            jump(libc::BPF_JEQ, number(call), 0, 1),
            jump(libc::BPF_JA, over as u32, 0, 0),
        ]);
    }
    program.push(ret(libc::SECCOMP_RET_ALLOW));
    program.append(&mut body);
    program
}

/// Hands the trap over, and lets all else that prctl(2) does pass.
fn trap() -> [sock_filter; 4] {
    [
        load(arg_low(0)),
        jump(libc::BPF_JEQ, TRAP, 0, 1),
        ret(libc::SECCOMP_RET_USER_NOTIF),
        ret(libc::SECCOMP_RET_ALLOW),
    ]
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
        args: [u64; 3],
    }

    const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;
    const ARG0: u32 = arg_low(0);
    const ARG2: u32 = arg_low(2);

    /// What the kernel would make of `program`.
    fn run(program: &[sock_filter], call: &Call) -> u32 {
        let word = |offset| match offset {
            bpf::NR => call.nr,
            bpf::ARCH => call.arch,
            bpf::IP_LOW => call.ip as u32,
            bpf::IP_HIGH => (call.ip >> 32) as u32,
            ARG0 => call.args[0] as u32,
            ARG2 => call.args[2] as u32,
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
            args: [(libc::CLONE_THREAD | libc::CLONE_VM) as u64, 0, 0],
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
        let program = program(&RANGES, &[], Refusal::Errno);
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
        let program = program(&RANGES, &RANGES, Refusal::Errno);
        let ip = RANGES[0].start;
        assert_eq!(run(&program, &thread_at(ip)), EPERM);
        // vfork(2) and posix_spawn(3).
        let flags = (libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD) as u64;
        let process = Call {
            args: [flags, 0, 0],
            ..thread_at(ip)
        };
        assert_eq!(run(&program, &process), ALLOW);
        assert_eq!(run(&program, &call_at(libc::SYS_getppid, ip)), ALLOW);
    }

    #[test]
    fn what_cannot_be_looked_into_does_not_exist() {
        let ours = RANGES[1].start;
        let program = program(&RANGES[..1], &RANGES, Refusal::Errno);
        for nr in [libc::SYS_clone3, libc::SYS_io_uring_setup] {
            assert_eq!(run(&program, &call_at(nr, ours)), ENOSYS);
            assert_eq!(run(&program, &call_at(nr, 0x4000)), ALLOW);
        }
        assert_eq!(run(&program, &thread_at(ours)), ALLOW);
    }

    #[test]
    fn state_of_the_threads_own_is_refused() {
        let ip = RANGES[0].start;
        let call = |nr, args| Call {
            args,
            ..call_at(nr, ip)
        };
        let unshare = |flags: libc::c_int| call(libc::SYS_unshare, [flags as u64, 0, 0]);
        let close = |flags| call(libc::SYS_close_range, [3, u64::MAX, flags]);
        let setns = call(libc::SYS_setns, [3, 0, 0]);
        for (refusal, answer, of_moves) in [
            (Refusal::Errno, EPERM, ALLOW),
            (Refusal::Notify, NOTIFY, NOTIFY),
        ] {
            let program = program(&RANGES, &RANGES, refusal);
            let run = |call: &Call| run(&program, call);
            for flags in [libc::CLONE_FILES, libc::CLONE_FS] {
                assert_eq!(run(&unshare(flags)), answer);
                assert_eq!(run(&unshare(flags | libc::CLONE_NEWUTS)), answer);
            }
            for flags in [libc::CLONE_NEWNET, libc::CLONE_NEWNS, 0x80] {
                assert_eq!(run(&unshare(flags)), of_moves);
            }
            assert_eq!(run(&setns), of_moves);
            assert_eq!(run(&unshare(0)), ALLOW);
            assert_eq!(run(&unshare(libc::CLONE_NEWUSER)), ALLOW);
            assert_eq!(run(&close(1 << 1)), answer);
            assert_eq!(run(&close(1 << 1 | 1 << 2)), answer);
            assert_eq!(run(&close(1 << 2)), ALLOW);
            assert_eq!(run(&thread_at(ip)), answer);
            assert_eq!(run(&call_at(libc::SYS_clone3, ip)), ENOSYS);
            assert_eq!(
                run(&Call {
                    ip: 0x4000,
                    ..setns
                }),
                ALLOW
            );
        }
    }

    #[test]
    fn programs_of_another_architecture_are_let_be() {
        const I386: u32 = 0x4000_0003;
        let program = program(&RANGES, &RANGES, Refusal::Errno);
        let call = Call {
            arch: I386,
            ..thread_at(RANGES[0].start)
        };
        assert_eq!(run(&program, &call), ALLOW);
    }

    #[test]
    fn x32_is_not_another_architecture() {
        let program = program(&RANGES, &RANGES, Refusal::Errno);
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
        let program = program(&objects, &objects, Refusal::Errno);
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
            assert!(holds(&code.callers, address));
        }
        // Other programs lie where an executable does that is not PIE.
        let objects = sys::text::objects();
        let counts = !objects[0].fixed || objects.len() == 1;
        assert_eq!(holds(&code.objects, here), counts);
        assert_eq!(holds(&code.callers, here), counts);
    }
}
