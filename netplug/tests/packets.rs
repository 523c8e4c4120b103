//! The network as packets see it: "outside" – "node" – pods.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::net::IpAddr;

use lab::{Lab, NODE, NODE6, Netns, OUTSIDE, OUTSIDE6, Pod, range, wait};
use netplug::{
    Isolation, Network,
    Protocol::{Tcp, Udp},
    Remove, Settings,
};
use rstest::rstest;

#[test]
fn pods_reach_each_other_and_the_world_and_leave_nothing() {
    let lab = Lab::new();
    let before = lab.node.picture();
    let network = lab.open(lab.settings());
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let (a_net, _a) = a.up(&network);
    let (b_net, _b) = b.up(&network);
    let _world = lab.outside.serve(Tcp, &format!("{OUTSIDE}:80"), "world");

    assert_eq!(a.netns.ask(Tcp, &format!("{}:80", b_net.ips[0])), Ok(format!("b ::ffff:{}", a_net.ips[0])));
    assert_eq!(lab.node.ask(Tcp, &format!("{}:80", b_net.ips[0])), Ok("b ::ffff:10.88.0.1".into()));
    assert_eq!(a.netns.ask(Tcp, &format!("{OUTSIDE}:80")), Ok(format!("world {NODE}")), "masqueraded");
    assert_eq!(a.netns.ask(Tcp, "127.0.0.1:80"), Ok("a ::ffff:127.0.0.1".into()), "loopback is up");

    wait(network.detach("a")).unwrap();
    wait(network.detach("a")).unwrap();
    wait(network.close(Remove::All)).unwrap();
    assert_eq!(lab.node.picture(), before);
    assert!(!lab.state.path().join("net").exists());
}

/// Whether the bridge shows what it forwards to nftables' IP hooks, as Kubernetes nodes often have it: redirected packets then
/// take another way through the kernel.
fn set_br_netfilter(lab: &Lab, value: &'static str) {
    let path = std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    lab.node.run(move || {
        if path.exists() {
            std::fs::write(path, value).unwrap();
        }
    });
}

#[rstest]
#[case::without_br_netfilter("0")]
#[case::with_br_netfilter("1")]
fn host_ports_are_reached_from_everywhere(#[case] br_netfilter: &'static str, #[values(false, true)] routed: bool) {
    let lab = Lab::new();
    set_br_netfilter(&lab, br_netfilter);
    // Which the host could take for its own instead: it comes first.
    lab.node.ip("address add 192.0.7.1/32 dev lo");
    let network = lab.open(if routed { lab.routed() } else { lab.settings() });
    let (web, client) = (Pod::new("web").port("8080:80/TCP"), Pod::new("client"));
    let (_, _web) = web.up(&network);
    let client_ip = client.attach(&network).unwrap().ips[0];
    let by_client = if routed { format!("web ::ffff:{client_ip}") } else { "web ::ffff:10.88.0.1".into() };

    let port = format!("{NODE}:8080");
    assert_eq!(lab.outside.ask(Tcp, &port), Ok(format!("web ::ffff:{OUTSIDE}")), "outside's own address is seen");
    assert_eq!(lab.node.ask(Tcp, &port), Ok(format!("web ::ffff:{NODE}")));
    assert_eq!(lab.node.ask(Tcp, "127.0.0.1:8080"), Ok("web ::ffff:10.88.0.1".into()), "localhost of the node");
    for _ in 0..3 {
        // Again and again: the kernel may tell the pod a "better" way (ICMP redirect), and that would end badly.
        assert_eq!(client.netns.ask(Tcp, &port), Ok(by_client.clone()), "from another pod");
    }
    assert_eq!(web.netns.ask(Tcp, &port), Ok("web ::ffff:10.88.0.1".into()), "from the pod itself");
    assert_eq!(client.netns.ask(Tcp, "10.88.0.1:8080"), Ok(by_client), "by the gateway's address");

    wait(network.release_when_netns_dies("web")).unwrap();
    lab.outside.assert_unreachable(Tcp, &port);
    lab.node.assert_unreachable(Tcp, "127.0.0.1:8080");
}

