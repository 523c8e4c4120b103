//! Services as a pod's processes see them whose sockets are led to an endpoint when they connect: what the peer's name is, and what the
//! packets say.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lab::{Cgroup, Lab, Netns, Pod, Server, wait};
use netplug::{Attached, Flow, Network, Protocol::Tcp, Remove, Rules, Service, Settings};
use rstest::rstest;

const VIP: &str = "10.96.0.10";
const VIP6: &str = "fd00:96::10";

struct World {
    /// Before the namespaces, whose processes are in it.
    cgroup: Cgroup,
    network: Network,
    client: (Pod, Attached),
    servers: Vec<(Pod, Attached, Server)>,
    /// The last to go: it looks for what the network leaves.
    lab: Lab,
}

impl World {
    fn new() -> World {
        let (lab, cgroup) = (Lab::new(), Cgroup::new());
        let network = lab.open(settings(&lab, &cgroup));
        let client = Pod::new("client");
        let attached = client.attach(&network).unwrap();
        let servers = ["a", "b"].map(|name| {
            let pod = Pod::new(name);
            let (attached, server) = pod.up(&network);
            (pod, attached, server)
        });
        World { cgroup, lab, network, client: (client, attached), servers: servers.into() }
    }

    fn endpoints(&self) -> Vec<SocketAddr> {
        self.servers.iter().flat_map(|(_, attached, _)| attached.ips.iter().map(|ip| SocketAddr::new(*ip, 80))).collect()
    }

    fn enforce(&self, service: Service) {
        wait(self.network.enforce(rules(service))).unwrap();
    }

    fn connect(&self, address: &str) -> Result<[String; 3], String> {
        self.cgroup.connect(&self.client.0.netns, address)
    }

    fn why_not_direct(&self, pod: &str) -> String {
        let picture = wait(self.network.picture()).unwrap();
        let state = picture.pods.iter().find(|state| state.lease.uid == pod).unwrap();
        state.not_direct.clone().unwrap_or_default()
    }

    fn again(self, settings: Settings) -> World {
        let World { cgroup, lab, network, client, servers } = self;
        drop(network);
        let network = lab.open(settings);
        World { cgroup, network, client, servers, lab }
    }
}

fn settings(lab: &Lab, cgroup: &Cgroup) -> Settings {
    Settings { pods_cgroup: Some(cgroup.0.clone()), ..lab.routed() }
}

fn service(endpoints: Vec<SocketAddr>) -> Service {
    Service {
        name: "default/web:http".into(),
        protocol: Tcp,
        port: 8080,
        addresses: [VIP, VIP6].map(|ip| ip.parse().unwrap()).into(),
        node_port: None,
        endpoints,
        affinity: None,
    }
}

fn rules(service: Service) -> Rules {
    let service_ranges = ["10.96.0.0/16", "fd00:96::/112"].map(|range| range.parse().unwrap()).into();
    Rules { service_ranges, services: vec![Arc::new(service)], policies: Vec::new() }
}

/// As `ss` writes it.
fn shown(endpoint: SocketAddr, mapped: bool) -> String {
    if mapped { format!("[::ffff:{}]:{}", endpoint.ip(), endpoint.port()) } else { endpoint.to_string() }
}

#[rstest]
#[case::ipv4(VIP, "10.96.0.10", true, false)]
#[case::ipv6(VIP6, "fd00:96::10", false, false)]
#[case::ipv4_by_an_ipv6_socket("::ffff:10.96.0.10", "::ffff:10.96.0.10", true, true)]
fn a_socket_is_connected_to_an_endpoint_and_its_peer_has_the_services_name(
    #[case] asked: &str,
    #[case] peer: &str,
    #[case] v4: bool,
    #[case] mapped: bool,
) {
    let world = World::new();
    world.enforce(service(world.endpoints()));
    let own = world.client.1.ips.iter().find(|ip| ip.is_ipv4() == v4).unwrap();
    let mut answered = BTreeSet::new();
    for _ in 0..20 {
        let [name, real, answer] = world.connect(&format!("[{asked}]:8080")).unwrap();
        assert_eq!(name, format!("{peer} 8080"));
        let endpoint = world.endpoints().into_iter().find(|endpoint| shown(*endpoint, mapped) == real);
        let endpoint = endpoint.unwrap_or_else(|| panic!("{real} is no endpoint"));
        assert_eq!(endpoint.is_ipv4(), v4);
        assert!(answer.trim_start_matches("::ffff:").contains(&own.to_string()), "{answer}");
        answered.insert(answer.split(' ').next().unwrap().to_owned());
    }
    assert_eq!(answered.len(), 2, "both are drawn");
}

