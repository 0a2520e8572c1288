//! What all threads of a soak act upon: executors, namespaces, and what is held for a while.

use std::fmt::Display;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use netns_exec::ports::Allocator;
use netns_exec::{Executor, Guard, JoinHandle, Netns, OwnedNetns, Result, WeakNetns};
use nix::sys::stat::fstat;

use super::dice::Dice;
use super::faults::{Faults, Since};
use super::held::{Held, Spawned};
use super::tally::{Tally, Token, count, inode_here};

/// What is begun ends long before; a wait that is longer has no end.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A name, and what it stands for just now.
pub(super) struct Place {
    pub(super) name: String,
    /// `None` when it could not be made anew for lack of descriptors.
    pub(super) owned: RwLock<Option<OwnedNetns>>,
}

/// A namespace, and how its threads tell it from others. As long as there is one of these
/// the inode is no other namespace's.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) netns: Netns,
    pub(super) inode: u64,
}

impl Target {
    pub(super) fn new(netns: Netns) -> io::Result<Target> {
        let inode = fstat(&netns)?.st_ino;
        Ok(Target { netns, inode })
    }
}

impl Deref for Target {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

/// What a thread of the soak is at, for the thread that watches.
#[derive(Default)]
pub(super) struct Pulse {
    pub(super) step: Mutex<Option<(&'static str, Instant)>>,
}

pub(super) struct Arena {
    /// With one worker for each namespace, and used for batches only: so these run in order.
    pub(super) ordered: Executor,
    pub(super) sealed: Executor,
    pub(super) detecting: Executor,
    /// With few workers for all namespaces, and a short queue.
    pub(super) narrow: Executor,
    pub(super) ports: Allocator,
    /// What does not know of the other's leases.
    pub(super) rival: Allocator,
    pub(super) places: Vec<Place>,
    pub(super) home: Target,
    pub(super) tally: Arc<Tally>,
    pub(super) faults: Faults,
    /// Steps read it; who writes has the arena for itself.
    pub(super) at_work: RwLock<()>,
    pub(super) held: Vec<Mutex<Held>>,
    pub(super) pulses: Vec<Pulse>,
    pub(super) ending: AtomicBool,
    /// Whether no step is to begin.
    pub(super) paused: AtomicBool,
    /// Namespaces that were deleted, to be gone when nothing is held.
    pub(super) deleted: Mutex<Vec<WeakNetns>>,
    /// How often namespaces began to be retired or deleted, and how often that was over.
    pub(super) endings: (AtomicU64, AtomicU64),
    /// Of sealed workers.
    pub(super) worker_starts: Arc<AtomicU64>,
    pub(super) worker_stops: Arc<AtomicU64>,
}

impl Arena {
    pub(super) fn new(places: usize, threads: usize) -> Result<Arena> {
        let tally = Arc::<Tally>::default();
        let (starts, stops) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let executor = |guard, workers, limit: Option<usize>| {
            let builder = Executor::builder()
                .guard(guard)
                .workers_per_netns(workers)
                // Short enough for workers to idle out in the middle of it.
                .idle_timeout(Some(Duration::from_millis(50)));
            let builder = match limit {
                Some(limit) => builder.max_workers(limit).queue_depth(4),
                None => builder,
            };
            // Under the others a worker can become unfit, and then runs no hook.
            let counted = guard == Guard::Seal;
            let (seen, starts) = (Arc::clone(&tally), Arc::clone(&starts));
            let builder = builder.on_worker_start(move |netns| {
                starts.fetch_add(u64::from(counted), Ordering::SeqCst);
                let (here, own) = (inode_here(), fstat(netns).map(|stat| stat.st_ino));
                seen.check(here == own.ok(), || {
                    format!("a worker of {netns} began in {here:?}")
                });
                Ok(())
            });
            let stops = Arc::clone(&stops);
            let builder = builder.on_worker_stop(move |_| {
                stops.fetch_add(u64::from(counted), Ordering::SeqCst);
            });
            builder.build()
        };
        let sealed = executor(Guard::Seal, 2, None)?;
        let arena = Arena {
            ordered: executor(Guard::Seal, 1, None)?,
            detecting: executor(Guard::Detect, 1, None)?,
            narrow: executor(Guard::Seal, 1, Some(3))?,
            ports: Allocator::new(&sealed),
            rival: Allocator::new(&sealed),
            sealed,
            places: (0..places).map(Place::new).collect::<Result<_>>()?,
            home: Target::new(Netns::home()?).expect("fstat of an open file"),
            tally,
            faults: Faults::default(),
            at_work: RwLock::default(),
            held: (0..threads).map(|_| Mutex::default()).collect(),
            pulses: (0..threads).map(|_| Pulse::default()).collect(),
            ending: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            deleted: Mutex::default(),
            endings: Default::default(),
            worker_starts: starts,
            worker_stops: stops,
        };
        for _ in 0..places {
            count(&arena.tally.counts.namespaces);
        }
        Ok(arena)
    }

