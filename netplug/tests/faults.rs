//! What crashes, hands and other people's networks do to it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::{fs, net::IpAddr, time::Duration};

use lab::{Lab, NODE, OUTSIDE, Pod, range, wait};
use netplug::{
    Network,
    Protocol::{Tcp, Udp},
    Range, Remove, Settings,
};
use rstest::rstest;

#[test]
fn attaching_twice_is_attaching_once() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let pod = Pod::new("pod").port("8080:80/TCP");
    let first = pod.attach(&network).unwrap();
    let (node, inside) = (lab.node.picture(), pod.netns.picture());
    let second = pod.attach(&network).unwrap();
    assert_eq!((first.ips, first.host_if, first.mac), (second.ips, second.host_if, second.mac));
    assert_eq!((lab.node.picture(), pod.netns.picture()), (node, inside));
}

#[test]
fn ports_are_those_of_the_last_attachment() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let mut pod = Pod::new("pod").port("8080:80/TCP");
    let (_, _server) = pod.up(&network);
    pod.ports = vec![lab::port("8081:80/TCP")];
    pod.attach(&network).unwrap();
    assert_eq!(lab.outside.ask(Tcp, &format!("{NODE}:8081")), Ok(format!("pod ::ffff:{OUTSIDE}")));
    lab.outside.assert_unreachable(Tcp, &format!("{NODE}:8080"));
    Pod::new("other").port("8080:80/TCP").attach(&network).unwrap();
}

#[rstest]
#[case::link_deleted("link delete $veth")]
#[case::link_down("link set $veth down")]
#[case::link_out_of_the_bridge("link set $veth nomaster")]
#[case::link_in_no_group("link set $veth group 0")]
#[case::route_deleted("route delete $ip")]
#[case::bridge_deleted("link delete pods0")]
fn attaching_again_mends_the_host(#[case] harm: &str, #[values(false, true)] routed: bool) {
    let lab = Lab::new();
    if !routed && harm.starts_with("route") {
        return;
    }
    let network = lab.open(if routed { lab.routed() } else { lab.settings() });
    let pod = Pod::new("pod").port("8080:80/TCP");
    let (first, _server) = pod.up(&network);
    lab.node.ip(&harm.replace("$veth", &first.host_if).replace("$ip", &first.ips[0].to_string()));
    let second = pod.attach(&network).unwrap();
    assert_eq!(first.ips, second.ips);
    assert_eq!(lab.outside.ask(Tcp, &format!("{NODE}:8080")), Ok(format!("pod ::ffff:{OUTSIDE}")));
}

#[rstest]
#[case::link_down("ip link set $veth down")]
#[case::link_out_of_the_bridge("ip link set $veth nomaster")]
#[case::bridge_deleted("ip link delete pods0")]
#[case::bridge_down("ip link set pods0 down")]
#[case::addresses_removed("ip address flush dev pods0")]
#[case::address_removed("ip address delete 10.88.0.1/24 dev pods0")]
#[case::ruleset_flushed("nft flush ruleset")]
#[case::table_deleted("nft delete table inet netplug_test")]
#[case::chain_flushed("nft flush chain inet netplug_test ports")]
#[case::port_deleted("nft flush map inet netplug_test ports4")]
fn what_somebody_takes_away_is_put_back(#[case] harm: &str, #[values(false, true)] routed: bool) {
    let lab = Lab::new();
    put_back(&lab, if routed { lab.routed() } else { lab.dual_stack() }, harm);
}

#[rstest]
#[case::group("ip link set $veth group 0")]
#[case::mac("ip link set $veth address 02:00:00:00:00:01")]
#[case::way_elsewhere("ip route replace $ip4 dev pods0")]
#[case::forwarding("sysctl -qw net.ipv4.ip_forward=0")]
#[case::forwarding_of_ipv6("sysctl -qw net.ipv6.conf.all.forwarding=0")]
#[case::put_into_a_bridge("ip link set $veth master pods0")]
#[case::way("ip route delete $ip4")]
#[case::way_by_ipv6("ip -6 route delete $ip6")]
#[case::all_ways("ip route flush dev $veth")]
fn what_somebody_takes_away_of_a_link_of_its_own_is_put_back(#[case] harm: &str) {
    let lab = Lab::new();
    put_back(&lab, lab.routed(), harm);
}

