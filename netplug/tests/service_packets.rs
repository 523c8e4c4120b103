//! Services as packets see them: "outside" – "node" – pods.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use lab::{Lab, NODE, NODE6, OUTSIDE, Pod, Server, eventually, wait};
use netplug::{
    Allow, Attached, Flow, Isolation, Network, Peers, Policy, Ports,
    Protocol::{self, Sctp, Tcp, Udp},
    Remove, Rules, Service, Settings,
};
use rstest::rstest;

const VIP: &str = "10.96.0.10";
const VIP6: &str = "fd00:96::10";

fn service(port: u16, endpoints: &[SocketAddr]) -> Service {
    Service {
        name: format!("default/web:{port}"),
        protocol: Tcp,
        port,
        addresses: vec![VIP.parse().unwrap(), VIP6.parse().unwrap()],
        node_port: None,
        endpoints: endpoints.to_vec(),
        affinity: None,
    }
}

fn rules(services: Vec<Service>) -> Rules {
    let service_ranges = vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()];
    Rules { service_ranges, services: services.into_iter().map(Arc::new).collect(), policies: Vec::new() }
}

fn enforce(network: &Network, services: Vec<Service>) {
    wait(network.enforce(rules(services))).unwrap();
}

/// All addresses of pods, at their port 80.
fn endpoints(pods: &[&Attached]) -> Vec<SocketAddr> {
    pods.iter().flat_map(|pod| pod.ips.iter()).map(|ip| SocketAddr::new(*ip, 80)).collect()
}

struct Shop {
    network: Network,
    client: Pod,
    client_net: Attached,
    a: Pod,
    a_net: Attached,
    b_net: Attached,
    b: Pod,
    _servers: [Server; 2],
    /// The last to go: it looks for what the network leaves.
    lab: Lab,
}

fn shop() -> Shop {
    shop_with("0")
}

fn shop_with(br_netfilter: &'static str) -> Shop {
    let lab = Lab::new();
    lab.set_br_netfilter(br_netfilter);
    let network = lab.open(lab.routed());
    let (client, a, b) = (Pod::new("client"), Pod::new("a"), Pod::new("b"));
    let client_net = client.attach(&network).unwrap();
    let (a_net, a_server) = a.up(&network);
    let (b_net, b_server) = b.up(&network);
    Shop { network, client, client_net, a, a_net, b_net, b, _servers: [a_server, b_server], lab }
}

impl Shop {
    fn answers(&self, address: &str, times: usize) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for _ in 0..times {
            let answer = self.client.netns.ask(Tcp, address).unwrap();
            *counts.entry(answer.split(' ').next().unwrap().to_owned()).or_default() += 1;
        }
        counts
    }
}

/// Of an address that the node got later, and of two services that want the same one.
#[test]
fn a_trace_is_of_what_the_kernel_has() {
    let shop = shop();
    let trace = |to: &str| {
        let flow = Flow { source: shop.client_net.ips[0], destination: to.parse().unwrap(), protocol: Tcp };
        wait(shop.network.trace(flow, Vec::new())).unwrap().remove(0)
    };
    shop.lab.node.ip("address add 198.51.100.7/32 dev lo");
    let late = shop.lab.node.serve(Tcp, "198.51.100.7:80", "node");
    assert!(shop.client.netns.ask(Tcp, "198.51.100.7:80").unwrap().starts_with("node "));
    let way = trace("198.51.100.7:80");
    assert_eq!(way.iter().map(|step| step.chain.as_str()).collect::<Vec<_>>(), ["input"], "{way:?}");
    drop(late);
    shop.lab.node.ip("address delete 198.51.100.7/32 dev lo");
    let second = Service { name: "default/web-2:8080".into(), ..service(8080, &endpoints(&[&shop.b_net])) };
    enforce(&shop.network, vec![service(8080, &endpoints(&[&shop.a_net])), second]);
    let vip = format!("{VIP}:8080");
    assert!(shop.client.netns.ask(Tcp, &vip).unwrap().starts_with("b "));
    assert!(trace(&vip)[0].reason.contains("default/web-2:8080"), "{:?}", trace(&vip));
}

