//! See `netns_exec::fuzz::task_stat`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netns_exec::fuzz::task_stat(bytes));
