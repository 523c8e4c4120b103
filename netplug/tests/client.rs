//! The client with Debian's plugins, in namespaces and judged by packets; and with plugins that misbehave.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lab::{Lab, NODE, OUTSIDE, Pod};
use netplug::{
    Protocol::Tcp,
    cni::client::{Attached, Attachment, Client, Error, Settings},
};
use rstest::rstest;
use serde_json::{Value, json};

/// Debian's package containernetworking-plugins.
const DEBIAN: &str = "/usr/lib/cni";

/// A node that has a client, and a folder for everything.
struct Node {
    lab: Lab,
    client: Arc<Client>,
}

impl Node {
    fn new(conflist: &Value) -> Node {
        Node::with_patience(conflist, Duration::from_secs(60))
    }

    fn with_patience(conflist: &Value, patience: Duration) -> Node {
        let lab = Lab::new();
        let dir = lab.state.path();
        let settings = Settings {
            conf_dir: dir.join("net.d"),
            bin_dirs: vec![dir.join("bin"), DEBIAN.into()],
            cache_dir: dir.join("cache"),
            patience,
        };
        for folder in [&settings.conf_dir, &settings.bin_dirs[0]] {
            fs::create_dir_all(folder).unwrap();
        }
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_netplug"), dir.join("bin/netplug")).unwrap();
        let node = Node { lab, client: Arc::new(Client::open(settings).unwrap()) };
        node.configure(conflist);
        node
    }

    fn configure(&self, conflist: &Value) {
        let text = conflist.to_string().replace("DIR", self.dir().to_str().unwrap());
        fs::write(self.dir().join("net.d/10-test.conflist"), text).unwrap();
    }

    fn dir(&self) -> &Path {
        self.lab.state.path()
    }

    /// A plugin that is a shell script; each call of it is noted.
    fn script(&self, name: &str, script: &str) {
        let path = self.dir().join("bin").join(name);
        let log = self.dir().join("calls");
        let known = r#"if [ $CNI_COMMAND = VERSION ]; then echo '{"cniVersion": "0.3.1", "supportedVersions": ["0.4.0", "1.0.0"]}'; exit; fi"#;
        fs::write(&path, format!("#!/bin/sh\n{known}\necho {name} $CNI_COMMAND >> {}\n{script}\n", log.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.dir().join("calls")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn attachment(pod: &Pod, capabilities: Value) -> Attachment {
        Attachment {
            container: pod.name.clone(),
            interface: "eth0".into(),
            netns: pod.netns.path().into(),
            args: vec![("IgnoreUnknown".into(), "1".into()), ("K8S_POD_NAME".into(), pod.name.clone())],
            capabilities: capabilities.as_object().unwrap().clone(),
        }
    }

    fn add(&self, pod: &Pod, capabilities: Value) -> Result<Attached, Error> {
        let (client, attachment) = (self.client.clone(), Node::attachment(pod, capabilities));
        self.lab.node.run(move || client.add(&client.folder().first()?, &attachment))
    }

    fn del(&self, pod: &Pod) -> Result<(), Error> {
        let (client, name) = (self.client.clone(), pod.name.clone());
        self.lab.node.run(move || client.del(&name))
    }

    fn check(&self, pod: &Pod) -> Result<(), Error> {
        let (client, name) = (self.client.clone(), pod.name.clone());
        self.lab.node.run(move || client.check(&name))
    }

    fn status(&self) -> Result<(), Error> {
        let client = self.client.clone();
        self.lab.node.run(move || client.status(&client.folder().first()?))
    }

    /// What is in a folder of ours.
    fn files(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.dir().join(folder)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn assert_nothing_left(&self, pod: &Pod) {
        assert_eq!(self.files("cache/results"), Vec::<String>::new());
        let reserved: Vec<String> = self.files("ipam/test").into_iter().filter(|name| name.starts_with("10.")).collect();
        assert_eq!(reserved, Vec::<String>::new(), "reservations");
        assert!(!pod.netns.ip("link show").contains("eth0"));
        assert!(!self.lab.node.ip("link show").contains("veth"), "{}", self.lab.node.ip("link show"));
    }
}

fn ipam() -> Value {
    json!({"type": "host-local", "dataDir": "DIR/ipam", "ranges": [[{"subnet": "10.22.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]})
}

fn list(plugins: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "test", "plugins": plugins})
}

fn portmap() -> Value {
    json!({"type": "portmap", "capabilities": {"portMappings": true}})
}

fn bridge() -> Value {
    json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam()})
}

fn ports() -> Value {
    json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]})
}

#[rstest]
#[case::bridge(list(json!([bridge(), portmap()])))]
#[case::bridge_and_all(list(json!([
    bridge(), portmap(), {"type": "bandwidth", "capabilities": {"bandwidth": true}}, {"type": "firewall"}, {"type": "tuning", "mtu": 1400}
])))]
#[case::ptp(list(json!([{"type": "ptp", "ipMasq": true, "ipam": ipam()}, portmap()])))]
#[case::netplug(json!({"cniVersions": ["1.0.0", "1.1.0"], "name": "test", "plugins": [{"type": "netplug", "bridge": "cni0", "ipMasq": true,
    "isDefaultGateway": true, "stateDir": "DIR/run", "capabilities": {"portMappings": true, "bandwidth": true}, "ipam": ipam()}]}))]