/// The kernel sends nothing that is from ::1 by another link: who asks is told, and tries 127.0.0.1.
#[test]
fn the_hosts_ipv6_loopback_refuses_at_once() {
    let shop = shop();
    let c = Pod::new("c").port("8088:80/TCP");
    c.attach(&shop.network).unwrap();
    enforce(&shop.network, vec![Service { node_port: Some(30080), ..service(8080, &endpoints(&[&shop.a_net])) }]);
    for port in [8088, 30080] {
        let refused = shop.lab.node.ask(Tcp, &format!("[::1]:{port}")).unwrap_err();
        assert!(refused.contains("refused"), "{refused}");
    }
    shop.lab.node.ask(Tcp, "127.0.0.1:30080").unwrap();
    let _own = shop.lab.node.serve(Tcp, "[::1]:30080", "node");
    assert!(shop.lab.node.ask(Tcp, "[::1]:30080").unwrap().starts_with("node "));
}

/// `externalIPs` are from no range of Services: who comes for one must not go on to where such addresses are routed, which may well be
/// back to here.
#[test]
fn an_address_of_no_range_is_refused_where_no_endpoint_serves_it() {
    let shop = shop();
    let addresses = ["203.0.113.77", "2001:db8:77::1"];
    shop.lab.outside.ip(&format!("route add {} via {NODE}", addresses[0]));
    shop.lab.outside.ip(&format!("route add {} via {NODE6}", addresses[1]));
    let addresses = addresses.map(|ip| ip.parse::<IpAddr>().unwrap());
    let of = |endpoints: &[SocketAddr]| Service { addresses: addresses.to_vec(), ..service(8080, endpoints) };
    let udp = |endpoints: &[SocketAddr]| Service { protocol: Udp, ..of(endpoints) };
    enforce(&shop.network, vec![of(&[]), udp(&[])]);
    for ip in addresses {
        let address = SocketAddr::new(ip, 8080).to_string();
        // Not from outside by UDP: that its way on is its way back is told first, which counts against the kernel's rate of ICMP.
        let (pod, host, outside) = (&shop.client.netns, &shop.lab.node, &shop.lab.outside);
        for (netns, who, protocol) in [(pod, "pod", Tcp), (pod, "pod", Udp), (host, "host", Tcp), (outside, "outside", Tcp)] {
            let refused = netns.ask(protocol, &address).unwrap_err();
            assert!(refused.contains("refused"), "{who} {protocol}: {refused}");
        }
        let flow = Flow {
            source: shop.client_net.ips[usize::from(ip.is_ipv6())],
            destination: SocketAddr::new(ip, 8080),
            protocol: Tcp,
        };
        let way = wait(shop.network.trace(flow, Vec::new())).unwrap().remove(0);
        assert_eq!(way.iter().map(|step| step.chain.as_str()).collect::<Vec<_>>(), ["forward"], "{way:?}");
    }
    enforce(&shop.network, vec![of(&endpoints(&[&shop.a_net])), udp(&[])]);
    for ip in addresses {
        assert!(shop.lab.outside.ask(Tcp, &SocketAddr::new(ip, 8080).to_string()).unwrap().starts_with("a "));
    }
}

