//! An address with the length of its network, as people write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::AddressFamily;

use crate::error::{Error, Result};

/// `10.0.0.1/24`, `fd00::1/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) addr: IpAddr,
    pub(crate) length: u8,
}

impl Cidr {
    pub(crate) fn parse(text: &str) -> Result<Cidr> {
        let parsed = text.split_once('/').and_then(|(addr, length)| {
            let (addr, length) = (addr.parse().ok()?, length.parse().ok()?);
            let bits = if matches!(addr, IpAddr::V4(_)) {
                32
            } else {
                128
            };
            (length <= bits).then_some(Cidr { addr, length })
        });
        parsed.ok_or_else(|| {
            Error::invalid(
                format!("`{text}` is not an address with the length of its network"),
                "write 10.0.0.1/24 or fd00::1/64",
            )
        })
    }

    /// Where a route leads: a network, or `default` of the family that `via` has.
    pub(crate) fn parse_destination(text: &str, via: IpAddr) -> Result<Cidr> {
        if text != "default" {
            return Cidr::parse(text);
        }
        let addr = match via {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Ok(Cidr { addr, length: 0 })
    }

    pub(crate) fn family(self) -> AddressFamily {
        match self.addr {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn lengths_that_the_family_has_not_are_refused() {
        for text in ["10.0.0.1/24", "0.0.0.0/0", "10.0.0.1/32", "fd00::1/128"] {
            Cidr::parse(text).expect(text);
        }
        for text in [
            "",
            "/",
            "10.0.0.1",
            "10.0.0.1/33",
            "fd00::1/129",
            "fd00::/-1",
            "eth0/24",
        ] {
            let error = Cidr::parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn default_is_of_the_family_of_the_next_hop() {
        for (via, default) in [("10.0.0.1", "0.0.0.0/0"), ("fd00::1", "::/0")] {
            let via = via.parse().expect("an address");
            let parsed = Cidr::parse_destination("default", via).expect("it is");
            assert_eq!(parsed, Cidr::parse(default).expect("it is"));
        }
    }
}
