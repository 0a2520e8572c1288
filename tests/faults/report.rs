//! The table: operation, call, errno, and what came of it.

use std::collections::BTreeMap;
use std::fmt::Write;

use nix::errno::Errno;

/// One call that failed.
pub(crate) struct Fault {
    pub(crate) operation: &'static str,
    pub(crate) call: &'static str,
    /// How often the operation makes the call when nothing fails.
    pub(crate) made: u32,
    pub(crate) nth: u32,
    pub(crate) errno: i32,
}

/// What an operation can come to. The last four are violations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Error,
    /// It has another way, or does without.
    Copes,
    /// The call was not made this time: another thread was faster.
    Unreached,
    Panic,
    Hang,
    Leak,
    Broken,
}

impl End {
    fn of(said: &str) -> End {
        match said.split(' ').next() {
            Some("error") => End::Error,
            Some("copes") => End::Copes,
            Some("unreached") => End::Unreached,
            Some("panic" | "died") => End::Panic,
            Some("leak") => End::Leak,
            Some("broken") => End::Broken,
            _ => End::Hang,
        }
    }

    fn name(self) -> &'static str {
        match self {
            End::Error => "error",
            End::Copes => "copes",
            End::Unreached => "not reached",
            End::Panic => "PANIC",
            End::Hang => "HANG",
            End::Leak => "LEAK",
            End::Broken => "BROKEN AFTERWARDS",
        }
    }

    fn is_violation(self) -> bool {
        self > End::Unreached
    }
}

#[derive(Default)]
struct Row {
    made: u32,
    ends: BTreeMap<End, u32>,
}

#[derive(Default)]
pub(crate) struct Report {
    operations: Vec<&'static str>,
    rows: BTreeMap<(&'static str, &'static str, i32), Row>,
}

impl Report {
    pub(crate) fn add(&mut self, fault: Fault, said: &str) {
        let end = End::of(said);
        let Fault {
            operation,
            call,
            made,
            nth,
            errno,
        } = fault;
        if end.is_violation() {
            let errno = Errno::from_raw(errno);
            println!("{operation}: call {nth} of {made} of {call} with {errno:?}: {said}");
        }
        if self.operations.last() != Some(&operation) {
            self.operations.push(operation);
        }
        let row = self.rows.entry((operation, call, errno)).or_default();
        row.made = made;
        *row.ends.entry(end).or_default() += 1;
    }

    fn count(&self, of: impl Fn(End) -> bool) -> u32 {
        let ends = self.rows.values().flat_map(|row| &row.ends);
        ends.filter(|(end, _)| of(**end))
            .map(|(_, count)| count)
            .sum()
    }

    pub(crate) fn violations(&self) -> u32 {
        self.count(End::is_violation)
    }

    pub(crate) fn summary(&self) -> String {
        format!(
            "{} operations, {} failures of the kernel: {} ended in an error, {} made no \
             difference, {} were not reached, {} violations",
            self.operations.len(),
            self.count(|_| true),
            self.count(|end| end == End::Error),
            self.count(|end| end == End::Copes),
            self.count(|end| end == End::Unreached),
            self.violations(),
        )
    }

    pub(crate) fn markdown(&self, all: bool) -> String {
        let mut page = format!(
            "# Every failure of the kernel, once\n\n\
             Made by `cargo test -p netns-exec-tests --test faults -- {}--out docs/faults.md`, as root.\n\n\
             Each public operation was carried out again and again, and each time one system call \
             that it makes, itself or on the library's other threads, was made to fail: {} of its \
             calls, with each errno of the row. *error*: the operation returned an `Err`. *copes*: \
             it has another way or does without, and its result was as it should be. *not \
             reached*: that time the call was not made, another thread was faster. Afterwards \
             descriptors, threads, mounts, names and children were as before, the caller was \
             where it was, and the next attempt succeeded; what was not so would stand here as \
             LEAK, PANIC, HANG or BROKEN AFTERWARDS, and the command would fail.\n\n\
             A call that a wait or a lock is made of (futex, sched_yield), that gives memory or \
             a descriptor back (munmap, close) and those of the allocator are not made to fail.\n\n\
             {}.\n",
            if all { "--all " } else { "" },
            if all {
                "each"
            } else {
                "the first and the last"
            },
            self.summary(),
        );
        for operation in &self.operations {
            let _ = write!(
                page,
                "\n## {operation}\n\n| call | made | errno | outcome |\n|---|---|---|---|\n"
            );
            for ((_, call, errno), row) in self.rows.iter().filter(|(key, _)| key.0 == *operation) {
                let ends: Vec<String> = (row.ends.iter())
                    .map(|(end, count)| format!("{} {count}", end.name()))
                    .collect();
                let errno = Errno::from_raw(*errno);
                let _ = writeln!(
                    page,
                    "| `{call}` | {} | `{errno:?}` | {} |",
                    row.made,
                    ends.join(", ")
                );
            }
        }
        page
    }
}