#[test]
fn one_port_number_on_addresses_and_protocols() {
    let lab = Lab::new();
    lab.node.ip("address add 192.0.2.11/24 dev up0");
    let network = lab.open(lab.settings());
    let a = Pod::new("a").port("192.0.2.1:53:80/TCP").port("53:90/UDP");
    let b = Pod::new("b").port("192.0.2.11:53:80/TCP");
    let (_, _a) = a.up(&network);
    let (_, _b) = b.up(&network);
    let _udp = a.netns.serve(Udp, "0.0.0.0:90", "a by UDP");

    assert_eq!(lab.outside.ask(Tcp, "192.0.2.1:53"), Ok(format!("a ::ffff:{OUTSIDE}")));
    assert_eq!(lab.outside.ask(Tcp, "192.0.2.11:53"), Ok(format!("b ::ffff:{OUTSIDE}")));
    for address in ["192.0.2.1:53", "192.0.2.11:53"] {
        assert_eq!(lab.outside.ask(Udp, address), Ok(format!("a by UDP {OUTSIDE}")));
    }
    assert_eq!(lab.node.ask(Udp, "127.0.0.1:53"), Ok("a by UDP 10.88.0.1".into()));
    lab.node.assert_unreachable(Tcp, "127.0.0.1:53");
}

/// A client that goes on and on from the same port is one flow to the kernel, and would go on to who is gone, or to nobody.
#[test]
fn a_udp_client_finds_the_pod_that_has_its_port_now() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let client = lab.outside.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        socket
    });
    let ask = || {
        client.send_to(b"?", format!("{NODE}:53")).unwrap();
        let mut buffer = [0; 64];
        let length = client.recv(&mut buffer).map_err(|error| error.to_string())?;
        Ok::<_, String>(String::from_utf8_lossy(&buffer[..length]).split(' ').next().unwrap().to_owned())
    };
    client.send_to(b"?", format!("{NODE}:53")).unwrap();
    for name in ["a", "b"] {
        let pod = Pod::new(name).port("53:90/UDP");
        pod.attach(&network).unwrap();
        let _server = pod.netns.serve(Udp, "0.0.0.0:90", name);
        assert_eq!(ask(), Ok(name.to_owned()), "before it nobody, or another pod, had the port");
        wait(network.detach(name)).unwrap();
    }
}

/// By the table, since a kernel may lack the module sctp for sockets: nftables redirects it all the same.
#[test]
fn sctp_has_ports_of_its_own() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let both = Pod::new("both").port("8080:80/TCP").port("8080:81/SCTP");
    let ip = both.attach(&network).unwrap().ips[0];
    let table = lab.node.nft("list map inet netplug_test ports4");
    for element in [format!("tcp . 8080 : {ip} . 80"), format!("sctp . 8080 : {ip} . 81")] {
        assert!(table.contains(&element), "{element} in {table}");
    }
    let error = Pod::new("second").port("8080:80/SCTP").attach(&network).unwrap_err().to_string();
    assert!(error.contains("8080/SCTP is taken by pod default/both"), "{error}");
}

#[rstest]
#[case("8080:80/TCP", "8080:81/TCP")]
#[case("127.0.0.1:8080:80/TCP", "8080:81/TCP")]
#[case("8080:80/UDP", "0.0.0.0:8080:80/UDP")]
fn a_port_that_a_pod_has_is_refused_by_its_name(#[case] first: &str, #[case] second: &str) {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    Pod::new("first").port(first).attach(&network).unwrap();
    let error = Pod::new("second").port(second).attach(&network).unwrap_err();
    assert!(error.to_string().contains("is taken by pod default/first"), "{error}");
    assert_eq!(wait(network.attached()).unwrap().len(), 1, "nothing of the second is left");
}

#[test]
fn a_port_that_a_process_of_the_host_has_is_refused_by_its_name() {
    let lab = Lab::new();
    let _sshd = lab.node.serve(Tcp, "0.0.0.0:22", "sshd");
    let network = lab.open(lab.settings());
    let error = Pod::new("web").port("22:80/TCP").attach(&network).unwrap_err().to_string();
    let process = format!("({}) of the host", std::process::id());
    assert!(error.contains("host port 22/TCP is taken by process packets") && error.contains(&process), "{error}");
    Pod::new("other").port("22:80/UDP").attach(&network).unwrap();
}

