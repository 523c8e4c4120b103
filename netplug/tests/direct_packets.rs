//! The direct way from pod to pod as packets see it: whether the host gets to see them is told by what its bridge counts.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    process::Command,
    sync::Arc,
    time::Duration,
};

use lab::{Cgroup, Lab, Pod, eventually, wait};
use netplug::{
    Attached, Bandwidth, Flow, Network, Policy,
    Protocol::{Tcp, Udp},
    Rate, Rules, Service, Settings,
};
use rstest::rstest;
use rustix::net::{
    self, AddressFamily, SocketType,
    sockopt::{self, Timeout},
};

/// More than what passes the host beside it.
const BULK: usize = 200_000;
const VIP: &str = "10.96.0.10";

struct World {
    network: Network,
    a: (Pod, Attached),
    b: (Pod, Attached),
    /// The last to go: it looks for what the network leaves.
    lab: Lab,
}

fn world() -> World {
    let world = world_with(true);
    for pod in [&world.a, &world.b] {
        world.goes_directly(&pod.0);
    }
    world
}

/// `direct`: the setting.
fn world_with(direct: bool) -> World {
    let lab = Lab::new();
    let settings = Settings { direct, ..lab.routed() };
    world_in(lab, settings)
}

fn world_in(lab: Lab, settings: Settings) -> World {
    let network = lab.open(settings);
    let [a, b] = ["a", "b"].map(|name| {
        let pod = Pod::new(name);
        let attached = pod.attach(&network).unwrap();
        (pod, attached)
    });
    World { network, a, b, lab }
}

/// Both ends of a TCP connection, which lasts.
struct Line {
    client: TcpStream,
    server: TcpStream,
}

impl Line {
    /// From one pod to another, at an address that leads there.
    fn open(from: &Pod, to: &Pod, address: SocketAddr) -> Line {
        let listener = to.netns.run(move || TcpListener::bind(("::", address.port())).unwrap());
        let client = from.netns.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap());
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        Line { client, server }
    }

    fn ask(&mut self) {
        send(&mut self.client, &mut self.server);
    }

    fn tell(&mut self) {
        send(&mut self.server, &mut self.client);
    }
}

fn send(from: &mut TcpStream, to: &mut TcpStream) {
    let mut from = from.try_clone().unwrap();
    let sender = std::thread::spawn(move || from.write_all(&vec![7; BULK]));
    to.read_exact(&mut vec![0; BULK]).expect("it arrives");
    sender.join().unwrap().unwrap();
}

impl World {
    fn address(&self, v4: bool, port: u16) -> SocketAddr {
        let ip = self.b.1.ips.iter().find(|ip| ip.is_ipv4() == v4).unwrap();
        SocketAddr::new(*ip, port)
    }

    fn line(&self, address: SocketAddr) -> Line {
        Line::open(&self.a.0, &self.b.0, address)
    }

    /// Whether the host saw what is sent meanwhile: as bytes that its IP received.
    fn host_sees(&self, mut what: impl FnMut()) -> bool {
        let received = || {
            self.lab.node.run(|| {
                let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
                let v4 = read("netstat");
                let mut v4 = v4.lines().filter_map(|line| line.strip_prefix("IpExt: ")).map(|line| line.split(' '));
                let (names, values) = (v4.next().unwrap(), v4.next().unwrap());
                let v4 = names.zip(values).find_map(|(name, value)| (name == "InOctets").then_some(value.to_owned()));
                let v6 = read("snmp6").lines().find_map(|line| line.strip_prefix("Ip6InOctets").map(str::to_owned));
                [v4, v6].map(|bytes| bytes.expect("the kernel counts").trim().parse::<usize>().unwrap()).iter().sum::<usize>()
            })
        };
        let before = received();
        what();
        received() - before > BULK / 2
    }

    /// Why a pod doesn't take the direct way, if it doesn't.
    fn why_not(&self, pod: &Pod) -> Option<String> {
        let picture = wait(self.network.picture()).unwrap();
        let state = picture.pods.iter().find(|state| state.lease.uid == pod.name).expect("it is attached");
        picture.no_direct_way.clone().or_else(|| state.not_direct.clone())
    }

    /// Soon: a new pod's link is made ready when no other comes.
    fn goes_directly(&self, pod: &Pod) {
        eventually(&format!("{} goes directly", pod.name), || self.why_not(pod).is_none());
    }

    /// The filters of what comes in by a pod's link.
    fn filters(&self, attached: &Attached) -> String {
        self.lab.node.command("tc", &format!("filter show dev {} ingress", attached.host_if)).unwrap()
    }

