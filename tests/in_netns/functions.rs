//! `#[in_netns]` on functions of every shape, in real namespaces.

use std::error::Error as StdError;
use std::fmt::{Debug, Display};
use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use netns_exec::{Executor, Netns, NetnsId, in_netns};
use netns_exec_tests::{TempNetns, require_root};
use nix::fcntl::{Flock, FlockArg};
use rstest::rstest;

fn fresh() -> Netns {
    require_root();
    Netns::new().expect("a namespace")
}

/// The namespace of the calling thread.
fn here() -> NetnsId {
    Netns::current().expect("own namespace").id()
}

/// The text of the panic of `f`.
fn panic_text<T>(f: impl FnOnce() -> T) -> String {
    let payload = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(_) => panic!("no panic"),
        Err(payload) => payload,
    };
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast_ref::<&str>().expect("a text")).to_owned(),
    }
}

/// Sleeps until killed, in a namespace of its own.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Sleeper {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare(1)");
        // The line comes once the namespace has been entered.
        let mut line = [0];
        io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut line).expect("a line");
        Sleeper(child)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().expect("own child");
        self.0.wait().expect("own child");
    }
}

// --- Forms of the target

/// The one name that has to be fixed, because it stands in the attribute.
const LITERAL: &str = "netns-exec-attr-literal";

#[in_netns("netns-exec-attr-literal")]
fn by_literal() -> (NetnsId, ThreadId) {
    (here(), thread::current().id())
}

/// The namespace of that name. Two runs of this file at once take turns.
struct Literal {
    ns: Netns,
    /// Released when the namespace has been deleted.
    _turn: Flock<File>,
}

impl Literal {
    fn new() -> Literal {
        require_root();
        let file = File::create(std::env::temp_dir().join(LITERAL)).expect("a lock file");
        let turn = Flock::lock(file, FlockArg::LockExclusive).expect("flock(2)");
        // What a run that was killed has left behind.
        let _ = Netns::delete(LITERAL);
        Literal {
            ns: Netns::create(LITERAL).expect("a namespace with a free name"),
            _turn: turn,
        }
    }
}

impl Drop for Literal {
    fn drop(&mut self) {
        let _ = Netns::delete(LITERAL);
    }
}

#[test]
fn body_runs_in_the_named_namespace_and_the_caller_stays() {
    let literal = Literal::new();
    let before = here();
    let (there, thread) = by_literal();
    assert_eq!(there, literal.ns.id());
    assert_ne!(thread, thread::current().id());
    assert_eq!(here(), before);
}

#[in_netns(name = name)]
fn by_name(name: &str) -> NetnsId {
    here()
}

#[in_netns(name = format!("{}{}", parts.0, parts.1))]
fn by_computed_name(parts: (&str, String)) -> NetnsId {
    here()
}

#[in_netns(path = path.as_ref())]
fn by_path(path: impl AsRef<Path> + Send) -> NetnsId {
    here()
}

#[in_netns(pid = child.0.id())]
fn by_pid(child: &Sleeper) -> NetnsId {
    here()
}

#[in_netns(ns = ns)]
fn by_borrowed_handle(ns: &Netns) -> NetnsId {
    here()
}

#[in_netns(ns = ns)]
fn by_owned_handle(ns: Netns) -> (NetnsId, NetnsId) {
    (here(), ns.id())
}

#[in_netns(ns = ns)]
fn by_shared_handle(ns: Arc<Netns>) -> NetnsId {
    here()
}

#[in_netns(ns = Netns::from_path(path)?)]
fn by_fallible_expression(path: &Path) -> netns_exec::Result<NetnsId> {
    Ok(here())
}

#[test]
fn every_form_of_target_reaches_its_namespace() {
    let named = TempNetns::new();
    let id = named.netns().id();
    let middle = named.name().len() / 2;
    let parts = (&named.name()[..middle], named.name()[middle..].to_owned());
    let path = Path::new("/run/netns").join(named.name());
    assert_eq!(by_name(named.name()), id);
    assert_eq!(by_computed_name(parts), id);
    assert_eq!(by_path(&path), id);
    assert_eq!(by_path(path.to_str().expect("UTF-8")), id);
    assert_eq!(by_borrowed_handle(named.netns()), id);
    assert_eq!(by_owned_handle(named.netns().clone()), (id, id));
    assert_eq!(by_shared_handle(Arc::new(named.netns().clone())), id);
    assert_eq!(by_fallible_expression(&path).expect("it exists"), id);
    let missing = by_fallible_expression(Path::new("/run/netns/no-such-netns"));
    assert!(missing.is_err());
}