#[rstest]
fn a_service_is_balanced_and_its_endpoints_see_who_calls(#[values("0", "1")] br_netfilter: &'static str) {
    let shop = shop_with(br_netfilter);
    enforce(&shop.network, vec![service(8080, &endpoints(&[&shop.a_net, &shop.b_net]))]);
    for (address, own) in [(format!("{VIP}:8080"), 0), (format!("[{VIP6}]:8080"), 1)] {
        let counts = shop.answers(&address, 40);
        assert!(counts.len() == 2 && counts.values().all(|count| *count > 3), "{address}: {counts:?}");
        let answer = shop.client.netns.ask(Tcp, &address).unwrap();
        assert!(answer.ends_with(&shop.client_net.ips[own].to_string()), "{answer}: no masquerade between pods");
        shop.lab.node.ask(Tcp, &address).expect("from the host");
    }
    // An endpoint may get itself.
    let mut seen = std::collections::HashSet::new();
    for _ in 0..40 {
        seen.insert(shop.a.netns.ask(Tcp, &format!("{VIP}:8080")).unwrap().split(' ').next().unwrap().to_owned());
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    let seen = shop.a.netns.ask(Tcp, &format!("[{VIP6}]:8080"));
    seen.unwrap();
}

#[test]
fn a_host_without_a_default_route_reaches_services_and_keeps_no_route_to_them() {
    let shop = shop();
    let route = |what: &str| ["-4", "-6"].map(|family| shop.lab.node.ip(&format!("{family} route {what}")));
    route("del default");
    let before = (shop.lab.node.picture(), shop.lab.node.ip("-6 route show"));
    enforce(&shop.network, vec![service(8080, &endpoints(&[&shop.a_net]))]);
    let reached = |what: &str| {
        for address in [format!("{VIP}:8080"), format!("[{VIP6}]:8080")] {
            eventually(&format!("{what}: {address} answers"), || shop.lab.node.ask(Tcp, &address).is_ok());
        }
        eventually(what, || shop.lab.node.ask(Tcp, "10.96.7.7:80").unwrap_err().contains("refused"));
    };
    reached("made");
    shop.lab.node.ip("link set pods0 down");
    shop.lab.node.ip("link set pods0 up");
    reached("put back");
    shop.lab.node.ip(&format!("route add default via {OUTSIDE}"));
    let led = || {
        ["-4", "-6"].map(|family| {
            shop.lab.node.ip(&format!("{family} route")).contains("96::/112")
                || shop.lab.node.ip(&format!("{family} route")).contains("10.96.")
        })
    };
    eventually("who has a default route of a family needs no other", || led() == [false, true]);
    shop.lab.node.ip("-4 route del default");
    eventually("and without it does", || led() == [true, true]);
    reached("led again");
    wait(shop.network.enforce(Rules::default())).unwrap();
    assert_eq!((shop.lab.node.picture(), shop.lab.node.ip("-6 route show")), before);
}

#[test]
fn pods_without_a_service_between_reach_each_other_by_the_host() {
    let shop = shop();
    for ip in &shop.a_net.ips {
        let address = SocketAddr::new(*ip, 80).to_string();
        for _ in 0..3 {
            let answer = shop.client.netns.ask(Tcp, &address).unwrap();
            let own = shop.client_net.ips.iter().find(|own| own.is_ipv4() == ip.is_ipv4()).unwrap();
            assert!(answer.ends_with(&own.to_string()), "{answer}");
        }
    }
    let neighbours = shop.client.netns.ip("neigh show");
    assert!(!neighbours.contains(&format!("{} ", shop.a_net.ips[0])), "{neighbours}");
}

#[rstest]
fn what_no_endpoint_serves_is_refused_at_once(#[values("0", "1")] br_netfilter: &'static str) {
    let shop = shop_with(br_netfilter);
    let web = endpoints(&[&shop.a_net]);
    enforce(&shop.network, vec![service(8080, &[])]);
    for client in [&shop.client.netns, &shop.lab.node] {
        for address in [&format!("{VIP}:8080"), &format!("{VIP}:1"), "10.96.7.7:80"] {
            let outcome = client.ask(Tcp, address).unwrap_err();
            assert!(outcome.contains("refused"), "{address}: {outcome}");
        }
    }
    enforce(&shop.network, vec![service(8080, &web)]);
    shop.client.netns.ask(Tcp, &format!("{VIP}:8080")).unwrap();
    enforce(&shop.network, vec![service(8080, &[])]);
    // Over and over: ICMP alone would soon be held back.
    for _ in 0..20 {
        assert!(shop.client.netns.ask(Tcp, &format!("{VIP}:8080")).unwrap_err().contains("refused"));
    }
    enforce(&shop.network, vec![]);
    assert!(shop.client.netns.ask(Tcp, &format!("{VIP}:8080")).unwrap_err().contains("refused"));
}

#[rstest]
fn a_node_port_is_reached_from_everywhere(#[values("0", "1")] br_netfilter: &'static str) {
    let shop = shop_with(br_netfilter);
    let mut web = service(8080, &endpoints(&[&shop.a_net]));
    web.node_port = Some(30080);
    enforce(&shop.network, vec![web]);
    assert_eq!(shop.lab.outside.ask(Tcp, &format!("{NODE}:30080")), Ok(format!("a ::ffff:{OUTSIDE}")), "its own address is seen");
    shop.lab.outside.ask(Tcp, &format!("[{NODE6}]:30080")).unwrap();
    shop.lab.node.ask(Tcp, "127.0.0.1:30080").unwrap();
    shop.lab.node.ask(Tcp, &format!("{NODE}:30080")).unwrap();
    shop.client.netns.ask(Tcp, &format!("{NODE}:30080")).unwrap();
    shop.a.netns.ask(Tcp, &format!("{NODE}:30080")).expect("an endpoint by the node's address");
}

#[rstest]
fn a_client_stays_with_its_endpoint_while_that_is_there(#[values("0", "1")] br_netfilter: &'static str) {
    let shop = shop_with(br_netfilter);
    let both = endpoints(&[&shop.a_net, &shop.b_net]);
    let sticky = |endpoints: &[SocketAddr]| Service { affinity: Some(Duration::from_secs(600)), ..service(8080, endpoints) };
    enforce(&shop.network, vec![sticky(&both)]);
    for address in [format!("{VIP}:8080"), format!("[{VIP6}]:8080")] {
        let counts = shop.answers(&address, 20);
        assert_eq!(counts.len(), 1, "{counts:?}");
        let (chosen, other) = if counts.contains_key("a") { (&shop.a_net, &shop.b_net) } else { (&shop.b_net, &shop.a_net) };
        // What comes beside it changes nothing; its own end does.
        enforce(&shop.network, vec![sticky(&both), service(1, &both)]);
        assert_eq!(shop.answers(&address, 10).len(), 1);
        enforce(&shop.network, vec![sticky(&endpoints(&[other]))]);
        assert!(shop.answers(&address, 5).keys().all(|name| !counts.contains_key(name)));
        enforce(&shop.network, vec![sticky(&endpoints(&[chosen, other]))]);
    }
}

/// By UDP and TCP, at addresses and node ports; an endpoint is an address with its port.
#[rstest]
fn who_loses_an_endpoint_stays_with_the_next(#[values(Tcp, Udp)] protocol: Protocol) {
    let shop = shop();
    let pods = [(&shop.a, &shop.a_net), (&shop.b, &shop.b_net)];
    let (mut there, mut servers) = (Vec::new(), Vec::new());
    for (pod, net) in pods {
        for port in [81, 82] {
            servers.push(pod.netns.serve(protocol, &format!("[::]:{port}"), &format!("{}:{port}", pod.name)));
            there.extend(net.ips.iter().map(|ip| SocketAddr::new(*ip, port)));
        }
    }
    let sticky = |endpoints: &[SocketAddr]| {
        let affinity = Some(Duration::from_secs(600));
        enforce(&shop.network, vec![Service { protocol, affinity, node_port: Some(30080), ..service(8080, endpoints) }]);
    };
    sticky(&there);
    let addresses = [format!("{VIP}:8080"), format!("[{VIP6}]:8080")];
    let stays_with = |address: &str| {
        let answers: std::collections::HashSet<String> =
            (0..10).map(|_| shop.client.netns.ask(protocol, address).unwrap().split(' ').next().unwrap().into()).collect();
        assert_eq!(answers.len(), 1, "{address}: {answers:?}");
        answers.into_iter().next().unwrap()
    };
    while there.len() > 2 {
        let chosen = addresses.each_ref().map(|address| stays_with(address));
        assert_eq!(stays_with(&format!("{NODE}:30080")), chosen[0], "one memory for all ways to the service");
        // One of each family goes.
        for (number, name) in chosen.iter().enumerate() {
            let (pod, port) = name.split_once(':').unwrap();
            let ip = if pod == "a" { &shop.a_net } else { &shop.b_net }.ips[number];
            there.retain(|endpoint| *endpoint != SocketAddr::new(ip, port.parse().unwrap()));
        }
        sticky(&there);
    }
    for address in &addresses {
        stays_with(address);
    }
}

#[test]
fn clients_are_spread_and_each_stays() {
    let shop = shop();
    let mut servers = Vec::new();
    for port in [81, 82] {
        servers.push(shop.a.netns.serve(Udp, &format!("0.0.0.0:{port}"), &format!("a:{port}")));
        servers.push(shop.b.netns.serve(Udp, &format!("0.0.0.0:{port}"), &format!("b:{port}")));
    }
    let there: Vec<_> =
        [&shop.a_net, &shop.b_net].iter().flat_map(|net| [81, 82].map(|port| (net.ips[0], port).into())).collect();
    let affinity = Some(Duration::from_secs(600));
    enforce(&shop.network, vec![Service { protocol: Udp, affinity, node_port: Some(30080), ..service(8080, &there) }]);
    // All addresses of a network that is lo's are the host's own.
    shop.lab.outside.ip("address add 198.51.100.1/24 dev lo");
    let ask = || {
        shop.lab.outside.run(|| -> Vec<String> {
            let ask = |number: u8| {
                let socket = std::net::UdpSocket::bind(std::net::SocketAddr::from(([198, 51, 100, number], 0))).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                socket.send_to(b"?", format!("{NODE}:30080")).unwrap();
                let mut buffer = [0; 64];
                let length = socket.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..length]).into_owned()
            };
            (1..=200).map(ask).collect()
        })
    };
    let answers = ask();
    let count = |name: &&str| answers.iter().filter(|answer| answer.starts_with(name)).count();
    let counts = ["a:81", "a:82", "b:81", "b:82"].each_ref().map(count);
    assert!(counts.iter().all(|count| (20..=90).contains(count)), "{counts:?}");
    assert_eq!(ask(), answers);
}

