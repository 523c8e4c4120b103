//! Pods wired by CNI plugins: Debian's, as a cluster's nodes have them, and such as misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use e2e::{Builder, INSIDE, NodeBox, Snapshot, eventually, pod};
use serde_json::{Value, json};

/// A folder for configurations, plugins of ours, and what plugins keep.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::Builder::new().prefix("nodeagent-e2e-cni-").tempdir().unwrap());
        for name in ["net.d", "bin"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A node whose pods are wired by what is here; `more` lines of configuration.
    fn node(&self, more: &str) -> Builder {
        let dir = self.path().display();
        NodeBox::builder().config(&format!(
            "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\n{more}\n\
             cni: {{confDir: {dir}/net.d, binDirs: [{dir}/bin, /usr/lib/cni], timeout: 3s}}\n"
        ))
    }

    /// As an add-on does it: in one step.
    fn configure(&self, file: &str, text: &str) {
        let new = self.path().join("new");
        std::fs::write(&new, text.replace("DIR", self.path().to_str().unwrap())).unwrap();
        std::fs::rename(new, self.path().join("net.d").join(file)).unwrap();
    }

    fn script(&self, name: &str, script: &str) {
        let new = self.path().join("new");
        let known = r#"[ $CNI_COMMAND = VERSION ] && { echo '{"supportedVersions": ["1.0.0"]}'; exit; }"#;
        std::fs::write(&new, format!("#!/bin/sh\n{known}\n{script}\n")).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(new, self.path().join("bin").join(name)).unwrap();
    }

    /// Addresses of a network that somebody has.
    fn reserved(&self, network: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path().join("ipam").join(network)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with("10.")).collect()
    }
}

fn ipam(subnet: &str) -> Value {
    json!({"type": "host-local", "dataDir": "DIR/ipam", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]})
}

fn list(name: &str, plugins: &Value) -> String {
    json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins}).to_string()
}

fn bridge() -> Value {
    json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam("10.22.0.0/24")})
}

fn chain() -> String {
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    list("pods", &json!([bridge(), portmap, bandwidth]))
}

/// What plugins of others leave on purpose (bridges, chains of iptables) isn't compared, nor one that was asked for its state just then.
fn is_as(node: &NodeBox, before: &Snapshot) {
    eventually("the machine is as before", || {
        let theirs = ["+ link cni0", "+ address cni0", "+ route", "+ nft", "- process"];
        let ours = |fact: &String| !theirs.iter().any(|theirs| fact.starts_with(theirs));
        let changes: Vec<String> = node.snapshot().since(before).into_iter().filter(ours).collect();
        if changes.is_empty() { Ok(()) } else { Err(changes.join("\n")) }
    });
}

fn ready(node: &NodeBox) -> (String, String) {
    let output = node.run(&["get", "node", "node", "-o", "json"]).ok();
    let object: Value = serde_json::from_str(&output).unwrap();
    let conditions = object["status"]["conditions"].as_array().unwrap();
    let condition = conditions.iter().find(|condition| condition["type"] == "Ready").unwrap();
    (condition["status"].as_str().unwrap().into(), condition["message"].as_str().unwrap().into())
}

