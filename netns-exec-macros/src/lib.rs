//! The `#[in_netns]` attribute of `netns-exec`.
