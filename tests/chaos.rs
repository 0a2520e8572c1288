//! Everything at once, for as long as you like: many threads run jobs in many
//! namespaces, while these are deleted and made anew under their names, jobs
//! escape, panic, end their thread, are cancelled and refused threads.
//!
//! `cargo test --release -p netns-exec-tests --test chaos -- --seconds 60`
//!
//! Afterwards: no job ran in the wrong namespace, none was lost, none ran twice,
//! no thread is where it does not belong, and memory is as it was.

use std::env;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::{self, Command, ExitCode};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Barrier, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use netns_exec::{Executor, Guard, JoinHandle, Netns, WeakNetns};
use netns_exec_tests::{
    TempName, end_thread, eventually, fds_of_this_process, here, listen_to, require_root, resident,
    threads_of_this_process,
};
use nix::sched::{CloneFlags, setns};

netns_exec::rootless::test_harness!(own_net);

const THREADS: usize = 16;
const NAMESPACES: usize = 32;
/// What is begun ends long before; a wait that is longer has no end.
const PATIENCE: Duration = Duration::from_secs(120);

struct Options {
    seconds: u64,
    seed: u64,
    /// Only as this process is: not once more where workers are woken by futex.
    once: bool,
}

impl Options {
    /// What the test harness would be told (`--nocapture`, filters) is none of
    /// this program's business.
    fn from_args() -> Result<Options, String> {
        let mut options = Options {
            seconds: 10,
            seed: RandomState::new().build_hasher().finish(),
            once: false,
        };
        let mut args = env::args().skip(1);
        while let Some(arg) = args.next() {
            let (key, value) = match arg.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (arg, None),
            };
            let target = match key.as_str() {
                "--seconds" => &mut options.seconds,
                "--seed" => &mut options.seed,
                "--once" => {
                    options.once = true;
                    continue;
                }
                _ => continue,
            };
            let value = value.or_else(|| args.next());
            *target = (value.and_then(|value| value.parse().ok()))
                .ok_or_else(|| format!("{key} takes a number"))?;
        }
        Ok(options)
    }
}

/// SplitMix64: what a seed says is what is done, in each thread.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) % sides as u64) as usize
    }
}

/// What was done, to be compared with what was asked for.
#[derive(Default)]
struct Tally {
    ran: AtomicU64,
    expected: AtomicU64,
    cancelled: AtomicU64,
    panicked: AtomicU64,
    refused: AtomicU64,
    escaped: AtomicU64,
    left: AtomicU64,
    lost: AtomicU64,
    deleted: AtomicU64,
    /// Closures that exist.
    alive: AtomicI64,
}

/// Goes along with a job: counts its runs, and whether it was dropped.
struct Token {
    tally: Arc<Tally>,
    runs: Arc<AtomicU32>,
}

impl Token {
    fn new(tally: &Arc<Tally>) -> (Token, Arc<AtomicU32>) {
        tally.alive.fetch_add(1, Ordering::Relaxed);
        let runs = Arc::new(AtomicU32::new(0));
        let token = Token {
            tally: Arc::clone(tally),
            runs: Arc::clone(&runs),
        };
        (token, runs)
    }

    /// To be called first thing in a job for `netns`.
    fn begin(&self, netns: &WeakNetns) {
        begin(&self.tally, &self.runs, netns);
    }
}

fn begin(tally: &Tally, runs: &AtomicU32, netns: &WeakNetns) {
    tally.ran.fetch_add(1, Ordering::Relaxed);
    runs.fetch_add(1, Ordering::Relaxed);
    assert_eq!(here(), netns.id(), "a job is in the wrong namespace");
}

