//! Services as the kernel balances them: from what is wanted to chains and elements. Pure; [`crate::nft`] knows how they are written.
//!
//! A port of a Service has a number and, in each family, one chain: it draws an index and looks the endpoint up under (number, index).
//! So an endpoint that comes or goes is one rule and a few elements, however many services there are.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    hash::fnv1a,
    nft::{
        fragment::Fragment,
        rule::{Family, Rule, Sticky},
        set::{self, Value},
        table::named,
    },
    settings::Protocol,
};

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `namespace/name:port`, unique together with the protocol.
    pub name: String,
    /// Of the port and of the endpoints' ports.
    pub protocol: Protocol,
    /// Where clients knock.
    pub port: u16,
    /// At which addresses, of any family.
    pub addresses: Vec<IpAddr>,
    /// At which port of every address of this host.
    pub node_port: Option<u16>,
    /// Who answers; an address is served by endpoints of its family. None: connections are refused.
    pub endpoints: Vec<SocketAddr>,
    /// A client goes to the endpoint of its last connection if that is not longer ago than this.
    pub affinity: Option<Duration>,
}

/// A service's place in the table, in one family.
#[derive(Debug)]
pub(crate) struct Unit {
    service: Service,
    id: u32,
    pub(crate) fragment: Fragment,
}

impl Unit {
    /// What it was made of.
    pub(crate) fn service(&self) -> &Service {
        &self.service
    }
}

/// All units, by name, protocol and family.
pub(crate) type Units = BTreeMap<(String, Protocol, Family), Arc<Unit>>;

/// The units of these services. What is as it was before is the very unit of before. Of two services that want the same address
/// and port, the first has it.
pub(crate) fn units(before: &Units, services: &[Service]) -> Units {
    let mut next = before.values().map(|unit| unit.id).max().map_or(1, |id| id.wrapping_add(1));
    let (mut taken, mut node_ports) = (HashSet::new(), HashSet::new());
    let mut units = Units::new();
    for service in services {
        for family in Family::BOTH {
            let mut wanted = of_family(service, family);
            wanted.addresses.retain(|ip| taken.insert((*ip, service.protocol, service.port)));
            wanted.node_port = wanted.node_port.filter(|port| node_ports.insert((family, service.protocol, *port)));
            if wanted.addresses.is_empty() && wanted.node_port.is_none() {
                continue;
            }
            let key = (service.name.clone(), service.protocol, family);
            let unit = match before.get(&key) {
                Some(old) if old.service == wanted => old.clone(),
                old => {
                    let id = old.map_or(next, |old| old.id);
                    next = next.max(id.wrapping_add(1));
                    let fragment = fragment(&wanted, id, family);
                    Arc::new(Unit { service: wanted, id, fragment })
                }
            };
            units.insert(key, unit);
        }
    }
    units
}

/// Endpoints that may reach themselves by a service: their answers need the host's address.
pub(crate) fn selves(units: &Units) -> Fragment {
    let mut selves = Fragment::default();
    for unit in units.values() {
        for ip in unit.service.endpoints.iter().map(SocketAddr::ip) {
            let pair = [set::octets(ip), set::octets(ip)].concat();
            selves.add(&named("selves_of_services", Family::of(ip)), pair, Value::None);
        }
    }
    selves
}

fn of_family(service: &Service, family: Family) -> Service {
    let mut service = service.clone();
    service.addresses.retain(|ip| ip.is_ipv4() == family.is_v4());
    service.endpoints.retain(|endpoint| endpoint.is_ipv4() == family.is_v4());
    service
}

