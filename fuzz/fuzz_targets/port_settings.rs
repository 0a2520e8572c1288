//! See `netns_exec::fuzz::port_settings`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netns_exec::fuzz::port_settings(bytes));
