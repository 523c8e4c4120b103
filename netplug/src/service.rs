//! Services as the kernel balances them: from what is wanted to chains and elements. Pure; [`crate::nft`] knows how they are written.
//!
//! A port of a Service has, in each family, one chain and sets of its own: it draws a number and looks the endpoint up. So an endpoint
//! that comes or goes is one rule and a few elements. Were the sets those of all services, the kernel would go through all their
//! elements whenever a rule that refers to them is made.
//!
//! With session affinity each endpoint has a set of the clients that stay with it, which ends with it. So two rules ask for an endpoint:
//! whether the client is one of its own, and whether a new one becomes that. A map from clients to endpoints would need but one; nft 1.0.6,
//! however, aborts on a list of rules that look up, or remember, what a map gave, so that one could not ask whether the endpoint still lives.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    conntrack::{Stale, lingers},
    hash::fnv1a,
    nft::{
        fragment::{Fragment, Step},
        rule::{Family, Is, Rule},
        set::{self, Kind, Value},
        table::named,
    },
    settings::Protocol,
};

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// Name and protocol: what tells one port of a Service from all others.
type Owner = (String, Protocol);

impl Service {
    fn owner(&self) -> Owner {
        (self.name.clone(), self.protocol)
    }

    /// The addresses from which sockets can be led to an endpoint. Who came last, and to whom, the rules alone know.
    fn socket_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let can_be = self.protocol == Protocol::Tcp && self.affinity.is_none();
        self.addresses.iter().filter(move |_| can_be).map(|ip| SocketAddr::new(*ip, self.port))
    }

    /// What no two services can have.
    fn claims(&self) -> impl Iterator<Item = Claim> {
        let addresses = self.addresses.iter().map(|ip| Claim::Address(*ip, self.protocol, self.port));
        addresses.chain(self.node_port.map(|port| Claim::NodePort(self.protocol, port)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Claim {
    Address(IpAddr, Protocol, u16),
    NodePort(Protocol, u16),
}

/// A service's place in the table, in one family.
#[derive(Debug)]
struct Unit {
    /// What it was made of.
    service: Service,
    id: u32,
    fragment: Arc<Fragment>,
}

/// All services as they stand in the table. A change costs as much as changes, however many there are.
#[derive(Debug, Default)]
pub(crate) struct Balance {
    services: BTreeMap<Owner, Arc<Service>>,
    units: BTreeMap<(Owner, Family), Unit>,
    /// Of several that want the same, the first by name has it.
    claims: HashMap<Claim, BTreeSet<Owner>>,
    /// How often an address is an endpoint.
    endpoints: BTreeMap<IpAddr, u32>,
    last_id: u32,
}

/// What a change comes to.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// Parts of the table, before and after.
    pub(crate) steps: Vec<Step>,
    /// Flows to endpoints that are gone, and past node ports that led nowhere.
    pub(crate) stale: Stale,
    /// Where sockets that are connected to an address are led from now on; nowhere: that is left to the rules.
    pub(crate) led: BTreeMap<SocketAddr, Vec<SocketAddr>>,
}

impl Balance {
    /// Takes these services away and brings those in; one that is changed is among both.
    pub(crate) fn change(&mut self, gone: &[Arc<Service>], come: &[Arc<Service>]) -> Change {
        let mut touched = BTreeSet::new();
        for service in gone {
            let owner = service.owner();
            self.services.remove(&owner);
            for claim in service.claims() {
                self.contest(claim, &mut touched, |owners| owners.remove(&owner));
            }
            touched.insert(owner);
        }
        for service in come {
            let owner = service.owner();
            self.services.insert(owner.clone(), service.clone());
            for claim in service.claims() {
                self.contest(claim, &mut touched, |owners| owners.insert(owner.clone()));
            }
            touched.insert(owner);
        }
        let (mut change, mut selves) = (Change::default(), Selves::default());
        for owner in touched {
            for family in Family::BOTH {
                self.settle(&owner, family, &mut change, &mut selves);
            }
        }
        change.steps.extend(selves.step(&self.endpoints));
        change
    }

    /// All parts of the table.
    pub(crate) fn fragments(&self) -> impl Iterator<Item = Arc<Fragment>> {
        let selves = Arc::new(selves(self.endpoints.keys().copied()));
        self.units.values().map(|unit| unit.fragment.clone()).chain([selves])
    }

    /// Changes who claims something: whoever else does is touched by it.
    fn contest(&mut self, claim: Claim, touched: &mut BTreeSet<Owner>, change: impl FnOnce(&mut BTreeSet<Owner>) -> bool) {
        let owners = self.claims.entry(claim).or_default();
        change(owners);
        touched.extend(owners.iter().cloned());
        if owners.is_empty() {
            self.claims.remove(&claim);
        }
    }

    /// What a service has by right, in a family.
    fn rightful(&self, owner: &Owner, family: Family) -> Option<Service> {
        let mut service = of_family(self.services.get(owner)?, family);
        let has = |claim| self.claims.get(&claim).and_then(BTreeSet::first) == Some(owner);
        let (protocol, port) = (service.protocol, service.port);
        service.addresses.retain(|ip| has(Claim::Address(*ip, protocol, port)));
        service.node_port = service.node_port.filter(|port| has(Claim::NodePort(protocol, *port)));
        (!service.addresses.is_empty() || service.node_port.is_some()).then_some(service)
    }

    /// Makes a unit what it should be; what is as it was stays the very same.
    fn settle(&mut self, owner: &Owner, family: Family, change: &mut Change, selves: &mut Selves) {
        let wanted = self.rightful(owner, family);
        let key = (owner.clone(), family);
        let old = self.units.remove(&key);
        if old.is_none() && wanted.is_none() {
            return;
        }
        if let Some(unit) = &old
            && wanted.as_ref() == Some(&unit.service)
        {
            self.units.extend(old.map(|unit| (key, unit)));
            return;
        }
        let new = wanted.map(|service| {
            let id = old.as_ref().map_or_else(|| self.fresh_id(), |old| old.id);
            let fragment = Arc::new(fragment(&service, id, family));
            Unit { service, id, fragment }
        });
        let before = old.as_ref().map_or(&[][..], |unit| &unit.service.endpoints);
        let after = new.as_ref().map_or(&[][..], |unit| &unit.service.endpoints);
        before.iter().for_each(|endpoint| selves.less(&mut self.endpoints, endpoint.ip()));
        after.iter().for_each(|endpoint| selves.more(&mut self.endpoints, endpoint.ip()));
        if lingers(owner.1) {
            let lost = before.iter().filter(|endpoint| !after.contains(endpoint));
            change.stale.gone.extend(lost.map(|endpoint| (owner.1, endpoint.ip(), endpoint.port())));
            let port = |unit: &Option<Unit>| {
                unit.as_ref().filter(|unit| !unit.service.endpoints.is_empty()).and_then(|unit| unit.service.node_port)
            };
            let opened = port(&new).filter(|opened| port(&old) != Some(*opened));
            change.stale.opened.extend(opened.map(|port| (owner.1, None, port)));
        }
        for address in old.iter().flat_map(|unit| unit.service.socket_addresses()) {
            change.led.entry(address).or_default();
        }
        if let Some(unit) = &new {
            change.led.extend(unit.service.socket_addresses().map(|address| (address, unit.service.endpoints.clone())));
        }
        let fragment = |unit: &Option<Unit>| unit.as_ref().map(|unit| unit.fragment.clone()).unwrap_or_default();
        change.steps.push((fragment(&old), fragment(&new)));
        self.units.extend(new.map(|unit| (key, unit)));
    }

    fn fresh_id(&mut self) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }
}

/// Endpoints may reach themselves by a service: their answers need the host's address. Which of them a change concerned, and whether
/// they were known before it.
#[derive(Default)]
struct Selves(BTreeMap<IpAddr, bool>);

impl Selves {
    fn more(&mut self, counts: &mut BTreeMap<IpAddr, u32>, ip: IpAddr) {
        let count = counts.entry(ip).or_default();
        self.0.entry(ip).or_insert(*count > 0);
        *count += 1;
    }

    fn less(&mut self, counts: &mut BTreeMap<IpAddr, u32>, ip: IpAddr) {
        self.0.entry(ip).or_insert(true);
        match counts.get_mut(&ip) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&ip)),
        }
    }

    fn step(&self, counts: &BTreeMap<IpAddr, u32>) -> Option<Step> {
        let of = |was: bool| {
            let changed = self.0.iter().filter(move |(ip, before)| **before == was && counts.contains_key(*ip) != was);
            Arc::new(selves(changed.map(|(ip, _)| *ip)))
        };
        let (gone, come) = (of(true), of(false));
        (*gone != *come).then_some((gone, come))
    }
}

