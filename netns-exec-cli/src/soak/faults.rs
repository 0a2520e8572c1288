//! Descriptors that run out for a moment, and which errors that explains.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Takes the descriptors away, for all threads at once.
#[derive(Default)]
pub(super) struct Faults {
    /// Odd while a fault is in force.
    epoch: AtomicU64,
    one_at_a_time: Mutex<()>,
}

/// When an attempt began: whether a fault can have met it.
#[derive(Clone, Copy)]
pub(super) struct Since(u64);

impl Faults {
    pub(super) fn since(&self) -> Since {
        Since(self.epoch.load(Ordering::SeqCst))
    }

    /// Whether an attempt may have come to nothing over a fault, with an errno that says so.
    ///
    /// An attempt without an errno says what it was for, and not why.
    pub(super) fn explain(&self, since: Since, errno: Option<i32>) -> bool {
        let met = since.0 % 2 == 1 || self.epoch.load(Ordering::SeqCst) != since.0;
        let errno = errno.map(Errno::from_raw);
        met && matches!(errno, Some(Errno::EMFILE | Errno::ENFILE))
    }

    /// Has the process open no more than `more` files in addition to those that it has,
    /// while `during` runs. Tells whether it was done: there is one fault at a time.
    pub(super) fn squeeze(&self, more: usize, during: impl FnOnce()) -> bool {
        let Ok(_one) = self.one_at_a_time.try_lock() else {
            return false;
        };
        let (Some(open), Ok((soft, hard))) = (open_files(), getrlimit(Resource::RLIMIT_NOFILE))
        else {
            return false;
        };
        let highest = (open + more) as u64;
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let squeezed = setrlimit(Resource::RLIMIT_NOFILE, highest.min(soft), hard);
        let back = Back {
            faults: self,
            limit: (soft, hard),
        };
        if squeezed.is_ok() {
            during();
        }
        drop(back);
        squeezed.is_ok()
    }
}

/// Gives the descriptors back, also after a panic.
struct Back<'a> {
    faults: &'a Faults,
    limit: (u64, u64),
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        let (soft, hard) = self.limit;
        // Up to the hard limit needs no privilege.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
        self.faults.epoch.fetch_add(1, Ordering::SeqCst);
    }
}

/// How many descriptors this process has.
pub(super) fn open_files() -> Option<usize> {
    // One of them is the folder's own.
    Some(fs::read_dir("/proc/self/fd").ok()?.count() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fault_that_was_met_explains_a_lack_of_descriptors() {
        let faults = Faults::default();
        let before = faults.since();
        assert!(!faults.explain(before, Some(libc::EMFILE)));
        faults.epoch.store(1, Ordering::SeqCst);
        let within = faults.since();
        faults.epoch.store(2, Ordering::SeqCst);
        for since in [before, within] {
            assert!(faults.explain(since, Some(libc::EMFILE)));
            assert!(!faults.explain(since, Some(libc::EPERM)));
            assert!(!faults.explain(since, None));
        }
        assert!(!faults.explain(faults.since(), Some(libc::EMFILE)));
    }
}
