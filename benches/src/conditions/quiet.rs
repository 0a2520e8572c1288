//! Makes sure that no thread runs out of turn.
//!
//! A worker that still spins after its own turn would take a CPU from the
//! peer that is measured next, which would be blamed for it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::gettid;

use crate::Result;

/// Waits until every other thread of this process is asleep, but for `ignored`.
///
/// # Errors
///
/// When one is still running after two seconds; it is named.
pub fn wait(ignored: &[i32]) -> Result<()> {
    let own = gettid().as_raw();
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let mut awake = None;
        for task in fs::read_dir("/proc/self/task")? {
            let task = task?;
            let tid: i32 = task.file_name().to_string_lossy().parse()?;
            if tid == own || ignored.contains(&tid) {
                continue;
            }
            // A thread that ended meanwhile disturbs no measurement.
            let Ok(stat) = fs::read_to_string(task.path().join("stat")) else {
                continue;
            };
            if is_running(&stat) {
                awake = Some(stat);
                break;
            }
        }
        match awake {
            None => return Ok(()),
            Some(stat) if Instant::now() > deadline => {
                return Err(format!("a thread does not go to sleep between turns: {stat}").into());
            }
            Some(_) => thread::sleep(Duration::from_micros(50)),
        }
    }
}

/// Reads the state out of a line of /proc/PID/task/TID/stat, see proc_pid_stat(5).
fn is_running(stat: &str) -> bool {
    // The name before it may itself hold spaces and brackets.
    let state = stat
        .rfind(')')
        .and_then(|end| stat[end + 1..].split_whitespace().next());
    state == Some("R")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_read_behind_a_name_with_brackets() {
        assert!(is_running("7 (ns:a) S (b) R 1 2 3"));
        assert!(!is_running("7 (R) S 1 2 3"));
    }
}
