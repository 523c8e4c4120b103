//! What the runtime hands in: the environment and the network configuration. It is read here, checked, and turned into
//! [`Settings`]; fields that would change what a pod may do, and that this plugin doesn't have, are errors, not ignored.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use super::answer::{Complaint, Dns, Outcome, Route};
use crate::{Bandwidth, Cidr, Port, Protocol, Range, Rate, Settings, Span, engine::Via, links::RouteOptions};

/// Where leases and ports of all networks live; ended by a reboot, as the pods are.
const STATE: &str = "/run/netplug";
/// Where host-local keeps its reservations, and so do we.
const HOST_LOCAL: &str = "/var/lib/cni/networks";
const DEFAULT_BRIDGE: &str = "cni0";
/// An answer on an Ethernet takes a millisecond.
const PROBE: Duration = Duration::from_millis(200);

/// Versions of the specification, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V0_3_1,
    V0_4,
    V1_0,
    V1_1,
}

impl Version {
    pub(crate) const ALL: [Version; 4] = [Version::V0_3_1, Version::V0_4, Version::V1_0, Version::V1_1];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Version::V0_3_1 => "0.3.1",
            Version::V0_4 => "0.4.0",
            Version::V1_0 => "1.0.0",
            Version::V1_1 => "1.1.0",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Version> {
        Version::ALL.into_iter().find(|version| version.name() == name)
    }

    pub(crate) fn parse(name: &str) -> Result<Version, Complaint> {
        Version::named(name).ok_or_else(|| {
            let all = Version::ALL.map(Version::name).join(", ");
            Complaint::new(
                Complaint::INCOMPATIBLE_VERSION,
                "incompatible CNI version",
                format!("cniVersion: {name:?} is asked for; this plugin speaks {all}"),
            )
        })
    }
}

/// A network configuration, as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    pub name: String,
    #[serde(default)]
    bridge: Option<String>,
    #[serde(default)]
    is_gateway: Option<bool>,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    ip_masq: bool,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    vlan: u16,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    macspoofchk: bool,
    #[serde(default)]
    port_isolation: bool,
    #[serde(default)]
    disable_container_interface: bool,
    /// Whether is asked if somebody has the address already.
    #[serde(default, rename = "enabledad")]
    enable_dad: bool,
    #[serde(default)]
    vlan_trunk: Value,
    /// As the plugin `bandwidth` has them; `runtimeConfig.bandwidth` lies over them.
    #[serde(flatten)]
    limits: Limits,
    /// Ours alone: where leases and ports are kept.
    #[serde(default)]
    state_dir: Option<PathBuf>,
    #[serde(default)]
    pub ipam: Ipam,
    #[serde(default)]
    dns: Dns,
    #[serde(default)]
    #[serde(rename = "runtimeConfig")]
    runtime: RuntimeConfig,
    #[serde(default)]
    args: Args,
    #[serde(default)]
    pub prev_result: Option<Outcome>,
    /// Of GC: those that live on.
    #[serde(rename = "cni.dev/valid-attachments", default)]
    pub valid: Vec<Valid>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Valid {
    #[serde(rename = "containerID")]
    pub container: String,
    pub ifname: String,
}

/// The ipam block of host-local.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Ipam {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(flatten)]
    single: IpamRange,
    ranges: Vec<Vec<IpamRange>>,
    routes: Vec<Route>,
    data_dir: Option<PathBuf>,
    resolv_conf: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct IpamRange {
    subnet: Option<String>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    port_mappings: Vec<PortMapping>,
    ips: Vec<String>,
    bandwidth: Option<Limits>,
    mac: Option<String>,
    /// Of host-local: ranges of this container alone.
    ip_ranges: Vec<Vec<IpamRange>>,
}

/// In bits and bits per second; 0 is none.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Limits {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortMapping {
    host_port: u16,
    container_port: u16,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(rename = "hostIP", default)]
    host_ip: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: CniArgs,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    ips: Vec<String>,
    mac: Option<String>,
}

