//! Writing to standard output and error without ever waiting for a reader.
//!
//! A file that is shared with other processes, as standard output is, cannot be
//! made non-blocking for this one alone, and poll(2) does not say how much a
//! terminal takes. So a thread of its own writes, and may be kept waiting for as
//! long as the reader likes; the supervisor sees how much is queued, and reads no
//! more from the commands than there is room for.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::fstat;

use super::render::Stream;
use crate::failure::Failure;
use crate::stdio;

/// As many bytes may be queued before no more are taken from the commands.
const ROOM: usize = 256 * 1024;

/// Standard output and error, as the supervisor sees them.
pub(super) struct Outputs {
    /// One, or two where they are different files: a stalled one must not stall
    /// the other, and two threads would mix lines in one.
    queues: Vec<Arc<Queue>>,
    progress: Arc<EventFd>,
}

struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    /// Rung by the writer when room appeared, or a file broke.
    progress: Arc<EventFd>,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<(Stream, Vec<u8>)>,
    /// Of those, and of what is being written.
    bytes: usize,
    /// What made each stream unusable.
    broken: [Option<io::Error>; 2],
}

impl Outputs {
    /// Starts the threads, which inherit the signal mask.
    pub(super) fn start() -> Result<Outputs, Failure> {
        let failed = |error: io::Error| Failure::io("cannot prepare to write output", error);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let progress = EventFd::from_value_and_flags(0, flags).map_err(|e| failed(e.into()))?;
        let progress = Arc::new(progress);
        let count = if is_one_file() { 1 } else { 2 };
        let mut queues = Vec::new();
        for index in 0..count {
            let queue = Arc::new(Queue {
                state: Mutex::default(),
                filled: Condvar::new(),
                progress: Arc::clone(&progress),
            });
            queues.push(Arc::clone(&queue));
            thread::Builder::new()
                .name(format!("writer/{index}"))
                .spawn(move || queue.serve())
                .map_err(failed)?;
        }
        Ok(Outputs { queues, progress })
    }

    fn queue(&self, stream: Stream) -> &Queue {
        &self.queues[stream.index().min(self.queues.len() - 1)]
    }

    /// Becomes readable when there may be room where there was none.
    pub(super) fn progress(&self) -> BorrowedFd<'_> {
        self.progress.as_fd()
    }

    /// To be called when [`progress`](Outputs::progress) is readable.
    pub(super) fn take_progress(&self) {
        // EAGAIN: another call has taken it.
        let _ = self.progress.read();
    }

    pub(super) fn has_room(&self, stream: Stream) -> bool {
        self.queue(stream).lock().bytes < ROOM
    }

    /// Whether all that was queued is written.
    pub(super) fn is_idle(&self) -> bool {
        self.queues.iter().all(|queue| queue.lock().bytes == 0)
    }

    /// Queues whole lines; dropped when the stream is broken.
    pub(super) fn push(&self, stream: Stream, bytes: Vec<u8>) {
        self.queue(stream).push(stream, bytes);
    }

    pub(super) fn is_broken(&self, stream: Stream) -> bool {
        self.queue(stream).lock().broken[stream.index()].is_some()
    }

    /// What made the stream unusable.
    pub(super) fn take_error(&self, stream: Stream) -> Option<io::Error> {
        self.queue(stream).lock().broken[stream.index()].take()
    }
}

/// Whether both streams lead to one file: `2>&1`, or a terminal.
fn is_one_file() -> bool {
    match (fstat(io::stdout()), fstat(io::stderr())) {
        (Ok(out), Ok(err)) => (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino),
        _ => false,
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, stream: Stream, bytes: Vec<u8>) {
        let mut state = self.lock();
        if bytes.is_empty() || state.broken[stream.index()].is_some() {
            return;
        }
        state.bytes += bytes.len();
        state.chunks.push_back((stream, bytes));
        self.filled.notify_one();
    }

    /// The writer's life; it ends with the process.
    fn serve(&self) {
        loop {
            let state = self.lock();
            let mut state = (self.filled)
                .wait_while(state, |state| state.chunks.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            let Some((stream, bytes)) = state.chunks.pop_front() else {
                continue;
            };
            drop(state);
            let written = match stream {
                Stream::Stdout => stdio::write_all(io::stdout(), &bytes),
                Stream::Stderr => stdio::write_all(io::stderr(), &bytes),
            };
            self.note(stream, bytes.len(), written);
        }
    }

    fn note(&self, stream: Stream, count: usize, written: io::Result<()>) {
        let mut state = self.lock();
        state.bytes -= count;
        if let Err(error) = written {
            let mut dropped = 0;
            state.chunks.retain(|(other, bytes)| {
                let keep = *other != stream;
                dropped += if keep { 0 } else { bytes.len() };
                keep
            });
            state.bytes -= dropped;
            state.broken[stream.index()] = Some(error);
        }
        drop(state);
        // Fails only when so much progress was made that nothing can be added.
        let _ = self.progress.write(1);
    }
}
