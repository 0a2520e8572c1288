//! Every failure of the kernel, once: each public operation, each system call that it
//! makes, each errno. Whatever fails, the operation ends in a value or in an error, not
//! in a panic, a hang or the wrong place; descriptors, threads, mounts, children and
//! names are afterwards as they were before; and the next attempt succeeds.
//!
//! ```text
//! cargo test -p netns-exec-tests --test faults                  the first call of each, and the last
//! cargo test -p netns-exec-tests --test faults -- --all         every one
//! cargo test ... -- --all --out docs/faults.md                  and the table
//! cargo test ... -- --only lease                                operations by a part of their name
//! ```
//!
//! An operation runs in a process of its own with an empty `/run`. One that hangs or dies
//! is noticed from here and costs the others nothing.

mod calls;
mod operations;
mod report;

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::panic::{self, AssertUnwindSafe};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use calls::CALLS;
use operations::{OPERATIONS, Operation, World};
use report::{Fault, Report};

/// What takes longer has no end.
const PATIENCE: Duration = Duration::from_secs(40);
/// What goes away by itself has gone by then.
const SETTLED: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let value = |key: &str| {
        let at = args.iter().position(|arg| arg == key)?;
        args.get(at + 1).cloned()
    };
    if let Some(index) = value("--serve") {
        serve(&OPERATIONS[index.parse::<usize>().expect("an index")]);
        return ExitCode::SUCCESS;
    }
    netns_exec_tests::require_root();
    let all = args.iter().any(|arg| arg == "--all");
    let only = value("--only").unwrap_or_default();
    let mut report = Report::default();
    for (index, operation) in OPERATIONS.iter().enumerate() {
        if operation.name.contains(&only) {
            examine(index, operation, all, &mut report);
        }
    }
    if let Some(path) = value("--out") {
        fs::write(&path, report.markdown(all)).expect("a place for the table");
    }
    println!("{}", report.summary());
    match report.violations() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Lets each call of one operation fail.
fn examine(index: usize, operation: &'static Operation, all: bool, report: &mut Report) {
    let mut process = Process::start(index);
    let counts = process.ask("count");
    let counts: Vec<u32> = (counts.split_whitespace().skip(1))
        .map(|count| count.parse().expect("a count"))
        .collect();
    assert_eq!(counts.len(), CALLS.len(), "{}: {counts:?}", operation.name);
    let mut faults = Vec::new();
    for (call, &made) in counts.iter().enumerate() {
        if operation.spares.contains(&CALLS[call].name) {
            continue;
        }
        for &errno in CALLS[call].errnos {
            for nth in 1..=made {
                if all || nth == 1 || nth == made {
                    faults.push((call, nth, errno));
                }
            }
        }
    }
    for (call, nth, errno) in faults {
        if operation.first || process.is_over {
            process = Process::start(index);
        }
        let said = process.ask(&format!("{call} {nth} {errno}"));
        let fault = Fault {
            operation: operation.name,
            call: CALLS[call].name,
            made: counts[call],
            nth,
            errno,
        };
        report.add(fault, &said);
    }
}

/// A process that carries one operation out.
struct Process {
    child: Child,
    stdin: ChildStdin,
    says: Receiver<String>,
    is_over: bool,
}

