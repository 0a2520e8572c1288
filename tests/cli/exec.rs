//! `netns-exec exec` in several namespaces, by its contract.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, pipe};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec_tests::{TempNetns, eventually, require_root, unique_name, within};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{PROGRAM, state, text};

fn exec(args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("exec").args(args).stdin(Stdio::null());
    command
}

fn output(args: &[&str]) -> Output {
    let mut command = exec(args);
    within("exec", move || {
        command.output().expect("the program was built")
    })
}

/// Runs a script with `$0` for the program.
fn shell(script: &str, args: &[&str]) -> Output {
    let mut command = Command::new("bash");
    command.args(["-c", script, PROGRAM]).args(args);
    within("a script", move || {
        command.stdin(Stdio::null()).output().expect("bash")
    })
}

fn send(child: &Child, signal: Signal) {
    kill(pid(child), signal).expect("it is ours, and was not waited for");
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

#[track_caller]
fn status(child: &mut Child) -> i32 {
    let mut ended = None;
    eventually("exec has ended", || {
        ended = child.try_wait().expect("it is ours");
        ended.is_some()
    });
    ended.and_then(|status| status.code()).expect("a status")
}

/// A file that several commands append lines to.
struct Log(PathBuf);

impl Log {
    fn new() -> Log {
        Log(std::env::temp_dir().join(unique_name()))
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A reader that does not read.
fn stalled() -> (PipeReader, PipeWriter, PipeWriter) {
    let (reader, writer) = pipe().expect("a pipe");
    let copy = writer.try_clone().expect("a copy");
    (reader, writer, copy)
}

fn is_full(writer: &PipeWriter) -> bool {
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).expect("a pipe") == 0
}

fn start(command: &mut Command) -> Child {
    command.spawn().expect("the program was built")
}

/// Starts exec and waits until each of its `count` commands has written a line, which
/// is its process id.
fn start_and_meet(
    command: &mut Command,
    count: usize,
) -> (Child, BufReader<std::process::ChildStdout>, Vec<i32>) {
    let mut child = start(command.stdout(Stdio::piped()));
    let mut reader = BufReader::new(child.stdout.take().expect("piped"));
    let mut pids = Vec::new();
    for _ in 0..count {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        let (_, pid) = line.trim_end().rsplit_once(": ").expect("a prefix");
        pids.push(pid.parse().expect("a number"));
    }
    (child, reader, pids)
}

#[test]
fn daemon_left_behind_does_not_keep_exec() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    // One that is silent, and one that never stops writing.
    for daemon in ["sleep 60", "yes"] {
        let log = Log::new();
        let script = format!("setsid {daemon} & echo $! >> {}; echo started", log.path());
        let began = Instant::now();
        let output = output(&[blue.name(), red.name(), "--", "sh", "-c", &script]);
        assert!(began.elapsed() < Duration::from_secs(20));
        let lines = text(&output.stdout).lines();
        assert_eq!(lines.filter(|line| line.ends_with(": started")).count(), 2);
        assert_eq!(output.status.code(), Some(0));
        for pid in log.lines() {
            // One that writes on meets the end of its reader.
            let _ = kill(
                Pid::from_raw(pid.parse().expect("a number")),
                Signal::SIGKILL,
            );
        }
    }
}

#[test]
fn what_a_command_wrote_before_its_end_is_shown_to_the_last_line() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let script = "sleep 60 & seq 1 5000; kill $!";
    let output = output(&[blue.name(), red.name(), "--", "sh", "-c", script]);
    assert_eq!(text(&output.stdout).lines().count(), 10_000);
}

#[test]
fn signal_is_heard_while_the_reader_stalls_and_ends_exec_when_no_command_is_left() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let log = Log::new();
    let script = format!(
        "trap 'echo heard >> {0}; exit 0' TERM; echo ready >> {0}; \
         (while :; do echo x; done) & wait",
        log.path()
    );
    let (_reader, writer, probe) = stalled();
    let mut child = start(
        exec(&[blue.name(), red.name(), "--", "sh", "-c", &script])
            .stdout(writer)
            .stderr(Stdio::null()),
    );
    eventually("both commands can hear", || log.lines().len() == 2);
    eventually("the pipe is full", || is_full(&probe));
    send(&child, Signal::SIGTERM);
    let began = Instant::now();
    eventually("both commands have heard", || log.lines().len() == 4);
    let heard = began.elapsed();
    assert!(heard < Duration::from_secs(2), "only after {heard:?}");
    // What is left to write keeps exec, but not from hearing.
    thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().expect("ours").is_none());
    send(&child, Signal::SIGTERM);
    assert_eq!(status(&mut child), 128 + 15);
}

