//! See `netns_exec::fuzz::mountinfo`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netns_exec::fuzz::mountinfo(bytes));
