//! Whether a thread is still what it was: in the namespace that it entered, and
//! otherwise like the home thread.

use std::io;
use std::os::fd::OwnedFd;

use nix::unistd::{Gid, Uid, getegid, geteuid};

use super::ThreadState;
use crate::home::Home;
use crate::sys;
use crate::sys::task::{NsLink, NsProbe, OTHER_NAMESPACES};
use crate::sys::thread::Shared;

/// Compares the namespace that a thread is in with the one that it was in when
/// this was made, on that thread.
pub(crate) struct NetnsCheck {
    probe: NsProbe,
    entered: NsLink,
    /// Keeps the inode number in `entered` from being given to another namespace
    /// while the thread is away from this one.
    _netns: OwnedFd,
}

impl NetnsCheck {
    pub(super) fn of_this_thread() -> io::Result<NetnsCheck> {
        let netns = sys::netns::of_this_thread()?;
        let probe = NsProbe::of_this_thread()?;
        Ok(NetnsCheck {
            entered: probe.read()?,
            probe,
            _netns: netns,
        })
    }

    /// The namespace that the thread entered.
    pub(super) fn entered(&self) -> NsLink {
        self.entered
    }

    /// Tells whether the thread is known to be in the namespace that it entered.
    pub(crate) fn is_in_place(&self) -> bool {
        matches!(self.state(), ThreadState::Clean)
    }

    #[inline]
    pub(super) fn state(&self) -> ThreadState {
        match self.probe.read() {
            Ok(link) if link == self.entered => ThreadState::Clean,
            Ok(_) => ThreadState::Escaped,
            Err(error) => ThreadState::Unknown(error),
        }
    }
}

/// The thread that workers share their files with; `prepare` finds it out.
#[derive(Clone, Copy)]
pub(super) struct HomeTid(u32);

impl HomeTid {
    pub(super) fn get() -> crate::error::Result<HomeTid> {
        if cfg!(loom) {
            return Ok(HomeTid(sys::thread::tid()));
        }
        Ok(HomeTid(Home::get()?.call(sys::thread::tid)))
    }
}

/// Compares what a thread has beside its network namespace with what it had when this
/// was made, on that thread: what the next job there would take for the process's.
pub(super) struct StateCheck {
    me: u32,
    home: u32,
    /// What it shares with home. Less where kcmp(2) cannot be had: a table of its own
    /// is then not seen.
    shared: Vec<Shared>,
    capabilities: u64,
    ids: (Uid, Gid),
    namespaces: [Option<NsLink>; OTHER_NAMESPACES.len()],
}

impl StateCheck {
    pub(super) fn of_this_thread(HomeTid(home): HomeTid) -> io::Result<StateCheck> {
        let me = sys::thread::tid();
        let shared = [Shared::Files, Shared::Fs].into_iter();
        Ok(StateCheck {
            me,
            home,
            shared: shared
                .filter(|what| matches!(sys::thread::share(me, home, *what), Ok(true)))
                .collect(),
            capabilities: sys::caps::effective()?,
            ids: (geteuid(), getegid()),
            namespaces: OTHER_NAMESPACES.map(sys::task::other_namespace),
        })
    }

    /// Looks at the descriptor table: what does most harm. The next job would return
    /// sockets whose numbers mean other files at its caller.
    #[inline]
    pub(super) fn look_at_files(&self) -> ThreadState {
        self.look_at(Shared::Files, "a descriptor table of its own")
    }

    /// Looks at files, working directory and capabilities. (Root that becomes another
    /// user loses these, see capabilities(7).)
    pub(super) fn look(&self) -> ThreadState {
        match self.look_at_files() {
            ThreadState::Clean => {}
            state => return state,
        }
        match self.look_at(Shared::Fs, "a working directory of its own") {
            ThreadState::Clean => {}
            state => return state,
        }
        match sys::caps::effective() {
            Ok(capabilities) if capabilities == self.capabilities => ThreadState::Clean,
            Ok(_) => ThreadState::Altered("other capabilities"),
            Err(error) => ThreadState::Unknown(error),
        }
    }

    #[inline]
    fn look_at(&self, what: Shared, of_its_own: &'static str) -> ThreadState {
        if !self.shared.contains(&what) {
            return ThreadState::Clean;
        }
        match sys::thread::share(self.me, self.home, what) {
            Ok(true) => ThreadState::Clean,
            Ok(false) => ThreadState::Altered(of_its_own),
            Err(error) => ThreadState::Unknown(error),
        }
    }

    /// Looks at the rest as well, which takes about ten times as long.
    pub(super) fn look_closely(&self) -> ThreadState {
        for (path, before) in OTHER_NAMESPACES.into_iter().zip(&self.namespaces) {
            if before.is_some() && sys::task::other_namespace(path) != *before {
                return ThreadState::Altered("a mount, UTS, IPC or other namespace of its own");
            }
        }
        if (geteuid(), getegid()) != self.ids {
            return ThreadState::Altered("another user or group");
        }
        self.look()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// A namespace's inode number is given to another one when it is gone, the lowest
    /// first. So once the number of a namespace has come back that came and went after the
    /// one which the thread entered, that one's own has, if it could.
    #[test]
    fn namespace_with_the_number_of_the_one_entered_is_never_taken_for_it() {
        /// Each takes a millisecond, and those gone before it a few more.
        const MOST: usize = 2000;

        let thread = thread::spawn(|| {
            let enter_another = || {
                unshare(CloneFlags::CLONE_NEWNET).expect("root may make namespaces");
                let probe = NsProbe::of_this_thread().expect("procfs");
                probe.read().expect("this thread's own")
            };
            enter_another();
            let check = NetnsCheck::of_this_thread().expect("procfs");
            assert!(check.is_in_place());
            let later = enter_another();
            for _ in 0..MOST {
                let here = enter_another();
                assert!(
                    matches!(check.state(), ThreadState::Escaped),
                    "{here:?} is taken for {:?}",
                    check.entered()
                );
                if here == later {
                    break;
                }
            }
        });
        thread.join().expect("each was told from the first");
    }
}
