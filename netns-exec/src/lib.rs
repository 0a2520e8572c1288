//! A namespace-safe thread executor.
//!
//! # The problem
//!
//! On Linux every *thread* can be in a network namespace of its own. A program
//! that calls setns(2), does its work and calls setns(2) again has, in between, a
//! thread in the wrong place: a scheduler may run something else on it, a thread
//! that is created now inherits it, a panic skips the way back, and the way back
//! can fail. What is left is a thread that fails with "network is unreachable" a
//! day later, in code that has nothing to do with it.
//!
//! This crate has no way back. Closures are shipped to dedicated OS threads, each
//! of which entered one namespace when it was born, serves no other, and ends
//! there. The thread that asks is never moved.
//!
//! # Example
//!
//! ```no_run
//! use std::net::TcpListener;
//! use netns_exec::{Executor, Netns};
//!
//! let executor = Executor::new()?;
//! let blue = Netns::open("blue")?; // as in `ip netns add blue`
//! let mut log = Vec::new();
//! let listener = executor.run(&blue, || {
//!     log.push("in blue"); // borrowed from the caller
//!     TcpListener::bind("127.0.0.1:80")
//! })?;
//! // The socket stays in blue, wherever it is used.
//! # let _ = listener;
//! # Ok::<(), netns_exec::Error>(())
//! ```
//!
//! Or for a whole function:
//!
//! ```no_run
//! use netns_exec::in_netns;
//!
//! #[in_netns("blue")]
//! fn listen(port: u16) -> std::io::Result<std::net::TcpListener> {
//!     std::net::TcpListener::bind(("127.0.0.1", port))
//! }
//! ```
//!
//! # The model
//!
//! * [`Netns`] is a handle to one namespace: by name, path, process, socket, or
//!   fresh. Its [`NetnsId`] is never reused. [`WeakNetns`] names one without
//!   keeping it alive.
//! * [`Executor`] starts pinned threads, called workers, when they are needed and
//!   ends them when they are not: [`run`](Executor::run) waits and may borrow,
//!   [`spawn`](Executor::spawn) returns a [`JoinHandle`] that can be joined,
//!   awaited on any runtime, or cancelled, [`scope`](Executor::scope) borrows in
//!   parallel, and [`Pinned`] keeps a namespace's workers at hand. What blocks has a
//!   form that can be awaited, on any runtime: [`spawn_async`](Executor::spawn_async),
//!   [`Netns::new_async`], [`shutdown_async`](Executor::shutdown_async) ...; no drop waits.
//!   A loop that never ends has a [`thread`](Executor::thread) of its own.
//! * [`Guard`] keeps jobs from moving their thread and from leaving threads behind.
//! * [`CommandExt`] starts child processes in a namespace.
//! * [`View`] shows workers and children the `/sys` and the `/etc` of their namespace.
//! * [`net`] makes sockets in a namespace, one at a time or ahead of use, and looks up
//!   host names there.
//! * [`ports`] leases port numbers that are held in several namespaces at once.
//! * [`rootless`] makes an ordinary user root of a user namespace, in a program and in
//!   tests.
//! * [`audit`] tells which thread is where, in this process or another one, and
//!   what keeps a namespace alive.
//!
//! All workers are children of one *home thread*, which stays in the namespace of
//! the process's main thread. So a worker inherits nothing from the first
//! caller, and the whole crate works from inside a job as well.
//!
//! # Privileges
//!
//! To enter a namespace a thread needs `CAP_SYS_ADMIN`, both in its own user
//! namespace and in the one that owns the network namespace (setns(2)). Root has
//! it. An ordinary user has it in a user namespace of their own ([`rootless::enter`],
//! user_namespaces(7)) for network namespaces made there. A
//! process without it can still use the namespace it is in. Making an executor
//! needs no privilege. [`Netns::check_enter`] tries without running anything, and
//! [`Netns::can_enter_others`] before there is a namespace to try.
//!
//! # Features
//!
//! On by default, and each a module that can be left out: `audit`, `macros` (the
//! attribute [`in_netns`]), `net`, `ports`, and `rootless`, which has `ports` with it.
//! With `default-features = false` there are namespaces, executors, children and views.
//!
//! Off by default:
//!
//! * `tokio`: futures are polled inside of the runtime that they are spawned in.
//! * `resolve`: `net::resolve`, host names by a namespace's own `resolv.conf`.
//! * `births-at-home`: `Guard::BirthsAtHome`, which has threads that jobs ask for created at
//!   home. Defines `pthread_create` in the executable.
//! * `metrics`: `Builder::metrics` reports what an executor does to the `metrics` facade.
//! * `serde`: ids, [`Stats`] and what [`audit`] finds can be serialized, and ids read back.
//!
//! # Limits
//!
//! * Linux 5.14 or later, x86-64 and aarch64. Newer kernels are used where they
//!   help; the documentation says where.
//! * A hand-over to a thread that sleeps takes a wake-up. For single calls, far
//!   apart, setns there and back on the spot is faster, and everything above
//!   applies to it.
//! * `/sys/class/net`, `/proc/self/net` and `/etc/resolv.conf` show the process's own
//!   namespace in a job, too, unless the executor gives its workers a [`View`].
//! * The guard stops accidents, not malice: a job shares its memory with the
//!   whole process.
//! * In a child made by fork(2) without exec the crate cannot be used if the
//!   parent has used it.
#![cfg(target_os = "linux")]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Features leave whole modules out, and sys/ serves them all.
#![cfg_attr(
    not(all(
        feature = "audit",
        feature = "net",
        feature = "ports",
        feature = "rootless"
    )),
    allow(dead_code, unused_imports)
)]
// The models leave the kernel out.
#![cfg_attr(loom, allow(dead_code))]
// Tests make threads, and move them, to see what comes of it.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

#[cfg(feature = "audit")]
pub mod audit;
mod bell;
mod error;
mod executor;
#[cfg(all(any(test, fuzzing), feature = "audit", feature = "ports"))]
#[doc(hidden)]
pub mod fuzz;
mod guard;
mod handoff;
mod home;
#[cfg(all(test, loom))]
mod models;
#[cfg(feature = "net")]
pub mod net;
mod netns;
mod payload;
#[cfg(feature = "ports")]
pub mod ports;
mod process;
mod refused;
#[cfg(feature = "rootless")]
pub mod rootless;
#[cfg(feature = "serde")]
mod serialize;
mod sync;
mod sys;
mod unwind;
mod view;

#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;

pub use error::{Error, Result};
pub use executor::{
    AbortHandle, AbortOnDrop, Builder, Event, Executor, JoinHandle, NetnsStats, Pinned, Scope,
    ScopedJoinHandle, Stats, Stop, ThreadHandle, TrySpawnError, blocking, run, spawn,
};
pub use guard::Guard;
pub use netns::{Netns, NetnsId, OwnedNetns, WeakNetns};
#[cfg(feature = "macros")]
pub use netns_exec_macros::in_netns;
pub use process::{CommandExt, ViewedCommand};
pub use view::View;
