//! The plugin as a runtime meets it: executed, with an environment and standard input, and judged by packets and by the specification.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::{
    io::Write,
    process::{Command, Stdio},
};

use lab::{Lab, NODE, OUTSIDE, Pod};
use netplug::Protocol::Tcp;
use rstest::rstest;
use serde_json::{Value, json};

const NETPLUG: &str = env!("CARGO_BIN_EXE_netplug");
/// Debian's package containernetworking-plugins.
const DEBIAN: &str = "/usr/lib/cni";

/// A node whose runtime calls plugins.
struct Node {
    lab: Lab,
    config: Value,
}

impl Node {
    fn new(version: &str) -> Node {
        let lab = Lab::new();
        let state = lab.state.path();
        let config = json!({
            "cniVersion": version, "name": "podnet", "type": "netplug", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
            "ipMasq": true, "stateDir": state.join("run"),
            "ipam": {"type": "host-local", "dataDir": state.join("lib"), "ranges": [[{"subnet": "10.22.0.0/24"}]]},
        });
        Node { lab, config }
    }

    fn with(mut self, field: &str, value: Value) -> Node {
        *self.config.pointer_mut(field).unwrap_or_else(|| panic!("no {field}")) = value;
        self
    }

    fn adding(mut self, field: &str, value: Value) -> Node {
        self.config[field] = value;
        self
    }

