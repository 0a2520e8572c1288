//! The `netns-exec` command.
fn main() {}
