//! Where things are: unsafe code, the files that CONTRIBUTING names, those that cargo finds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use syn::spanned::Spanned;
use syn::visit::Visit;
use syn::{Attribute, Item};

use crate::source::{Offence, Source, is_shown, line_of, top};

/// Where unsafe code may be allowed: folders, and single files.
const UNSAFE: &[&str] = &[
    "netns-exec/src/sys/",
    "netns-exec/src/handoff/",
    // Share a cell between the two threads of a model.
    "netns-exec/src/models/",
    // Global allocators, signal handlers, threads made by clone(2).
    "tests/common/",
    "tests/executor_alloc.rs",
    "tests/executor_copies.rs",
    // What a thread does to itself, and to descriptors that it does not own.
    "tests/home/",
    "tests/executor/wakes.rs",
    // Stands in for the functions of libc that make system calls.
    "tests/faults/",
    // Threads as C code asks for them, and a child made by fork(2).
    "tests/births/",
    // A ring, and what a signal has the main thread do.
    "tests/audit/",
    "benches/src/alloc.rs",
    // What the command asks of the kernel, as the library's sys/.
    "netns-exec-cli/src/sys.rs",
];

pub(crate) fn unsafe_code_is_on_its_islands(tree: &[Source]) -> Vec<Offence> {
    struct Allowed(Vec<usize>);
    impl<'a> Visit<'a> for Allowed {
        fn visit_attribute(&mut self, attribute: &'a Attribute) {
            let lints = ["allow", "expect", "warn"]
                .iter()
                .any(|level| attribute.path().is_ident(level));
            let list = attribute.meta.require_list();
            if lints && list.is_ok_and(|list| list.tokens.to_string().contains("unsafe_code")) {
                self.0.push(line_of(attribute.span()));
            }
        }
    }
    let mut found = Vec::new();
    let mut needed = BTreeSet::new();
    for source in tree {
        let mut allowed = Allowed(Vec::new());
        source.rust.iter().for_each(|file| allowed.visit_file(file));
        match UNSAFE.iter().find(|place| source.path.starts_with(**place)) {
            Some(place) if !allowed.0.is_empty() => drop(needed.insert(*place)),
            Some(_) => {}
            None => found.extend(allowed.0.into_iter().map(|line| {
                source.offence(
                    line,
                    "allows unsafe code outside of UNSAFE; move the block to sys/ or handoff/",
                )
            })),
        }
    }
    let stale = UNSAFE.iter().filter(|place| !needed.contains(*place));
    let listed = tree
        .iter()
        .find(|source| source.path == "tests/tidy/places.rs");
    found.extend(stale.flat_map(|place| {
        listed.map(|source| {
            source.offence(
                1,
                format!("`{place}` is in UNSAFE and allows none; take it out"),
            )
        })
    }));
    found
}

/// A row of "Where things live" names files by their path in its first column, or, when
/// that is a folder, by their name in its second; `folder/*.rs` names all in the folder.
pub(crate) fn every_file_has_its_place_in_contributing(tree: &[Source]) -> Vec<Offence> {
    const SRC: &str = "netns-exec/src/";
    let Some(page) = tree.iter().find(|source| source.path == "CONTRIBUTING.md") else {
        return Vec::new();
    };
    let files: BTreeSet<&str> = tree
        .iter()
        .map(|source| source.path.as_str())
        .filter(|path| path.starts_with(SRC))
        .collect();
    let mut named = BTreeSet::new();
    let mut found = Vec::new();
    for (number, line) in (1..)
        .zip(page.text.lines())
        .filter(|(_, line)| line.starts_with("| `"))
    {
        let spans: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        let whole = spans.iter().filter(|span| span.starts_with(SRC));
        let folder = whole
            .clone()
            .next()
            .map_or("", |span| &span[..=span.rfind('/').expect("in SRC")]);
        for span in spans
            .iter()
            .filter(|span| span.ends_with(".rs") && !folder.is_empty())
        {
            let path = if span.starts_with(SRC) {
                span.to_string()
            } else {
                format!("{folder}{span}")
            };
            if let Some(folder) = path.strip_suffix("*.rs") {
                let inside = |path: &&&str| {
                    path.strip_prefix(folder)
                        .is_some_and(|rest| !rest.contains('/'))
                };
                named.extend(files.iter().filter(inside).copied());
            } else if let Some(path) = files.get(path.as_str()) {
                named.insert(path);
            } else {
                found.push(page.offence(
                    number,
                    format!("names `{path}`, which does not exist; take it out"),
                ));
            }
        }
    }
    let mut missing: Vec<_> = files.difference(&named).collect();
    missing.retain(|path| {
        !path.ends_with("/mod.rs") || !page.text.contains(path.trim_end_matches("mod.rs"))
    });
    let line = (1..)
        .zip(page.text.lines())
        .find(|(_, line)| line.contains("Where things live"));
    found.extend(missing.into_iter().map(|path| {
        page.offence(
            line.map_or(1, |(number, _)| number),
            format!("does not name `{path}`; say what it is for"),
        )
    }));
    found
}

/// The files that a target begins with, as cargo sees them.
pub(crate) fn targets() -> Vec<PathBuf> {
    let workspaces = ["Cargo.toml", "tests/crates/Cargo.toml"];
    workspaces.into_iter().flat_map(targets_of).collect()
}

fn targets_of(manifest: &str) -> Vec<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
            "--manifest-path",
            manifest,
        ])
        .current_dir(top())
        .output()
        .expect("cargo can be started");
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
    let paths = text
        .split("\"src_path\":\"")
        .skip(1)
        .map(|rest| &rest[..rest.find('"').expect("a string ends")]);
    let inside = paths.map(|path| {
        let path = PathBuf::from(plain(path));
        let inside = path.strip_prefix(top());
        inside.expect("the target's file is in the tree").to_owned()
    });
    inside.collect()
}