#[test]
fn output_that_does_not_block_loses_no_line() {
    const LINES: usize = 20_000;
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let (reader, writer, probe) = stalled();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe");
    let count = LINES.to_string();
    let mut child =
        start(exec(&[blue.name(), red.name(), "--", "seq", "1", &count]).stdout(writer));
    eventually("the pipe is full", || is_full(&probe));
    drop(probe);
    let lines = BufReader::new(reader).lines();
    let mut next = [1, 1];
    for line in lines {
        let line = line.expect("plain text");
        let (name, number) = line.split_once(": ").expect("a prefix");
        let index = usize::from(name == red.name());
        assert_eq!(number, next[index].to_string());
        next[index] += 1;
    }
    assert_eq!(next, [LINES + 1; 2]);
    assert_eq!(status(&mut child), 0);
}

#[test]
fn statuses_are_kept_and_dispositions_given_back() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let names = [blue.name(), red.name()];
    // `env` sets what a shell cannot: blocked and ignored signals.
    let run = |command: &str| {
        let script = format!(
            "trap '' CHLD USR2; exec env --ignore-signal=PIPE --block-signal=USR1 \"$0\" \
             exec \"$@\" -- {command}"
        );
        shell(&script, &names)
    };
    assert_eq!(run("sh -c 'exit 3'").status.code(), Some(3));
    let output = run("grep -E '^Sig(Blk|Ign)' /proc/self/status");
    let bit = |signal: Signal| 1_u64 << (signal as i32 - 1);
    let ignored = bit(Signal::SIGCHLD) | bit(Signal::SIGPIPE) | bit(Signal::SIGUSR2);
    let masks: Vec<(&str, u64)> = (text(&output.stdout).lines())
        .map(|line| {
            let (key, mask) = line.split_once(":\t").expect("a field");
            let (_, key) = key.split_once(": ").expect("a prefix");
            (key, u64::from_str_radix(mask, 16).expect("a mask"))
        })
        .collect();
    assert_eq!(masks.len(), 4, "{masks:?}");
    for (key, mask) in masks {
        let expected = match key {
            "SigBlk" => bit(Signal::SIGUSR1),
            _ => ignored,
        };
        let all = ignored | bit(Signal::SIGUSR1) | bit(Signal::SIGTERM) | bit(Signal::SIGTSTP);
        assert_eq!(mask & all, expected, "{key}");
    }
    let one = shell(
        "trap '' CHLD; exec env --ignore-signal=PIPE \"$0\" exec \"$1\" -- grep SigIgn /proc/self/status",
        &[blue.name()],
    );
    let mask = text(&one.stdout)
        .trim()
        .rsplit('\t')
        .next()
        .expect("a mask");
    let mask = u64::from_str_radix(mask, 16).expect("a mask");
    let both = bit(Signal::SIGCHLD) | bit(Signal::SIGPIPE);
    assert_eq!(mask & both, both);
}

#[test]
fn soft_limit_of_files_does_not_limit_commands_and_is_given_back() {
    let netns: Vec<TempNetns> = (0..24).map(|_| TempNetns::new()).collect();
    let names: Vec<&str> = netns.iter().map(|netns| netns.name()).collect();
    let run = |limit: &str, script: &str| {
        let script = format!("ulimit {limit}; exec \"$0\" exec \"$@\" -- sh -c '{script}'");
        shell(&script, &names)
    };
    let output = run("-Sn 32", "ulimit -Sn");
    let lines = text(&output.stdout).lines();
    assert_eq!(lines.filter(|line| line.ends_with(": 32")).count(), 24);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));

    let log = Log::new();
    let output = run("-n 60", &format!("echo ran >> {}", log.path()));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(
        said.contains("24 commands at a time") && said.contains("--jobs"),
        "{said}"
    );
    assert_eq!(log.lines(), [""; 0], "all start or none");
}

