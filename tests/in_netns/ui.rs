//! What `#[in_netns]` refuses, and with which words.
//!
//! After a wanted change of a message: `TRYBUILD=overwrite cargo test --test
//! in_netns ui`, and read the difference.

#[test]
fn every_refusal_names_the_reason_and_the_cure() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("in_netns/ui/*.rs");
    cases.pass("in_netns/ui/pass/*.rs");
}
