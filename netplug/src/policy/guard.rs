//! The policies that stand, and which pods go through which. A change costs as much as the policies and pods that it concerns.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Direction, Policy,
    rules::{chain_of, fragment},
};
use crate::{
    hash::fnv1a,
    nft::{
        fragment::{Fragment, Step},
        rule::{Family, Rule, Verdict},
        set::{self, Value},
        table::named,
    },
};

/// A pod, as far as one direction goes.
type Pod = (Direction, IpAddr);
/// Of policies, by name: what goes through the same is one group.
type Chains = BTreeSet<String>;

/// See the module's page.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// By name.
    own: BTreeMap<String, Arc<Fragment>>,
    selected: BTreeMap<Pod, Chains>,
    /// How many pods there are of each group.
    groups: BTreeMap<(Direction, Chains), usize>,
}

impl Guard {
    /// Takes these policies away and brings those in; one that is changed is among both. What that changes in the table.
    pub(crate) fn change(&mut self, gone: &[Arc<Policy>], come: &[Arc<Policy>]) -> Vec<Step> {
        let mut before: BTreeMap<Pod, Chains> = BTreeMap::new();
        let mut parts: BTreeMap<&str, Step> = BTreeMap::new();
        for policy in gone {
            parts.entry(&policy.name).or_default().0 = self.own.remove(&policy.name).unwrap_or_default();
            self.select(policy, &mut before, |chains, chain| {
                chains.remove(&chain);
            });
        }
        for policy in come {
            let part = Arc::new(fragment(policy));
            parts.entry(&policy.name).or_default().1 = part.clone();
            self.own.insert(policy.name.clone(), part);
            self.select(policy, &mut before, |chains, chain| {
                chains.insert(chain);
            });
        }
        let regrouped = self.regroup(before);
        parts.into_values().chain(regrouped).filter(|(old, new)| old != new).collect()
    }

    /// All parts of the table.
    pub(crate) fn fragments(&self) -> impl Iterator<Item = Arc<Fragment>> {
        let mut pods = Fragment::default();
        self.selected.iter().for_each(|(pod, chains)| lead(&mut pods, *pod, chains));
        self.groups.keys().for_each(|(direction, chains)| stand(&mut pods, *direction, chains));
        self.own.values().cloned().chain([Arc::new(pods)])
    }

    /// Changes which policies' chains its pods go through. `before`: what they went through when the change began.
    fn select(&mut self, policy: &Policy, before: &mut BTreeMap<Pod, Chains>, change: impl Fn(&mut Chains, String)) {
        for direction in Direction::BOTH.into_iter().filter(|direction| direction.rules(policy).is_some()) {
            let chain = chain_of(direction, policy);
            for pod in policy.pods.iter().map(|ip| (direction, *ip)) {
                let chains = self.selected.entry(pod).or_default();
                before.entry(pod).or_insert_with(|| chains.clone());
                change(chains, chain.clone());
            }
        }
    }

    /// Leads the pods from the groups that they were in to those that they are in, and makes and removes groups.
    fn regroup(&mut self, before: BTreeMap<Pod, Chains>) -> Option<Step> {
        let (mut old, mut new) = (Fragment::default(), Fragment::default());
        let mut counted: BTreeMap<(Direction, Chains), usize> = BTreeMap::new();
        for (pod, was) in before {
            let now = self.selected.get(&pod).cloned().unwrap_or_default();
            if now.is_empty() {
                self.selected.remove(&pod);
            }
            if was == now {
                continue;
            }
            for (part, chains, by) in [(&mut old, was, usize::MAX), (&mut new, now, 1)] {
                if chains.is_empty() {
                    continue;
                }
                lead(part, pod, &chains);
                let group = (pod.0, chains);
                let count = self.groups.entry(group.clone()).or_default();
                counted.entry(group).or_insert(*count);
                *count = count.wrapping_add(by);
            }
        }
        for ((direction, chains), was) in counted {
            let group = (direction, chains);
            let now = self.groups.get(&group).copied().unwrap_or_default();
            if now == 0 {
                self.groups.remove(&group);
            }
            for (part, count) in [(&mut old, was), (&mut new, now)] {
                if count > 0 {
                    stand(part, direction, &group.1);
                }
            }
        }
        (old != new).then(|| (Arc::new(old), Arc::new(new)))
    }
}