#[test]
fn clients_beyond_those_that_are_remembered_are_served_all_the_same() {
    let shop = shop();
    let sticky = Service { affinity: Some(Duration::from_secs(600)), ..service(8080, &endpoints(&[&shop.a_net, &shop.b_net])) };
    enforce(&shop.network, vec![sticky]);
    let others: Vec<String> = (0..u16::MAX).map(|n| format!("10.77.{}.{} timeout 1h", n >> 8, n & 255)).collect();
    let sets = [&shop.a_net, &shop.b_net].map(|pod| format!("element inet netplug_test clients4-1-{}-80", pod.ips[0]));
    let file = shop.lab.state.path().join("others.nft");
    let fill = sets.iter().map(|set| format!("add {set} {{ {} }}\n", others.join(", ")));
    std::fs::write(&file, fill.collect::<String>()).unwrap();
    shop.lab.node.nft(&format!("-f {}", file.display()));
    shop.client.netns.ask(Tcp, &format!("{VIP}:8080")).expect("there is no room to remember this one");
    let known = |set: &String| shop.lab.node.command("nft", &format!("get {set} {{ {} }}", shop.client_net.ips[0])).is_ok();
    assert!(!sets.iter().any(known));
}

#[test]
fn a_stay_ends_with_its_time() {
    let shop = shop();
    let web = service(8080, &endpoints(&[&shop.a_net, &shop.b_net]));
    enforce(&shop.network, vec![Service { affinity: Some(Duration::from_millis(1)), ..web }]);
    eventually("another endpoint", || shop.answers(&format!("{VIP}:8080"), 10).len() == 2);
}