#[test]
fn a_pods_life_with_plugins() {
    let folder = Folder::new();
    folder.configure("10-pods.conflist", &chain());
    let node = folder.node("network: cni").start();
    let before = node.snapshot();
    let web = pod("web").metadata("annotations: {kubernetes.io/egress-bandwidth: 100M}");
    let web = node.put(&web.runs_with("web", "serve --port 8080", "ports: [{containerPort: 8080, hostPort: 8088}]"));
    web.becomes("Running");
    assert!(web.ip().starts_with("10.22.0."), "{}", web.ip());
    assert_eq!(folder.reserved("pods"), [web.ip()]);
    eventually("its host port leads to it", || node.curl_from_outside(&format!("http://{INSIDE}:8088/")).result());
    assert!(node.inside("tc", &["qdisc", "show"]).ok().contains("qdisc tbf"));
    assert_eq!(ready(&node).0, "True");
    assert!(!node.inside("ip", &["link"]).ok().contains("nodeagent0"), "no bridge of the agent's own");
    node.apply("service.yaml", "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}");
    node.tells(&["Service default/web has no effect: CNI plugins wire the pods"]);
    node.remove("service.yaml");

    // Another agent goes on with it, and takes it back at its end, as it was made, though the configuration is another by then.
    let pid = web.container("web").host_pid();
    node.kill_agent();
    folder.configure("10-pods.conflist", "{");
    node.start_agent();
    web.becomes("Running");
    assert_eq!(web.container("web").host_pid(), pid);
    node.remove("web.yaml");
    web.is_gone();
    is_as(&node, &before);
    assert_eq!(folder.reserved("pods"), Vec::<String>::new());
    assert!(!node.root().join("run/nodeagent/netns").read_dir().unwrap().any(|_| true));
    assert!(!node.root().join("var/lib/nodeagent/cni/results").read_dir().unwrap().any(|_| true));
}

