//! Whether a thread is still in the namespace that it entered.

use std::io;
use std::os::fd::OwnedFd;

use super::ThreadState;
use crate::sys;
use crate::sys::task::{NsLink, NsProbe};

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