fn a_life(#[case] conflist: Value) {
    let node = Node::new(&conflist);
    let pod = Pod::new("0123-abcd");
    let mut capabilities = ports();
    capabilities["bandwidth"] =
        json!({"ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 80_000_000, "egressBurst": 8_000_000});
    node.status().unwrap();
    let limits = json!({"bandwidth": capabilities["bandwidth"]});
    let attached = node.add(&pod, capabilities).unwrap();
    assert_eq!(attached.ips.len(), 1);
    assert_eq!(node.files("cache/results"), ["test-0123-abcd-eth0"]);

    let _pod = pod.netns.serve(Tcp, "0.0.0.0:80", "pod");
    let _world = node.lab.outside.serve(Tcp, &format!("{OUTSIDE}:80"), "world");
    assert_eq!(pod.netns.ask(Tcp, &format!("{OUTSIDE}:80")), Ok(format!("world {NODE}")));
    assert_eq!(node.lab.outside.ask(Tcp, &format!("{NODE}:8080")), Ok(format!("pod {OUTSIDE}")));

    // CHECK of a pod without ports: Debian's portmap misses rules of IPv6 otherwise, which a pod of IPv4 alone doesn't have.
    let quiet = Pod::new("quiet");
    node.add(&quiet, limits).unwrap();
    node.check(&quiet).unwrap();
    quiet.netns.ip("address flush dev eth0");
    let words = node.check(&quiet).unwrap_err().to_string();
    assert!(words.contains("10-test.conflist: plugins[0]: ") && words.contains(" CHECK: "), "{words}");
    node.del(&quiet).unwrap();
    for _ in 0..2 {
        node.del(&pod).unwrap();
    }
    node.lab.outside.assert_unreachable(Tcp, &format!("{NODE}:8080"));
    node.assert_nothing_left(&pod);
}

#[test]
fn macvlan_is_a_neighbour_of_the_node() {
    let ipam = json!({"type": "host-local", "dataDir": "DIR/ipam", "ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.100"}]]});
    let node = Node::new(&list(json!([{"type": "macvlan", "master": "up0", "ipam": ipam}])));
    let pod = Pod::new("pod");
    assert_eq!(node.add(&pod, json!({})).unwrap().ips, ["192.0.2.100".parse::<std::net::IpAddr>().unwrap()]);
    let _pod = pod.netns.serve(Tcp, "0.0.0.0:80", "pod");
    assert_eq!(node.lab.outside.ask(Tcp, "192.0.2.100:80"), Ok(format!("pod {OUTSIDE}")));
    node.check(&pod).unwrap();
    node.del(&pod).unwrap();
    node.assert_nothing_left(&pod);
}

/// Two networks, one container; DEL takes both, also when their files have gone and the namespace too.
#[test]
fn what_add_used_is_what_del_uses() {
    let node = Node::new(&list(json!([bridge(), portmap()])));
    let pod = Pod::new("pod");
    node.add(&pod, ports()).unwrap();
    let second = json!({"cniVersion": "0.4.0", "name": "second", "type": "ptp", "ipam": {"type": "host-local", "dataDir": "DIR/ipam", "subnet": "10.23.0.0/24"}});
    fs::write(node.dir().join("net.d/20-second.conf"), second.to_string().replace("DIR", node.dir().to_str().unwrap())).unwrap();
    let client = node.client.clone();
    let attachment = Attachment { interface: "net1".into(), ..Node::attachment(&pod, json!({})) };
    node.lab.node.run(move || client.add(&client.folder().named("second").unwrap(), &attachment)).unwrap();
    assert!(pod.netns.ip("address show net1").contains("10.23.0.2/"));
    fs::remove_dir_all(node.dir().join("net.d")).unwrap();
    let name = pod.name.clone();
    drop(pod);
    let client = node.client.clone();
    node.lab.node.run(move || client.del(&name)).unwrap();
    assert_eq!(node.files("cache/results"), Vec::<String>::new());
    assert_eq!(node.files("ipam/second").iter().filter(|name| name.starts_with("10.")).count(), 0);
    assert_eq!(node.files("ipam/test").iter().filter(|name| name.starts_with("10.")).count(), 0);
}

