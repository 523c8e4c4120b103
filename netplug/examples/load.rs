//! What packets cost on the ways that pods have, side by side in one run: our network, and podman's (netavark with its bridge and iptables).
//! Throughput of one stream, requests on one connection, and connections one after the other, pod → pod (of which nothing speaks), to a pod
//! that is the Services' endpoint, to one that has the host ports, pod → host, from outside by a host port and, on our side, by a Service, with
//! as many host ports published and Services as are asked for. Both sides take turns, so that what the machine does besides touches both
//! alike. "by rules" are connections of processes whose sockets aren't led to an endpoint: all of it is in a cgroup of its own, or isn't. Where br_netfilter is there (as Kubernetes' nodes have it), what podman's bridge
//! passes on goes through iptables; pod → pod is measured without that, too.
//!
//!     cargo run --release -p netplug --example load [services] [COUNT ...]
//!
//! Needs root, netavark and iptables. It works in network namespaces of its own.

use std::{
    error::Error,
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio, id},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use netplug::{Attachment, Isolation, Network, Port, Protocol, Range, Rules, Service, Settings};
use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use serde_json::json;

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

const NETAVARK: &str = "/usr/lib/podman/netavark";
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(400);
/// The server's port in each namespace, and its host port.
const PORT: u16 = 5000;

/// A network namespace with a thread in it.
struct Space {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    file: File,
    tid: i32,
}

impl Space {
    fn new() -> Fallible<Space> {
        let (jobs, queue) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, opened) = mpsc::channel();
        thread::spawn(move || -> Fallible<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            ready.send((File::open("/proc/thread-self/ns/net")?, rustix::thread::gettid().as_raw_nonzero().get()))?;
            queue.into_iter().for_each(|job| job());
            Ok(())
        });
        let (file, tid) = opened.recv().map_err(|_| "no namespace: run it as root")?;
        let space = Space { jobs, file, tid };
        space.ip("link set lo up")?;
        // Others (BBR) send as fast as they think that the way is: the way is to be measured, not what they think.
        space.write("net/ipv4/tcp_congestion_control", "reno")?;
        Ok(space)
    }

    /// A setting below /proc/sys, as the namespace has it.
    fn write(&self, name: &str, value: &'static str) -> Fallible<()> {
        let path = format!("/proc/sys/{name}");
        self.run(move || std::fs::write(&path, value).map_err(|error| format!("{path}: {error}").into()))
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> Fallible<T> + Send + 'static) -> Fallible<T> {
        let (done, outcome) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(job())))).map_err(|_| "the namespace's thread ended")?;
        outcome.recv().map_err(|_| "the namespace's thread ended")?
    }

    fn ip(&self, words: &str) -> Fallible<()> {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        self.run(move || {
            if Command::new("ip").args(&words).status()?.success() { Ok(()) } else { Err(format!("ip {words:?} failed").into()) }
        })
    }

    /// Answers by the first byte: `s` takes all that comes, `p` gives back each byte.
    fn serve(&self) -> Fallible<()> {
        let listener = self.run(|| Ok(TcpListener::bind(("0.0.0.0", PORT))?))?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || answer(stream));
            }
        });
        Ok(())
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 256 << 10];
    stream.read_exact(&mut buffer[..1])?;
    let echoes = buffer[0] == b'p';
    loop {
        if echoes {
            stream.write_all(&buffer[..1])?;
        }
        let limit = if echoes { 1 } else { buffer.len() };
        if stream.read(&mut buffer[..limit])? == 0 {
            return Ok(());
        }
    }
}

/// Pods and a host, wired one way; "outside" is plugged into the host.
struct Side {
    name: &'static str,
    node: Space,
    outside: Space,
    client: Space,
    server: Space,
    server_ip: String,
    /// As the server, but without ports; the Services' endpoint.
    endpoint: Space,
    endpoint_ip: String,
    /// Without ports and Services.
    plain: Space,
    plain_ip: String,
    /// Ends with the side.
    _network: Option<Network>,
}

