//! How a thread waits that is one of many: it gives the CPU to the others between looks.
//!
//! What waits for a job's latch or for room in a queue waits for another thread, and often
//! beside others that wait for the same. While such a turn of the CPU comes back at once it
//! is cheaper than to sleep and be woken ([`spin_by_turns`]); for a latch that may be set
//! before others had their turn the thread spins first ([`spin_then_by_turns`]).
//!
//! Where busy threads share the CPU the kernel gives them a slice for it, milliseconds long:
//! sched_yield(2) forfeits what is left of one's own. That hits all threads of the process
//! alike, however short-lived they are, so there is one account of it ([`Account`]).

use std::cell::Cell;
use std::hint;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::pace::{SPIN, STREAK, may_spin};
use crate::sync;

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

/// What turns are worth to all threads together: those that paid, less those that took a
/// slice.
///
/// While it is overdrawn no turns are given away. A thread that would have sleeps instead,
/// and pays one back by that, so that it takes longer where threads wait seldom. Where two
/// threads write at once one of them is not counted, which is no harm.
struct Account {
    balance: AtomicI32,
    /// How often it was overdrawn since it was last full.
    overdrawn: AtomicU32,
}

impl Account {
    /// How many turns must have paid for each that took a slice. Crowds that share their
    /// CPUs with none gained 44 at the least; beside a busy thread on each CPU it is 1 to 3,
    /// however many wait.
    const PRICE: i32 = 12;
    /// The most that it holds. Threads lose a slice together, so that several come at once.
    const FULL: i32 = 512;
    /// What it is overdrawn by at first; twice as much each time that it happens again.
    const REST: i32 = 256;
    /// How often twice.
    const DOUBLINGS: u32 = 4;

    const fn new() -> Account {
        Account {
            balance: AtomicI32::new(0),
            overdrawn: AtomicU32::new(0),
        }
    }

    fn may_try(&self) -> bool {
        let balance = self.balance.load(Relaxed);
        if balance < 0 {
            self.balance.store(balance + 1, Relaxed);
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
            self.balance.store(-(Account::REST << overdrawn), Relaxed);
        } else if left < balance {
            self.balance.store(left, Relaxed);
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
    static ACCOUNT: Account = Account::new();
    sync::local! {
        static TURNS: Credit = Credit::new();
    }
    if found() {
        return true;
    }
    if cfg!(any(loom, netns_without = "turns"))
        || !may_spin()
        || !TURNS.try_with(Credit::may_try).unwrap_or(false)
        || !ACCOUNT.may_try()
    {
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
    }
    ACCOUNT.note(seen, turn);
    let _ = TURNS.try_with(|turns| turns.note(seen));
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `tries` are let through, where each takes a slice.
    fn lost(account: &Account, tries: usize) -> usize {
        let is_lost = |_: &usize| {
            let may_try = account.may_try();
            if may_try {
                account.note(true, SLICE);
            }
            may_try
        };
        (0..tries).filter(is_lost).count()
    }

    fn paid(account: &Account, times: i32) {
        (0..times).for_each(|_| account.note(true, Duration::ZERO));
    }

    #[test]
    fn turns_that_take_slices_become_seldom() {
        let account = Account::new();
        let rests = [1, 2, 4, 8, 16, 16, 16].map(|times| times * Account::REST as usize);
        for rest in rests {
            assert_eq!(lost(&account, rest + 1), 1, "a rest of {rest}");
        }
        assert_eq!(lost(&account, 1), 1);
    }

    #[test]
    fn slice_that_is_lost_during_a_rest_makes_it_no_longer() {
        let account = Account::new();
        (0..8).for_each(|_| account.note(true, SLICE));
        assert_eq!(lost(&account, Account::REST as usize), 0);
        assert_eq!(lost(&account, 1), 1);
    }

    #[test]
    fn turns_that_pay_for_slices_go_on() {
        let account = Account::new();
        paid(&account, Account::FULL);
        for _ in 0..1000 {
            (0..30).for_each(|_| account.note(true, SLICE));
            assert!(account.may_try());
            paid(&account, 30 * Account::PRICE);
        }
        paid(&account, Account::FULL);
        let in_a_row = lost(&account, Account::REST as usize);
        assert_eq!(in_a_row, (Account::FULL / Account::PRICE) as usize + 1);
    }

    #[test]
    fn rests_are_short_again_after_turns_have_paid() {
        let account = Account::new();
        assert!(lost(&account, 100_000) < 30);
        while !account.may_try() {}
        paid(&account, Account::FULL + 1);
        let in_a_row = (Account::FULL / Account::PRICE) as usize + 1;
        assert_eq!(lost(&account, in_a_row + Account::REST as usize), in_a_row);
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
