//! Which executor runs the body, and bodies that call each other.

use netns_exec::{Executor, Netns, NetnsId, in_netns};
use netns_exec_tests::{fresh, here, panic_text};

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

// Nesting

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
