use netns_exec::in_netns;

#[in_netns(netns = "blue")]
fn key_of_another_library() {}

#[in_netns(fresh, timeout = 5)]
fn key_beside_a_target() {}

#[in_netns(blue)]
fn name_without_quotes() {}

#[in_netns(r#type::path)]
fn path_of_words() {}

fn main() {}
