//! What `#[in_netns]` refuses, and with which words.
//!
//! After a wanted change of a message: `TRYBUILD=overwrite cargo test --test ui`, and read
//! the difference.

#[test]
fn every_refusal_names_the_reason_and_the_cure() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("cases/*.rs");
    cases.pass("cases/pass/*.rs");
}