#[rstest]
#[case::udp_on_one_address(Udp, "192.0.2.1:53", &["53:80/UDP", "192.0.2.1:53:80/UDP"], &["192.0.2.11:53:80/UDP", "53:80/TCP"])]
#[case::ipv6_alone(Tcp, "[2001:db8::1]:8080", &["8080:80/TCP", "[2001:db8::1]:8080:80/TCP"], &["192.0.2.1:8080:80/TCP"])]
#[case::loopback_alone(Tcp, "127.0.0.1:8080", &["8080:80/TCP", "127.0.0.1:8080:80/TCP"], &["192.0.2.1:8080:80/TCP"])]
#[case::both_families(Tcp, "[::]:8080", &["8080:80/TCP", "192.0.2.1:8080:80/TCP", "[::1]:8080:80/TCP"], &["8080:80/UDP"])]
fn a_process_of_the_host_has_a_port_where_it_listens(
    #[case] protocol: netplug::Protocol,
    #[case] address: &str,
    #[case] taken: &[&str],
    #[case] free: &[&str],
) {
    let lab = Lab::new();
    lab.node.ip("address add 192.0.2.11/24 dev up0");
    let network = lab.open(lab.dual_stack());
    let _server = lab.node.serve(protocol, address, "host");
    for port in taken {
        let error = Pod::new("pod").port(port).attach(&network).unwrap_err().to_string();
        let process = format!("({}) of the host", std::process::id());
        assert!(error.contains("is taken by process packets") && error.contains(&process), "{port}: {error}");
    }
    for port in free {
        Pod::new(&port.replace(['/', ':', '[', ']'], "-")).port(port).attach(&network).unwrap();
    }
    let answer = lab.node.ask(protocol, &address.replace("[::]", "[::1]")).unwrap();
    assert!(answer.starts_with("host "), "it isn't deaf: {answer}");
}

#[test]
fn a_port_of_the_other_family_is_free() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let _server = lab.node.serve(Tcp, &format!("[{NODE6}]:8080"), "host");
    Pod::new("pod").port("8080:80/TCP").attach(&network).unwrap();
    assert_eq!(lab.outside.ask(Tcp, &format!("[{NODE6}]:8080")), Ok(format!("host {OUTSIDE6}")));
}

/// Several have the number, each at an address of its own; and one only calls from it.
#[test]
fn of_several_processes_that_one_is_named_which_is_in_the_way() {
    const LISTEN: &str = r#"
        use Socket;
        my $here = pack_sockaddr_in(53, inet_aton("192.0.2.11"));
        my ($udp, $tcp);
        socket($udp, PF_INET, SOCK_DGRAM, 0) && bind($udp, $here) or die "udp: $!";
        socket($tcp, PF_INET, SOCK_STREAM, 0) && bind($tcp, $here) && listen($tcp, 1) or die "tcp: $!";
        $| = 1;
        print "ready\n";
        readline(STDIN);
    "#;
    let lab = Lab::new();
    lab.node.ip("address add 192.0.2.11/24 dev up0");
    let network = lab.open(lab.settings());
    let _own = [Udp, Tcp].map(|protocol| lab.node.serve(protocol, &format!("{NODE}:53"), "host"));
    let mut other = lab.node.run(|| {
        let mut perl = std::process::Command::new("perl");
        perl.args(["-e", LISTEN]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap()
    });
    std::io::BufRead::read_line(&mut std::io::BufReader::new(other.stdout.as_mut().unwrap()), &mut String::new()).unwrap();
    let _call = lab.node.run(|| std::net::TcpStream::connect("192.0.2.11:53").unwrap());
    for (address, name, pid) in [(NODE, "packets", std::process::id()), ("192.0.2.11", "perl", other.id())] {
        for protocol in ["TCP", "UDP"] {
            let port = format!("{address}:53:80/{protocol}");
            let error = Pod::new("pod").port(&port).attach(&network).unwrap_err().to_string();
            let (name, pid) = (format!("is taken by process {name}"), format!("({pid}) of the host"));
            assert!(error.contains(&name) && error.contains(&pid), "{port}: {error}");
        }
    }
    drop(other.stdin.take());
    other.wait().unwrap();
}

#[test]
fn pods_do_not_reach_the_loopback_of_the_host() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let _secret = lab.node.serve(Tcp, "127.0.0.1:6443", "secret");
    let pod = Pod::new("pod");
    pod.attach(&network).unwrap();
    pod.netns.ip("route add 127.0.0.0/8 via 10.88.0.1 dev eth0 table 7");
    pod.netns.ip("rule add pref 0 to 127.0.0.0/8 lookup 7");
    pod.netns.ip("rule del pref 0 lookup local");
    pod.netns.ip("rule add pref 1 lookup local");
    pod.netns.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap());
    pod.netns.assert_unreachable(Tcp, "127.0.0.1:6443");
    // The rule is what keeps it out: without it, packets come through. (A network that is open would put it back.)
    drop(network);
    lab.node.nft("flush chain inet netplug_test guard");
    assert_eq!(pod.netns.ask(Tcp, "127.0.0.1:6443"), Ok("secret 10.88.0.2".into()));
}

