//! Threads beside the pool, for what never ends: see [`Executor::thread`].

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::birth::{Notice, spawn_as};
use super::current;
use super::event::Event;
use super::handle::JoinHandle;
use super::lost;
use super::owner::Executor;
use super::registry::Registry;
use super::stop::StopFlag;
use super::wakers::Ticket;
use super::worker;
use crate::error::{Error, Result};
use crate::handoff::job::JobRef;
use crate::handoff::outcome::{Counters, Door};
use crate::handoff::task;
use crate::home::{Home, aside};
use crate::netns::{Netns, watch};
use crate::sync::{Mutex, thread};
use crate::sys;

impl Executor {
    /// Starts a thread of its own in `netns`, beside the pool, and calls `f` there: for a
    /// loop that runs as long as the program does, such as a server's or the driver of a
    /// runtime.
    ///
    /// As a job such a loop would take a worker for good, and every other call for the
    /// namespace would queue behind it. The thread is as a worker in all else: born at home,
    /// under the executor's [`Guard`](crate::Guard), known to [`audit`](crate::audit), with the
    /// builder's view and [hooks](crate::Builder::on_worker_start). It counts in
    /// [`Stats::threads`](crate::Stats::threads), and not for
    /// [`max_workers`](crate::Builder::max_workers); it may use the executor as any thread
    /// may, its own namespace included, which a worker then serves.
    ///
    /// # How it ends
    ///
    /// When `f` returns. `f` is given a [`Stop`], which says when it should:
    ///
    /// * its [`ThreadHandle::stop`] was called;
    /// * the executor is shut down, or its last handle was dropped;
    /// * the namespace is [retired](Executor::retire), or has lost its last name,
    ///   be it before the thread began.
    ///
    /// No thread is ended by force. [`shutdown`](Executor::shutdown) and `retire` wait for
    /// it as for a job, so an `f` that does not look at its `Stop` keeps them for ever, and
    /// the namespace alive. Dropping the handle lets the thread run.
    ///
    /// # Blocking
    ///
    /// Blocks while the thread starts. [`thread_async`](Executor::thread_async) does not.
    ///
    /// # Errors
    ///
    /// As [`run`](Executor::run), as far as they come before `f` is called.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// use std::net::UdpSocket;
    /// use std::time::Duration;
    ///
    /// let echo = executor.thread(&blue, |stop| {
    ///     let socket = UdpSocket::bind("127.0.0.1:7")?;
    ///     socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    ///     let mut buffer = [0; 1500];
    ///     while !stop.is_set() {
    ///         if let Ok((len, from)) = socket.recv_from(&mut buffer) {
    ///             socket.send_to(&buffer[..len], from)?;
    ///         }
    ///     }
    ///     Ok::<_, std::io::Error>(())
    /// })?;
    /// echo.stop();
    /// echo.join()??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn thread<F, T>(&self, netns: &Netns, f: F) -> Result<ThreadHandle<T>>
    where
        F: FnOnce(&Stop) -> T + Send + 'static,
        T: Send + 'static,
    {
        current::check_may_wait()?;
        let registry = self.registry();
        let flag = StopFlag::new().map_err(|cause| Error::start_thread(netns.label(), cause))?;
        let stop = Stop {
            flag: Arc::new(flag),
        };
        let seen = stop.clone();
        let job = move || f(&seen);
        let started = task::spawn(job, |job| start(registry, netns, &stop.flag, job));
        match started {
            Ok(task) => Ok(ThreadHandle {
                job: JoinHandle::new(task),
                stop,
            }),
            Err((error, _f)) => Err(error),
        }
    }

    /// As [`thread`](Executor::thread), to be awaited.
    ///
    /// Nothing happens before it is polled. When it is dropped half way, the thread is told
    /// to stop as soon as it is there.
    ///
    /// # Errors
    ///
    /// As [`thread`](Executor::thread).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # async fn f(executor: &Executor, container: &Netns) -> netns_exec::Result<()> {
    /// let sniffer = executor.thread_async(container, |stop| stop.wait()).await?;
    /// sniffer.stop();
    /// sniffer.await
    /// # }
    /// ```
    pub fn thread_async<F, T>(
        &self,
        netns: &Netns,
        f: F,
    ) -> impl Future<Output = Result<ThreadHandle<T>>> + Send + use<F, T>
    where
        F: FnOnce(&Stop) -> T + Send + 'static,
        T: Send + 'static,
    {
        let (executor, netns) = (self.clone(), netns.clone());
        async move {
            let failed = {
                let netns = netns.clone();
                move |cause| Error::start_thread(netns.label(), cause)
            };
            let start = move || executor.thread(&netns, f).map(|it| Untaken(Some(it)));
            // A start hook may take its time.
            let errand = aside::errand_apart("netns-aside", start).map_err(&failed)?;
            let mut thread = errand.await.map_err(&failed)??;
            Ok(thread.0.take().expect("taken here alone"))
        }
    }
}

