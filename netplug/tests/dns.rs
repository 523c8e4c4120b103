//! The resolver at its sockets: pods, the host and others ask it, and it asks a resolver "outside", or one of the host's own.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use lab::{Lab, NODE, Netns, OUTSIDE, Pod, eventually};
use netplug::{
    Network,
    Protocol::{self, Tcp, Udp},
    dns::{Entry, Resolver, Target, Zone},
};
use rstest::rstest;
use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord,
    rdata::{A, OPT, OPTCode, RData},
};

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_PTR: u16 = 12;
const TYPE_AAAA: u16 = 28;
const TYPE_SRV: u16 = 33;

const GATEWAYS: [&str; 2] = ["10.88.0.1", "fd00:88::1"];
/// What every name of the world has, as often as it says.
const WORLD: &str = "198.51.100.7";

/// A question with a number, and EDNS for clients that take so much.
fn question(id: u16, name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(Name::new(name).unwrap(), QTYPE::TYPE(kind.into()), CLASS::IN.into(), false));
    *packet.opt_mut() = edns.map(|udp_packet_size| OPT { opt_codes: Vec::new(), udp_packet_size, version: 0 });
    packet.build_bytes_vec().unwrap()
}

/// Sends it. What comes back, if something does.
fn exchange(netns: &Netns, protocol: Protocol, server: &str, query: Vec<u8>, patience: Duration) -> Option<Vec<u8>> {
    let server = SocketAddr::new(server.parse().unwrap(), 53);
    netns.run(move || {
        if protocol == Tcp {
            let mut stream = TcpStream::connect_timeout(&server, patience).ok()?;
            stream.set_read_timeout(Some(patience)).unwrap();
            write(&mut stream, &query).ok()?;
            return read(&mut stream);
        }
        let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        socket.send(&query).unwrap();
        let mut buffer = vec![0; 65_535];
        let length = socket.recv(&mut buffer).ok()?;
        buffer.truncate(length);
        Some(buffer)
    })
}

fn write(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    stream.write_all(&[&(message.len() as u16).to_be_bytes(), message].concat())
}

