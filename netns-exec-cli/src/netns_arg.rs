//! The namespaces that a command line names.

use std::ffi::OsString;

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParserFactory};
use clap_complete::engine::ArgValueCompleter;
use netns_exec::Netns;

use crate::completions::netns_args;
use crate::failure::Failure;
use crate::names::names;
use crate::syntax::{self, NetnsArg};

impl ValueParserFactory for NetnsArg {
    type Parser = clap::builder::MapValueParser<OsStringValueParser, fn(OsString) -> NetnsArg>;

    fn value_parser() -> Self::Parser {
        OsStringValueParser::new().map(NetnsArg::from)
    }
}

impl NetnsArg {
    /// Opens the namespace.
    pub(crate) fn open(&self) -> Result<Netns, Failure> {
        let opened = match self {
            NetnsArg::Name(name) => Netns::open_os(name),
            NetnsArg::Path(path) => Netns::from_path(path),
            NetnsArg::Pid(pid) => match syntax::pid(pid) {
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
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn parse(text: &str) -> NetnsArg {
        NetnsArg::from(OsString::from(text))
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
        for text in ["pid:x", "pid:", "pid:-1", "pid:+1", "pid:99999999999"] {
            let failure = parse(text).open().expect_err(text).to_string();
            assert!(failure.contains("not a process id") && failure.contains("pid:4711"));
        }
    }
}
