//! Network policies as packets see them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
};

use lab::{Lab, NODE, OUTSIDE, OUTSIDE6, Pod, Server, wait};
use netplug::{
    Allow, Attached, Network, Peers, Policy, Ports,
    Protocol::{Tcp, Udp},
    Rules, Service,
};
use rstest::rstest;

struct World {
    network: Network,
    pods: Vec<(Pod, Attached)>,
    _servers: Vec<Server>,
    /// The last to go: it looks for what the network leaves.
    lab: Lab,
}

/// Pods a, b and c, and the world, each with a server on port 80 and one on port 81.
fn world() -> World {
    world_with("0")
}

fn world_with(br_netfilter: &'static str) -> World {
    let lab = Lab::new();
    lab.set_br_netfilter(br_netfilter);
    let network = lab.open(lab.routed());
    let mut servers = Vec::new();
    let mut pods = Vec::new();
    for name in ["a", "b", "c"] {
        let pod = Pod::new(name);
        let (attached, server) = pod.up(&network);
        servers.extend([server, pod.netns.serve(Tcp, "[::]:81", name), pod.netns.serve(Udp, "[::]:80", name)]);
        pods.push((pod, attached));
    }
    servers.extend([lab.outside.serve(Tcp, "[::]:80", "world"), lab.node.serve(Tcp, "[::]:80", "node")]);
    World { network, pods, _servers: servers, lab }
}

impl World {
    fn ips(&self, names: &[&str]) -> Vec<IpAddr> {
        self.pods.iter().filter(|(pod, _)| names.contains(&pod.name.as_str())).flat_map(|(_, net)| net.ips.clone()).collect()
    }

    fn pod(&self, name: &str) -> &(Pod, Attached) {
        self.pods.iter().find(|(pod, _)| pod.name == name).unwrap()
    }

    fn enforce(&self, policies: Vec<Policy>) {
        let policies = policies.into_iter().map(Arc::new).collect();
        wait(self.network.enforce(Rules { policies, ..Rules::default() })).unwrap();
    }

    /// `a→b:80`: whether a reaches b, by both families alike.
    #[track_caller]
    fn check(&self, expected: &[(&str, &str, u16, bool)]) {
        for (from, to, port, open) in expected {
            let netns = match *from {
                "world" => &self.lab.outside,
                "node" => &self.lab.node,
                pod => &self.pod(pod).0.netns,
            };
            let addresses: Vec<IpAddr> = match *to {
                "world" => vec![OUTSIDE.parse().unwrap(), OUTSIDE6.parse().unwrap()],
                "node" => vec![NODE.parse().unwrap()],
                pod => self.pod(pod).1.ips.clone(),
            };
            for ip in addresses {
                let address = SocketAddr::new(ip, *port).to_string();
                if *open {
                    netns.ask(Tcp, &address).unwrap_or_else(|error| panic!("{from} → {to}: {error}"));
                } else {
                    netns.assert_unreachable(Tcp, &address);
                }
            }
        }
    }
}

fn policy(pods: Vec<IpAddr>) -> Policy {
    Policy { name: "default/test".into(), pods, ingress: None, egress: None }
}

fn from(pods: Vec<IpAddr>) -> Allow {
    Allow { peers: Some(Peers { pods, blocks: Vec::new() }), ports: None }
}

#[rstest]
fn default_deny_and_what_is_allowed(#[values("0", "1")] br_netfilter: &'static str) {
    let world = world_with(br_netfilter);
    world.enforce(vec![]);
    world.check(&[("a", "b", 80, true), ("a", "world", 80, true)]);
    // In alone.
    world.enforce(vec![Policy { ingress: Some(vec![]), ..policy(world.ips(&["b"])) }]);
    world.check(&[("a", "b", 80, false), ("b", "a", 80, true), ("b", "world", 80, true), ("node", "b", 80, true)]);
    // Two policies: what either allows.
    let one = Policy { ingress: Some(vec![from(world.ips(&["a"]))]), ..policy(world.ips(&["b"])) };
    let two = Policy { name: "default/two".into(), ingress: Some(vec![from(world.ips(&["c"]))]), ..policy(world.ips(&["b"])) };
    world.enforce(vec![one.clone()]);
    world.check(&[("a", "b", 80, true), ("c", "b", 80, false)]);
    world.enforce(vec![one, two]);
    world.check(&[("a", "b", 80, true), ("c", "b", 80, true)]);
    // Out, and in at the other side: both must allow.
    let out = Policy { egress: Some(vec![from(world.ips(&["b"]))]), ..policy(world.ips(&["a"])) };
    world.enforce(vec![out.clone()]);
    world.check(&[("a", "b", 80, true), ("a", "c", 80, false), ("a", "world", 80, false), ("a", "node", 80, true)]);
    let closed = Policy { name: "default/closed".into(), ingress: Some(vec![]), ..policy(world.ips(&["b"])) };
    world.enforce(vec![out, closed]);
    world.check(&[("a", "b", 80, false), ("c", "b", 80, false), ("c", "a", 80, true)]);
    world.enforce(vec![]);
    world.check(&[("a", "b", 80, true), ("a", "world", 80, true)]);
    let table = world.lab.node.nft("list table inet netplug_test");
    assert!(!table.contains("default"), "nothing of a policy is left: {table}");
}

