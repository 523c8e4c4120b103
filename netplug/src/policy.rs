//! Network policies, already resolved to addresses: from what is allowed to chains and sets. Pure.
//!
//! A policy has a chain of what it allows in a direction; pods that the same policies select share a chain that goes through those and
//! then drops; a map leads from a pod's address to its chain. What no policy selects isn't in the map and passes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    cidr::{self, Cidr},
    hash::fnv1a,
    nft::{
        fragment::Fragment,
        rule::{Family, Is, Rule, Verdict},
        set::{self, Kind, Value},
        table::named,
    },
    service::chain_name,
    settings::Protocol,
};

/// What one NetworkPolicy comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `namespace/name`.
    pub name: String,
    /// The addresses of the pods that it selects.
    pub pods: Vec<IpAddr>,
    /// What may come in; None: the policy doesn't speak of it.
    pub ingress: Option<Vec<Allow>>,
    /// What may go out; None: the policy doesn't speak of it.
    pub egress: Option<Vec<Allow>>,
}

/// One rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allow {
    /// With whom; None: everybody.
    pub peers: Option<Peers>,
    /// To which ports; None: all.
    pub ports: Option<Vec<Ports>>,
}

/// Who is on the other side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// Pods' addresses.
    pub pods: Vec<IpAddr>,
    /// Address ranges, each with what is taken out of it.
    pub blocks: Vec<(Cidr, Vec<Cidr>)>,
}

/// Ports of the side that is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ports {
    /// First to last; None: all of the protocol.
    Range(Protocol, Option<(u16, u16)>),
    /// A named port, as each pod has it.
    Named(Protocol, Vec<SocketAddr>),
}

/// The two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(crate) const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }

    pub(crate) fn rules(self, policy: &Policy) -> Option<&[Allow]> {
        match self {
            Direction::Ingress => policy.ingress.as_deref(),
            Direction::Egress => policy.egress.as_deref(),
        }
    }

    /// Matches the other side.
    fn peer(self, rule: Rule, family: Family, set: &str) -> Rule {
        match self {
            Direction::Ingress => rule.source(family, Is::In, set),
            Direction::Egress => rule.destination(family, Is::In, set),
        }
    }
}

/// The part of the table that all policies are.
pub(crate) fn fragment(policies: &[Policy]) -> Fragment {
    let mut fragment = Fragment::default();
    for direction in Direction::BOTH {
        let mut selecting: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for policy in policies {
            let Some(rules) = direction.rules(policy) else { continue };
            let chain = chain_name(&format!("{}/", direction.name()), &policy.name);
            for pod in &policy.pods {
                selecting.entry(*pod).or_default().push(chain.clone());
            }
            let mut writer = Writer { fragment: &mut fragment, direction, chain: &chain, policy, rules: Vec::new() };
            for (number, rule) in rules.iter().enumerate() {
                writer.allow(number, rule);
            }
            let rules = writer.rules;
            fragment.chains.insert(chain, rules);
        }
        for (pod, chains) in selecting {
            let group = group_name(direction, &chains);
            let key = set::octets(pod);
            fragment.add(&named(&format!("{}_of", direction.name()), Family::of(pod)), key, Value::Goto(group.clone()));
            fragment.chains.entry(group).or_insert_with(|| verdicts(&chains));
        }
    }
    fragment
}

/// The chain of pods that these policies select.
fn group_name(direction: Direction, chains: &[String]) -> String {
    let bytes = chains.iter().flat_map(|chain| chain.bytes().chain([0]));
    format!("{}-pods-{:016x}", direction.name(), fnv1a(bytes))
}

fn verdicts(chains: &[String]) -> Vec<Rule> {
    let policies = chains.iter().map(|chain| Rule::new("allowed by").then(Verdict::Jump(chain)));
    policies.chain([Rule::new("no policy allows it").then(Verdict::Drop)]).collect()
}

struct Writer<'a> {
    fragment: &'a mut Fragment,
    direction: Direction,
    chain: &'a str,
    policy: &'a Policy,
    rules: Vec<Rule>,
}

