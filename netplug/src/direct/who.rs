//! Who may take the direct way: pods whose packets no rule speaks of, and whose answers nobody has to translate back. Pure.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::Care;
use crate::{cidr::Cidr, conntrack::Redirected, lease::Lease, policy::Policy, service::Service, settings::Protocol};

/// Addresses that something on the host has to see packets of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Watched {
    /// Where pods' addresses are from. Those of other nodes are endpoints, too, and never end.
    ranges: Vec<Cidr>,
    /// How many policies select an address.
    selected: HashMap<IpAddr, usize>,
    /// Addresses that pods' TCP connections were translated to, whether they still are or not: such a connection's answers must pass
    /// connection tracking, and it may outlast Service and host port.
    translated: HashSet<IpAddr>,
    /// Addresses that other protocols, and the connections of others, were translated to; those of pods' sockets are led there
    /// ([`crate::sockets`]) if anything is.
    partly_translated: HashSet<IpAddr>,
    /// Whether pods' sockets are led.
    pub(crate) leads_sockets: bool,
}

/// What comes to a pod by another address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Translated {
    /// Pods' TCP connections, among others.
    Connections,
    /// Anything else, and what pods' sockets can be led to.
    Rest,
}

/// Why a pod doesn't take the direct way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hindrance {
    /// Network policies select it.
    Policy,
    /// It is, or was, an endpoint of a Service to which sockets aren't led, or has or had a host port.
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
        for service in services {
            // The rules alone know who came last, and a pod may ask for a port of the node.
            let by_rules = service.affinity.is_some() || service.node_port.is_some();
            self.translate(what(service.protocol, by_rules), service.endpoints.iter().map(SocketAddr::ip));
        }
    }

    /// Host ports lead to it.
    pub(crate) fn publish(&mut self, lease: &Lease) {
        for port in &lease.ports {
            self.translate(what(port.protocol, true), lease.ips.iter().copied());
        }
    }

    /// Connections are translated to these.
    pub(crate) fn translate(&mut self, what: Translated, ips: impl Iterator<Item = IpAddr>) {
        let known = if what == Translated::Connections { &mut self.translated } else { &mut self.partly_translated };
        known.extend(ips.filter(|ip| within(&self.ranges, *ip)));
    }

    /// A flow of before was translated. To who isn't a pod the answers go by the host.
    pub(crate) fn saw(&mut self, flow: Redirected) {
        let of_a_pod = flow.protocol == Protocol::Tcp.number() && within(&self.ranges, flow.client);
        let what = if of_a_pod { Translated::Connections } else { Translated::Rest };
        self.translate(what, std::iter::once(flow.endpoint));
    }

    /// What keeps a pod off the direct way, if something does.
    pub(crate) fn hinders(&self, lease: &Lease) -> Option<Hindrance> {
        if lease.ips.iter().any(|ip| self.selected.contains_key(ip)) {
            return Some(Hindrance::Policy);
        }
        if lease.ips.iter().any(|ip| self.translated.contains(ip) || (!self.leads_sockets && self.partly_translated.contains(ip)))
        {
            return Some(Hindrance::Translation);
        }
        lease.bandwidth.map(|_| Hindrance::Bandwidth)
    }

    /// Which packets of a pod may go directly, if any may.
    pub(crate) fn care(&self, lease: &Lease) -> Care {
        if lease.ips.iter().any(|ip| self.partly_translated.contains(ip)) { Care::Noted } else { Care::None }
    }
}

fn within(ranges: &[Cidr], ip: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(ip))
}

fn what(protocol: Protocol, by_rules: bool) -> Translated {
    if by_rules && protocol == Protocol::Tcp { Translated::Connections } else { Translated::Rest }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

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
        watched.translate(Translated::Connections, ["192.0.2.1".parse().unwrap(), ip(2)].into_iter());
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

    fn published(protocol: Protocol) -> Lease {
        Lease { ports: vec![Port { host_ip: None, host_port: 1, container_port: 1, protocol }], ..lease(2) }
    }

    #[rstest]
    #[case::plain(&[], &[], lease(2), None)]
    #[case::selected(&[2], &[], lease(2), Some(Hindrance::Policy))]
    #[case::another_is_selected(&[3], &[], lease(2), None)]
    #[case::an_endpoint(&[], &[2], lease(2), Some(Hindrance::Translation))]
    #[case::with_a_host_port(&[], &[], published(Protocol::Udp), Some(Hindrance::Translation))]
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
        watched.publish(&pod);
        assert_eq!(watched.hinders(&pod), expected);
        // The policy goes, and so does the Service.
        watched.select([policy(1, selected)].iter(), [].into_iter());
        let lasting = expected.filter(|hindrance| *hindrance != Hindrance::Policy);
        assert_eq!(watched.hinders(&pod), lasting, "what was translated stays so");
    }

    /// Who is led needs no translation; what isn't led to it must not be handed over unseen.
    #[rstest]
    #[case::an_endpoint(service(&[2]), lease(2), None, Care::Noted)]
    #[case::another_is(service(&[3]), lease(2), None, Care::None)]
    #[case::of_datagrams(Service { protocol: Protocol::Udp, node_port: Some(30_000), ..service(&[2]) }, lease(2), None, Care::Noted)]
    #[case::with_a_node_port(Service { node_port: Some(30_000), ..service(&[2]) }, lease(2), Some(Hindrance::Translation), Care::None)]
    #[case::that_is_sticky(Service { affinity: Some(Duration::from_secs(1)), ..service(&[2]) }, lease(2), Some(Hindrance::Translation), Care::None)]
    #[case::with_a_host_port(service(&[3]), published(Protocol::Tcp), Some(Hindrance::Translation), Care::None)]
    #[case::with_a_host_port_for_datagrams(service(&[3]), published(Protocol::Udp), None, Care::Noted)]
    fn where_sockets_are_led(
        #[case] service: Service,
        #[case] pod: Lease,
        #[case] hindrance: Option<Hindrance>,
        #[case] care: Care,
    ) {
        let mut watched = Watched { leads_sockets: true, ..watched() };
        watched.translate_to([service].iter());
        watched.publish(&pod);
        assert_eq!((watched.hinders(&pod), watched.care(&pod)), (hindrance, care));
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