/// A thread whose handle no caller has yet: dropped like this, it is told to stop.
struct Untaken<T>(Option<ThreadHandle<T>>);

impl<T> Drop for Untaken<T> {
    fn drop(&mut self) {
        if let Some(thread) = &self.0 {
            thread.stop();
        }
    }
}

/// Starts the thread and waits until it is in its namespace; gives the job back when it
/// cannot be.
fn start(
    registry: &Arc<Registry>,
    netns: &Netns,
    stop: &Arc<StopFlag>,
    job: JobRef,
) -> Result<(), (JobRef, Error)> {
    let number = registry.pool().next_worker_number();
    let serial = match registry.add_apart(number, netns.id(), stop) {
        Ok(serial) => serial,
        Err(error) => return Err((job, error)),
    };
    let job = Arc::new(Mutex::new(Some(job)));
    let notice = Arc::new(Notice::default());
    let birth = Apart {
        number,
        serial,
        netns: netns.kept(),
        registry: Arc::clone(registry),
        stop: Arc::clone(stop),
        job: Arc::clone(&job),
        notice: Arc::clone(&notice),
    };
    match Home::get() {
        Ok(home) => home.post(Box::new(move || birth.begin())),
        Err(error) => birth.fail(error),
    }
    current::blocking(|| notice.wait()).map_err(|error| {
        let job = job.lock().take();
        (job.expect("taken by a thread that has started"), error)
    })
}

/// A thread that is being born, and then what it is.
struct Apart {
    number: u64,
    serial: u64,
    netns: Netns,
    registry: Arc<Registry>,
    stop: Arc<StopFlag>,
    /// Taken by the thread once it is in its namespace.
    job: Arc<Mutex<Option<JobRef>>>,
    notice: Arc<Notice>,
}

impl Apart {
    /// Creates the thread. Runs on the home thread.
    #[expect(
        clippy::disallowed_methods,
        reason = "as every worker it is made on the home thread"
    )]
    fn begin(self) {
        let registry = Arc::clone(&self.registry);
        let pool = Arc::clone(registry.pool());
        let (number, netns, serial) = (self.number, self.netns.id(), self.serial);
        let builder = thread::Builder::new()
            .name(pool.config.thread_name(self.netns.label(), number))
            .stack_size(pool.config.stack_size);
        // Taken by the thread, or left here when there is none.
        let this = Arc::new(Mutex::new(Some(self)));
        let theirs = Arc::clone(&this);
        let spawned = spawn_as(&pool, number, netns, serial, move || {
            builder.spawn(move || {
                let this = theirs.lock().take().expect("taken by this thread alone");
                let registry = Arc::clone(&this.registry);
                this.main();
                registry.remove_apart(number);
                registry.pool().threads.reap();
                registry.pool().threads.ended(number);
            })
        });
        if let Err(cause) = spawned {
            let this = this.lock().take().expect("left where there is no thread");
            let error = Error::start_thread(this.netns.label(), cause);
            this.fail(error);
        }
    }

    fn fail(self, error: Error) {
        self.registry.remove_apart(self.number);
        self.notice.tell(Err(error));
    }

    /// What the thread runs.
    fn main(self) {
        let guard = match worker::enter_or_say_why(&self.netns, &self.registry) {
            Ok(guard) => guard,
            Err(error) => return self.fail(error),
        };
        current::begin_apart(&self.registry);
        let counters = Arc::new(Counters::default());
        let _watched = lost::watch_apart(&guard, &self.registry, self.number, &counters);
        let mut door = Door::new(guard, Arc::clone(&counters));
        let watched = self.watch_for_deletion(&mut door);
        let job = self
            .job
            .lock()
            .take()
            .expect("there until it is taken here");
        let Apart {
            netns,
            registry,
            notice,
            ..
        } = self;
        notice.tell(Ok(()));
        let stops_in = registry.hooks.netns_to_stop_in(&netns);
        let (id, label) = (netns.id(), Box::<str>::from(netns.label()));
        // Its thread keeps the namespace.
        drop(netns);
        let began = Instant::now();
        job.execute(&mut door);
        drop(watched);
        let ended = Event::JobEnded {
            netns: id,
            label: &label,
            queued: Duration::ZERO,
            ran: began.elapsed(),
            panicked: counters.panicked() > 0,
            refused: door.take_refusals(),
        };
        registry.hooks.tell(&ended, &mut door);
        if let Some(netns) = stops_in {
            registry.hooks.run_stop(&netns, &mut door);
        }
        registry
            .pool()
            .add_totals(counters.done(), counters.panicked());
    }

    /// Has the thread told to stop when its namespace loses its last name.
    fn watch_for_deletion(&self, door: &mut Door) -> Option<watch::Subscription> {
        let stop = Arc::clone(&self.stop);
        let id = self.netns.id();
        watch::on_lost_name(&self.netns, self.netns.had_name(), move || stop.set())
            .map_err(|error| {
                door.report(|| {
                    tracing::warn!(
                        netns_id = %id,
                        %error,
                        "deletion is not watched: a thread beside the pool is not told of it"
                    );
                });
            })
            .ok()
    }
}

