//! One program under one guard, and what came of it in words.

use std::fs;
use std::panic::{catch_unwind, set_hook};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{Executor, Guard, Netns, NetnsId};

use crate::programs::{Outcome, Program, is_served};
use crate::servers::{self, Place};

/// For the program in a job, and at home after it. Longer than the time-outs of any.
const LIMIT: Duration = Duration::from_secs(12);

/// How a run ended.
enum Ended {
    Returned(Outcome),
    Panicked,
    /// It has returned, and the guard found threads that it left.
    Reported(Outcome),
    /// Not within the limit; did it burn a CPU?
    Never {
        spins: bool,
    },
    Otherwise(String),
}

pub(crate) fn run(program: &Program, guard: Guard) -> ExitCode {
    // What is expected is not to be read on a terminal.
    set_hook(Box::new(|_| {}));
    let home = Netns::current().expect("procfs is mounted");
    home.set_loopback_up()
        .expect("unshare(1) has made this namespace for us");
    let netns = Netns::new().expect("needs CAP_SYS_ADMIN");
    netns.set_loopback_up().expect("it is ours");
    for server in servers::bind(Place::Home).expect("the namespace is new") {
        thread::spawn(server);
    }
    let beside = Executor::builder()
        .guard(Guard::Off)
        .build()
        .expect("no guard");
    let bound = beside.run(&netns, || servers::bind(Place::Namespace));
    for server in bound.expect("no guard").expect("the namespace is new") {
        // A socket stays where it was made.
        thread::spawn(server);
    }
    assert!(is_served() && beside.run(&netns, is_served).expect("no guard"));
    beside.shutdown(None).expect("it was idle");

    let executor = Executor::builder()
        .guard(guard)
        .build()
        .expect("root may have any guard");
    let ended = in_job(&executor, &netns, program.run);
    let left = match ended {
        Ended::Returned(_) => executor.audit().expect("procfs").strays().count(),
        _ => 0,
    };
    let ids = (netns.id(), home.id());
    let words = in_words(ended, Place::Namespace, ids);
    let left = if left > 0 { ", **left there**" } else { "" };
    let after = match in_words(at_home(program.run), Place::Home, ids) {
        words if is_fine(&words) => String::new(),
        words => format!("; then at home: {words}"),
    };
    println!("{words}{left}{after}");
    // Whatever is stuck is not waited for.
    std::process::exit(0);
}

fn in_job(executor: &Executor, netns: &Netns, run: fn() -> Outcome) -> Ended {
    let (before, began) = (cpu_time(), Instant::now());
    let job = executor.spawn(netns, run).expect("a worker may be had");
    while !job.is_finished() {
        if began.elapsed() > LIMIT {
            return Ended::Never {
                spins: cpu_time() - before > LIMIT / 2,
            };
        }
        thread::sleep(Duration::from_millis(2));
    }
    match job.join() {
        Ok(outcome) => Ended::Returned(outcome),
        Err(error) if error.is_left_threads() => match error.into_result() {
            Ok(outcome) => Ended::Reported(outcome),
            Err(_) => Ended::Panicked,
        },
        Err(error) if error.is_panic() => Ended::Panicked,
        Err(error) => Ended::Otherwise(error.to_string()),
    }
}

/// On a thread of its own, that may be stuck.
fn at_home(run: fn() -> Outcome) -> Ended {
    let (sender, receiver) = channel();
    thread::spawn(move || sender.send(catch_unwind(run)));
    match receiver.recv_timeout(LIMIT) {
        Ok(Ok(outcome)) => Ended::Returned(outcome),
        Ok(Err(_)) => Ended::Panicked,
        // What burns the CPU may still be the job.
        Err(RecvTimeoutError::Timeout) => Ended::Never { spins: false },
        Err(RecvTimeoutError::Disconnected) => Ended::Panicked,
    }
}

fn is_fine(words: &str) -> bool {
    words == "works"
}

/// `place` is where the program ran; its threads and its peer should be there, too.
fn in_words(ended: Ended, place: Place, (netns, home): (NetnsId, NetnsId)) -> String {
    let outcome = match ended {
        Ended::Returned(outcome) => outcome,
        Ended::Reported(outcome) => {
            return format!(
                "{}, **reported**",
                in_words(Ended::Returned(outcome), place, (netns, home))
            );
        }
        Ended::Panicked => return "panics".to_owned(),
        Ended::Never { spins: true } => return "**spins**".to_owned(),
        Ended::Never { spins: false } => return "**waits for ever**".to_owned(),
        Ended::Otherwise(text) => return format!("failed: {text}"),
    };
    let seen = match outcome {
        Ok(seen) => seen,
        Err(_) => return "error".to_owned(),
    };
    let mut words = "works".to_owned();
    let all_in = |id| !seen.threads.is_empty() && seen.threads.iter().all(|it| *it == id);
    match place {
        Place::Namespace if all_in(home) => words.push_str(", threads at home"),
        Place::Namespace if all_in(netns) => words.push_str(", threads in the namespace"),
        Place::Home if all_in(netns) => words.push_str(", **threads in the namespace**"),
        _ if seen.threads.is_empty() || all_in(home) => {}
        _ => words.push_str(", threads here and there"),
    }
    match seen.reached {
        Some(reached) if reached != place && reached == Place::Home => {
            words.push_str(", **from home**")
        }
        Some(reached) if reached != place => words.push_str(", **from the namespace**"),
        _ => {}
    }
    words
}

/// What all threads of this process have used.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("procfs");
    let (_, rest) = stat.rsplit_once(')').expect("the name is in brackets");
    // utime and stime, in hundredths of a second: see proc(5).
    let ticks = rest.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|it| it.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