/// A pod's element in the map that leads to its group.
fn lead(part: &mut Fragment, (direction, ip): Pod, chains: &Chains) {
    let map = named(&format!("{}_of", direction.name()), Family::of(ip));
    part.add(&map, set::octets(ip), Value::Goto(group_name(direction, chains)));
}

/// A group's chain.
fn stand(part: &mut Fragment, direction: Direction, chains: &Chains) {
    let policies = chains.iter().map(|chain| Rule::new("allowed by").then(Verdict::Jump(chain)));
    let verdicts = policies.chain([Rule::new("no policy allows it").then(Verdict::Drop)]).collect();
    part.chains.insert(group_name(direction, chains), verdicts);
}

fn group_name(direction: Direction, chains: &Chains) -> String {
    let bytes = chains.iter().flat_map(|chain| chain.bytes().chain([0]));
    format!("{}-pods-{:016x}", direction.name(), fnv1a(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nft::fragment::mock::Tables,
        policy::{Allow, Peers},
    };

    fn policy(name: u8, pods: &[u8], ingress: bool, egress: bool, peers: &[u8]) -> Arc<Policy> {
        let ips = |numbers: &[u8]| numbers.iter().map(|number| IpAddr::from([10, 88, 0, *number])).collect::<Vec<_>>();
        let allow = Allow { peers: Some(Peers { pods: ips(peers), blocks: Vec::new() }), ports: None };
        let rules = |wanted: bool| wanted.then(|| vec![allow.clone()]);
        Arc::new(Policy { name: format!("default/p{name}"), pods: ips(pods), ingress: rules(ingress), egress: rules(egress) })
    }

    #[test]
    fn a_pod_more_is_an_element_more() {
        let mut guard = Guard::default();
        let old = policy(1, &[1, 2], true, false, &[9]);
        guard.change(&[], &[old.clone(), policy(2, &[5], true, true, &[])]);
        let new = policy(1, &[1, 2, 3], true, false, &[9]);
        let steps = guard.change(&[old], std::slice::from_ref(&new));
        // What it allows is as it was, and so is the group.
        assert_eq!(steps.len(), 1, "{steps:?}");
        let (before, after) = &steps[0];
        assert!(before.elements.is_empty() && before.chains == after.chains, "{steps:?}");
        assert_eq!(after.elements["ingress_of4"].len(), 1);
        assert!(guard.change(std::slice::from_ref(&new), std::slice::from_ref(&new)).is_empty(), "the same is no change");
    }

    proptest::proptest! {
        /// However one gets there, what stands is what would be made of the policies at once.
        #[test]
        fn step_by_step_is_all_at_once(
            edits in proptest::collection::vec(
                (0..3u8, proptest::collection::vec(0..4u8, 0..4), 0..4u8, proptest::collection::vec(0..3u8, 0..2), proptest::bool::ANY),
                1..16,
            ),
        ) {
            let (mut guard, mut table) = (Guard::default(), Tables::default());
            let mut current: BTreeMap<u8, Arc<Policy>> = BTreeMap::new();
            for (name, pods, directions, peers, remove) in edits {
                let gone: Vec<_> = current.remove(&name).into_iter().collect();
                let new = policy(name, &pods, directions & 1 != 0, directions & 2 != 0, &peers);
                let come = if remove { Vec::new() } else { vec![new] };
                current.extend(come.iter().map(|policy| (name, policy.clone())));
                table.apply(&guard.change(&gone, &come));
            }
            let mut at_once = Guard::default();
            at_once.change(&[], &current.into_values().collect::<Vec<_>>());
            proptest::prop_assert_eq!(&guard.groups, &at_once.groups);
            let mut whole = Tables::default();
            at_once.fragments().for_each(|part| whole.put(&part));
            proptest::prop_assert_eq!(&table, &whole, "the steps lead to what all of it at once would be");
            let mut kept = Tables::default();
            guard.fragments().for_each(|part| kept.put(&part));
            proptest::prop_assert_eq!(&kept, &whole);
        }
    }
}
