//! What would become of a connection: the table's rules told in words, step by step. Pure: a function of leases, rules and question.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    cidr::Cidr,
    direct::Care,
    engine::rules::Rules,
    lease::Lease,
    nft::rule::Family,
    policy::{Allow, Direction, Policy, Ports, ranges},
    service::Service,
    settings::{Isolation, Protocol, Range, Settings},
};

/// One rule that has a say, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The chain of the table, as `nft list table` shows it.
    pub chain: String,
    /// What it does.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It lets it pass.
    Accept,
    /// It changes an address.
    Rewrite,
    /// It refuses it, and tells so.
    Reject,
    /// It drops it without a word.
    Drop,
}

/// A question: from this address, of a pod or of the node itself, to that one.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// Of who calls.
    pub source: IpAddr,
    /// Where it calls.
    pub destination: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
}

/// Who passes by rules.
#[derive(Debug, Default)]
pub(crate) struct Shortcuts {
    /// Who takes the direct way, with which packets.
    pub(crate) direct: HashMap<IpAddr, Care>,
    /// Whose sockets are led to Services' endpoints.
    pub(crate) led: HashSet<IpAddr>,
}

/// The steps of a flow for each endpoint that it could get: of a service with three, three ways. `host`: addresses of the node, beside
/// the bridge's.
pub(crate) fn trace(
    settings: &Settings,
    leases: &[Lease],
    rules: &Rules,
    shortcuts: &Shortcuts,
    host: &[IpAddr],
    flow: Flow,
) -> Vec<Vec<Step>> {
    let gateways = settings.ranges.iter().map(Range::gateway);
    let world = World { settings, leases, rules, shortcuts, host: host.iter().copied().chain(gateways).collect() };
    if let Some((reason, targets)) = world.connect(flow) {
        return targets
            .into_iter()
            .flat_map(|target| {
                let led = Step {
                    chain: "connect".into(),
                    verdict: Verdict::Rewrite,
                    reason: format!("{} is {reason}: the socket is connected to {target} from the beginning", flow.destination),
                };
                let onward = world.onward(Flow { destination: target, ..flow }).into_iter();
                onward.map(move |steps| std::iter::once(led.clone()).chain(steps).collect())
            })
            .collect();
    }
    world.onward(flow)
}

fn at_address(flow: Flow) -> impl Fn(&Service) -> bool {
    move |service| service.port == flow.destination.port() && service.addresses.contains(&flow.destination.ip())
}

fn at_node_port(flow: Flow) -> impl Fn(&Service) -> bool {
    move |service| service.node_port == Some(flow.destination.port())
}

fn in_words(what: &str, service: &Service, targets: &[SocketAddr]) -> String {
    format!("{what} {}, {} of its endpoints", service.name, one_of(targets.len()))
}

struct World<'a> {
    settings: &'a Settings,
    leases: &'a [Lease],
    rules: &'a Rules,
    shortcuts: &'a Shortcuts,
    host: Vec<IpAddr>,
}

