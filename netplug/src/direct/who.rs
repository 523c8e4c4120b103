//! Who may take the direct way: pods whose packets no rule speaks of, and whose answers nobody has to translate back. Pure.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::{cidr::Cidr, lease::Lease, policy::Policy, service::Service};

/// Addresses that something on the host has to see packets of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Watched {
    /// Where pods' addresses are from. Those of other nodes are endpoints, too, and never end.
    ranges: Vec<Cidr>,
    /// How many policies select an address.
    selected: HashMap<IpAddr, usize>,
    /// Addresses that connections were translated to, whether they still are or not: such a connection's answers must pass connection
    /// tracking, and it may outlast Service and host port.
    translated: HashSet<IpAddr>,
}

/// Why a pod doesn't take the direct way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hindrance {
    /// Network policies select it.
    Policy,
    /// It is, or was, an endpoint of a Service, or has or had a host port.
    Translation,
    /// Its bandwidth is limited.
    Bandwidth,
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hindrance::Policy => "network policies select it",
            Hindrance::Translation => "connections are, or were, translated to it: by a Service or a host port",
            Hindrance::Bandwidth => "its bandwidth is limited",
        })
    }
}

impl Watched {
    /// With nothing to be seen yet.
    pub(crate) fn among(ranges: Vec<Cidr>) -> Watched {
        Watched { ranges, ..Watched::default() }
    }

    /// Policies that go and come; one that is changed is among both.
    pub(crate) fn select<'a>(&mut self, gone: impl Iterator<Item = &'a Policy>, come: impl Iterator<Item = &'a Policy>) {
        for ip in come.flat_map(|policy| &policy.pods) {
            *self.selected.entry(*ip).or_default() += 1;
        }
        for ip in gone.flat_map(|policy| &policy.pods) {
            if let Some(count) = self.selected.get_mut(ip) {
                *count -= 1;
                if *count == 0 {
                    self.selected.remove(ip);
                }
            }
        }
    }

    /// Connections are translated to these Services' endpoints.
    pub(crate) fn translate_to<'a>(&mut self, services: impl Iterator<Item = &'a Service>) {
        self.translate(services.flat_map(|service| &service.endpoints).map(SocketAddr::ip));
    }

    /// Connections are translated to these.
    pub(crate) fn translate(&mut self, ips: impl Iterator<Item = IpAddr>) {
        let ranges = &self.ranges;
        self.translated.extend(ips.filter(|ip| ranges.iter().any(|range| range.contains(*ip))));
    }

    /// What keeps a pod off the direct way, if something does.
    pub(crate) fn hinders(&self, lease: &Lease) -> Option<Hindrance> {
        if lease.ips.iter().any(|ip| self.selected.contains_key(ip)) {
            return Some(Hindrance::Policy);
        }
        if !lease.ports.is_empty() || lease.ips.iter().any(|ip| self.translated.contains(ip)) {
            return Some(Hindrance::Translation);
        }
        lease.bandwidth.map(|_| Hindrance::Bandwidth)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::*;
    use crate::{
        bandwidth::Bandwidth,
        settings::{Port, Protocol},
    };

    fn ip(last: u8) -> IpAddr {
        [10, 88, 0, last].into()
    }

    fn lease(last: u8) -> Lease {
        let pod = format!("default/p{last}");
        let ips = vec![ip(last), format!("fd00:88::{last}").parse().unwrap()];
        Lease { uid: pod.clone(), pod, ips, host_if: format!("veth{last}"), ports: Vec::new(), bandwidth: None, mac: None }
    }

    fn watched() -> Watched {
        Watched::among(vec!["10.88.0.0/16".parse().unwrap()])
    }

    #[test]
    fn who_is_no_pod_here_is_not_kept() {
        let mut watched = watched();
        watched.translate(["192.0.2.1".parse().unwrap(), ip(2)].into_iter());
        assert_eq!(watched.translated, HashSet::from([ip(2)]));
    }

    fn policy(name: u8, pods: &[u8]) -> Policy {
        Policy {
            name: format!("default/{name}"),
            pods: pods.iter().map(|pod| ip(*pod)).collect(),
            ingress: Some(Vec::new()),
            egress: None,
        }
    }

    fn service(endpoints: &[u8]) -> Service {
        Service {
            name: "default/web:http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            addresses: Vec::new(),
            node_port: None,
            endpoints: endpoints.iter().map(|pod| SocketAddr::new(ip(*pod), 80)).collect(),
            affinity: None,
        }
    }

    #[rstest]
    #[case::plain(&[], &[], lease(2), None)]
    #[case::selected(&[2], &[], lease(2), Some(Hindrance::Policy))]
    #[case::another_is_selected(&[3], &[], lease(2), None)]
    #[case::an_endpoint(&[], &[2], lease(2), Some(Hindrance::Translation))]
    #[case::with_a_host_port(&[], &[], Lease { ports: vec![Port { host_ip: None, host_port: 1, container_port: 1, protocol: Protocol::Udp }], ..lease(2) }, Some(Hindrance::Translation))]
    #[case::limited(&[], &[], Lease { bandwidth: Some(Bandwidth::default()), ..lease(2) }, Some(Hindrance::Bandwidth))]
    fn what_keeps_a_pod_off(
        #[case] selected: &[u8],
        #[case] endpoints: &[u8],
        #[case] pod: Lease,
        #[case] expected: Option<Hindrance>,
    ) {
        let mut watched = watched();
        watched.select([].into_iter(), [policy(1, selected)].iter());
        watched.translate_to([service(endpoints)].iter());
        assert_eq!(watched.hinders(&pod), expected);
        // The policy goes, and so does the Service.
        watched.select([policy(1, selected)].iter(), [].into_iter());
        let lasting = expected.filter(|hindrance| *hindrance != Hindrance::Policy);
        assert_eq!(watched.hinders(&pod), lasting, "what was translated stays so");
    }

    proptest::proptest! {
        /// Step by step, a pod is selected if, and only if, one of the policies that there are selects it.
        #[test]
        fn selected_is_who_a_policy_selects(
            edits in proptest::collection::vec((0..3u8, proptest::option::of(proptest::collection::vec(2..6u8, 0..4))), 1..20),
        ) {
            let (mut watched, mut current) = (watched(), BTreeMap::new());
            for (name, pods) in edits {
                let come: Vec<Policy> = pods.map(|pods| policy(name, &pods)).into_iter().collect();
                let gone: Vec<Policy> = current.remove(&name).into_iter().collect();
                current.extend(come.iter().map(|policy| (name, policy.clone())));
                watched.select(gone.iter(), come.iter());
                for pod in 2..6 {
                    let selects = current.values().any(|policy| policy.pods.contains(&ip(pod)));
                    proptest::prop_assert_eq!(watched.hinders(&lease(pod)), selects.then_some(Hindrance::Policy));
                }
            }
        }
    }
}
