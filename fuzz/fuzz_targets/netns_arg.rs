//! See `netns_exec_cli::syntax::fuzz::netns_arg`: that crate is a program, so what reads its
//! arguments is compiled here.
#![no_main]

#[allow(dead_code, reason = "one of three targets, and no command around it")]
#[path = "../../netns-exec-cli/src/syntax/mod.rs"]
mod syntax;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| syntax::fuzz::netns_arg(bytes));
