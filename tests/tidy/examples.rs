//! Documentation: every public item of the crates that users have shows how it is used.

use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, Visibility};

use crate::source::{Offence, Source, attributes_of, line_of, only_in_tests};

/// The crates whose documentation users read.
const SHIPPED: &[&str] = &["netns-exec", "netns-exec-lab", "netns-exec-macros"];

/// What is `pub`, and named by users in another way: an alias, and the macros' own code.
const KNOWN_OTHERWISE: &[(&str, &str)] = &[
    ("netns-exec/src/handoff/scope.rs", "Scope"),
    ("netns-exec/src/error.rs", "reason"),
];

/// What is `pub` can be named by users: the lint `unreachable_pub` is on. Variants, fields
/// and what an impl of a trait has need no example of their own.
pub(crate) fn every_public_item_has_an_example(tree: &[Source]) -> Vec<Offence> {
    let mut found = Vec::new();
    for shipped in SHIPPED {
        let top = format!("{shipped}/src/");
        let crate_root = tree
            .iter()
            .find(|source| source.path == top.clone() + "lib.rs");
        let hidden = crate_root.map_or(Vec::new(), hidden_files);
        for source in tree.iter().filter(|source| {
            let file = source.path.strip_prefix(&top);
            file.is_some_and(|file| !hidden.iter().any(|hidden| hidden == file))
        }) {
            let mut missing = Missing::default();
            source.rust.iter().for_each(|file| missing.visit_file(file));
            let missing = (missing.0.into_iter())
                .filter(|(_, name)| !KNOWN_OTHERWISE.contains(&(&source.path, name)));
            found.extend(missing.map(|(line, name)| {
                source.offence(line, format!("`{name}` has no example of its own"))
            }));
        }
    }
    found
}

/// The files of modules that a crate's root hides.
fn hidden_files(root: &Source) -> Vec<String> {
    let items = root.rust.iter().flat_map(|file| &file.items);
    items
        .filter_map(|item| match item {
            Item::Mod(module) if is_hidden(&module.attrs) => {
                let path = module.attrs.iter().find(|a| a.path().is_ident("path"));
                Some(
                    path.and_then(text_of)
                        .unwrap_or(format!("{}.rs", module.ident)),
                )
            }
            _ => None,
        })
        .collect()
}

/// What stands behind the `=` of an attribute.
fn text_of(attribute: &Attribute) -> Option<String> {
    match &attribute.meta {
        Meta::NameValue(pair) => match &pair.value {
            syn::Expr::Lit(literal) => match &literal.lit {
                syn::Lit::Str(text) => Some(text.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("doc")
            && (attribute.meta.require_list()).is_ok_and(|list| list.tokens.to_string() == "hidden")
    })
}

fn has_example(attributes: &[Attribute]) -> bool {
    let docs = attributes.iter().filter(|a| a.path().is_ident("doc"));
    docs.filter_map(text_of).any(|line| line.contains("```"))
}

#[derive(Default)]
struct Missing(Vec<(usize, String)>);

impl Missing {
    fn look_at(&mut self, attributes: &[Attribute], name: &syn::Ident) {
        if !has_example(attributes) && !is_hidden(attributes) {
            self.0.push((line_of(name.span()), name.to_string()));
        }
    }
}

impl<'a> Visit<'a> for Missing {
    fn visit_item(&mut self, item: &'a Item) {
        let attributes = attributes_of(item);
        if only_in_tests(attributes) || is_hidden(attributes) {
            return;
        }
        let is_public = |visibility: &Visibility| matches!(visibility, Visibility::Public(_));
        match item {
            Item::Fn(item) if is_public(&item.vis) => self.look_at(attributes, &item.sig.ident),
            Item::Struct(item) if is_public(&item.vis) => self.look_at(attributes, &item.ident),
            Item::Enum(item) if is_public(&item.vis) => self.look_at(attributes, &item.ident),
            Item::Type(item) if is_public(&item.vis) => self.look_at(attributes, &item.ident),
            Item::Trait(item) if is_public(&item.vis) => {
                self.look_at(attributes, &item.ident);
                visit::visit_item_trait(self, item);
            }
            Item::Macro(item) => {
                let exported = attributes.iter().any(|a| a.path().is_ident("macro_export"));
                let name = item.ident.as_ref().filter(|_| exported);
                name.into_iter()
                    .for_each(|name| self.look_at(attributes, name));
            }
            Item::Impl(item) if item.trait_.is_none() => visit::visit_item_impl(self, item),
            // What is public in a private one seals a trait.
            Item::Mod(module) if is_public(&module.vis) => visit::visit_item_mod(self, module),
            _ => {}
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        if matches!(function.vis, Visibility::Public(_)) && !only_in_tests(&function.attrs) {
            self.look_at(&function.attrs, &function.sig.ident);
        }
    }

    fn visit_trait_item_fn(&mut self, function: &'a syn::TraitItemFn) {
        self.look_at(&function.attrs, &function.sig.ident);
    }
}

#[test]
fn items_without_an_example_are_found() {
    let root = "mod shown;\n#[doc(hidden)]\n#[path = \"private.rs\"]\npub mod __private;\n";
    let shown = "/// Is there.\npub struct Bare;\nimpl Bare {\n    /// Does.\n    pub fn does(&self) {}\n    \
                 /// ```\n    /// f();\n    /// ```\n    pub fn shown() {}\n    pub(crate) fn ours() {}\n}\n\
                 pub trait Acts {\n    fn act();\n}\n#[doc(hidden)]\npub fn hidden() {}\n\
                 impl Acts for Bare {\n    fn act() {}\n}\n#[cfg(test)]\npub fn tested() {}\n";
    let files = [
        ("netns-exec/src/lib.rs", root),
        ("netns-exec/src/private.rs", "pub fn called() {}\n"),
        ("netns-exec/src/shown.rs", shown),
        ("netns-exec-cli/src/main.rs", "pub fn of_the_command() {}\n"),
    ];
    let expected = [
        ("netns-exec/src/shown.rs:2", "`Bare`"),
        ("netns-exec/src/shown.rs:5", "`does`"),
        ("netns-exec/src/shown.rs:12", "`Acts`"),
        ("netns-exec/src/shown.rs:13", "`act`"),
    ];
    crate::source::assert_finds(every_public_item_has_an_example, &files, &expected);
}
