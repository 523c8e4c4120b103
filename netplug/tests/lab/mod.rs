//! A small laboratory: network namespaces that talk to each other, each a thread that went into one of its own. Nothing of it is
//! ever seen by the machine's own network, and all of it is gone when the test ends.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs::{self, File},
    future::Future,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::Command,
    sync::{Mutex, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use netplug::{Attached, Attachment, Bandwidth, Network, Port, Protocol, Range, Remove, Settings};
use nix::sched::{CloneFlags, unshare};

/// How long an answer may take before it counts as none. Generous: only failures wait for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long silence must last to count as such.
const SILENCE: Duration = Duration::from_millis(300);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace and the thread in it.
pub struct Netns {
    jobs: mpsc::Sender<Job>,
    pub file: File,
    tid: i32,
}

impl Netns {
    pub fn new() -> Netns {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, opened) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare a network namespace: run the tests as root");
            let file = File::open("/proc/thread-self/ns/net").unwrap();
            ready.send((file, rustix::thread::gettid().as_raw_nonzero().get())).unwrap();
            for job in queue {
                job();
            }
        });
        let (file, tid) = opened.recv().unwrap();
        let netns = Netns { jobs, file, tid };
        netns.ip("link set lo up");
        netns
    }

    /// Does something in the namespace.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, outcome) = mpsc::channel();
        self.jobs.send(Box::new(move || done.send(job()).unwrap_or(()))).unwrap();
        outcome.recv().expect("the job panicked")
    }

    /// A path that leads here while this lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/task/{}/ns/net", std::process::id(), self.tid)
    }

    pub fn ip(&self, args: &str) -> String {
        self.command("ip", args).unwrap()
    }

    pub fn nft(&self, args: &str) -> String {
        self.command("nft", args).unwrap()
    }

    /// Whether its IP passes on what isn't for itself.
    pub fn forwards(&self) -> [String; 2] {
        self.run(|| {
            let names = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];
            names.map(|name| fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap())
        })
    }

    pub fn command(&self, program: &str, args: &str) -> Result<String, String> {
        let (program, args) = (program.to_owned(), args.to_owned());
        self.run(move || {
            let output = Command::new(&program).args(args.split_whitespace()).output();
            let output = output.unwrap_or_else(|error| panic!("{program}: {error}: install iproute2 and nftables"));
            if !output.status.success() {
                return Err(format!("{program} {args}: {}", String::from_utf8_lossy(&output.stderr)));
            }
            Ok(String::from_utf8(output.stdout).unwrap())
        })
    }

    /// A veth between two namespaces, with an address at each end.
    pub fn connect(&self, link: &str, address: &str, other: &Netns, other_link: &str, other_address: &str) {
        self.ip(&format!("link add {link} type veth peer name {other_link} netns {}", other.tid));
        for (netns, link, address) in [(self, link, address), (other, other_link, other_address)] {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            netns.ip(&format!("address add {address} dev {link} {nodad}"));
            netns.ip(&format!("link set {link} up"));
        }
    }

    /// What the namespace holds, to compare before and after, less whether cables are plugged in.
    pub fn picture(&self) -> String {
        let words = ["-o link show", "-4 route show table all", "-o -4 address show"].map(|args| self.ip(args)).concat();
        let cables = ["NO-CARRIER,", ",LOWER_UP", " linkdown", " state UP", " state DOWN", " state UNKNOWN", "\\"];
        cables.iter().fold(words, |words, cable| words.replace(cable, "")) + &self.nft("list ruleset")
    }

    pub fn netlink_socket(&self) -> OwnedFd {
        self.run(netlink_socket)
    }

    /// Answers each connection or datagram with `name`, a space and the client's address.
    pub fn serve(&self, protocol: Protocol, address: &str, name: &str) -> Server {
        let (address, name): (SocketAddr, String) = (address.parse().unwrap(), name.to_owned());
        self.run(move || match protocol {
            Protocol::Udp => Server::udp(UdpSocket::bind(address).unwrap(), name),
            _ => Server::tcp(TcpListener::bind(address).unwrap(), name),
        })
    }

    /// What the server at that address says to us.
    pub fn ask(&self, protocol: Protocol, address: &str) -> Result<String, String> {
        self.ask_within(protocol, address, PATIENCE)
    }

    /// Nobody answers: refused, or silence.
    pub fn assert_unreachable(&self, protocol: Protocol, address: &str) {
        if let Ok(answer) = self.ask_within(protocol, address, SILENCE) {
            panic!("{address} answers {answer:?}");
        }
    }

    fn ask_within(&self, protocol: Protocol, address: &str, patience: Duration) -> Result<String, String> {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || match protocol {
            Protocol::Udp => ask_udp(address, patience),
            _ => ask_tcp(address, patience),
        })
        .map_err(|error| format!("{address}: {error}"))
    }
}

