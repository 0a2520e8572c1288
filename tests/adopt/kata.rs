//! kata-containers #13885: an agent's tasks set up the networks of sandboxes, on a runtime
//! of eight threads, each in the sandbox's namespace; and some are given up half way.
//!
//! A guard that enters the namespace, and leaves it when it is dropped, is held across
//! awaits there. Three shapes do without, and leave all as it was; the guard does not.

use std::collections::HashSet;
use std::fs::File;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::TryStreamExt;
use netns_exec::{Executor, Netns, NetnsId};
use netns_exec_tests::{Alone, alone, eventually, fds_of_this_process, fresh, here, tids};
use nix::sched::{CloneFlags, setns};
use rtnetlink::{Handle, LinkUnspec, LinkVeth};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

const NAMESPACES: usize = 4;
const TASKS: usize = 1000;

type Result<T = (), E = rtnetlink::Error> = std::result::Result<T, E>;

fn runtime() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder
        .worker_threads(8)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn name(task: usize) -> String {
    format!("s{task}")
}

/// A sandbox's link: made, given an address and set up.
async fn set_up(handle: &Handle, task: usize) -> Result {
    let link = LinkVeth::new(&name(task), &format!("p{task}")).build();
    handle.link().add(link).execute().await?;
    let index = index_of(handle, task).await?.expect("just made");
    let [high, low] = u16::try_from(task).expect("few tasks").to_be_bytes();
    let address = IpAddr::V4(Ipv4Addr::new(10, high, low, 1));
    handle.address().add(index, address, 24).execute().await?;
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await
}

/// The other way, from wherever the set-up has come to.
async fn tear_down(handle: &Handle, task: usize) -> Result {
    if let Some(index) = index_of(handle, task).await? {
        handle.link().del(index).execute().await?;
    }
    Ok(())
}