fn put_back(lab: &Lab, settings: Settings, harm: &str) {
    let network = lab.open(settings);
    let pod = Pod::new("pod").port("8080:80/TCP");
    let (attached, _server) = pod.up(&network);
    for again in ["", " again"] {
        // But for the bridge's number, all is as it was.
        let picture = || {
            let addresses = lab.node.command("ip", "-o -4 address show dev pods0").unwrap_or_default();
            let addresses = addresses.split_once(' ').map(|(_, rest)| rest.to_owned());
            let routes = ["-4", "-6"].map(|family| lab.node.ip(&format!("{family} route list dev {}", attached.host_if)));
            let link = lab.node.ip(&format!("-o link show {}", attached.host_if));
            let (group, mac) = (word_after(&link, "group"), word_after(&link, "link/ether"));
            (addresses, lab.node.nft("list ruleset"), routes, group, mac, lab.node.forwards())
        };
        let before = picture();
        let harm = harm.replace("$veth", &attached.host_if);
        let harm = harm.replace("$ip4", &attached.ips[0].to_string()).replace("$ip6", &attached.ips[1].to_string());
        let (program, args) = harm.split_once(' ').unwrap();
        lab.node.command(program, args).unwrap();
        lab::eventually(&format!("{harm}{again} is mended"), || picture() == before);
        lab::eventually("by IPv4", || lab.outside.ask(Tcp, &format!("{NODE}:8080")) == Ok(format!("pod ::ffff:{OUTSIDE}")));
        lab::eventually("by IPv6", || lab.node.ask(Tcp, &format!("[{}]:80", attached.ips[1])).is_ok());
    }
    wait(network.close(Remove::All)).unwrap();
}

fn word_after(text: &str, word: &str) -> String {
    text.split_whitespace().skip_while(|found| *found != word).nth(1).unwrap_or_default().to_owned()
}

/// Their links were ports of the bridge, without IPv6, and the pods asked by ARP and neighbour discovery for their gateway.
#[test]
fn pods_of_an_agent_before_get_links_of_their_own() {
    let lab = Lab::new();
    let network = lab.open(lab.routed());
    let (pod, other) = (Pod::new("pod"), Pod::new("other"));
    let (attached, _server) = pod.up(&network);
    other.attach(&network).unwrap();
    drop(network);
    lab.node.ip(&format!("link set {} group 0 address 02:00:00:00:00:01 master pods0", attached.host_if));
    lab.node.command("sysctl", &format!("-qw net.ipv6.conf.{}.disable_ipv6=1", attached.host_if)).unwrap();
    pod.netns.ip("neigh flush dev eth0 nud permanent");
    pod.netns.ip("-6 neigh flush dev eth0 nud permanent");
    let network = lab.open(lab.routed());
    let mut severed = wait(network.severed()).unwrap();
    assert_eq!(severed.try_recv().ok(), Some("pod".into()), "who has to be attached again");
    let again = pod.attach(&network).unwrap();
    assert_eq!((again.ips.clone(), again.host_if), (attached.ips, attached.host_if));
    for ip in again.ips {
        let source: IpAddr = if ip.is_ipv4() { "10.88.0.1" } else { "fd00:88::1" }.parse().unwrap();
        let source = if source.is_ipv4() { format!("::ffff:{source}") } else { source.to_string() };
        assert_eq!(lab.node.ask(Tcp, &std::net::SocketAddr::new(ip, 80).to_string()), Ok(format!("pod {source}")));
    }
    drop(network);
    assert_eq!(wait(severed.recv()), None, "the other one was in order");
}

#[test]
fn strangers_routes_are_no_harm() {
    let lab = Lab::new();
    let _network = lab.open(lab.routed());
    let handle = || lab.node.nft("-a list tables");
    let before = handle();
    for table in ["main", "52"] {
        lab.node.ip(&format!("route add 203.0.113.7/32 via {OUTSIDE} table {table}"));
        lab.node.ip(&format!("route delete 203.0.113.7/32 table {table}"));
    }
    // And what is harm is mended without a new table, which would forget the sessions of Services.
    lab.node.ip("address flush dev pods0");
    lab::eventually("mended", || lab.node.ip("address show dev pods0").contains("10.88.0.1/24"));
    assert_eq!(handle(), before);
}

