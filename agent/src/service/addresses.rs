//! Which Service has which addresses and node ports. The same Service gets the same ones as long as nobody else has them, and what
//! was given is kept in a file: an agent that starts again gives the same.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use netplug::Cidr;
use netplug::whole::{self, Outlives};
use serde::{Deserialize, Serialize};

use crate::model::ObjectRef;

/// As the API server's --service-node-port-range.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Of an IPv6 range, no more addresses than these are looked at.
const LARGEST: u128 = 1 << 16;

/// See the module's page.
#[derive(Debug)]
pub struct Addresses {
    ranges: Vec<Cidr>,
    file: PathBuf,
    given: BTreeMap<String, Given>,
    /// Services that there are; others' addresses are kept for them until all is told.
    live: BTreeSet<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Given {
    ips: Vec<IpAddr>,
    /// By `PROTOCOL/PORT`.
    node_ports: BTreeMap<String, u16>,
}

impl Addresses {
    /// Goes on with what the file says, if there is one that can be read.
    pub fn open(ranges: Vec<Cidr>, file: PathBuf) -> Self {
        let given = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), %error, "Services may get other addresses than before");
                BTreeMap::default()
            }),
            Err(_) => BTreeMap::default(),
        };
        Self { ranges, file, given, live: BTreeSet::new() }
    }

    /// Fills in clusterIP, clusterIPs, ipFamilies and node ports. Answers what can't be as it is written.
    pub fn assign(&mut self, service: &mut Service) -> Vec<String> {
        let key = key(service.metadata.namespace.as_deref(), service.metadata.name.as_deref());
        self.live.insert(key.clone());
        let Some(spec) = &mut service.spec else { return Vec::new() };
        let before = self.given.remove(&key).unwrap_or_default();
        let mut wrong = Vec::new();
        let mut given = Given::default();
        if spec.type_.as_deref() != Some("ExternalName") {
            self.families(spec, &key, &mut wrong);
            if spec.cluster_ip.as_deref() == Some("None") {
                spec.cluster_ips = Some(vec!["None".into()]);
            } else {
                given.ips = self.ips(spec, &key, &before, &mut wrong);
                spec.cluster_ips = Some(given.ips.iter().map(ToString::to_string).collect());
                spec.cluster_ip = given.ips.first().map(ToString::to_string);
            }
        }
        if matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer")) {
            given.node_ports = self.node_ports(spec, &key, &before, &mut wrong);
        }
        let changed = given != before;
        self.given.insert(key, given);
        if changed {
            self.keep();
        }
        wrong
    }

    /// The Service is no more.
    pub fn release(&mut self, service: &ObjectRef) {
        let key = key(Some(&service.namespace), Some(&service.name));
        self.live.remove(&key);
        if self.given.remove(&key).is_some() {
            self.keep();
        }
    }

    /// All Services have been told.
    pub fn release_untold(&mut self) {
        let before = self.given.len();
        let live = &self.live;
        self.given.retain(|key, _| live.contains(key));
        if self.given.len() != before {
            self.keep();
        }
    }

    /// ipFamilies as the API server fills them in: one, unless the Service asks for more.
    fn families(&self, spec: &mut ServiceSpec, key: &str, wrong: &mut Vec<String>) {
        let known: Vec<&str> = self.ranges.iter().map(|range| family(range.is_v4())).collect();
        let asked: Vec<String> = spec
            .cluster_ips
            .iter()
            .flatten()
            .filter_map(|ip| ip.parse::<IpAddr>().ok())
            .map(|ip| family(ip.is_ipv4()).into())
            .collect();
        let explicit =
            spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()).map(|ip| family(ip.is_ipv4()).to_owned());
        let mut families: Vec<String> = spec.ip_families.clone().filter(|list| !list.is_empty()).unwrap_or_default();
        if families.is_empty() {
            families = if asked.is_empty() { explicit.into_iter().collect() } else { asked };
        }
        if families.is_empty() {
            families.extend(known.first().map(|family| (*family).to_owned()));
        }
        let default = if families.len() > 1 { "RequireDualStack" } else { "SingleStack" };
        let policy = spec.ip_family_policy.get_or_insert_with(|| default.into()).clone();
        if policy != "SingleStack" {
            for family in &known {
                if !families.iter().any(|have| have == family) {
                    families.push((*family).to_owned());
                }
            }
        }
        if policy == "RequireDualStack" && families.len() < 2 {
            wrong.push(format!(
                "Service {key}: spec.ipFamilyPolicy: RequireDualStack, but serviceCIDRs has {} alone",
                known.join(", ")
            ));
        }
        for missing in families.iter().filter(|family| !known.contains(&family.as_str())) {
            wrong.push(format!("Service {key}: spec.ipFamilies: serviceCIDRs has no range of {missing}"));
        }
        families.retain(|family| known.contains(&family.as_str()));
        spec.ip_families = Some(families);
    }

    fn ips(&self, spec: &ServiceSpec, key: &str, before: &Given, wrong: &mut Vec<String>) -> Vec<IpAddr> {
        let taken: HashSet<IpAddr> = self.given.values().flat_map(|given| given.ips.iter().copied()).collect();
        let first = spec.cluster_ip.iter().filter(|ip| !ip.is_empty());
        let asked: Vec<IpAddr> =
            first.chain(spec.cluster_ips.iter().flatten().skip(1)).filter_map(|ip| ip.parse().ok()).collect();
        let mut ips = Vec::new();
        for name in spec.ip_families.iter().flatten() {
            let v4 = name == "IPv4";
            let Some(range) = self.ranges.iter().find(|range| range.is_v4() == v4) else { continue };
            let fits = |ip: &&IpAddr| ip.is_ipv4() == v4;
            if let Some(ip) = asked.iter().find(fits) {
                // Not given, or it would be this one's after a restart.
                if taken.contains(ip) {
                    wrong.push(format!("Service {key}: spec.clusterIP {ip}: provided IP is already allocated"));
                } else if !range.contains(*ip) {
                    wrong.push(format!("Service {key}: spec.clusterIP {ip}: provided IP is not in the valid range: {range}"));
                } else {
                    ips.push(*ip);
                }
                continue;
            }
            let old = before.ips.iter().find(|ip| fits(ip) && range.contains(**ip) && !taken.contains(*ip));
            match old.copied().or_else(|| free(*range, key, &taken)) {
                Some(ip) => ips.push(ip),
                None => wrong.push(format!("Service {key}: range {range} of serviceCIDRs is full")),
            }
        }
        ips
    }

    fn node_ports(&self, spec: &mut ServiceSpec, key: &str, before: &Given, wrong: &mut Vec<String>) -> BTreeMap<String, u16> {
        let taken: HashSet<(&str, u16)> = self
            .given
            .values()
            .flat_map(|given| given.node_ports.iter().map(|(name, port)| (name.split('/').next().unwrap_or_default(), *port)))
            .collect();
        let mut given: BTreeMap<String, u16> = BTreeMap::new();
        for port in spec.ports.iter_mut().flatten() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_owned();
            let name = format!("{protocol}/{}", port.port);
            let is_free = |number: u16, given: &BTreeMap<String, u16>| {
                let mine = given.iter().any(|(other, used)| *used == number && other.starts_with(&format!("{protocol}/")));
                !taken.contains(&(protocol.as_str(), number)) && !mine
            };
            let asked = port.node_port.and_then(|asked| u16::try_from(asked).ok()).filter(|asked| *asked != 0);
            if let Some(asked) = asked {
                if !NODE_PORTS.contains(&asked) {
                    wrong.push(format!("Service {key}: spec.ports: nodePort {asked}: provided port is not in the valid range. The range of valid ports is 30000-32767"));
                    port.node_port = None;
                } else if !is_free(asked, &given) {
                    wrong.push(format!("Service {key}: spec.ports: nodePort {asked}: provided port is already allocated"));
                    port.node_port = None;
                } else {
                    given.insert(name, asked);
                }
                continue;
            }
            let count = u64::from(*NODE_PORTS.end() - *NODE_PORTS.start()) + 1;
            let begin = hash(&format!("{key}:{name}")) % count;
            let candidates = (0..count).map(|step| *NODE_PORTS.start() + ((begin + step) % count) as u16);
            let old = before.node_ports.get(&name).copied().filter(|old| is_free(*old, &given));
            if let Some(number) = old.or_else(|| candidates.into_iter().find(|number| is_free(*number, &given))) {
                port.node_port = Some(number.into());
                given.insert(name, number);
            }
        }
        given
    }

    fn keep(&self) {
        let text = serde_json::to_vec(&self.given).unwrap_or_default();
        let made = self.file.parent().map_or(Ok(()), fs::create_dir_all);
        if let Err(error) = made.and_then(|()| whole::write(&self.file, &text, 0o644, Outlives::Process)) {
            tracing::warn!(file = %self.file.display(), %error, "Services' addresses could not be kept for the next start");
        }
    }
}

