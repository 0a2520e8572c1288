//! What NS, PORTS and NS[,ADDR...] mean on a command line. Opens nothing.
//!
//! `fuzz/` compiles this folder too, so it uses nothing else of the command.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::{self, FromStr};

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
}

/// The number behind `pid:`.
pub(crate) fn pid(text: &OsStr) -> Option<u32> {
    number(text.to_str()?)
}

/// Digits, and nothing else: the standard library takes a plus as well.
fn number<N: FromStr>(text: &str) -> Option<N> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Which ports will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    Exact(u16),
    Range(RangeInclusive<u16>),
    Dynamic,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| {
            number(text).ok_or_else(|| {
                format!("`{text}` is not a port; write 8080, 33000-33099 or dynamic")
            })
        };
        Ok(match text.split_once('-') {
            _ if text == "dynamic" => Choice::Dynamic,
            Some((low, high)) => Choice::Range(port(low)?..=port(high)?),
            None => Choice::Exact(port(text)?),
        })
    }
}

/// A namespace, and addresses in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OnArg {
    pub(crate) netns: NetnsArg,
    /// None: every family that the namespace has.
    pub(crate) addrs: Vec<AddrArg>,
}

/// An address, and the device that it is tied to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddrArg {
    pub(crate) addr: IpAddr,
    pub(crate) device: Option<String>,
}

impl OnArg {
    /// `NS[,ADDR[%DEVICE]...]`, in which NS is any bytes but a comma.
    pub(crate) fn parse(text: OsString) -> Result<OnArg, String> {
        let mut parts = text.as_bytes().split(|&byte| byte == b',');
        let netns = OsStr::from_bytes(parts.next().unwrap_or_default());
        if netns.is_empty() {
            return Err("the namespace comes first".to_owned());
        }
        let addr = |bytes: &[u8]| {
            let (addr, device) = match bytes.iter().position(|&byte| byte == b'%') {
                Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
                None => (bytes, None),
            };
            let shown = String::from_utf8_lossy(bytes);
            let addr = (str::from_utf8(addr).ok())
                .and_then(|addr| addr.parse().ok())
                .ok_or_else(|| format!("`{shown}` is not an IP address"))?;
            let device = (device.map(str::from_utf8).transpose())
                .map_err(|_| format!("`{shown}` ends with what is no device's name"))?;
            let device = device.map(str::to_owned);
            Ok::<_, String>(AddrArg { addr, device })
        };
        let addrs = parts.map(addr).collect::<Result<_, _>>()?;
        let netns = NetnsArg::from(netns.to_owned());
        Ok(OnArg { netns, addrs })
    }

    /// Whether a member on `addr` was asked for by this.
    pub(crate) fn names(&self, addr: IpAddr) -> bool {
        self.addrs.is_empty() || self.addrs.iter().any(|arg| arg.addr.to_canonical() == addr)
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
    fn ports_are_one_several_or_dynamic() {
        assert_eq!("8080".parse(), Ok(Choice::Exact(8080)));
        assert_eq!("1-65535".parse(), Ok(Choice::Range(1..=65535)));
        assert_eq!("dynamic".parse(), Ok(Choice::Dynamic));
        for text in ["", "http", "65536", "-1", "+1", "1-", "1-2-3", "1..2"] {
            let refused = text.parse::<Choice>().expect_err(text);
            assert!(refused.contains("33000-33099"), "{refused}");
        }
    }

    #[test]
    fn on_is_a_namespace_and_its_addresses() {
        let parse = |text: &str| OnArg::parse(text.into());
        let on = parse("blue,127.0.0.1,::1").expect("well-formed");
        assert_eq!(on.netns, NetnsArg::Name("blue".into()));
        assert_eq!(on.addrs.len(), 2);
        let on = parse("pid:1").expect("well-formed");
        assert_eq!(on.addrs, []);
        for text in ["", ",::1", "blue,", "blue,localhost", "blue,::1,"] {
            parse(text).expect_err(text);
        }
    }

    #[test]
    fn device_whose_name_is_no_text_is_none() {
        let bytes = OsStr::from_bytes(b"blue,::1%eth\xff").to_owned();
        let refused = OnArg::parse(bytes).expect_err("no text");
        assert!(refused.contains("no device's name"), "{refused}");
    }
}