#[test]
fn signals_of_all_kinds_are_passed_on_and_wake_what_is_stopped() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    for signal in [
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        let args = [
            blue.name(),
            red.name(),
            "--",
            "sh",
            "-c",
            "echo $$; exec sleep 60",
        ];
        let (mut child, _reader, pids) = start_and_meet(exec(&args).stderr(Stdio::null()), 2);
        // As SIGTTIN would have, where there is a terminal.
        kill(Pid::from_raw(pids[0]), Signal::SIGSTOP).expect("it runs");
        eventually("it has stopped", || state(pids[0]) == Some('T'));
        send(&child, signal);
        assert_eq!(status(&mut child), 128 + signal as i32, "{signal}");
        assert!(pids.iter().all(|pid| state(*pid).is_none()), "{signal}");
    }
}

#[test]
fn second_signal_is_passed_on_as_the_first() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let script = "trap 'n=$((n+1)); [ $n -lt 2 ] || exit 7' INT; echo $$; \
                  while :; do sleep 0.01; done";
    let args = [blue.name(), red.name(), "--", "sh", "-c", script];
    let (mut child, mut reader, _) = start_and_meet(exec(&args).stderr(Stdio::null()), 2);
    send(&child, Signal::SIGINT);
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().expect("ours").is_none());
    send(&child, Signal::SIGINT);
    assert_eq!(status(&mut child), 7);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).expect("text");
}

#[test]
fn killed_exec_leaves_no_process_of_its_commands() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let log = Log::new();
    // A child of the command, one in a process group of its own, and the command.
    let script = format!(
        "sleep 300 & echo $! >> {log}; setsid sleep 300 & other=$!; \
         bash -mc 'sleep 300 & echo $! >> {log}; wait' & \
         while [ $(wc -l < {log}) -lt 4 ]; do sleep 0.01; done; kill $other; echo $$; wait",
        log = log.path()
    );
    let args = [blue.name(), red.name(), "--", "sh", "-c", &script];
    let (mut child, _reader, mut pids) = start_and_meet(exec(&args).stderr(Stdio::null()), 2);
    pids.extend(
        log.lines()
            .iter()
            .map(|pid| pid.parse::<i32>().expect("a number")),
    );
    assert_eq!(pids.len(), 6);
    assert!(pids.iter().all(|pid| state(*pid).is_some()));
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
    eventually("all of them have ended", || {
        pids.iter().all(|pid| state(*pid).is_none())
    });
}

#[test]
fn all_runs_once_in_a_namespace_and_keeps_its_form() {
    require_root();
    // A /run of the test's own: other tests make and delete names all the time.
    let in_empty_run = |script: &str| {
        let script = format!("mount -t tmpfs tmpfs /run && {script}");
        let args = [
            "--mount",
            "--propagation",
            "private",
            "bash",
            "-c",
            &script,
            PROGRAM,
        ];
        let mut command = Command::new("unshare");
        command.args(args).stdin(Stdio::null());
        within("a script", move || {
            command.output().expect("unshare of util-linux")
        })
    };
    let one = in_empty_run(
        "ip netns add blue && echo hello | \"$0\" exec --all -- sh -c 'cat; echo ran'",
    );
    assert_eq!(text(&one.stdout), "blue: ran\n", "{}", text(&one.stderr));

    let two_names = in_empty_run(
        "ip netns add red && touch /run/netns/a && mount --bind /run/netns/red /run/netns/a && \
         \"$0\" exec --all -- echo ran",
    );
    assert_eq!(
        text(&two_names.stdout),
        "a: ran\n",
        "{}",
        text(&two_names.stderr)
    );

    let bytes = in_empty_run(
        "ip netns add red && touch $'/run/netns/\\xff' && \
         mount --bind /run/netns/red $'/run/netns/\\xff' && ip netns del red && \
         \"$0\" exec --all -- echo ran && \"$0\" exec $'\\xff' -- echo by name && \
         \"$0\" exec $'/run/netns/\\xff' -- echo by path",
    );
    let expected = OsStr::from_bytes(b"\xff: ran\nby name\nby path\n");
    assert_eq!(
        OsStr::from_bytes(&bytes.stdout),
        expected,
        "{:?}",
        bytes.stderr
    );
}

