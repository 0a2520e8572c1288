use netns_exec::in_netns;

#[in_netns]
fn no_parentheses() {}

#[in_netns()]
fn nothing_between_them() {}

#[in_netns(executor = netns_exec::Executor::global())]
fn executor_alone() {}

fn main() {}