#[test]
fn who_comes_and_goes_counts_from_the_next_connection_on() {
    let world = World::new();
    let [a, b] = [&world.servers[0].1, &world.servers[1].1].map(|attached| SocketAddr::new(attached.ips[0], 80));
    let vip = format!("{VIP}:8080");
    for (endpoints, expected) in [(vec![a], a), (vec![b], b), (vec![a], a)] {
        world.enforce(service(endpoints));
        for _ in 0..5 {
            assert_eq!(world.connect(&vip).unwrap()[1], expected.to_string());
        }
    }
    world.enforce(service(Vec::new()));
    let refused = world.connect(&vip).unwrap_err();
    assert!(refused.contains("Connection refused"), "{refused}");
    wait(world.network.enforce(Rules::default())).unwrap();
    assert!(world.connect(&vip).is_err());
}

#[test]
fn what_cannot_be_led_is_translated() {
    let world = World::new();
    let vip = format!("{VIP}:8080");
    let translated = |world: &World| world.connect(&vip).unwrap()[1] == vip;
    world.enforce(Service { affinity: Some(Duration::from_secs(60)), ..service(world.endpoints()) });
    assert!(translated(&world), "the rules remember who came");
    world.enforce(service(world.endpoints()));
    assert!(!translated(&world));
    let another = Cgroup::new();
    assert_eq!(another.connect(&world.client.0.netns, &vip).unwrap()[1], vip, "it is no pod's process");
    let nowhere = Settings { pods_cgroup: Some("/nowhere".into()), ..settings(&world.lab, &world.cgroup) };
    let world = world.again(nowhere);
    assert!(translated(&world), "nobody is led to where a process before led");
    let picture = wait(world.network.picture()).unwrap();
    assert!(picture.no_led_sockets.unwrap().contains("No such file"));
    let same = settings(&world.lab, &world.cgroup);
    let world = world.again(same);
    assert!(translated(&world), "pods that came meanwhile are not known");
    assert!(world.why_not_direct("client").contains("before sockets were led"));
    world.client.0.attach(&world.network).unwrap();
    assert!(!translated(&world), "until they are attached again");
    let plain = world.lab.routed();
    let world = world.again(plain);
    assert!(translated(&world), "a process that isn't told of the cgroup takes it away, too");
    let same = settings(&world.lab, &world.cgroup);
    let world = world.again(same);
    world.client.0.attach(&world.network).unwrap();
    assert!(!translated(&world));
    let off = Settings { direct: false, ..settings(&world.lab, &world.cgroup) };
    let world = world.again(off);
    assert!(translated(&world), "a process that isn't to have it takes it away");
}

/// A cluster in a pod may use the same addresses.
#[test]
fn a_network_within_a_pod_has_its_own_addresses() {
    let world = World::new();
    world.enforce(service(world.endpoints()));
    let within = Netns::new();
    within.ip(&format!("address add {VIP}/32 dev lo"));
    let _inner = within.serve(Tcp, &format!("{VIP}:8080"), "inner");
    let [.., answer] = world.cgroup.connect(&within, &format!("{VIP}:8080")).unwrap();
    assert!(answer.starts_with("inner "), "{answer}");
}

#[test]
fn a_process_after_goes_on_with_the_pods_that_it_finds() {
    let world = World::new();
    world.enforce(service(world.endpoints()));
    let same = settings(&world.lab, &world.cgroup);
    let world = world.again(same);
    let vip = format!("{VIP}:8080");
    let [_, real, _] = world.connect(&vip).unwrap();
    assert!(world.endpoints().iter().any(|endpoint| endpoint.to_string() == real), "{real}: by the rules that it recalls");
    world.enforce(service(vec![world.endpoints()[0]]));
    assert_eq!(world.connect(&vip).unwrap()[1], world.endpoints()[0].to_string());
    let flow = Flow { source: world.client.1.ips[0], destination: vip.parse().unwrap(), protocol: Tcp };
    let ways = wait(world.network.trace(flow, Vec::new())).unwrap();
    assert_eq!(ways[0][0].chain, "connect", "{ways:?}");
    assert!(ways[0][0].reason.contains("service default/web:http"), "{ways:?}");
    let World { cgroup, lab, network, client, .. } = world;
    wait(network.close(Remove::All)).unwrap();
    assert!(!lab.state.path().join("net").exists(), "nothing is left");
    let unreachable = cgroup.connect(&client.0.netns, &vip).unwrap_err();
    assert!(unreachable.contains("unreachable") || unreachable.contains("nobody answers"), "{unreachable}");
    drop(lab);
}

/// The address of a pod that is gone leads nobody: its namespace is forgotten.
#[test]
fn a_pod_that_is_gone_is_led_no_more() {
    let world = World::new();
    world.enforce(service(world.endpoints()));
    wait(world.network.detach("client")).unwrap();
    let netns = &world.client.0.netns;
    let own: IpAddr = world.client.1.ips[0];
    assert!(wait(world.network.attached()).unwrap().iter().all(|lease| !lease.ips.contains(&own)));
    netns.ip(&format!("address add {VIP}/32 dev lo"));
    let _own = netns.serve(Tcp, &format!("{VIP}:8080"), "own");
    let [.., answer] = world.connect(&format!("{VIP}:8080")).unwrap();
    assert!(answer.starts_with("own "), "{answer}");
}