#[test]
fn udp_clients_leave_an_endpoint_that_is_gone() {
    let shop = shop();
    let _a = shop.a.netns.serve(Udp, "[::]:53", "a");
    let _b = shop.b.netns.serve(Udp, "[::]:53", "b");
    let dns = |pod: &Attached| Service { protocol: Protocol::Udp, ..service(53, &[SocketAddr::new(pod.ips[0], 53)]) };
    enforce(&shop.network, vec![dns(&shop.a_net)]);
    let client = shop.client.netns.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect(format!("{VIP}:53")).unwrap();
        socket
    });
    let ask = || {
        client.send(b"?").unwrap();
        let mut buffer = [0; 64];
        let length = client.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).split(' ').next().unwrap().to_owned()
    };
    assert_eq!(ask(), "a");
    enforce(&shop.network, vec![dns(&shop.b_net)]);
    assert_eq!(ask(), "b", "the same socket, which has a flow to a");
}

#[test]
fn udp_clients_of_a_node_port_find_the_first_endpoint() {
    let shop = shop();
    let _a = shop.a.netns.serve(Udp, "[::]:53", "a");
    let client = shop.lab.outside.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    });
    let dns = |endpoints: &[SocketAddr]| {
        enforce(&shop.network, vec![Service { protocol: Protocol::Udp, node_port: Some(30053), ..service(53, endpoints) }]);
        client.send_to(b"?", format!("{NODE}:30053")).unwrap();
    };
    dns(&[]);
    dns(&[SocketAddr::new(shop.a_net.ips[0], 53)]);
    let mut buffer = [0; 64];
    let length = client.recv(&mut buffer).expect("the flow that led nowhere is forgotten");
    assert_eq!(String::from_utf8_lossy(&buffer[..length]), format!("a ::ffff:{OUTSIDE}"));
}