const HOST: &str = "192.0.2.1";

impl Side {
    fn spaces() -> Fallible<[Space; 6]> {
        let spaces: Vec<Space> = (0..6).map(|_| Space::new()).collect::<Fallible<_>>()?;
        let [node, outside, ..] = &spaces[..] else { return Err("six spaces".into()) };
        node.ip(&format!("link add up0 type veth peer name eth0 netns {}", outside.tid))?;
        node.ip(&format!("address add {HOST}/24 dev up0"))?;
        node.ip("link set up0 up")?;
        outside.ip("address add 192.0.2.2/24 dev eth0")?;
        outside.ip("link set eth0 up")?;
        node.ip("route add default via 192.0.2.2")?;
        spaces.try_into().map_err(|_| "six spaces".into())
    }

    fn ours(ports: u16, state: PathBuf, cgroup: &Path) -> Fallible<Side> {
        let [node, outside, client, server, endpoint, plain] = Side::spaces()?;
        let settings = Settings {
            bridge: "pods0".into(),
            ranges: vec![Range { subnet: "10.88.0.0/16".parse()?, gateway: None, exclude: Vec::new() }],
            table: "netplug_load".into(),
            state_dir: state,
            // As the agent has it.
            isolation: Isolation::Routed,
            direct: true,
            pods_cgroup: Some(cgroup.to_owned()),
            ..Settings::default()
        };
        let network = node.run(|| Ok(futures::executor::block_on(Network::open(settings))?))?;
        let mut ips = Vec::new();
        let pods =
            [("client", &client, 0..0), ("server", &server, 0..ports), ("endpoint", &endpoint, 0..0), ("plain", &plain, 0..0)];
        for (uid, space, ports) in pods {
            let netlink: OwnedFd = space.run(|| {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?)
            })?;
            let port =
                |number| Port { host_ip: None, host_port: PORT + number, container_port: PORT + number, protocol: Protocol::Tcp };
            let ports = ports.map(port).collect();
            let netns = space.file.as_fd();
            let attachment = Attachment { uid, pod: uid, netns, netlink, ports, fixed: Vec::new(), bandwidth: None };
            ips.push(futures::executor::block_on(network.attach(attachment))?.ips[0].to_string());
        }
        let [_, server_ip, endpoint_ip, plain_ip] = ips.try_into().map_err(|_| "four addresses")?;
        futures::executor::block_on(network.enforce(services(ports, &endpoint_ip)?))?;
        Side {
            name: "netplug",
            node,
            outside,
            client,
            server,
            server_ip,
            endpoint,
            endpoint_ip,
            plain,
            plain_ip,
            _network: Some(network),
        }
        .served()
    }

    fn podmans(ports: u16, state: &Path) -> Fallible<Side> {
        let [node, outside, client, server, endpoint, plain] = Side::spaces()?;
        let pods = [(&client, 0..0), (&server, 0..ports), (&endpoint, 0..0), (&plain, 0..0)];
        for (number, (space, ports)) in pods.into_iter().enumerate() {
            let mappings: Vec<_> = ports
                .map(|port| json!({"host_ip": "", "container_port": PORT + port, "host_port": PORT + port, "range": 1, "protocol": "tcp"}))
                .collect();
            let request = json!({
                "container_id": format!("c{number}"), "container_name": format!("c{number}"), "port_mappings": mappings,
                "networks": {"podman": {"static_ips": [format!("10.88.0.{}", number + 2)], "interface_name": "eth0"}},
                "network_info": {"podman": {"name": "podman", "id": "2f259bab93aa", "driver": "bridge", "network_interface": "podman0",
                    "subnets": [{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}], "ipv6_enabled": false, "internal": false,
                    "dns_enabled": false, "ipam_options": {"driver": "host-local"}}},
            });
            let (netns, state) = (format!("/proc/{}/fd/{}", id(), space.file.as_raw_fd()), state.to_owned());
            node.run(move || {
                let mut child = Command::new(NETAVARK)
                    .arg("--config")
                    .arg(state)
                    .args(["setup", &netns])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .spawn()
                    .map_err(|error| format!("{NETAVARK}: {error}: install netavark"))?;
                child.stdin.take().ok_or("no stdin")?.write_all(request.to_string().as_bytes())?;
                if child.wait()?.success() { Ok(()) } else { Err("netavark failed".into()) }
            })?;
        }
        let [server_ip, endpoint_ip, plain_ip] = ["10.88.0.3", "10.88.0.4", "10.88.0.5"].map(str::to_owned);
        Side { name: "podman", node, outside, client, server, server_ip, endpoint, endpoint_ip, plain, plain_ip, _network: None }
            .served()
    }

    fn served(self) -> Fallible<Side> {
        self.server.serve()?;
        self.endpoint.serve()?;
        self.plain.serve()?;
        self.node.serve()?;
        Ok(self)
    }

    /// From where to where.
    fn way(&self, way: &str) -> Fallible<(&Space, SocketAddr)> {
        let (from, ip) = match way {
            "pod → pod" => (&self.client, self.plain_ip.as_str()),
            "pod → endpoint" => (&self.client, self.endpoint_ip.as_str()),
            "pod → host port's pod" => (&self.client, self.server_ip.as_str()),
            "pod → host" => (&self.client, GATEWAY),
            "pod → Service" | "pod → Service by rules" => (&self.client, SERVICE),
            _ => (&self.outside, HOST),
        };
        Ok((from, SocketAddr::new(ip.parse()?, PORT)))
    }
}