#[test]
fn pid_reaches_the_namespace_of_that_process() {
    let sleeper = Sleeper::new();
    let expected = Netns::from_pid(sleeper.0.id()).expect("it runs");
    assert_eq!(by_pid(&sleeper), expected.id());
    assert_ne!(expected.id(), here());
}

// --- Fresh namespaces

#[in_netns(fresh)]
fn in_fresh<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    f()
}

#[test]
fn fresh_namespace_is_another_at_each_call_and_has_loopback_up() {
    let visit = || {
        let listener = TcpListener::bind("127.0.0.1:4711").expect("a port nobody has");
        TcpStream::connect("127.0.0.1:4711").expect("loopback is up");
        drop(listener);
        here()
    };
    let (first, second) = (in_fresh(visit), in_fresh(visit));
    assert_ne!(first, second);
    assert_ne!(first, here());
}

#[test]
fn fresh_namespace_is_gone_afterwards() {
    let weak = in_fresh(|| Netns::current().expect("own namespace").downgrade());
    assert_gone(&weak);
}

#[test]
fn fresh_namespace_is_gone_after_a_panic() {
    let slot = Mutex::new(None);
    let text = panic_text(|| {
        in_fresh(|| {
            *slot.lock().expect("not poisoned") =
                Some(Netns::current().expect("own namespace").downgrade());
            panic!("half way");
        })
    });
    assert_eq!(text, "half way");
    assert_gone(
        &slot
            .into_inner()
            .expect("not poisoned")
            .expect("the body began"),
    );
}

/// The kernel takes a namespace down some time after its last reference.
fn assert_gone(weak: &netns_exec::WeakNetns) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while weak.upgrade().is_some() {
        assert!(Instant::now() < deadline, "{weak:?} lives on");
        thread::yield_now();
    }
}

/// The attribute as a test's fixture, above and below `#[test]`.
#[test]
#[in_netns(fresh)]
fn test_above_the_attribute_runs_in_the_namespace() {
    assert_ne!(here(), home());
}

#[in_netns(fresh)]
#[test]
fn test_below_the_attribute_runs_in_the_namespace() {
    assert_ne!(here(), home());
}

#[test]
#[in_netns(fresh)]
fn test_that_returns_a_result_runs_in_the_namespace() -> io::Result<()> {
    assert_ne!(here(), home());
    TcpListener::bind("127.0.0.1:4711")?;
    Ok(())
}

/// The namespace of the main thread, wherever this one is.
fn home() -> NetnsId {
    Netns::home().expect("own process").id()
}

#[test]
#[should_panic(expected = "seen by the harness")]
#[in_netns(fresh)]
fn should_panic_above_the_attribute_sees_the_panic() {
    assert_ne!(here(), home());
    panic!("seen by the harness");
}

#[in_netns(fresh)]
#[test]
#[should_panic(expected = "seen by the harness")]
fn should_panic_below_the_attribute_sees_the_panic() {
    assert_ne!(here(), home());
    panic!("seen by the harness");
}

#[rstest]
#[case(1, "a")]
#[case(2, "bb")]
#[in_netns(fresh)]
fn rstest_above_the_attribute_passes_its_cases(#[case] length: usize, #[case] text: &str) {
    assert_ne!(here(), home());
    assert_eq!(text.len(), length);
}

#[in_netns(fresh)]
#[rstest]
#[case(1, "a")]
#[case(2, "bb")]
fn rstest_below_the_attribute_passes_its_cases(#[case] length: usize, #[case] text: &str) {
    assert_ne!(here(), home());
    assert_eq!(text.len(), length);
}

#[rstest::fixture]
fn named() -> TempNetns {
    TempNetns::new()
}

#[in_netns(ns = named)]
#[rstest]
fn rstest_fixture_serves_as_the_target(named: TempNetns, #[values(1, 2)] round: u8) {
    assert!(round > 0);
    assert_eq!(here(), named.netns().id());
}

// --- Arguments

#[in_netns(ns = ns)]
fn push_here(ns: &Netns, ids: &mut Vec<NetnsId>) -> usize {
    ids.push(here());
    ids.len()
}