fn selves(endpoints: impl Iterator<Item = IpAddr>) -> Fragment {
    let mut selves = Fragment::default();
    for ip in endpoints {
        let pair = [set::octets(ip), set::octets(ip)].concat();
        selves.add(&named("selves_of_services", Family::of(ip)), pair, Value::None);
    }
    selves
}

fn of_family(service: &Service, family: Family) -> Service {
    let mut service = service.clone();
    service.addresses.retain(|ip| ip.is_ipv4() == family.is_v4());
    service.endpoints.retain(|endpoint| endpoint.is_ipv4() == family.is_v4());
    service
}

/// Of a service without endpoints, connections are refused. (At addresses of the services' ranges they are whatever port they are for.)
fn fragment(service: &Service, id: u32, family: Family) -> Fragment {
    let mut fragment = Fragment::default();
    if service.endpoints.is_empty() {
        for ip in &service.addresses {
            fragment.add(&named("unserved", family), set::service_key(*ip, service.protocol, service.port), Value::None);
        }
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
    let own = |set: &str| format!("{}-{id}", named(set, family));
    let backends = own("backends");
    fragment.sets.insert(backends.clone(), Kind::Backends(family));
    for (number, endpoint) in (0u32..).zip(&service.endpoints) {
        fragment.add(&backends, number.to_ne_bytes().to_vec(), Value::Data(set::target(*endpoint)));
    }
    let (count, rule) = (service.endpoints.len() as u32, || Rule::new(service.name.clone()));
    let mut rules = Vec::new();
    if let Some(timeout) = service.affinity {
        let clients = |to: &SocketAddr| format!("{}-{}-{}", own("clients"), to.ip().to_string().replace(':', "-"), to.port());
        let remember = |rule: Rule, to: &SocketAddr| rule.remember(family, &clients(to), timeout).redirect_to(*to);
        let stays = |to| remember(rule().family(family).source(family, Is::In, &clients(to)), to);
        // One of three, one of the two that are left, the last.
        let comes = |(left, to)| remember(rule().family(family).one_of(left), to);
        fragment.sets.extend(service.endpoints.iter().map(|to| (clients(to), Kind::Clients(family))));
        rules.extend(service.endpoints.iter().map(stays));
        rules.extend((1..=count).rev().zip(&service.endpoints).map(comes));
    }
    // With affinity, for clients beyond those for whom there is room.
    rules.push(rule().balance(family, count, &backends));
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
    use crate::nft::fragment::mock::Tables;

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

    fn balance(services: &[Arc<Service>]) -> Balance {
        let mut balance = Balance::default();
        balance.change(&[], services);
        balance
    }

    #[test]
    fn only_what_changed_is_made_anew_and_keeps_its_number() {
        let a = Arc::new(service("a", "10.96.0.1", &["10.88.0.2:80"]));
        let old = Arc::new(service("b", "10.96.0.2", &["10.88.0.3:80"]));
        let new = Arc::new(service("b", "10.96.0.2", &["10.88.0.3:80", "10.88.0.4:80"]));
        let mut balance = balance(&[a.clone(), old.clone()]);
        let ids = |balance: &Balance| balance.units.values().map(|unit| unit.id).collect::<Vec<_>>();
        let before = ids(&balance);
        let change = balance.change(&[old], &[new]);
        assert_eq!(ids(&balance), before);
        // The service, and the endpoint that may now reach itself.
        assert_eq!(change.steps.len(), 2);
        let selves = &change.steps[1];
        assert!(selves.0.elements.is_empty() && selves.1.elements["selves_of_services4"].len() == 1, "{selves:?}");
        assert!(balance.change(std::slice::from_ref(&a), std::slice::from_ref(&a)).steps.is_empty(), "the same is no change");
    }

    #[test]
    fn the_first_by_name_has_the_address_and_families_are_apart() {
        let mut both = service("a", "10.96.0.1", &["10.88.0.2:80", "[fd00::2]:80"]);
        both.addresses.push("fd96::1".parse().unwrap());
        let (both, second) = (Arc::new(both), Arc::new(service("b", "10.96.0.1", &["10.88.0.3:80"])));
        let mut balance = balance(&[second, both.clone()]);
        let units = |balance: &Balance| {
            let units =
                balance.units.iter().map(|(((name, _), family), unit)| (name.clone(), *family, unit.service.endpoints.len()));
            units.collect::<Vec<_>>()
        };
        assert_eq!(units(&balance), [("a".into(), Family::V4, 1), ("a".into(), Family::V6, 1)]);
        balance.change(&[both], &[]);
        assert_eq!(units(&balance), [("b".into(), Family::V4, 1)], "who waited for it has it");
        assert_eq!(balance.endpoints.keys().map(ToString::to_string).collect::<Vec<_>>(), ["10.88.0.3"]);
    }

    proptest::proptest! {
        /// However one gets there, what stands is what would be made of the services at once.
        #[test]
        fn step_by_step_is_all_at_once(
            edits in proptest::collection::vec((0..4u8, 0..3u8, proptest::collection::vec(0..3u8, 0..3), proptest::bool::ANY), 1..12),
        ) {
            let mut stepwise = Balance::default();
            let mut current: BTreeMap<u8, Arc<Service>> = BTreeMap::new();
            let (mut table, mut led) = (Tables::default(), BTreeMap::new());
            for (number, address, endpoints, remove) in edits {
                let gone: Vec<_> = current.remove(&number).into_iter().collect();
                let endpoints: Vec<String> = endpoints.iter().map(|n| format!("10.88.0.{n}:80")).collect();
                let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
                let wanted = Arc::new(Service {
                    node_port: (address == 1).then_some(30_000),
                    affinity: (endpoints.len() == 2 && number == 0).then_some(Duration::from_secs(1)),
                    ..service(&format!("s{number}"), &format!("10.96.0.{address}"), &endpoints)
                });
                let come = if remove { Vec::new() } else { vec![wanted] };
                current.extend(come.iter().map(|service| (number, service.clone())));
                let change = stepwise.change(&gone, &come);
                table.apply(&change.steps);
                led.extend(change.led);
            }
            led.retain(|_, endpoints| !endpoints.is_empty());
            let mut at_once = Balance::default();
            let mut change = at_once.change(&[], &current.into_values().collect::<Vec<_>>());
            change.led.retain(|_, endpoints| !endpoints.is_empty());
            proptest::prop_assert_eq!(led, change.led, "sockets are led where the rules lead");
            let shape = |balance: &Balance| {
                balance.units.iter().map(|(key, unit)| (key.clone(), unit.service.clone())).collect::<Vec<_>>()
            };
            proptest::prop_assert_eq!(shape(&stepwise), shape(&at_once));
            proptest::prop_assert_eq!(&stepwise.endpoints, &at_once.endpoints);
            let mut whole = Tables::default();
            stepwise.fragments().for_each(|part| whole.put(&part));
            proptest::prop_assert_eq!(table, whole, "the steps lead to what all of it at once would be");
        }
    }

    #[test]
    fn names_fit_a_chain() {
        assert_eq!(chain_name("service4-1/", "shop/web:http"), "service4-1/shop/web/http");
        let long = chain_name("service4-4294967295/", &"x".repeat(300));
        assert!(long.len() < 128, "{long}");
    }
}
