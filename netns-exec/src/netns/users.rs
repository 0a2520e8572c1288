//! Whether a user still has a handle to a namespace.
//!
//! All handles of users that mean one namespace, however they came about, share one
//! [`Users`], and its drop is the end of the last of them. Handles that the library
//! keeps for its own work have none: see [`Netns::kept`](super::Netns::kept).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::NetnsId;
use crate::sys;

/// See the module.
pub(super) struct Users {
    id: NetnsId,
    /// This process made the namespace, and gave it no name.
    unnamed: AtomicBool,
}

/// What users have handles to. Not looked at in a copy of the process, where it may be
/// locked by a thread that is not there.
static IN_USE: Mutex<BTreeMap<NetnsId, Weak<Users>>> = Mutex::new(BTreeMap::new());

/// A namespace whose last user has gone.
#[derive(Clone, Copy)]
pub(crate) struct Unused {
    pub(crate) id: NetnsId,
    /// This process made it, and gave it no name: there is no coming back to it.
    pub(crate) unnamed: bool,
}

type Hook = Arc<dyn Fn(Unused) + Send + Sync>;

static HOOKS: Mutex<Hooks> = Mutex::new(Hooks {
    next: 0,
    by_token: BTreeMap::new(),
});

struct Hooks {
    next: u64,
    by_token: BTreeMap<u64, Hook>,
}

/// Calls `hook` with each namespace whose last user has gone, on the thread that
/// dropped the last handle and under no lock of this module, until the subscription is
/// dropped, and perhaps for a moment longer.
///
/// By then there may be a user again.
pub(crate) fn on_unused(hook: impl Fn(Unused) + Send + Sync + 'static) -> OnUnused {
    if sys::fork::is_copy() {
        return OnUnused(None);
    }
    let mut hooks = HOOKS.lock();
    let token = hooks.next;
    hooks.next += 1;
    hooks.by_token.insert(token, Arc::new(hook));
    OnUnused(Some(token))
}

/// Ends with its drop.
#[must_use]
pub(crate) struct OnUnused(Option<u64>);

impl Drop for OnUnused {
    fn drop(&mut self) {
        let Some(token) = self.0 else { return };
        if !sys::fork::is_copy() {
            let ended = HOOKS.lock().by_token.remove(&token);
            // What it has captured goes without the lock.
            drop(ended);
        }
    }
}

/// Whether any user has a handle to the namespace just now.
pub(crate) fn has_users(id: NetnsId) -> bool {
    if sys::fork::is_copy() {
        return false;
    }
    (IN_USE.lock().get(&id)).is_some_and(|users| users.strong_count() > 0)
}

impl Users {
    /// The users of a namespace, with one more; `None` where that cannot be known.
    pub(super) fn of(id: NetnsId, unnamed: bool) -> Option<Arc<Users>> {
        if sys::fork::arm().is_err() || sys::fork::is_copy() {
            return None;
        }
        let mut in_use = IN_USE.lock();
        let users = match in_use.get(&id).and_then(Weak::upgrade) {
            Some(users) => users,
            None => {
                let users = Arc::new(Users {
                    id,
                    unnamed: AtomicBool::new(false),
                });
                in_use.insert(id, Arc::downgrade(&users));
                users
            }
        };
        drop(in_use);
        if unnamed {
            users.unnamed.store(true, Ordering::Relaxed);
        }
        Some(users)
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        // In a copy there are no workers to tell.
        if sys::fork::is_copy() {
            return;
        }
        {
            let mut in_use = IN_USE.lock();
            match in_use.get(&self.id) {
                // Another thread has made a handle since.
                Some(users) if users.strong_count() > 0 => return,
                _ => drop(in_use.remove(&self.id)),
            }
        }
        let hooks: Vec<Hook> = HOOKS.lock().by_token.values().cloned().collect();
        let unused = Unused {
            id: self.id,
            unnamed: self.unnamed.load(Ordering::Relaxed),
        };
        for hook in hooks {
            hook(unused);
        }
    }
}