async fn index_of(handle: &Handle, task: usize) -> Result<Option<u32>> {
    let links = handle.link().get().match_name(name(task)).execute();
    match { links }.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        // No such device.
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENODEV => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Polls a future so many times, and then stays where it is and says so; notes polls, and
/// drops, that are not where they should be.
struct Steps<F> {
    future: Pin<Box<F>>,
    left: usize,
    stuck: Option<oneshot::Sender<()>>,
    place: NetnsId,
    wrong: Arc<AtomicUsize>,
}

impl<F> Steps<F> {
    fn check(&self) {
        if here() != self.place {
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<F: Future> Future for Steps<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.check();
        if self.left == 0 {
            if let Some(stuck) = self.stuck.take() {
                let _ = stuck.send(());
            }
            return Poll::Pending;
        }
        self.left -= 1;
        self.future.as_mut().poll(cx)
    }
}

impl<F> Drop for Steps<F> {
    fn drop(&mut self) {
        self.check();
    }
}

/// How far each task comes before it is given up, if it is: every second one.
fn steps_of(task: usize) -> usize {
    if task.is_multiple_of(2) {
        return usize::MAX;
    }
    // Differs from task to task, and is the same each time.
    (task.wrapping_mul(0x9E37_79B9) >> 7) % 9
}

/// What a shape is given.
struct Sandbox {
    executor: Executor,
    netns: Netns,
    task: usize,
    left: usize,
    wrong: Arc<AtomicUsize>,
}

impl Sandbox {
    /// The set-up and tear-down, to be polled in `place`, and what is told when it is to
    /// be given up.
    fn steps(
        &self,
        handle: Handle,
        place: NetnsId,
    ) -> (
        Steps<impl Future<Output = Result> + use<>>,
        oneshot::Receiver<()>,
    ) {
        let (stuck, told) = oneshot::channel();
        let steps = Steps {
            future: Box::pin(set_up_and_tear_down(handle, self.task)),
            left: self.left,
            stuck: Some(stuck),
            place,
            wrong: Arc::clone(&self.wrong),
        };
        (steps, told)
    }

    fn is_given_up(&self) -> bool {
        self.left != usize::MAX
    }
}

/// What is there before and after: other threads, where they are, descriptors, links.
struct Before {
    threads: HashSet<i32>,
    fds: usize,
}

impl Before {
    fn new() -> Before {
        Before {
            threads: tids(),
            fds: fds_of_this_process(),
        }
    }

    /// With the executor's workers gone.
    fn assert_unchanged(&self, executor: Executor, namespaces: &[Netns]) {
        for netns in namespaces {
            let links = executor.run(netns, || {
                std::fs::read_to_string("/proc/thread-self/net/dev")
            });
            let links = links.unwrap().unwrap();
            assert_eq!(links.lines().count(), 3, "only lo is there: {links}");
        }
        let audit = executor.audit().unwrap();
        assert_eq!(audit.strays().count(), 0, "{audit:?}");
        executor.shutdown(None).unwrap();
        let home = Netns::home().unwrap().id();
        let displaced = displaced(home);
        assert!(displaced.is_empty(), "not at home: {displaced:?}");
        eventually("threads are as before", || tids().is_subset(&self.threads));
        eventually("descriptors are as before", || {
            fds_of_this_process() == self.fds
        });
    }
}

/// Threads of this process that are not in `home`.
fn displaced(home: NetnsId) -> Vec<i32> {
    let is_away = |tid: &i32| {
        let netns = Netns::from_path(format!("/proc/self/task/{tid}/ns/net"));
        netns.is_ok_and(|netns| netns.id() != home)
    };
    tids().into_iter().filter(is_away).collect()
}

/// A set-up, and at once its end; first of all, of what an earlier attempt has left.
async fn set_up_and_tear_down(handle: Handle, task: usize) -> Result {
    tear_down(&handle, task).await?;
    set_up(&handle, task).await?;
    tear_down(&handle, task).await
}

/// Has every task of a shape set up and tear down, all at once, and half of them give up;
/// then those once more, to the end.
fn all_at_once<F>(runtime: &Runtime, shape: impl Fn(usize, usize) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    runtime.block_on(async {
        let tasks = (0..TASKS).map(|task| tokio::spawn(shape(task, steps_of(task))));
        join(tasks.collect()).await;
        let rest = (0..TASKS).filter(|task| steps_of(*task) != usize::MAX);
        join(
            rest.map(|task| tokio::spawn(shape(task, usize::MAX)))
                .collect(),
        )
        .await;
    });
}

async fn join(tasks: Vec<tokio::task::JoinHandle<()>>) {
    for task in tasks {
        task.await.expect("a task does not panic");
    }
}

fn assert_leaves_all_as_it_was<F>(shape: impl Fn(Sandbox) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = runtime();
    let namespaces: Vec<_> = (0..NAMESPACES).map(|_| fresh()).collect();
    Executor::new().unwrap().shutdown(None).unwrap();
    // The runtime's threads are all there.
    runtime.block_on(async { tokio::spawn(async {}).await.unwrap() });
    let before = Before::new();
    let executor = Executor::builder().queue_depth(TASKS).build().unwrap();
    let wrong = Arc::new(AtomicUsize::new(0));
    all_at_once(&runtime, |task, left| {
        shape(Sandbox {
            executor: executor.clone(),
            netns: namespaces[task % NAMESPACES].clone(),
            task,
            left,
            wrong: Arc::clone(&wrong),
        })
    });
    assert_eq!(wrong.load(Ordering::Relaxed), 0, "steps in the wrong place");
    before.assert_unchanged(executor, &namespaces);
}

#[test]
fn futures_on_the_pinned_thread_leave_all_as_it_was() {
    alone!(Alone::AsIs);
    assert_leaves_all_as_it_was(|sandbox| async move {
        let (executor, netns) = (sandbox.executor.clone(), sandbox.netns.clone());
        let (tell, told) = oneshot::channel();
        let mut job = executor.spawn_future(&netns, async move {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            // Driven by the runtime's threads; its socket is the namespace's.
            tokio::spawn(connection);
            let (steps, stuck) = sandbox.steps(handle, sandbox.netns.id());
            let _ = tell.send(stuck);
            steps.await
        });
        let stuck = told.await.expect("polled once");
        tokio::select! {
            ended = &mut job => ended.unwrap().unwrap(),
            Ok(()) = stuck => {
                assert!(job.cancel());
                assert!(job.await.unwrap_err().is_cancelled());
            }
        }
    });
}

#[test]
fn jobs_with_a_runtime_of_their_own_leave_all_as_it_was() {
    alone!(Alone::AsIs);
    assert_leaves_all_as_it_was(|sandbox| async move {
        let (executor, netns) = (sandbox.executor.clone(), sandbox.netns.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let job = executor.spawn(&netns, move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().unwrap();
                tokio::spawn(connection);
                let (steps, stuck) = sandbox.steps(handle, sandbox.netns.id());
                let _ = tell.send(stuck);
                // Dropping the handle would not stop a job that has started.
                tokio::select! {
                    ended = steps => Some(ended),
                    _ = stopped => None,
                }
            })
        });
        let mut job = job.unwrap();
        let stuck = told.await.expect("started once");
        tokio::select! {
            ended = &mut job => ended.unwrap().expect("not stopped").unwrap(),
            Ok(()) = stuck => {
                drop(stop);
                assert!(job.await.unwrap().is_none());
            }
        }
    });
}

