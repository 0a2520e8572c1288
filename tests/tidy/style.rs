//! How things are written: length, words, names.

use std::collections::BTreeMap;

use proc_macro2::Span;
use syn::Item;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::modules::{Modules, Use, begins};
use crate::source::{
    Offence, Source, attributes_of, comments, line_of, only_in_tests, prose, skip_tests,
};

/// Say which thread or process it is: caller, worker, sender, setter, spawner.
const VAGUE: &[&str] = &[
    "somebody",
    "whoever",
    "nobody",
    "anybody",
    "everybody",
    "someone",
    "anyone",
    "everyone",
    "he",
    "him",
    "his",
];

/// Type names that any file of a folder may have for its own: the idiom says what they are.
const SHARED_NAMES: &[&str] = &["Error", "Result", "Kind", "Inner"];

const LONGEST_FUNCTION: usize = 80;
const LONGEST_FILE: usize = 800;

/// Begins the comment that gives the reason for a longer file.
const LONG_BECAUSE: &str = "// tidy: long because ";

pub(crate) fn functions_fit_on_a_page(tree: &[Source]) -> Vec<Offence> {
    struct Long(Vec<(usize, String, usize)>);
    impl Long {
        fn function(&mut self, signature: &syn::Signature, whole: Span) {
            let start = line_of(signature.span());
            let lines = whole.end().line + 1 - start;
            if lines > LONGEST_FUNCTION {
                self.0.push((start, signature.ident.to_string(), lines));
            }
        }
    }
    impl<'a> Visit<'a> for Long {
        skip_tests!();
        fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
            self.function(&function.sig, function.span());
            visit::visit_item_fn(self, function);
        }
        fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
            if !only_in_tests(&function.attrs) {
                self.function(&function.sig, function.span());
                visit::visit_impl_item_fn(self, function);
            }
        }
        fn visit_trait_item_fn(&mut self, function: &'a syn::TraitItemFn) {
            self.function(&function.sig, function.span());
            visit::visit_trait_item_fn(self, function);
        }
    }
    let ships =
        |source: &&Source| !source.path.starts_with("tests/") && !source.path.contains("/tests");
    let mut found = Vec::new();
    for source in tree
        .iter()
        .filter(ships)
        .filter(|source| !source.path.contains("/models/"))
    {
        let mut long = Long(Vec::new());
        source.rust.iter().for_each(|file| long.visit_file(file));
        found.extend(long.0.into_iter().map(|(line, name, lines)| {
            source.offence(
                line,
                format!(
                    "`{name}` has {lines} lines, over {LONGEST_FUNCTION}; split it by its phases"
                ),
            )
        }));
    }
    found
}

pub(crate) fn the_actor_has_a_name(tree: &[Source]) -> Vec<Offence> {
    let mut found = Vec::new();
    for source in tree {
        for (line, text) in prose(source) {
            // What is in backticks is code or a name: `nobody` is also a user.
            let outside = text.split('`').step_by(2);
            let words =
                outside.flat_map(|part| part.split(|c: char| !c.is_alphanumeric() && c != '_'));
            for word in words.filter(|word| VAGUE.contains(&word.to_lowercase().as_str())) {
                let what =
                    format!("\"{word}\" in a comment; name the caller, worker, sender, user ...");
                found.push(source.offence(line, what));
            }
        }
    }
    found
}

pub(crate) fn long_files_say_why(tree: &[Source]) -> Vec<Offence> {
    let mut found = Vec::new();
    for source in tree.iter().filter(|source| source.path.ends_with(".rs")) {
        let lines = source.text.lines().count();
        let reasons = comments(&source.text)
            .into_iter()
            .filter_map(|(_, text)| text.strip_prefix(LONG_BECAUSE));
        let reason = reasons
            .map(|reason| reason.split_whitespace().count())
            .any(|words| words >= 3);
        if lines > LONGEST_FILE && !reason {
            let what = format!(
                "{lines} lines, over {LONGEST_FILE}; split it, or give a reason in `{LONG_BECAUSE}...`"
            );
            found.push(source.offence(1, what));
        } else if lines <= LONGEST_FILE && reason {
            found.push(source.offence(1, "is not long any more; take the reason out"));
        }
    }
    found
}