#[rstest]
#[case::without_br_netfilter("0")]
#[case::with_br_netfilter("1")]
fn isolated_pods_reach_only_the_world(#[case] br_netfilter: &'static str) {
    let lab = Lab::new();
    set_br_netfilter(&lab, br_netfilter);
    let network = lab.open(Settings { isolation: Isolation::Pods, ..lab.settings() });
    let (web, client) = (Pod::new("web").port("8080:80/TCP"), Pod::new("client"));
    let (web_net, _web) = web.up(&network);
    client.attach(&network).unwrap();
    client.netns.assert_unreachable(Tcp, &format!("{}:80", web_net.ips[0]));
    // Nor by the detour over the gateway.
    client.netns.ip("route replace 10.88.0.2/32 via 10.88.0.1");
    client.netns.assert_unreachable(Tcp, &format!("{}:80", web_net.ips[0]));
    // Nor by a host port.
    client.netns.assert_unreachable(Tcp, &format!("{NODE}:8080"));
    assert_eq!(lab.outside.ask(Tcp, &format!("{NODE}:8080")), Ok(format!("web ::ffff:{OUTSIDE}")));
    assert_eq!(lab.node.ask(Tcp, "127.0.0.1:8080"), Ok("web ::ffff:10.88.0.1".into()));
    let _world = lab.outside.serve(Tcp, &format!("{OUTSIDE}:80"), "world");
    assert_eq!(client.netns.ask(Tcp, &format!("{OUTSIDE}:80")), Ok(format!("world {NODE}")));
}

#[test]
fn the_mtu_is_the_uplinks() {
    let lab = Lab::new();
    lab.node.ip("link set up0 mtu 1400");
    let network = lab.open(lab.settings());
    let pod = Pod::new("pod");
    assert_eq!(pod.attach(&network).unwrap().mtu, 1400);
    assert!(pod.netns.ip("link show eth0").contains("mtu 1400 "));
    assert!(lab.node.ip("link show pods0").contains("mtu 1400 "));
}

#[test]
fn masquerade_can_be_off_and_has_exceptions() {
    let lab = Lab::new();
    lab.outside.ip("route add 10.88.0.0/24 via 192.0.2.1");
    let _world = lab.outside.serve(Tcp, &format!("{OUTSIDE}:80"), "world");
    for (settings, seen) in [
        (Settings { masquerade: false, ..lab.settings() }, "10.88.0.2"),
        (Settings { masquerade_except: vec!["192.0.2.0/24".parse().unwrap()], ..lab.settings() }, "10.88.0.2"),
        (Settings { masquerade_except: vec!["198.51.100.0/24".parse().unwrap()], ..lab.settings() }, NODE),
    ] {
        let network = lab.open(settings);
        let pod = Pod::new("pod");
        pod.attach(&network).unwrap();
        assert_eq!(pod.netns.ask(Tcp, &format!("{OUTSIDE}:80")), Ok(format!("world {seen}")));
        wait(network.close(Remove::All)).unwrap();
    }
}