#[test]
fn a_bridge_with_anothers_pods_is_left_alone() {
    for routed in [false, true] {
        let lab = Lab::new();
        let settings = || if routed { lab.routed() } else { lab.settings() };
        let network = lab.open(settings());
        let (attached, _server) = Pod::new("pod").up(&network);
        let other = Settings { ranges: vec![range("10.89.0.0/24")], state_dir: lab.state.path().join("other"), ..settings() };
        let error = lab.try_open(other).unwrap_err().to_string();
        assert!(error.contains("bridge pods0: serves pods with address 10.88.0.1/24"), "{error}");
        assert!(lab.node.ask(Tcp, &format!("{}:80", attached.ips[0])).is_ok());
    }
}

#[test]
fn a_pod_that_loses_its_link_is_told_of() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let mut severed = wait(network.severed()).unwrap();
    let [pod, released, detached] = ["pod", "released", "detached"].map(Pod::new);
    let (first, _server) = pod.up(&network);
    released.attach(&network).unwrap();
    detached.attach(&network).unwrap();
    wait(network.detach("detached")).unwrap();
    wait(network.release_when_netns_dies("released")).unwrap();
    drop(released);
    lab.node.ip(&format!("link delete {}", first.host_if));
    assert_eq!(wait(severed.recv()), Some("pod".into()));
    assert_eq!(pod.attach(&network).unwrap().ips, first.ips);
    assert_eq!(lab.node.ask(Tcp, &format!("{}:80", first.ips[0])), Ok("pod ::ffff:10.88.0.1".into()));
    drop(network);
    assert_eq!(wait(severed.recv()), None, "nothing else, and the end");
}

