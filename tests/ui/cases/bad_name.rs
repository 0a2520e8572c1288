use netns_exec::in_netns;

#[in_netns("")]
fn empty() {}

#[in_netns("/run/netns/blue")]
fn path() {}

#[in_netns("..")]
fn parent_folder() {}

#[in_netns("blue\0")]
fn nul() {}

fn main() {}