pub(crate) fn every_file_is_compiled(tree: &[Source], targets: &[PathBuf]) -> Vec<Offence> {
    let sources: BTreeMap<&str, &Source> = tree
        .iter()
        .map(|source| (source.path.as_str(), source))
        .collect();
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    let mut ahead: Vec<(String, bool)> = targets
        .iter()
        .map(|path| (path.display().to_string(), true))
        .collect();
    while let Some((path, root)) = ahead.pop() {
        let Some((path, source)) = sources.get_key_value(path.as_str()) else {
            continue;
        };
        let (true, Some(rust)) = (reached.insert(path), &source.rust) else {
            continue;
        };
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
        let own = match file {
            _ if root => folder.to_owned(),
            "mod.rs" => folder.to_owned(),
            file => format!("{folder}/{}", file.trim_end_matches(".rs")),
        };
        modules_beneath(&rust.items, folder, &own, &mut ahead);
    }
    let missed = tree.iter().filter(|source| source.path.ends_with(".rs"));
    let missed =
        missed.filter(|source| !reached.contains(source.path.as_str()) && !is_shown(&source.path));
    // A workspace of its own, for a nightly toolchain: `ci/fuzz` compiles it.
    let missed = missed.filter(|source| !source.path.starts_with("fuzz/fuzz_targets/"));
    missed
        .map(|source| {
            source.offence(
                1,
                "belongs to no target, so it is never compiled; add a `mod` or a stanza",
            )
        })
        .collect()
}

fn modules_beneath(items: &[Item], folder: &str, own: &str, ahead: &mut Vec<(String, bool)>) {
    for item in items {
        let Item::Mod(module) = item else { continue };
        let path = module
            .attrs
            .iter()
            .find(|attribute| attribute.path().is_ident("path"));
        if let Some((_, items)) = &module.content {
            let inside = format!("{own}/{}", module.ident);
            modules_beneath(items, &inside, &inside, ahead);
        } else if let Some(value) = path.and_then(|path| path.meta.require_name_value().ok()) {
            if let syn::Expr::Lit(syn::ExprLit {
                lit: syn::Lit::Str(name),
                ..
            }) = &value.value
            {
                ahead.push((plain(&format!("{folder}/{}", name.value())), false));
            }
        } else {
            ahead.push((format!("{own}/{}.rs", module.ident), false));
            ahead.push((format!("{own}/{}/mod.rs", module.ident), false));
        }
    }
}

/// Without `..`.
fn plain(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod broken {
    use super::*;
    use crate::source::assert_finds;

    #[test]
    fn unsafe_code_elsewhere_is_found() {
        assert_finds(
            unsafe_code_is_on_its_islands,
            &[
                ("netns-exec/src/sys/a.rs", "#![allow(unsafe_code)]"),
                (
                    "netns-exec/src/netns/b.rs",
                    "\n#[expect(clippy::all, unsafe_code, reason = \"\")]\nfn c() {}",
                ),
                ("benches/src/d.rs", "mod e { #![allow(unsafe_code)] }"),
            ],
            &[
                ("netns-exec/src/netns/b.rs:2", "UNSAFE"),
                ("benches/src/d.rs:1", "UNSAFE"),
            ],
        );
    }

    #[test]
    fn island_without_unsafe_code_is_struck_from_the_list() {
        let tree = [Source::new("tests/tidy/places.rs", "")];
        assert_eq!(unsafe_code_is_on_its_islands(&tree).len(), UNSAFE.len());
    }

    #[test]
    fn file_that_contributing_does_not_name_is_found_and_so_is_one_that_is_gone() {
        let page = "# Contributing\n## Where things live\n| `netns-exec/src/netns/` | `id.rs`, `gone.rs` |\n\
                    | `netns-exec/src/sys/*.rs` | the kernel |\n";
        assert_finds(
            every_file_has_its_place_in_contributing,
            &[
                ("CONTRIBUTING.md", page),
                ("netns-exec/src/netns/mod.rs", ""),
                ("netns-exec/src/netns/id.rs", ""),
                ("netns-exec/src/netns/weak.rs", ""),
                ("netns-exec/src/sys/a.rs", ""),
                ("netns-exec/src/home/mod.rs", ""),
            ],
            &[
                ("CONTRIBUTING.md:3", "netns/gone.rs"),
                ("CONTRIBUTING.md:2", "home/mod.rs"),
                ("CONTRIBUTING.md:2", "netns/weak.rs"),
            ],
        );
    }

    #[test]
    fn file_that_no_target_reaches_is_found() {
        let targets = [
            PathBuf::from("tests/a/main.rs"),
            PathBuf::from("benches/b.rs"),
        ];
        assert_finds(
            |tree| every_file_is_compiled(tree, &targets),
            &[
                (
                    "tests/a/main.rs",
                    "mod c;\n#[path = \"../odd.rs\"]\nmod d;\nmod e { mod f; }",
                ),
                ("tests/a/c.rs", "mod g;"),
                ("tests/a/c/g.rs", ""),
                ("tests/a/e/f.rs", ""),
                ("tests/odd.rs", ""),
                ("benches/b.rs", "// mod h;"),
                ("benches/h.rs", ""),
                ("tests/a/forgotten.rs", ""),
                ("tests/a/ui/shown.rs", "no Rust"),
            ],
            &[
                ("benches/h.rs:1", "no target"),
                ("tests/a/forgotten.rs:1", "no target"),
            ],
        );
    }

    #[test]
    fn cargo_tells_its_targets() {
        let targets = targets();
        assert!(
            targets.contains(&PathBuf::from("netns-exec/src/lib.rs")),
            "{targets:?}"
        );
    }
}