fn invalid(field: &str, problem: impl std::fmt::Display) -> Complaint {
    Complaint::new(Complaint::INVALID_CONFIG, "invalid network config", format!("{field}: {problem}"))
}

impl Config {
    pub(crate) fn read(input: &[u8]) -> Result<Config, Complaint> {
        let config: Config = serde_json::from_slice(input).map_err(|error| {
            Complaint::new(Complaint::DECODE, "the network config could not be read", format!("standard input: {error}"))
        })?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !config.name.starts_with(|first: char| first.is_ascii_alphanumeric()) || !config.name.bytes().all(allowed) {
            return Err(invalid("name", format!("{:?} must begin with a letter or digit, then have those, - _ .", config.name)));
        }
        config.refuse()?;
        Ok(config)
    }

    /// What the plugin `bridge` has and this one hasn't.
    fn refuse(&self) -> Result<(), Complaint> {
        let refusals = [
            (self.is_gateway == Some(false), "isGateway: false", "the bridge is the pods' gateway: remove the field"),
            (self.vlan != 0, "vlan", "pods of different VLANs are different networks: give each a bridge"),
            (self.promisc_mode, "promiscMode", "hairpin works without it: remove the field"),
            (self.macspoofchk, "macspoofchk", "use the plugin bridge for a network that needs it"),
            (self.disable_container_interface, "disableContainerInterface", "a pod without interface needs no network"),
            (!self.vlan_trunk.is_null(), "vlanTrunk", "pods of different VLANs are different networks: give each a bridge"),
        ];
        match refusals.into_iter().find(|(has, ..)| *has) {
            Some((_, field, problem)) => {
                Err(Complaint::new(Complaint::UNSUPPORTED_FIELD, "unsupported field", format!("{field}: {problem}")))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn settings(&self) -> Result<Settings, Complaint> {
        match self.ipam.kind.as_deref() {
            None | Some("host-local" | "netplug") => {}
            Some(other) => return Err(invalid("ipam.type", format!("is {other:?}: write \"host-local\""))),
        }
        let settings = Settings {
            bridge: self.bridge.clone().unwrap_or_else(|| DEFAULT_BRIDGE.into()),
            ranges: self.sets()?.into_iter().flatten().collect(),
            table: table_name(&self.name),
            mtu: (self.mtu != 0).then_some(self.mtu),
            state_dir: self.state_dir(),
            masquerade: self.ip_masq,
            reuse_after: Duration::ZERO,
            probe: self.enable_dad.then_some(PROBE),
            isolation: if self.port_isolation { crate::Isolation::Pods } else { crate::Isolation::Off },
            ..Settings::default()
        };
        settings.check()?;
        Ok(settings)
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| STATE.into()).join(&self.name)
    }

    /// Where reservations are kept.
    pub(crate) fn reservations(&self) -> PathBuf {
        self.ipam.data_dir.clone().unwrap_or_else(|| HOST_LOCAL.into()).join(&self.name)
    }

    /// A pod gets one address of each set. One set a family.
    pub(crate) fn sets(&self) -> Result<Vec<Vec<Range>>, Complaint> {
        let single = self.ipam.single.subnet.is_some().then(|| ("ipam".to_owned(), vec![&self.ipam.single]));
        let more = self.ipam.ranges.iter().enumerate();
        let more = more.map(|(number, set)| (format!("ipam.ranges[{number}]"), set.iter().collect()));
        let mut sets: Vec<Vec<Range>> = Vec::new();
        let own = self.runtime.ip_ranges.iter().enumerate();
        let own = own.map(|(number, set)| (format!("runtimeConfig.ipRanges[{number}]"), set.iter().collect()));
        for (field, set) in own.chain(single).chain(more) {
            let set: Vec<Range> = set.into_iter().map(|range| range.read(&field)).collect::<Result<_, _>>()?;
            let Some(v4) = set.first().map(|range| range.subnet.is_v4()) else { return Err(invalid(&field, "is empty")) };
            if set.iter().any(|range| range.subnet.is_v4() != v4) {
                return Err(invalid(&field, "has IPv4 and IPv6: give each family a set of its own"));
            }
            if sets.iter().any(|other| other[0].subnet.is_v4() == v4) {
                return Err(invalid(&field, "is the second of its family: a pod has one address of each"));
            }
            sets.push(set);
        }
        if sets.is_empty() {
            return Err(invalid("ipam.ranges", "is empty: pods need an address, e.g. [[{\"subnet\": \"10.88.0.0/16\"}]]"));
        }
        sets.sort_by_key(|set| !set[0].subnet.is_v4());
        Ok(sets)
    }

    /// As the plugin `bridge` has it: those of the ipam block, and the default if the bridge is to be the default gateway.
    pub(crate) fn routes(&self) -> Result<Vec<Via>, Complaint> {
        let mut routes = Vec::new();
        for (number, route) in self.ipam.routes.iter().enumerate() {
            let field = format!("ipam.routes[{number}].dst");
            let to = route.dst.parse().map_err(|problem: String| invalid(&field, problem))?;
            routes.push(Via { to, gateway: route.gw, options: route.options });
        }
        if self.is_default_gateway {
            for set in self.sets()? {
                let everywhere = Cidr::everything(set[0].subnet.base());
                if !routes.iter().any(|via| via.to == everywhere) {
                    routes.push(Via { to: everywhere, gateway: None, options: RouteOptions::default() });
                }
            }
        }
        Ok(routes)
    }

    pub(crate) fn ports(&self) -> Result<Vec<Port>, Complaint> {
        let mappings = self.runtime.port_mappings.iter().enumerate();
        // Podman and containerd list container ports without host port as 0.
        mappings.filter(|(_, mapping)| mapping.host_port != 0).map(|(number, mapping)| mapping.read(number)).collect()
    }

    /// How fast the pod may be.
    pub(crate) fn bandwidth(&self) -> Result<Option<Bandwidth>, Complaint> {
        let limits = self.runtime.bandwidth.unwrap_or(self.limits);
        let rate = |name: &str, bits: u64, burst: u64| match (bits, burst) {
            (0, 0) => Ok(None),
            (0, _) => Err(invalid(&format!("bandwidth.{name}Rate"), format!("is missing: {name}Burst is set"))),
            (1..8, _) => Err(invalid(&format!("bandwidth.{name}Rate"), format!("{bits} bits per second are too few"))),
            (bits, 0) => Ok(Some(Rate::new(bits))),
            (bits, burst) if burst / 8 > u32::MAX.into() => {
                Err(invalid(&format!("bandwidth.{name}Burst"), format!("{burst} at {bits} bits per second: must be below 4 GiB")))
            }
            (bits, burst) => Ok(Some(Rate { bits, burst })),
        };
        let bandwidth = Bandwidth {
            ingress: rate("ingress", limits.ingress_rate, limits.ingress_burst)?,
            egress: rate("egress", limits.egress_rate, limits.egress_burst)?,
        };
        Ok((bandwidth != Bandwidth::default()).then_some(bandwidth))
    }

    /// The MAC that is asked for, by any of the three ways.
    pub(crate) fn mac(&self, cni_args: &str) -> Result<Option<[u8; 6]>, Complaint> {
        let by_env = cni_args.split(';').find_map(|pair| pair.strip_prefix("MAC="));
        let Some(text) = self.runtime.mac.as_deref().or(self.args.cni.mac.as_deref()).or(by_env) else { return Ok(None) };
        let bytes: Vec<u8> = text.split([':', '-']).filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        match <[u8; 6]>::try_from(bytes) {
            Ok(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(Some(mac)),
            _ => Err(invalid("mac", format!("{text:?} is no MAC of a host, such as 0a:58:0a:16:00:02"))),
        }
    }

    /// Addresses that are asked for, by any of the three ways.
    pub(crate) fn fixed(&self, cni_args: &str) -> Result<Vec<IpAddr>, Complaint> {
        let by_env = cni_args.split(';').filter_map(|pair| pair.strip_prefix("IP=")).flat_map(|list| list.split(','));
        let by_config = self.args.cni.ips.iter().chain(&self.runtime.ips).map(String::as_str);
        let read = |text: &str| {
            let ip = text.split_once('/').map_or(text, |(ip, _)| ip);
            ip.parse().map_err(|_| invalid("ips", format!("{text:?} is not an IP address")))
        };
        let mut ips = by_env.chain(by_config).map(read).collect::<Result<Vec<IpAddr>, _>>()?;
        ips.sort_unstable();
        ips.dedup();
        Ok(ips)
    }

    /// What the configuration says of DNS, or the file that it names.
    pub(crate) fn dns(&self) -> Result<Dns, Complaint> {
        match &self.ipam.resolv_conf {
            Some(path) if self.dns == Dns::default() => {
                let text = std::fs::read_to_string(path).map_err(|error| invalid("ipam.resolvConf", error))?;
                Ok(resolv_conf(&text))
            }
            _ => Ok(self.dns.clone()),
        }
    }
}

impl IpamRange {
    fn read(&self, field: &str) -> Result<Range, Complaint> {
        let subnet = self.subnet.as_deref().ok_or_else(|| invalid(field, "has no subnet"))?;
        // As host-local does, 10.1.2.3/24 is taken for 10.1.2.0/24.
        let subnet = Cidr::around(subnet).map_err(|problem| invalid(&format!("{field}.subnet"), problem))?;
        let mut exclude = Vec::new();
        let (first, last) = (subnet.base(), subnet.at(subnet.last_offset()));
        for (name, ip) in [("rangeStart", self.range_start), ("rangeEnd", self.range_end)] {
            if let Some(ip) = ip.filter(|ip| !subnet.contains(*ip)) {
                return Err(invalid(&format!("{field}.{name}"), format!("{ip} is not in {subnet}")));
            }
        }
        if let Some(before) = self.range_start.and_then(|start| subnet.offset(start)).and_then(|offset| offset.checked_sub(1)) {
            exclude.push(Span { first, last: subnet.at(before) });
        }
        if let Some(end) = self.range_end.and_then(|end| subnet.offset(end)).filter(|end| *end < subnet.last_offset()) {
            exclude.push(Span { first: subnet.at(end + 1), last });
        }
        Ok(Range { subnet, gateway: self.gateway, exclude })
    }
}

impl PortMapping {
    fn read(&self, number: usize) -> Result<Port, Complaint> {
        let field = |name: &str| format!("runtimeConfig.portMappings[{number}].{name}");
        let protocol = match self.protocol.as_deref().unwrap_or_default().to_ascii_lowercase() {
            none if none.is_empty() => Protocol::Tcp,
            name => (name.to_ascii_uppercase().parse())
                .map_err(|_| invalid(&field("protocol"), format!("{name:?} is none of tcp, udp, sctp")))?,
        };
        let host_ip = match self.host_ip.as_deref() {
            None | Some("") => None,
            Some(text) => Some(text.parse().map_err(|_| invalid(&field("hostIP"), format!("{text:?} is not an IP address")))?),
        };
        Ok(Port { host_ip, host_port: self.host_port, container_port: self.container_port, protocol })
    }
}

/// A table's name may be shorter than a network's, and has no dots.
fn table_name(network: &str) -> String {
    let name: String = network.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(40).collect();
    let hash = network.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("cni_{name}_{hash:08x}")
}

fn resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("search") => dns.search = words.collect(),
            Some("domain") => dns.domain = words.next(),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}
