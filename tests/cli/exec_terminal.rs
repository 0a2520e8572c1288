//! `netns-exec exec` in several namespaces, on a real terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use netns_exec::Executor;
use netns_exec_tests::{TempNetns, eventually};
use nix::pty::openpty;

use super::{PROGRAM, state};

/// A terminal with a process on it that it controls.
pub(crate) struct Terminal {
    keys: Option<File>,
    shown: Arc<Mutex<String>>,
    child: Child,
    /// Those that were made for it.
    namespaces: Vec<TempNetns>,
}

impl Terminal {
    /// Starts a program whose controlling terminal this is.
    pub(crate) fn start(words: &[&str]) -> Terminal {
        let pty = openpty(None, None).expect("a terminal");
        let copy = |fd: &OwnedFd| fd.try_clone().expect("a copy");
        let child = Command::new("setsid")
            .arg("--ctty")
            .args(words)
            .env("TERM", "dumb")
            .stdin(copy(&pty.slave))
            .stdout(copy(&pty.slave))
            .stderr(pty.slave)
            .spawn()
            .expect("setsid of util-linux");
        let keys = File::from(pty.master);
        let mut screen = keys.try_clone().expect("a copy");
        let shown = Arc::new(Mutex::new(String::new()));
        let text = Arc::clone(&shown);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO when the last process on it has gone.
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                let more = String::from_utf8_lossy(&buffer[..count]);
                text.lock().expect("no panic").push_str(&more);
            }
        });
        Terminal {
            keys: Some(keys),
            shown,
            child,
            namespaces: Vec::new(),
        }
    }

    /// Starts exec with a script in each of these namespaces.
    fn of_exec(namespaces: &[&TempNetns], script: &str) -> Terminal {
        let names = namespaces.iter().map(|netns| netns.name());
        let words = [PROGRAM, "exec"].into_iter().chain(names);
        let words: Vec<_> = words.chain(["--", "sh", "-c", script]).collect();
        Terminal::start(&words)
    }

    /// Starts exec in two namespaces, with commands that wait, and waits for them.
    fn with_two_that_wait() -> Terminal {
        let namespaces = vec![TempNetns::new(), TempNetns::new()];
        let all: Vec<_> = namespaces.iter().collect();
        let mut terminal = Terminal::of_exec(&all, WAIT);
        terminal.namespaces = namespaces;
        terminal.wait_for(" .", 2);
        terminal
    }

    pub(crate) fn press(&mut self, keys: &[u8]) {
        let file = self.keys.as_mut().expect("not hung up");
        file.write_all(keys).expect("a process is there");
    }

    pub(crate) fn shown(&self) -> String {
        self.shown.lock().expect("no panic").clone()
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str, times: usize) {
        eventually(text, || self.shown().matches(text).count() == times);
    }

    #[track_caller]
    pub(crate) fn status(&mut self) -> Option<i32> {
        let mut ended = None;
        eventually("the program has ended", || {
            ended = self.child.try_wait().expect("it is ours");
            ended.is_some()
        });
        ended.and_then(|status| status.code())
    }

    /// The numbers that commands have written behind `word`.
    fn numbers(&self, word: &str) -> Vec<i32> {
        let shown = self.shown();
        let behind = shown.split(word).skip(1);
        behind
            .map(|text| {
                let digits = text.trim_start().split(|c: char| !c.is_ascii_digit());
                digits
                    .clone()
                    .next()
                    .and_then(|n| n.parse().ok())
                    .expect("a number")
            })
            .collect()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.namespaces.clear();
    }
}

const WAIT: &str = "echo pid $$ .; exec sleep 60";

#[test]
fn question_on_the_terminal_fails_at_once() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    let ask = "if (read x < /dev/tty) 2>/dev/null; then echo answered; else echo refused; fi";
    let mut terminal = Terminal::of_exec(&[&blue, &red], ask);
    assert_eq!(terminal.status(), Some(0));
    terminal.wait_for("refused", 2);

    // In one namespace, the command has the terminal.
    let mut terminal = Terminal::of_exec(&[&blue], ask);
    terminal.press(b"yes\n");
    assert_eq!(terminal.status(), Some(0));
    terminal.wait_for("answered", 1);
}

#[test]
fn interrupt_key_ends_all_commands() {
    let mut terminal = Terminal::with_two_that_wait();
    terminal.press(b"\x03");
    assert_eq!(terminal.status(), Some(128 + 2), "{}", terminal.shown());
    let pids = terminal.numbers("pid");
    assert!(pids.len() == 2 && pids.iter().all(|pid| state(*pid).is_none()));
}

#[test]
fn stop_key_stops_the_commands_and_fg_continues_them() {
    let (blue, red) = (TempNetns::new(), TempNetns::new());
    // A shell with job control: without one, nothing continues what stops.
    let script = format!(
        "set -m; \"$0\" exec {} {} -- sh -c '{WAIT}'; echo stopped: $?; read -r; fg; echo done: $?",
        blue.name(),
        red.name()
    );
    let mut terminal = Terminal::start(&["bash", "--norc", "-c", &script, PROGRAM]);
    terminal.wait_for(" .", 2);
    let pids = terminal.numbers("pid");
    terminal.press(b"\x1a");
    terminal.wait_for("stopped: 148", 1);
    eventually("the commands have stopped", || {
        pids.iter().all(|pid| state(*pid) == Some('T'))
    });
    terminal.press(b"\n");
    eventually("the commands run again", || {
        pids.iter().all(|pid| state(*pid) == Some('S'))
    });
    terminal.press(b"\x03");
    terminal.wait_for("done: 130", 1);
    assert_eq!(terminal.status(), Some(0));
}

#[test]
fn stop_without_a_shell_to_continue_stops_nothing_for_ever() {
    let mut terminal = Terminal::with_two_that_wait();
    // The kernel stops no process group that no shell looks after.
    terminal.press(b"\x1a");
    terminal.press(b"\x03");
    assert_eq!(terminal.status(), Some(128 + 2), "{}", terminal.shown());
}

#[test]
fn hang_up_ends_all_commands() {
    let mut terminal = Terminal::with_two_that_wait();
    let pids = terminal.numbers("pid");
    // As the line's end does; the reader of the screen keeps it open.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(terminal.child.id().cast_signed()),
        nix::sys::signal::Signal::SIGHUP,
    )
    .expect("it is ours");
    assert_eq!(terminal.status(), Some(128 + 1));
    assert!(pids.iter().all(|pid| state(*pid).is_none()));
}

#[test]
fn colours_are_for_terminals_whose_user_wants_them() {
    let netns = TempNetns::new();
    let executor = Executor::new().expect("an executor");
    let _worker = executor.pin(&netns).expect("root may enter");
    let own = std::process::id().to_string();
    let run = |setting: &str| {
        let mut terminal = Terminal::start(&["env", "TERM=xterm", setting, PROGRAM, "audit", &own]);
        assert_eq!(terminal.status(), Some(0));
        terminal.wait_for("1 worker,", 1);
        terminal.shown()
    };
    let escape = '\x1b';
    assert!(run("NO_COLOR=").contains(escape));
    assert!(!run("NO_COLOR=1").contains(escape));
}
