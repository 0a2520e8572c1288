//! What popular crates do when a job uses them, under each guard.
//!
//!     ci/crates            compares with docs/crates.md
//!     ci/crates --write    writes it
//!
//! Each cell of the table is a process of its own, in a network namespace that is its home: a
//! pool that is broken, a job that never ends and an abort are its own. It runs one program in a
//! job, then once more at home, and says on its standard output what came of both.

mod c_library;
mod cell;
mod page;
mod programs;
mod servers;

use std::io::Read;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::Guard;

use programs::PROGRAMS;

/// Each with its column.
const GUARDS: [(&str, Guard); 5] = [
    ("Seal", Guard::Seal),
    ("KeepAdmin", Guard::KeepAdmin),
    ("BirthsAtHome", Guard::BirthsAtHome),
    ("Detect", Guard::Detect),
    ("Off", Guard::Off),
];

/// For a cell as a whole; twice its own limit for each of its two runs.
const LIMIT: Duration = Duration::from_secs(40);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => {
            print!("{}", page::page(&cells()));
            ExitCode::SUCCESS
        }
        [program, guard] => {
            let program = PROGRAMS.iter().find(|it| it.name == program);
            let guard = GUARDS.iter().find(|(name, _)| name == guard);
            let (Some(program), Some((_, guard))) = (program, guard) else {
                eprintln!("no such program, or no such guard");
                return ExitCode::FAILURE;
            };
            cell::run(program, *guard)
        }
        _ => {
            eprintln!("usage: crates [PROGRAM GUARD]");
            ExitCode::FAILURE
        }
    }
}

/// What is said of each program under each guard, a row a program.
fn cells() -> Vec<Vec<String>> {
    let said = Mutex::new(vec![vec![String::new(); GUARDS.len()]; PROGRAMS.len()]);
    let ahead = Mutex::new(
        (0..PROGRAMS.len()).flat_map(|row| (0..GUARDS.len()).map(move |column| (row, column))),
    );
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((row, column)) = ahead.lock().unwrap().next() else {
                        return;
                    };
                    let text = ask(PROGRAMS[row].name, GUARDS[column].0);
                    said.lock().unwrap()[row][column] = text;
                }
            });
        }
    });
    said.into_inner().unwrap()
}

/// Runs a cell, and says what it said, or how it ended.
fn ask(program: &str, guard: &str) -> String {
    let me = std::env::current_exe().expect("this program");
    let mut child = Command::new("unshare")
        .args(["--net", "--"])
        .arg(me)
        .args([program, guard])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("unshare(1) is there");
    let began = Instant::now();
    let status = loop {
        match child.try_wait().expect("our own child") {
            Some(status) => break Some(status),
            None if began.elapsed() > LIMIT => break None,
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.is_none() {
        child.kill().expect("it is there until it is waited for");
        child.wait().expect("our own child");
    }
    let mut said = String::new();
    let mut output = child.stdout.take().expect("it is piped");
    output.read_to_string(&mut said).expect("text");
    let said = said.trim();
    match status {
        Some(status) if status.success() => said.to_owned(),
        Some(status) if std::os::unix::process::ExitStatusExt::signal(&status) == Some(6) => {
            "**aborts the process**".to_owned()
        }
        Some(status) => format!("failed ({status}): {said}"),
        None => format!("{said} never ends"),
    }
}
