//! How a thread waits that is one of many: it gives the CPU to the others between looks.
//!
//! What waits for a job's latch or for room in a queue waits for another thread, and often
//! beside others that wait for the same. While such a turn of the CPU comes back at once it
//! is cheaper than to sleep and be woken ([`spin_by_turns`]); for a latch that may be set
//! before others had their turn the thread spins first ([`spin_then_by_turns`]).
//!
//! Where busy threads share the CPU the kernel gives them a slice for it, milliseconds long:
//! sched_yield(2) forfeits what is left of one's own. That hits all threads on that CPU
//! alike, however short-lived they are, so there is one [`Account`] of it for each CPU.

use std::cell::Cell;
use std::hint;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::sched_getcpu;

use super::pace::{SPIN, STREAK, may_spin};
use crate::sync;
use crate::sys::time::monotonic;

/// A turn that is as long was the slice of a busy thread, which waits for nothing.
const SLICE: Duration = Duration::from_millis(1);

/// Whether a way to wait pays on a thread: not while it has not lately.
struct Credit(Cell<i16>);

impl Credit {
    const fn new() -> Credit {
        Credit(Cell::new(STREAK as i16))
    }

    /// Says no for a while after it has not paid. What did not pay may pay again.
    fn may_try(&self) -> bool {
        let credit = self.0.get();
        if credit < 0 {
            self.0.set(credit + 1);
        }
        credit >= 0
    }

    fn note(&self, paid: bool) {
        self.0.set(match (paid, self.0.get() / 2) {
            (true, _) => STREAK as i16,
            (false, 0) => -(STREAK as i16) * 8,
            (false, half) => half,
        });
    }
}

/// What turns of one CPU are worth to all threads together: those that paid, less those that
/// took a slice.
///
/// While it is overdrawn no turns are given away. A thread that would have sleeps instead,
/// and pays one back by that. Where threads wait so seldom that it would take longer than
/// [`LIMIT`](Account::LIMIT) it is even again by then: a single slice that is lost is seldom
/// as well, and the busy threads may be gone. Where two threads write at once one of them is
/// not counted, which is no harm.
#[repr(align(64))]
struct Account {
    balance: AtomicI32,
    /// How often it was overdrawn since it was last full.
    overdrawn: AtomicU32,
    /// Since when it is, in nanoseconds of the coarse clock.
    since: AtomicU64,
}

impl Account {
    /// How many turns must have paid for each that took a slice. Crowds on a CPU without busy
    /// threads gain 40 and more; beside a busy thread it is 1 to 3, however many wait.
    const PRICE: i32 = 6;
    /// The most that it holds. Threads lose a slice together, so that several come at once.
    const FULL: i32 = 256;
    /// What it holds at first, and when all has been paid back: while others sleep turns are
    /// lost to a worker that has no reason to stop, and a crowd must get going again.
    const GRACE: i32 = 8 * Account::PRICE;
    /// What it is overdrawn by at first; twice as much each time that it happens again.
    const REST: i32 = 256;
    /// How often twice.
    const DOUBLINGS: u32 = 4;
    /// For how long at the most, in nanoseconds.
    const LIMIT: u64 = 1_000_000_000;

    const fn new() -> Account {
        Account {
            balance: AtomicI32::new(Account::GRACE),
            overdrawn: AtomicU32::new(0),
            since: AtomicU64::new(0),
        }
    }

    /// That of the CPU which the calling thread is on just now; some share one where there
    /// are very many.
    fn here() -> &'static Account {
        static CPUS: [Account; 64] = [const { Account::new() }; 64];
        let cpu = sched_getcpu().unwrap_or(0);
        &CPUS[cpu % CPUS.len()]
    }

    fn may_try(&self) -> bool {
        let balance = self.balance.load(Relaxed);
        if balance < 0 {
            let left = if balance == -1 {
                Account::GRACE
            } else if monotonic(true).saturating_sub(self.since.load(Relaxed)) >= Account::LIMIT {
                0
            } else {
                balance + 1
            };
            self.balance.store(left, Relaxed);
        }
        balance >= 0
    }

    /// Notes whether waiting by turns has paid, and how long the last turn of others was.
    fn note(&self, paid: bool, turn: Duration) {
        let balance = self.balance.load(Relaxed);
        if balance < 0 {
            // The turn was given away before.
            return;
        }
        let left = balance - if turn < SLICE { 0 } else { Account::PRICE };
        if left < 0 && !cfg!(netns_without = "rests") {
            let overdrawn = self.overdrawn.load(Relaxed);
            let again = (overdrawn + 1).min(Account::DOUBLINGS);
            self.overdrawn.store(again, Relaxed);
            self.since.store(monotonic(true), Relaxed);
            self.balance.store(-(Account::REST << overdrawn), Relaxed);
        } else if left < balance {
            self.balance.store(left.max(0), Relaxed);
        } else if paid && balance < Account::FULL {
            self.balance.store(balance + 1, Relaxed);
        } else if paid && self.overdrawn.load(Relaxed) != 0 {
            self.overdrawn.store(0, Relaxed);
        }
    }
}