#[test]
fn time_out_ends_a_command_that_ignores_sigterm_too() {
    let blue = TempNetns::new();
    for (script, said) in [
        ("exec sleep 60", "timed out"),
        ("trap '' TERM; while :; do sleep 0.1; done", "timed out"),
    ] {
        let output = output(&["--timeout", "0.2", blue.name(), "--", "sh", "-c", script]);
        assert_eq!(output.status.code(), Some(124));
        assert!(
            text(&output.stderr).contains(said),
            "{}",
            text(&output.stderr)
        );
    }
    let fine = output(&["--timeout", "60", blue.name(), "--", "echo", "fine"]);
    assert_eq!(text(&fine.stdout), format!("{}: fine\n", blue.name()));
    assert_eq!(fine.status.code(), Some(0));
}

#[test]
fn no_more_than_so_many_jobs_run_at_a_time() {
    let netns: Vec<TempNetns> = (0..7).map(|_| TempNetns::new()).collect();
    let log = Log::new();
    let script = format!(
        "echo begin >> {log}; sleep 0.1; echo end >> {log}",
        log = log.path()
    );
    let mut args = vec!["--jobs", "2"];
    args.extend(netns.iter().map(|netns| netns.name()));
    args.extend(["--", "sh", "-c", &script]);
    assert_eq!(output(&args).status.code(), Some(0));
    let (mut running, mut most) = (0_i32, 0);
    for line in log.lines() {
        running += if line == "begin" { 1 } else { -1 };
        most = most.max(running);
    }
    assert_eq!((most, log.lines().len()), (2, 14));
}

#[test]
fn stalled_reader_keeps_more_jobs_from_being_started() {
    let netns: Vec<TempNetns> = (0..24).map(|_| TempNetns::new()).collect();
    let log = Log::new();
    // Enough files for two commands at a time, and not for all.
    let script = format!(
        "ulimit -n 70; exec \"$0\" exec --jobs 2 \"$@\" -- sh -c \
         'echo up >> {}; seq 10001 20000'",
        log.path()
    );
    let (reader, writer, probe) = stalled();
    let mut command = Command::new("bash");
    command.args(["-c", &script, PROGRAM]).stdout(writer);
    command.args(netns.iter().map(|netns| netns.name()));
    let mut child = start(&mut command);
    drop(command);
    eventually("the pipe is full", || is_full(&probe));
    drop(probe);
    // Not for luck: what is wrong here is a start that should not be.
    thread::sleep(Duration::from_millis(500));
    let started = log.lines().len();
    assert!(started < 24, "all were started");
    let lines = BufReader::new(reader).lines().count();
    assert_eq!((lines, status(&mut child)), (240_000, 0));
}

#[test]
fn signal_keeps_waiting_jobs_from_being_started() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let args = ["--jobs", "1", blue.name(), red.name(), "--", "sh", "-c"];
    let script = "trap 'exit 0' TERM; echo $$; while :; do sleep 0.01; done";
    let (mut child, mut reader, _) =
        start_and_meet(exec(&args).arg(script).stderr(Stdio::null()), 1);
    send(&child, Signal::SIGTERM);
    assert_eq!(status(&mut child), 128 + 15, "not all of the work was done");
    let mut rest = String::new();
    reader.read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "");
}

#[test]
fn first_failure_ends_the_others_and_gives_the_status() {
    let (blue, red, green) = (TempNetns::new(), TempNetns::new(), TempNetns::new());
    let log = Log::new();
    // The first to make the folder fails, once the other runs, which waits to be
    // ended.
    let folder = Log::new();
    let script = format!(
        "echo up >> {log}; if mkdir {folder} 2>/dev/null; then \
         while [ $(wc -l < {log}) -lt 2 ]; do sleep 0.01; done; exit 3; fi; exec sleep 60",
        log = log.path(),
        folder = folder.path()
    );
    let args = [
        "--fail-fast",
        "--jobs",
        "2",
        blue.name(),
        red.name(),
        green.name(),
    ];
    let mut command = exec(&args);
    command.args(["--", "sh", "-c", &script]);
    let output = within("exec", move || {
        command.output().expect("the program was built")
    });
    fs::remove_dir(&folder.0).expect("made by a command");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("1 ended because of that; 1 not started"),
        "{said}"
    );
}

