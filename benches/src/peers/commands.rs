//! A process per call, as scripts do it.

use std::process::{Command, Stdio};

use super::peer::{Peer, Setup};
use crate::Result;
use crate::conditions::namespace::path;
use crate::work::Work;

/// A command line that runs what is appended to it in the namespace.
struct Through(Vec<String>);

pub(super) fn ip(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    let name = setup.name.ok_or("`ip netns exec` needs a name")?;
    Through::new(&["ip", "netns", "exec", name])
}

pub(super) fn nsenter(setup: &Setup<'_>) -> Result<Box<dyn Peer>> {
    Through::new(&["nsenter", &format!("--net={}", path(setup.netns))])
}

impl Through {
    #[expect(clippy::new_ret_no_self, reason = "it is only known as a peer")]
    fn new(words: &[&str]) -> Result<Box<dyn Peer>> {
        let words = words.iter().copied().map(String::from).collect();
        Ok(Box::new(Through(words)))
    }

    fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new(&self.0[0]);
        command
            .args(&self.0[1..])
            .args(program)
            .stdin(Stdio::null());
        command
    }
}

impl Peer for Through {
    fn repeat(&self, work: Work, times: u32) {
        assert_eq!(work, Work::Empty, "no socket comes back from a command");
        for _ in 0..times {
            let status = self.command(&["true"]).status();
            assert!(status.is_ok_and(|status| status.success()), "{:?}", self.0);
        }
    }

    fn netns_inode(&self) -> Option<u64> {
        let output = self
            .command(&["readlink", "/proc/self/ns/net"])
            .output()
            .ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        let inode = said.trim().strip_prefix("net:[")?.strip_suffix(']')?;
        inode.parse().ok()
    }
}