#[test]
fn services_outlive_the_process_and_a_flushed_table() {
    let shop = shop();
    let before = rules(vec![service(8080, &endpoints(&[&shop.a_net]))]);
    wait(shop.network.enforce(before.clone())).unwrap();
    shop.lab.node.nft("delete table inet netplug_test");
    eventually("the table is back", || shop.client.netns.ask(Tcp, &format!("{VIP}:8080")).is_ok());
    let Shop { network, client, lab, .. } = &shop;
    let file = lab.state.path().join("net/services.rules");
    wait(network.clone().close(Remove::Nothing)).unwrap();
    client.netns.ask(Tcp, &format!("{VIP}:8080")).expect("while no process is there");
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&file).unwrap());
    let kept = inode();
    let again = lab.open(lab.routed());
    assert_eq!(wait(again.rules()).unwrap(), before);
    assert_eq!(inode(), kept, "what was read isn't written again");
    client.netns.ask(Tcp, &format!("{VIP}:8080")).expect("by the next process, before it is told");
    wait(again.close(Remove::All)).unwrap();
    assert!(!file.exists());
}

/// Whatever becomes of the process: who is answered that they are in force counts on it.
#[test]
fn rules_are_kept_before_the_answer() {
    let shop = shop();
    let file = shop.lab.state.path().join("net/services.rules");
    for port in 1..50 {
        wait(shop.network.enforce(rules(vec![service(port, &endpoints(&[&shop.a_net]))]))).unwrap();
        let kept = std::fs::read_to_string(&file).unwrap();
        assert!(kept.lines().last().unwrap().contains(&format!("\"port\":{port},")), "{kept}");
    }
}

#[test]
fn br_netfilter_may_come_and_go() {
    let shop = shop();
    let web = endpoints(&[&shop.a_net]);
    enforce(&shop.network, vec![service(8080, &web)]);
    for (value, port) in [("1", 1), ("0", 2), ("1", 3)] {
        shop.lab.set_br_netfilter(value);
        // The next change of the rules takes notice.
        enforce(&shop.network, vec![service(8080, &web), service(port, &web)]);
        shop.client.netns.ask(Tcp, &format!("{VIP}:8080")).unwrap();
        shop.client.netns.ask(Tcp, &format!("{VIP}:{port}")).unwrap();
    }
}