#[rstest]
#[case::one(vec![Ports::Range(Tcp, Some((80, 80)))], true, false)]
#[case::range(vec![Ports::Range(Tcp, Some((79, 81)))], true, true)]
#[case::beside(vec![Ports::Range(Tcp, Some((81, 90)))], false, true)]
#[case::of_another_protocol(vec![Ports::Range(Udp, None)], false, false)]
#[case::all_of_the_protocol(vec![Ports::Range(Tcp, None)], true, true)]
fn only_these_ports(#[case] ports: Vec<Ports>, #[case] eighty: bool, #[case] eighty_one: bool) {
    let world = world();
    let udp = ports == [Ports::Range(Udp, None)];
    let allow = Allow { peers: None, ports: Some(ports) };
    world.enforce(vec![Policy { ingress: Some(vec![allow]), ..policy(world.ips(&["b"])) }]);
    world.check(&[("a", "b", 80, eighty), ("a", "b", 81, eighty_one), ("world", "c", 80, false)]);
    let address = SocketAddr::new(world.ips(&["b"])[0], 80).to_string();
    assert_eq!(world.pod("a").0.netns.ask(Udp, &address).is_ok(), udp);
}

#[test]
fn named_ports_are_each_pods_own() {
    let world = world();
    let targets = world.ips(&["b"]).into_iter().map(|ip| SocketAddr::new(ip, 80));
    let targets = targets.chain(world.ips(&["c"]).into_iter().map(|ip| SocketAddr::new(ip, 81))).collect();
    let allow = Allow { peers: None, ports: Some(vec![Ports::Named(Tcp, targets)]) };
    world.enforce(vec![Policy { ingress: Some(vec![allow]), ..policy(world.ips(&["b", "c"])) }]);
    world.check(&[("a", "b", 80, true), ("a", "b", 81, false), ("a", "c", 80, false), ("a", "c", 81, true)]);
}

#[test]
fn blocks_have_exceptions() {
    let world = world();
    let blocks = vec![
        ("0.0.0.0/0".parse().unwrap(), vec![format!("{OUTSIDE}/32").parse().unwrap()]),
        ("::/0".parse().unwrap(), vec![format!("{OUTSIDE6}/128").parse().unwrap()]),
    ];
    let allow = Allow { peers: Some(Peers { pods: Vec::new(), blocks }), ports: None };
    world.enforce(vec![Policy { egress: Some(vec![allow]), ..policy(world.ips(&["a"])) }]);
    world.check(&[("a", "world", 80, false), ("a", "b", 80, true), ("b", "world", 80, true)]);
}

#[rstest]
fn what_was_open_before_stays_open_and_a_service_is_no_way_around(#[values("0", "1")] br_netfilter: &'static str) {
    let world = world_with(br_netfilter);
    let (a, b) = (world.pod("a"), world.pod("b"));
    let address = SocketAddr::new(b.1.ips[0], 90);
    let listener = b.0.netns.run(|| TcpListener::bind("[::]:90").unwrap());
    let mut before = a.0.netns.run(move || TcpStream::connect(address).unwrap());
    let (mut inside, _) = listener.accept().unwrap();
    let vip: IpAddr = "10.96.0.10".parse().unwrap();
    let service = Service {
        name: "default/b:http".into(),
        protocol: Tcp,
        port: 80,
        addresses: vec![vip],
        node_port: None,
        endpoints: vec![SocketAddr::new(b.1.ips[0], 80)],
        affinity: None,
    };
    let policies = vec![Arc::new(Policy { ingress: Some(vec![from(world.ips(&["c"]))]), ..policy(world.ips(&["b"])) })];
    wait(world.network.enforce(Rules { services: vec![Arc::new(service)], policies, ..Rules::default() })).unwrap();
    before.write_all(b"still").unwrap();
    let mut buffer = [0; 5];
    inside.read_exact(&mut buffer).unwrap();
    a.0.netns.assert_unreachable(Tcp, "10.96.0.10:80");
    world.pod("c").0.netns.ask(Tcp, "10.96.0.10:80").expect("the policy sees who calls behind a service");
}

#[rstest]
fn a_pod_cannot_go_past_the_host(#[values("0", "1")] br_netfilter: &'static str) {
    let world = world_with(br_netfilter);
    world.enforce(vec![Policy { ingress: Some(vec![]), ..policy(world.ips(&["b"])) }]);
    let (a, b) = (world.pod("a"), world.pod("b"));
    // With a route and a neighbour entry of its own making: the bridge doesn't carry it.
    let mac = b.1.mac.map(|byte| format!("{byte:02x}")).join(":");
    a.0.netns.ip(&format!("route add {}/32 dev eth0", b.1.ips[0]));
    a.0.netns.ip(&format!("neigh add {} lladdr {mac} dev eth0", b.1.ips[0]));
    a.0.netns.assert_unreachable(Tcp, &SocketAddr::new(b.1.ips[0], 80).to_string());
}
