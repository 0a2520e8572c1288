//! The namespaces that a command line names.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParserFactory};
use clap_complete::engine::ArgValueCompleter;
use netns_exec::Netns;

use crate::completions::netns_args;
use crate::failure::Failure;
use crate::names::names;

/// How people name one namespace: `blue`, `/proc/4711/ns/net`, `pid:4711`. A name
/// or path is any bytes, as files' names are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetnsArg {
    /// As `ip netns` keeps it.
    Name(OsString),
    /// A file of a namespace; what holds a slash.
    Path(PathBuf),
    /// The namespace of a process. Kept as text, for `pid:x` to be refused with
    /// words of our own.
    Pid(OsString),
}

impl From<OsString> for NetnsArg {
    fn from(text: OsString) -> Self {
        let bytes = text.as_bytes();
        if bytes.contains(&b'/') {
            NetnsArg::Path(text.into())
        } else if let Some(pid) = bytes.strip_prefix(b"pid:") {
            NetnsArg::Pid(OsStr::from_bytes(pid).to_owned())
        } else {
            NetnsArg::Name(text)
        }
    }
}

impl ValueParserFactory for NetnsArg {
    type Parser = clap::builder::MapValueParser<OsStringValueParser, fn(OsString) -> NetnsArg>;

    fn value_parser() -> Self::Parser {
        OsStringValueParser::new().map(NetnsArg::from)
    }
}

impl fmt::Display for NetnsArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_os_string().display().fmt(f)
    }
}

impl NetnsArg {
    /// As it was given.
    pub(crate) fn to_os_string(&self) -> OsString {
        match self {
            NetnsArg::Name(name) => name.clone(),
            NetnsArg::Path(path) => path.clone().into(),
            NetnsArg::Pid(pid) => {
                let mut text = OsString::from("pid:");
                text.push(pid);
                text
            }
        }
    }

    /// Opens the namespace.
    pub(crate) fn open(&self) -> Result<Netns, Failure> {
        let opened = match self {
            NetnsArg::Name(name) => Netns::open_os(name),
            NetnsArg::Path(path) => Netns::from_path(path),
            NetnsArg::Pid(pid) => match pid.to_str().and_then(|pid| pid.parse().ok()) {
                Some(pid) => Netns::from_pid(pid),
                None => {
                    let attempt = format!("`{}` is not a process id", pid.display());
                    return Err(Failure::new(attempt)
                        .hint("write pid:4711, or a name, or a path with a slash"));
                }
            },
        };
        opened.map_err(Failure::from)
    }
}

/// A namespace, with what to call it in front of its command's output.
pub(crate) struct Labelled {
    pub(crate) label: OsString,
    pub(crate) netns: Netns,
}

/// The namespaces of a command that takes several: `NS...` or `--all`.
#[derive(clap::Args)]
pub(crate) struct NetnsArgs {
    /// The namespaces: a NAME as `ip netns list` shows it, a PATH (anything with
    /// a slash), or pid:N for that of a process
    #[arg(value_name = "NS", required_unless_present = "all",
          add = ArgValueCompleter::new(netns_args))]
    netns: Vec<NetnsArg>,

    /// All named namespaces, as `ip -all netns` takes them
    #[arg(long, conflicts_with = "netns")]
    all: bool,
}

impl NetnsArgs {
    pub(crate) fn all(&self) -> bool {
        self.all
    }

    /// Opens all of them, each namespace once however often it is named, with
    /// the first of its names.
    pub(crate) fn open(&self) -> Result<Vec<Labelled>, Failure> {
        let mut opened: Vec<Labelled> = Vec::new();
        let mut add = |label: OsString, netns: Netns| {
            if !opened.iter().any(|known| known.netns == netns) {
                opened.push(Labelled { label, netns });
            }
        };
        if self.all {
            for name in names()? {
                match Netns::open_os(&name) {
                    Ok(netns) => add(name, netns),
                    // Deleted meanwhile, being made, or left by a crash.
                    Err(error) if error.is_not_found() || error.is_not_a_netns() => {}
                    Err(error) => return Err(error.into()),
                }
            }
        } else {
            for arg in &self.netns {
                add(arg.to_os_string(), arg.open()?);
            }
        }
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> NetnsArg {
        NetnsArg::from(OsString::from(text))
    }

    #[test]
    fn form_decides_what_is_meant() {
        assert_eq!(parse("blue"), NetnsArg::Name("blue".into()));
        assert_eq!(parse("./blue"), NetnsArg::Path("./blue".into()));
        assert_eq!(
            parse("/proc/1/ns/net"),
            NetnsArg::Path("/proc/1/ns/net".into())
        );
        assert_eq!(parse("pid:1"), NetnsArg::Pid("1".into()));
        assert_eq!(parse("pid1"), NetnsArg::Name("pid1".into()));
        assert_eq!(parse("pid:/1"), NetnsArg::Path("pid:/1".into()));
    }

    #[test]
    fn what_is_parsed_is_shown_as_it_was() {
        for text in ["blue", "/run/netns/blue", "pid:4711", "pid:x"] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_kept() {
        let bytes = OsStr::from_bytes(b"bl\xffue");
        let arg = NetnsArg::from(bytes.to_owned());
        assert_eq!(arg.to_os_string(), bytes);
        let failure = arg.open().expect_err("no such name").to_string();
        assert!(failure.contains("/run/netns has no such name"), "{failure}");
    }

    #[test]
    fn pid_that_is_none_is_refused_with_a_hint() {
        for text in ["pid:x", "pid:", "pid:-1", "pid:99999999999"] {
            let failure = parse(text).open().expect_err(text).to_string();
            assert!(failure.contains("not a process id") && failure.contains("pid:4711"));
        }
    }
}