/// The table's handle tells whether it was made anew.
#[test]
fn its_own_doings_are_no_harm() {
    let lab = Lab::new();
    let network = lab.open(lab.dual_stack());
    let handle = || lab.node.nft("-a list tables");
    let before = handle();
    for round in 0..5 {
        let pods: Vec<Pod> = (0..3).map(|n| Pod::new(&format!("pod{n}")).port(&format!("{}:80/TCP", 8000 + n))).collect();
        for pod in &pods {
            pod.attach(&network).unwrap();
        }
        if round % 2 == 0 {
            wait(network.release_when_netns_dies("pod0")).unwrap();
        }
        wait(network.detach("pod1")).unwrap();
        drop(pods);
        wait(network.retain(&[])).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    wait(network.attached()).unwrap();
    assert_eq!(handle(), before);
}

/// A link that dies is down and out of the bridge first, and its pod may be released later than that is told.
#[test]
fn the_end_of_a_pods_namespace_is_no_harm() {
    let lab = Lab::new();
    let network = lab.open(lab.dual_stack());
    let mut severed = wait(network.severed()).unwrap();
    let handle = || lab.node.nft("-a list tables");
    let before = handle();
    for round in 0..5 {
        let pods: Vec<Pod> = (0..3).map(|n| Pod::new(&format!("pod{round}-{n}"))).collect();
        for pod in &pods {
            pod.attach(&network).unwrap();
        }
        drop(pods);
        for _ in 0..3 {
            wait(severed.recv()).unwrap();
        }
        wait(network.retain(&[])).unwrap();
    }
    assert_eq!(handle(), before);
}

#[rstest]
#[case::down("link set eth0 down")]
#[case::no_address("address flush dev eth0")]
#[case::another_address("address add 10.88.0.99/24 dev eth0")]
#[case::no_route("route delete default")]
#[case::another_mac("link set eth0 address 02:00:00:00:00:01")]
fn attaching_again_mends_the_pod(#[case] harm: &str) {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let pod = Pod::new("pod").port("8080:80/TCP");
    let (_, _server) = pod.up(&network);
    let before = pod.netns.picture();
    pod.netns.ip(harm);
    pod.attach(&network).unwrap();
    assert_eq!(pod.netns.picture(), before);
    assert_eq!(lab.outside.ask(Tcp, &format!("{NODE}:8080")), Ok(format!("pod ::ffff:{OUTSIDE}")));
}

#[test]
fn a_new_process_goes_on_where_the_old_one_was_killed() {
    let lab = Lab::new();
    let pod = Pod::new("pod").port("8080:80/TCP");
    let network = lab.open(lab.settings());
    let (first, _server) = pod.up(&network);
    let picture = lab.node.picture();
    drop(network);
    fs::write(lab.state.path().join("net/half.new"), "{").unwrap();

    let network = lab.open(lab.settings());
    assert_eq!(lab.node.picture(), picture);
    assert!(!lab.state.path().join("net/half.new").exists());
    assert_eq!(lab.outside.ask(Tcp, &format!("{NODE}:8080")), Ok(format!("pod ::ffff:{OUTSIDE}")));
    assert_eq!(pod.attach(&network).unwrap().ips, first.ips);
    assert_ne!(Pod::new("other").attach(&network).unwrap().ips, first.ips);
}

/// What a process of its own is told: where the state is, the pod's namespace and its ports.
const ORDER: &str = "NETPLUG_TEST_ATTACH";

/// An agent that opens the network and attaches the pod.
fn be_an_agent(order: &str) {
    let [state, netns, ports] = order.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
    let netns = fs::File::open(netns).unwrap();
    let inside = netns.try_clone().unwrap();
    let netlink = std::thread::spawn(move || {
        nix::sched::setns(inside, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        lab::netlink_socket()
    });
    let network = wait(Network::open(lab::routed_in(state.as_ref()))).unwrap();
    let attachment = netplug::Attachment {
        uid: "pod",
        pod: "default/pod",
        netns: std::os::fd::AsFd::as_fd(&netns),
        netlink: netlink.join().unwrap(),
        ports: ports.split_terminator(' ').map(lab::port).collect(),
        fixed: Vec::new(),
        bandwidth: None,
    };
    wait(network.attach(attachment)).unwrap();
    // Some time later its link is made ready for the direct way, which is for pods without ports.
    while ports.is_empty() && wait(network.picture()).unwrap().pods[0].not_direct.is_some() {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::process::exit(0);
}

/// Whatever the agent was just about to do when it was killed: the next one, which finds the pod, wires it; and one whose pod is gone leaves
/// nothing.
#[rstest]
#[case("sendto", "8080:80/TCP 53:80/UDP")]
#[case("rename", "")]
#[case("bpf", "")]
fn an_agent_is_killed_at_each_step(#[case] syscall: &str, #[case] ports: &str) {
    if let Ok(order) = std::env::var(ORDER) {
        return be_an_agent(&order);
    }
    let this = std::thread::current().name().unwrap().to_owned();
    let lab = Lab::new();
    let picture = || lab.node.picture() + &lab.node.ip("-6 route show");
    let before = picture();
    for step in 1..200 {
        let pod = Pod::new("pod").port("8080:80/TCP").port("53:80/UDP");
        let order = format!("{} {} {ports}", lab.state.path().display(), pod.netns.path());
        let (call, this) = (syscall.to_owned(), this.clone());
        let output = lab.node.run(move || {
            let mut strace = std::process::Command::new("strace");
            strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
            strace.args(["-e", &format!("inject={call}:signal=SIGKILL:when={step}")]);
            strace.arg(std::env::current_exe().unwrap()).args(["--exact", &this]).env(ORDER, order);
            strace.output().expect("install strace")
        });
        let came_through = output.status.success();
        let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
        assert!(came_through || killed, "{step}: {output:?}");
        let network = lab.open(lab.routed());
        if step % 2 == 0 {
            drop(pod);
            wait(network.retain(&[])).unwrap();
        } else {
            let (attached, _server) = pod.up(&network);
            let _udp = pod.netns.serve(Udp, "[::]:80", "pod");
            for (protocol, port) in [(Tcp, 8080), (Udp, 53)] {
                assert_eq!(lab.outside.ask(protocol, &format!("{NODE}:{port}")), Ok(format!("pod ::ffff:{OUTSIDE}")), "{step}");
            }
            assert!(lab.node.ask(Tcp, &format!("[{}]:80", attached.ips[1])).is_ok(), "{step}");
            let other = Pod::new("other");
            other.attach(&network).unwrap();
            for ip in &attached.ips {
                assert!(other.netns.ask(Tcp, &std::net::SocketAddr::new(*ip, 80).to_string()).is_ok(), "{step}");
            }
        }
        wait(network.close(Remove::All)).unwrap();
        assert_eq!(picture(), before, "{step}");
        assert!(!lab.state.path().join("net").exists(), "{step}");
        if came_through {
            println!("{step} steps");
            assert!(step > 1, "{syscall} is never called");
            return;
        }
    }
    panic!("{syscall}: there is no end to it");
}

#[test]
fn a_lease_without_link_is_honoured() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let first = Pod::new("pod").attach(&network).unwrap(); // and its namespace ends
    let pod = Pod::new("pod");
    let (second, _server) = pod.up(&network);
    assert_eq!(first.ips, second.ips);
    assert_eq!(lab.node.ask(Tcp, &format!("{}:80", second.ips[0])), Ok("pod ::ffff:10.88.0.1".into()));
}

#[test]
fn a_pod_without_lease_keeps_its_address() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let pod = Pod::new("pod");
    pod.attach(&network).unwrap();
    let first = Pod::new("second");
    let (attached, _server) = first.up(&network);
    drop(network);
    fs::remove_dir_all(lab.state.path().join("net")).unwrap();
    let network = lab.open(lab.settings());
    assert_eq!(first.attach(&network).unwrap().ips, attached.ips);
    assert_eq!(wait(network.attached()).unwrap().len(), 1);
}

/// As a loss of power leaves files on a disk.
#[rstest]
#[case::empty("")]
#[case::half("{\"uid\":\"pod\",\"pod\":\"default/pod\",\"ips\":[\"10.")]
#[case::zeros("\0\0\0\0")]
fn a_broken_lease_is_set_aside_and_its_pod_keeps_its_address(#[case] text: &str, #[values(false, true)] routed: bool) {
    let lab = Lab::new();
    let settings = || Settings { reuse_after: Duration::from_secs(3600), ..if routed { lab.routed() } else { lab.settings() } };
    let network = lab.open(settings());
    let [pod, other, gone] = ["pod", "other", "gone"].map(Pod::new);
    let (ips, other_ips) = (pod.attach(&network).unwrap().ips, other.attach(&network).unwrap().ips);
    gone.attach(&network).unwrap();
    wait(network.detach("gone")).unwrap();
    drop(network);
    let dir = lab.state.path().join("net");
    for name in ["pod.lease", "1.released"] {
        fs::write(dir.join(name), text).unwrap();
    }
    let network = lab.open(settings());
    let known: Vec<String> = wait(network.attached()).unwrap().into_iter().map(|lease| lease.uid).collect();
    assert_eq!(known, ["other"]);
    for name in ["pod.lease.broken", "1.released.broken"] {
        assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), text);
    }
    assert_eq!(pod.attach(&network).unwrap().ips, ips);
    assert_eq!(other.attach(&network).unwrap().ips, other_ips);
    let _server = pod.netns.serve(Tcp, "0.0.0.0:80", "pod");
    lab.node.ask(Tcp, &format!("{}:80", ips[0])).unwrap();
    wait(network.close(Remove::All)).unwrap();
    assert!(!dir.exists());
}

