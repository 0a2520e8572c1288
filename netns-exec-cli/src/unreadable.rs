//! What could not be read of other processes, and what it would take.

use std::fs;

use netns_exec::Netns;

use crate::capability::{CAP_SYS_PTRACE, has_capability};
use crate::output::printable;
use crate::stdio;

/// A process that may not be read in full.
pub(crate) struct LeftOut<'a> {
    pub(crate) pid: u32,
    pub(crate) name: &'a str,
    /// What of it: "threads", "fds", "sockets", "mounts".
    pub(crate) what: &'a str,
}

/// Says on standard error what is missing, if anything is.
pub(crate) fn say(left_out: &[LeftOut<'_>]) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let sees_all = has_capability(CAP_SYS_PTRACE).unwrap_or(false);
    if hides_processes(&mounts) && !sees_all {
        stdio::say(
            "netns-exec: /proc hides the processes of others (hidepid), so there may be more; \
             it takes CAP_SYS_PTRACE: run as root\n",
        );
    }
    if !left_out.is_empty() {
        stdio::say(&format!(
            "netns-exec: {}\n",
            text(left_out, &cure(left_out))
        ));
    }
}

fn text(left_out: &[LeftOut<'_>], cure: &str) -> String {
    const SHOWN: usize = 4;
    let count = match left_out.len() {
        1 => "1 process".to_owned(),
        more => format!("{more} processes"),
    };
    let mut named: Vec<String> = (left_out.iter().take(SHOWN))
        .map(|LeftOut { pid, name, what }| format!("{what} of {pid} ({})", printable(name)))
        .collect();
    if let more @ 1.. = left_out.len().saturating_sub(SHOWN) {
        named.push(format!("and of {more} more"));
    }
    let named = named.join(", ");
    format!("{count} could not be read in full, so there may be more: {named}; {cure}")
}

/// What is missing to read them.
fn cure(left_out: &[LeftOut<'_>]) -> String {
    let own = std::process::id();
    if left_out.iter().any(|process| process.pid == own) {
        return match Netns::from_path("/proc/self/ns/net") {
            Err(error) => format!("not even this process can be read: {error}"),
            Ok(_) => "not even this process can be read: a filter refuses it".to_owned(),
        };
    }
    match has_capability(CAP_SYS_PTRACE) {
        Ok(false) => "it takes CAP_SYS_PTRACE: run as root".to_owned(),
        _ => "CAP_SYS_PTRACE is there and not enough: a seccomp filter, a security module \
              or the owner of another user namespace refuses it"
            .to_owned(),
    }
}

/// Whether the last mount at /proc does not show all processes: see proc(5).
fn hides_processes(mountinfo: &str) -> bool {
    let at_proc = |line: &&str| line.split(' ').nth(4) == Some("/proc");
    let Some(mount) = mountinfo.lines().rfind(at_proc) else {
        return false;
    };
    let options = mount.rsplit(' ').next().unwrap_or_default();
    options.split(',').any(|option| {
        let hidden = option.strip_prefix("hidepid=");
        // With 1 and `noaccess` they are there, and may not be read.
        hidden.is_some_and(|how| matches!(how, "2" | "4" | "invisible" | "ptraceable"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_that_hides_processes_is_known() {
        let line = |options: &str| {
            format!("23 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw{options}\n")
        };
        assert!(!hides_processes(&line("")));
        assert!(!hides_processes(&line(",hidepid=noaccess")));
        assert!(hides_processes(&line(",gid=4,hidepid=invisible")));
        assert!(hides_processes(&(line("") + &line(",hidepid=2"))));
        assert!(!hides_processes(&(line(",hidepid=2") + &line(""))));
    }

    fn processes(count: u32) -> Vec<LeftOut<'static>> {
        (1..=count)
            .map(|pid| LeftOut {
                pid,
                name: "init\n",
                what: "sockets",
            })
            .collect()
    }

    #[test]
    fn one_is_singular_and_named() {
        assert_eq!(
            text(&processes(1), "run as root"),
            "1 process could not be read in full, so there may be more: sockets of 1 (init\\n); \
             run as root"
        );
    }

    #[test]
    fn many_are_named_as_far_as_one_line_goes() {
        let said = text(&processes(40), "run as root");
        assert!(
            said.starts_with("40 processes could")
                && said.contains("of 4 (init\\n), and of 36 more;")
        );
    }
}
