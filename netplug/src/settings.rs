//! What the user may choose, and what a pod asks for: plain data, checked in one place before anything is touched.
//! Every complaint names the field as it is written.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    cidr::{Cidr, Span},
    error::{Error, show_port},
    hash::fnv1a,
    ipam::Pool,
};

/// IFNAMSIZ less the NUL.
const LINK_NAME_MAX: usize = 15;
/// NFT_NAME_MAXLEN is 256; ours are shorter so that they can be typed.
const TABLE_NAME_MAX: usize = 63;

/// One bridge network of a node.
///
/// Several may live on one host, each with a bridge, a table and a state directory of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The bridge's name, at most 15 bytes.
    pub bridge: String,
    /// Where addresses come from; the first range of a family that has a free one gives it. A pod gets one address a family.
    pub ranges: Vec<Range>,
    /// The nftables table (family inet) that is ours alone.
    pub table: String,
    /// Of the bridge and of every pod; unset: that of the link with the default route, or 1500.
    pub mtu: Option<u32>,
    /// Leases live here. On a tmpfs: what a reboot ends needs no fsync.
    pub state_dir: PathBuf,
    /// Whether what pods send out of the node gets the node's address.
    pub masquerade: bool,
    /// Destinations beside the ranges that see the pods' own addresses.
    pub masquerade_except: Vec<Cidr>,
    /// How long an address rests between two pods.
    pub reuse_after: Duration,
    /// How long is waited for somebody on the bridge who has the address already that a pod is to get; none: nobody is asked. Only a
    /// bridge that other machines are on needs it, and every new pod waits so long, one after the other.
    pub probe: Option<Duration>,
    /// Whether pods may talk to each other.
    pub isolation: Isolation,
    /// With [`Isolation::Routed`]: whether pods whose packets no rule has to see may hand them to each other past the host's rules, where
    /// the kernel can (cls_bpf: Linux 5.10). A new pod does some 0.2 s after no other has come: its start doesn't wait for it.
    pub direct: bool,
    /// With that: the cgroup (v2) below which pods' processes are, if there is one. Their sockets are then led to an endpoint when they are
    /// connected to a Service (TCP, without affinity), so that nothing is translated on the way.
    pub pods_cgroup: Option<PathBuf>,
    /// Whether pods ask for names at the gateways' addresses (port 53): then firewalls that keep them from the node itself are told of, too.
    pub resolver: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            bridge: "nodeagent0".into(),
            ranges: vec![Range { subnet: Cidr::DEFAULT, gateway: None, exclude: Vec::new() }],
            table: "nodeagent".into(),
            mtu: None,
            state_dir: "/run/nodeagent/net".into(),
            masquerade: true,
            masquerade_except: Vec::new(),
            reuse_after: Duration::from_secs(60),
            probe: None,
            isolation: Isolation::Off,
            direct: true,
            pods_cgroup: None,
            resolver: false,
        }
    }
}

/// Where addresses come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The subnet that the bridge and the pods share.
    pub subnet: Cidr,
    /// The bridge's address; unset: the subnet's first.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Addresses that no pod gets.
    #[serde(default)]
    pub exclude: Vec<Span>,
}

/// Whether pods of one bridge reach each other, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Isolation {
    /// They do, as neighbours: straight through the bridge, past the host's rules.
    #[default]
    Off,
    /// They do, by the host, which sees and may refuse every packet: what services and network policies need. A pod knows no
    /// neighbour but the host, and its link is no port of the bridge, which has the gateways' addresses only.
    Routed,
    /// They don't, nor by ports that a pod publishes on the host: those are for the host and the world.
    Pods,
}

/// A transport protocol that ports belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// 6.
    Tcp,
    /// 17.
    Udp,
    /// 132.
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// As Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = String;

    /// By its name, in capital letters.
    fn from_str(text: &str) -> Result<Protocol, String> {
        let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        all.into_iter().find(|protocol| protocol.name() == text).ok_or_else(|| format!("{text} is none of TCP, UDP, SCTP"))
    }
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Port {
    /// Which of the host's addresses; unset or unspecified: all of them, loopback included (IPv4).
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// Of both.
    pub protocol: Protocol,
}

impl Port {
    /// The address that it is bound to; none for `0.0.0.0`, `::` and unset.
    pub(crate) fn specific_ip(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether it concerns that family. `0.0.0.0` is IPv4 alone, `::` and unset are both, as sockets have it.
    pub(crate) fn serves(&self, v4: bool) -> bool {
        match self.host_ip {
            None => true,
            Some(IpAddr::V6(ip)) if ip.is_unspecified() => true,
            Some(ip) => ip.is_ipv4() == v4,
        }
    }

    /// Whether one socket address could be meant by both.
    pub(crate) fn collides(&self, other: &Port) -> bool {
        let families = [true, false].into_iter().any(|v4| self.serves(v4) && other.serves(v4));
        let addresses = match (self.specific_ip(), other.specific_ip()) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        self.protocol == other.protocol && self.host_port == other.host_port && families && addresses
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show_port(f, self.protocol, self.specific_ip(), self.host_port)
    }
}

impl Range {
    /// The bridge's address in this range: the one given, or the subnet's first.
    pub fn gateway(&self) -> IpAddr {
        self.gateway.unwrap_or_else(|| self.subnet.at(1))
    }

