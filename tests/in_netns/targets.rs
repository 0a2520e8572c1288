//! The forms of the target.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use netns_exec::{Netns, NetnsId, in_netns};
use netns_exec_tests::{Sleeper, TempNetns, here, require_root};
use nix::fcntl::{Flock, FlockArg};

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
        // This program's own file: there for every user, and nothing to clean up.
        let file = File::open("/proc/self/exe").expect("procfs");
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

#[in_netns(pid = child.pid())]
fn by_pid(child: &Sleeper) -> NetnsId {
    here()
}

#[in_netns(ns = ns)]
pub(crate) fn by_borrowed_handle(ns: &Netns) -> NetnsId {
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
    let sleeper = Sleeper::in_its_own();
    let expected = Netns::from_pid(sleeper.pid()).expect("it runs");
    assert_eq!(by_pid(&sleeper), expected.id());
    assert_ne!(expected.id(), here());
}