fn ask_tcp(address: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn ask_udp(address: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"who are you?")?;
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Serves until it is dropped; its socket would otherwise keep the namespace alive.
pub struct Server {
    socket: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn tcp(listener: TcpListener, name: String) -> Server {
        let socket = listener.as_fd().try_clone_to_owned().unwrap();
        let thread = thread::spawn(move || {
            while let Ok((mut stream, client)) = listener.accept() {
                let _ = write!(stream, "{name} {}", client.ip());
            }
        });
        Server { socket, thread: Some(thread) }
    }

    fn udp(server: UdpSocket, name: String) -> Server {
        let socket = server.as_fd().try_clone_to_owned().unwrap();
        let thread = thread::spawn(move || {
            let mut buffer = [0; 256];
            while let Ok((length @ 1.., client)) = server.recv_from(&mut buffer) {
                let _ = length;
                let _ = server.send_to(format!("{name} {}", client.ip()).as_bytes(), client);
            }
        });
        Server { socket, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes accept and recv; an unconnected UDP socket says ENOTCONN and wakes all the same.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// "outside" – "node", and pods to be made.
pub struct Lab {
    pub outside: Netns,
    pub node: Netns,
    pub state: tempfile::TempDir,
    /// Of the networks that were opened here.
    opened: Mutex<Vec<Settings>>,
}

/// The node as outside sees it, and outside as the node sees it.
pub const NODE: &str = "192.0.2.1";
pub const NODE6: &str = "2001:db8::1";
pub const OUTSIDE: &str = "192.0.2.2";
pub const OUTSIDE6: &str = "2001:db8::2";

impl Lab {
    pub fn new() -> Lab {
        let lab =
            Lab { outside: Netns::new(), node: Netns::new(), state: tempfile::tempdir().unwrap(), opened: Mutex::default() };
        lab.node.connect("up0", &format!("{NODE}/24"), &lab.outside, "eth0", &format!("{OUTSIDE}/24"));
        lab.node.ip(&format!("route add default via {OUTSIDE}"));
        lab.node.ip(&format!("address add {NODE6}/64 dev up0 nodad"));
        lab.outside.ip(&format!("address add {OUTSIDE6}/64 dev eth0 nodad"));
        lab.node.ip(&format!("route add default via {OUTSIDE6}"));
        lab
    }

    pub fn settings(&self) -> Settings {
        settings_in(self.state.path())
    }

    pub fn dual_stack(&self) -> Settings {
        dual_stack_in(self.state.path())
    }

    /// Whether the node's bridges show what they forward to the IP hooks, as Kubernetes nodes often have it: redirected packets then
    /// take another way through the kernel.
    pub fn set_br_netfilter(&self, value: &'static str) {
        self.node.run(move || {
            for tables in ["iptables", "ip6tables"] {
                let path = format!("/proc/sys/net/bridge/bridge-nf-call-{tables}");
                if std::path::Path::new(&path).exists() {
                    std::fs::write(path, value).unwrap();
                }
            }
        });
    }

    /// As an agent has it: services and policies work.
    pub fn routed(&self) -> Settings {
        routed_in(self.state.path())
    }

    /// The network, opened in the node's namespace.
    pub fn open(&self, settings: Settings) -> Network {
        self.try_open(settings).unwrap()
    }

    pub fn try_open(&self, settings: Settings) -> Result<Network, netplug::Error> {
        let mut opened = self.opened.lock().unwrap();
        if !opened.contains(&settings) {
            opened.push(settings.clone());
        }
        drop(opened);
        self.node.run(move || wait(Network::open(settings)))
    }
}

/// After whatever a test did, who comes next can remove all that networks made here.
impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        for settings in std::mem::take(&mut *self.opened.lock().unwrap()) {
            let (table, leases) = (settings.table.clone(), settings.state_dir.clone());
            let closed = self.node.run(move || wait(async { Network::open(settings).await?.close(Remove::All).await }));
            // Where a test left the host in the way, nothing was made.
            let Ok(()) = closed else { continue };
            // A namespace that ends takes its link along a little later.
            eventually("no link is left", || {
                let links = self.node.ip("-o link show");
                !links.lines().any(|link| link.contains(": veth") || link.contains(": ifb"))
            });
            assert!(!self.node.nft("list tables").contains(&table), "table {table} is left");
            assert!(!leases.exists(), "{} is left", leases.display());
        }
    }
}

/// One of the calling thread's network namespace.
pub fn netlink_socket() -> OwnedFd {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).unwrap() // protocol 0 is NETLINK_ROUTE
}

fn settings_in(state: &Path) -> Settings {
    Settings {
        bridge: "pods0".into(),
        ranges: vec![range("10.88.0.0/24")],
        table: "netplug_test".into(),
        state_dir: state.join("net"),
        reuse_after: Duration::ZERO,
        ..Settings::default()
    }
}

fn dual_stack_in(state: &Path) -> Settings {
    Settings { ranges: vec![range("10.88.0.0/24"), range("fd00:88::/64")], ..settings_in(state) }
}

/// [`Lab::routed`] for a process that has no lab.
pub fn routed_in(state: &Path) -> Settings {
    Settings { isolation: netplug::Isolation::Routed, direct: true, ..dual_stack_in(state) }
}

pub fn range(subnet: &str) -> Range {
    Range { subnet: subnet.parse().unwrap(), gateway: None, exclude: Vec::new() }
}

pub fn wait<T>(future: impl Future<Output = T>) -> T {
    futures::executor::block_on(future)
}

/// Asks again and again; only a failure waits for long.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    // Longer than one question may take: a packet that is sent into the gap is sent again only after a second, or three.
    let patience = PATIENCE * 6;
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < patience, "after {patience:?} it was not so: {what}");
        thread::sleep(Duration::from_millis(2));
    }
    println!("{what}: after {:?}", begun.elapsed());
}

