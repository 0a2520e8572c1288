//! `netns-exec demo`: the executor at work, with proof.

mod usual_way;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use comfy_table::{Attribute, Cell, CellAlignment};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use netns_exec::{Executor, Netns, NetnsId, audit};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;

use self::usual_way::LeftBehind;
use crate::failure::Failure;
use crate::output;
use crate::setting::Setting;

/// Ship closures to threads in many namespaces, and prove that none got lost
///
/// Shows the fault first: a thread enters a namespace by setns(2), starts another
/// thread, and goes back. That one stays, and an audit finds it.
///
/// Then makes a number of namespaces, each with a sysctl value of its own and a
/// listener of its own on the one TCP port that all of them have bound. Then
/// several threads send closures to namespaces picked at random, and every
/// closure connects to the port and proves where it ran: by the id that the
/// kernel gives to its socket, by the sysctl value that this socket took over,
/// and by the listener that the connection arrives at.
///
/// Nothing is left behind: the namespaces have no names and end with the
/// process. An ordinary user can run it too; it then enters a user namespace of
/// its own first.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  netns-exec demo
  netns-exec demo --namespaces 64 --threads 32
  netns-exec demo --jobs 1000000 --json

JSON: one object with
  kernel, uid, user_namespace     where and as which user it ran; true: in one of its own
  threads, port, jobs, seconds    what was done, and how long it took
  namespaces                      for each: id, ttl, jobs, misplaced, call_ns and
                                  hand_over_ns with p50 and p99 (null without a job)
  call_ns, hand_over_ns           the same over all of them
  left_by_setns                   threads that the usual way has left in a namespace
  misplaced_jobs                  jobs that ran anywhere but where they were sent
  stray_threads                   threads outside the home namespace that are not
                                  workers: the most that were seen at once
  looks                           how often all threads were looked at
  ok                              whether both are 0

Exit status: 0 when no job was misplaced and no thread astray, 1 otherwise, 2 when
the demo could not be run.")]
pub(crate) struct Args {
    /// How many namespaces to make
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=190))]
    namespaces: u16,

    /// How many closures to send to them
    #[arg(long, value_name = "M", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,

    /// How many threads to send them from [default: two for each CPU, at least 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// The port that is bound in every namespace at once.
const PORT: u16 = 4242;

/// The TTL of the first namespace; every further one has one more, so that a
/// socket's TTL tells where it was made. Not the kernel's usual 64.
const FIRST_TTL: u8 = 65;

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let setting = Setting::prepare()?;
    let threads = args.threads.unwrap_or_else(default_threads);
    // Said before the first thing that could fail.
    let say = |text: String| match args.json {
        true => Ok(()),
        false => output::line(text),
    };
    say(setting.to_string())?;

    let executor = Executor::new()?;
    let namespaces = (0..args.namespaces)
        .map(|index| DemoNetns::set_up(&executor, index))
        .collect::<Result<Vec<_>, _>>()?;
    let left_by_setns = show_usual_way(&namespaces[0].ns, !setting.user_namespace, say)?;
    say(format!(
        "{} namespaces, each with a listener of its own on 127.0.0.1:{PORT}; {} closures from {} threads\n",
        namespaces.len(),
        grouped(args.jobs),
        threads,
    ))?;

    let began = Instant::now();
    let (tallies, mut audits) = ship(&executor, &namespaces, args.jobs, threads)?;
    let seconds = began.elapsed().as_secs_f64();
    executor.shutdown(None)?;
    audits.audit()?;

    let report = Report::new(
        setting,
        threads,
        &namespaces,
        left_by_setns,
        tallies,
        &audits,
        seconds,
    );
    match args.json {
        true => output::json(&report)?,
        false => report.show()?,
    }
    Ok(ExitCode::from(u8::from(!report.ok)))
}

/// Tells how many threads the usual way leaves in `ns`, for as long as that is shown.
fn show_usual_way(
    ns: &Netns,
    owns_home: bool,
    say: impl Fn(String) -> Result<(), Failure>,
) -> Result<usize, Failure> {
    let left = LeftBehind::in_netns(ns, owns_home)?;
    let found = left.found();
    left.end();
    let found = found?;
    let told = match &found {
        Some(found) => format!(
            "The usual way: a thread calls setns(2), does its work, and calls setns(2) to go back.\n\
             Its work has started a thread of a pool, which stays: {found},\n\
             and whatever runs on it next is there too. So with netns-exec no thread ever moves:\n"
        ),
        None => {
            "The usual way has left no thread behind, which is not to be expected.\n".to_owned()
        }
    };
    say(told)?;
    Ok(usize::from(found.is_some()))
}