/// So many Services, from [`SERVICE`] on, with one endpoint.
fn services(count: u16, endpoint: &str) -> Fallible<Rules> {
    let endpoint = SocketAddr::new(endpoint.parse()?, PORT);
    let first: Ipv4Addr = SERVICE.parse()?;
    let service = |number: u16| Service {
        name: format!("default/service{number}"),
        protocol: Protocol::Tcp,
        port: PORT,
        addresses: vec![Ipv4Addr::from(u32::from(first) + u32::from(number)).into()],
        node_port: None,
        endpoints: vec![endpoint],
        affinity: None,
    };
    Ok(Rules {
        service_ranges: vec!["10.96.0.0/16".parse()?],
        services: (0..count).map(|number| Arc::new(service(number))).collect(),
        policies: Vec::new(),
    })
}

const GATEWAY: &str = "10.88.0.1";
const SERVICE: &str = "10.96.0.1";
const WAYS: [&str; 5] = ["pod → pod", "pod → endpoint", "pod → host port's pod", "pod → host", "outside → hostPort"];

/// A cgroup (v2) in which all that this process connects is, as a pod's processes are in theirs; or isn't.
struct Cgroup {
    before: PathBuf,
    own: PathBuf,
}

impl Cgroup {
    fn new() -> Fallible<Cgroup> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[2] == "cgroup2");
        let mount = PathBuf::from(mount.ok_or("no cgroup2 is mounted")?[1]);
        let groups = std::fs::read_to_string("/proc/self/cgroup")?;
        let before = groups.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("in no group of cgroup2")?;
        let group = Cgroup { before: mount.join(before), own: mount.join(format!("netplug-load-{}", id())) };
        std::fs::create_dir(&group.own)?;
        Ok(group)
    }

    fn enter(&self) -> Fallible<()> {
        Ok(std::fs::write(self.own.join("cgroup.procs"), "0")?)
    }

    fn leave(&self) -> Fallible<()> {
        Ok(std::fs::write(self.before.join("cgroup.procs"), "0")?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = self.leave();
        let _ = std::fs::remove_dir(&self.own);
    }
}

