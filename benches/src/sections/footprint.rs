//! What a thousand workers cost while no caller wants them.
//!
//! Measured in a process of its own for each contestant: what others allocated
//! and freed before would be found again, and the workers would seem free.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{Executor, Netns};
use nix::unistd::gettid;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::conditions::{namespace, quiet};
use crate::peers::{CATALOGUE, Group, Setup};
use netns_exec_measure::Spread;

/// The section's name.
pub const SECTION: &str = "footprint";

/// What workers cost while no caller wants them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Footprint {
    /// The peer.
    pub label: String,
    /// On which side.
    pub group: Group,
    /// How many, one in each namespace.
    pub workers: usize,
    /// Resident memory of the process for each of them.
    pub resident_bytes_each: Spread,
    /// CPU time that all of them together use while idle, as a share of one CPU.
    pub idle_cpu_share: Spread,
}

/// What [`probe`] is told on its standard input.
#[derive(Serialize, Deserialize)]
struct ProbeRequest {
    label: String,
    netns_paths: Vec<String>,
    idle: Duration,
}

/// Measures one contestant of the catalogue in a process of its own.
///
/// # Errors
///
/// When that process fails; it has said why.
pub fn measure(label: &str, namespaces: &[Netns], idle: Duration) -> Result<Footprint> {
    let request = ProbeRequest {
        label: label.to_owned(),
        netns_paths: namespaces.iter().map(namespace::path).collect(),
        idle,
    };
    let mut child = Command::new(std::env::current_exe()?)
        .arg("--probe")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&serde_json::to_vec(&request)?)?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("the probe of `{label}` failed: {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The other end of [`measure`]: reads a request from standard input and writes
/// what it found to standard output.
///
/// # Errors
///
/// When the workers cannot be started or looked at.
pub fn probe() -> Result<()> {
    let request: ProbeRequest = serde_json::from_reader(std::io::stdin())?;
    let entry = (CATALOGUE.into_iter())
        .find(|entry| entry.label == request.label)
        .ok_or("no peer of that name")?;
    let namespaces: Vec<Netns> = (request.netns_paths.iter())
        .map(Netns::from_path)
        .collect::<Result<_, _>>()?;
    let executor = Executor::new()?;
    let start = |netns: &Netns| {
        let peer = (entry.build)(&Setup {
            netns,
            name: None,
            executor: &executor,
        })?;
        // A worker that never ran has not touched its stack yet.
        match peer.netns_inode() == Some(namespace::inode(netns)?) {
            true => Ok(peer),
            false => Err(format!("`{}` is not in {netns}", entry.label).into()),
        }
    };
    // The first brings along what all of them share.
    let (first, others) = namespaces.split_first().ok_or("no namespace")?;
    let _first = start(first)?;
    quiet::wait(&[])?;
    let before = resident()?;
    let workers: Vec<_> = others.iter().map(start).collect::<Result<_>>()?;
    quiet::wait(&[])?;
    let grown = resident()? - before;

    // A worker that has just started sees to itself once more, a moment after it fell asleep.
    thread::sleep(Duration::from_secs(1));
    let cpu = cpu_time_of_others()?;
    let begun = Instant::now();
    thread::sleep(request.idle);
    let used = (cpu_time_of_others()? - cpu) / 1e9;
    let footprint = Footprint {
        label: request.label,
        group: entry.group,
        workers: namespaces.len(),
        resident_bytes_each: Spread::exactly(grown / others.len().max(1) as f64),
        idle_cpu_share: Spread::exactly(used / begun.elapsed().as_secs_f64()),
    };
    println!("{}", serde_json::to_string(&footprint)?);
    drop(workers);
    Ok(())
}

/// The resident memory of this process in bytes, counted page by page: the
/// figure in status is allowed to lag behind.
fn resident() -> Result<f64> {
    let smaps = fs::read_to_string("/proc/self/smaps_rollup")?;
    let rss = smaps.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = rss.and_then(|rss| rss.trim().strip_suffix(" kB"));
    Ok(kib.ok_or("no Rss in smaps_rollup")?.trim().parse::<f64>()? * 1024.0)
}

/// The CPU time of all threads but this one, in nanoseconds: to look at a thousand threads
/// takes as much as they do in seconds. See the kernel's sched-stats.rst.
fn cpu_time_of_others() -> Result<f64> {
    let this = gettid().to_string();
    let mut sum = 0.0;
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        if task.file_name() != this.as_str() {
            let stat = fs::read_to_string(task.path().join("schedstat"))?;
            let on_cpu = stat.split(' ').next().unwrap_or_default();
            sum += on_cpu.parse::<f64>()?;
        }
    }
    Ok(sum)
}
