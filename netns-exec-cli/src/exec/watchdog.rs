//! A process that outlives exec by a moment, and ends its commands when exec did
//! not come to do so: SIGKILL can be sent to a supervisor too.
//!
//! It holds no file but one end of a pipe, and hears no signal. The pipe tells it
//! which sessions there are; the end of the pipe, that exec has ended. The kernel
//! kills the commands' first processes at that moment as well (see
//! `sys::supervise_before_exec`), but forgets it of those that changed their user,
//! and knows nothing of what they have started.
//!
//! It is a child of exec, so that exec can reap it: not every init does.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;

use nix::sys::prctl::set_name;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, chdir};

use crate::failure::Failure;
use crate::stdio;
use crate::sys;

/// The watchdog, as exec has it.
pub(super) struct Watchdog {
    /// `None` where there is none.
    process: Option<(Pid, PipeWriter)>,
    live: usize,
}

impl Watchdog {
    /// Starts it. This must still be the only thread.
    pub(super) fn start() -> Result<Watchdog, Failure> {
        let failed = |error: io::Error| Failure::io("cannot start a watchdog", error);
        let (process, live) = (None, 0);
        // The first child of this process would be the init of a PID namespace that
        // ends with it; let that be a command.
        let pid_namespaces =
            ["pid", "pid_for_children"].map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")));
        if let [Ok(own), Ok(children)] = &pid_namespaces
            && own != children
        {
            return Ok(Watchdog { process, live });
        }
        let (reader, writer) = io::pipe().map_err(failed)?;
        stdio::set_non_blocking(&writer).map_err(|errno| failed(errno.into()))?;
        let pid = sys::fork_helper(|| watch(reader)).map_err(failed)?;
        Ok(Watchdog {
            process: Some((pid, writer)),
            live,
        })
    }

    /// Says that a command leads this session.
    pub(super) fn begin(&mut self, leader: Pid) {
        self.live += 1;
        self.tell(leader.as_raw());
    }

    /// Says that the command has ended; before it is reaped, for until then the
    /// number is its own.
    pub(super) fn end(&mut self, leader: Pid) {
        self.live -= 1;
        self.tell(-leader.as_raw());
    }

    fn tell(&mut self, number: i32) {
        if let Some((_, sessions)) = &mut self.process {
            // Without a watchdog the commands run just as well.
            let _ = sessions.write_all(&number.to_ne_bytes());
        }
    }
}

impl Drop for Watchdog {
    /// Ends it; after it has done its work, should there be any left.
    fn drop(&mut self) {
        if let Some((pid, sessions)) = self.process.take() {
            drop(sessions);
            if self.live == 0 {
                let _ = kill(pid, Signal::SIGKILL);
            }
            let _ = waitpid(pid, None);
        }
    }
}

/// The watchdog's life.
fn watch(mut sessions: PipeReader) {
    sys::close_all_but(sessions.as_raw_fd());
    let _ = SigSet::all().thread_block();
    let _ = chdir("/");
    let _ = set_name(c"exec-watchdog");
    let mut live = BTreeSet::new();
    let mut number = [0; 4];
    while sessions.read_exact(&mut number).is_ok() {
        match i32::from_ne_bytes(number) {
            leader @ 1.. => live.insert(leader),
            ended => live.remove(&-ended),
        };
    }
    if !live.is_empty() {
        kill_sessions(&live);
    }
}

/// Kills all processes of these sessions, as long as there are more: a process may
/// be forking just now.
fn kill_sessions(leaders: &BTreeSet<i32>) {
    for leader in leaders {
        let _ = killpg(Pid::from_raw(*leader), Signal::SIGKILL);
    }
    // Those that left the process group, as the jobs of a shell do.
    for _ in 0..100 {
        let members = members(leaders);
        if members.is_empty() {
            return;
        }
        for pid in members {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::yield_now();
    }
}

/// The processes of these sessions that run.
fn members(leaders: &BTreeSet<i32>) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    (entries.flatten())
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| session_of(&stat).is_some_and(|id| leaders.contains(&id)))
        })
        .collect()
}

/// The session in a line of /proc/PID/stat, unless the process has ended: see
/// proc_pid_stat(5).
fn session_of(stat: &str) -> Option<i32> {
    // The name before it may hold anything.
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_is_read_behind_a_name_with_brackets() {
        assert_eq!(session_of("7 (a) Z 9) S 1 2 33 0 -1"), Some(33));
        assert_eq!(session_of("7 (sh) Z 1 2 33 0 -1"), None);
    }
}