    fn enforce(&self, rules: Rules) {
        wait(self.network.enforce(rules)).unwrap();
    }

    fn traced(&self, from: &Attached, to: SocketAddr) -> String {
        let source = *from.ips.iter().find(|ip| ip.is_ipv4() == to.is_ipv4()).unwrap();
        let ways = wait(self.network.trace(Flow { source, destination: to, protocol: Tcp }, Vec::new())).unwrap();
        ways[0][0].chain.clone()
    }
}

/// Nothing may come to, or go from, these.
fn shut(pods: &[&Attached]) -> Rules {
    let pods = pods.iter().flat_map(|pod| pod.ips.clone()).collect();
    let policy = Policy { name: "default/shut".into(), pods, ingress: Some(Vec::new()), egress: Some(Vec::new()) };
    Rules { policies: vec![Arc::new(policy)], ..Rules::default() }
}

fn service(endpoints: Vec<SocketAddr>) -> Rules {
    let service = Service {
        name: "default/web:http".into(),
        protocol: Tcp,
        port: 80,
        addresses: vec![VIP.parse().unwrap()],
        node_port: None,
        endpoints,
        affinity: None,
    };
    Rules { service_ranges: vec!["10.96.0.0/16".parse().unwrap()], services: vec![Arc::new(service)], policies: Vec::new() }
}