#[test]
fn sockets_made_inside_and_driven_outside_leave_all_as_it_was() {
    alone!(Alone::AsIs);
    assert_leaves_all_as_it_was(|sandbox| async move {
        let runtime = tokio::runtime::Handle::current();
        let made = sandbox.executor.spawn(&sandbox.netns, move || {
            let _entered = runtime.enter();
            rtnetlink::new_connection()
        });
        let (connection, handle, _) = made.unwrap().await.unwrap().unwrap();
        tokio::spawn(connection);
        // From here on on the runtime's own threads, at home.
        let (steps, stuck) = sandbox.steps(handle, Netns::home().unwrap().id());
        tokio::select! {
            ended = steps => ended.unwrap(),
            Ok(()) = stuck => assert!(sandbox.is_given_up()),
        }
    });
}

/// What is held across awaits today.
struct Guard {
    home: File,
}

impl Guard {
    fn enter(netns: &Netns) -> Guard {
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
        Guard { home }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        setns(&self.home, CloneFlags::CLONE_NEWNET).unwrap();
    }
}

/// Sixteen tasks on eight threads, each with a guard: how many steps were in the wrong
/// place.
fn hold_guards_across_awaits(runtime: &Runtime, executor: &Executor) -> usize {
    let namespaces: Vec<_> = (0..NAMESPACES).map(|_| fresh()).collect();
    let wrong = Arc::new(AtomicUsize::new(0));
    let entered = Arc::new(tokio::sync::Barrier::new(16));
    let tasks = (0..16).map(|task| {
        let sandbox = Sandbox {
            executor: executor.clone(),
            netns: namespaces[task % NAMESPACES].clone(),
            task,
            left: steps_of(task),
            wrong: Arc::clone(&wrong),
        };
        let entered = Arc::clone(&entered);
        runtime.spawn(async move {
            let _guard = Guard::enter(&sandbox.netns);
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            let (steps, stuck) = sandbox.steps(handle, sandbox.netns.id());
            // Twice as many as there are threads: some have entered on the same one.
            entered.wait().await;
            tokio::select! {
                ended = steps => drop(ended),
                Ok(()) = stuck => assert!(sandbox.is_given_up()),
            }
        })
    });
    runtime.block_on(join(tasks.collect()));
    wrong.load(Ordering::Relaxed)
}

#[test]
fn guard_held_across_an_await_works_in_the_wrong_place_and_leaves_threads_there() {
    alone!(Alone::AsIs);
    let (runtime, executor) = (runtime(), Executor::new().unwrap());
    let home = Netns::home().unwrap().id();
    eventually("a thread is left in the wrong place", || {
        // Each time.
        assert!(hold_guards_across_awaits(&runtime, &executor) > 0);
        // Most times: each guard goes back to where it came from.
        !displaced(home).is_empty()
    });
}