/// What is whole but says something else was written by another version: not for this one to pass over.
#[test]
fn a_lease_that_is_not_understood_is_an_error_that_names_it() {
    let lab = Lab::new();
    drop(lab.open(lab.settings()));
    fs::write(lab.state.path().join("net/pod.lease"), r#"{"uid": 7}"#).unwrap();
    let error = lab.try_open(lab.settings()).unwrap_err().to_string();
    assert!(error.contains("read the lease") && error.contains("net/pod.lease"), "{error}");
}

#[test]
fn a_failed_attachment_leaves_nothing() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let pod = Pod::new("pod").port("8080:80/TCP");
    pod.netns.ip("link add name eth0 type bridge");
    let before = lab.node.picture();
    let error = pod.attach(&network).unwrap_err().to_string();
    assert!(error.contains("has an interface eth0 already"), "{error}");
    assert_eq!(lab.node.picture(), before);
    assert_eq!(wait(network.attached()).unwrap(), []);
    pod.netns.ip("link delete eth0");
    assert_eq!(pod.attach(&network).unwrap().ips, ["10.88.0.2".parse::<IpAddr>().unwrap()]);
}

#[test]
fn retain_frees_all_others() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let keep = Pod::new("keep").port("8080:80/TCP");
    let (_, _server) = keep.up(&network);
    let before = lab.node.picture();
    let gone: Vec<Pod> = (0..5).map(|n| Pod::new(&format!("gone{n}")).port(&format!("{}:80/TCP", 9000 + n))).collect();
    for pod in &gone {
        pod.attach(&network).unwrap();
    }
    wait(network.release_when_netns_dies("gone0")).unwrap();
    wait(network.retain(&["keep", "unknown"])).unwrap();
    assert_eq!(lab.node.picture(), before);
    assert_eq!(wait(network.attached()).unwrap().len(), 1);
    assert_eq!(lab.outside.ask(Tcp, &format!("{NODE}:8080")), Ok(format!("keep ::ffff:{OUTSIDE}")));
}