#[rstest]
fn plain_pods_reach_each_other_past_the_host(#[values(true, false)] v4: bool) {
    let world = world();
    let address = world.address(v4, 90);
    let mut line = world.line(address);
    assert!(!world.host_sees(|| line.ask()));
    assert!(!world.host_sees(|| line.tell()));
    assert_eq!(world.traced(&world.a.1, address), "direct");
    let mac = world.lab.node.ip("-o link show pods0");
    let mac = mac.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(mac, "0a:58:0a:58:00:01", "who looks at packets in a pod sees the bridge as their sender, as ever");
    // What is larger than a packet goes in parts, by the host.
    let server = world.b.0.netns.serve(Udp, "[::]:91", "b");
    world.a.0.netns.ask(Udp, &world.address(v4, 91).to_string()).expect("datagrams arrive, too");
    drop(server);
    let receiver = world.b.0.netns.run(|| UdpSocket::bind("[::]:92").unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let to = world.address(v4, 92);
    world.a.0.netns.run(move || {
        let socket = UdpSocket::bind(if v4 { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.send_to(&[5; 5000], to).unwrap();
    });
    assert_eq!(receiver.recv_from(&mut [0; 8000]).unwrap().0, 5000);
}

#[test]
fn without_the_setting_the_host_sees_all() {
    let world = world_with(false);
    let mut line = world.line(world.address(true, 90));
    assert!(world.host_sees(|| line.ask()));
    let picture = wait(world.network.picture()).unwrap();
    assert_eq!(picture.no_direct_way.as_deref(), Some("directPath is off"));
}

/// As with connections that went by the host: a policy says what may begin.
#[rstest]
fn a_policy_counts_from_the_moment_that_it_is_in_force(#[values(true, false)] v4: bool) {
    let world = world();
    let address = world.address(v4, 90);
    let (mut talks, mut hears) = (world.line(address), world.line(world.address(v4, 93)));
    assert!(!world.host_sees(|| talks.ask()));
    let server = world.b.0.netns.serve(Tcp, "[::]:80", "b");
    let open = world.address(v4, 80).to_string();
    world.a.0.netns.ask(Tcp, &open).unwrap();
    world.enforce(shut(&[&world.a.1, &world.b.1]));
    world.a.0.netns.assert_unreachable(Tcp, &open);
    // What was open before stays so, whoever speaks first; and the host sees it.
    assert!(world.host_sees(|| hears.tell()));
    assert!(world.host_sees(|| talks.ask()));
    assert_eq!(world.traced(&world.a.1, address), "egress");
    world.enforce(Rules::default());
    assert!(!world.host_sees(|| hears.ask()), "there and back");
    assert!(!world.host_sees(|| talks.tell()));
    world.a.0.netns.ask(Tcp, &open).unwrap();
    world.enforce(shut(&[&world.b.1]));
    world.a.0.netns.assert_unreachable(Tcp, &open);
    assert!(world.host_sees(|| talks.tell()) && world.host_sees(|| hears.tell()), "and there again");
    drop(server);
}

#[test]
fn a_services_connection_passes_the_host_as_long_as_it_lasts() {
    let world = world();
    let endpoint = world.address(true, 90);
    let mut straight = world.line(world.address(true, 91));
    assert!(!world.host_sees(|| straight.ask()));
    world.enforce(service(vec![endpoint]));
    let listener = world.b.0.netns.run(move || TcpListener::bind(("::", 90)).unwrap());
    let vip = SocketAddr::new(VIP.parse().unwrap(), 80);
    let client = world.a.0.netns.run(move || TcpStream::connect_timeout(&vip, Duration::from_secs(5)).unwrap());
    let (server, _) = listener.accept().unwrap();
    let mut served = Line { client, server };
    served.server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    served.client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    served.ask();
    assert!(world.host_sees(|| straight.tell()), "an endpoint's packets are all seen");
    // The Service goes, the connection stays: what the pod answers must be translated back.
    world.enforce(Rules::default());
    served.tell();
    served.ask();
    assert_ne!(world.traced(&world.a.1, endpoint), "direct");
    let picture = wait(world.network.picture()).unwrap();
    let reasons: Vec<_> = picture.pods.iter().map(|pod| pod.not_direct.is_some()).collect();
    assert_eq!(reasons, [false, true]);
    // Nor does a process after, which knows of no Service, let it go directly.
    let World { network, a, b, lab } = world;
    drop(network);
    let network = lab.open(lab.routed());
    let world = World { network, a, b, lab };
    served.tell();
    assert_ne!(world.traced(&world.a.1, endpoint), "direct");
}

/// Where sockets are led to a Service's endpoints, nothing else that a pod sends there need be translated back; but what is must be.
#[test]
fn an_endpoint_to_which_sockets_are_led_goes_directly() {
    let (lab, cgroup) = (Lab::new(), Cgroup::new());
    let settings = Settings { pods_cgroup: Some(cgroup.0.clone()), ..lab.routed() };
    let world = world_in(lab, settings);
    for pod in [&world.a, &world.b] {
        world.goes_directly(&pod.0);
    }
    let mut straight = world.line(world.address(true, 91));
    assert!(!world.host_sees(|| straight.ask()));
    world.enforce(service(vec![world.address(true, 90)]));
    assert!(!world.host_sees(|| straight.tell()), "it was seen to begin");
    assert!(!world.host_sees(|| straight.ask()));
    let mut new = world.line(world.address(false, 92));
    assert!(!world.host_sees(|| new.ask()));
    assert!(!world.host_sees(|| new.tell()));
    assert_eq!(world.why_not(&world.b.0), None);
    // Who isn't led is translated, there and back; we are in none of the cgroup's processes.
    let listener = world.b.0.netns.run(move || TcpListener::bind(("::", 90)).unwrap());
    let vip = SocketAddr::new(VIP.parse().unwrap(), 80);
    let client = world.a.0.netns.run(move || TcpStream::connect_timeout(&vip, Duration::from_secs(5)).unwrap());
    let (server, _) = listener.accept().unwrap();
    let mut translated = Line { client, server };
    translated.ask();
    translated.tell();
    // So might datagrams be.
    let to = world.address(true, 95);
    let datagrams = || {
        world.a.0.netns.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for _ in 0..BULK / 1000 {
                let _ = socket.send_to(&[1; 1000], to);
            }
        });
    };
    assert!(world.host_sees(datagrams));
    // A policy comes: what is open stays so, and is seen.
    world.enforce(shut(&[&world.a.1, &world.b.1]));
    assert!(world.host_sees(|| straight.ask()) && world.host_sees(|| new.tell()));
    world.enforce(Rules::default());
    assert!(!world.host_sees(|| straight.tell()) && !world.host_sees(|| new.ask()));
    translated.tell();
    translated.ask();
}

/// Nor when they end, down to the last acknowledgement: connection tracking would keep what it comes upon for long.
#[test]
fn of_connections_that_go_directly_the_host_knows_nothing() {
    let (lab, cgroup) = (Lab::new(), Cgroup::new());
    let settings = Settings { pods_cgroup: Some(cgroup.0.clone()), ..lab.routed() };
    let world = world_in(lab, settings);
    world.enforce(service(vec![world.address(true, 90)]));
    for pod in [&world.a, &world.b] {
        world.goes_directly(&pod.0);
    }
    let known = || {
        let count = world.lab.node.run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap());
        count.trim().parse::<u32>().unwrap()
    };
    let before = known();
    for number in 0..20 {
        let Line { client, server } = world.line(world.address(number % 2 == 0, 90 + number));
        let [mut first, mut last] = if number % 3 == 0 { [client, server] } else { [server, client] };
        first.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(last.read(&mut [0]).unwrap(), 0);
        last.write_all(b"half closed").unwrap();
        drop(last);
        let mut rest = String::new();
        first.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "half closed");
    }
    // One whose last packets pass each other may be noticed.
    assert!(known() < before + 10, "{} of 20", known() - before);
}

