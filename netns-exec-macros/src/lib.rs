//! The `#[in_netns]` attribute of `netns-exec`.
//!
//! `netns-exec` re-exports it; depend on that crate alone. `parse` reads what
//! was written and refuses with a reason, `expand` writes the call into
//! `netns_exec::__private`.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as TokenStream2;

mod bindings;
mod expand;
mod owned;
mod parse;

use parse::{Args, Function};

/// Runs a function's body in a network namespace.
///
/// The function is called as before and returns what it returned before. Its
/// body runs on a worker thread of the namespace while the caller waits, so
/// the caller's thread never leaves its own namespace. The body of an `async fn`
/// is polled there, every time, while the caller awaits it.
///
/// # Which namespace
///
/// | written | the body runs in |
/// |---|---|
/// | `#[in_netns("blue")]` | the one that `ip netns list` calls `blue` |
/// | `#[in_netns(name = EXPR)]` | the same, the name being any `impl AsRef<str>` |
/// | `#[in_netns(path = EXPR)]` | the one whose file this is, any `impl AsRef<Path>` |
/// | `#[in_netns(pid = EXPR)]` | that of the process with this number, a `u32` |
/// | `#[in_netns(ns = EXPR)]` | a `Netns`, or what dereferences to one: `&Netns`, `Arc<Netns>` |
/// | `#[in_netns(fresh)]` | a new one with the loopback up, gone afterwards |
/// | `#[in_netns(fresh, link = peer)]` | the same, joined to another new one: the body has it as `peer`, a `&netns_exec_lab::Peer` |
///
/// Each takes an `executor = EXPR` beside it, an `Executor` or what
/// dereferences to one; otherwise it is `Executor::global()`.
///
/// The expressions are evaluated at each call, before the body, on the
/// caller's thread. They may use the function's arguments, `self` and `?`, and
/// only borrow what they name.
///
/// # Examples
///
/// ```no_run
/// use std::io;
/// use std::net::TcpListener;
///
/// use netns_exec::in_netns;
///
/// #[in_netns("blue")]
/// fn listen(port: u16) -> io::Result<TcpListener> {
///     TcpListener::bind(("127.0.0.1", port))
/// }
///
/// // A socket stays in the namespace in which it was made.
/// let listener = listen(80)?;
/// # Ok::<(), io::Error>(())
/// ```
///
/// In a method, with the handle that the object holds:
///
/// ```no_run
/// use std::net::UdpSocket;
///
/// use netns_exec::{Executor, Netns, in_netns};
///
/// struct Router {
///     ns: Netns,
///     executor: Executor,
///     sockets: Vec<UdpSocket>,
/// }
///
/// impl Router {
///     #[in_netns(ns = self.ns, executor = self.executor)]
///     fn open(&mut self, ports: &[u16]) -> std::io::Result<()> {
///         for &port in ports {
///             self.sockets.push(UdpSocket::bind(("0.0.0.0", port))?);
///         }
///         Ok(())
///     }
/// }
/// ```
///
/// A test with a network of its own, in which no port is ever taken:
///
/// ```no_run
/// use std::net::TcpListener;
///
/// use netns_exec::in_netns;
///
/// #[test]
/// #[in_netns(fresh)]
/// fn serves_on_port_80() {
///     let listener = TcpListener::bind("127.0.0.1:80").unwrap();
///     // ...
/// }
/// ```
///
/// And with an asynchronous one, where the crate's feature `tokio` is on:
///
/// ```no_run
/// use netns_exec::in_netns;
///
/// # async fn serve(port: u16) -> std::io::Result<()> { Ok(()) }
/// #[in_netns(fresh)]
/// #[tokio::test]
/// async fn serves_on_port_80() -> std::io::Result<()> {
///     serve(80).await
/// }
/// ```
///
/// It stands above or below `#[test]` and `#[should_panic]`. Put it above `#[tokio::test]`:
/// below, it gets a plain function that builds a runtime, and runs that in a job, where
/// a runtime of several threads is refused them. Put it above
/// `#[rstest]` where its expression uses the test's arguments: what is below
/// `#[rstest]` goes to generated functions that have none.
///
/// # Failures
///
/// When the namespace cannot be opened or entered, the body does not run.
///
/// - In a function that returns `Result<_, E>` with `E: From<netns_exec::Error>`
///   the failure is returned, as `?` would. What counts is the type and not how
///   it is spelled: `io::Result`, an alias of your own and
///   `Result<_, Box<dyn Error + Send + Sync>>` qualify.
/// - Otherwise the function panics with the error's text, also where the
///   return type is a type parameter, of which nothing is known.
///
/// A panic in the body reaches the caller with its payload.
///
/// # Privileges
///
/// Those of `Executor::run` and, for `fresh`, of `Netns::new`: `CAP_SYS_ADMIN`.
///
/// # What it expands to
///
/// ```text
/// fn open(&mut self, ports: &[u16]) -> std::io::Result<()> {
///     match self.executor.run(&self.ns, move || -> std::io::Result<()> { /* body */ }) {
///         Ok(value) => value,
///         Err(error) => /* return or panic */,
///     }
/// }
/// ```
///
/// The closure has the function's return type, so `return`, `?` and coercions
/// mean what they meant. It owns the arguments that the function owns, even
/// those that the body does not mention: they are dropped in the namespace, in
/// the usual order. Attributes, documentation, visibility, generics and
/// qualifiers stay.
///
/// # Limits
///
/// - The body runs on another thread: arguments and return value have to be
///   [`Send`], and thread-local variables are the worker's.
///   `Result<_, Box<dyn Error>>` becomes `Result<_, Box<dyn Error + Send + Sync>>`.
/// - `const fn` and functions without a body are refused.
///   A future that a plain function returns is polled by the task that awaits it,
///   in the namespace of that task's thread.
/// - The body of an `async fn` can take along what it owns, and nothing borrowed: its
///   caller may stop waiting. Then the body is cancelled, and dropped in the namespace a
///   little later. A reference that the body does not mention, such as `&self` where
///   only `ns = self.ns` does, is fine. A `fresh` namespace is made while the caller
///   awaits it: no thread of its runtime waits. What the body hands to the runtime
///   (`tokio::spawn`, `spawn_blocking`) runs on the runtime's threads, at home; see
///   `Executor::spawn_future`.
/// - The part of an argument that a pattern leaves out (`(a, _): (A, B)`) is
///   dropped by the caller. An argument that is `_` as a whole is not.
/// - An argument that is passed by value counts as used, so the compiler does
///   not warn when the body ignores it.
/// - `#[track_caller]` locates a failure to enter at the caller; for a panic
///   in the body the location is in the body.
/// - What the body of a `fresh` function hands out may keep its namespace
///   alive: a socket, a `Netns`, a thread. Where the caller is itself a job of
///   the same executor, the namespace may go only after the call has returned,
///   because a job does not wait for workers to end.
///
/// What is not `Send` does not compile:
///
/// ```compile_fail,E0277
/// # use std::rc::Rc;
/// #[netns_exec::in_netns("blue")]
/// fn count(items: Rc<Vec<u8>>) -> usize {
///     items.len()
/// }
/// ```
///
/// ```
/// # use std::sync::Arc;
/// #[netns_exec::in_netns("blue")]
/// fn count(items: Arc<Vec<u8>>) -> usize {
///     items.len()
/// }
/// ```
#[proc_macro_attribute]
pub fn in_netns(args: TokenStream, item: TokenStream) -> TokenStream {
    expand_or_refuse(args.into(), item.into()).into()
}

fn expand_or_refuse(args: TokenStream2, item: TokenStream2) -> TokenStream2 {
    let args = syn::parse2::<Args>(args);
    let function = syn::parse2::<Function>(item.clone());
    match (args, function) {
        (Ok(args), Ok(function)) => match (&args.link, function.sig.asyncness) {
            (Some(peer), Some(_)) => syn::Error::new(
                peer.span(),
                "an `async fn` is given no link: make a `netns_exec_lab::Lab` in the test, and \
                 `spawn_future` in its nodes",
            )
            .to_compile_error(),
            _ => expand::expand(&args, function),
        },
        (args, function) => {
            let errors = [args.err(), function.err()].into_iter().flatten();
            // With the item as it was, so that one mistake is not followed by
            // complaints that the function does not exist.
            errors
                .map(syn::Error::into_compile_error)
                .chain([item])
                .collect()
        }
    }
}
