//! The thread that answers what sealed workers may not do, and counts it.
//!
//! A refusal by errno leaves no trace, and a panic's text is no evidence: jobs fail
//! with `EPERM` for many reasons. So the seal's filter hands the calls that it
//! refuses to a listener (`SECCOMP_RET_USER_NOTIF`, seccomp_unotify(2)), and one
//! thread listens for all workers. It adds to the worker's own count, and then lets
//! the call fail. Only refused calls take that way; no other gets any slower.
//!
//! - A child inherits the filter, and its calls come here as well. They are known by
//!   the caller's number, and go on as if there were no filter.
//! - The thread has a descriptor table of its own. A child made by fork(2) thus has
//!   no copy of a listener: when this process ends, so does the listener, and what
//!   the child calls then fails (`ENOSYS`) and does not wait for ever. Nor does a
//!   worker cost the process a descriptor.
//! - It runs no user code and waits for nothing but the listeners, so that a refused
//!   call waits for a context switch and no longer.
//! - It starts at home with the first sealed worker and ends with the last.
//!
//! A listener cannot always be had: the kernel allows a thread one, which a container
//! runtime may have taken, and handing it over takes a free descriptor for a moment.
//! Then the filter refuses by errno, and nothing is counted or claimed.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};

use libc::sock_filter;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit};
use parking_lot::Mutex;

use crate::error::Refused;
use crate::home::{Home, roster};
use crate::sys;
use crate::sys::seccomp::{Answer, RefusedCall};

/// The ear of those workers that are sealed now.
static EAR: Mutex<Weak<Ear>> = Mutex::new(Weak::new());

/// Where the thread is told of workers. It ends when this is dropped.
struct Ear {
    socket: OwnedFd,
    shared: Arc<Shared>,
}

/// What both sides see.
#[derive(Default)]
struct Shared {
    /// The workers whose listeners are on their way, by the number that is sent along.
    /// Locked for a moment only.
    arriving: Mutex<HashMap<u64, Arc<Count>>>,
    /// Listeners that are open, or on their way.
    listeners: AtomicUsize,
}

/// What a worker was refused since it was born. Written by the ear's thread before
/// the call in question returns to the worker, so that the worker finds it counted.
#[derive(Debug)]
struct Count {
    worker: u32,
    threads: AtomicU32,
    moves: AtomicU32,
}

/// A worker's side: it is listened to until this is dropped.
pub(super) struct Listened {
    count: Arc<Count>,
    _ear: Arc<Ear>,
}

impl Listened {
    pub(super) fn refused(&self) -> Refused {
        Refused {
            threads: self.count.threads.load(Ordering::Relaxed),
            moves: self.count.moves.load(Ordering::Relaxed),
        }
    }
}

/// What the message is that ends the thread. Closing the socket alone does not do it
/// where a child holds a copy.
const END: u64 = 0;

/// Puts `program`, which hands over what it refuses, around the calling thread, a
/// worker. `None` when it cannot be listened to; the filter that refuses by itself must
/// then be installed, and prevails over this one should that be there.
pub(super) fn install(program: &[sock_filter]) -> Option<Listened> {
    let ear = Ear::get().ok()?;
    if !ear.has_room() {
        return None;
    }
    let listener = sys::seccomp::install_with_listener(program).ok()?;
    ear.listen_to(listener).ok()
}

impl Ear {
    fn get() -> io::Result<Arc<Ear>> {
        if let Some(ear) = EAR.lock().upgrade() {
            return Ok(ear);
        }
        // Not under the lock: this waits. Another worker may be as far.
        let new = Arc::new(Ear::start()?);
        let mut ear = EAR.lock();
        Ok(match ear.upgrade() {
            Some(other) => other,
            None => {
                *ear = Arc::downgrade(&new);
                new
            }
        })
    }

