//! The signals that exec hears, and what becomes of them.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Those that ask to end: no more is begun after one of them.
const ENDING: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];

/// Those that end a process that does not expect them, and are for the commands to
/// understand.
const OTHERS: [Signal; 7] = [
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
];

/// Hears signals without being interrupted by them.
pub(super) struct Signals {
    fd: SignalFd,
}

/// What a signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A child may have ended.
    Child,
    /// To be passed on, and nothing is to be begun any more.
    End(Signal),
    /// To be passed on.
    Other(Signal),
    /// To be passed on, as what wakes a process.
    Continue,
    /// Stop, commands first.
    Stop,
}

impl Signals {
    /// Blocks them in the calling thread, so that they come out of
    /// [`next`](Signals::next) instead: the library's threads block them too, and
    /// those that the caller makes from now on do. One that is ignored stays so.
    pub(super) fn hear() -> Result<Signals, Errno> {
        let others = [Signal::SIGCHLD, Signal::SIGCONT, Signal::SIGTSTP];
        let all = SigSet::from_iter(ENDING.into_iter().chain(OTHERS).chain(others));
        all.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&all, flags)?;
        Ok(Signals { fd })
    }

    /// Becomes readable when there is one.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes one, if there is one.
    pub(super) fn next(&self) -> Option<News> {
        let info = self.fd.read_signal().ok()??;
        let signal = Signal::try_from(info.ssi_signo.cast_signed()).ok()?;
        Some(match signal {
            Signal::SIGCHLD => News::Child,
            Signal::SIGCONT => News::Continue,
            Signal::SIGTSTP => News::Stop,
            ending if ENDING.contains(&ending) => News::End(ending),
            other => News::Other(other),
        })
    }
}

/// Stops this process as the terminal's stop key would have, and returns when it
/// is continued; at once where no shell would ever continue it.
pub(super) fn stop_here() -> Result<(), Errno> {
    let stop = SigSet::from(Signal::SIGTSTP);
    stop.thread_unblock()?;
    let stopped = raise(Signal::SIGTSTP);
    stop.thread_block()?;
    stopped
}
