use netns_exec::in_netns;

trait Visit {
    #[in_netns("blue")]
    fn visit(&self);
}

unsafe extern "C" {
    #[in_netns("blue")]
    fn getpid() -> i32;
}

fn main() {}