impl World<'_> {
    /// To whom a socket is led, if it is.
    fn connect(&self, flow: Flow) -> Option<(String, Vec<SocketAddr>)> {
        let is_led = flow.protocol == Protocol::Tcp && self.shortcuts.led.contains(&flow.source);
        let (service, targets) = self.service(flow, at_address(flow)).filter(|_| is_led)?;
        service.affinity.is_none().then(|| (in_words("service", service, &targets), targets))
    }

    /// Of a flow's protocol, the service that fits; of several, who has it in the table: the first by name.
    fn claimant(&self, flow: Flow, fits: impl Fn(&Service) -> bool) -> Option<&Service> {
        let services = self.rules.services.iter().map(Arc::as_ref).filter(|service| service.protocol == flow.protocol);
        services.filter(|service| fits(service)).min_by(|a, b| a.name.cmp(&b.name))
    }

    /// That service, and its endpoints of the flow's family, if it has any.
    fn service(&self, flow: Flow, fits: impl Fn(&Service) -> bool) -> Option<(&Service, Vec<SocketAddr>)> {
        let service = self.claimant(flow, fits)?;
        let same_family = |end: &&SocketAddr| end.is_ipv4() == flow.destination.is_ipv4();
        let targets: Vec<SocketAddr> = service.endpoints.iter().filter(same_family).copied().collect();
        (!targets.is_empty()).then_some((service, targets))
    }

    /// What becomes of packets.
    fn onward(&self, flow: Flow) -> Vec<Vec<Step>> {
        let destination = flow.destination.ip();
        let own = destination.is_loopback() || destination.is_unspecified() || destination == flow.source;
        if !self.is_host(flow.source) && own {
            let reason = format!("{destination} is the pod's own: it never leaves the pod's network namespace");
            return vec![vec![Step { chain: "loopback".into(), verdict: Verdict::Accept, reason }]];
        }
        if !self.is_host(flow.source) && !self.has_pod(flow.source) {
            let reason = format!("no pod has {} any more: nothing comes from there", flow.source);
            return vec![vec![Step { chain: "guard".into(), verdict: Verdict::Drop, reason }]];
        }
        if self.goes_directly(flow) {
            let reason =
                format!("no rule has to see it: straight to {}, past the host and what it could refuse", self.name(destination));
            return vec![vec![Step { chain: "direct".into(), verdict: Verdict::Accept, reason }]];
        }
        let (entry, targets) = self.entrance(flow);
        targets.into_iter().map(|target| self.way(flow, entry.clone(), target)).collect()
    }

    fn goes_directly(&self, flow: Flow) -> bool {
        let takes = |ip: IpAddr| {
            self.shortcuts.direct.get(&ip).is_some_and(|care| match flow.protocol {
                Protocol::Tcp => true,
                Protocol::Udp => *care == Care::None,
                Protocol::Sctp => false,
            })
        };
        takes(flow.source) && takes(flow.destination.ip())
    }

    /// Whether an address is the node's own; loopback of a pod is asked for nowhere here.
    fn is_host(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.host.contains(&ip)
    }

    fn has_pod(&self, ip: IpAddr) -> bool {
        self.leases.iter().any(|lease| lease.ips.contains(&ip))
    }

    /// Services and host ports: what is rewritten, and to what.
    fn entrance(&self, flow: Flow) -> (Option<String>, Vec<SocketAddr>) {
        let destination = flow.destination;
        if let Some((service, targets)) = self.service(flow, at_address(flow)) {
            return (Some(in_words("service", service, &targets)), targets);
        }
        if self.is_host(destination.ip()) && destination.ip() != Ipv6Addr::LOCALHOST {
            if let Some((pod, target)) = self.host_port(flow) {
                return (Some(format!("host port {} of pod {pod}", destination.port())), vec![target]);
            }
            if let Some((service, targets)) = self.service(flow, at_node_port(flow)) {
                return (Some(in_words("node port of service", service, &targets)), targets);
            }
        }
        (None, vec![destination])
    }

    fn host_port(&self, flow: Flow) -> Option<(&str, SocketAddr)> {
        let v4 = flow.destination.is_ipv4();
        self.leases.iter().find_map(|lease| {
            let fits = |port: &&crate::settings::Port| {
                let ip = port.specific_ip().is_none_or(|ip| ip == flow.destination.ip());
                ip && port.serves(v4) && port.host_port == flow.destination.port() && port.protocol == flow.protocol
            };
            let port = lease.ports.iter().find(fits)?;
            let ip = lease.ips.iter().find(|ip| ip.is_ipv4() == v4)?;
            Some((lease.pod.as_str(), SocketAddr::new(*ip, port.container_port)))
        })
    }

    fn way(&self, flow: Flow, entry: Option<String>, target: SocketAddr) -> Vec<Step> {
        let step = |chain: &str, verdict, reason: String| Step { chain: chain.into(), verdict, reason };
        let mut steps = Vec::new();
        let (redirected, by_host) = (entry.is_some(), self.is_host(flow.source));
        let (entrance, gate) = if by_host { ("output", "local") } else { ("prerouting", "forward") };
        if let Some(reason) = entry {
            steps.push(step(entrance, Verdict::Rewrite, format!("{} is {reason}: to {target}", flow.destination)));
        }
        if self.is_host(target.ip()) {
            let but = self.unserved(flow).filter(|_| !redirected).unwrap_or_default();
            let reason = format!("{target} is this node's own: no rule of ours has a say{but}");
            steps.push(step("input", Verdict::Accept, reason));
            return steps;
        }
        let known = self.has_pod(target.ip());
        if self.settings.isolation == Isolation::Pods && known && !by_host {
            steps.push(step("forward", Verdict::Drop, "pods are isolated from each other".into()));
            return steps;
        }
        let unserved = self.claimant(flow, at_address(flow)).is_some() && !redirected;
        if unserved || self.rules.service_ranges.iter().any(|range| range.contains(target.ip())) {
            let reason = format!("{target} is a service's address, but no service with a ready endpoint has it at that port");
            steps.push(step(gate, Verdict::Reject, reason));
            return steps;
        }
        let ways = [(Direction::Egress, flow.source, target.ip()), (Direction::Ingress, target.ip(), flow.source)];
        for (direction, pod, peer) in ways.into_iter().filter(|_| !by_host) {
            let (verdict, reason) = self.judge(direction, pod, peer, flow.protocol, target);
            steps.push(step(direction.name(), verdict, reason));
            if verdict == Verdict::Drop {
                return steps;
            }
        }
        if by_host {
            steps.push(step(
                "output",
                Verdict::Accept,
                "the node itself reaches its pods and the world, whatever policies say".into(),
            ));
        }
        if !known && self.settings.ranges.iter().any(|range| range.subnet.contains(target.ip())) {
            let reason =
                format!("no pod has {}: unless a machine in the bridge answers for it, it can't be reached", target.ip());
            steps.push(step("neighbour", Verdict::Reject, reason));
            return steps;
        }
        steps.extend(self.leaving(flow, target, redirected, known));
        steps
    }

    /// Why what is asked for leads to the node alone, though it looks like more.
    fn unserved(&self, flow: Flow) -> Option<String> {
        if flow.destination.ip() == Ipv6Addr::LOCALHOST {
            return Some(", and from ::1 nothing comes to a pod: host ports and node ports are at its other addresses".into());
        }
        let service = self.claimant(flow, at_node_port(flow))?;
        Some(format!(", nor is anybody behind this node port: service {} has no ready endpoint", service.name))
    }

    fn judge(
        &self,
        direction: Direction,
        pod: IpAddr,
        peer: IpAddr,
        protocol: Protocol,
        target: SocketAddr,
    ) -> (Verdict, String) {
        let speaks = |policy: &&Policy| policy.pods.contains(&pod) && direction.rules(policy).is_some();
        let policies: Vec<&Policy> = self.rules.policies.iter().map(Arc::as_ref).filter(speaks).collect();
        if policies.is_empty() {
            return (Verdict::Accept, format!("no network policy selects {} for {}", self.name(pod), direction.name()));
        }
        for policy in &policies {
            let rules = direction.rules(policy).unwrap_or_default();
            if let Some(number) = rules.iter().position(|allow| allows(allow, peer, protocol, target)) {
                return (Verdict::Accept, format!("network policy {} allows it: {}[{number}]", policy.name, direction.name()));
            }
        }
        let names: Vec<&str> = policies.iter().map(|policy| policy.name.as_str()).collect();
        let rest = format!("select {} for {}, and none allows it", self.name(pod), direction.name());
        (Verdict::Drop, format!("network policies {} {rest}", names.join(", ")))
    }

    fn leaving(&self, flow: Flow, target: SocketAddr, redirected: bool, to_pod: bool) -> Option<Step> {
        let reason = if redirected && flow.source == target.ip() {
            "the pod reaches itself: its answers must come back by the host".to_owned()
        } else if flow.source.is_loopback() && to_pod {
            "from the node's loopback: the pod could not answer there".to_owned()
        } else if to_pod || self.is_host(flow.source) || !self.settings.masquerade {
            return None;
        } else {
            let ranges = self.settings.ranges.iter().map(|range| &range.subnet);
            match ranges.chain(&self.settings.masquerade_except).find(|cidr: &&Cidr| cidr.contains(target.ip())) {
                Some(_) => return None,
                None => "what leaves the node gets the node's address".to_owned(),
            }
        };
        Some(Step { chain: "postrouting".into(), verdict: Verdict::Rewrite, reason })
    }

    fn name(&self, ip: IpAddr) -> String {
        let pod = self.leases.iter().find(|lease| lease.ips.contains(&ip));
        pod.map_or_else(|| ip.to_string(), |lease| format!("pod {}", lease.pod))
    }
}