/// Two nodes of a cluster, each with a part of the pods' range, and a way to the other's.
#[test]
fn pods_of_another_node_are_seen_by_their_own_addresses() {
    let lab = Lab::new();
    let node = |subnet: &str, name: &str| Settings {
        ranges: vec![range(subnet)],
        masquerade_except: vec!["10.88.0.0/16".parse().unwrap()],
        state_dir: lab.state.path().join(name),
        ..lab.routed()
    };
    lab.node.ip(&format!("route add 10.88.1.0/24 via {OUTSIDE}"));
    lab.outside.ip(&format!("route add 10.88.0.0/24 via {NODE}"));
    let here = lab.open(node("10.88.0.0/24", "here"));
    let settings = node("10.88.1.0/24", "there");
    let there = lab.outside.run(move || wait(Network::open(settings))).unwrap();
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let (a_net, _a) = a.up(&here);
    let (b_net, _b) = b.up(&there);
    assert_eq!(a.netns.ask(Tcp, &format!("{}:80", b_net.ips[0])), Ok(format!("b ::ffff:{}", a_net.ips[0])));
    assert_eq!(b.netns.ask(Tcp, &format!("{}:80", a_net.ips[0])), Ok(format!("a ::ffff:{}", b_net.ips[0])));
    let _world = lab.outside.serve(Tcp, &format!("{OUTSIDE}:80"), "world");
    assert_eq!(a.netns.ask(Tcp, &format!("{OUTSIDE}:80")), Ok(format!("world {NODE}")), "the world sees the node");
}

#[test]
fn dual_stack() {
    let lab = Lab::new();
    let before = lab.node.picture();
    let network = lab.open(lab.dual_stack());
    let (a, b) = (Pod::new("a").port("8080:80/TCP").port("[2001:db8::1]:8081:80/TCP"), Pod::new("b"));
    let (a_net, _a) = a.up(&network);
    let (b_net, _b) = b.up(&network);
    let _world = lab.outside.serve(Tcp, &format!("[{OUTSIDE6}]:80"), "world");
    assert_eq!(a_net.ips.len(), 2);

    assert_eq!(a.netns.ask(Tcp, &format!("[{}]:80", b_net.ips[1])), Ok(format!("b {}", a_net.ips[1])));
    assert_eq!(a.netns.ask(Tcp, &format!("{}:80", b_net.ips[0])), Ok(format!("b ::ffff:{}", a_net.ips[0])));
    assert_eq!(a.netns.ask(Tcp, &format!("[{OUTSIDE6}]:80")), Ok(format!("world {NODE6}")));
    for port in [8080, 8081] {
        assert_eq!(lab.outside.ask(Tcp, &format!("[{NODE6}]:{port}")), Ok(format!("a {OUTSIDE6}")));
        assert_eq!(b.netns.ask(Tcp, &format!("[{NODE6}]:{port}")), Ok("a fd00:88::1".into()));
        assert_eq!(a.netns.ask(Tcp, &format!("[{NODE6}]:{port}")), Ok("a fd00:88::1".into()));
    }
    assert_eq!(lab.outside.ask(Tcp, &format!("{NODE}:8080")), Ok(format!("a ::ffff:{OUTSIDE}")));
    lab.outside.assert_unreachable(Tcp, &format!("{NODE}:8081"));
    wait(network.close(Remove::All)).unwrap();
    assert_eq!(lab.node.picture(), before);
}

#[test]
fn ipv6_alone() {
    let lab = Lab::new();
    let network = lab.open(Settings { ranges: vec![range("fd00:88::/64")], ..lab.settings() });
    let pod = Pod::new("pod").port("8080:80/TCP");
    let (attached, _pod) = pod.up(&network);
    assert_eq!(attached.ips, ["fd00:88::2".parse::<IpAddr>().unwrap()]);
    assert_eq!(lab.node.ip("-6 address show dev pods0 tentative"), "", "the bridge may ask for pods at once");
    assert!(
        lab.node.ip("-6 address show dev pods0 scope link").contains("fe80::858:ff:fe00:1/64"),
        "as the kernel would have it"
    );
    assert_eq!(lab.outside.ask(Tcp, &format!("[{NODE6}]:8080")), Ok(format!("pod {OUTSIDE6}")));
}

