use netns_exec::in_netns;

#[in_netns("blue")]
struct Router;

#[in_netns("blue")]
impl Router {}

#[in_netns("blue")]
mod module {}

#[in_netns("blue")]
pub const LIMIT: u32 = 5;

#[in_netns("blue")]
unsafe extern "C" {}

#[in_netns("blue")]
trait Visit {}

fn main() {}