#[in_netns(ns = ns)]
fn longest<'a>(ns: &Netns, one: &'a str, other: &'a str) -> &'a str {
    if one.len() > other.len() {
        return one;
    }
    other
}

#[in_netns(ns = ns)]
fn patterns(ns: &Netns, (mut left, right): (Vec<u8>, u8), [a, .., z]: [u8; 4], _: String) -> u32 {
    left.push(right);
    left.push(a);
    left.push(z);
    left.into_iter().map(u32::from).sum()
}

#[in_netns(ns = ns)]
fn mutable_argument(ns: &Netns, mut text: String) -> String {
    text.push('!');
    text
}

#[test]
fn arguments_are_borrowed_taken_apart_and_changed() {
    let ns = fresh();
    let mut ids = Vec::new();
    assert_eq!(push_here(&ns, &mut ids), 1);
    assert_eq!(push_here(&ns, &mut ids), 2);
    assert_eq!(ids, [ns.id(), ns.id()]);
    assert_eq!(longest(&ns, "short", "longer"), "longer");
    assert_eq!(longest(&ns, "longer", "short"), "longer");
    let sum = patterns(&ns, (vec![1], 2), [10, 0, 0, 20], String::new());
    assert_eq!(sum, 33);
    assert_eq!(mutable_argument(&ns, "hey".to_owned()), "hey!");
}

/// Says where and in which order it was dropped.
struct Dropped<'a>(u8, &'a Mutex<Vec<(u8, NetnsId)>>);

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        self.1.lock().expect("not poisoned").push((self.0, here()));
    }
}

type Pair<'a> = (Dropped<'a>, Dropped<'a>);

#[in_netns(ns = ns)]
fn drop_all(ns: &Netns, _first: Dropped<'_>, pair: Pair<'_>, _: Dropped<'_>, last: Dropped<'_>) {
    let _local = Dropped(0, last.1);
    drop(pair.0);
}

impl Dropped<'_> {
    #[in_netns(ns = ns)]
    fn drop_self(self, ns: &Netns) -> u8 {
        self.0
    }
}

#[test]
fn owned_arguments_are_dropped_in_the_namespace_and_in_order() {
    let ns = fresh();
    let log = Mutex::new(Vec::new());
    let dropped = |number| Dropped(number, &log);
    drop_all(
        &ns,
        dropped(5),
        (dropped(1), dropped(4)),
        dropped(3),
        dropped(2),
    );
    assert_eq!(dropped(6).drop_self(&ns), 6);
    // As in the plain function: what the body drops, then its locals, then
    // the arguments from the last to the first.
    let expected = [1, 0, 2, 3, 4, 5, 6].map(|number| (number, ns.id()));
    assert_eq!(*log.lock().expect("not poisoned"), expected);
}

#[test]
fn plain_function_drops_in_the_same_order() {
    fn drop_all(_first: Dropped<'_>, pair: Pair<'_>, _: Dropped<'_>, last: Dropped<'_>) {
        let _local = Dropped(0, last.1);
        drop(pair.0);
    }
    let log = Mutex::new(Vec::new());
    let dropped = |number| Dropped(number, &log);
    drop_all(dropped(5), (dropped(1), dropped(4)), dropped(3), dropped(2));
    let order: Vec<_> = (log.lock().expect("not poisoned").iter())
        .map(|(n, _)| *n)
        .collect();
    assert_eq!(order, [1, 0, 2, 3, 4, 5]);
}

#[in_netns(ns = ns)]
fn describe<T, const N: usize>(ns: &Netns, items: [T; N]) -> String
where
    T: Display + Send,
{
    let items: Vec<_> = items.iter().map(T::to_string).collect();
    format!("{N}: {}", items.join(" "))
}

#[in_netns(ns = ns)]
fn opaque<'a>(ns: &Netns, text: &'a str) -> impl Iterator<Item = char> + Send + use<'a> {
    assert_ne!(here(), home());
    text.chars().rev()
}

#[in_netns(ns = ns)]
fn boxed<'a>(ns: &Netns, text: &'a str) -> Box<dyn Fn() -> usize + Send + 'a> {
    assert_ne!(here(), home());
    Box::new(move || text.len())
}

#[in_netns(ns = Netns::open(name)?)]
fn opaque_result(name: &str) -> Result<impl Iterator<Item = u8> + use<>, netns_exec::Error> {
    Ok(0..3)
}