#[test]
fn the_end_of_a_namespace_removes_the_link() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let before = lab.node.picture();
    let pod = Pod::new("pod").port("8080:80/TCP");
    let attached = pod.attach(&network).unwrap();
    wait(network.release_when_netns_dies("pod")).unwrap();
    drop(pod);
    // The kernel's work queue does it; nothing tells when.
    while lab.node.ip("link show").contains(&attached.host_if) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(lab.node.picture(), before);
}

#[test]
fn a_full_range_says_so() {
    let lab = Lab::new();
    let small = Range { exclude: vec!["10.88.0.4-10.88.0.5".parse().unwrap()], ..range("10.88.0.0/29") };
    let network = lab.open(Settings { ranges: vec![small], ..lab.settings() });
    let pods: Vec<Pod> = (0..4).map(|n| Pod::new(&format!("pod{n}"))).collect();
    let ips: Vec<String> = pods[..3].iter().map(|pod| pod.attach(&network).unwrap().ips[0].to_string()).collect();
    assert_eq!(ips, ["10.88.0.2", "10.88.0.3", "10.88.0.6"]);
    let error = pods[3].attach(&network).unwrap_err().to_string();
    assert_eq!(error, "pod default/pod3: range 10.88.0.0/29 is full (3 of 3): end pods, or add a range");
    wait(network.detach("pod1")).unwrap();
    assert_eq!(pods[3].attach(&network).unwrap().ips[0].to_string(), "10.88.0.3");
}

#[test]
fn an_address_rests_also_across_processes() {
    let lab = Lab::new();
    let settings = Settings { ranges: vec![range("10.88.0.0/30")], reuse_after: Duration::from_secs(3600), ..lab.settings() };
    let network = lab.open(settings.clone());
    Pod::new("first").attach(&network).unwrap();
    wait(network.release_when_netns_dies("first")).unwrap();
    let network = lab.open(settings);
    let error = Pod::new("second").attach(&network).unwrap_err().to_string();
    assert!(error.contains("range 10.88.0.0/30 has no address free (0 of 1 used, the rest was released just now)"), "{error}");
}

#[test]
fn fixed_addresses() {
    let lab = Lab::new();
    let network = lab.open(lab.dual_stack());
    let fixed = |name: &str, ips: &[&str]| Pod { fixed: ips.iter().map(|ip| ip.parse().unwrap()).collect(), ..Pod::new(name) };
    let show = |pod: &Pod| pod.attach(&network).map(|found| found.ips).map_err(|error| error.to_string());
    let ips = |ips: &[&str]| Ok(ips.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect::<Vec<_>>());
    assert_eq!(show(&fixed("a", &["10.88.0.77"])), ips(&["10.88.0.77", "fd00:88::2"]));
    assert_eq!(show(&fixed("b", &["fd00:88::77", "10.88.0.2"])), ips(&["10.88.0.2", "fd00:88::77"]));
    for (ip, problem) in [
        ("10.88.0.77", "address 10.88.0.77 is another pod's"),
        ("10.88.0.1", "address 10.88.0.1 is the gateway's"),
        ("10.99.0.1", "address 10.99.0.1 is in none of the network's ranges"),
    ] {
        let error = show(&fixed("c", &[ip])).unwrap_err();
        assert!(error.contains(problem), "{error}");
    }
    assert_eq!(show(&Pod::new("d")), ips(&["10.88.0.3", "fd00:88::3"]), "refusals cost no address");
}