fn read(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// A resolver that knows the world: `N.ttlT.example.org` has N addresses, for T seconds; `none.…` isn't there, of `silent.…` it says
/// nothing, and `failed.…` it can't find. What EDNS brings goes back. It counts who asks.
struct World {
    asked: Arc<Mutex<Vec<(Protocol, String)>>>,
    sockets: Vec<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl World {
    fn at(netns: &Netns, address: &str) -> World {
        let address = SocketAddr::new(address.parse().unwrap(), 53);
        let (udp, tcp) = netns.run(move || (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let sockets = vec![udp.as_fd().try_clone_to_owned().unwrap(), tcp.as_fd().try_clone_to_owned().unwrap()];
        let (by_udp, by_tcp) = (asked.clone(), asked.clone());
        let datagrams = move || {
            let mut buffer = [0; 4096];
            while let Ok((length @ 1.., client)) = udp.recv_from(&mut buffer) {
                let answer = answer(&buffer[..length], Udp, &by_udp);
                if !answer.is_empty() {
                    let _ = udp.send_to(&answer, client);
                }
            }
        };
        let connections = move || {
            while let Ok((mut stream, _)) = tcp.accept() {
                while let Some(query) = read(&mut stream) {
                    let _ = write(&mut stream, &answer(&query, Tcp, &by_tcp));
                }
            }
        };
        World { asked, sockets, threads: vec![thread::spawn(datagrams), thread::spawn(connections)] }
    }

    fn asked(&self) -> Vec<(Protocol, String)> {
        self.asked.lock().unwrap().clone()
    }

    fn count(&self, name: &str) -> usize {
        self.asked().iter().filter(|(_, asked)| asked == name).count()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer(query: &[u8], protocol: Protocol, asked: &Mutex<Vec<(Protocol, String)>>) -> Vec<u8> {
    let query = Packet::parse(query).unwrap();
    let name = query.questions[0].qname.to_string();
    asked.lock().unwrap().push((protocol, name.clone()));
    let mut labels = name.split('.');
    let count: u8 = labels.next().unwrap().parse().unwrap_or(1);
    let ttl = labels.next().and_then(|label| label.strip_prefix("ttl")?.parse().ok()).unwrap_or(60);
    let mut reply = Packet::new_reply(query.id());
    reply.questions.clone_from(&query.questions);
    *reply.opt_mut() = query.opt().cloned();
    let code = match name.split('.').next() {
        Some("silent") => return Vec::new(),
        Some("none") => RCODE::NameError,
        Some("failed") => RCODE::ServerFailure,
        _ => RCODE::NoError,
    };
    if code != RCODE::NoError {
        *reply.rcode_mut() = code;
        return reply.build_bytes_vec().unwrap();
    }
    let [a, b, c, d] = WORLD.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let records = (0..count).map(|n| u32::from_be_bytes([a, b, c, d.wrapping_add(n)])).map(|address| RData::A(A { address }));
    let own = query.questions[0].qname.clone();
    reply.answers.extend(records.map(|record| ResourceRecord::new(own.clone(), CLASS::IN, ttl, record)));
    let whole = reply.build_bytes_vec_compressed().unwrap();
    let room = query.opt().map_or(512, |opt| usize::from(opt.udp_packet_size));
    if protocol == Tcp || whole.len() <= room {
        return whole;
    }
    reply.answers.clear();
    reply.set_flags(PacketFlag::TRUNCATION);
    reply.build_bytes_vec().unwrap()
}

/// A node with a resolver, and a pod.
struct House {
    pod: Pod,
    resolver: Resolver,
    conf: PathBuf,
    _runtime: tokio::runtime::Runtime,
    _network: Network,
    /// The last to go: it looks for what the network leaves.
    lab: Lab,
}

impl House {
    fn new(resolv_conf: &str) -> House {
        let lab = Lab::new();
        let network = lab.open(lab.routed());
        let pod = Pod::new("pod");
        pod.attach(&network).unwrap();
        let conf = lab.state.path().join("resolv.conf");
        fs::write(&conf, resolv_conf).unwrap();
        let file = conf.clone();
        let (runtime, resolver) = lab.node.run(move || {
            // Its threads are born in the node's namespace.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let own: Vec<IpAddr> = GATEWAYS.iter().map(|ip| ip.parse().unwrap()).collect();
            let clients = vec!["10.88.0.0/24".parse().unwrap(), "fd00:88::/64".parse().unwrap()];
            let resolver = runtime.block_on(async { Resolver::start(&own, clients, "cluster.local", file) }).unwrap();
            (runtime, resolver)
        });
        House { lab, pod, resolver, conf, _runtime: runtime, _network: network }
    }

    /// What the pod hears.
    fn ask(&self, protocol: Protocol, name: &str, kind: u16, edns: Option<u16>) -> Answer {
        let query = question(77, name, kind, edns);
        let bytes = exchange(&self.pod.netns, protocol, GATEWAYS[0], query, Duration::from_secs(9)).expect("an answer");
        Answer::read(&bytes)
    }

    fn addresses(&self, protocol: Protocol, name: &str) -> Vec<String> {
        let answer = self.ask(protocol, name, TYPE_A, None);
        assert_eq!((answer.code, answer.truncated), (RCODE::NoError, false), "{name}");
        answer.records
    }
}

#[derive(Debug)]
struct Answer {
    code: RCODE,
    truncated: bool,
    length: usize,
    /// As text.
    records: Vec<String>,
    additional: Vec<String>,
    authority: usize,
    ttl: Option<u32>,
}

impl Answer {
    fn read(bytes: &[u8]) -> Answer {
        let packet = Packet::parse(bytes).unwrap();
        assert!(packet.id() == 77 && packet.has_flags(PacketFlag::RESPONSE) && packet.questions.len() == 1, "{packet:?}");
        Answer {
            code: packet.rcode(),
            truncated: packet.has_flags(PacketFlag::TRUNCATION),
            length: bytes.len(),
            records: packet.answers.iter().map(show).collect(),
            additional: packet.additional_records.iter().map(show).collect(),
            authority: packet.name_servers.len(),
            ttl: packet.answers.first().map(|record| record.ttl),
        }
    }
}

fn show(record: &ResourceRecord<'_>) -> String {
    match &record.rdata {
        RData::A(a) => IpAddr::from(a.address.to_be_bytes()).to_string(),
        RData::AAAA(a) => IpAddr::from(a.address.to_be_bytes()).to_string(),
        RData::CNAME(name) => format!("={}", name.0),
        RData::PTR(name) => name.0.to_string(),
        RData::SRV(srv) => format!("{}:{} {}/{}", srv.target, srv.port, srv.priority, srv.weight),
        other => format!("{other:?}"),
    }
}

fn nameserver(ip: &str) -> String {
    format!("# the host's\nsearch example.org\nnameserver {ip}\n")
}

#[rstest]
#[case::outside(OUTSIDE)]
#[case::of_the_host_itself("127.0.0.53")]
fn what_is_not_ours_the_hosts_resolver_answers(#[case] ip: &str) {
    let house = House::new(&nameserver(ip));
    let world = World::at(if ip == OUTSIDE { &house.lab.outside } else { &house.lab.node }, ip);
    assert_eq!(house.addresses(Udp, "2.example.org"), [WORLD, "198.51.100.8"]);
    assert_eq!(house.addresses(Tcp, "3.example.org").len(), 3);
    let asked = |protocol: Protocol, name: &str| (protocol, name.to_owned());
    assert_eq!(world.asked(), [asked(Udp, "2.example.org"), asked(Tcp, "3.example.org")], "by the way that the question came");
    // By both addresses, by pods and by the host.
    for (netns, who) in [(&house.pod.netns, "pod"), (&house.lab.node, "host")] {
        for (number, gateway) in GATEWAYS.iter().enumerate() {
            for protocol in [Udp, Tcp] {
                let query = question(77, &format!("1.{who}{number}{protocol}.example.org"), TYPE_A, None);
                let bytes = exchange(netns, protocol, gateway, query, Duration::from_secs(5)).expect(who);
                assert_eq!(Answer::read(&bytes).records, [WORLD], "{who} by {gateway}");
            }
        }
    }
}

#[test]
fn who_is_neither_pod_nor_host_is_not_answered() {
    let house = House::new(&nameserver(OUTSIDE));
    let world = World::at(&house.lab.outside, OUTSIDE);
    house.lab.outside.ip(&format!("route add 10.88.0.0/24 via {NODE}"));
    for protocol in [Udp, Tcp] {
        let query = question(77, "cluster.local", TYPE_A, None);
        assert_eq!(exchange(&house.lab.outside, protocol, GATEWAYS[0], query, Duration::from_millis(300)), None, "{protocol}");
    }
    assert_eq!(world.asked(), [], "nor is anybody asked");
    assert_eq!(house.addresses(Udp, "1.example.org"), [WORLD], "pods are");
}

#[test]
fn an_answer_that_is_too_long_for_the_client_is_cut_and_whole_by_tcp() {
    let house = House::new(&nameserver(OUTSIDE));
    let world = World::at(&house.lab.outside, OUTSIDE);
    let targets = (2..102).map(|n| Target { ip: [10, 88, 0, n].into(), hostname: None, ports: Vec::new() }).collect();
    let services = [(("shop".into(), "many".into()), Entry::Headless(targets))].into();
    house.resolver.set(Zone { domain: "cluster.local".into(), services, ..Zone::default() });
    for name in ["many.shop.svc.cluster.local", "100.example.org"] {
        let short = house.ask(Udp, name, TYPE_A, None);
        assert!(short.truncated && short.length <= 512 && short.records.is_empty(), "{name}: {short:?}");
        let less = house.ask(Udp, name, TYPE_A, Some(1232));
        assert!(less.truncated && less.length <= 1232, "{name}: {less:?}");
        let whole = house.ask(Udp, name, TYPE_A, Some(4096));
        assert!(!whole.truncated && whole.records.len() == 100 && whole.length > 1232, "{name}: {whole:?}");
        let whole = house.ask(Tcp, name, TYPE_A, None);
        assert!(!whole.truncated && whole.records.len() == 100, "{name}: {whole:?}");
    }
    // What is kept whole is cut for who can't take it.
    let before = world.asked().len();
    assert!(house.ask(Udp, "100.example.org", TYPE_A, None).truncated);
    assert_eq!(world.asked().len(), before);
}

#[test]
fn a_connection_may_ask_more_than_once() {
    let house = House::new(&nameserver(OUTSIDE));
    let _world = World::at(&house.lab.outside, OUTSIDE);
    let answers = house.pod.netns.run(|| {
        let mut stream = TcpStream::connect((GATEWAYS[0], 53)).unwrap();
        let mut ask = |name: &str| {
            write(&mut stream, &question(77, name, TYPE_A, None)).unwrap();
            Answer::read(&read(&mut stream).unwrap()).records.len()
        };
        [ask("1.example.org"), ask("2.example.org"), ask("1.example.org")]
    });
    assert_eq!(answers, [1, 2, 1]);
}

#[test]
fn answers_are_kept_as_long_as_they_say() {
    let house = House::new(&nameserver(OUTSIDE));
    let world = World::at(&house.lab.outside, OUTSIDE);
    let (hour, second, never) = ("1.ttl3600.example.org", "1.ttl1.example.org", "1.ttl0.example.org");
    for name in [hour, &hour.to_uppercase(), hour] {
        let answer = house.ask(Udp, name, TYPE_A, None);
        assert!(answer.records == [WORLD] && (3000..=3600).contains(&answer.ttl.unwrap()), "{answer:?}");
    }
    assert_eq!(house.addresses(Tcp, hour), [WORLD]);
    assert_eq!(world.asked().len(), 1, "however they are written, and by whatever way they come");
    house.ask(Udp, hour, TYPE_AAAA, None);
    house.ask(Udp, hour, TYPE_A, Some(1232));
    assert_eq!(world.asked().len(), 3, "other questions");
    eventually("its second is over", || {
        house.addresses(Udp, second);
        world.count(second) == 2
    });
    (1..4).for_each(|times| {
        house.addresses(Udp, never);
        assert_eq!(world.count(never), times);
    });
}

/// A client that writes names in turns of case looks whether its own come back (draft-vixie-dnsext-dns0x20).
#[test]
fn a_question_comes_back_as_it_was_asked() {
    let house = House::new(&nameserver(OUTSIDE));
    let _world = World::at(&house.lab.outside, OUTSIDE);
    for name in ["1.example.org", "1.eXaMPle.ORG"] {
        let bytes =
            exchange(&house.pod.netns, Udp, GATEWAYS[0], question(77, name, TYPE_A, None), Duration::from_secs(5)).unwrap();
        assert_eq!(Packet::parse(&bytes).unwrap().questions[0].qname.to_string(), name);
        assert_eq!(Answer::read(&bytes).records, [WORLD]);
    }
}

#[test]
fn a_resolver_goes_away_and_comes_back() {
    let house = House::new(&nameserver(OUTSIDE));
    let world = World::at(&house.lab.outside, OUTSIDE);
    house.addresses(Udp, "1.example.org");
    drop(world);
    assert_eq!(house.addresses(Udp, "1.example.org"), [WORLD], "what was kept is answered");
    for protocol in [Udp, Tcp] {
        let answer = house.ask(protocol, "2.example.org", TYPE_A, None);
        assert_eq!((answer.code, answer.records.len()), (RCODE::ServerFailure, 0));
    }
    let world = World::at(&house.lab.outside, OUTSIDE);
    assert_eq!(house.addresses(Udp, "2.example.org").len(), 2, "a failure isn't kept");
    // Another one takes its place, and the file says so.
    drop(world);
    let _other = World::at(&house.lab.node, "127.0.0.53");
    fs::write(&house.conf, nameserver("127.0.0.53")).unwrap();
    assert_eq!(house.addresses(Udp, "3.example.org").len(), 3);
    fs::remove_file(&house.conf).unwrap();
    assert_eq!(house.ask(Udp, "4.example.org", TYPE_A, None).code, RCODE::ServerFailure);
}

#[rstest]
#[case::refused("192.0.2.3", false)]
#[case::silent("192.0.2.3", true)]
#[case::ourselves(GATEWAYS[0], false)]
fn of_several_resolvers_the_next_is_asked(#[case] first: &str, #[case] silent: bool) {
    let house = House::new(&format!("{}nameserver {OUTSIDE} # the second\n", nameserver(first)));
    house.lab.outside.ip("address add 192.0.2.3/24 dev eth0");
    let _deaf = silent.then(|| house.lab.outside.run(|| UdpSocket::bind("192.0.2.3:53").unwrap()));
    let world = World::at(&house.lab.outside, OUTSIDE);
    assert_eq!(house.addresses(Udp, "1.example.org"), [WORLD]);
    assert_eq!(world.asked().len(), 1);
}

/// As the host's own programs have it (glibc's res_send): who can't tell has another tell.
#[test]
fn of_several_resolvers_the_next_is_asked_where_one_fails() {
    let house = House::new(&format!("{}nameserver {OUTSIDE}\n", nameserver("127.0.0.53")));
    let _cut_off = World::at(&house.lab.node, "127.0.0.53");
    let world = World::at(&house.lab.outside, OUTSIDE);
    for protocol in [Udp, Tcp] {
        assert_eq!(house.ask(protocol, "failed.example.org", TYPE_A, None).code, RCODE::ServerFailure);
    }
    assert_eq!(world.count("failed.example.org"), 2, "once by each way");
    assert_eq!(house.ask(Udp, "none.example.org", TYPE_A, None).code, RCODE::NameError);
    assert_eq!(world.count("none.example.org"), 0, "that there is no such name is an answer");
}

/// A client drops an answer with a cookie that isn't its own (RFC 7873, section 5.3).
#[test]
fn what_edns_brings_is_nobody_elses() {
    let house = House::new(&nameserver(OUTSIDE));
    let world = World::at(&house.lab.outside, OUTSIDE);
    for cookie in *b"aba" {
        let mut packet = Packet::new_query(77);
        packet.questions.push(Question::new(
            Name::new("1.example.org").unwrap(),
            QTYPE::TYPE(TYPE_A.into()),
            CLASS::IN.into(),
            false,
        ));
        let cookie = OPTCode { code: 10, data: vec![cookie; 8].into() };
        *packet.opt_mut() = Some(OPT { opt_codes: vec![cookie.clone()], udp_packet_size: 1232, version: 0 });
        let query = packet.build_bytes_vec().unwrap();
        let bytes = exchange(&house.pod.netns, Udp, GATEWAYS[0], query, Duration::from_secs(5)).unwrap();
        assert_eq!(Packet::parse(&bytes).unwrap().opt().unwrap().opt_codes, [cookie]);
    }
    assert_eq!(world.asked().len(), 2, "its own is kept");
}

#[test]
fn an_alias_is_as_well_as_what_it_leads_to() {
    let house = House::new(&nameserver(OUTSIDE));
    let _world = World::at(&house.lab.outside, OUTSIDE);
    let aliases = [
        ("far", "100.example.org"),
        ("nobody", "none.example.org"),
        ("broken", "failed.example.org"),
        ("deaf", "silent.example.org"),
        ("lost", "lost.shop.svc.cluster.local.example"),
        ("gone", "nope.shop.svc.cluster.local"),
        ("round", "and-round.shop.svc.cluster.local"),
        ("and-round", "round.shop.svc.cluster.local"),
    ];
    let entry = |(name, to): (&str, &str)| (("shop".to_owned(), name.to_owned()), Entry::External(to.into()));
    let services = aliases.into_iter().map(entry).collect();
    house.resolver.set(Zone { domain: "cluster.local".into(), services, ..Zone::default() });
    for (name, code) in [
        ("nobody", RCODE::NameError),
        ("gone", RCODE::NameError),
        ("broken", RCODE::ServerFailure),
        ("deaf", RCODE::ServerFailure),
        ("round", RCODE::ServerFailure),
    ] {
        let answer = house.ask(Udp, &format!("{name}.shop.svc.cluster.local"), TYPE_A, None);
        assert_eq!(answer.code, code, "{name}: {answer:?}");
    }
    let whole = house.ask(Tcp, "far.shop.svc.cluster.local", TYPE_A, None);
    assert_eq!(whole.records.len(), 101, "though it is too long for UDP");
}

#[test]
fn names_of_ours_are_told_while_the_world_is_silent() {
    let house = House::new(&nameserver(OUTSIDE));
    house.resolver.set(Zone { domain: "cluster.local".into(), ..Zone::default() });
    let _deaf = house.lab.outside.run(|| UdpSocket::bind((OUTSIDE, 53)).unwrap());
    house.pod.netns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for number in 0..2000u16 {
            socket.send_to(&question(number, &format!("{number}.example.org"), TYPE_A, None), (GATEWAYS[0], 53)).unwrap();
            // So many at once wouldn't fit the socket.
            if number % 50 == 0 {
                thread::sleep(Duration::from_millis(5));
            }
        }
    });
    assert_eq!(house.ask(Udp, "cluster.local", TYPE_A, None).code, RCODE::NoError);
}

/// Of a process that starts again while pods run.
#[test]
fn names_of_ours_are_waited_for_until_they_are_told() {
    let house = House::new(&nameserver(OUTSIDE));
    let world = World::at(&house.lab.outside, OUTSIDE);
    let resolver = house.resolver.clone();
    let teller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        let services = [(("shop".into(), "web".into()), Entry::Cluster(vec!["10.96.0.5".parse().unwrap()], Vec::new()))].into();
        resolver.set(Zone { domain: "cluster.local".into(), services, ..Zone::default() });
    });
    assert_eq!(house.addresses(Udp, "1.example.org"), [WORLD], "others aren't");
    assert_eq!(house.addresses(Udp, "Web.shop.svc.cluster.local"), ["10.96.0.5"]);
    teller.join().unwrap();
    assert_eq!(world.asked().len(), 1, "no name of ours is asked elsewhere");
}

/// Pods' names may be longer than a label (Kubernetes allows 253 characters), and have dots.
#[test]
fn names_that_do_not_fit_are_answered_all_the_same() {
    let house = House::new(&nameserver(OUTSIDE));
    let long = "x".repeat(64);
    let key = |name: &str| ("shop".to_owned(), name.to_owned());
    house.resolver.set(Zone {
        domain: "cluster.local".into(),
        services: [(key("alias"), Entry::External(format!("{long}.example.org")))].into(),
        pods: [(key("web.v1"), vec!["10.88.0.9".parse().unwrap()])].into(),
        reverse: [("10.88.0.3".parse().unwrap(), format!("{long}.shop.svc.cluster.local"))].into(),
    });
    assert_eq!(house.ask(Udp, "3.0.88.10.in-addr.arpa", TYPE_PTR, None).code, RCODE::ServerFailure);
    assert_eq!(house.ask(Udp, "alias.shop.svc.cluster.local", TYPE_A, None).code, RCODE::ServerFailure);
    assert_eq!(house.addresses(Udp, "web.v1.shop.svc.cluster.local"), ["10.88.0.9"]);
}

#[test]
fn the_zones_records_on_the_wire() {
    let house = House::new(&nameserver(OUTSIDE));
    let world = World::at(&house.lab.outside, OUTSIDE);
    let key = |name: &str| ("shop".to_owned(), name.to_owned());
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let http = |port| vec![("http".to_owned(), Tcp, port)];
    let db = vec![Target { ip: ip("10.88.0.2"), hostname: Some("db-0".into()), ports: http(5432) }];
    house.resolver.set(Zone {
        domain: "cluster.local".into(),
        services: [
            (key("web"), Entry::Cluster(vec![ip("10.96.0.5"), ip("fd00:96::5")], http(80))),
            (key("db"), Entry::Headless(db)),
            (key("out"), Entry::External("2.example.org".into())),
            (key("near"), Entry::External("web.shop.svc.cluster.local".into())),
        ]
        .into(),
        reverse: [
            (ip("10.96.0.5"), "web.shop.svc.cluster.local".into()),
            (ip("fd00:96::5"), "web.shop.svc.cluster.local".into()),
        ]
        .into(),
        ..Zone::default()
    });
    let six = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa";
    let cases: &[(&str, u16, &[&str], &[&str])] = &[
        ("web.shop.svc.cluster.local", TYPE_A, &["10.96.0.5"], &[]),
        ("web.shop.svc.cluster.local", TYPE_AAAA, &["fd00:96::5"], &[]),
        ("db-0.db.shop.svc.cluster.local", TYPE_A, &["10.88.0.2"], &[]),
        (
            "_http._tcp.web.shop.svc.cluster.local",
            TYPE_SRV,
            &["web.shop.svc.cluster.local:80 0/100"],
            &["10.96.0.5", "fd00:96::5"],
        ),
        ("_http._tcp.db.shop.svc.cluster.local", TYPE_SRV, &["db-0.db.shop.svc.cluster.local:5432 0/100"], &["10.88.0.2"]),
        ("5.0.96.10.in-addr.arpa", TYPE_PTR, &["web.shop.svc.cluster.local"], &[]),
        (six, TYPE_PTR, &["web.shop.svc.cluster.local"], &[]),
        ("out.shop.svc.cluster.local", TYPE_CNAME, &["=2.example.org"], &[]),
        ("out.shop.svc.cluster.local", TYPE_A, &["=2.example.org", WORLD, "198.51.100.8"], &[]),
        ("near.shop.svc.cluster.local", TYPE_AAAA, &["=web.shop.svc.cluster.local", "fd00:96::5"], &[]),
    ];
    for (name, kind, records, additional) in cases {
        for protocol in [Udp, Tcp] {
            let answer = house.ask(protocol, name, *kind, None);
            let found = (answer.code, &answer.records[..], &answer.additional[..]);
            let expected = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            assert_eq!(found, (RCODE::NoError, &expected(records)[..], &expected(additional)[..]), "{name} {kind}");
        }
    }
    for (name, kind, code) in [
        ("db-0.db.shop.svc.cluster.local", TYPE_AAAA, RCODE::NoError),
        ("none.shop.svc.cluster.local", TYPE_A, RCODE::NameError),
        ("none.shop.svc.cluster.local", TYPE_SRV, RCODE::NameError),
    ] {
        let answer = house.ask(Udp, name, kind, None);
        assert_eq!((answer.code, answer.records.len(), answer.authority), (code, 0, 1), "{name}: and how long that is so");
    }
    assert!(world.asked().iter().all(|(_, name)| name == "2.example.org"), "no name of ours is asked elsewhere");
}
