//! What the guard has refused, and what to do about it.

use std::borrow::Cow;
use std::ops::Sub;

/// How often the seal refused something to a thread, as counted for certain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) threads: u32,
    /// Changes of the thread's namespaces, or files or a working directory of its own.
    pub(crate) moves: u32,
}

impl Sub for Refused {
    type Output = Refused;

    fn sub(self, before: Refused) -> Refused {
        Refused {
            threads: self.threads.wrapping_sub(before.threads),
            moves: self.moves.wrapping_sub(before.moves),
        }
    }
}

impl Refused {
    pub(crate) const THREAD: Refused = Refused {
        threads: 1,
        moves: 0,
    };
    pub(crate) const MOVE: Refused = Refused {
        threads: 0,
        moves: 1,
    };

    pub(crate) fn total(self) -> u64 {
        u64::from(self.threads) + u64::from(self.moves)
    }

    /// What was refused, if it is one thing.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Refused { moves: 0, .. } => "a thread",
            _ => "a change of its namespaces or files",
        }
    }

    pub(crate) fn is_none(self) -> bool {
        self == Refused::default()
    }

    /// What was refused, and the cure.
    pub(crate) fn hint(self) -> Cow<'static, str> {
        const THREADS: &str = "the guard refused this job threads: start pools of the whole \
             process at home with `Builder::prewarm`; a runtime that the job builds gets none: \
             call what blocks in the job itself, and look names up with `net::resolve`, \
             instead of `spawn_blocking`; or have threads created at home (feature \
             `births-at-home`), or choose `Guard::Detect`";
        const MOVES: &str = "the guard refused this job setns(2) or unshare(2): run what belongs \
             in another namespace there, or choose `Guard::Detect`";
        match self {
            Refused { moves: 0, .. } => THREADS.into(),
            Refused { threads: 0, .. } => MOVES.into(),
            _ => format!("{THREADS}; {MOVES}").into(),
        }
    }
}
