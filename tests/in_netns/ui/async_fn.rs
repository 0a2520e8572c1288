use netns_exec::in_netns;

#[in_netns("blue")]
async fn fetch() {}

fn main() {}