/// Who keeps a copy of the ruleset lists it, and so do other tools: nft must find words for all of it.
#[rstest]
fn nft_lists_whatever_there_is(#[values(Isolation::Routed, Isolation::Pods, Isolation::Off)] isolation: Isolation) {
    let lab = Lab::new();
    let network = lab.open(Settings { isolation, ..lab.dual_stack() });
    let a = Pod::new("a").port("8080:80/TCP").port("127.0.0.1:8081:80/UDP").port("[2001:db8::1]:8082:80/SCTP");
    let (a_net, b_net) = (a.attach(&network).unwrap(), Pod::new("b").attach(&network).unwrap());
    let both = endpoints(&[&a_net, &b_net]);
    let services = [Tcp, Udp, Sctp].into_iter().zip(1..).flat_map(|(protocol, port)| {
        let of = |port: u16, endpoints: &[SocketAddr]| Service {
            protocol,
            node_port: Some(30_000 + port),
            ..service(port, endpoints)
        };
        let sticky = Service { affinity: Some(Duration::from_secs(600)), ..of(port + 10, &both) };
        [of(port, &both), sticky, of(port + 20, &[])]
    });
    let block = ("10.0.0.0/8".parse().unwrap(), vec!["10.9.0.0/16".parse().unwrap()]);
    let peers = Some(Peers { pods: b_net.ips.clone(), blocks: vec![block, ("fd00:99::/64".parse().unwrap(), Vec::new())] });
    let ports = Some(vec![Ports::Range(Tcp, Some((80, 90))), Ports::Range(Udp, None), Ports::Named(Sctp, both.clone())]);
    let allow = [(None, None), (None, ports.clone()), (peers.clone(), None), (peers, ports)];
    let allow: Vec<Allow> = allow.map(|(peers, ports)| Allow { peers, ports }).into();
    let policy = |name: &str, pods: &Attached, allow: Vec<Allow>| {
        Arc::new(Policy { name: name.into(), pods: pods.ips.clone(), ingress: Some(allow.clone()), egress: Some(allow) })
    };
    let policies = vec![policy("default/some", &a_net, allow), policy("default/none", &b_net, Vec::new())];
    wait(network.enforce(Rules { policies, ..rules(services.collect()) })).unwrap();
    for format in ["", "-j ", "-s ", "-a "] {
        let list = lab.node.nft(&format!("{format}list ruleset"));
        for part in ["service4-", "service6-", "8080", "30001", "10.10.0.0"] {
            assert!(list.contains(part), "{part} in {list}");
        }
    }
}

#[test]
fn a_thousand_services_and_one_changes() {
    let shop = shop();
    let web = endpoints(&[&shop.a_net, &shop.b_net]);
    let many = |last: &[SocketAddr]| {
        let mut services: Vec<Service> = (0..1000u16)
            .map(|n| {
                let [high, low] = n.to_be_bytes();
                Service {
                    name: format!("default/s{n}:http"),
                    addresses: vec![IpAddr::from([10, 96, high + 1, low])],
                    ..service(80, &web)
                }
            })
            .collect();
        services[999].endpoints = last.to_vec();
        services
    };
    let vip = format!("10.96.{}.{}:80", 999 / 256 + 1, 999 % 256);
    let timed = |services: Vec<Service>| {
        let rules = rules(services);
        let begun = Instant::now();
        wait(shop.network.enforce(rules)).unwrap();
        begun.elapsed()
    };
    println!("1000 services at once: {:?}", timed(many(&web)));
    shop.client.netns.ask(Tcp, &vip).unwrap();
    for round in 0..5 {
        println!("{round}: one unready: {:?}", timed(many(&web[..1])));
        assert_eq!(shop.answers(&vip, 5).len(), 1);
        println!("{round}: one ready: {:?}", timed(many(&web)));
    }
    println!("nothing: {:?}", timed(many(&web)));
    println!("all gone: {:?}", timed(Vec::new()));
    let table = shop.lab.node.nft("list table inet netplug_test");
    assert!(!table.contains("service4-"), "{table}");
}
