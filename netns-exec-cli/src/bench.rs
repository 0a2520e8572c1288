//! `netns-exec bench`: what a call costs on this machine.

mod turn;

use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use comfy_table::CellAlignment;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use netns_exec::Netns;
use netns_exec_measure::Rounds;
use nix::sched::{CloneFlags, unshare};
use serde::Serialize;

use crate::failure::Failure;
use crate::output;
use crate::setting::Setting;
use crate::syntax::NetnsArg;
use turn::{Method, Regime, Setup, WokenBy};

/// Time calls into a namespace, against setns and against a thread per call
///
/// Times an empty closure, called four ways in the same namespace: by
/// Pinned::run and by Executor::run on a resident worker, with the default
/// guard; in place, by a thread that goes there with setns(2) and comes back;
/// and by a thread that is made for each call.
///
/// Hot means back to back. Parked means that the caller sleeps for 1 ms before
/// each call, and that the worker has fallen asleep too.
///
/// Every way has a turn in every round, in an order that is shuffled each time,
/// and what is compared comes from the same round. Trust the ratios more than
/// the times: these drift with whatever else the machine does.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  netns-exec bench
  netns-exec bench blue --seconds 20
  netns-exec bench pid:4711 --json

JSON, one document:
  {\"version\": 1, \"kernel\": \"...\", \"uid\": N, \"user_namespace\": BOOL, \"cpus\": N,
   \"optimized\": BOOL, \"woken_by\": \"bell\"|\"futex\", \"netns\": {\"name\": \"...\"|null, \"id\": N}, \"rounds\": N, \"seconds\": N,
   \"regimes\": [
    {\"regime\": \"hot\"|\"parked\",
     \"ways\": [
      {\"way\": \"pinned_run\"|\"executor_run\"|\"setns_in_place\"|\"thread_per_call\",
       \"samples\": N, \"p50_ns\": N, \"p99_ns\": N, \"to_setns\": N, \"to_thread\": N}]}]}
user_namespace tells whether one was entered for the privilege; optimized, how
netns-exec was built; woken_by, whether seccomp user notification wakes the worker
where it sleeps, or a futex. name is null without NS. to_setns and to_thread: how many
times as long as setns in place, or as a thread per call, it took; the median of
the rounds. A hot sample is the mean of as many calls as take 4 µs, a parked one
is one call. Keys may be added; version changes when one changes its meaning.

Without NS, an ordinary user can run it too: it then enters a user namespace of
its own first.")]
pub(crate) struct Args {
    /// The namespace: a NAME as `ip netns list` shows it, a PATH (anything with
    /// a slash), or pid:N for that of a process [default: a new one]
    #[arg(value_name = "NS")]
    netns: Option<NetnsArg>,

    /// About how long to measure, up to 300; three rounds are made in any case
    #[arg(long, value_name = "SECONDS", default_value = "4", value_parser = seconds)]
    seconds: Duration,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// How long a turn lasts if there is time for enough rounds: some forty calls
/// that are 1 ms apart.
const TURN: Duration = Duration::from_millis(50);

/// A median needs some.
const MIN_ROUNDS: u32 = 3;

/// All samples are kept, so memory grows with it: about 2 MB a second.
const MAX_SECONDS: f64 = 300.0;

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if !(seconds > 0.0 && seconds <= MAX_SECONDS) {
        return Err(format!("not above 0 and up to {MAX_SECONDS}"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// How the time is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    rounds: u32,
    /// How long each turn of a round lasts.
    turn: Duration,
}

impl Plan {
    const TURNS: u32 = (Regime::ALL.len() * Method::ALL.len()) as u32;

    fn new(total: Duration) -> Plan {
        let round = TURN * Self::TURNS;
        let rounds = (total.as_secs_f64() / round.as_secs_f64()).round() as u32;
        let rounds = rounds.max(MIN_ROUNDS);
        Plan {
            rounds,
            turn: total / rounds / Self::TURNS,
        }
    }
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let (setting, ns) = match &args.netns {
        Some(arg) => (Setting::as_found()?, arg.open()?),
        None => {
            let setting = Setting::prepare()?;
            // In a user namespace, setns(2) back to the network namespace of the
            // parent's is refused. From one of our own there is a way back; and
            // this is still the only thread.
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Failure::io("cannot make a netns to call from", errno))?;
            (setting, Netns::new()?)
        }
    };
    let (name, id) = (args.netns.map(|arg| arg.to_string()), ns.id().into());
    let setup = Setup::open(ns)?;

    let plan = Plan::new(args.seconds);
    let began = Instant::now();
    let measured = measure(&setup, plan)?;
    let seconds = began.elapsed().as_secs_f64();
    let woken_by = setup.woken_by();
    setup.close()?;

    let report = Report {
        version: 1,
        setting,
        cpus: thread::available_parallelism().map_or(1, usize::from),
        optimized: !cfg!(debug_assertions),
        woken_by,
        netns: NetnsRow { name, id },
        rounds: plan.rounds,
        seconds,
        regimes: measured.iter().map(RegimeRow::of).collect(),
    };
    match args.json {
        true => output::json(&report)?,
        false => report.show()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What was measured in one regime, in the order of [`Method::ALL`].
struct Measured {
    regime: Regime,
    methods: [(Method, Rounds); Method::ALL.len()],
}

fn measure(setup: &Setup, plan: Plan) -> Result<Vec<Measured>, Failure> {
    let turns = u64::from(plan.rounds * Plan::TURNS);
    let progress = ProgressBar::with_draw_target(Some(turns), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {percent}%  {eta} left");
    progress.set_style(style.expect("the template is well-formed"));

    let mut measured: Vec<Measured> = (Regime::ALL.into_iter())
        .map(|regime| Measured {
            regime,
            methods: Method::ALL.map(|method| (method, Rounds::default())),
        })
        .collect();
    for _ in 0..plan.rounds {
        for regime in shuffled(&mut measured) {
            for (method, rounds) in shuffled(&mut regime.methods) {
                rounds.push_round(&setup.turn(*method, regime.regime, plan.turn)?);
                progress.inc(1);
            }
        }
    }
    progress.finish_and_clear();
    Ok(measured)
}

/// The items in an order that differs each time, so that what one turn leaves
/// behind does not always fall on the same other one.
fn shuffled<T>(items: &mut [T]) -> impl Iterator<Item = &mut T> {
    let mut items: Vec<_> = items.iter_mut().collect();
    // Every `RandomState` hashes differently.
    items.sort_by_cached_key(|_| RandomState::new().hash_one(0));
    items.into_iter()
}

#[derive(Serialize)]
struct Report {
    version: u32,
    #[serde(flatten)]
    setting: Setting,
    cpus: usize,
    optimized: bool,
    woken_by: WokenBy,
    netns: NetnsRow,
    rounds: u32,
    seconds: f64,
    regimes: Vec<RegimeRow>,
}

#[derive(Serialize)]
struct NetnsRow {
    name: Option<String>,
    id: u64,
}

#[derive(Serialize)]
struct RegimeRow {
    regime: Regime,
    #[serde(rename = "ways")]
    methods: Vec<MethodRow>,
}

#[derive(Serialize)]
struct MethodRow {
    #[serde(rename = "way")]
    method: Method,
    samples: usize,
    p50_ns: f64,
    p99_ns: f64,
    to_setns: f64,
    to_thread: f64,
}

const MEASURED: &str = "a plan has a round or more";

impl RegimeRow {
    fn of(measured: &Measured) -> RegimeRow {
        let base = |base: Method| {
            let found = measured.methods.iter().find(|(method, _)| *method == base);
            &found.expect("all methods are measured").1
        };
        let (setns, thread) = (base(Method::SetnsInPlace), base(Method::ThreadPerCall));
        let ratio = |rounds: &Rounds, base| rounds.ratio_to(base).expect(MEASURED).median;
        let row = |(method, rounds): &(Method, Rounds)| MethodRow {
            method: *method,
            samples: rounds.samples(),
            p50_ns: rounds.typical().expect(MEASURED).median,
            p99_ns: rounds.p99().expect(MEASURED),
            to_setns: ratio(rounds, setns),
            to_thread: ratio(rounds, thread),
        };
        RegimeRow {
            regime: measured.regime,
            methods: measured.methods.iter().map(row).collect(),
        }
    }

    /// How many times as long as setns in place the shortest call to a worker took.
    fn ours_to_setns(&self) -> f64 {
        let ours = self
            .methods
            .iter()
            .find(|row| row.method == Method::PinnedRun);
        ours.expect("all methods are measured").to_setns
    }
}

impl Report {
    fn show(&self) -> Result<(), Failure> {
        let cpus = match self.cpus {
            1 => "1 CPU".to_owned(),
            cpus => format!("{cpus} CPUs"),
        };
        output::line(format_args!("{}, {cpus}", self.setting))?;
        let netns = match &self.netns.name {
            Some(name) => format!("netns `{name}`"),
            None => "a new netns".to_owned(),
        };
        output::line(format_args!(
            "an empty closure in {netns}, {} rounds in {:.1} s",
            self.rounds, self.seconds
        ))?;
        output::line(format_args!(
            "a parked worker is woken by {}\n",
            self.woken_by.label()
        ))?;

        let mut table =
            output::table(["", "CALL", "p50", "p99", "TO SETNS IN PLACE", "TO A THREAD"]);
        for regime in &self.regimes {
            let labels = [regime.regime.label()]
                .into_iter()
                .chain(std::iter::repeat(""));
            for (label, row) in labels.zip(&regime.methods) {
                let against = |base, ratio| match row.method == base {
                    true => "-".to_owned(),
                    false => relation(ratio),
                };
                table.add_row([
                    label.to_owned(),
                    row.method.label().to_owned(),
                    microseconds(row.p50_ns),
                    microseconds(row.p99_ns),
                    against(Method::SetnsInPlace, row.to_setns),
                    against(Method::ThreadPerCall, row.to_thread),
                ]);
            }
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        output::line(table)?;

        output::line("")?;
        for regime in &self.regimes {
            output::line(verdict(regime.regime, regime.ours_to_setns()))?;
        }
        if self
            .regimes
            .iter()
            .any(|regime| regime.ours_to_setns() > SAME)
        {
            output::line(
                "Where setns in place is faster, a worker buys safety: the calling thread never leaves its\n\
                 namespace, so there is no way back that could fail, and no thread that is started\n\
                 meanwhile in the wrong place.",
            )?;
        }
        if !self.optimized {
            output::line(
                "\nThis is a debug build of netns-exec: build it with --release for figures that count.",
            )?;
        }
        Ok(())
    }
}

/// A ratio up to this, or as far below 1, is no difference.
const SAME: f64 = 1.05;

/// What a ratio of times means: `2.5x faster`.
fn relation(ratio: f64) -> String {
    let times = |times: f64| match times {
        10.0.. => format!("{times:.0}x"),
        _ => format!("{times:.1}x"),
    };
    match ratio {
        SAME.. => format!("{} slower", times(ratio)),
        ratio if ratio > 1.0 / SAME => "same".to_owned(),
        _ => format!("{} faster", times(1.0 / ratio)),
    }
}

/// Says which is faster, given how many times as long as setns in place a call to
/// a resident worker took.
fn verdict(regime: Regime, ratio: f64) -> String {
    let (faster, slower, times, why) = match (regime, ratio) {
        (_, ratio) if ratio <= SAME && ratio > 1.0 / SAME => {
            return format!(
                "{}: a resident worker is as fast as setns in place.",
                regime.label()
            );
        }
        (Regime::Hot, ..1.0) => (
            "a resident worker",
            "setns in place",
            1.0 / ratio,
            ": while both are awake, no system call is made",
        ),
        (Regime::Parked, ..1.0) => ("a resident worker", "setns in place", 1.0 / ratio, ""),
        (Regime::Hot, _) => (
            "setns in place",
            "a resident worker",
            ratio,
            ", as happens when caller and worker do not have a free CPU each",
        ),
        (Regime::Parked, _) => (
            "setns in place",
            "a resident worker",
            ratio,
            ", which has to be woken first",
        ),
    };
    format!(
        "{}: {faster} is {times:.1} times faster than {slower}{why}.",
        regime.label()
    )
}

fn microseconds(nanoseconds: f64) -> String {
    let microseconds = nanoseconds / 1000.0;
    match microseconds {
        10.0.. => format!("{microseconds:.1} µs"),
        _ => format!("{microseconds:.2} µs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_divided_among_rounds_and_turns() {
        let plan = Plan::new(Duration::from_secs(4));
        assert_eq!((plan.rounds, plan.turn), (10, TURN));
        let short = Plan::new(Duration::from_millis(24));
        assert_eq!((short.rounds, short.turn), (3, Duration::from_millis(1)));
        let shortest = Plan::new(Duration::from_nanos(1));
        assert_eq!((shortest.rounds, shortest.turn), (3, Duration::ZERO));
    }

    #[test]
    fn seconds_are_positive_and_bounded() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("300"), Ok(Duration::from_secs(300)));
        for text in ["", "0", "-1", "NaN", "inf", "301", "5s"] {
            seconds(text).expect_err(text);
        }
    }

    #[test]
    fn relation_says_which_is_faster() {
        let shown = [0.004, 0.1, 0.5, 0.97, 1.0, 1.04, 2.54].map(relation);
        let expected = [
            "250x faster",
            "10x faster",
            "2.0x faster",
            "same",
            "same",
            "same",
            "2.5x slower",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn verdict_follows_the_figures_and_not_the_expectation() {
        let faster = |regime, ratio| {
            let said = verdict(regime, ratio);
            let (_, rest) = said.split_once(": ").expect("a regime first");
            rest.split_once(" is ").expect("a verb").0.to_owned()
        };
        for regime in Regime::ALL {
            assert_eq!(faster(regime, 0.5), "a resident worker");
            assert_eq!(faster(regime, 2.0), "setns in place");
            assert!(verdict(regime, 1.0).contains("as fast as"));
            assert!(
                verdict(regime, 0.5).contains("2.0 times")
                    && verdict(regime, 2.0).contains("2.0 times")
            );
        }
    }

    #[test]
    fn shuffled_items_are_all_there_and_not_always_in_order() {
        let mut items = [0, 1, 2, 3];
        let mut orders =
            (0..100).map(|_| shuffled(&mut items).map(|item| *item).collect::<Vec<_>>());
        assert!(orders.any(|order| order != [0, 1, 2, 3]));
        let mut all: Vec<_> = shuffled(&mut items).map(|item| *item).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
    }
}
