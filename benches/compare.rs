//! What does a call into a namespace cost, against the floors of the hardware
//! and the kernel, and against what people use today?
//!
//! The baselines are a spin ping-pong for calls back to back and a futex
//! ping-pong for all others, measured in the same rounds. Run it as
//! `cargo bench -p benches --bench compare -- --help`; it needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use benches::conditions::cpus::Hogs;
use benches::conditions::machine::Machine;
use benches::conditions::namespace::{self, Named};
use benches::peers::{
    CATALOGUE, CROSSBEAM, Entry, FLOODS, FloodEntry, Group, OURS, STD_CHANNEL, Setup, woken_by,
};
use benches::report::combine::{Run, combine};
use benches::report::goals::goals;
use benches::report::{Report, plot};
use benches::sections::contest::{Contest, Filter, Row, hold};
use benches::sections::latency::{self, Effort};
use benches::sections::{allocations, fleet, footprint, throughput, trips};
use benches::{Result, alloc};
use clap::{ArgGroup, Parser};
use netns_exec::{Executor, Netns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use regex::Regex;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// What a call into a network namespace costs, against the floors of the
/// hardware and the kernel, and against what people use today.
#[derive(Parser)]
#[command(group = ArgGroup::new("form"), after_help = "\
Examples (after `cargo bench -p benches --bench compare --`):
  --only /ours/              floors and our own calls, everywhere
  --only '^latency/.*/ours/' the same, latencies only: for tuning
  --only /hot/               calls back to back, all peers
  --long --out /tmp/run1     one run of those to publish
  --combine /tmp/run* --out /tmp/all
                             their medians: figures to publish
On a machine that does other things as well, put `nice -n -20` before it.")]
struct Options {
    /// A few minutes; the default
    #[arg(long, group = "form")]
    quick: bool,
    /// Five times the rounds: for figures to publish
    #[arg(long, group = "form")]
    long: bool,
    /// Seconds, one round: shows that everything runs, and no figure worth reading
    #[arg(long, group = "form")]
    smoke: bool,
    /// Measures only what matches SECTION/SCENE/GROUP/LABEL, and its floors
    #[arg(long, value_name = "REGEX")]
    only: Option<Regex>,
    /// Rounds of the latencies, in place of what the form says
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Measures nothing, but combines the results.json of each DIR by medians
    /// over the runs; they must be of one machine, kernel, commit and command
    #[arg(long, value_name = "DIR", num_args = 1.., conflicts_with_all = ["form", "only", "rounds"])]
    combine: Vec<PathBuf>,
    /// Where results.json, results.md, summary.md and the plots go; cargo runs
    /// benches in the folder of their crate
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/compare"), hide_default_value = true)]
    out: PathBuf,
    /// One process of the section on idle workers
    #[arg(long, hide = true)]
    probe: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// How much of everything.
struct Form {
    rounds: usize,
    latency: Effort,
    other_rounds: usize,
    throughput: Duration,
    spawned: u32,
    namespaces: &'static [usize],
    fleet: Duration,
    idle: Duration,
}

impl Form {
    fn of(options: &Options) -> Form {
        let ms = Duration::from_millis;
        let quick = Form {
            rounds: 30,
            latency: Effort {
                hot: ms(2),
                short_gaps: 16,
                long_gaps: 10,
            },
            other_rounds: 10,
            throughput: ms(20),
            spawned: 5000,
            namespaces: &[1, 10, 100, 1000],
            fleet: ms(10),
            idle: ms(3000),
        };
        let mut form = if options.long {
            Form {
                rounds: 150,
                other_rounds: 50,
                idle: ms(20_000),
                ..quick
            }
        } else if options.smoke {
            Form {
                rounds: 1,
                latency: Effort {
                    hot: ms(1),
                    short_gaps: 2,
                    long_gaps: 2,
                },
                other_rounds: 1,
                throughput: ms(2),
                spawned: 200,
                namespaces: &[1, 10],
                fleet: ms(1),
                idle: ms(100),
            }
        } else {
            quick
        };
        if let Some(rounds) = options.rounds {
            form.rounds = rounds.into();
        }
        form
    }
}

fn main() -> ExitCode {
    match run_as_told(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("compare: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn run_as_told(options: &Options) -> Result<()> {
    if options.probe {
        allow_many_files()?;
        return footprint::probe();
    }
    let report = if options.combine.is_empty() {
        allow_many_files()?;
        compare(options)?
    } else {
        if options.combine.contains(&options.out) {
            return Err("--out is one of the runs, and would overwrite it".into());
        }
        let runs: Vec<Run> = (options.combine.iter())
            .map(|directory| Run::read(directory))
            .collect::<Result<_>>()?;
        combine(&runs)?
    };
    publish(&report, &options.out)
}

/// A thousand namespaces are more files than a shell allows by default.
fn allow_many_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}

fn compare(options: &Options) -> Result<Report> {
    let form = Form::of(options);
    let filter = Filter(options.only.clone());
    let mut report = Report {
        machine: Machine::this()?,
        rounds: form.rounds,
        ..Report::default()
    };
    let hogs = Hogs::new()?;
    let executor = Executor::new()?;
    in_one_namespace(&mut report, &form, &filter, &executor, &hogs)?;
    in_many_namespaces(&mut report, &form, &filter, &executor, &hogs)?;
    without_and_around(&mut report, &form, &filter, &hogs)?;
    report.goals = goals(&report);
    Ok(report)
}

fn publish(report: &Report, out: &Path) -> Result<()> {
    let text = report.markdown();
    println!("{text}");
    fs::create_dir_all(out)?;
    let json = serde_json::to_string_pretty(report)?;
    fs::write(out.join("results.json"), json)?;
    fs::write(out.join("results.md"), text)?;
    fs::write(out.join("summary.md"), report.summary())?;
    plot::write(report, out)?;
    eprintln!("results and plots are in {}", out.display());
    Ok(())
}

fn in_one_namespace(
    report: &mut Report,
    form: &Form,
    filter: &Filter,
    executor: &Executor,
    hogs: &Hogs,
) -> Result<()> {
    let counts = |entry: &Entry| {
        // A floor has nothing to allocate for, and what a command allocates, it
        // allocates in another process.
        let may = entry.group != Group::Floor && entry.opens_sockets;
        may && filter.matches(allocations::SECTION, "call", entry.group, entry.label)
    };
    let is_wanted = |entry: &Entry| {
        latency::is_wanted(entry, filter) || throughput::is_wanted(entry, filter) || counts(entry)
    };
    let is_flood_wanted = |entry: &FloodEntry| {
        let is_asked = |section, scene| filter.matches(section, scene, entry.group, entry.label);
        (throughput::SPAWN_SCENES.iter()).any(|scene| is_asked(throughput::SPAWN, scene.name))
            || is_asked(allocations::SECTION, "spawn")
    };
    if !CATALOGUE.iter().any(is_wanted) && !FLOODS.iter().any(is_flood_wanted) {
        return Ok(());
    }
    let named = Named::new()?;
    let inode = namespace::inode(named.netns())?;
    let setup = Setup {
        netns: named.netns(),
        name: Some(named.name()),
        executor,
    };
    let mut peers = Vec::new();
    // What `--only` leaves out is not needed either: it may not be installed.
    for entry in
        (CATALOGUE.into_iter()).filter(|entry| entry.group == Group::Floor || is_wanted(entry))
    {
        let peer = (entry.build)(&setup)?;
        if entry.group != Group::Floor && peer.netns_inode() != Some(inode) {
            return Err(format!(
                "`{}` does not get into the namespace: install what it needs, or leave it out by --only",
                entry.label
            )
            .into());
        }
        peers.push((entry, peer));
    }
    let mut floods = Vec::new();
    for entry in FLOODS.into_iter().filter(is_flood_wanted) {
        floods.push((entry, (entry.build)(&setup)?));
    }

    let mut measure = |contests: Vec<Contest<'_>>, rounds| -> Result<()> {
        let mut rows = run(contests, rounds, filter, hogs)?;
        note_wakes(&mut rows, woken_by(executor).as_ref());
        report.rows.extend(rows);
        Ok(())
    };
    measure(latency::contests(&peers, form.latency), form.rounds)?;
    measure(
        throughput::contests(&peers, form.throughput),
        form.other_rounds,
    )?;
    measure(
        throughput::spawn_contests(&floods, form.spawned),
        form.other_rounds,
    )?;

    for (entry, peer) in &peers {
        if counts(entry) {
            (report.allocations).push(allocations::of_call(entry, peer.as_ref())?);
        }
    }
    for (entry, flood) in &floods {
        if filter.matches(allocations::SECTION, "spawn", entry.group, entry.label) {
            (report.allocations).push(allocations::of_spawn(entry, flood.as_ref())?);
        }
    }
    Ok(())
}

fn in_many_namespaces(
    report: &mut Report,
    form: &Form,
    filter: &Filter,
    executor: &Executor,
    hogs: &Hogs,
) -> Result<()> {
    let sizes = form.namespaces;
    let most = sizes.iter().copied().max().unwrap_or_default();
    let weighed: Vec<_> = (CATALOGUE.iter())
        .filter(|entry| [OURS, STD_CHANNEL, CROSSBEAM].contains(&entry.label))
        .filter(|entry| {
            let scene = fleet::scene(most);
            filter.matches(footprint::SECTION, &scene, entry.group, entry.label)
        })
        .collect();
    if weighed.is_empty() && !fleet::is_wanted(sizes, filter) {
        return Ok(());
    }
    let namespaces: Vec<Netns> = (0..most).map(|_| Netns::new()).collect::<Result<_, _>>()?;
    for entry in weighed {
        let found = footprint::measure(entry.label, &namespaces, form.idle)?;
        report.footprints.push(found);
    }
    let fleets = fleet::build(&namespaces, executor, sizes, filter)?;
    let contests = fleet::contests(&fleets, sizes, form.fleet);
    let mut rows = run(contests, form.other_rounds, filter, hogs)?;
    note_wakes(&mut rows, woken_by(executor).as_ref());
    report.rows.extend(rows);
    Ok(())
}

/// What needs no trip, and trips to everywhere: beside setns in place.
fn without_and_around(
    report: &mut Report,
    form: &Form,
    filter: &Filter,
    hogs: &Hogs,
) -> Result<()> {
    let visited: Vec<usize> = (form.namespaces.iter().copied())
        .filter(|&size| size > 1)
        .filter(|&size| trips::is_wanted(trips::VISITS, &trips::scene(size), filter))
        .collect();
    let wanted = [
        (trips::STOCK, trips::ONE_SOCKET),
        (trips::CROWD, trips::EIGHT_CALLERS),
    ];
    let any = (wanted.iter()).any(|(section, scene)| trips::is_wanted(section, scene, filter));
    if visited.is_empty() && !any {
        return Ok(());
    }
    let ground = trips::Ground::new()?;
    let most = visited.iter().copied().max().unwrap_or_default();
    let namespaces: Vec<Netns> = (0..most).map(|_| Netns::new()).collect::<Result<_, _>>()?;
    let each = form.spawned as usize / 20;
    for contests in [
        vec![ground.stock()],
        vec![ground.crowd(each)],
        (visited.iter())
            .map(|&size| ground.visits(&namespaces[..size]))
            .collect(),
    ] {
        let mut rows = run(contests, form.other_rounds, filter, hogs)?;
        note_wakes(&mut rows, ground.woken_by().as_ref());
        report.rows.extend(rows);
    }
    Ok(())
}

/// Says with our figures what wakes workers, in all scenes but those that keep them awake.
fn note_wakes(rows: &mut [Row], woken_by: Option<&String>) {
    let is_ours = |row: &&mut Row| row.group == Group::Ours && !row.scene.starts_with("hot");
    for row in rows.iter_mut().filter(is_ours) {
        row.woken_by = woken_by.cloned();
    }
}

fn run(
    mut contests: Vec<Contest<'_>>,
    rounds: usize,
    filter: &Filter,
    hogs: &Hogs,
) -> Result<Vec<Row>> {
    for contest in &mut contests {
        contest.keep(filter);
    }
    contests.retain(|contest| !contest.contestants.is_empty());
    hold(&mut contests, rounds, hogs)?;
    Ok(contests.iter().flat_map(Contest::rows).collect())
}