#[test]
fn the_picture_is_what_the_kernel_has() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let web = Pod::new("web").port("8080:80/TCP");
    let attached = web.attach(&network).unwrap();
    let picture = || wait(network.picture()).unwrap();
    let seen = picture();
    let bridge = seen.bridge.clone().unwrap();
    assert_eq!(
        (bridge.name.as_str(), bridge.up, bridge.shown().contains(&"10.88.0.1/24".into())),
        ("pods0", true, true),
        "{seen:?}"
    );
    assert!(seen.table_stands && seen.strangers.is_empty(), "{seen:?}");
    let pod = &seen.pods[0];
    assert_eq!((&pod.lease.ips, &pod.lease.host_if, pod.in_place), (&attached.ips, &attached.host_if, true));
    assert!(pod.link.as_ref().is_some_and(|link| link.up), "{pod:?}");

    lab.node.ip("link add tap9 type veth peer name tap9x");
    lab.node.ip("link set tap9 master pods0");
    assert_eq!(picture().strangers.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["tap9"]);
    lab.node.ip(&format!("link delete {}", attached.host_if));
    assert!(picture().pods[0].link.is_none(), "what is gone is not shown as there");
}

/// A machine that somebody put into the bridge, and pods that are no ports of it.
#[test]
fn who_is_on_the_bridge_and_pods_reach_each_other() {
    let lab = Lab::new();
    let network = lab.open(lab.routed());
    let (attached, _server) = Pod::new("pod").up(&network);
    let machine = lab::Netns::new();
    lab.node.connect("machine", "192.0.3.1/24", &machine, "eth0", "10.88.0.200/24");
    lab.node.ip("link set machine master pods0");
    let answer = machine.ask(Tcp, &format!("{}:80", attached.ips[0]));
    assert_eq!(answer, Ok("pod ::ffff:10.88.0.200".into()));
    let _server = machine.serve(Tcp, "[::]:80", "machine");
    let pod = Pod::new("client");
    let ip = pod.attach(&network).unwrap().ips[0];
    assert_eq!(pod.netns.ask(Tcp, "10.88.0.200:80"), Ok(format!("machine ::ffff:{ip}")));
}

#[test]
fn several_networks_on_one_node() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let second = Settings {
        bridge: "pods1".into(),
        ranges: vec![range("10.89.0.0/24")],
        table: "netplug_second".into(),
        state_dir: lab.state.path().join("second"),
        ..lab.settings()
    };
    let second = lab.open(second);
    let (a, b) = (Pod::new("a").port("8080:80/TCP"), Pod::new("b").port("8081:80/TCP"));
    let (_, _a) = a.up(&network);
    let (_, _b) = b.up(&second);
    assert_eq!(lab.outside.ask(Tcp, &format!("{NODE}:8080")), Ok(format!("a ::ffff:{OUTSIDE}")));
    assert_eq!(lab.outside.ask(Tcp, &format!("{NODE}:8081")), Ok(format!("b ::ffff:{OUTSIDE}")));
    wait(second.close(Remove::All)).unwrap();
    assert_eq!(lab.outside.ask(Tcp, &format!("{NODE}:8080")), Ok(format!("a ::ffff:{OUTSIDE}")), "the other one goes on");
}
/// The very first packet: an address of IPv6 is a pod's own when a worker of the kernel says so, which others of the machine may keep busy.
#[rstest]
fn a_pod_hears_what_comes_as_soon_as_it_is_attached(#[values(false, true)] routed: bool) {
    let lab = Lab::new();
    let network = lab.open(if routed { lab.routed() } else { lab.dual_stack() });
    let (enough, until) = std::sync::mpsc::channel::<()>();
    let others = Netns::new();
    let busy = std::thread::spawn(move || {
        while until.try_recv().is_err_and(|error| error == std::sync::mpsc::TryRecvError::Empty) {
            others.ip("link add other type bridge");
            others.ip("link delete other");
        }
    });
    for number in 0..10 {
        let pod = Pod::new(&format!("pod{number}"));
        let _server = pod.netns.serve(Udp, "[::]:80", "pod");
        let attached = pod.attach(&network).unwrap();
        for ip in &attached.ips {
            // One datagram alone.
            lab.node.ask(Udp, &std::net::SocketAddr::new(*ip, 80).to_string()).unwrap();
        }
    }
    drop(enough);
    busy.join().unwrap();
}