fn key(namespace: Option<&str>, name: Option<&str>) -> String {
    format!("{}/{}", namespace.unwrap_or("default"), name.unwrap_or_default())
}

fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

/// An address that nobody has, the same for the same name as long as that is free. Neither the range's first nor its last.
fn free(range: Cidr, key: &str, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    let usable = range.last_offset().min(LARGEST).saturating_sub(1);
    let begin = u128::from(hash(key)).checked_rem(usable)?;
    (0..usable).map(|step| range.at(1 + (begin + step) % usable)).find(|ip| !taken.contains(ip))
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, spec: &serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})).unwrap()
    }

    fn open(folder: &std::path::Path, ranges: &[&str]) -> Addresses {
        Addresses::open(ranges.iter().map(|range| range.parse().unwrap()).collect(), folder.join("services.json"))
    }

    fn spec(service: &Service) -> &ServiceSpec {
        service.spec.as_ref().unwrap()
    }

    #[test]
    fn the_next_agent_gives_the_same_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let ports = json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]});
        let mut one = service("a", &ports);
        let mut first = open(folder.path(), &["10.96.0.0/16"]);
        assert!(first.assign(&mut one).is_empty());
        let ip: IpAddr = spec(&one).cluster_ip.as_deref().unwrap().parse().unwrap();
        assert!("10.96.0.0/16".parse::<Cidr>().unwrap().contains(ip));
        let node_ports: HashSet<_> = spec(&one).ports.iter().flatten().map(|port| port.node_port.unwrap()).collect();
        assert!(node_ports.len() == 2 && node_ports.iter().all(|port| (30_000..32_768).contains(port)));
        // Another wants the very address and node port: it is told, gets neither, and robs nobody of them by a restart.
        let taken = node_ports.iter().next().unwrap();
        let ports_of_thief = json!([{"port": 80, "protocol": "TCP", "nodePort": taken}]);
        let mut thief = service("thief", &json!({"type": "NodePort", "clusterIP": ip.to_string(), "ports": ports_of_thief}));
        let told = first.assign(&mut thief);
        assert!(
            told[0].ends_with("provided IP is already allocated") && told[1].ends_with("port is already allocated"),
            "{told:?}"
        );
        assert_eq!((&spec(&thief).cluster_ip, spec(&thief).ports.as_ref().unwrap()[0].node_port), (&None, None));
        let mut again = service("a", &ports);
        open(folder.path(), &["10.96.0.0/16"]).assign(&mut again);
        assert_eq!(one, again);
    }

    #[test]
    fn what_is_gone_is_free_and_what_was_never_told_too() {
        let folder = tempfile::tempdir().unwrap();
        // Four usable addresses at most.
        let mut addresses = open(folder.path(), &["10.96.0.0/29"]);
        for round in 0..3 {
            for n in 0..6 {
                let wrong = addresses.assign(&mut service(&format!("s{round}-{n}"), &json!({"ports": [{"port": 80}]})));
                assert!(wrong.is_empty(), "{wrong:?}");
            }
            assert!(addresses.assign(&mut service("more", &json!({"ports": [{"port": 80}]})))[0].contains("is full"));
            addresses = open(folder.path(), &["10.96.0.0/29"]);
            addresses.release_untold();
        }
    }

    #[test]
    fn families_are_as_the_api_server_has_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut addresses = open(folder.path(), &["10.96.0.0/16", "fd00:96::/112"]);
        let mut families = |more: serde_json::Value| {
            let mut spec = json!({"ports": [{"port": 80}]});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let mut service = service("a", &spec);
            addresses.assign(&mut service);
            (service.spec.clone().unwrap().ip_families.unwrap().join(","), service.spec.unwrap().cluster_ips.unwrap().len())
        };
        assert_eq!(families(json!({})), ("IPv4".into(), 1));
        assert_eq!(families(json!({"ipFamilies": ["IPv6"]})), ("IPv6".into(), 1));
        assert_eq!(families(json!({"ipFamilyPolicy": "PreferDualStack"})), ("IPv4,IPv6".into(), 2));
        assert_eq!(families(json!({"clusterIP": "fd00:96::7"})), ("IPv6".into(), 1));
        assert_eq!(families(json!({"clusterIP": "None"})), ("IPv4".into(), 1));
    }
}