/// Says when a thread beside the pool should end, see [`Executor::thread`].
///
/// In whichever way its loop can be told: by a look, a wait, a descriptor that becomes
/// readable, a future. Clones say the same.
///
/// # Examples
///
/// ```
/// use netns_exec::{Executor, Netns, Stop};
///
/// fn serve(stop: &Stop) -> u32 {
///     let mut rounds = 0;
///     while !stop.is_set() {
///         rounds += 1; // what the loop is there for
///     }
///     rounds
/// }
/// let executor = Executor::new()?;
/// let server = executor.thread(&Netns::current()?, serve)?;
/// server.stop();
/// println!("{} rounds", server.join()?);
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[derive(Clone)]
pub struct Stop {
    flag: Arc<StopFlag>,
}

impl Stop {
    /// Tells whether the thread should end.
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns};
    ///
    /// let executor = Executor::new()?;
    /// let server = executor.thread(&Netns::current()?, |stop| {
    ///     stop.wait();
    ///     stop.is_set()
    /// })?;
    /// server.stop();
    /// assert!(server.join()?);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_set(&self) -> bool {
        self.flag.is_set()
    }

    /// Waits until the thread should end.
    ///
    /// # Blocking
    ///
    /// Until then. In a job another worker serves meanwhile, see
    /// [`blocking`](crate::blocking).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// // Keeps a socket for as long as the namespace has a name.
    /// let keeps = executor.thread(&blue, |stop| {
    ///     let socket = std::net::UdpSocket::bind("127.0.0.1:0");
    ///     stop.wait();
    ///     drop(socket);
    /// })?;
    /// # drop(keeps);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn wait(&self) {
        current::blocking(|| self.flag.wait(None));
    }

    /// Waits until the thread should end, for at most `timeout`; tells whether it should.
    ///
    /// # Blocking
    ///
    /// As [`wait`](Stop::wait).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// use std::time::Duration;
    ///
    /// let counts = executor.thread(&blue, |stop| {
    ///     let mut seconds = 0;
    ///     while !stop.wait_timeout(Duration::from_secs(1)) {
    ///         seconds += 1;
    ///     }
    ///     seconds
    /// })?;
    /// # drop(counts);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        // A time that is out of range is one that never comes.
        let deadline = Instant::now().checked_add(timeout);
        current::blocking(|| self.flag.wait(deadline))
    }

    /// Returns a descriptor that becomes readable when the thread should end: for poll(2)
    /// beside the descriptors that it serves. It is not to be read from.
    ///
    /// # Errors
    ///
    /// The first call makes an eventfd(2), and fails with `EMFILE` or `ENFILE` without
    /// room for one.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// let polls = executor.thread(&blue, |stop| {
    ///     let stops = stop.readable()?;
    ///     // ... poll(2) on `stops` and on sockets ...
    ///     # let _ = stops;
    ///     Ok::<_, std::io::Error>(())
    /// })?;
    /// # drop(polls);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn readable(&self) -> io::Result<BorrowedFd<'_>> {
        self.flag.event()
    }

    /// Returns a future that is ready when the thread should end, on any runtime: for one
    /// that the thread drives.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # fn block_on(future: impl Future) {}
    /// # async fn serve() {}
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// let driver = executor.thread(&blue, |stop| {
    ///     // A current_thread runtime's, say: `select!` between the two.
    ///     block_on(async { (stop.stopped().await, serve().await) })
    /// })?;
    /// # drop(driver);
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + Unpin + 'static {
        Stopped {
            flag: Arc::clone(&self.flag),
            ticket: None,
        }
    }
}