/// A cgroup (v2) of its own.
pub struct Cgroup(pub std::path::PathBuf);

impl Cgroup {
    pub fn new() -> Cgroup {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[2] == "cgroup2");
        let mount = mount.expect("a cgroup2 mount: needed for this test")[1].to_owned();
        let name = format!("netplug-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = std::path::Path::new(&mount).join(name);
        std::fs::create_dir(&dir).unwrap();
        Cgroup(dir)
    }

    /// What a process of the cgroup that connects to an address is told: its peer's name, what its packets say instead, and what it hears.
    pub fn connect(&self, netns: &Netns, address: &str) -> Result<[String; 3], String> {
        const CONNECT: &str = r#"
            use Socket qw(:DEFAULT :addrinfo);
            my ($host, $port) = $ARGV[0] =~ /^\[?(.*?)\]?:(\d+)$/;
            my ($error, $found) = getaddrinfo($host, $port, {socktype => SOCK_STREAM, flags => AI_NUMERICHOST});
            die $error if $error;
            socket(my $socket, $found->{family}, SOCK_STREAM, 0) or die "socket: $!";
            $SIG{ALRM} = sub { die "nobody answers" };
            alarm 5;
            connect($socket, $found->{addr}) or die "connect: $!";
            my (undef, $peer, $at) = getnameinfo(getpeername($socket), NI_NUMERICHOST | NI_NUMERICSERV);
            my ($line) = split /\n/, `ss -Htn4; ss -Htn6`;
            my $real = (split ' ', $line)[4];
            local $/;
            print "$peer $at\n$real\n", <$socket>;
        "#;
        let procs = self.0.join("cgroup.procs");
        let address = address.to_owned();
        netns.run(move || {
            let script = format!("echo $$ > {} && exec perl -e \"$1\" \"$2\"", procs.display());
            let output = Command::new("sh").args(["-c", &script, "sh", CONNECT, &address]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let lines: Vec<String> = said.lines().map(str::to_owned).collect();
            lines.try_into().map_err(|lines| format!("{lines:?} {}", String::from_utf8_lossy(&output.stderr)))
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A pod's namespace, and what it is to be attached with.
pub struct Pod {
    pub netns: Netns,
    pub name: String,
    pub ports: Vec<Port>,
    pub fixed: Vec<IpAddr>,
    pub bandwidth: Option<Bandwidth>,
}

impl Pod {
    pub fn new(name: &str) -> Pod {
        Pod { netns: Netns::new(), name: name.into(), ports: Vec::new(), fixed: Vec::new(), bandwidth: None }
    }

    /// `8080:80/TCP`, `127.0.0.1:8080:80/UDP`, `[::1]:…`
    pub fn port(mut self, text: &str) -> Pod {
        self.ports.push(port(text));
        self
    }

    pub fn attach(&self, network: &Network) -> Result<Attached, netplug::Error> {
        wait(network.attach(Attachment {
            uid: &self.name,
            pod: &format!("default/{}", self.name),
            netns: self.netns.file.as_fd(),
            netlink: self.netns.netlink_socket(),
            ports: self.ports.clone(),
            fixed: self.fixed.clone(),
            bandwidth: self.bandwidth,
        }))
    }

    /// Attached, with a server on its port 80 that says its name.
    pub fn up(&self, network: &Network) -> (Attached, Server) {
        let attached = self.attach(network).unwrap();
        (attached, self.netns.serve(Protocol::Tcp, "[::]:80", &self.name))
    }
}

pub fn port(text: &str) -> Port {
    let (rest, protocol) = text.split_once('/').unwrap();
    let (rest, container) = rest.rsplit_once(':').unwrap();
    let (host_ip, host) = rest.rsplit_once(':').map_or((None, rest), |(ip, port)| (Some(ip), port));
    Port {
        host_ip: host_ip.map(|ip| ip.trim_matches(['[', ']']).parse().unwrap()),
        host_port: host.parse().unwrap(),
        container_port: container.parse().unwrap(),
        protocol: match protocol {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            _ => Protocol::Sctp,
        },
    }
}