    /// What is wrong with it, if something is.
    pub fn problem(&self) -> Option<(RangeField, String)> {
        let subnet = self.subnet;
        let longest = if subnet.is_v4() { 30 } else { 126 };
        if subnet.prefix() > longest || subnet.prefix() < 8 {
            return Some((RangeField::Subnet, format!("{subnet} must be between /8 and /{longest}")));
        }
        if let IpAddr::V4(base) = subnet.base()
            && (base.is_loopback() || base.is_multicast() || base.octets()[0] == 0 || base.octets()[0] >= 240)
        {
            return Some((RangeField::Subnet, format!("{subnet} is not for hosts; take one of 10.0.0.0/8")));
        }
        if let IpAddr::V6(base) = subnet.base()
            && (base.is_multicast()
                || base.is_unicast_link_local()
                || base.segments()[..7] == Ipv6Addr::LOCALHOST.segments()[..7])
        {
            return Some((RangeField::Subnet, format!("{subnet} is not for hosts; take one of fd00::/8")));
        }
        let gateway = self.gateway();
        if !subnet.contains(gateway) {
            return Some((RangeField::Gateway, format!("{gateway} is not in {subnet}")));
        }
        if gateway == subnet.base() || (subnet.is_v4() && subnet.offset(gateway) == Some(subnet.last_offset())) {
            return Some((RangeField::Gateway, format!("{gateway} is the network's or its broadcast address")));
        }
        let outside = |span: &Span| !subnet.contains(span.first) || !subnet.contains(span.last);
        if let Some((number, span)) = self.exclude.iter().enumerate().find(|(_, span)| outside(span)) {
            return Some((RangeField::Exclude(number), format!("{span} is not in {subnet}")));
        }
        let last = self.exclude.len().checked_sub(1)?;
        let nothing_left = Pool::new(self, Duration::ZERO).capacity() == 0;
        nothing_left.then(|| (RangeField::Exclude(last), format!("leaves no address of {subnet} for pods")))
    }
}

/// A field of a [`Range`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeField {
    /// `subnet`
    Subnet,
    /// `gateway`
    Gateway,
    /// One of `exclude`, by its number.
    Exclude(usize),
}

impl fmt::Display for RangeField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RangeField::Subnet => f.write_str("subnet"),
            RangeField::Gateway => f.write_str("gateway"),
            RangeField::Exclude(number) => write!(f, "exclude[{number}]"),
        }
    }
}

impl Settings {
    /// Whether the settings make sense by themselves; what the host has to say comes with [`crate::Network::open`].
    pub fn check(&self) -> Result<(), Error> {
        self.check_names()?;
        if self.ranges.is_empty() {
            return Err(Error::settings("ranges", "is empty: pods need an address, e.g. 10.88.0.0/16"));
        }
        for (index, range) in self.ranges.iter().enumerate() {
            if let Some((field, problem)) = range.problem() {
                return Err(Error::settings(format!("ranges[{index}].{field}"), problem));
            }
            for (other, earlier) in self.ranges[..index].iter().enumerate() {
                if range.subnet.overlaps(&earlier.subnet) {
                    let problem = format!("{} overlaps ranges[{other}].subnet {}", range.subnet, earlier.subnet);
                    return Err(Error::settings(format!("ranges[{index}].subnet"), problem));
                }
            }
        }
        self.check_mtu()
    }

    /// Whether a family has a range.
    pub(crate) fn has(&self, v4: bool) -> bool {
        self.ranges.iter().any(|range| range.subnet.is_v4() == v4)
    }

    /// With [`Isolation::Routed`]: the group of pods' links, which are no ports of the bridge. Of its own for each bridge.
    pub(crate) fn group(&self) -> Option<u32> {
        (self.isolation == Isolation::Routed).then(|| fnv1a(self.bridge.bytes()) as u32 & i32::MAX as u32)
    }

    fn check_names(&self) -> Result<(), Error> {
        check_name("bridge", &self.bridge, LINK_NAME_MAX)?;
        check_name("table", &self.table, TABLE_NAME_MAX)?;
        if !self.table.starts_with(|first: char| first.is_ascii_alphabetic()) {
            return Err(Error::settings("table", format!("{:?} must begin with a letter", self.table)));
        }
        if !self.state_dir.is_absolute() {
            return Err(Error::settings("state_dir", format!("{} is not an absolute path", self.state_dir.display())));
        }
        Ok(())
    }

    fn check_mtu(&self) -> Result<(), Error> {
        // RFC 8200: a link that carries IPv6 carries 1280 bytes. Below, the kernel would silently switch IPv6 off.
        let least = if self.has(false) { 1280 } else { 68 };
        match self.mtu {
            Some(mtu) if !(least..=65_535).contains(&mtu) => {
                Err(Error::settings("mtu", format!("{mtu} is not within {least} and 65535")))
            }
            _ => Ok(()),
        }
    }
}

fn check_name(field: &str, name: &str, longest: usize) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > longest {
        return Err(Error::settings(field, format!("{name:?} must have 1 to {longest} bytes")));
    }
    if !name.bytes().all(allowed) || name.starts_with(['.', '-']) {
        return Err(Error::settings(field, format!("{name:?} may have letters, digits, - _ . and not begin with . or -")));
    }
    Ok(())
}