fn main() -> Fallible<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let services_alone = words.iter().any(|word| word == "services");
    let numbers = words.iter().filter(|word| *word != "services");
    let mut counts = numbers.map(|word| word.parse::<u16>()).collect::<Result<Vec<_>, _>>()?;
    if counts.is_empty() {
        counts = vec![10, 1000];
    }
    println!("| way | measure | host ports, Services | netplug | podman | ratio |\n|---|---|---|---|---|---|");
    let cgroup = Cgroup::new()?;
    for ports in counts {
        let state = tempfile::tempdir()?;
        let sides = [Side::ours(ports, state.path().join("net"), &cgroup.own)?, Side::podmans(ports, state.path())?];
        for way in WAYS.into_iter().filter(|_| !services_alone) {
            compare(&sides, way, ports)?;
        }
        cgroup.enter()?;
        by_service(&sides[0], "pod → Service", ports)?;
        cgroup.leave()?;
        by_service(&sides[0], "pod → Service by rules", ports)?;
        if !services_alone && Path::new("/proc/sys/net/bridge").exists() {
            for side in &sides {
                side.node.write("net/bridge/bridge-nf-call-iptables", "0")?;
            }
            println!("| without br_netfilter: | | | | | |");
            compare(&sides, WAYS[0], ports)?;
            compare(&sides, WAYS[1], ports)?;
        }
    }
    Ok(())
}

fn compare(sides: &[Side; 2], way: &str, ports: u16) -> Fallible<()> {
    for (name, unit, measure) in MEASURES {
        let mut samples: [Vec<f64>; 2] = Default::default();
        for round in 0..=ROUNDS {
            for (side, samples) in sides.iter().zip(&mut samples) {
                let (from, to) = side.way(way)?;
                let value = from.run(move || measure(to)).map_err(|error| format!("{}: {way}: {error}", side.name))?;
                // The first warms caches and conntrack up.
                if round > 0 {
                    samples.push(value);
                }
            }
        }
        let [ours, podmans] = samples.map(median);
        println!("| {way} | {name}, {unit} | {ports} | {ours:.0} | {podmans:.0} | {:.2} |", ours / podmans);
    }
    Ok(())
}

/// A Service against its endpoint, of our side alone, taking turns.
fn by_service(side: &Side, service: &str, services: u16) -> Fallible<()> {
    for (name, unit, measure) in MEASURES {
        let mut samples: [Vec<f64>; 2] = Default::default();
        for round in 0..=ROUNDS {
            for (way, samples) in [service, "pod → endpoint"].into_iter().zip(&mut samples) {
                let (from, to) = side.way(way)?;
                let value = from.run(move || measure(to)).map_err(|error| format!("{way}: {error}"))?;
                if round > 0 {
                    samples.push(value);
                }
            }
        }
        let [by_service, endpoint] = samples.map(median);
        println!(
            "| {service}, against its endpoint | {name}, {unit} | {services} | {by_service:.0} | {endpoint:.0} (endpoint) | {:.2} |",
            by_service / endpoint
        );
    }
    Ok(())
}

type Measure = fn(SocketAddr) -> Fallible<f64>;
const MEASURES: [(&str, &str, Measure); 3] = [
    ("one stream", "MB/s", throughput),
    ("requests on one connection", "1/s", requests),
    ("connections one after the other", "1/s", connections),
];

fn throughput(to: SocketAddr) -> Fallible<f64> {
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(b"s")?;
    let block = vec![0; 128 << 10];
    let (begun, mut bytes) = (Instant::now(), 0);
    while begun.elapsed() < ROUND {
        stream.write_all(&block)?;
        bytes += block.len();
    }
    Ok(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

fn requests(to: SocketAddr) -> Fallible<f64> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let (begun, mut count) = (Instant::now(), 0);
    while begun.elapsed() < ROUND {
        stream.write_all(b"p")?;
        stream.read_exact(&mut [0])?;
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

fn connections(to: SocketAddr) -> Fallible<f64> {
    let (begun, mut count) = (Instant::now(), 0);
    while begun.elapsed() < ROUND {
        let mut stream = TcpStream::connect(to)?;
        // By a reset, so that no port waits for its end.
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        stream.write_all(b"p")?;
        stream.read_exact(&mut [0])?;
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}