#[test]
fn generics_and_opaque_types_pass_through() {
    let ns = fresh();
    assert_eq!(describe(&ns, [1, 2]), "2: 1 2");
    assert_eq!(describe(&ns, ["x"]), "1: x");
    assert_eq!(opaque(&ns, "abc").collect::<String>(), "cba");
    assert_eq!(boxed(&ns, "abc")(), 3);
    assert!(opaque_result("no-such-netns").is_err());
}

// --- Receivers

struct Router {
    ns: Netns,
    executor: Executor,
    seen: Vec<NetnsId>,
}

trait Visit {
    fn visit(&mut self) -> usize;

    #[in_netns(fresh)]
    fn default_visit(&self) -> NetnsId
    where
        Self: Sync,
    {
        here()
    }
}

impl Visit for Router {
    #[in_netns(ns = self.ns, executor = self.executor)]
    fn visit(&mut self) -> usize {
        self.seen.push(here());
        self.seen.len()
    }
}

impl Visit for () {
    fn visit(&mut self) -> usize {
        0
    }
}

impl Router {
    fn new() -> Router {
        Router {
            ns: fresh(),
            executor: Executor::new().expect("an executor"),
            seen: Vec::new(),
        }
    }

    #[in_netns(ns = self.ns)]
    fn shared(&self) -> (NetnsId, usize) {
        (here(), self.seen.len())
    }

    #[in_netns(ns = self.ns)]
    fn seen_mut(&mut self) -> &mut Vec<NetnsId> {
        self.seen.push(here());
        &mut self.seen
    }

    #[in_netns(ns = self.ns)]
    fn owned(mut self) -> Self {
        self.seen.push(here());
        self
    }

    #[in_netns(ns = self.ns)]
    fn boxed(self: Box<Self>) -> Vec<NetnsId> {
        let mut seen = self.seen;
        seen.push(here());
        seen
    }

    #[in_netns(ns = self.ns)]
    fn pinned(mut self: Pin<&mut Self>) -> usize {
        self.seen.push(here());
        self.seen.len()
    }
}

#[test]
fn every_receiver_reaches_the_body() {
    let mut router = Router::new();
    let id = router.ns.id();
    assert_eq!(router.visit(), 1);
    assert_eq!(router.shared(), (id, 1));
    router.seen_mut().push(id);
    assert_eq!(Pin::new(&mut router).pinned(), 4);
    let router = router.owned();
    assert_eq!(Box::new(router).boxed(), [id; 6]);
    assert_ne!(().default_visit(), here());
    assert_eq!(().visit(), 0);
}

// --- Executors

#[in_netns(ns = ns, executor = executor)]
fn borrowed_executor(ns: &Netns, executor: &Executor) -> NetnsId {
    here()
}

#[in_netns(executor = executor, ns = ns)]
fn owned_executor(ns: &Netns, executor: Executor) -> NetnsId {
    here()
}

#[in_netns(fresh, executor = Executor::new()?)]
fn temporary_executor() -> netns_exec::Result<NetnsId> {
    Ok(here())
}

#[test]
fn executor_is_borrowed_owned_or_made_for_the_call() {
    let ns = fresh();
    let executor = Executor::new().expect("an executor");
    assert_eq!(borrowed_executor(&ns, &executor), ns.id());
    assert_eq!(owned_executor(&ns, executor), ns.id());
    assert_ne!(temporary_executor().expect("an executor"), here());
}

#[in_netns(ns = ns, executor = executor)]
fn result_of(ns: &Netns, executor: &Executor) -> netns_exec::Result<NetnsId> {
    Ok(here())
}

#[in_netns(fresh, executor = executor)]
fn fresh_result_of(executor: &Executor) -> netns_exec::Result<NetnsId> {
    Ok(here())
}

#[test]
fn executor_that_was_shut_down_fails_as_any_failure_to_enter() {
    let ns = fresh();
    let executor = Executor::new().expect("an executor");
    assert_eq!(result_of(&ns, &executor).expect("it is open"), ns.id());
    executor.clone().shutdown(None).expect("no time limit");
    let error = result_of(&ns, &executor).expect_err("it is shut down");
    assert!(error.is_shut_down(), "{error}");
    let text = panic_text(|| borrowed_executor(&ns, &executor));
    assert_eq!(text, error.to_string());
    let error = fresh_result_of(&executor).expect_err("it is shut down");
    assert!(error.is_shut_down(), "{error}");
}

// --- Nesting

