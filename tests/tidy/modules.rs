//! One crate's modules, and what they import from each other.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

use crate::source::{Source, line_of, only_in_tests, skip_tests};

/// One crate's files as modules, and what they import from each other.
pub(crate) struct Modules<'a> {
    pub(crate) sources: BTreeMap<String, &'a Source>,
    uses: BTreeMap<String, Vec<Use>>,
    /// For tests only, with all that is beneath.
    tests: BTreeSet<String>,
}

#[derive(Clone)]
pub(crate) struct Use {
    pub(crate) line: usize,
    pub(crate) path: Vec<String>,
    /// The name that the importing module gives on, for `pub use`.
    pub(crate) given_on: Option<String>,
    pub(crate) renamed: bool,
}

impl<'a> Modules<'a> {
    pub(crate) fn of(tree: &'a [Source], folder: &str) -> Self {
        let mut sources = BTreeMap::new();
        for source in tree.iter().filter(|source| source.rust.is_some()) {
            let Some(rest) = source.path.strip_prefix(folder) else {
                continue;
            };
            let name = rest
                .trim_end_matches(".rs")
                .trim_end_matches("/mod")
                .replace('/', "::");
            sources.insert(
                if ["lib", "main"].contains(&name.as_str()) {
                    String::new()
                } else {
                    name
                },
                source,
            );
        }
        let (mut uses, mut tests) = (BTreeMap::new(), BTreeSet::new());
        for (name, source) in &sources {
            let mut walk = Uses {
                sources: &sources,
                here: split(name),
                found: Vec::new(),
                tests: Vec::new(),
            };
            walk.visit_file(source.rust.as_ref().expect("filtered above"));
            tests.extend(walk.tests);
            uses.insert(name.clone(), walk.found);
        }
        Self {
            sources,
            uses,
            tests,
        }
    }

    pub(crate) fn ships(&self, module: &str) -> bool {
        !self.tests.iter().any(|test| begins(module, test))
    }

    /// The module whose file defines what a path names, behind any `pub use`.
    pub(crate) fn defining(&self, path: &[String], depth: usize) -> String {
        let length = (0..=path.len())
            .rev()
            .find(|n| self.sources.contains_key(&path[..*n].join("::")));
        let length = length.unwrap_or(0);
        let module = path[..length].join("::");
        if let Some(name) = path.get(length).filter(|_| depth < 8) {
            let given_on = self.uses.get(&module).into_iter().flatten();
            let mut given_on = given_on.filter(|used| used.given_on.as_ref() == Some(name));
            if let Some(used) = given_on.next() {
                return self.defining(&used.path, depth + 1);
            }
        }
        module
    }

    /// Who imports whom and where, among what ships.
    pub(crate) fn edges(&self) -> impl Iterator<Item = (&str, &Use, String)> {
        let shipping = self.uses.iter().filter(|(module, _)| self.ships(module));
        shipping.flat_map(move |(module, uses)| {
            uses.iter()
                .map(move |used| (module.as_str(), used, self.defining(&used.path, 0)))
        })
    }
}

pub(crate) fn split(module: &str) -> Vec<String> {
    module
        .split("::")
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Whether a module is `unit` or beneath it.
pub(crate) fn begins(module: &str, unit: &str) -> bool {
    module
        .strip_prefix(unit)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

struct Uses<'a> {
    sources: &'a BTreeMap<String, &'a Source>,
    here: Vec<String>,
    found: Vec<Use>,
    tests: Vec<String>,
}

impl Uses<'_> {
    /// The path from the crate's root, where it is one of this crate's modules.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let mut base = self.here.clone();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => base.clear(),
            "self" | "super" => rest = path,
            child => {
                let module = [base.clone(), vec![child.to_owned()]].concat().join("::");
                return self
                    .sources
                    .contains_key(&module)
                    .then(|| [&base, path].concat());
            }
        }
        while let Some(first) = rest.first() {
            match first.as_str() {
                "super" => base.truncate(base.len().saturating_sub(1)),
                "crate" | "self" => {}
                _ => break,
            }
            rest = &rest[1..];
        }
        Some([&base, rest].concat())
    }

    fn add(&mut self, path: &[String], line: usize, given_on: Option<String>, renamed: bool) {
        if let Some(path) = self.absolute(path) {
            self.found.push(Use {
                line,
                path,
                given_on,
                renamed,
            });
        }
    }

    fn tree(&mut self, tree: &UseTree, mut before: Vec<String>, public: bool) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(&path.tree, before, public);
            }
            UseTree::Group(group) => group
                .items
                .iter()
                .for_each(|tree| self.tree(tree, before.clone(), public)),
            UseTree::Glob(glob) => self.add(&before, line_of(glob.span()), None, false),
            UseTree::Name(name) => {
                before.push(name.ident.to_string());
                let last = before.iter().rfind(|part| *part != "self").cloned();
                self.add(
                    &before,
                    line_of(name.span()),
                    last.filter(|_| public),
                    false,
                );
            }
            UseTree::Rename(rename) => {
                before.push(rename.ident.to_string());
                let name = rename.rename.to_string();
                let renamed = name != "_";
                self.add(
                    &before,
                    line_of(rename.span()),
                    Some(name).filter(|_| public),
                    renamed,
                );
            }
        }
    }

    /// Paths in a macro's arguments, which Syn does not parse.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let colons = |from: usize| {
            [from, from + 1]
                .iter()
                .all(|n| matches!(tokens.get(*n), Some(TokenTree::Punct(p)) if p.as_char() == ':'))
        };
        let mut index = 0;
        while index < tokens.len() {
            match &tokens[index] {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(first) => {
                    let mut path = vec![first.to_string()];
                    while colons(index + 1)
                        && matches!(tokens.get(index + 3), Some(TokenTree::Ident(_)))
                    {
                        path.push(tokens[index + 3].to_string());
                        index += 3;
                    }
                    if path.len() > 1 {
                        self.add(&path, line_of(first.span()), None, false);
                    }
                }
                _ => {}
            }
            index += 1;
        }
    }
}

impl<'a> Visit<'a> for Uses<'_> {
    skip_tests!();

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        if !only_in_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_mod(&mut self, module: &'a syn::ItemMod) {
        self.here.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.here.pop();
    }

    fn visit_file(&mut self, file: &'a syn::File) {
        for item in &file.items {
            if let Item::Mod(module) = item
                && only_in_tests(&module.attrs)
            {
                self.tests.push(
                    [self.here.clone(), vec![module.ident.to_string()]]
                        .concat()
                        .join("::"),
                );
            }
        }
        visit::visit_file(self, file);
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        let public = !matches!(item.vis, syn::Visibility::Inherited);
        self.tree(&item.tree, Vec::new(), public);
    }

    fn visit_visibility(&mut self, _: &'a syn::Visibility) {}

    fn visit_attribute(&mut self, _: &'a Attribute) {}

    fn visit_path(&mut self, path: &'a syn::Path) {
        let parts: Vec<_> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if parts.len() > 1 && path.leading_colon.is_none() {
            self.add(&parts, line_of(path.span()), None, false);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'a syn::Macro) {
        self.tokens(called.tokens.clone());
        visit::visit_macro(self, called);
    }
}