impl Drop for Token {
    fn drop(&mut self) {
        self.tally.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A name, and what it stands for just now.
struct Place {
    /// Deleted on drop, also when a run has failed.
    name: TempName,
    netns: RwLock<Netns>,
}

struct Arena {
    /// With their policies: what a job may do depends on them.
    sealed: Executor,
    detecting: Executor,
    off: Executor,
    /// The sealed one's workers have listeners, which hear of their end.
    are_heard: bool,
    places: Vec<Place>,
    tally: Arc<Tally>,
}

impl Arena {
    fn new() -> Arena {
        let executor = |guard, workers| {
            let builder = Executor::builder().guard(guard).workers_per_netns(workers);
            // Short enough for workers to idle out in the middle of it.
            let builder = builder.idle_timeout(Some(Duration::from_millis(20)));
            builder.build().expect("root may have every guard")
        };
        let place = |_| {
            let name = TempName::new();
            let netns = RwLock::new(Netns::create(&name).expect("a new name"));
            Place { name, netns }
        };
        let sealed = executor(Guard::Seal, 2);
        let here = Netns::current().expect("every thread is in one");
        sealed.run(&here, || ()).expect("a worker");
        let are_heard = (sealed.stats().per_netns.iter()).any(|netns| netns.rung > 0);
        Arena {
            sealed,
            are_heard,
            detecting: executor(Guard::Detect, 1),
            off: executor(Guard::Off, 1),
            places: (0..NAMESPACES).map(place).collect(),
            tally: Arc::default(),
        }
    }

    fn executors(&self) -> [&Executor; 3] {
        [&self.sealed, &self.detecting, &self.off]
    }

    fn netns(&self, dice: &mut Dice) -> Netns {
        let place = &self.places[dice.roll(NAMESPACES)];
        place.netns.read().expect("no panic under the lock").clone()
    }

    fn expect_ran(&self, runs: &AtomicU32) {
        self.tally.expected.fetch_add(1, Ordering::Relaxed);
        assert_eq!(
            runs.load(Ordering::Relaxed),
            1,
            "a job was lost or ran twice"
        );
    }

    fn any_executor(&self, dice: &mut Dice) -> &Executor {
        // Mostly the one that programs will have.
        match dice.roll(10) {
            0 => &self.off,
            1 => &self.detecting,
            _ => &self.sealed,
        }
    }

    fn step(&self, dice: &mut Dice) {
        let netns = self.netns(dice);
        let weak = netns.downgrade();
        match dice.roll(1000) {
            0..600 => self.run(self.any_executor(dice), &netns, &weak),
            600..700 => self.spawn_many(dice, &netns, &weak),
            700..750 => self.spawn_batch(dice, &netns, &weak),
            750..850 => self.nest(dice, &netns, &weak),
            850..900 => self.cancel(self.any_executor(dice), &netns, &weak),
            900..940 => self.panic(self.any_executor(dice), &netns, &weak),
            940..970 => self.refused_thread(&netns, &weak),
            970..980 => self.escape(dice, &netns, &weak),
            980..985 => self.leave_thread(&netns, &weak),
            985..987 if self.are_heard => self.end_thread(dice, &netns, &weak),
            985..990 => self.any_executor(dice).retire(&netns).expect("never fails"),
            _ => {
                drop(netns);
                self.replace(dice);
            }
        }
    }

    fn run(&self, executor: &Executor, netns: &Netns, weak: &WeakNetns) {
        let (token, runs) = Token::new(&self.tally);
        executor.run(netns, || token.begin(weak)).expect("a job");
        self.expect_ran(&runs);
    }

    fn spawn(
        &self,
        executor: &Executor,
        netns: &Netns,
        weak: &WeakNetns,
    ) -> (JoinHandle<()>, Arc<AtomicU32>) {
        let (token, runs) = Token::new(&self.tally);
        let weak = weak.clone();
        let handle = executor.spawn(netns, move || token.begin(&weak));
        (handle.expect("a job"), runs)
    }

    fn spawn_many(&self, dice: &mut Dice, netns: &Netns, weak: &WeakNetns) {
        let executor = self.any_executor(dice);
        let jobs: Vec<_> = (0..=dice.roll(16))
            .map(|_| self.spawn(executor, netns, weak))
            .collect();
        for (handle, runs) in jobs {
            handle.join().expect("a job");
            self.expect_ran(&runs);
        }
    }

    fn spawn_batch(&self, dice: &mut Dice, netns: &Netns, weak: &WeakNetns) {
        // Some are larger than the queue.
        let (tokens, runs): (Vec<_>, Vec<_>) = (0..=dice.roll(100))
            .map(|_| Token::new(&self.tally))
            .unzip();
        let jobs = tokens.into_iter().map(|token| {
            let weak = weak.clone();
            move || token.begin(&weak)
        });
        let handles = self.any_executor(dice).spawn_batch(netns, jobs);
        for (handle, runs) in handles.expect("jobs").into_iter().zip(runs) {
            handle.join().expect("a job");
            self.expect_ran(&runs);
        }
    }

    fn nest(&self, dice: &mut Dice, netns: &Netns, weak: &WeakNetns) {
        let (outer, inner) = (self.any_executor(dice), self.any_executor(dice));
        let (other, (token, runs)) = (self.netns(dice), Token::new(&self.tally));
        let far = other.downgrade();
        let nested = || {
            token.begin(weak);
            self.run(inner, &other, &far);
            self.run(inner, netns, weak);
            assert_eq!(here(), weak.id(), "a nested call moved its caller");
        };
        outer.run(netns, nested).expect("a job");
        self.expect_ran(&runs);
    }

    fn cancel(&self, executor: &Executor, netns: &Netns, weak: &WeakNetns) {
        let (handle, runs) = self.spawn(executor, netns, weak);
        let cancelled = handle.cancel();
        match handle.join() {
            Ok(()) => {
                assert!(!cancelled, "a cancelled job ran");
                self.expect_ran(&runs);
            }
            Err(error) => {
                assert!(cancelled && error.is_cancelled(), "{error}");
                assert_eq!(runs.load(Ordering::Relaxed), 0, "a cancelled job ran");
                self.tally.cancelled.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn panic(&self, executor: &Executor, netns: &Netns, weak: &WeakNetns) {
        let (token, runs) = Token::new(&self.tally);
        let weak = weak.clone();
        let job = move || -> () {
            token.begin(&weak);
            // Without the hook, which would write a line for each.
            std::panic::resume_unwind(Box::new(weak.id()));
        };
        let id = netns.id();
        let error = (executor.spawn(netns, job).expect("a job"))
            .join()
            .expect_err("it panics");
        assert!(error.is_panic(), "{error}");
        let payload = error.into_panic().expect("it panicked");
        assert_eq!(payload.downcast_ref(), Some(&id));
        self.expect_ran(&runs);
        self.tally.panicked.fetch_add(1, Ordering::Relaxed);
    }

    fn refused_thread(&self, netns: &Netns, weak: &WeakNetns) {
        let (token, runs) = Token::new(&self.tally);
        let refused = self.sealed.run(netns, || {
            token.begin(weak);
            thread::Builder::new().spawn(|| ()).map(drop)
        });
        refused
            .expect("a job")
            .expect_err("sealed jobs have no threads");
        self.expect_ran(&runs);
        self.tally.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn escape(&self, dice: &mut Dice, netns: &Netns, weak: &WeakNetns) {
        let elsewhere = self.netns(dice);
        let executor = [&self.off, &self.detecting][dice.roll(2)];
        let (token, runs) = Token::new(&self.tally);
        let moved = elsewhere != *netns;
        let outcome = executor.run(netns, || {
            token.begin(weak);
            setns(&elsewhere, CloneFlags::CLONE_NEWNET).expect("nothing holds it back");
        });
        match outcome {
            Ok(()) => assert!(!moved, "an escape went unnoticed"),
            Err(error) => {
                assert!(moved && error.is_escaped(), "{error}");
                self.tally.escaped.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.expect_ran(&runs);
    }

    fn leave_thread(&self, netns: &Netns, weak: &WeakNetns) {
        let (token, runs) = Token::new(&self.tally);
        let gate = Arc::new(Barrier::new(2));
        let weak = weak.clone();
        let job = {
            let gate = Arc::clone(&gate);
            move || {
                token.begin(&weak);
                thread::spawn(move || {
                    gate.wait();
                })
            }
        };
        let error = (self.detecting.spawn(netns, job).expect("a job"))
            .join()
            .expect_err("it leaves a thread");
        assert!(error.is_left_threads(), "{error}");
        let thread = error.into_result::<thread::JoinHandle<()>>();
        gate.wait();
        thread.expect("the job returned").join().expect("no panic");
        self.expect_ran(&runs);
        self.tally.left.fetch_add(1, Ordering::Relaxed);
    }

    fn end_thread(&self, dice: &mut Dice, netns: &Netns, weak: &WeakNetns) {
        // No token: what the job owns is never dropped.
        let runs = Arc::new(AtomicU32::new(0));
        let job = {
            let (tally, runs, weak) = (Arc::clone(&self.tally), Arc::clone(&runs), weak.clone());
            move || {
                begin(&tally, &runs, &weak);
                end_thread();
            }
        };
        let outcome = match dice.roll(2) {
            0 => self.sealed.run(netns, job),
            _ => self.sealed.spawn(netns, job).expect("a job").join(),
        };
        let error = outcome.expect_err("it has no result");
        assert!(error.is_escaped(), "{error}");
        self.expect_ran(&runs);
        self.tally.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Deletes a namespace, with workers in it or without, and makes another under its name.
    fn replace(&self, dice: &mut Dice) {
        let place = &self.places[dice.roll(NAMESPACES)];
        let mut netns = place.netns.write().expect("no panic under the lock");
        Netns::delete(&place.name).expect("the name is there");
        *netns = Netns::create(&place.name).expect("the name is free");
        self.tally.deleted.fetch_add(1, Ordering::Relaxed);
    }
}

fn chaos(options: &Options) {
    require_root();
    Executor::new().expect("the home thread, which stays");
    let before = (threads_of_this_process(), fds_of_this_process());

    let arena = Arena::new();
    let tally = Arc::clone(&arena.tally);
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let warm = Instant::now() + Duration::from_secs(options.seconds) / 4;
    let warm = thread::scope(|scope| {
        for number in 0..THREADS {
            let arena = &arena;
            let seed = options.seed.wrapping_add(number as u64);
            scope.spawn(move || {
                let mut dice = Dice(seed);
                while Instant::now() < end {
                    arena.step(&mut dice);
                }
            });
        }
        // By now every kind of thing has happened, so what comes is repetition.
        thread::sleep(warm.saturating_duration_since(Instant::now()));
        resident()
    });

    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{} jobs: {} panicked, {} cancelled before, {} refused a thread, {} escaped, \
         {} left a thread, {} ended theirs; {} namespaces deleted",
        count(&tally.ran),
        count(&tally.panicked),
        count(&tally.cancelled),
        count(&tally.refused),
        count(&tally.escaped),
        count(&tally.left),
        count(&tally.lost),
        count(&tally.deleted),
    );
    assert_eq!(count(&tally.ran), count(&tally.expected));
    assert_eq!(tally.alive.load(Ordering::Relaxed), 0, "closures were lost");
    for executor in arena.executors() {
        let stats = executor.stats();
        assert_eq!((stats.queued, stats.running), (0, 0), "{stats:?}");
    }
    // A worker that was just told to leave is one until it has.
    eventually("no thread is a stray", || {
        let audit = arena.sealed.audit().expect("own process");
        audit.strays().count() == 0
    });

    let Arena {
        sealed,
        detecting,
        off,
        places,
        ..
    } = arena;
    for executor in [sealed, detecting, off] {
        executor.shutdown(None).expect("no limit of time");
    }
    let weak: Vec<_> = (places.into_iter())
        .map(|place| {
            Netns::delete(&place.name).expect("the name is there");
            place.netns.into_inner().expect("no panic").downgrade()
        })
        .collect();
    for weak in weak {
        eventually("every namespace is gone", || weak.upgrade().is_none());
    }
    // A thread that has ended without a word gives nothing back: not its listener, nor what
    // all have in common: a thread that hears of them, its socket, and a view of the tasks.
    let lost = usize::try_from(count(&tally.lost)).expect("few");
    let kept = if lost > 0 { (1, 2 + lost) } else { (0, 0) };
    eventually("threads and descriptors are as before", || {
        threads_of_this_process() <= before.0 + kept.0 && fds_of_this_process() <= before.1 + kept.1
    });
    let end = resident();
    println!("resident: {warm} bytes when warm, {end} bytes at the end");
    assert!(end < warm + (8 << 20), "memory has grown");
}

fn main() -> ExitCode {
    let options = match Options::from_args() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("chaos: {error}");
            return ExitCode::from(2);
        }
    };
    // Runners that only ask what there is.
    if env::args().any(|arg| arg == "--list") {
        println!("chaos: test");
        return ExitCode::SUCCESS;
    }
    println!("--seconds {} --seed {}", options.seconds, options.seed);
    let (over, watched) = channel::<()>();
    let limit = Duration::from_secs(options.seconds) + PATIENCE;
    thread::spawn(move || {
        if watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            eprintln!("chaos: not over after {limit:?}: something waits for ever");
            process::abort();
        }
    });
    chaos(&options);
    drop(over);
    if options.once {
        return ExitCode::SUCCESS;
    }
    println!("workers woken by futex:");
    let mut again = Command::new(env::current_exe().expect("this program has a path"));
    again.args(["--once", "--seconds", &(options.seconds / 2).to_string()]);
    again.args(["--seed", &options.seed.to_string()]);
    listen_to(&mut again);
    match again.status().expect("this program can be run") {
        status if status.success() => ExitCode::SUCCESS,
        status => {
            eprintln!("chaos: {status}");
            ExitCode::FAILURE
        }
    }
}
