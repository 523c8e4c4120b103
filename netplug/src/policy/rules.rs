//! One policy as chains and sets of its own. Pure.

use std::net::IpAddr;

use super::{Allow, Direction, Policy, Ports, ranges};
use crate::{
    nft::{
        fragment::Fragment,
        rule::{Family, Rule, Verdict},
        set::{self, Kind, Value},
    },
    service::chain_name,
    settings::Protocol,
};

/// Of what a policy allows in a direction.
pub(super) fn chain_of(direction: Direction, policy: &Policy) -> String {
    chain_name(&format!("{}/", direction.name()), &policy.name)
}

/// What a policy allows, in each direction that it speaks of.
pub(super) fn fragment(policy: &Policy) -> Fragment {
    let mut fragment = Fragment::default();
    for direction in Direction::BOTH {
        let Some(allowed) = direction.rules(policy) else { continue };
        let chain = chain_of(direction, policy);
        let mut writer = Writer { fragment: &mut fragment, direction, chain: &chain, policy, rules: Vec::new() };
        for (number, rule) in allowed.iter().enumerate() {
            writer.allow(number, rule);
        }
        let rules = writer.rules;
        fragment.chains.insert(chain, rules);
    }
    fragment
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