#[in_netns(ns = namespaces[depth % namespaces.len()])]
fn descend(namespaces: &[Netns], depth: usize) -> Vec<NetnsId> {
    let mut ids = match depth {
        0 => Vec::new(),
        _ => descend(namespaces, depth - 1),
    };
    ids.push(here());
    ids
}

#[test]
fn annotated_functions_call_each_other() {
    let namespaces = [fresh(), fresh()];
    let ids = descend(&namespaces, 9);
    let expected: Vec<_> = (0..10).map(|depth| namespaces[depth % 2].id()).collect();
    assert_eq!(ids, expected);
}

// --- Failures

#[derive(Debug)]
enum AppError {
    Netns(netns_exec::Error),
    Parse,
}

impl From<netns_exec::Error> for AppError {
    fn from(error: netns_exec::Error) -> AppError {
        AppError::Netns(error)
    }
}

impl From<std::num::ParseIntError> for AppError {
    fn from(_: std::num::ParseIntError) -> AppError {
        AppError::Parse
    }
}

type AppResult<T> = Result<T, AppError>;

#[in_netns(name = name)]
fn parse(name: &str, text: &str) -> AppResult<u32> {
    if text.is_empty() {
        return Ok(0);
    }
    let number = text.parse()?;
    Ok(number)
}

#[in_netns(name = name)]
fn to_io(name: &str) -> io::Result<()> {
    Ok(())
}

#[in_netns(name = name)]
fn to_own(name: &str) -> netns_exec::Result<()> {
    Ok(())
}

#[in_netns(name = name)]
fn to_dyn(name: &str) -> Result<(), Box<dyn StdError + Send + Sync>> {
    Ok(())
}

#[in_netns(name = name)]
fn to_generic<E>(name: &str) -> Result<(), E>
where
    E: From<netns_exec::Error> + Send,
{
    Ok(())
}

#[in_netns("no-such-netns")]
fn no_result() -> u32 {
    1
}

#[in_netns("no-such-netns")]
fn unconvertible() -> Result<u32, String> {
    Ok(1)
}

#[in_netns("no-such-netns")]
fn unknown<T: Send + Default>() -> T {
    T::default()
}

#[in_netns("no-such-netns")]
fn unknown_error<E: Send>() -> Result<u32, E> {
    Ok(1)
}

#[in_netns("no-such-netns")]
fn diverging() -> ! {
    panic!("not reached");
}

#[test]
fn failure_to_enter_is_returned_where_the_error_converts() {
    let error = parse("no-such-netns", "1").expect_err("no namespace");
    assert!(matches!(error, AppError::Netns(error) if error.is_not_found()));
    let error = to_io("no-such-netns").expect_err("no namespace");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(
        to_own("no-such-netns")
            .expect_err("no namespace")
            .is_not_found()
    );
    let error = to_dyn("no-such-netns").expect_err("no namespace");
    assert!(error.is::<netns_exec::Error>());
    let error = to_generic::<io::Error>("no-such-netns").expect_err("no namespace");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn failure_to_enter_panics_with_its_text_where_it_cannot_be_returned() {
    let expected = Netns::open("no-such-netns")
        .expect_err("no namespace")
        .to_string();
    assert!(expected.contains("no-such-netns"));
    assert_eq!(panic_text(no_result), expected);
    assert_eq!(panic_text(unconvertible), expected);
    assert_eq!(panic_text(unknown::<u8>), expected);
    assert_eq!(panic_text(unknown_error::<u8>), expected);
    // What the type is at the call does not count: the function knows `T` only.
    assert_eq!(panic_text(unknown_result), expected);
    let diverge: fn() = || diverging();
    assert_eq!(panic_text(diverge), expected);
}

#[in_netns("no-such-netns")]
fn generic_of<T: Send>(value: T) -> T {
    value
}

fn unknown_result() -> netns_exec::Result<u8> {
    generic_of(Ok(1))
}

#[test]
#[should_panic(expected = "no-such-netns")]
#[in_netns("no-such-netns")]
fn failure_to_enter_fails_a_test() {}

#[test]
fn question_mark_and_return_end_the_body_alone() {
    let named = TempNetns::new();
    assert!(matches!(parse(named.name(), ""), Ok(0)));
    assert!(matches!(parse(named.name(), "17"), Ok(17)));
    assert!(matches!(parse(named.name(), "x"), Err(AppError::Parse)));
    assert!(to_io(named.name()).is_ok());
    assert!(to_own(named.name()).is_ok());
    assert!(to_dyn(named.name()).is_ok());
    assert!(to_generic::<io::Error>(named.name()).is_ok());
}

#[in_netns(ns = ns)]
fn panic_with(ns: &Netns, payload: u64) {
    std::panic::panic_any(payload);
}

#[test]
fn panic_reaches_the_caller_with_its_payload() {
    let ns = fresh();
    let payload = catch_unwind(|| panic_with(&ns, 4711)).expect_err("a panic");
    assert_eq!(payload.downcast_ref(), Some(&4711_u64));
    assert_eq!(by_borrowed_handle(&ns), ns.id());
}

// --- What a plain function allows

/// Names that the expansion uses itself.
#[in_netns(ns = outcome)]
#[expect(
    clippy::too_many_arguments,
    reason = "each is a name of the expansion's"
)]
fn hygienic(
    outcome: &Netns,
    target: u8,
    executor: u8,
    failure: u8,
    value: u8,
    error: u8,
    run: u8,
    unnamed_8: u8,
    _: String,
) -> u8 {
    target + executor + failure + value + error + run + unnamed_8 + u8::from(here() == outcome.id())
}