    /// Runs a plugin; `Err` is what it complained of.
    fn call(&self, plugin: &str, command: &str, pod: &Pod, config: &Value) -> Result<Value, Value> {
        let variables = [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", pod.name.clone()),
            ("CNI_NETNS", pod.netns.path()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", DEBIAN.to_owned()),
        ];
        let (plugin, input) = (plugin.to_owned(), config.to_string());
        let output = self.lab.node.run(move || {
            let mut child = Command::new(&plugin)
                .env_clear()
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .envs(variables)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{plugin}: {error}: install containernetworking-plugins"));
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        let said = if output.stdout.is_empty() { b"null" } else { output.stdout.as_slice() };
        let document = serde_json::from_slice(said).unwrap();
        if output.status.success() { Ok(document) } else { Err(document) }
    }

    fn netplug(&self, command: &str, pod: &Pod) -> Result<Value, Value> {
        self.call(NETPLUG, command, pod, &self.config)
    }

    /// An ADD that is killed at a system call. Answers whether it came through because it doesn't make so many.
    fn killed(&self, syscall: &str, step: u32, pod: &Pod) -> bool {
        let script = self.lab.state.path().join("killed");
        let log = self.lab.state.path().join("log");
        let text = format!(
            "#!/bin/sh\nexec strace -f -qq -o {} -e trace={syscall} -e inject={syscall}:signal=SIGKILL:when={step} {NETPLUG}\n",
            log.display()
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert!(self.lab.node.command("strace", "-V").is_ok(), "install strace");
        self.call(script.to_str().unwrap(), "ADD", pod, &self.config).is_ok()
    }

    fn assert_nothing_left(&self, pod: &Pod) {
        assert!(!pod.netns.ip("link show").contains("eth0"));
        assert!(!self.lab.node.ip("link show").contains("master cni0"));
        assert_eq!(self.lab.node.nft("list ruleset"), "");
        let kept = std::fs::read_dir(self.lab.state.path().join("lib/podnet")).unwrap().flatten();
        let kept: Vec<String> = kept.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        assert!(!kept.iter().any(|name| name.starts_with("10.")), "reservations: {kept:?}");
        assert!(!self.lab.state.path().join("run/podnet").exists());
    }

    fn check(&self, pod: &Pod, result: &Value) -> Result<Value, Value> {
        let mut config = self.config.clone();
        config["prevResult"] = result.clone();
        self.call(NETPLUG, "CHECK", pod, &config)
    }
}

fn ports(host: u16) -> Value {
    json!({"portMappings": [{"hostPort": host, "containerPort": 80, "protocol": "tcp"}]})
}

fn details(complaint: Result<Value, Value>) -> String {
    complaint.unwrap_err()["details"].as_str().unwrap().to_owned()
}

#[rstest]
#[case("0.3.1")]
#[case("0.4.0")]
#[case("1.0.0")]
#[case("1.1.0")]
fn a_life(#[case] version: &str) {
    let node = Node::new(version).adding("runtimeConfig", ports(8080));
    let pod = Pod::new("0123456789abcdef");
    let result = node.netplug("ADD", &pod).unwrap();
    assert_eq!(result["cniVersion"], version);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["interfaces"][2]["sandbox"], pod.netns.path());
    assert_eq!(result["interfaces"][2]["mac"], "0a:58:0a:16:00:02");
    assert_eq!(result["interfaces"][2].get("mtu").is_some(), version == "1.1.0");
    let ip = &result["ips"][0];
    assert_eq!((&ip["address"], &ip["gateway"], &ip["interface"]), (&json!("10.22.0.2/24"), &json!("10.22.0.1"), &json!(2)));
    assert_eq!(ip.get("version"), (version < "1.0.0").then_some(&json!("4")));
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
    assert_eq!(node.netplug("ADD", &pod).unwrap(), result, "asked twice");

    let _pod = pod.netns.serve(Tcp, "[::]:80", "pod");
    let _world = node.lab.outside.serve(Tcp, &format!("{OUTSIDE}:80"), "world");
    assert_eq!(pod.netns.ask(Tcp, &format!("{OUTSIDE}:80")), Ok(format!("world {NODE}")));
    assert_eq!(node.lab.outside.ask(Tcp, &format!("{NODE}:8080")), Ok(format!("pod ::ffff:{OUTSIDE}")));
    assert_eq!(node.lab.node.ask(Tcp, "127.0.0.1:8080"), Ok("pod ::ffff:10.22.0.1".into()));

    match version {
        "0.3.1" => assert_eq!(node.check(&pod, &result).unwrap_err()["code"], 1),
        _ => assert_eq!(node.check(&pod, &result), Ok(Value::Null)),
    }
    for _ in 0..2 {
        assert_eq!(node.netplug("DEL", &pod), Ok(Value::Null));
    }
    node.lab.outside.assert_unreachable(Tcp, &format!("{NODE}:8080"));
    node.assert_nothing_left(&pod);
}

/// Whatever it was just about to do when it was killed: DEL leaves nothing, and the next ADD works.
#[rstest]
#[case("sendto")]
#[case("write")]
#[case("rename")]
#[case("openat")]
#[case("setns")]
fn killed_at_each_step(#[case] syscall: &str) {
    for step in 1..200 {
        let node = Node::new("1.1.0").adding("runtimeConfig", ports(8080));
        let pod = Pod::new("pod");
        let alive = node.killed(syscall, step, &pod);
        if step % 2 == 0 {
            node.netplug("DEL", &pod).unwrap();
            node.assert_nothing_left(&pod);
        }
        let result = node.netplug("ADD", &pod).unwrap_or_else(|complaint| panic!("{syscall} {step}: {complaint}"));
        let server = pod.netns.serve(Tcp, "[::]:80", "pod");
        let answer = node.lab.outside.ask(Tcp, &format!("{NODE}:8080"));
        assert_eq!(answer, Ok(format!("pod ::ffff:{OUTSIDE}")), "{syscall} {step}");
        node.check(&pod, &result).unwrap();
        drop(server);
        node.netplug("DEL", &pod).unwrap();
        node.assert_nothing_left(&pod);
        if alive {
            assert!(step > 1, "{syscall} is never called");
            return;
        }
    }
    panic!("{syscall}: there is no end to it");
}

#[rstest]
#[case::address("address flush dev eth0", "interface eth0 has lost its address 10.22.0.2")]
#[case::link_down("link set eth0 down", "interface eth0 is down")]
#[case::link_gone("link delete eth0", "interface eth0 is gone")]
#[case::route("route delete default", "the route to 0.0.0.0/0 is gone")]
fn check_tells_what_changed(#[case] harm: &str, #[case] complaint: &str) {
    let node = Node::new("1.1.0");
    let pod = Pod::new("pod");
    let result = node.netplug("ADD", &pod).unwrap();
    node.check(&pod, &result).unwrap();
    pod.netns.ip(harm);
    assert_eq!(details(node.check(&pod, &result)), complaint);
    node.netplug("DEL", &pod).unwrap();
}

#[test]
fn dual_stack_and_routes() {
    let sets = json!([[{"subnet": "10.22.0.0/24", "rangeStart": "10.22.0.100", "rangeEnd": "10.22.0.101"}], [{"subnet": "fd00:22::/64"}]]);
    let node = Node::new("1.0.0").with("/ipam/ranges", sets);
    let pods = [Pod::new("a"), Pod::new("b"), Pod::new("c")];
    let first = node.netplug("ADD", &pods[0]).unwrap();
    let addresses =
        |result: &Value| [&result["ips"][0]["address"], &result["ips"][1]["address"]].map(|a| a.as_str().unwrap().to_owned());
    assert_eq!(addresses(&first), ["10.22.0.100/24", "fd00:22::2/64"]);
    let second = node.netplug("ADD", &pods[1]).unwrap();
    assert_eq!(addresses(&second), ["10.22.0.101/24", "fd00:22::3/64"]);
    let full = node.netplug("ADD", &pods[2]);
    assert_eq!(details(full), "range 10.22.0.0/24 is full (2 of 2): end pods, or add a range");
    assert!(!node.lab.state.path().join("lib/podnet/fd00:22::4").exists(), "the other family's was given back");
    let _a = pods[0].netns.serve(Tcp, "[::]:80", "a");
    assert_eq!(pods[1].netns.ask(Tcp, "[fd00:22::2]:80"), Ok("a fd00:22::3".into()));
    // Freed without the namespace's help, and taken again.
    node.netplug("DEL", &pods[0]).unwrap();
    assert_eq!(addresses(&node.netplug("ADD", &pods[2]).unwrap())[0], "10.22.0.100/24");
}

#[rstest]
#[case::version("/cniVersion", json!("0.2.0"), 1, "cniVersion: \"0.2.0\" is asked for; this plugin speaks 0.3.1, 0.4.0, 1.0.0, 1.1.0")]
#[case::name("/name", json!("../x"), 7, "name: \"../x\" must begin")]
#[case::bridge("/bridge", json!("much-too-long-a-name"), 7, "bridge: \"much-too-long-a-name\" must have 1 to 15 bytes")]
#[case::gateway("/isGateway", json!(false), 2, "isGateway: false: ")]
#[case::ipam("/ipam/type", json!("dhcp"), 7, "ipam.type: is \"dhcp\"")]
#[case::subnet("/ipam/ranges/0/0/subnet", json!("10.22.0.0"), 7, "ipam.ranges[0].subnet: \"10.22.0.0\" has no /prefix")]
#[case::empty("/ipam/ranges", json!([]), 7, "ipam.ranges: is empty")]
#[case::overlap("/ipam/ranges/0/0/subnet", json!("192.0.2.0/24"), 7, "overlaps the host's route to 192.0.2.0/24 by up0")]
#[case::route("/ipam/ranges", json!([[{"subnet": "10.22.0.0/24"}], [{"subnet": "10.23.0.0/24"}]]), 7, "ipam.ranges[1]: is the second of its family")]
#[case::kind("/ipMasq", json!("yes"), 6, "standard input: invalid type")]
fn complaints_name_the_field(#[case] field: &str, #[case] value: Value, #[case] code: u32, #[case] words: &str) {
    let node = Node::new("1.1.0").with(field, value);
    let before = node.lab.node.picture();
    let complaint = node.netplug("ADD", &Pod::new("pod")).unwrap_err();
    assert_eq!(complaint["code"], code, "{complaint}");
    assert!(complaint["details"].as_str().unwrap().contains(words), "{complaint}");
    assert_eq!(node.lab.node.picture(), before);
}

#[test]
fn an_environment_that_cannot_be() {
    let node = Node::new("1.1.0");
    let pod = Pod { name: "../pod".into(), ..Pod::new("") };
    assert_eq!(node.netplug("ADD", &pod).unwrap_err()["code"], 4);
    assert_eq!(node.netplug("FLY", &Pod::new("pod")).unwrap_err()["code"], 4);
    let versions = node.netplug("VERSION", &pod).unwrap();
    assert_eq!(versions["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
}

#[test]
fn host_ports_are_refused_by_their_holder() {
    let node = Node::new("1.1.0").adding("runtimeConfig", ports(8080));
    node.netplug("ADD", &Pod::new("first")).unwrap();
    let second = details(node.netplug("ADD", &Pod::new("second")));
    assert!(second.contains("host port 8080/TCP is taken by pod first (eth0)"), "{second}");
    let leases = std::fs::read_dir(node.lab.state.path().join("run/podnet")).unwrap().count();
    assert_eq!(leases, 1, "nothing of the second is left");
}

#[test]
fn gc_frees_what_is_not_named() {
    let node = Node::new("1.1.0").with("/ipam/ranges/0/0/subnet", json!("10.22.0.0/29"));
    let pods: Vec<Pod> = (0..5).map(|n| Pod::new(&format!("pod{n}"))).collect();
    for pod in &pods {
        node.netplug("ADD", pod).unwrap();
    }
    let full = details(node.netplug("STATUS", &pods[0]));
    assert_eq!(full, "range 10.22.0.0/29 is full: end pods, or add a range");
    let mut config = node.config.clone();
    config["cni.dev/valid-attachments"] = json!([{"containerID": "pod3", "ifname": "eth0"}]);
    node.call(NETPLUG, "GC", &pods[0], &config).unwrap();
    node.netplug("STATUS", &pods[0]).unwrap();
    assert!(pods[3].netns.ip("-4 address show eth0").contains("10.22.0.5/29"));
    assert!(!pods[2].netns.ip("link show").contains("eth0"));
    assert_eq!(node.lab.node.ip("link show").matches("master cni0").count(), 1);
}

/// An address that host-local gave is not given again, nor the other way round.
#[test]
fn reservations_are_shared_with_host_local() {
    let node = Node::new("1.0.0");
    let [a, b, c] = ["a", "b", "c"].map(Pod::new);
    let host_local = |command: &str, pod: &Pod| node.call(&format!("{DEBIAN}/host-local"), command, pod, &node.config);
    let address = |result: Result<Value, Value>| result.unwrap()["ips"][0]["address"].clone();
    assert_eq!(address(host_local("ADD", &a)), "10.22.0.2/24");
    assert_eq!(address(node.netplug("ADD", &b)), "10.22.0.3/24");
    assert_eq!(address(host_local("ADD", &c)), "10.22.0.4/24");
    node.netplug("DEL", &a).unwrap();
    host_local("DEL", &b).unwrap();
}

/// What 1.1.0's routes may say, a MAC, and ranges of a container's own.
#[test]
fn routes_a_mac_and_own_ranges() {
    let routes =
        json!([{"dst": "10.9.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 7}, {"dst": "10.8.0.0/16", "table": 1000}]);
    let runtime = json!({"mac": "02:11:22:33:44:55", "ipRanges": [[{"subnet": "10.23.0.0/24"}]]});
    let node = Node::new("1.1.0").with("/ipam/ranges", json!([])).adding("runtimeConfig", runtime);
    let mut config = node.config.clone();
    config["ipam"]["routes"] = routes.clone();
    config["prevResult"] = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "vhost0", "socketPath": "/run/x.sock"}]});
    let pod = Pod::new("pod");
    let result = node.call(NETPLUG, "ADD", &pod, &config).unwrap();
    assert_eq!(result["interfaces"][0], json!({"name": "vhost0", "socketPath": "/run/x.sock"}), "what came before is kept");
    assert_eq!(result["interfaces"][3]["mac"], "02:11:22:33:44:55");
    assert_eq!(result["ips"][0]["address"], "10.23.0.2/24");
    assert_eq!(result["routes"].as_array().unwrap()[..2], routes.as_array().unwrap()[..]);
    assert!(pod.netns.ip("link show eth0").contains("02:11:22:33:44:55"));
    let route = pod.netns.ip("route show 10.9.0.0/16");
    assert!(["metric 7", "mtu 1300", "advmss 1200"].iter().all(|word| route.contains(word)), "{route}");
    assert!(pod.netns.ip("route show table 1000").contains("10.8.0.0/16 via 10.23.0.1 dev eth0"));
    config["prevResult"] = result;
    node.call(NETPLUG, "CHECK", &pod, &config).unwrap();
    node.call(NETPLUG, "DEL", &pod, &config).unwrap();
    node.assert_nothing_left(&pod);
}

/// The capability, or the fields that the plugin `bandwidth` has; CHECK sees the limits go, DEL takes them along.
#[rstest]
#[case::capability("runtimeConfig", json!({"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}}))]
#[case::field("egressRate", json!(8_000_000))]
fn bandwidth(#[case] field: &str, #[case] value: Value) {
    let node = Node::new("1.1.0").adding(field, value);
    let pod = Pod::new("pod");
    let result = node.netplug("ADD", &pod).unwrap();
    let shaped = node.lab.node.command("tc", "qdisc show").unwrap();
    assert!(shaped.contains("qdisc tbf 1: dev ifb") && shaped.contains("rate 8Mbit"), "{shaped}");
    node.check(&pod, &result).unwrap();
    let name = node.lab.node.ip("-o link show type ifb").split(": ").nth(1).unwrap().to_owned();
    node.lab.node.ip(&format!("link delete {name}"));
    assert_eq!(details(node.check(&pod, &result)), format!("the bandwidth limit on {name} is gone"));
    node.netplug("ADD", &pod).unwrap();
    node.check(&pod, &result).unwrap();
    node.netplug("DEL", &pod).unwrap();
    assert_eq!(node.lab.node.ip("link show type ifb"), "");
    node.assert_nothing_left(&pod);
}

/// The chain of a usual conflist: the next plugin reads our result.
#[test]
fn others_read_our_result() {
    let node = Node::new("1.0.0");
    let pod = Pod::new("pod");
    let result = node.netplug("ADD", &pod).unwrap();
    let tuning = json!({"cniVersion": "1.0.0", "name": "podnet", "type": "tuning", "mtu": 1400, "prevResult": result});
    let tuned = node.call(&format!("{DEBIAN}/tuning"), "ADD", &pod, &tuning).unwrap();
    assert_eq!(tuned["ips"], result["ips"]);
    assert!(pod.netns.ip("link show eth0").contains("mtu 1400"));
    node.check(&pod, &tuned).unwrap();
    node.netplug("DEL", &pod).unwrap();
}

/// The library and the plugin are one: what the plugin made, it finds.
#[test]
fn a_deleted_table_comes_back_with_all_ports() {
    let node = Node::new("1.1.0").adding("runtimeConfig", ports(8080));
    let first = Pod::new("first");
    node.netplug("ADD", &first).unwrap();
    let _first = first.netns.serve(Tcp, "[::]:80", "first");
    node.lab.node.nft("flush ruleset");
    let second = Node { config: node.config.clone(), lab: node.lab }.adding("runtimeConfig", ports(8081));
    second.netplug("ADD", &Pod::new("second")).unwrap();
    assert_eq!(second.lab.outside.ask(Tcp, &format!("{NODE}:8080")), Ok(format!("first ::ffff:{OUTSIDE}")));
}
