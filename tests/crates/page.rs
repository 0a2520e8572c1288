//! docs/crates.md.

use crate::GUARDS;
use crate::programs::{Of, PROGRAMS};

const HEAD: &str = "\
# What popular crates do in a job

`ci/crates` writes this page and, as a part of `.ci/run`, compares it with what happens. Each
cell is a process of its own: the program is run in a job under that [guard](adopting.md#threads-and-pools-that-a-job-starts),
and then once more at home. The crates are those that `tests/crates/Cargo.lock` locks; they are
used as their documentation shows it, with nothing about namespaces. *glibc* is what the C library
starts threads for by itself.

* *works*: with its threads, where it has any that could be seen, *at home* or *in the
  namespace*.
* **left there**: threads of the crate's are in the namespace after the job, and nothing tells
  the job's caller. **reported**: its caller is told of them.
* *error*: the crate returns one. *panics*: its caller can catch it. **aborts the process**: a panic
  in a drop during a panic. **waits for ever**, **spins**: for twelve seconds, with the CPU idle or busy.
* **from home**: it spoke to a server at home although the job is in the namespace.
* *then at home*: what the same program does outside of jobs afterwards, where that is not
  *works*: the crate remembers what it met in the job.

";

pub(crate) fn page(cells: &[Vec<String>]) -> String {
    let mut page = HEAD.to_owned();
    let columns: Vec<_> = GUARDS.iter().map(|(name, _)| format!("`{name}`")).collect();
    page += &format!(
        "| crate | what a job does with it | {} |\n",
        columns.join(" | ")
    );
    page += &format!("|---|---|{}\n", "---|".repeat(columns.len()));
    for (program, cells) in PROGRAMS.iter().zip(cells) {
        let name = match program.of {
            Of::Crate(package) => format!("{package} {}", version_of(package)),
            Of::Std => "std".to_owned(),
            Of::CLibrary => "glibc".to_owned(),
        };
        page += &format!("| {name} | {} | {} |\n", program.what, cells.join(" | "));
    }
    page
}

/// As locked.
fn version_of(package: &str) -> &'static str {
    let lock = include_str!("Cargo.lock");
    let entry = format!("name = \"{package}\"\nversion = \"");
    let (_, rest) = lock.split_once(&entry).expect("it is a dependency");
    &rest[..rest.find('"').expect("a string ends")]
}