impl Process {
    fn start(index: usize) -> Process {
        let script = "mount -t tmpfs tmpfs /run && touch /run/elsewhere && \
             unshare --net=/run/elsewhere true && exec \"$0\" --serve \"$1\"";
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .arg(env::current_exe().expect("this program has a path"))
            .arg(index.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (said, says) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if said.send(line).is_err() {
                    return;
                }
            }
        });
        Process {
            child,
            stdin,
            says,
            is_over: false,
        }
    }

    fn ask(&mut self, what: &str) -> String {
        let _ = writeln!(self.stdin, "{what}");
        match self.says.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                self.is_over = true;
                "hang".to_owned()
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.is_over = true;
                match self.child.wait() {
                    Ok(status) => format!("died {status}"),
                    Err(error) => format!("died {error}"),
                }
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Panics of any thread since it was taken last.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn panics() -> Option<String> {
    let panics = std::mem::take(&mut *PANICS.lock().expect("no panic inside"));
    (!panics.is_empty()).then(|| panics.join(" / "))
}

/// The process's side: a line asks for a fault, and one tells what came of it.
fn serve(operation: &Operation) {
    panic::set_hook(Box::new(|info| {
        PANICS
            .lock()
            .expect("no panic inside")
            .push(info.to_string());
    }));
    let world = (!operation.first).then(World::new);
    let attempt = || {
        (operation.before)();
        let ended = panic::catch_unwind(AssertUnwindSafe(|| (operation.run)(world.as_ref())));
        (ended, calls::disarm())
    };
    let look = |is_ok| panic::catch_unwind(AssertUnwindSafe(|| (operation.after)(is_ok)));
    if !operation.first {
        for _ in 0..3 {
            let (ended, _) = attempt();
            let outcome = ended.unwrap_or_else(|_| panic!("{:?}", panics()));
            outcome.unwrap_or_else(|error| panic!("{}: {error}", operation.name));
            (operation.after)(true);
        }
    }
    let mut before = settled(None);
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<i32> = line.split(' ').flat_map(str::parse).collect();
        let [call, nth, errno] = words[..] else {
            (operation.before)();
            calls::count();
            let outcome = (operation.run)(world.as_ref());
            let counts = calls::counted();
            outcome.unwrap_or_else(|error| panic!("{}: {error}", operation.name));
            (operation.after)(true);
            let counts: Vec<String> = counts.iter().map(u32::to_string).collect();
            say(&format!("counts {}", counts.join(" ")));
            continue;
        };
        (operation.before)();
        calls::arm(call as usize, nth as u32, errno);
        let ended = panic::catch_unwind(AssertUnwindSafe(|| (operation.run)(world.as_ref())));
        let fired = calls::disarm();
        let is_ok = matches!(ended, Ok(Ok(())));
        let mut said = match &ended {
            _ if !fired => "unreached".to_owned(),
            Ok(Ok(())) => "copes".to_owned(),
            Ok(Err(error)) => format!("error {error}"),
            Err(_) => "panic".to_owned(),
        };
        drop(ended);
        let looked = look(is_ok);
        if let Some(panics) = panics() {
            said = format!("panic {panics}");
        }
        drop(looked);
        if !operation.first {
            let after = settled(Some(&before));
            if after != before {
                said = format!("leak {before:?} -> {after:?} after: {said}");
                before = after;
            }
        }
        // It was a matter of that one attempt.
        (operation.before)();
        match panic::catch_unwind(AssertUnwindSafe(|| (operation.run)(world.as_ref()))) {
            Ok(Ok(())) => drop(look(true)),
            Ok(Err(error)) => said = format!("broken {error} after: {said}"),
            Err(_) => said = format!("broken {:?} after: {said}", panics()),
        }
        say(&said);
    }
}

fn say(line: &str) {
    println!("{}", line.replace('\n', " "));
}

/// What is to be afterwards as it was before.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: Vec<String>,
    mounts: usize,
    names: usize,
    children: usize,
}

impl Holdings {
    fn now() -> Holdings {
        let count = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
        let mut threads = Vec::new();
        let mut children = 0;
        for task in fs::read_dir("/proc/self/task").expect("/proc").flatten() {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            // One of those that fork stays in reserve, and so does the home thread.
            if !matches!(name.trim(), "netns-fork" | "netns-home") {
                threads.push(name.trim().to_owned());
            }
            let of_this = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children += of_this.split_whitespace().count();
        }
        threads.sort();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc");
        Holdings {
            descriptors: count("/proc/self/fd"),
            threads,
            mounts: mounts.lines().count(),
            names: count("/run/netns"),
            children,
        }
    }
}

/// Waits until things are as they were, or have stopped to change.
fn settled(before: Option<&Holdings>) -> Holdings {
    let deadline = Instant::now() + SETTLED;
    let mut last = Holdings::now();
    let mut same = 0;
    loop {
        match before {
            Some(before) if *before == last => return last,
            Some(_) if Instant::now() > deadline => return last,
            None if same > 20 || Instant::now() > deadline => return last,
            _ => {}
        }
        thread::sleep(Duration::from_millis(2));
        let now = Holdings::now();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
}