/// Two for each CPU, within reason.
fn default_threads() -> u16 {
    let cpus = thread::available_parallelism().map_or(2, usize::from);
    u16::try_from(2 * cpus).unwrap_or(u16::MAX).clamp(4, 64)
}

/// One namespace, and what tells it from the others.
struct DemoNetns {
    ns: Netns,
    id: u64,
    /// What sockets made there have. `None` where /proc/sys is read-only, as in
    /// most containers.
    ttl: Option<u8>,
    /// Bound to the port that the others have bound too.
    listener: TcpListener,
}

impl DemoNetns {
    fn set_up(executor: &Executor, index: u16) -> Result<DemoNetns, Failure> {
        let ns = Netns::new()?;
        ns.set_loopback_up()?;
        let own = FIRST_TTL + u8::try_from(index).expect("the arguments were checked");
        let (ttl, listener) = executor.run(&ns, || {
            // Files below /proc/sys/net follow the thread that opens them.
            let written = fs::write("/proc/sys/net/ipv4/ip_default_ttl", own.to_string());
            (
                written.is_ok().then_some(own),
                TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)),
            )
        })?;
        let attempt = || format!("cannot bind port {PORT} in netns `{ns}`");
        let listener = listener.map_err(|error| Failure::io(attempt(), error))?;
        // For accept(2), when the connection went elsewhere.
        let patience = TimeVal::seconds(5);
        setsockopt(&listener, sockopt::ReceiveTimeout, &patience)
            .map_err(|errno| Failure::io("cannot limit how long accept(2) waits", errno))?;
        Ok(DemoNetns {
            id: ns.id().as_u64(),
            ns,
            ttl,
            listener,
        })
    }

    /// Called by the closures: finds out whether this is where they run.
    fn is_here(&self) -> io::Result<bool> {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
        // Asked of the kernel, for a socket that was just made.
        if NetnsId::of_socket(&client)?.as_u64() != self.id {
            return Ok(false);
        }
        let ttl = client.ttl()?;

        // Anywhere else the connection would have gone to another listener.
        let address = client.local_addr()?;
        let mut server = loop {
            match self.listener.accept() {
                Ok((server, peer)) if peer == address => break server,
                // Of a job that was elsewhere when it should have been here.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        };
        let mut answer = [0; 8];
        server.write_all(&self.id.to_le_bytes())?;
        client.read_exact(&mut answer)?;
        // Closed by a reset, which leaves nothing in TIME_WAIT: a million jobs
        // would use up the ports.
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&client, sockopt::Linger, &at_once)?;
        drop(client);
        Ok(u64::from_le_bytes(answer) == self.id
            && self.ttl.is_none_or(|own| ttl == u32::from(own)))
    }
}

/// What came of the jobs of one namespace.
#[derive(Clone, Default)]
struct Tally {
    misplaced: u64,
    /// From the call to its return, in nanoseconds.
    calls: Vec<u32>,
    /// Of that, what was not spent in the closure.
    hand_overs: Vec<u32>,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.misplaced += other.misplaced;
        self.calls.extend(&other.calls);
        self.hand_overs.extend(&other.hand_overs);
    }
}

/// What audits of the threads of this process came to.
#[derive(Default)]
struct ThreadAudits {
    count: u64,
    /// The most threads that were astray at one time.
    strays: usize,
}

/// Sends the jobs, and returns what came of them for each namespace.
fn ship(
    executor: &Executor,
    namespaces: &[DemoNetns],
    jobs: u64,
    threads: u16,
) -> Result<(Vec<Tally>, ThreadAudits), Failure> {
    let next = AtomicU64::new(0);
    let progress = ProgressBar::with_draw_target(Some(jobs), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(
        "{bar:40} {human_pos}/{human_len} jobs  {per_sec}  {eta} left",
    );
    progress.set_style(style.expect("the template is well-formed"));

    thread::scope(|scope| {
        let (alive, ended) = mpsc::channel::<()>();
        let mut clients = Vec::new();
        for seed in 1..=u64::from(threads) {
            let (alive, next) = (alive.clone(), &next);
            clients.push(start(scope, "demo-client", move || {
                let _alive = alive;
                client(executor, namespaces, jobs, next, seed)
            })?);
        }
        drop(alive);
        let mut audits = ThreadAudits::default();
        audits.audit()?;
        while ended.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
            progress.set_position(next.load(Ordering::Relaxed).min(jobs));
            audits.audit()?;
        }
        progress.finish_and_clear();
        let mut tallies = vec![Tally::default(); namespaces.len()];
        for client in clients {
            let own = client
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            tallies
                .iter_mut()
                .zip(&own)
                .for_each(|(tally, own)| tally.add(own));
        }
        Ok((tallies, audits))
    })
}

fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    f: impl FnOnce() -> T + Send + 'scope,
) -> Result<thread::ScopedJoinHandle<'scope, T>, Failure> {
    (thread::Builder::new().name(name.to_owned()))
        .spawn_scoped(scope, f)
        .map_err(|error| {
            Failure::io("cannot start a thread", error).hint("ask for fewer with --threads")
        })
}

/// Takes one job after the other and sends it to a namespace picked at random.
fn client(
    executor: &Executor,
    namespaces: &[DemoNetns],
    jobs: u64,
    next: &AtomicU64,
    seed: u64,
) -> Result<Vec<Tally>, Failure> {
    let mut tallies = vec![Tally::default(); namespaces.len()];
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    while next.fetch_add(1, Ordering::Relaxed) < jobs {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let index = usize::try_from(random % namespaces.len() as u64).expect("an index");
        let (netns, tally) = (&namespaces[index], &mut tallies[index]);

        let called = Instant::now();
        let outcome = executor.run(&netns.ns, || {
            let began = Instant::now();
            (netns.is_here(), began.elapsed())
        });
        let call = called.elapsed();
        let (right, inside) = outcome.inspect_err(|_| next.store(jobs, Ordering::Relaxed))?;
        let right = right.map_err(|error| {
            next.store(jobs, Ordering::Relaxed);
            Failure::io(
                format!("cannot connect to port {PORT} in netns `{}`", netns.ns),
                error,
            )
        })?;
        tally.misplaced += u64::from(!right);
        tally.calls.push(nanoseconds(call));
        tally
            .hand_overs
            .push(nanoseconds(call.saturating_sub(inside)));
    }
    Ok(tallies)
}

fn nanoseconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

impl ThreadAudits {
    fn audit(&mut self) -> Result<(), Failure> {
        self.count += 1;
        let strays = audit::Process::this()?.strays().count();
        self.strays = self.strays.max(strays);
        Ok(())
    }
}

/// What half, and what all but one in a hundred, did not exceed.
#[derive(Clone, Copy, Serialize)]
struct Percentiles {
    p50: u32,
    p99: u32,
}

impl Percentiles {
    fn of(samples: &mut [u32]) -> Option<Percentiles> {
        samples.sort_unstable();
        let last = samples.len().checked_sub(1)?;
        let at = |percent| samples[last * percent / 100];
        Some(Percentiles {
            p50: at(50),
            p99: at(99),
        })
    }
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    setting: Setting,
    threads: u16,
    port: u16,
    jobs: u64,
    seconds: f64,
    namespaces: Vec<Row>,
    #[serde(flatten)]
    total: Latency,
    left_by_setns: usize,
    misplaced_jobs: u64,
    stray_threads: usize,
    #[serde(rename = "looks")]
    audits: u64,
    ok: bool,
}

#[derive(Serialize)]
struct Row {
    id: u64,
    ttl: Option<u8>,
    jobs: u64,
    misplaced: u64,
    #[serde(flatten)]
    latency: Latency,
}

#[derive(Clone, Copy, Serialize)]
struct Latency {
    call_ns: Option<Percentiles>,
    hand_over_ns: Option<Percentiles>,
}

impl Latency {
    fn of(tally: &mut Tally) -> Latency {
        Latency {
            call_ns: Percentiles::of(&mut tally.calls),
            hand_over_ns: Percentiles::of(&mut tally.hand_overs),
        }
    }
}

impl Report {
    fn new(
        setting: Setting,
        threads: u16,
        namespaces: &[DemoNetns],
        left_by_setns: usize,
        tallies: Vec<Tally>,
        audits: &ThreadAudits,
        seconds: f64,
    ) -> Report {
        let mut all = Tally::default();
        let rows = namespaces.iter().zip(tallies).map(|(netns, mut tally)| {
            all.add(&tally);
            Row {
                id: netns.id,
                ttl: netns.ttl,
                jobs: tally.calls.len() as u64,
                misplaced: tally.misplaced,
                latency: Latency::of(&mut tally),
            }
        });
        let namespaces: Vec<Row> = rows.collect();
        let mut report = Report {
            setting,
            threads,
            port: PORT,
            jobs: all.calls.len() as u64,
            seconds,
            namespaces,
            total: Latency::of(&mut all),
            left_by_setns,
            misplaced_jobs: all.misplaced,
            stray_threads: audits.strays,
            audits: audits.count,
            ok: false,
        };
        report.ok = report.ok();
        report
    }

