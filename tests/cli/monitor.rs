//! `netns-exec monitor`: names come and go.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use netns_exec_tests::{TempNetns, eventually, within};
use serde_json::Value;

use super::{PROGRAM, Who, command, in_own_run, text};

struct Monitor {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Monitor {
    /// Starts it, and returns when it tells of what happens.
    fn start(args: &[&str]) -> Monitor {
        let mut child = command(&[&["monitor"][..], args].concat())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        let inotify = format!("/proc/{}/fdinfo", child.id());
        eventually("the monitor watches", || {
            // Of the folder and of the one above.
            let files = std::fs::read_dir(&inotify).into_iter().flatten().flatten();
            let infos = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
            infos
                .map(|info| info.matches("inotify wd").count())
                .sum::<usize>()
                >= 2
        });
        // And knows what was there before: it waits.
        eventually("the monitor waits", || {
            super::state(child.id().cast_signed()) == Some('S')
                && std::fs::read_to_string(format!("/proc/{}/wchan", child.id()))
                    .is_ok_and(|place| place == "0" || place.contains("poll"))
        });
        Monitor { child, lines }
    }

    /// The next line that holds `name`: other tests make names too.
    fn next_of(self, name: &str) -> (Monitor, String) {
        let name = name.to_owned();
        within("a line of the monitor", move || {
            let mut monitor = self;
            loop {
                let mut line = String::new();
                monitor.lines.read_line(&mut line).expect("a line");
                assert_ne!(line, "", "the monitor has ended");
                if line.contains(&name) {
                    return (monitor, line);
                }
            }
        })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn names_are_told_when_they_come_and_go() {
    let there_before = TempNetns::new();
    let monitor = Monitor::start(&[]);
    let blue = TempNetns::new();
    let name = blue.name().to_owned();
    let (monitor, line) = monitor.next_of("add nxt-");
    assert!(!line.contains(there_before.name()));
    let (monitor, line) = match line.contains(&name) {
        true => (monitor, line),
        false => monitor.next_of(&name),
    };
    assert_eq!(line, format!("add {name}\n"));
    blue.delete();
    let (monitor, line) = monitor.next_of(&name);
    assert_eq!(line, format!("delete {name}\n"));
    // One that was there before goes, too.
    let name = there_before.name().to_owned();
    there_before.delete();
    let (_monitor, line) = monitor.next_of(&name);
    assert_eq!(line, format!("delete {name}\n"));
}

#[test]
fn json_is_one_object_a_line() {
    let monitor = Monitor::start(&["--json"]);
    let blue = TempNetns::new();
    let (_monitor, line) = monitor.next_of(blue.name());
    let event: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(event["event"], "add");
    assert_eq!(event["name"], blue.name());
}

#[test]
fn reader_that_has_gone_ends_it_without_a_name_that_comes() {
    let mut monitor = Monitor::start(&[]);
    drop(std::mem::replace(
        &mut monitor.lines,
        BufReader::new({
            let mut other = Command::new("true");
            let mut child = other.stdout(Stdio::piped()).spawn().expect("true(1)");
            child.wait().expect("it ends");
            child.stdout.take().expect("piped")
        }),
    ));
    let mut ended = None;
    eventually("the monitor has ended", || {
        ended = monitor.child.try_wait().expect("it is ours");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
}

/// The first name makes the folder, and an administrator may remove it.
#[test]
fn folder_that_comes_and_goes_is_followed() {
    let script = "{ \"$0\" monitor > /run/told & }; pid=$!; \
         until grep -q inotify /proc/$pid/fdinfo/* 2>/dev/null; do sleep 0.01; done; sleep 0.1; \
         told() { until [ $(wc -l < /run/told) -ge $1 ]; do sleep 0.01; done; }; \
         ip netns add blue; told 1; ip netns delete blue; told 2; \
         umount /run/netns; rmdir /run/netns; \
         ip netns add red; told 3; cat /run/told; kill $pid";
    let shown = in_own_run(Who::Root, script);
    assert_eq!(
        text(&shown.stdout),
        "add blue\ndelete blue\nadd red\n",
        "{} {PROGRAM}",
        text(&shown.stderr)
    );
}