struct Stopped {
    flag: Arc<StopFlag>,
    ticket: Option<Ticket>,
}

impl Future for Stopped {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.flag.is_set() {
            return Poll::Ready(());
        }
        let Stopped { flag, ticket } = &mut *self;
        let ticket = ticket
            .get_or_insert_with(|| Ticket::new().expect("the flag keeps the thread that wakes"));
        flag.register(ticket, cx.waker());
        match flag.is_set() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Some(ticket) = &self.ticket
            && !sys::fork::is_copy()
        {
            self.flag.forget(ticket);
        }
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stop").field("set", &self.is_set()).finish()
    }
}

/// A handle to a thread beside the pool: see [`Executor::thread`].
///
/// It is a future of what the thread's closure returns. Dropping it lets the thread run.
///
/// # Examples
///
/// ```no_run
/// use netns_exec::{Executor, Netns, ThreadHandle};
///
/// /// Has a thread of its own, and takes it along when it goes.
/// struct Agent(Option<ThreadHandle<()>>);
///
/// impl Drop for Agent {
///     fn drop(&mut self) {
///         let thread = self.0.take().expect("only taken here");
///         thread.stop();
///         thread.join().expect("the loop does not panic");
///     }
/// }
/// let blue = Netns::open("blue")?;
/// let agent = Agent(Some(Executor::global().thread(&blue, |stop| stop.wait())?));
/// # drop(agent);
/// # Ok::<(), netns_exec::Error>(())
/// ```
#[must_use = "the thread's panic is seen by the thread that joins it; drop the handle to say that none does"]
pub struct ThreadHandle<T> {
    job: JoinHandle<T>,
    stop: Stop,
}

impl<T> ThreadHandle<T> {
    /// Says that the thread should end, and does not wait for it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use netns_exec::ThreadHandle;
    /// # fn f(servers: Vec<ThreadHandle<()>>) -> netns_exec::Result<()> {
    /// // All of them first, so that they end beside each other.
    /// servers.iter().for_each(ThreadHandle::stop);
    /// for server in servers {
    ///     server.join()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn stop(&self) {
        self.stop.flag.set();
    }

    /// Returns what the thread's closure was given.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// let handle = executor.thread(&blue, |stop| stop.wait())?;
    /// assert!(!handle.stop_token().is_set());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn stop_token(&self) -> Stop {
        self.stop.clone()
    }

    /// Waits for the thread's closure to end, and returns its result. It does not say that
    /// it should: [`stop`](ThreadHandle::stop) does.
    ///
    /// # Blocking
    ///
    /// Until the closure has ended.
    ///
    /// # Errors
    ///
    /// As [`JoinHandle::join`].
    ///
    /// # Examples
    ///
    /// ```
    /// use netns_exec::{Executor, Netns};
    ///
    /// let executor = Executor::new()?;
    /// let fails = executor.thread(&Netns::current()?, |_stop| -> () { panic!("no socket") })?;
    /// assert!(fails.join().unwrap_err().is_panic());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn join(self) -> Result<T> {
        self.job.join()
    }

    /// Tells whether the thread's closure has ended.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netns_exec::{Executor, Netns};
    /// # let executor = Executor::new()?;
    /// # let blue = Netns::open("blue")?;
    /// let handle = executor.thread(&blue, |stop| stop.wait())?;
    /// assert!(!handle.is_finished());
    /// # Ok::<(), netns_exec::Error>(())
    /// ```
    pub fn is_finished(&self) -> bool {
        self.job.is_finished()
    }
}

impl<T> Future for ThreadHandle<T> {
    type Output = Result<T>;

    /// # Panics
    ///
    /// When polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        Pin::new(&mut self.job).poll(cx)
    }
}

impl<T> fmt::Debug for ThreadHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadHandle")
            .field("finished", &self.is_finished())
            .field("stop", &self.stop)
            .finish()
    }
}