    fn ok(&self) -> bool {
        self.misplaced_jobs == 0 && self.stray_threads == 0
    }

    fn show(&self) -> Result<(), Failure> {
        let mut table = output::table([
            "NETNS ID",
            "TTL",
            "JOBS",
            "CALL p50",
            "p99",
            "HAND-OVER p50",
            "p99",
            "MISPLACED",
        ]);
        for row in &self.namespaces {
            let ttl = row
                .ttl
                .map_or_else(|| "-".to_owned(), |ttl| ttl.to_string());
            table.add_row(cells(
                row.id.to_string(),
                ttl,
                row.jobs,
                row.latency,
                row.misplaced,
            ));
        }
        let total = cells(
            "all".to_owned(),
            String::new(),
            self.jobs,
            self.total,
            self.misplaced_jobs,
        );
        table.add_row(
            total
                .into_iter()
                .map(|cell| cell.add_attribute(Attribute::Bold)),
        );
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        output::line(table)?;

        let sysctl = match self.namespaces.iter().all(|row| row.ttl.is_some()) {
            true => "the TTL it took from the sysctl, ",
            false => "(no sysctl: /proc/sys is read-only) ",
        };
        output::line(format_args!(
            "\n{jobs} closures in {seconds:.1} s, {rate} a second. Each connected to 127.0.0.1:{PORT} and \
             compared, with\nwhere it was sent: the id the kernel gives its socket, {sysctl}and who answered.",
            jobs = grouped(self.jobs),
            seconds = self.seconds,
            rate = grouped((self.jobs as f64 / self.seconds) as u64),
        ))?;
        output::line(format_args!("misplaced jobs  {}", self.misplaced_jobs))?;
        output::line(format_args!(
            "stray threads   {}  (outside the home namespace and no worker; all threads were looked at {} times)",
            self.stray_threads, self.audits
        ))
    }
}

fn cells(id: String, ttl: String, jobs: u64, latency: Latency, misplaced: u64) -> Vec<Cell> {
    let times = [latency.call_ns, latency.hand_over_ns]
        .into_iter()
        .flat_map(|percentiles| {
            [percentiles.map(|it| it.p50), percentiles.map(|it| it.p99)]
                .map(|time| time.map_or_else(|| "-".to_owned(), microseconds))
        });
    ([id, ttl, grouped(jobs)].into_iter().chain(times))
        .chain([misplaced.to_string()])
        .map(Cell::new)
        .collect()
}

fn microseconds(nanoseconds: u32) -> String {
    format!("{:.1} µs", f64::from(nanoseconds) / 1000.0)
}

/// Thousands apart: `100 000`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_that_runs_elsewhere_is_noticed() {
        netns_exec_tests::require_root();
        let executor = Executor::new().expect("an executor");
        let [red, blue] =
            [0, 1].map(|index| DemoNetns::set_up(&executor, index).expect("a namespace"));
        let tell = |run_in: &DemoNetns, sent_to: &DemoNetns| {
            let told = executor.run(&run_in.ns, || sent_to.is_here());
            told.expect("the job ran").expect("the port is bound there")
        };
        assert!(!tell(&red, &blue));
        // What the stray connection left in the queue does no harm.
        assert!(tell(&red, &red) && tell(&blue, &blue));
    }

    #[test]
    fn misplaced_job_or_stray_thread_is_not_ok() {
        let ok = |misplaced, strays| {
            let setting = Setting {
                kernel: String::new(),
                uid: 0,
                user_namespace: false,
            };
            let mut report = Report::new(
                setting,
                1,
                &[],
                1,
                Vec::new(),
                &ThreadAudits { count: 1, strays },
                1.0,
            );
            report.misplaced_jobs = misplaced;
            report.ok()
        };
        assert!(ok(0, 0));
        assert!(!ok(1, 0));
        assert!(!ok(0, 1));
    }

    #[test]
    fn thousands_are_apart() {
        let shown = [0, 12, 999, 1000, 100_000, 1_234_567].map(grouped);
        assert_eq!(shown, ["0", "12", "999", "1 000", "100 000", "1 234 567"]);
    }

    #[test]
    fn percentiles_are_samples() {
        let mut samples: Vec<u32> = (1..=100).rev().collect();
        let found = Percentiles::of(&mut samples).expect("there are samples");
        assert_eq!((found.p50, found.p99), (50, 99));
        let found = Percentiles::of(&mut [7]).expect("one sample");
        assert_eq!((found.p50, found.p99), (7, 7));
        assert!(Percentiles::of(&mut []).is_none());
    }
}
