use netns_exec::in_netns;

#[in_netns("blue")]
pub const fn answer() -> u32 {
    42
}

fn main() {}
