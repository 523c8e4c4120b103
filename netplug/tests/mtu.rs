//! How large packets may be, as they find out themselves: "far" – "outside" – "node" – pods that policies may select.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use lab::{Lab, NODE, NODE6, Netns, Pod, eventually, wait};
use netplug::{Allow, Attached, Network, Peers, Policy, Ports, Protocol::Udp, Rules, Settings};
use rstest::rstest;

const FAR: &str = "203.0.113.2";
const FAR6: &str = "2001:db8:f::2";

/// Datagrams go with DF until the kernel knows of a hop that is too small for them, and as fragments from then on.
fn answers(netns: &Netns, to: SocketAddr, bytes: usize) -> bool {
    netns.run(move || {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket.send(&vec![0; bytes]).unwrap();
        socket.recv(&mut [0; 256]).is_ok()
    })
}

/// What a namespace has learned of the way to an address.
fn learned(netns: &Netns, to: IpAddr) -> Option<u32> {
    let route = netns.ip(&format!("route get {to}"));
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    words.next().map(|mtu| mtu.parse().unwrap())
}

/// The first is sent as a whole, in vain; the router says why, and then all is well.
fn finds_out(who: &str, netns: &Netns, to: SocketAddr, bytes: usize, mtu: u32) {
    assert_eq!(learned(netns, to.ip()), None, "{who}: nothing yet of the way to {to}");
    eventually(&format!("{who} gets {bytes} bytes to {to}"), || answers(netns, to, bytes));
    assert_eq!(learned(netns, to.ip()), Some(mtu), "{who}: of the way to {to}");
}

/// Policies that let nothing pass but UDP on port 90, from and to the world.
fn select(network: &Network, pod: &Attached) {
    let world = ["203.0.113.0/24", "192.0.2.0/24", "2001:db8::/32"].map(|block| (block.parse().unwrap(), Vec::new()));
    let peers = Some(Peers { pods: Vec::new(), blocks: world.into() });
    let allow = vec![Allow { peers, ports: Some(vec![Ports::Range(Udp, Some((90, 90)))]) }];
    let (name, pods) = ("default/some".into(), pod.ips.clone());
    let policy = Policy { name, pods, ingress: Some(allow.clone()), egress: Some(allow) };
    wait(network.enforce(Rules { policies: vec![Arc::new(policy)], ..Rules::default() })).unwrap();
}

fn routes_packets(netns: &Netns) {
    netns.run(|| {
        for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{path}"), "1").unwrap();
        }
    });
}

#[rstest]
fn a_pod_learns_of_a_smaller_hop_outside(#[values(false, true)] selected: bool) {
    let lab = Lab::new();
    let far = Netns::new();
    routes_packets(&lab.outside);
    lab.outside.connect("far0", "203.0.113.1/24", &far, "eth0", &format!("{FAR}/24"));
    lab.outside.ip("address add 2001:db8:f::1/64 dev far0 nodad");
    far.ip(&format!("address add {FAR6}/64 dev eth0 nodad"));
    for (netns, link) in [(&lab.outside, "far0"), (&far, "eth0")] {
        netns.ip(&format!("link set {link} mtu 1300"));
    }
    for router in ["203.0.113.1", "2001:db8:f::1"] {
        far.ip(&format!("route add default via {router}"));
    }
    let _server = far.serve(Udp, "[::]:90", "far");
    let network = lab.open(lab.routed());
    let pod = Pod::new("pod");
    let attached = pod.attach(&network).unwrap();
    if selected {
        select(&network, &attached);
    }
    for far in [FAR, FAR6] {
        finds_out("the pod", &pod.netns, SocketAddr::new(far.parse().unwrap(), 90), 1400, 1300);
    }
}

#[rstest]
fn who_sends_a_pod_too_much_is_told(#[values(false, true)] selected: bool) {
    let lab = Lab::new();
    let network = lab.open(Settings { mtu: Some(1400), ..lab.routed() });
    let [pod, other] = [Pod::new("pod").port("9090:90/UDP"), Pod::new("other")];
    let (attached, others) = (pod.attach(&network).unwrap(), other.attach(&network).unwrap());
    let _server = pod.netns.serve(Udp, "[::]:90", "pod");
    if selected {
        select(&network, &attached);
    }
    for (ip, node) in attached.ips.iter().zip([NODE, NODE6]) {
        lab.outside.ip(&format!("route add {ip} via {node}"));
        finds_out("outside", &lab.outside, SocketAddr::new(*ip, 90), 1450, 1400);
        // By a host port: what the answer speaks of was translated.
        finds_out("outside", &lab.outside, SocketAddr::new(node.parse().unwrap(), 9090), 1450, 1400);
        // Who is near knows.
        let to = SocketAddr::new(*ip, 90);
        eventually("the node", || answers(&lab.node, to, 1450));
        if selected {
            assert!(!answers(&other.netns, to, 1450), "who may not");
        } else {
            eventually("another pod", || answers(&other.netns, to, 1450));
        }
    }
    // What pods send is no larger than their network has it.
    let world = lab.outside.serve(Udp, "[::]:90", "world");
    for ip in [lab::OUTSIDE, lab::OUTSIDE6] {
        let to = SocketAddr::new(ip.parse().unwrap(), 90);
        eventually("in two pieces", || answers(&pod.netns, to, 1450));
        assert_eq!(learned(&pod.netns, to.ip()), None, "nobody had to tell");
    }
    drop(world);
    assert_eq!((attached.mtu, others.mtu), (1400, 1400));
}
