//! The namespaces that a command line names.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use netns_exec::Netns;

use crate::failure::Failure;

/// How people name one namespace: `blue`, `/proc/4711/ns/net`, `pid:4711`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetnsArg {
    /// As `ip netns` keeps it.
    Name(String),
    /// A file of a namespace; what holds a slash.
    Path(PathBuf),
    /// The namespace of a process. Kept as text, for `pid:x` to be refused with
    /// words of our own.
    Pid(String),
}

impl FromStr for NetnsArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text.contains('/') {
            NetnsArg::Path(text.into())
        } else if let Some(pid) = text.strip_prefix("pid:") {
            NetnsArg::Pid(pid.to_owned())
        } else {
            NetnsArg::Name(text.to_owned())
        })
    }
}

impl fmt::Display for NetnsArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetnsArg::Name(name) => f.write_str(name),
            NetnsArg::Path(path) => path.display().fmt(f),
            NetnsArg::Pid(pid) => write!(f, "pid:{pid}"),
        }
    }
}

impl NetnsArg {
    /// Opens the namespace.
    pub(crate) fn open(&self) -> Result<Netns, Failure> {
        let opened = match self {
            NetnsArg::Name(name) => Netns::open(name),
            NetnsArg::Path(path) => Netns::from_path(path),
            NetnsArg::Pid(pid) => match pid.parse() {
                Ok(pid) => Netns::from_pid(pid),
                Err(_) => {
                    return Err(Failure::new(format!("`{pid}` is not a process id"))
                        .hint("write pid:4711, or a name, or a path with a slash"));
                }
            },
        };
        opened.map_err(Failure::from)
    }
}

/// The namespaces of a command that takes several: `NS...` or `--all`.
#[derive(clap::Args)]
pub(crate) struct NetnsArgs {
    /// The namespaces: a NAME as `ip netns list` shows it, a PATH (anything with
    /// a slash), or pid:N for that of a process
    #[arg(value_name = "NS", required_unless_present = "all")]
    netns: Vec<NetnsArg>,

    /// All named namespaces
    #[arg(long, conflicts_with = "netns")]
    all: bool,
}

impl NetnsArgs {
    /// Opens all of them, each namespace once however often it is named, with
    /// the name to show for it.
    pub(crate) fn open(&self) -> Result<Vec<(String, Netns)>, Failure> {
        let mut opened: Vec<(String, Netns)> = Vec::new();
        if self.all {
            let listed = Netns::list()?;
            if listed.is_empty() {
                return Err(
                    Failure::new("there is no named netns").hint("`ip netns add NAME` makes one")
                );
            }
            opened.extend(listed.into_iter().map(|ns| (ns.label().to_owned(), ns)));
        } else {
            for arg in &self.netns {
                let ns = arg.open()?;
                if !opened.iter().any(|(_, known)| *known == ns) {
                    opened.push((arg.to_string(), ns));
                }
            }
        }
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> NetnsArg {
        text.parse().expect("anything can be parsed")
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
    fn pid_that_is_none_is_refused_with_a_hint() {
        for text in ["pid:x", "pid:", "pid:-1", "pid:99999999999"] {
            let failure = parse(text).open().expect_err(text).to_string();
            assert!(failure.contains("not a process id") && failure.contains("pid:4711"));
        }
    }
}