/// A machine that somebody put on the bridge has addresses of the pods' range.
#[test]
fn addresses_in_use_elsewhere() {
    let lab = Lab::new();
    let ranges = vec![range("10.88.0.0/29"), range("fd00:88::/64")];
    let network = lab.open(Settings { ranges, probe: Some(Duration::from_millis(500)), ..lab.routed() });
    let stranger = lab::Netns::new();
    lab.node.connect("stranger", "192.0.3.1/24", &stranger, "eth0", "10.88.0.2/29");
    lab.node.ip("link set stranger master pods0");
    stranger.ip("address add fd00:88::2/64 dev eth0 nodad");
    stranger.ip("link set eth0 address 02:00:00:00:00:01");
    let ips = |pod: &Pod| pod.attach(&network).map(|found| found.ips).map_err(|error| error.to_string());
    let expected: Vec<IpAddr> = vec!["10.88.0.3".parse().unwrap(), "fd00:88::3".parse().unwrap()];
    let pod = Pod::new("pod");
    assert_eq!(ips(&pod), Ok(expected.clone()));
    assert_eq!(ips(&pod), Ok(expected), "its own is its own");
    let fixed = Pod { fixed: vec!["10.88.0.2".parse().unwrap()], ..Pod::new("fixed") };
    let error = ips(&fixed).unwrap_err();
    assert!(error.contains("default/fixed: address 10.88.0.2 is in use on the bridge by 02:00:00:00:00:01"), "{error}");
    let _server = pod.netns.serve(Tcp, "[::]:80", "pod");
    assert_eq!(lab.node.ask(Tcp, "10.88.0.3:80"), Ok("pod ::ffff:10.88.0.1".into()), "the question is forgotten");

    // All that are left are somebody's: an error, not an endless search.
    for ip in 4..=6 {
        stranger.ip(&format!("address add 10.88.0.{ip}/29 dev eth0"));
    }
    let error = ips(&Pod::new("last")).unwrap_err();
    assert!(error.contains("is in use on the bridge by 02:00:00:00:00:01"), "{error}");
    assert_eq!(wait(network.attached()).unwrap().len(), 1);
}

#[test]
fn a_uid_is_no_path() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    for uid in ["../../etc/cron.d/x", "", ".hidden", "a/b", "nul\0"] {
        let error = Pod::new(uid).attach(&network).unwrap_err().to_string();
        assert!(error.contains("UID"), "{error}");
    }
}

#[test]
fn a_link_name_that_is_taken() {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let name = Pod::new("pod").attach(&network).unwrap().host_if;
    wait(network.detach("pod")).unwrap();
    lab.node.ip(&format!("link add {name} type bridge"));
    let pod = Pod::new("pod");
    let (attached, _server) = pod.up(&network);
    assert_ne!(attached.host_if, name);
    assert_eq!(lab.node.ask(Tcp, &format!("{}:80", attached.ips[0])), Ok("pod ::ffff:10.88.0.1".into()));
    wait(network.close(Remove::All)).unwrap();
    assert!(lab.node.ip("link show").contains(&name), "a stranger's link stays");
    lab.node.ip(&format!("link delete {name}"));
}

#[rstest]
#[case("link add pods0 type veth peer name x", "bridge pods0: is a Veth, not a bridge")]
#[case("link add pods0 type bridge", "bridge pods0: exists with address none; the settings say 10.88.0.1/24")]
fn a_bridge_that_is_somebody_elses(#[case] command: &str, #[case] complaint: &str) {
    let lab = Lab::new();
    lab.node.ip(command);
    let before = lab.node.picture();
    let error = lab.try_open(lab.settings()).unwrap_err().to_string();
    assert!(error.to_lowercase().contains(&complaint.to_lowercase()), "{error}");
    assert_eq!(lab.node.picture(), before);
}

#[test]
fn an_equal_bridge_is_adopted_and_stays() {
    let lab = Lab::new();
    lab.node.ip("link add pods0 type bridge");
    lab.node.ip("address add 10.88.0.1/24 dev pods0");
    lab.node.ip("link set pods0 up");
    let network = lab.open(lab.settings());
    let pod = Pod::new("pod");
    let (attached, _server) = pod.up(&network);
    assert_eq!(lab.node.ask(Tcp, &format!("{}:80", attached.ips[0])), Ok("pod ::ffff:10.88.0.1".into()));
    wait(network.close(Remove::All)).unwrap();
    assert!(lab.node.ip("address show pods0").contains("10.88.0.1/24"));
}

#[test]
fn another_subnet_needs_an_empty_network() {
    let lab = Lab::new();
    let other = Settings { ranges: vec![range("10.89.0.0/24")], ..lab.settings() };
    let network = lab.open(lab.settings());
    let pod = Pod::new("pod");
    pod.attach(&network).unwrap();
    drop(network);
    let error = lab.try_open(other.clone()).unwrap_err().to_string();
    assert!(error.contains("pod default/pod") && error.contains("10.88.0.2"), "{error}");
    let network = lab.open(lab.settings());
    wait(network.detach("pod")).unwrap();
    drop(network);
    lab.open(other);
    let addresses = lab.node.ip("-o -4 address show dev pods0");
    assert!(addresses.contains("10.89.0.1/24") && !addresses.contains("10.88"), "{addresses}");
}

