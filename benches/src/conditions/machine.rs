//! Where and of what figures were taken: they are worth nothing without.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::conditions::cpus;

/// Where and of what figures were taken.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// What the CPU calls itself.
    pub cpu: String,
    /// How many of them this process may use.
    pub cores: usize,
    /// The load when the run began: above 0, something else ran too. Of several
    /// runs, one after the other.
    pub load: String,
    /// The commit of the working tree, and whether it had changes.
    pub commit: String,
    /// How the run was started, but for where its results went.
    pub command: String,
}

impl Machine {
    /// Reads them from /proc, uname(2) and git.
    ///
    /// # Errors
    ///
    /// Without /proc.
    pub fn this() -> Result<Machine> {
        Ok(Machine {
            kernel: nix::sys::utsname::uname()?
                .release()
                .to_string_lossy()
                .into_owned(),
            cpu: cpu_model(&fs::read_to_string("/proc/cpuinfo")?),
            cores: cpus::allowed()?.len(),
            load: fs::read_to_string("/proc/loadavg")?
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned(),
            commit: commit().unwrap_or_else(|| "unknown".into()),
            command: command(std::env::args().skip(1)),
        })
    }

    /// One line for the head of a table.
    pub fn headline(&self) -> String {
        let Machine {
            kernel,
            cpu,
            cores,
            load,
            commit,
            command,
        } = self;
        format!(
            "{cpu}, {cores} CPUs, Linux {kernel}, load {load} at the start, commit {commit}: `{command}`"
        )
    }
}

fn command(mut arguments: impl Iterator<Item = String>) -> String {
    let mut command = String::from("cargo bench -p benches --bench compare --");
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--bench" => {}
            "--out" => drop(arguments.next()),
            out if out.starts_with("--out=") => {}
            other => command.extend([" ", other]),
        }
    }
    command
}

/// x86-64 names its model; aarch64 gives numbers only.
fn cpu_model(cpuinfo: &str) -> String {
    let value = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    value("model name")
        .or_else(|| Some(format!("CPU part {}", value("CPU part")?)))
        .unwrap_or_else(|| "unknown CPU".into())
}

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let directory = env!("CARGO_MANIFEST_DIR");
        let output = Command::new("git")
            .args(["-C", directory])
            .args(arguments)
            .output()
            .ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| said.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let clean = git(&["status", "--porcelain"])?.is_empty();
    Some(if clean {
        commit
    } else {
        commit + " with changes"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_is_the_same_wherever_the_results_go() {
        let said = |line: &str| command(line.split(' ').map(str::to_owned));
        let plain = "cargo bench -p benches --bench compare -- --long --only /hot/";
        assert_eq!(said("--long --only /hot/ --bench"), plain);
        assert_eq!(said("--long --out a --only /hot/ --bench"), plain);
        assert_eq!(said("--long --only /hot/ --out=b --bench"), plain);
    }

    #[test]
    fn cpu_is_named_on_both_architectures() {
        assert_eq!(
            cpu_model("processor\t: 0\nmodel name\t: AMD EPYC\n"),
            "AMD EPYC"
        );
        assert_eq!(cpu_model("CPU part\t: 0xd0c\n"), "CPU part 0xd0c");
        assert_eq!(cpu_model(""), "unknown CPU");
    }
}