/// Shadows what the expansion's paths begin with.
mod shadowed {
    #![allow(unused, non_camel_case_types, non_snake_case)]
    use super::{Netns, NetnsId, here, in_netns};

    mod netns_exec {}
    mod core {}
    mod std {}
    enum Result {}
    enum Option {}
    fn Ok() {}
    fn Err() {}

    #[in_netns(ns = ns)]
    pub(super) fn visit(ns: &Netns) -> NetnsId {
        here()
    }
}

macro_rules! annotated {
    ($name:ident, $arg:ident: $ty:ty, $ret:ty, $body:block) => {
        #[in_netns(ns = ns)]
        fn $name(ns: &Netns, $arg: $ty) -> $ret $body

        impl Shape {
            #[in_netns(fresh)]
            fn $name(self) -> u8 {
                self.0
            }
        }
    };
}

struct Shape(u8);

annotated!(by_macro, count: u8, u8, { count + 1 });

#[in_netns(ns = ns)]
extern "C" fn callback(ns: &Netns, number: u32) -> u32 {
    number + 1
}

#[in_netns(ns = ns)]
fn inner_attributes(ns: &Netns) -> u8 {
    #![allow(unused_variables)]
    let unused = 1;
    2
}

#[in_netns(ns = ns)]
fn conditional(ns: &Netns, #[cfg(windows)] never: Never, #[cfg(unix)] always: Vec<u8>) -> usize {
    always.len()
}

#[in_netns(ns = ns)]
fn lock_in_tail(ns: &Netns, mutex: Mutex<u8>) -> u8 {
    *mutex.lock().expect("not poisoned")
}

/// Documented, and must be used.
#[must_use]
#[inline]
#[in_netns(ns = ns)]
fn attributes(ns: &Netns) -> u8 {
    1
}

#[in_netns(ns = ns)]
fn calls_another(ns: &Netns) {
    nothing();
}

#[in_netns(ns = ns)]
fn only_calls(ns: &Netns) {
    nothing()
}

#[in_netns(ns = ns)]
fn empty(ns: &Netns) {}

fn nothing() {}

#[in_netns(ns = ns)]
fn debug<'a, T>(ns: &Netns, value: &'a T) -> Vec<Box<dyn Debug + Send + 'a>>
where
    T: Debug + Sync + ?Sized,
{
    vec![Box::new(value)]
}

#[test]
fn what_a_plain_function_allows_is_allowed() {
    let ns = fresh();
    assert_eq!(hygienic(&ns, 1, 1, 1, 1, 1, 1, 1, String::new()), 8);
    assert_eq!(shadowed::visit(&ns), ns.id());
    assert_eq!(by_macro(&ns, 1), 2);
    assert_eq!(Shape(3).by_macro(), 3);
    assert_eq!(callback(&ns, 1), 2);
    assert_eq!(inner_attributes(&ns), 2);
    assert_eq!(conditional(&ns, vec![1, 2]), 2);
    assert_eq!(lock_in_tail(&ns, Mutex::new(5)), 5);
    assert_eq!(attributes(&ns), 1);
    assert_eq!(format!("{:?}", debug(&ns, "x")), "[\"x\"]");
    calls_another(&ns);
    only_calls(&ns);
    empty(&ns);
}