    fn start() -> io::Result<Ear> {
        const STACK: usize = 128 * 1024;

        let home = Home::get().map_err(io::Error::other)?;
        // Made at home: a socket keeps the namespace that it was made in, and this
        // thread is in that of the first worker.
        let (socket, theirs) = home.call(sys::scm::pair)?;
        let shared = Arc::new(Shared::default());
        let ear = Ear {
            socket,
            shared: Arc::clone(&shared),
        };
        let number = theirs.as_raw_fd();
        let (ready, is_ready) = sync_channel(1);
        home.spawn_thread("netns-guard".to_owned(), Some(STACK), move || {
            let _registration = roster::sign_in_visitor();
            let listening = sys::thread::keep_one_descriptor(number)
                .and_then(|socket| Listening::new(socket, shared));
            match listening {
                Ok(mut listening) => {
                    let _ = ready.send(Ok(()));
                    listening.serve();
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        // From then on the thread has a socket of its own.
        (is_ready.recv()).map_err(|_| io::Error::from(Errno::ESRCH))??;
        drop(theirs);
        Ok(ear)
    }

    /// Whether the thread's table will take another listener.
    fn has_room(&self) -> bool {
        /// For the socket, the epoll, and workers that ask at the same time.
        const RESERVE: u64 = 32;
        let listeners = self.shared.listeners.load(Ordering::Relaxed) as u64;
        getrlimit(Resource::RLIMIT_NOFILE).is_ok_and(|(soft, _)| listeners + RESERVE < soft)
    }

    fn listen_to(self: Arc<Ear>, listener: OwnedFd) -> io::Result<Listened> {
        static NEXT: AtomicU64 = AtomicU64::new(END + 1);

        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let count = Arc::new(Count {
            worker: sys::thread::tid(),
            threads: AtomicU32::new(0),
            moves: AtomicU32::new(0),
        });
        let Shared {
            arriving,
            listeners,
        } = &*self.shared;
        listeners.fetch_add(1, Ordering::Relaxed);
        arriving.lock().insert(number, Arc::clone(&count));
        let message = number.to_ne_bytes();
        let sent = sys::scm::send(
            self.socket.as_fd(),
            &message,
            [listener.as_fd()].into_iter(),
        );
        if let Err(error) = sent {
            arriving.lock().remove(&number);
            listeners.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(Listened { count, _ear: self })
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        // The thread is the parent's.
        if sys::fork::is_copy() {
            return;
        }
        let nothing = std::iter::empty();
        let _ = sys::scm::send(self.socket.as_fd(), &END.to_ne_bytes(), nothing);
    }
}

/// What the thread has.
struct Listening {
    epoll: Epoll,
    socket: OwnedFd,
    shared: Arc<Shared>,
    workers: HashMap<u64, Worker>,
}

struct Worker {
    listener: OwnedFd,
    count: Arc<Count>,
}

impl Listening {
    fn new(socket: OwnedFd, shared: Arc<Shared>) -> io::Result<Listening> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, END))?;
        Ok(Listening {
            epoll,
            socket,
            shared,
            workers: HashMap::new(),
        })
    }

    fn serve(&mut self) {
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let Ok(count) = self.epoll.wait(&mut events, EpollTimeout::NONE) else {
                // EINTR: nothing else can be wrong with it.
                continue;
            };
            for event in &events[..count] {
                match event.data() {
                    END if !self.admit() => return,
                    END => {}
                    number => self.attend(number, event.events()),
                }
            }
        }
    }

    /// Takes a worker in; `false` when there will be none any more.
    fn admit(&mut self) -> bool {
        let (mut message, mut listener) = ([0; size_of::<u64>()], Vec::new());
        match sys::scm::receive(self.socket.as_fd(), &mut message, &mut listener) {
            Ok(received) if received.len == message.len() => {}
            Ok(_) => return false,
            Err(_) => return true,
        }
        let number = u64::from_ne_bytes(message);
        if number == END {
            return false;
        }
        let count = self.shared.arriving.lock().remove(&number);
        // A listener that did not get here is closed: what the worker is refused
        // then fails with ENOSYS.
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        match (count, listener.pop()) {
            (Some(count), Some(listener)) if self.epoll.add(&listener, event).is_ok() => {
                self.workers.insert(number, Worker { listener, count });
            }
            _ => self.lose_listener(),
        }
        true
    }

    fn attend(&mut self, number: u64, what: EpollFlags) {
        let Some(worker) = self.workers.get(&number) else {
            return;
        };
        if what.contains(EpollFlags::EPOLLIN) {
            worker.answer();
        } else if what.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            // The worker has ended, and so have its children.
            self.workers.remove(&number);
            self.lose_listener();
        }
    }

    fn lose_listener(&self) {
        self.shared.listeners.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    fn answer(&self) {
        // One that is given up meanwhile (ENOENT) comes again if it is to.
        let Ok(call) = sys::seccomp::hear(self.listener.as_fd()) else {
            return;
        };
        let answer = |answer| sys::seccomp::answer(self.listener.as_fd(), call, answer);
        if call.tid != self.count.worker {
            let _ = answer(Answer::GoOn);
            return;
        }
        // Before the answer, after which the worker looks.
        let count = self.count.of(call);
        count.fetch_add(1, Ordering::Relaxed);
        if answer(Answer::Fail(Errno::EPERM)).is_err() {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Count {
    /// The count that a refused call belongs to.
    fn of(&self, call: RefusedCall) -> &AtomicU32 {
        if call.is(libc::SYS_clone) {
            &self.threads
        } else {
            &self.moves
        }
    }
}