#[test]
fn group_keeps_the_output_of_each_together() {
    let netns: Vec<TempNetns> = (0..4).map(|_| TempNetns::new()).collect();
    let mut args = vec!["--group"];
    args.extend(netns.iter().map(|netns| netns.name()));
    // Longer than what stays in memory.
    let script = "for n in 1 2 3; do seq 1 20000; echo oops >&2; sleep 0.05; done";
    args.extend(["--", "sh", "-c", script]);
    let output = output(&args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let names: Vec<&str> = (text(&output.stdout).lines())
        .map(|line| line.split_once(": ").expect("a prefix").0)
        .collect();
    let mut groups = names.chunk_by(|a, b| a == b);
    assert!(groups.all(|group| group.len() == 60_000));
    assert_eq!(names.len(), 4 * 60_000);
    assert_eq!(text(&output.stderr).lines().count(), 12);
}

#[test]
fn json_has_an_event_for_each_line_and_each_end() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let script = "echo out; printf 'err\\377\\n' >&2; kill -KILL $$";
    let output = output(&["--json", blue.name(), red.name(), "--", "sh", "-c", script]);
    assert_eq!(output.status.code(), Some(128 + 9));
    let events: Vec<Value> = (text(&output.stdout).lines())
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for netns in [&blue, &red] {
        let own: Vec<&Value> = (events.iter())
            .filter(|event| event["netns"] == netns.name())
            .collect();
        assert_eq!(own.len(), 3);
        let line = |stream: &str| {
            let found = own.iter().find(|event| event["stream"] == stream);
            &found.expect(stream)["line"]
        };
        assert_eq!(line("stdout"), "out");
        assert_eq!(*line("stderr"), serde_json::json!([101, 114, 114, 255]));
        let end = own[2];
        assert_eq!(
            (&end["event"], &end["signal"]),
            (&"end".into(), &"SIGKILL".into())
        );
        assert_eq!(
            (&end["status"], &end["timed_out"]),
            (&137.into(), &false.into())
        );
        assert_eq!(end["netns_id"], u64::from(netns.id()));
    }
    let summary = events.last().expect("an event");
    assert_eq!(summary["event"], "summary");
    assert_eq!(
        (&summary["commands"], &summary["failed"]),
        (&2.into(), &2.into())
    );
    assert_eq!(summary["status"], 137);
}

#[test]
fn failures_are_summed_up_at_the_end() {
    let netns: Vec<TempNetns> = (0..3).map(|_| TempNetns::new()).collect();
    let names: Vec<&str> = netns.iter().map(|netns| netns.name()).collect();
    let mut args = names.clone();
    args.extend(["--", "sh", "-c", "exit 4"]);
    let output = output(&args);
    let said = text(&output.stderr);
    let last = said.lines().last().expect("a line");
    assert!(
        last.contains("`sh` failed in 3 of 3 namespaces: ended with status 4 in "),
        "{said}"
    );
    assert!(names.iter().all(|name| last.contains(name)), "{said}");
}

#[test]
fn every_subcommand_writes_all_where_writing_does_not_block() {
    require_root();
    for args in [
        &["completions", "bash"][..],
        &["ls", "--json", "--holders"],
        &["audit", "--json"],
        &["--help"],
    ] {
        let (reader, writer) = pipe().expect("a pipe");
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe");
        // The least there is: less than any of them writes.
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).expect("a pipe");
        let mut command = Command::new(PROGRAM);
        command.args(args).stdout(writer).stderr(Stdio::piped());
        let child = start(&mut command);
        drop(command);
        let mut all = Vec::new();
        BufReader::new(SlowReader(reader))
            .read_to_end(&mut all)
            .expect("a pipe");
        let output = within("the program", move || {
            child.wait_with_output().expect("ours")
        });
        let said = text(&output.stderr);
        assert!(
            !said.contains("panicked") && !said.contains("cannot write"),
            "{said}"
        );
        if args.contains(&"--json") {
            serde_json::from_slice::<Value>(&all).expect("all of the document");
        }
        assert!(all.ends_with(b"\n"), "{args:?}");
    }
}

/// Reads a little at a time.
struct SlowReader(PipeReader);

impl Read for SlowReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        thread::sleep(Duration::from_micros(200));
        let room = buffer.len().min(512);
        self.0.read(&mut buffer[..room])
    }
}
