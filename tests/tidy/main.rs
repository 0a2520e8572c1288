//! The rules of the tree itself: what imports what, where unsafe code is, what is named
//! where. Needs no privilege. A rule is a function from the sources to its offences; it is
//! tried on the tree here, and beside itself on small inputs that break it.

mod examples;
mod imports;
mod modules;
mod places;
mod source;
mod style;

use source::Offence;

/// All in one test, because to read the tree is what takes the time.
#[test]
fn the_tree_keeps_its_rules() {
    let tree = source::tree();
    let rules: &[(&str, Vec<Offence>)] = &[
        (
            "imports run downwards",
            imports::imports_run_downwards(&tree),
        ),
        (
            "no file is in a circle",
            imports::no_file_is_in_a_circle(&tree),
        ),
        (
            "unsafe code is on its islands",
            places::unsafe_code_is_on_its_islands(&tree),
        ),
        (
            "every file has its place in CONTRIBUTING",
            places::every_file_has_its_place_in_contributing(&tree),
        ),
        (
            "every file is compiled",
            places::every_file_is_compiled(&tree, &places::targets()),
        ),
        (
            "functions fit on a page",
            style::functions_fit_on_a_page(&tree),
        ),
        (
            "every public item has an example",
            examples::every_public_item_has_an_example(&tree),
        ),
        ("the actor has a name", style::the_actor_has_a_name(&tree)),
        ("long files say why", style::long_files_say_why(&tree)),
        (
            "one name means one thing",
            style::one_name_means_one_thing(&tree),
        ),
    ];
    let mut report = String::new();
    for (rule, offences) in rules.iter().filter(|(_, offences)| !offences.is_empty()) {
        report += &format!("\n{rule}: {}\n", offences.len());
        offences
            .iter()
            .for_each(|offence| report += &format!("  {offence}\n"));
    }
    assert!(report.is_empty(), "{report}");
}