/// A crash between any two plugins leaves an entry; whoever comes after undoes it, and keeps what lives.
#[test]
fn after_a_crash_nothing_of_the_dead_is_left() {
    let node = Node::new(&list(json!([bridge(), {"type": "crash"}])));
    let pods = [Pod::new("alive"), Pod::new("dead")];
    node.script("crash", "cat");
    fs::write(node.dir().join("bin/crash"), "#!/bin/sh\nif [ $CNI_COMMAND = VERSION ]; then echo '{\"supportedVersions\": [\"1.0.0\"]}'; exit; fi\nsed 's/.*\"prevResult\":\\({.*}\\),\"type\".*/\\1/'\n").unwrap();
    node.add(&pods[0], json!({})).unwrap();
    node.add(&pods[1], json!({})).unwrap();
    // As a crash during ADD leaves it: an entry without result.
    let path = node.dir().join("cache/results/test-dead-eth0");
    let mut entry: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    entry.as_object_mut().unwrap().remove("result");
    fs::write(&path, entry.to_string()).unwrap();
    fs::write(node.dir().join("cache/results/torn"), "{").unwrap();
    let client = node.client.clone();
    node.lab.node.run(move || client.retain(&HashSet::from(["alive"]))).unwrap();
    assert_eq!(node.files("cache/results"), ["test-alive-eth0"]);
    assert!(!pods[1].netns.ip("link show").contains("eth0"));
    assert!(pods[0].netns.ip("link show").contains("eth0"));
    // The same container again: what is left of the earlier try goes first.
    node.add(&pods[0], json!({})).unwrap();
    node.del(&pods[0]).unwrap();
    node.assert_nothing_left(&pods[0]);
}

#[rstest]
#[case::garbage(
    "echo panic: index out of range",
    "answers with what is no CNI result: expected value at line 1 column 1: \"panic: index out of range\""
)]
#[case::silence("cat > /dev/null", "answers with what is no CNI result: EOF while parsing a value at line 1 column 0: \"\"")]
#[case::version(r#"echo '{"cniVersion": "0.2.0", "ip4": {}}'"#, "answers in CNI version 0.2.0, though it was asked in 1.0.0")]
#[case::refusal(
    r#"echo '{"cniVersion": "1.0.0", "code": 11, "msg": "later", "details": "no daemon"}'; exit 1"#,
    "later: no daemon (code 11)"
)]
#[case::death("echo segmentation fault >&2; exit 139", "failed (exit status: 139) and says \"segmentation fault\"")]
#[case::signal("kill -9 $$", "failed (signal: 9 (SIGKILL)) and says \"\"")]
#[case::hang("[ $CNI_COMMAND = DEL ] || sleep 1000", "did not end within 2 s and was killed")]
fn a_plugin_that_misbehaves(#[case] script: &str, #[case] words: &str) {
    let node = Node::with_patience(&list(json!([bridge(), {"type": "strange"}])), Duration::from_secs(2));
    let pod = Pod::new("pod");
    node.script("strange", &format!("if [ $CNI_COMMAND = DEL ]; then exit; fi\n{script}"));
    let error = node.add(&pod, json!({})).unwrap_err();
    let beginning = format!("{0}/net.d/10-test.conflist: plugins[1]: {0}/bin/strange ADD: {words}", node.dir().display());
    assert!(error.to_string().starts_with(&beginning), "{error}");
    assert_eq!(error.is_temporary(), words.starts_with("later"));
    assert_eq!(node.calls(), ["strange ADD", "strange DEL"]);
    node.assert_nothing_left(&pod);
    // Mended, it goes on by itself.
    node.configure(&list(json!([bridge()])));
    node.add(&pod, json!({})).unwrap();
    node.del(&pod).unwrap();
}