pub(crate) fn one_name_means_one_thing(tree: &[Source]) -> Vec<Offence> {
    let modules = Modules::of(tree, "netns-exec/src/");
    let mut found = Vec::new();
    // A module's path may clash with a neighbour's; a type has one name.
    let is_type = |used: &Use| {
        used.path
            .last()
            .is_some_and(|name| name.starts_with(char::is_uppercase))
    };
    for (module, used, _) in modules
        .edges()
        .filter(|(_, used, _)| used.renamed && is_type(used))
    {
        let path = used.path.join("::");
        let what = format!("gives `{path}` a second name; use the first");
        found.push(modules.sources[module].offence(used.line, what));
    }
    let mut defined: BTreeMap<(&str, String), Vec<(&str, usize)>> = BTreeMap::new();
    // Models stand in for the real ones under the same names.
    let stands_in = |module: &str| begins(module, "models") || begins(module, "sync");
    for (module, source) in modules
        .sources
        .iter()
        .filter(|(module, _)| modules.ships(module))
    {
        let file = source.rust.as_ref().expect("a module is Rust");
        for item in file.items.iter().filter(|_| !stands_in(module)) {
            let name = match item {
                Item::Struct(item) => &item.ident,
                Item::Enum(item) => &item.ident,
                Item::Trait(item) => &item.ident,
                Item::Type(item) => &item.ident,
                _ => continue,
            };
            if !only_in_tests(attributes_of(item)) {
                let folder = module.split("::").next().expect("one at least");
                let places = defined.entry((folder, name.to_string())).or_default();
                places.push((module, line_of(name.span())));
            }
        }
    }
    defined.retain(|(_, name), places| places.len() > 1 && !SHARED_NAMES.contains(&name.as_str()));
    for ((_, name), places) in &defined {
        for (module, line) in places {
            let others = places
                .iter()
                .map(|(other, _)| *other)
                .filter(|other| other != module);
            let others = others.collect::<Vec<_>>().join("`, `");
            let what = format!("`{name}` is also a type of `{others}`; rename one of them");
            found.push(modules.sources[*module].offence(*line, what));
        }
    }
    found
}

#[cfg(test)]
mod broken {
    use super::*;
    use crate::source::assert_finds;

    #[test]
    fn function_of_81_lines_is_found_and_one_of_80_is_none() {
        let of = |name: &str, lines: usize| {
            format!("#[inline]\nfn {name}() {{\n{}}}\n", "\n".repeat(lines - 2))
        };
        let text = format!(
            "{}{}trait A {{ {} }}\nimpl B {{ {} }}\n#[cfg(test)]\nmod tests {{ {} }}",
            of("fits", 80),
            of("long", 81),
            of("in_trait", 81),
            of("in_impl", 81),
            of("in_test", 81),
        );
        assert_finds(
            functions_fit_on_a_page,
            &[("benches/src/a.rs", &text), ("tests/a.rs", &text)],
            &[
                ("benches/src/a.rs:83", "`long`"),
                ("benches/src/a.rs:165", "`in_trait`"),
                ("benches/src/a.rs:248", "`in_impl`"),
            ],
        );
    }

    #[test]
    fn vague_actor_is_found_in_comments_and_documents() {
        let vague = ["Some", "body"].concat();
        let code = format!(
            "//! {vague} waits.\nfn a() {{}} // he\nlet_nobody!(\"nobody\"); // `nobody`, the user\n"
        );
        let page = format!("# {vague}\n```\nhe\n```\nThe `he` of {vague}'s.\n");
        assert_finds(
            the_actor_has_a_name,
            &[
                ("a.rs", &code),
                ("b.md", &page),
                ("tests/run", "# his\nhe\n"),
            ],
            &[
                ("a.rs:1", "body"),
                ("a.rs:2", "\"he\""),
                ("b.md:1", "body"),
                ("b.md:5", "body"),
                ("tests/run:1", "\"his\""),
            ],
        );
    }

    #[test]
    fn long_file_without_a_reason_is_found_and_so_is_a_stale_reason() {
        let lines = "\n".repeat(LONGEST_FILE + 1);
        let reason = format!("{LONG_BECAUSE}it is one table.\n");
        assert_finds(
            long_files_say_why,
            &[
                ("a.rs", &lines),
                ("b.rs", &format!("{reason}{lines}")),
                ("c.rs", &format!("{LONG_BECAUSE}so\n{lines}")),
                ("d.rs", &reason),
            ],
            &[
                ("a.rs:1", "801 lines"),
                ("c.rs:1", "802 lines"),
                ("d.rs:1", "not long"),
            ],
        );
    }

    #[test]
    fn two_types_of_one_name_and_two_names_of_one_type_are_found() {
        assert_finds(
            one_name_means_one_thing,
            &[
                (
                    "netns-exec/src/audit/mod.rs",
                    "pub struct Record;\npub struct Error;",
                ),
                (
                    "netns-exec/src/audit/proc.rs",
                    "\nenum Record {}\npub struct Error;",
                ),
                (
                    "netns-exec/src/ports/mod.rs",
                    "use crate::audit::Record as Row;\nstruct Record;",
                ),
                (
                    "netns-exec/src/sys/mod.rs",
                    "use crate::audit::Error as _;\nuse crate::audit as look;",
                ),
            ],
            &[
                ("netns-exec/src/ports/mod.rs:1", "second name"),
                ("netns-exec/src/audit/mod.rs:1", "`Record`"),
                ("netns-exec/src/audit/proc.rs:2", "`Record`"),
            ],
        );
    }
}