/// A service without endpoints has nothing here: the rule about `virtual` addresses refuses its connections.
fn fragment(service: &Service, id: u32, family: Family) -> Fragment {
    let mut fragment = Fragment::default();
    if service.endpoints.is_empty() {
        return fragment;
    }
    let chain = chain_name(&format!("service{}-{id}/", family.digit()), &service.name);
    for ip in &service.addresses {
        let key = set::service_key(*ip, service.protocol, service.port);
        fragment.add(&named("services", family), key, Value::Goto(chain.clone()));
    }
    if let Some(port) = service.node_port {
        let key = set::port_key(service.protocol, port);
        fragment.add(&named("ports_of_services", family), key, Value::Goto(chain.clone()));
    }
    let (backends, alive, memory) = (named("backends", family), named("alive", family), named("memory", family));
    for (index, endpoint) in (0u32..).zip(&service.endpoints) {
        let target = set::target(*endpoint);
        let key = [id.to_ne_bytes(), index.to_ne_bytes()].concat();
        fragment.add(&backends, key, Value::Data(target.clone()));
        if service.affinity.is_some() {
            fragment.add(&alive, [id.to_ne_bytes().to_vec(), target].concat(), Value::None);
        }
    }
    let (count, rule) = (service.endpoints.len() as u32, || Rule::new(service.name.clone()));
    let rules = match service.affinity {
        None => vec![rule().balance(family, id, count, &backends)],
        Some(timeout) => {
            let names = Sticky { backends: &backends, alive: &alive, memory: &memory, timeout };
            vec![rule().stick(family, id, &names), rule().balance_sticky(family, id, count, &names)]
        }
    };
    fragment.chains.insert(chain, rules);
    fragment
}

/// NFT_CHAIN_MAXNAMELEN is 128. What is cut off lives on in a hash.
pub(crate) fn chain_name(prefix: &str, name: &str) -> String {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '.' | '_');
    let shown: String = name.chars().map(|c| if fine(c) { c } else { '/' }).collect();
    if shown.len() <= 80 {
        return format!("{prefix}{shown}");
    }
    format!("{prefix}{}-{:016x}", &shown[..60], fnv1a(name.bytes()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn service(name: &str, address: &str, endpoints: &[&str]) -> Service {
        Service {
            name: name.into(),
            protocol: Protocol::Tcp,
            port: 80,
            addresses: vec![address.parse().unwrap()],
            node_port: None,
            endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
            affinity: None,
        }
    }

    #[test]
    fn only_what_changed_is_made_anew_and_keeps_its_number() {
        let services = [service("a", "10.96.0.1", &["10.88.0.2:80"]), service("b", "10.96.0.2", &["10.88.0.3:80"])];
        let first = units(&Units::new(), &services);
        let changed = [services[0].clone(), service("b", "10.96.0.2", &["10.88.0.3:80", "10.88.0.4:80"])];
        let second = units(&first, &changed);
        let key = |name: &str| (name.to_owned(), Protocol::Tcp, Family::V4);
        assert!(Arc::ptr_eq(&first[&key("a")], &second[&key("a")]));
        assert!(!Arc::ptr_eq(&first[&key("b")], &second[&key("b")]));
        assert_eq!(first[&key("b")].id, second[&key("b")].id);
        assert_ne!(second[&key("a")].id, second[&key("b")].id);
    }

    #[test]
    fn the_first_of_two_has_the_address_and_families_are_apart() {
        let mut both = service("a", "10.96.0.1", &["10.88.0.2:80", "[fd00::2]:80"]);
        both.addresses.push("fd96::1".parse().unwrap());
        let all = units(&Units::new(), &[both, service("b", "10.96.0.1", &["10.88.0.3:80"])]);
        let families = all.iter().map(|((name, _, family), unit)| (name.as_str(), *family, unit.service.endpoints.len()));
        assert_eq!(families.collect::<Vec<_>>(), [("a", Family::V4, 1), ("a", Family::V6, 1)]);
    }

    #[test]
    fn names_fit_a_chain() {
        assert_eq!(chain_name("service4-1/", "shop/web:http"), "service4-1/shop/web/http");
        let long = chain_name("service4-4294967295/", &"x".repeat(300));
        assert!(long.len() < 128, "{long}");
    }
}
