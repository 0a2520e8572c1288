use netns_exec::in_netns;

#[in_netns("blue", fresh)]
fn name_and_fresh() {}

#[in_netns(path = "/run/netns/blue", pid = 1)]
fn path_and_pid() {}

#[in_netns("blue", "red")]
fn two_names() {}

#[in_netns(pid = 1, pid = 2)]
fn one_key_twice() {}

fn main() {}
