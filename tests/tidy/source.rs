//! The tree as the rules read it: files, their syntax, their prose.

use std::fmt;
use std::path::Path;

use proc_macro2::Span;
use syn::{Attribute, Item};

pub(crate) struct Source {
    /// From the top of the tree.
    pub(crate) path: String,
    pub(crate) text: String,
    /// Absent for what is no Rust, and for what must not compile.
    pub(crate) rust: Option<syn::File>,
}

pub(crate) struct Offence {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Whether a file is an input of the test that shows what must not compile.
pub(crate) fn is_shown(path: &str) -> bool {
    path.starts_with("tests/") && path.contains("/ui/")
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let parsed = path.ends_with(".rs") && !is_shown(path);
        let rust = parsed.then(|| {
            syn::parse_file(text)
                .unwrap_or_else(|error| panic!("{path}:{}: {error}", error.span().start().line))
        });
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            rust,
        }
    }

    pub(crate) fn offence(&self, line: usize, what: impl Into<String>) -> Offence {
        Offence {
            path: self.path.clone(),
            line,
            what: what.into(),
        }
    }
}

pub(crate) fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the workspace")
}

/// Every Rust file, document and script of the tree.
pub(crate) fn tree() -> Vec<Source> {
    let mut sources = Vec::new();
    let mut folders = vec![top().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder
            .read_dir()
            .expect("a folder of the tree")
            .map(Result::unwrap)
        {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                let foreign = name == "target" || name.starts_with('.') && name != ".ci";
                folders.extend((!foreign).then_some(path));
            } else if [".rs", ".md", ".sh"].iter().any(|end| name.ends_with(end))
                || ["run", "demo"].contains(&name.as_str())
            {
                let text = std::fs::read_to_string(&path).expect("text");
                let path = path.strip_prefix(top()).unwrap().to_str().unwrap();
                sources.push(Source::new(path, &text));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

pub(crate) fn line_of(span: Span) -> usize {
    span.start().line
}

/// Whether an item is there in tests only: `cfg(test)`, `cfg(all(test, ..))`, `test`.
pub(crate) fn only_in_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.meta.require_list().is_ok_and(|list| {
                    let text = list.tokens.to_string();
                    text == "test" || text.starts_with("all (test")
                })
    })
}

pub(crate) fn attributes_of(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// For a visitor of syntax: walks what ships: every item that is not there for tests only.
macro_rules! skip_tests {
    () => {
        fn visit_item(&mut self, item: &'a syn::Item) {
            if !$crate::source::only_in_tests($crate::source::attributes_of(item)) {
                syn::visit::visit_item(self, item);
            }
        }
    };
}
pub(crate) use skip_tests;

/// The comments of a Rust file, by line. Syn leaves out those that document nothing.
pub(crate) fn comments(text: &str) -> Vec<(usize, &str)> {
    let bytes = text.as_bytes();
    let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
    let past = |from: usize, end: &str| {
        text[from..]
            .find(end)
            .map_or(text.len(), |n| from + n + end.len())
    };
    let mut found = Vec::new();
    let (mut line, mut index) = (1, 0);
    while index < bytes.len() {
        let start = index;
        let word = index > 0 && (at(index - 1).is_ascii_alphanumeric() || at(index - 1) == b'_');
        index = match at(index) {
            b'/' if at(index + 1) == b'/' => past(index, "\n") - 1,
            b'/' if at(index + 1) == b'*' => past(index, "*/"),
            b'r' if !word || [b'b', b'c'].contains(&at(start.wrapping_sub(1))) => {
                let hashes = bytes[index + 1..]
                    .iter()
                    .take_while(|byte| **byte == b'#')
                    .count();
                match at(index + 1 + hashes) {
                    b'"' => past(index + 2 + hashes, &format!("\"{}", "#".repeat(hashes))),
                    _ => index + 1,
                }
            }
            b'"' => {
                let mut end = index + 1;
                while end < bytes.len() && at(end) != b'"' {
                    end += if at(end) == b'\\' { 2 } else { 1 };
                }
                end + 1
            }
            b'\'' if at(index + 1) == b'\\' => past(index + 3, "'"),
            // A character and not a lifetime.
            b'\'' => match text[index + 1..].chars().next().map_or(1, char::len_utf8) {
                length if at(index + 1 + length) == b'\'' => index + 2 + length,
                _ => index + 1,
            },
            _ => index + 1,
        };
        index = index.max(start + 1).min(bytes.len());
        let skipped = &bytes[start..index];
        if skipped.starts_with(b"//") || skipped.starts_with(b"/*") {
            found.extend(
                text[start..index]
                    .lines()
                    .enumerate()
                    .map(|(n, text)| (line + n, text)),
            );
        }
        line += skipped.iter().filter(|byte| **byte == b'\n').count();
    }
    found
}

/// The prose of a source by line: comments in code, all but the code in documents.
pub(crate) fn prose(source: &Source) -> Vec<(usize, &str)> {
    if source.path.ends_with(".rs") {
        return comments(&source.text);
    }
    let document = source.path.ends_with(".md");
    let mut fenced = false;
    let lines = (1..).zip(source.text.lines());
    lines
        .filter(|(_, line)| {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            if document {
                !fenced && !fence
            } else {
                line.trim_start().starts_with('#')
            }
        })
        .collect()
}

/// What a rule finds in files that it is given, as `path:line` and a word of the message.
#[track_caller]
pub(crate) fn assert_finds(
    rule: impl Fn(&[Source]) -> Vec<Offence>,
    files: &[(&str, &str)],
    expected: &[(&str, &str)],
) {
    let tree: Vec<Source> = files
        .iter()
        .map(|(path, text)| Source::new(path, text))
        .collect();
    let found: Vec<String> = rule(&tree).iter().map(Offence::to_string).collect();
    let as_expected = found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, (place, word))| {
            found.starts_with(&format!("{place}: ")) && found.contains(word)
        });
    assert!(as_expected, "expected {expected:#?}\nfound {found:#?}");
}

#[test]
fn comments_are_told_from_strings_and_characters() {
    let text = "let a = \"// no\"; // yes\nlet b = r#\"\" /* no */ \"#; /* yes\nyes */ let c = '\"'; // yes\n\
                fn d<'a>(e: &'a str) {} // yes\nlet f = '\\''; let g = b\"\\\"//\"; /// yes\n";
    let lines: Vec<usize> = comments(text).iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [1, 2, 3, 3, 4, 5]);
    assert!(comments(text).iter().all(|(_, text)| text.contains("yes")));
}