#[test]
fn a_route_of_the_host_is_in_the_way() {
    let lab = Lab::new();
    lab.node.ip("route add 10.88.0.0/16 via 192.0.2.2");
    let error = lab.try_open(lab.settings()).unwrap_err().to_string();
    let complaint = "ranges[0].subnet: 10.88.0.0/24 overlaps the host's route to 10.88.0.0/16 by up0";
    assert!(error.contains(complaint), "{error}");
}

/// The host is in the way: what needs the network is refused with the reason, what ends is taken back, and the end of it is noticed.
#[rstest]
#[case::a_route(
    "ip route add 10.88.0.0/16 via 192.0.2.2",
    "ip route delete 10.88.0.0/16",
    "overlaps the host's route to 10.88.0.0/16 by up0"
)]
#[case::a_vpn("ip link add vpn0 type bridge", "ip link delete vpn0", "overlaps the host's route to 10.88.0.128/25 by vpn0")]
#[case::a_bridge(
    "ip link add pods0 type bridge",
    "ip link delete pods0",
    "bridge pods0: exists with address none; the settings say 10.88.0.1/24"
)]
#[case::no_bridge("ip link add pods0 type veth peer name x", "ip link delete pods0", "bridge pods0: is a Veth, not a bridge")]
fn a_network_waits_until_the_host_is_mended(#[case] harm: &str, #[case] mend: &str, #[case] complaint: &str) {
    let lab = Lab::new();
    let network = lab.open(lab.settings());
    let [stays, goes] = ["stays", "goes"].map(Pod::new);
    let first = stays.attach(&network).unwrap();
    goes.attach(&network).unwrap();
    drop(network);
    lab.node.ip("link delete pods0");
    let command = |words: &str| {
        let (program, args) = words.split_once(' ').unwrap();
        lab.node.command(program, args).unwrap()
    };
    command(harm);
    if harm.contains("vpn0") {
        command("ip address add 10.88.0.129/25 dev vpn0");
        command("ip link set vpn0 up");
    }
    let before = lab.node.ip("-o link show");
    let settings = lab.settings();
    let network = lab.node.run(move || wait(Network::open_or_wait(settings))).unwrap();
    let trouble = network.trouble();
    let told = trouble.borrow().clone().unwrap();
    assert!(told.to_lowercase().contains(&complaint.to_lowercase()), "{told}");
    let refused = Pod::new("new").attach(&network).unwrap_err().to_string();
    assert_eq!(refused, format!("the pod network is not up yet: {told}"));
    wait(network.release_when_netns_dies("goes")).unwrap();
    wait(network.release_when_netns_dies("unknown")).unwrap();
    // Something else happens.
    command("ip link add other type bridge");
    command("ip link delete other");
    assert_eq!(lab.node.ip("-o link show").lines().count(), before.lines().count(), "nothing was made");

    command(mend);
    wait(network.up());
    assert_eq!(trouble.borrow().clone(), None);
    let leases: Vec<String> = wait(network.attached()).unwrap().into_iter().map(|lease| lease.uid).collect();
    assert_eq!(leases, ["stays"]);
    let (again, _server) = stays.up(&network);
    assert_eq!(again.ips, first.ips);
    assert_eq!(lab.node.ask(Tcp, &format!("{}:80", first.ips[0])), Ok("stays ::ffff:10.88.0.1".into()));
}

#[test]
fn a_network_that_waits_can_be_left() {
    let lab = Lab::new();
    lab.node.ip("route add 10.88.0.0/16 via 192.0.2.2");
    let before = lab.node.picture();
    let settings = lab.settings();
    let network = lab.node.run(move || wait(Network::open_or_wait(settings))).unwrap();
    wait(network.retain(&["none"])).unwrap();
    wait(network.close(Remove::All)).unwrap();
    assert_eq!(lab.node.picture(), before);
}

#[rstest]
#[case("", "bridge: \"\" must have 1 to 15 bytes")]
#[case("a-bridge-too-far", "bridge: \"a-bridge-too-far\" must have 1 to 15 bytes")]
#[case("br/0", "bridge: \"br/0\" may have letters")]
fn settings_name_the_field(#[case] bridge: &str, #[case] complaint: &str) {
    let error = Settings { bridge: bridge.into(), ..Settings::default() }.check().unwrap_err().to_string();
    assert!(error.contains(complaint), "{error}");
}