/// Looks with ever longer pauses, for about a microsecond; then as [`spin_by_turns`]. For
/// what may be there before others had their turn.
pub(crate) fn spin_then_by_turns(mut found: impl FnMut() -> bool) -> bool {
    /// Each twice as long as the one before.
    const PAUSES: u32 = 6;

    sync::local! {
        static SPINS: Credit = Credit::new();
    }
    if found() {
        return true;
    }
    if cfg!(loom) || !may_spin() {
        return false;
    }
    if !cfg!(netns_without = "spin_first") && SPINS.try_with(Credit::may_try).unwrap_or(false) {
        let seen = (0..PAUSES).any(|nth| {
            (0..1 << nth).for_each(|_| hint::spin_loop());
            found()
        });
        let _ = SPINS.try_with(|spins| spins.note(seen));
        if seen {
            return true;
        }
    }
    spin_by_turns(found)
}

/// Looks between turns of other threads, which are those that are waited for, or wait
/// for the same.
pub(crate) fn spin_by_turns(mut found: impl FnMut() -> bool) -> bool {
    sync::local! {
        static TURNS: Credit = Credit::new();
    }
    if found() {
        return true;
    }
    if cfg!(any(loom, netns_without = "turns"))
        || !may_spin()
        || !TURNS.try_with(Credit::may_try).unwrap_or(false)
    {
        return false;
    }
    // Of the CPU whose turn is given away, be it another one on which the thread comes back.
    let mut account = Account::here();
    if !account.may_try() {
        return false;
    }
    let mut before = Instant::now();
    let mut turn = Duration::ZERO;
    let mut seen = false;
    for _ in 0..STREAK * 2 {
        thread::yield_now();
        seen = found();
        let now = Instant::now();
        turn = now.duration_since(before);
        // A turn as long as that is none.
        if seen || turn > SPIN * 4 {
            break;
        }
        before = now;
        account = Account::here();
    }
    account.note(seen, turn);
    let _ = TURNS.try_with(|turns| turns.note(seen));
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has each of so many tries take a slice; tells how many it was let through for.
    fn lose(account: &Account, tries: i32) -> i32 {
        let mut lost = 0;
        for _ in 0..tries {
            if account.may_try() {
                account.note(true, SLICE);
                lost += 1;
            }
        }
        lost
    }

    fn pay(account: &Account, times: i32) {
        (0..times).for_each(|_| account.note(true, Duration::ZERO));
    }

    /// How many slices are lost before it rests, if it holds so much.
    fn patience(balance: i32) -> i32 {
        balance / Account::PRICE + 1
    }

    #[test]
    fn turns_that_take_slices_become_seldom() {
        let account = Account::new();
        for times in [1, 2, 4, 8, 16, 16, 16] {
            let first = patience(Account::GRACE);
            assert_eq!(lose(&account, first), first);
            assert_eq!(lose(&account, times * Account::REST), 0, "{times} times");
        }
    }

    #[test]
    fn slice_that_is_lost_during_a_rest_makes_it_no_longer() {
        let account = Account::new();
        (0..100).for_each(|_| account.note(true, SLICE));
        assert_eq!(lose(&account, Account::REST), 0);
        assert_eq!(lose(&account, 1), 1);
    }

    #[test]
    fn rest_is_over_after_a_while_and_the_next_slice_begins_another_one() {
        let account = Account::new();
        assert_eq!(lose(&account, 100), patience(Account::GRACE));
        let long_ago = monotonic(true) - Account::LIMIT;
        account.since.store(long_ago, Relaxed);
        assert!(!account.may_try() && account.may_try());
        assert_eq!(lose(&account, 2 * Account::REST + 1), 1);
    }

    #[test]
    fn turns_that_pay_for_slices_go_on() {
        let account = Account::new();
        pay(&account, Account::FULL);
        for _ in 0..1000 {
            assert_eq!(lose(&account, 30), 30);
            pay(&account, 30 * Account::PRICE);
        }
        let lost = lose(&account, Account::REST);
        assert_eq!(lost, patience(Account::FULL));
    }

    #[test]
    fn rests_are_short_again_after_turns_have_paid() {
        let account = Account::new();
        assert!(lose(&account, 100_000) < 300);
        while !account.may_try() {}
        pay(&account, Account::FULL + 1);
        let first = patience(Account::FULL);
        assert_eq!(lose(&account, first + Account::REST), first);
        assert!(account.may_try());
    }

    #[test]
    fn what_did_not_pay_is_tried_again_later() {
        let credit = Credit::new();
        let refused = (0..1000).filter(|_| {
            let may_try = credit.may_try();
            if may_try {
                credit.note(false);
            }
            !may_try
        });
        assert!((900..1000).contains(&refused.count()));
        while !credit.may_try() {}
        credit.note(true);
        credit.note(false);
        assert!(credit.may_try());
    }
}