    pub(super) fn executors(&self) -> [&Executor; 4] {
        [&self.sealed, &self.detecting, &self.narrow, &self.ordered]
    }

    /// One for jobs that may be anywhere, mostly the one that programs will have.
    pub(super) fn any_executor(&self, dice: &mut Dice) -> &Executor {
        match dice.roll(10) {
            0 => &self.narrow,
            1 | 2 => &self.detecting,
            _ => &self.sealed,
        }
    }

    /// A namespace, by a handle of its own.
    pub(super) fn target(&self, dice: &mut Dice) -> Option<Target> {
        let place = dice.pick(&self.places);
        let owned = place.owned.read().unwrap_or_else(PoisonError::into_inner);
        let netns = Netns::clone(owned.as_ref()?);
        drop(owned);
        Target::new(netns).ok()
    }

    /// Notes an error of the library's that has no reason. Tells whether it has one.
    pub(super) fn explain(
        &self,
        attempt: &str,
        since: Since,
        errno: Option<i32>,
        error: impl Display,
    ) -> bool {
        let explained = self.faults.explain(since, errno);
        match explained {
            true => count(&self.tally.counts.failed_over_faults),
            false => (self.tally).violation(format_args!("{attempt} failed: {error}")),
        }
        explained
    }

    /// Returns what came of an attempt, and notes it if that was an error without a reason.
    pub(super) fn expect<T>(&self, attempt: &str, since: Since, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.explain(attempt, since, error.raw_os_error(), &error);
                None
            }
        }
    }

    /// The same of a job: it ran once, or it failed and did not run. One that ran fails where
    /// its guard had no descriptor to look with: what cannot be seen is not said to be well.
    pub(super) fn expect_ran<T>(
        &self,
        attempt: &str,
        since: Since,
        result: Result<T>,
        runs: &AtomicU32,
    ) -> Option<T> {
        let ran = runs.load(Ordering::Relaxed);
        let is_unclear = (result.as_ref()).is_err_and(|error| {
            error.is_escaped() && self.faults.explain(since, error.raw_os_error())
        });
        let due = u32::from(result.is_ok() || is_unclear);
        self.tally.check(ran == due, || {
            format!("{attempt}: a job ran {ran} times instead of {due}")
        });
        self.expect(attempt, since, result)
    }

    /// Waits for a job, which must come to an end.
    pub(super) fn join<T>(&self, attempt: &str, handle: JoinHandle<T>) -> Option<Result<T>> {
        match handle.join_timeout(PATIENCE) {
            Ok(result) => Some(result),
            Err(_still_there) => {
                (self.tally).violation(format_args!("{attempt}: a job has not come to an end"));
                None
            }
        }
    }

    /// Spawns one job in `target`.
    pub(super) fn spawn(&self, executor: &Executor, target: &Target) -> Option<Spawned> {
        let (token, runs) = self.token(target);
        let since = self.faults.since();
        let spawned = executor.spawn(target, move || token.begin());
        let handle = self.expect("spawn", since, spawned)?;
        Some((handle, since, runs))
    }

    pub(super) fn token(&self, target: &Target) -> (Token, Arc<AtomicU32>) {
        Token::new(&self.tally, target.inode)
    }
}

impl Place {
    fn new(number: usize) -> Result<Place> {
        let name = format!("netns-exec-soak-{}-{number}", std::process::id());
        let owned = Netns::create_owned(&name)?;
        Ok(Place {
            name,
            owned: RwLock::new(Some(owned)),
        })
    }
}
