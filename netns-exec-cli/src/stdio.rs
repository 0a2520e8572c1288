//! Writing to standard output and error, whatever is behind them, and reading from
//! pipes without waiting.
//!
//! Another process may have made the other end non-blocking, and this end with it
//! (they are one open file), so a full pipe can be EAGAIN; and a reader may be gone.
//! `print!` panics over both.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

/// Writes all of `bytes`, and waits as long as there is no room for them.
pub(crate) fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    let fd = fd.as_fd();
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait_for_room(fd)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn wait_for_room(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::NONE) {
        // An error is found out by the next write.
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Why [`wait_for_reader`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// There is something to read.
    Ready,
    TimedOut,
    /// What is written to standard output has no reader any more.
    ReaderGone,
}

/// Waits until `fd` can be read, the time is over, or the reader of standard output has
/// gone: a command that goes on for ever would otherwise learn it when it writes the next
/// time.
pub(crate) fn wait_for_reader(
    fd: Option<BorrowedFd<'_>>,
    limit: Option<Duration>,
) -> io::Result<Woken> {
    let stdout = io::stdout();
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let mut fds = vec![PollFd::new(stdout.as_fd(), PollFlags::empty())];
        fds.extend(fd.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = match left {
            // Rounded up, so that it does not come to nothing at the end.
            Some(left) => PollTimeout::try_from(left + Duration::from_millis(1)),
            None => Ok(PollTimeout::NONE),
        };
        match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(Woken::TimedOut),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) if fds[0].any() == Some(true) => return Ok(Woken::ReaderGone),
            Ok(_) => return Ok(Woken::Ready),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Has reads and writes return at once. Only for the end of a pipe that this
/// process alone has: the flag is the open file's.
pub(crate) fn set_non_blocking(pipe: impl AsFd) -> Result<(), Errno> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// Says something on standard error, in one write where there is room; that there
/// is no reader any more cannot be said.
pub(crate) fn say(text: &str) {
    let _ = write_all(io::stderr(), text.as_bytes());
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a reader beside a writer")]
mod tests {
    use std::io::{Read, pipe};
    use std::thread;

    use super::*;

    #[test]
    fn full_pipe_that_does_not_block_loses_nothing() {
        let (mut reader, writer) = pipe().expect("a pipe");
        set_non_blocking(&writer).expect("an open file");
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                write_all(&writer, &sent).expect("a reader is there");
                drop(writer);
            });
            let mut received = Vec::new();
            reader.read_to_end(&mut received).expect("a pipe");
            assert!(received == sent);
        });
    }

    #[test]
    fn reader_that_has_gone_is_an_error() {
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        let error = write_all(&writer, b"text").expect_err("no reader");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
