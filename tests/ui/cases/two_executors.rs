use netns_exec::in_netns;

#[in_netns(executor = netns_exec::Executor::global(), "blue", executor = netns_exec::Executor::global())]
fn twice() {}

fn main() {}