#[rstest]
fn who_says_to_be_another_is_seen_by_the_host_and_refused(#[values(true, false)] v4: bool) {
    let world = world();
    let thief = Pod::new("thief");
    thief.attach(&world.network).unwrap();
    world.goes_directly(&thief);
    let to = world.address(v4, 90);
    let of_family = |ips: &[IpAddr]| *ips.iter().find(|ip| ip.is_ipv4() == v4).unwrap();
    let stolen = of_family(&world.a.1.ips);
    let address = if v4 { format!("{stolen}/32") } else { format!("{stolen}/128 nodad") };
    thief.netns.ip(&format!("address add {address} dev eth0"));
    let own = of_family(&wait(world.network.attached()).unwrap().iter().find(|lease| lease.uid == "thief").unwrap().ips);
    let flood = |source: IpAddr| {
        thief.netns.run(move || {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            for _ in 0..BULK / 1000 {
                let _ = socket.send_to(&[1; 1000], to);
            }
        });
    };
    assert!(!world.host_sees(|| flood(own)));
    let receiver = world.b.0.netns.run(move || UdpSocket::bind((to.ip(), to.port() + 5)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert!(world.host_sees(|| flood(stolen)));
    for source in [stolen, own] {
        thief.netns.run(move || UdpSocket::bind((source, 0)).unwrap().send_to(b"me", (to.ip(), to.port() + 5)).unwrap());
    }
    assert_eq!(receiver.recv_from(&mut [0; 10]).unwrap().1.ip(), own, "what came before was dropped");
}

#[test]
fn an_address_goes_to_another_pod() {
    let world = world();
    let address = world.address(true, 80);
    let server = world.b.0.netns.serve(Tcp, "[::]:80", "b");
    assert!(world.a.0.netns.ask(Tcp, &address.to_string()).unwrap().starts_with("b "));
    drop(server);
    wait(world.network.detach("b")).unwrap();
    let c = Pod { fixed: vec![address.ip()], ..Pod::new("c") };
    let (attached, _server) = c.up(&world.network);
    assert_eq!(attached.ips[0], address.ip());
    world.goes_directly(&c);
    assert!(world.a.0.netns.ask(Tcp, &address.to_string()).unwrap().starts_with("c "));
    assert_eq!(world.traced(&world.a.1, address), "direct");
}

#[test]
fn a_process_after_goes_on_with_what_it_finds() {
    let world = world();
    let address = world.address(true, 90);
    let mut line = world.line(address);
    assert!(!world.host_sees(|| line.ask()));
    let filters = world.filters(&world.a.1);
    assert!(filters.contains("netplug_direct"), "{filters}");
    let World { network, a, b, lab } = world;
    drop(network);
    let network = lab.open(lab.routed());
    let world = World { network, a, b, lab };
    world.goes_directly(&world.a.0);
    world.goes_directly(&world.b.0);
    assert!(!world.host_sees(|| line.ask()), "the same way as before");
    assert_eq!(world.filters(&world.a.1), filters, "the same program");
    // It knows the connections that began before it.
    world.enforce(shut(&[&world.a.1, &world.b.1]));
    assert!(world.host_sees(|| line.tell()));
    world.enforce(Rules::default());
    assert!(!world.host_sees(|| line.tell()));
    let World { network, a, b, lab } = world;
    drop(network);
    let network = lab.open(Settings { direct: false, ..lab.routed() });
    let world = World { network, a, b, lab };
    assert!(world.host_sees(|| line.ask()), "a process that isn't to have it takes it away");
    assert_eq!(world.filters(&world.a.1), "");
}

/// What has no lease any more was a pod's all the same: nobody knows what its link lets pass.
#[test]
fn a_process_that_lost_the_leases_finds_the_program_too() {
    let world = world();
    let address = world.address(true, 80);
    let server = world.b.0.netns.serve(Tcp, "[::]:80", "b");
    let World { network, a, b, lab } = world;
    drop(network);
    std::fs::remove_dir_all(lab.settings().state_dir).unwrap();
    let network = lab.open(lab.routed());
    let world = World { network, a, b, lab };
    world.enforce(shut(&[&world.a.1, &world.b.1]));
    world.a.0.attach(&world.network).unwrap();
    world.b.0.attach(&world.network).unwrap();
    world.a.0.netns.assert_unreachable(Tcp, &address.to_string());
    drop(server);
}

/// From one address and port to another; what the kernel said within two seconds.
fn dial(from: SocketAddr, to: SocketAddr) -> (OwnedFd, rustix::io::Result<()>) {
    let socket = net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(Duration::from_secs(2))).unwrap();
    net::bind(&socket, &from).unwrap();
    let done = net::connect(&socket, &to);
    (socket, done)
}

#[test]
fn what_is_noted_of_a_pod_opens_nothing_to_the_next_owner_of_its_address() {
    let world = world();
    let (from, to) = (SocketAddr::new(world.a.1.ips[0], 4000), world.address(true, 90));
    let listener = world.b.0.netns.run(move || TcpListener::bind(("::", 90)).unwrap());
    let (client, done) = world.a.0.netns.run(move || dial(from, to));
    done.unwrap();
    wait(world.network.detach("b")).unwrap();
    drop((client, listener));
    let closed = |ip| Policy { name: format!("default/{ip}"), pods: vec![ip], ingress: Some(Vec::new()), egress: None };
    let closing = |ips: &[IpAddr]| Rules { policies: ips.iter().map(|ip| Arc::new(closed(*ip))).collect(), ..Rules::default() };
    world.enforce(closing(&[to.ip()]));
    let c = Pod { fixed: vec![to.ip()], ..Pod::new("c") };
    c.attach(&world.network).unwrap();
    let _server = c.netns.serve(Tcp, "[::]:90", "c");
    // The other end leaves the direct way, and its connections are handed over.
    world.enforce(closing(&[to.ip(), from.ip()]));
    let (_, done) = world.a.0.netns.run(move || dial(from, to));
    assert!(done.is_err(), "the policy holds");
}

#[test]
fn what_others_filter_on_a_pods_link_stays() {
    let World { network, a, b, lab } = world_with(false);
    lab.node.command("tc", &format!("qdisc add dev {} clsact", a.1.host_if)).unwrap();
    let drops = ["bpf", "da", "bytecode", "1,6 0 0 2"];
    lab.node.run({
        let link = a.1.host_if.clone();
        move || {
            let words = ["filter", "add", "dev", &link, "ingress", "protocol", "ip", "pref", "7"];
            let made = Command::new("tc").args(words).args(drops).status().expect("install iproute2");
            assert!(made.success());
        }
    });
    drop(network);
    let network = lab.open(lab.routed());
    let world = World { network, a, b, lab };
    world.goes_directly(&world.a.0);
    let server = world.b.0.netns.serve(Tcp, "[::]:80", "b");
    world.a.0.netns.assert_unreachable(Tcp, &world.address(true, 80).to_string());
    world.a.0.netns.ask(Tcp, &world.address(false, 80).to_string()).expect("which is about IPv4 alone");
    drop(server);
    let filters = world.filters(&world.a.1);
    assert!(filters.contains("pref 7 bpf") && filters.contains("netplug_direct"), "{filters}");
}

#[test]
fn a_limited_pod_is_held_by_its_bucket_until_it_is_limited_no_more() {
    let mut world = world();
    let mut line = world.line(world.address(true, 90));
    assert!(!world.host_sees(|| line.ask()));
    let limits = Bandwidth { ingress: None, egress: Some(Rate::new(80_000_000)) };
    world.a.0.bandwidth = Some(limits);
    world.a.1 = world.a.0.attach(&world.network).unwrap();
    assert_eq!(world.why_not(&world.a.0).as_deref(), Some("its bandwidth is limited"));
    assert!(world.host_sees(|| line.ask()));
    world.a.0.bandwidth = None;
    world.a.1 = world.a.0.attach(&world.network).unwrap();
    world.goes_directly(&world.a.0);
    assert!(!world.host_sees(|| line.tell()));
}

#[test]
fn while_another_firewall_looks_on_the_host_sees_all() {
    let world = world();
    let mut line = world.line(world.address(true, 90));
    assert!(!world.host_sees(|| line.ask()));
    world.lab.node.nft("add table inet other");
    world.lab.node.nft("add chain inet other mine { type filter hook forward priority 5 ; }");
    let closed = || wait(world.network.picture()).unwrap().no_direct_way;
    eventually("the chain is noticed", || closed().is_some());
    assert_eq!(closed().as_deref(), Some("chain mine of table inet other sees what is forwarded"));
    assert!(world.host_sees(|| line.tell()));
    world.lab.node.nft("delete table inet other");
    eventually("it is gone", || closed().is_none());
    assert!(!world.host_sees(|| line.ask()));
}