impl Writer<'_> {
    fn allow(&mut self, number: usize, allow: &Allow) {
        let any_port = [Ports::Range(Protocol::Tcp, None)];
        let ports = allow.ports.as_deref();
        for (index, port) in ports.unwrap_or(&any_port).iter().enumerate() {
            for family in Family::BOTH {
                for peer in self.peers(number, allow, family) {
                    let begun = Rule::new(format!("{} {}", self.policy.name, self.direction.name())).family(family);
                    let matched = match peer {
                        Some(set) => self.direction.peer(begun, family, &set),
                        None => begun,
                    };
                    let rule = if ports.is_some() { self.port(matched, number, index, port, family) } else { Some(matched) };
                    self.rules.extend(rule.map(|rule| rule.then(Verdict::Accept)));
                }
            }
        }
    }

    /// The sets of a rule's peers in a family, made on the way; one None: everybody.
    fn peers(&mut self, number: usize, allow: &Allow, family: Family) -> Vec<Option<String>> {
        let Some(peers) = &allow.peers else { return vec![None] };
        let mut sets = Vec::new();
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == family.is_v4();
        if peers.pods.iter().any(|ip| of_family(&ip)) {
            let set = format!("{}-{number}-pods{}", self.chain, family.digit());
            self.fragment.sets.insert(set.clone(), Kind::Addresses(family));
            peers.pods.iter().filter(of_family).for_each(|ip| self.fragment.add(&set, set::octets(*ip), Value::None));
            sets.push(Some(set));
        }
        let ranges = ranges(&peers.blocks, family);
        if !ranges.is_empty() {
            let set = format!("{}-{number}-blocks{}", self.chain, family.digit());
            self.fragment.sets.insert(set.clone(), Kind::Intervals(family));
            for (first, last) in ranges {
                set::interval(first, last).for_each(|key| self.fragment.add(&set, key, Value::None));
            }
            sets.push(Some(set));
        }
        sets
    }

    fn port(&mut self, rule: Rule, number: usize, index: usize, ports: &Ports, family: Family) -> Option<Rule> {
        match ports {
            Ports::Range(protocol, None) => Some(rule.protocol(*protocol)),
            Ports::Range(protocol, Some((first, last))) => Some(rule.protocol(*protocol).ports(*first, *last)),
            Ports::Named(protocol, targets) => {
                let targets: Vec<_> = targets.iter().filter(|target| target.is_ipv4() == family.is_v4()).collect();
                if targets.is_empty() {
                    return None;
                }
                let set = format!("{}-{number}-port{index}-{}", self.chain, family.digit());
                self.fragment.sets.insert(set.clone(), Kind::Endpoints(family));
                for target in targets {
                    self.fragment.add(&set, set::service_key(target.ip(), *protocol, target.port()), Value::None);
                }
                Some(rule.destination_port(family, &set))
            }
        }
    }
}

/// The addresses of blocks less their exceptions, as runs that neither touch nor overlap.
pub(crate) fn ranges(blocks: &[(Cidr, Vec<Cidr>)], family: Family) -> Vec<(IpAddr, IpAddr)> {
    let like = if family.is_v4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let bounds = |cidr: &Cidr| (cidr::number(cidr.base()), cidr::number(cidr.at(cidr.last_offset())));
    let mut runs: Vec<(u128, u128)> = Vec::new();
    for (block, except) in blocks.iter().filter(|(block, _)| block.is_v4() == family.is_v4()) {
        let mut left = vec![bounds(block)];
        for (first, last) in except.iter().filter(|except| except.is_v4() == family.is_v4()).map(bounds) {
            left = left.into_iter().flat_map(|run| without(run, first, last)).collect();
        }
        runs.extend(left);
    }
    runs.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in runs {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into_iter().map(|(first, last)| (cidr::from_number(first, like), cidr::from_number(last, like))).collect()
}

/// A run less another.
fn without(run: (u128, u128), first: u128, last: u128) -> impl Iterator<Item = (u128, u128)> {
    let before = (run.0 < first).then(|| (run.0, run.1.min(first.wrapping_sub(1))));
    let after = (run.1 > last).then(|| (run.0.max(last.wrapping_add(1)), run.1));
    before.into_iter().chain(after)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn blocks(text: &str) -> Vec<(Cidr, Vec<Cidr>)> {
        let block = |words: &str| {
            let mut cidrs = words.split(" except ").map(|cidr| cidr.parse().unwrap());
            (cidrs.next().unwrap(), cidrs.collect())
        };
        text.split(", ").map(block).collect()
    }

    #[rstest]
    #[case("10.0.0.0/24", "10.0.0.0-10.0.0.255")]
    #[case("10.0.0.0/24 except 10.0.0.0/25", "10.0.0.128-10.0.0.255")]
    #[case("10.0.0.0/24 except 10.0.0.64/26 except 10.0.0.255/32", "10.0.0.0-10.0.0.63 10.0.0.128-10.0.0.254")]
    #[case("10.0.0.0/25, 10.0.0.128/25", "10.0.0.0-10.0.0.255")]
    #[case("10.0.0.0/24 except 10.0.0.0/24", "")]
    #[case("10.0.0.0/24 except 10.0.0.0/24, 10.0.0.7/32", "10.0.0.7-10.0.0.7")]
    #[case("0.0.0.0/0", "0.0.0.0-255.255.255.255")]
    #[case("0.0.0.0/0 except 0.0.0.0/1", "128.0.0.0-255.255.255.255")]
    fn blocks_less_exceptions(#[case] text: &str, #[case] expected: &str) {
        let runs = ranges(&blocks(text), Family::V4).into_iter().map(|(first, last)| format!("{first}-{last}"));
        assert_eq!(runs.collect::<Vec<_>>().join(" "), expected);
        assert!(ranges(&blocks(text), Family::V6).is_empty());
    }

    proptest! {
        #[test]
        fn an_address_is_in_when_a_block_has_it_and_its_exceptions_do_not(
            raw in prop::collection::vec((any::<u8>(), 24u8..=32, prop::collection::vec((any::<u8>(), 24u8..=32), 0..3)), 0..4),
            probe: u8,
        ) {
            let cidr = |(last, prefix): (u8, u8)| Cidr::around(&format!("10.0.0.{last}/{prefix}")).unwrap();
            let blocks: Vec<_> = raw.into_iter().map(|(last, prefix, except)| (cidr((last, prefix)), except.into_iter().map(cidr).collect::<Vec<_>>())).collect();
            let ip = IpAddr::from([10, 0, 0, probe]);
            let expected = blocks.iter().any(|(block, except)| block.contains(ip) && !except.iter().any(|except| except.contains(ip)));
            let found = ranges(&blocks, Family::V4).iter().any(|(first, last)| *first <= ip && ip <= *last);
            prop_assert_eq!(found, expected);
        }
    }
}
