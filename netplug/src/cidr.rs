//! Address arithmetic: a subnet ([`Cidr`]) and a run of addresses ([`Span`]), for both families alike.
//! Addresses are counted as `u128` offsets, so that the allocator needs no second code path for IPv6.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// A subnet such as `10.88.0.0/24`: the address of the network, never of a host in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    base: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Where pods live when nobody says otherwise.
    pub(crate) const DEFAULT: Cidr = Cidr { base: IpAddr::V4(Ipv4Addr::new(10, 88, 0, 0)), prefix: 16 };
    /// `fe80::/64`.
    pub(crate) const LINK_LOCAL: Cidr = Cidr { base: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), prefix: 64 };

    /// `10.88.0.0`, 24. Refuses a prefix that is too long and an address with host bits.
    pub fn new(base: IpAddr, prefix: u8) -> Result<Cidr, String> {
        let width = width(base);
        if prefix > width {
            return Err(format!("/{prefix} is longer than the {width} bits of {base}"));
        }
        let network = from_number(number(base) & mask(width, prefix), base);
        if network != base {
            return Err(format!("{base}/{prefix} has host bits set: write {network}/{prefix}"));
        }
        Ok(Cidr { base, prefix })
    }

    /// The subnet that an address with prefix lies in: host bits are no error.
    pub fn around(text: &str) -> Result<Cidr, String> {
        let (ip, prefix) = text.split_once('/').ok_or_else(|| format!("{text:?} has no /prefix, as in 10.88.0.0/24"))?;
        let ip: IpAddr = ip.parse().map_err(|_| format!("{ip:?} is not an IP address"))?;
        let prefix = prefix.parse().map_err(|_| format!("{prefix:?} is not a prefix length"))?;
        let base = if prefix <= width(ip) { from_number(number(ip) & mask(width(ip), prefix), ip) } else { ip };
        Cidr::new(base, prefix)
    }

    /// One address alone: `10.88.0.5/32`.
    pub fn host(ip: IpAddr) -> Cidr {
        Cidr { base: ip, prefix: width(ip) }
    }

    /// `0.0.0.0/0` or `::/0`, of the family of that address.
    pub(crate) fn everything(like: IpAddr) -> Cidr {
        Cidr { base: from_number(0, like), prefix: 0 }
    }

    /// The network's address.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// The prefix length in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it is an IPv4 subnet.
    pub fn is_v4(&self) -> bool {
        self.base.is_ipv4()
    }

    /// Whether the address lies in the subnet.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_v4() && number(ip) & mask(width(ip), self.prefix) == number(self.base)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }

    /// Offset of the last address; `/0` of IPv6 saturates.
    pub fn last_offset(&self) -> u128 {
        !mask(width(self.base), self.prefix) & full(width(self.base))
    }

    /// How far the address is into the subnet, if it lies in it.
    pub(crate) fn offset(&self, ip: IpAddr) -> Option<u128> {
        self.contains(ip).then(|| number(ip) - number(self.base))
    }

    /// The address at an offset that is at most [`Cidr::last_offset`].
    pub fn at(&self, offset: u128) -> IpAddr {
        from_number(number(self.base) | (offset & self.last_offset()), self.base)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Cidr, String> {
        let (base, prefix) = text.split_once('/').ok_or_else(|| format!("{text:?} has no /prefix, as in 10.88.0.0/24"))?;
        let base = base.parse().map_err(|_| format!("{base:?} is not an IP address"))?;
        let prefix = prefix.parse().map_err(|_| format!("{prefix:?} is not a prefix length"))?;
        Cidr::new(base, prefix)
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Cidr, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

/// A run of addresses, both ends included: written `10.88.0.5`, `10.88.0.5-10.88.0.9` or `10.88.0.64/26`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    /// The first address.
    pub first: IpAddr,
    /// The last address, of the same family.
    pub last: IpAddr,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        if text.contains('/') {
            let cidr: Cidr = text.parse()?;
            return Ok(Span { first: cidr.base(), last: cidr.at(cidr.last_offset()) });
        }
        let address = |word: &str| word.trim().parse::<IpAddr>().map_err(|_| format!("{word:?} is not an IP address"));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let span = Span { first: address(first)?, last: address(last)? };
        if span.first.is_ipv4() != span.last.is_ipv4() || span.first > span.last {
            return Err(format!("{text:?} doesn't go from a lower to a higher address of one family"));
        }
        Ok(span)
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Span, String> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        span.to_string()
    }
}

fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn full(width: u8) -> u128 {
    if width == 128 { u128::MAX } else { (1 << width) - 1 }
}

fn mask(width: u8, prefix: u8) -> u128 {
    if prefix == 0 { 0 } else { full(width) & (full(width) << (width - prefix)) }
}

pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

pub(crate) fn from_number(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("10.88.0.0/24", Ok("10.88.0.255"))]
    #[case("10.88.0.0/16", Ok("10.88.255.255"))]
    #[case("0.0.0.0/0", Ok("255.255.255.255"))]
    #[case("10.0.0.1/32", Ok("10.0.0.1"))]
    #[case("fd00::/64", Ok("fd00::ffff:ffff:ffff:ffff"))]
    #[case("10.88.0.1/24", Err("10.88.0.1/24 has host bits set: write 10.88.0.0/24"))]
    #[case("10.88.0.0/33", Err("/33 is longer than the 32 bits of 10.88.0.0"))]
    #[case("10.88.0.0", Err("\"10.88.0.0\" has no /prefix, as in 10.88.0.0/24"))]
    #[case("10.88.0/24", Err("\"10.88.0\" is not an IP address"))]
    fn subnets(#[case] text: &str, #[case] last: Result<&str, &str>) {
        let found = text.parse::<Cidr>().map(|cidr| cidr.at(cidr.last_offset()).to_string());
        assert_eq!(found, last.map(str::to_owned).map_err(str::to_owned));
    }

    #[rstest]
    #[case("10.0.0.0/8", "10.88.0.0/24", true)]
    #[case("10.88.0.0/24", "10.88.1.0/24", false)]
    #[case("fd00::/8", "10.0.0.0/8", false)]
    #[case("fd00::/8", "fd12::/64", true)]
    fn overlap(#[case] a: Cidr, #[case] b: Cidr, #[case] overlaps: bool) {
        assert_eq!(a.overlaps(&b), overlaps);
        assert_eq!(b.overlaps(&a), overlaps);
    }

    #[rstest]
    #[case("10.0.0.5", "10.0.0.5")]
    #[case("10.0.0.5-10.0.0.9", "10.0.0.5-10.0.0.9")]
    #[case("10.0.0.64/26", "10.0.0.64-10.0.0.127")]
    fn spans(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(text.parse::<Span>().unwrap().to_string(), shown);
    }

    #[rstest]
    #[case("10.0.0.9-10.0.0.5")]
    #[case("10.0.0.9-fd00::1")]
    #[case("ten")]
    fn no_spans(#[case] text: &str) {
        text.parse::<Span>().unwrap_err();
    }
}