fn one_of(count: usize) -> String {
    if count == 1 { "the only one".into() } else { format!("one of {count}") }
}

fn allows(allow: &Allow, peer: IpAddr, protocol: Protocol, target: SocketAddr) -> bool {
    let with = allow.peers.as_ref().is_none_or(|peers| {
        let within = ranges(&peers.blocks, Family::of(peer)).iter().any(|(first, last)| *first <= peer && peer <= *last);
        within || peers.pods.contains(&peer)
    });
    let to = allow.ports.as_ref().is_none_or(|ports| {
        ports.iter().any(|port| match port {
            Ports::Range(own, range) => {
                *own == protocol && range.is_none_or(|(first, last)| (first..=last).contains(&target.port()))
            }
            Ports::Named(own, targets) => *own == protocol && targets.contains(&target),
        })
    });
    with && to
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::{policy::Peers, settings::Port};

    fn world() -> (Settings, Vec<Lease>, Rules) {
        let settings = Settings { isolation: Isolation::Routed, ..Settings::default() };
        let lease = |name: &str, last: u8, ports: Vec<Port>| Lease {
            uid: name.into(),
            pod: format!("default/{name}"),
            ips: vec![[10, 88, 0, last].into()],
            host_if: name.into(),
            ports,
            bandwidth: None,
            mac: None,
        };
        let port = Port { host_ip: None, host_port: 8080, container_port: 80, protocol: Protocol::Tcp };
        let web = Service {
            name: "default/web:http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            addresses: vec![[10, 96, 0, 1].into()],
            node_port: Some(30080),
            endpoints: vec!["10.88.0.3:80".parse().unwrap()],
            affinity: None,
        };
        let peers = Some(Peers { pods: vec![[10, 88, 0, 2].into()], blocks: Vec::new() });
        let policy = Policy {
            name: "default/db".into(),
            pods: vec![[10, 88, 0, 4].into()],
            ingress: Some(vec![Allow { peers, ports: Some(vec![Ports::Range(Protocol::Tcp, Some((5432, 5432)))]) }]),
            egress: None,
        };
        let service_ranges = vec!["10.96.0.0/16".parse().unwrap()];
        let rules = Rules { service_ranges, services: vec![std::sync::Arc::new(web)], policies: vec![Arc::new(policy)] };
        let plain = lease("plain", 5, vec![]);
        (settings, vec![lease("client", 2, vec![]), lease("web", 3, vec![port]), lease("db", 4, vec![]), plain], rules)
    }

    #[rstest]
    #[case("10.88.0.2", "10.96.0.1:80", "prerouting rewrite, egress accept, ingress accept")]
    #[case("10.88.0.3", "10.96.0.1:80", "prerouting rewrite, egress accept, ingress accept, postrouting rewrite")]
    #[case("10.88.0.2", "10.96.0.1:81", "forward reject")]
    #[case("10.88.0.2", "192.0.2.1:8080", "prerouting rewrite, egress accept, ingress accept")]
    #[case("10.88.0.2", "192.0.2.1:30080", "prerouting rewrite, egress accept, ingress accept")]
    #[case("10.88.0.2", "192.0.2.1:22", "input accept")]
    #[case("10.88.0.2", "10.88.0.4:5432", "egress accept, ingress accept")]
    #[case("10.88.0.2", "10.88.0.4:5433", "egress accept, ingress drop")]
    #[case("10.88.0.3", "10.88.0.4:5432", "egress accept, ingress drop")]
    #[case("10.88.0.2", "10.88.0.5:80", "direct accept")]
    #[case("10.88.0.3", "10.88.0.5:80", "egress accept, ingress accept")]
    #[case("10.88.0.5", "10.96.0.1:80", "prerouting rewrite, egress accept, ingress accept")]
    #[case("10.88.0.2", "203.0.113.9:443", "egress accept, ingress accept, postrouting rewrite")]
    #[case("10.88.0.2", "127.0.0.1:80", "loopback accept")]
    #[case("10.88.0.3", "10.88.0.3:80", "loopback accept")]
    #[case("10.88.0.2", "10.88.0.1:53", "input accept")]
    #[case("10.88.0.2", "10.88.0.99:80", "egress accept, ingress accept, neighbour reject")]
    #[case("192.0.2.1", "10.88.0.99:80", "output accept, neighbour reject")]
    #[case("10.88.0.2", "0.0.0.0:80", "loopback accept")]
    #[case("10.88.0.9", "10.88.0.3:80", "guard drop")]
    #[case("10.88.0.9", "10.96.0.1:80", "guard drop")]
    #[case("192.0.2.1", "10.96.0.1:80", "output rewrite, output accept")]
    #[case("192.0.2.1", "10.96.0.1:81", "local reject")]
    #[case("192.0.2.1", "10.88.0.4:5433", "output accept")]
    #[case("127.0.0.1", "127.0.0.1:8080", "output rewrite, output accept, postrouting rewrite")]
    #[case("127.0.0.1", "127.0.0.1:22", "input accept")]
    #[case("192.0.2.1", "[::1]:8080", "input accept")]
    fn ways(#[case] source: &str, #[case] destination: &str, #[case] expected: &str) {
        let direct = ["10.88.0.2", "10.88.0.5"].map(|ip| (ip.parse().unwrap(), Care::None)).into();
        let shortcuts = Shortcuts { direct, ..Shortcuts::default() };
        assert_eq!(way(&shortcuts, Protocol::Tcp, source, destination), expected);
    }

    #[rstest]
    #[case(Protocol::Tcp, "10.88.0.2", "10.96.0.1:80", "connect rewrite, direct accept")]
    #[case(Protocol::Tcp, "10.88.0.5", "10.96.0.1:80", "prerouting rewrite, egress accept, ingress accept")]
    #[case(Protocol::Tcp, "10.88.0.2", "10.96.0.1:81", "forward reject")]
    #[case(Protocol::Tcp, "10.88.0.2", "192.0.2.1:30080", "prerouting rewrite, egress accept, ingress accept")]
    #[case(Protocol::Tcp, "10.88.0.2", "10.88.0.3:80", "direct accept")]
    #[case(Protocol::Udp, "10.88.0.2", "10.88.0.3:80", "egress accept, ingress accept")]
    #[case(Protocol::Udp, "10.88.0.2", "10.88.0.5:80", "direct accept")]
    fn ways_of_who_is_led(#[case] protocol: Protocol, #[case] source: &str, #[case] destination: &str, #[case] expected: &str) {
        let cares = [("10.88.0.2", Care::None), ("10.88.0.3", Care::Noted), ("10.88.0.5", Care::None)];
        let direct = cares.map(|(ip, care)| (ip.parse().unwrap(), care)).into();
        let shortcuts = Shortcuts { direct, led: ["10.88.0.2".parse().unwrap()].into() };
        assert_eq!(way(&shortcuts, protocol, source, destination), expected);
    }

    /// Services and pods of the agent's, in its order: namespace, name, port.
    #[test]
    fn of_several_that_want_the_same_who_has_it_in_the_table_is_named() {
        let (settings, leases, mut rules) = world();
        let second = Service {
            name: "default/web-2:http".into(),
            endpoints: vec!["10.88.0.4:80".parse().unwrap()],
            ..Service::clone(&rules.services[0])
        };
        rules.services.push(Arc::new(second));
        let reason = |destination: &str| {
            let source = "10.88.0.2".parse().unwrap();
            let flow = Flow { source, destination: destination.parse().unwrap(), protocol: Protocol::Tcp };
            let host = ["192.0.2.1".parse().unwrap()];
            trace(&settings, &leases, &rules, &Shortcuts::default(), &host, flow)[0][0].reason.clone()
        };
        for destination in ["10.96.0.1:80", "192.0.2.1:30080"] {
            assert!(reason(destination).contains("default/web-2:http"), "{}", reason(destination));
        }
    }

    #[test]
    fn a_node_port_that_leads_to_nobody_is_told_as_such() {
        let (settings, leases, mut rules) = world();
        rules.services = vec![Arc::new(Service { endpoints: Vec::new(), ..Service::clone(&rules.services[0]) })];
        let flow = Flow {
            source: "10.88.0.2".parse().unwrap(),
            destination: "192.0.2.1:30080".parse().unwrap(),
            protocol: Protocol::Tcp,
        };
        let ways = trace(&settings, &leases, &rules, &Shortcuts::default(), &["192.0.2.1".parse().unwrap()], flow);
        assert!(ways[0][0].reason.contains("service default/web:http has no ready endpoint"), "{ways:?}");
    }

    fn way(shortcuts: &Shortcuts, protocol: Protocol, source: &str, destination: &str) -> String {
        let (settings, leases, rules) = world();
        let flow = Flow { source: source.parse().unwrap(), destination: destination.parse().unwrap(), protocol };
        let ways = trace(&settings, &leases, &rules, shortcuts, &["192.0.2.1".parse().unwrap()], flow);
        let show = |step: &Step| format!("{} {}", step.chain, format!("{:?}", step.verdict).to_lowercase());
        ways[0].iter().map(show).collect::<Vec<_>>().join(", ")
    }
}