#[test]
fn without_a_network_pods_wait_and_the_node_says_so() {
    let folder = Folder::new();
    std::fs::remove_dir(folder.path().join("net.d")).unwrap();
    let node = folder.node("network: cni").start();
    let web = node.put(&pod("web").runs("web", "serve --port 8080"));
    web.tells(&["FailedCreatePodSandBox", "no CNI network configuration in", "net.d"]);
    eventually("the node is not ready", || match ready(&node) {
        (status, message) if status == "False" && message.contains("NetworkPluginNotReady") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // What needs no network runs: the add-on that brings it is such a pod.
    node.put(&pod("addon").spec("hostNetwork: true").runs("a", "sleep")).becomes("Running");

    std::fs::create_dir(folder.path().join("net.d")).unwrap();
    folder.configure("10-pods.conflist", "{\n  \"name\": \"pods\",\n  \"cniVersion\": 1\n}");
    web.tells(&["10-pods.conflist: plugins: is missing"]);
    folder.configure("10-pods.conflist", &list("pods", &json!([{"type": "brigde"}])));
    web.tells(&["10-pods.conflist: plugins[0].type: there is no plugin \"brigde\" in"]);
    folder.configure("10-pods.conflist", &list("pods", &json!([bridge()])));
    web.becomes("Running");
    eventually("the node is ready", || if ready(&node).0 == "True" { Ok(()) } else { Err(ready(&node).1) });
}

#[test]
fn a_plugin_that_hangs_costs_its_pod_and_nobody_else() {
    let folder = Folder::new();
    folder.script("strange", "[ $CNI_COMMAND = DEL ] || sleep 1000");
    folder.configure("10-pods.conflist", &list("pods", &json!([bridge(), {"type": "strange"}])));
    let node = folder.node("network: cni").start();
    let before = node.snapshot();
    let web = node.put(&pod("web").runs("web", "sleep"));
    web.tells(&["10-pods.conflist: plugins[1]: ", "bin/strange ADD: did not end within 3 s and was killed"]);
    folder.script("strange", "echo not json");
    web.tells(&["bin/strange ADD: answers with what is no CNI result", "not json"]);
    assert!(folder.reserved("pods").len() <= 1, "{:?}", folder.reserved("pods"));
    // Mended: it passes on what the one before it said.
    folder.script("strange", "[ $CNI_COMMAND = ADD ] && sed 's/.*\"prevResult\":\\({.*}\\),\"type\".*/\\1/'; exit 0");
    web.becomes("Running");
    node.remove("web.yaml");
    web.is_gone();
    is_as(&node, &before);
    assert_eq!(folder.reserved("pods"), Vec::<String>::new());
}

#[test]
fn after_a_reboot_what_was_is_taken_back() {
    let folder = Folder::new();
    folder.configure("10-pods.conflist", &chain());
    let node = folder.node("network: cni").start();
    let stays = node.put(&pod("stays").runs_with("a", "serve --port 8080", "ports: [{containerPort: 8080, hostPort: 8088}]"));
    let goes = node.put(&pod("goes").runs("a", "sleep"));
    stays.becomes("Running");
    goes.becomes("Running");
    assert_eq!(folder.reserved("pods").len(), 2);
    node.inside("sh", &["-c", &format!("umount {}/run/nodeagent/netns/*", node.root().display())]).ok();
    node.reboot();
    node.remove("goes.yaml");
    node.start_agent();
    stays.becomes("Running");
    eventually("one address is reserved", || match folder.reserved("pods") {
        reserved if reserved == [stays.ip()] => Ok(()),
        reserved => Err(format!("{reserved:?}, the pod has {}", stays.ip())),
    });
    eventually("its host port leads to it", || node.curl_from_outside(&format!("http://{INSIDE}:8088/")).result());
}

#[test]
fn further_networks_by_annotation() {
    let folder = Folder::new();
    let storage = json!([{"type": "bridge", "bridge": "storage0", "ipam": ipam("10.33.0.0/24")}]);
    folder.configure("20-storage.conflist", &list("storage", &storage));
    // The pods' own network is the agent's bridge.
    let node = folder.node("").start();
    let two = |name: &str| {
        pod(name).metadata("annotations: {k8s.v1.cni.cncf.io/networks: storage@fast}").runs("a", "serve --port 8080")
    };
    let (one, other) = (node.put(&two("one")), node.put(&two("other")));
    one.becomes("Running");
    other.becomes("Running");
    assert!(one.ip().starts_with("10.85."), "{}", one.ip());
    let status =
        other.get().unwrap()["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str().unwrap().to_owned();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status[0]["name"], &status[0]["interface"]), (&json!("storage"), &json!("fast")));
    let address = status[0]["ips"][0].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.33.0."), "{status}");
    one.container("a").demo(&format!("get http://{address}:8080/json"));

    // A network that isn't there yet: the pod waits, and goes on when it comes.
    let third = node.put(&pod("third").metadata("annotations: {k8s.v1.cni.cncf.io/networks: backup}").runs("a", "sleep"));
    third.tells(&["no CNI network \"backup\" in", "it has \"storage\""]);
    let backup = json!([{"type": "ptp", "ipam": ipam("10.44.0.0/24")}]);
    folder.configure("30-backup.conflist", &list("backup", &backup));
    third.becomes("Running");
    for name in ["one", "other", "third"] {
        node.remove(&format!("{name}.yaml"));
        node.pod(name).is_gone();
    }
    assert_eq!((folder.reserved("storage"), folder.reserved("backup")), (vec![], vec![]));
}

#[test]
fn what_annotations_ask_of_the_agents_own_bridge() {
    let node = NodeBox::start();
    let limited = pod("limited").metadata(
        "annotations: {kubernetes.io/ingress-bandwidth: 8M, kubernetes.io/egress-bandwidth: 16M, nodeagent.dev/ips: 10.85.7.7}",
    );
    let limited = node.put(&limited.runs("a", "sleep"));
    limited.becomes("Running");
    assert_eq!(limited.ip(), "10.85.7.7");
    let shaped = node.inside("tc", &["qdisc", "show"]).ok();
    assert!(shaped.contains("rate 8Mbit") && shaped.contains("rate 16Mbit"), "{shaped}");
    node.apply(
        "wrong.yaml",
        &pod("wrong").metadata("annotations: {kubernetes.io/ingress-bandwidth: '10'}").runs("a", "sleep").yaml(),
    );

    node.tells(&["InvalidManifest", "wrong.yaml:", "kubernetes.io/ingress-bandwidth", "resource is unreasonably small"]);
    node.remove("wrong.yaml");
    node.remove("limited.yaml");
    limited.is_gone();
    eventually("the limits are gone", || {
        let shaped = node.inside("tc", &["qdisc", "show"]).ok() + &node.inside("ip", &["link"]).ok();
        if shaped.contains("tbf") || shaped.contains("ifb") { Err(shaped) } else { Ok(()) }
    });
}