#[test]
fn one_that_does_not_let_go_is_asked_again() {
    let node = Node::new(&list(json!([bridge(), {"type": "stubborn"}])));
    let pod = Pod::new("pod");
    node.script("stubborn", "echo no >&2; exit 1");
    node.add(&pod, json!({})).unwrap_err();
    assert_eq!(node.files("cache/results"), ["test-pod-eth0"], "there is something to undo");
    assert!(node.del(&pod).unwrap_err().to_string().contains("stubborn DEL: failed (exit status: 1) and says \"no\""));
    assert!(!pod.netns.ip("link show").contains("eth0"), "the others were asked all the same");
    node.script("stubborn", "exit 0");
    node.del(&pod).unwrap();
    node.assert_nothing_left(&pod);
}

#[rstest]
#[case::missing(list(json!([bridge(), {"type": "nothing"}])), "plugins[1].type: there is no plugin \"nothing\" in DIR/bin, /usr/lib/cni: install it there")]
#[case::version(
    json!({"cniVersion": "1.1.0", "name": "test", "plugins": [bridge()]}),
    "cniVersion: 1.1.0 is not spoken by bridge (which speaks 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0): write a version that all plugins of the list speak"
)]
#[case::address(list(json!([{"type": "bridge", "bridge": "cni0", "ipam": {}}])), "plugins: the plugins gave eth0 no address")]
fn a_configuration_that_cannot_be(#[case] conflist: Value, #[case] words: &str) {
    let node = Node::new(&conflist);
    let pod = Pod::new("pod");
    let error = node.add(&pod, json!({})).unwrap_err().to_string();
    let words = format!("DIR/net.d/10-test.conflist: {words}").replace("DIR", node.dir().to_str().unwrap());
    assert!(error.starts_with(&words), "{error}");
    node.assert_nothing_left(&pod);
}

/// GC and STATUS came with 1.1.0: our own plugin has them.
#[test]
fn garbage_and_readiness() {
    let conflist = json!({"cniVersion": "1.1.0", "name": "test", "plugins": [{"type": "netplug", "bridge": "cni0", "stateDir": "DIR/run",
        "ipam": {"type": "host-local", "dataDir": "DIR/ipam", "subnet": "10.22.0.0/29"}}]});
    let node = Node::new(&conflist);
    let pods: Vec<Pod> = (0..5).map(|number| Pod::new(&format!("pod{number}"))).collect();
    for pod in &pods {
        node.add(pod, json!({})).unwrap();
    }
    let full = node.status().unwrap_err().to_string();
    assert!(full.contains("/bin/netplug STATUS: the plugin is not available: range 10.22.0.0/29 is full"), "{full}");
    // Forgotten by the runtime, as by one that lost its disk.
    fs::remove_file(node.dir().join("cache/results/test-pod3-eth0")).unwrap();
    let client = node.client.clone();
    node.lab.node.run(move || client.gc(&client.folder().first().unwrap())).unwrap();
    node.status().unwrap();
    assert!(!pods[3].netns.ip("link show").contains("eth0"));
    assert!(pods[2].netns.ip("link show").contains("eth0"));
}

/// Many at once, as when a node starts.
#[test]
fn twenty_at_once() {
    let node = Node::new(&list(json!([bridge(), portmap()])));
    let pods: Vec<Pod> = (0..20).map(|number| Pod::new(&format!("pod{number}"))).collect();
    let node_path: PathBuf = node.lab.node.path().into();
    let ips: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = pods
            .iter()
            .map(|pod| {
                let (client, node_path) = (node.client.clone(), node_path.clone());
                let attachment = Node::attachment(pod, json!({}));
                scope.spawn(move || {
                    let there = fs::File::open(node_path).unwrap();
                    nix::sched::setns(there, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    client.add(&client.folder().first().unwrap(), &attachment).unwrap().ips[0]
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(ips.iter().collect::<HashSet<_>>().len(), 20, "{ips:?}");
    for pod in &pods {
        node.del(pod).unwrap();
        node.assert_nothing_left_of(pod);
    }
}

impl Node {
    fn assert_nothing_left_of(&self, pod: &Pod) {
        assert!(!pod.netns.ip("link show").contains("eth0"));
        assert!(!self.files("cache/results").iter().any(|name| name.contains(&format!("-{}-", pod.name))));
    }
}
