//! See `netns_exec::fuzz::broker_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netns_exec::fuzz::broker_request(bytes));
